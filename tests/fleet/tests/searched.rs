//! The search that ends every test of a fleet finds a value that lies where it does not belong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use tests_fleet::scene::{PATIENCE, Scene, Wish};
use tests_fleet::server::Overlap;
use tests_fleet::{apart, built, farm};

#[test]
fn a_value_in_a_log_a_journal_or_beside_the_database_is_found() {
    if apart("a_value_in_a_log_a_journal_or_beside_the_database_is_found") {
        return;
    }
    let runtime = farm::runtime(1).unwrap();
    let wish = Wish {
        hosts: 1,
        processes_every: 1,
        restarted_every: 0,
        login_every_ms: 200,
        overlap: Overlap::Versions,
        network: None,
    };
    let mut scene = Scene::set(&built!(), &wish, runtime.handle()).unwrap();
    scene.declare("{ barrier: 1s, flipIn: 60ms, startWait: 1s, grace: 0s, wave: 1 }").unwrap();
    let detail = scene.until_at_rest(PATIENCE).unwrap();
    scene.check(&detail).unwrap();
    let (name, value) = scene.server.values().pop().unwrap();
    let host = scene.farm.hosts()[0].site().directory.clone();
    let places = [
        scene.control.log().with_extension("log.1"),
        scene.control.database().with_extension("db.bak"),
        host.join("state/applier/leak"),
        host.join("log.1"),
    ];
    for place in places {
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, format!("WARN failed to use {value}\n")).unwrap();
        let said = scene.check(&detail).unwrap_err().to_string();
        assert!(said.contains(&name) && said.contains(&place.display().to_string()), "{said}");
        assert!(!said.contains(&value), "the value was shown");
        std::fs::remove_file(&place).unwrap();
    }
    scene.check(&detail).unwrap();
}
