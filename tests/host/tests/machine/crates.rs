//! Tests of single crates that need a systemd: they are ignored elsewhere, and all of them run here.

use tests_host::{Machine, test_program};

use crate::ready;

/// Runs all tests that one program ignores elsewhere, each of which must pass.
fn all_pass(package: &str, test: &str) {
    let Some(ready) = ready() else { return };
    let program = test_program(package, test).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::boot(&ready.base, directory.path(), package).unwrap();
    machine.copy_in(&program, "/usr/local/bin/tests").unwrap();
    let listed = machine.run(&["/usr/local/bin/tests", "--list", "--ignored"]).unwrap();
    let count = listed.lines().filter(|line| line.ends_with(": test")).count();
    assert_ne!(count, 0, "{listed}");
    // One at a time: they share one systemd.
    let said = machine
        .run_as_unit(&["/usr/local/bin/tests", "--ignored", "--test-threads=1", "--nocapture"])
        .unwrap();
    assert!(said.contains(&format!("test result: ok. {count} passed; 0 failed; 0 ignored")), "{said}");
    assert!(!said.contains("left out"), "{said}");
}

#[test]
fn units_are_restarted_reloaded_and_probed_by_a_real_systemd() {
    all_pass("units", "real");
}

#[test]
fn readers_are_charged_to_units_of_a_real_systemd() {
    all_pass("holders", "systemd");
}
