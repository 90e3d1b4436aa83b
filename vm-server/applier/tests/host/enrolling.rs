//! What root writes where the network half may write too.

use std::os::unix::fs::{MetadataExt as _, chown, symlink};

use protocol::enrol::{PENDING_FILE, PendingEnrolment};

use crate::control::Host;
use crate::rotating::policy;

/// A user whom nothing else belongs to.
const NETWORK_HALF: u32 = 54_321;

fn enrol(host: &Host) -> std::process::Output {
    let root = host.root();
    Host::binary(&root.join("config"))
        .args(["enroll", "--bundle"])
        .arg(root.join("bundle.json"))
        .output()
        .unwrap()
}

#[test]
fn the_network_half_cannot_have_root_write_or_give_away_another_file() {
    if !crate::control::is_root_for("enrolling into another user's directory: that needs root") {
        return;
    }
    let host = Host::new(&policy(r#"adopt = "restart""#, ""));
    let (server, anchor) = (host.root().join("state/server"), host.root().join("state/applier/anchor.json"));
    let content = std::fs::read(&anchor).unwrap();
    chown(&server, Some(NETWORK_HALF), Some(NETWORK_HALF)).unwrap();
    let pending = server.join(PENDING_FILE);
    std::fs::remove_file(&pending).unwrap();
    // What it can foresee of our names leads to what it wants to have.
    for name in [PENDING_FILE.to_owned(), format!("{PENDING_FILE}.new")] {
        symlink("../applier/anchor.json", server.join(name)).unwrap();
    }
    let enrolled = enrol(&host);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    assert!(std::fs::read(&anchor).unwrap() == content, "the trust anchor was overwritten");
    assert_eq!(std::fs::metadata(&anchor).unwrap().uid(), 0);
    let given = std::fs::symlink_metadata(&pending).unwrap();
    assert!(given.is_file());
    assert_eq!((given.uid(), given.gid(), given.mode() & 0o7777), (NETWORK_HALF, NETWORK_HALF, 0o600));
    PendingEnrolment::from_json(&std::fs::read(&pending).unwrap()).unwrap();
    let left: Vec<_> = std::fs::read_dir(&server).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [PENDING_FILE]);
}

#[test]
fn a_link_in_place_of_the_network_halfs_directory_is_refused() {
    let host = Host::new(&policy(r#"adopt = "restart""#, ""));
    let server = host.root().join("state/server");
    std::fs::remove_dir_all(&server).unwrap();
    symlink(host.app_dir(), &server).unwrap();
    assert!(!enrol(&host).status.success());
    assert_eq!(std::fs::read_dir(host.app_dir()).unwrap().count(), 0);
}
