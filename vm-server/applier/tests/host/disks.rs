//! File systems that are full or read-only: the application keeps a whole, working set, and what was refused works as
//! soon as there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use lifecycle::OrderKind;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::control::{Host, activate, secret, stage, v};

const POLICY: &str = r#"
[set.db]
places = [
    { path = "{app}/password", file = "password", kind = "link" },
    { path = "{app}/copied", file = "password", kind = "copy" },
]
"#;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    tests_needs::is_there(root, "full and read-only file systems under a host: mounting needs root")
}

/// Another file system in the place of a directory, with all that lay there.
struct Moved(PathBuf);

impl Moved {
    fn onto(directory: &Path, how: impl FnOnce(&Path)) -> Self {
        let aside = directory.with_extension("aside");
        let copy = |from: &Path, to: &Path| {
            let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
            assert!(copied.success());
        };
        std::fs::create_dir(&aside).unwrap();
        copy(directory, &aside);
        how(directory);
        let moved = Self(directory.to_owned());
        copy(&aside, directory);
        std::fs::remove_dir_all(aside).unwrap();
        moved
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// On version 1 in generation 5, with this directory on a file system of its own.
fn on_one(directory: &str, how: impl FnOnce(&Path)) -> (Host, Moved) {
    let mut host = Host::new(POLICY);
    host.up();
    host.order(5, stage(1));
    host.order(5, activate(1));
    host.kill();
    let moved = Moved::onto(&host.root().join(directory), how);
    host.up();
    host.ask(1);
    whole(&host, 1);
    (host, moved)
}

#[track_caller]
fn whole(host: &Host, number: u32) {
    let links = host.app_dir().join("password");
    assert_eq!(std::fs::read_to_string(links).unwrap(), secret(number), "by the link");
    assert_eq!(std::fs::read_to_string(host.app_dir().join("copied")).unwrap(), secret(number), "the copy");
    assert_eq!(host.current("user"), Some(format!("orders_v{number}")), "in the set");
}

#[track_caller]
fn works_again(host: &mut Host, generation: u32) {
    host.order(generation, stage(2));
    host.order(generation, activate(2));
    host.until("version 2 in all places", |report| report.current == Some(v(2)));
    whole(host, 2);
}

#[test]
fn a_full_file_system_of_the_sets_leaves_a_whole_working_set() {
    if !is_root() {
        return;
    }
    let small = |at: &Path| mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"size=64k,mode=0755").unwrap();
    let (mut host, moved) = on_one("run/sets", small);
    let ballast = moved.0.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    drop(file);
    let before = host.disk();
    assert_eq!(host.try_order(6, stage(2)), Err("disk_full".to_owned()));
    assert_eq!(host.disk(), before, "something of it stayed");
    whole(&host, 1);
    host.restart();
    host.ask(2);
    whole(&host, 1);
    std::fs::remove_file(ballast).unwrap();
    works_again(&mut host, 7);
    host.kill();
    drop(moved);
}

#[test]
fn a_read_only_file_system_of_the_sets_leaves_a_whole_working_set() {
    if !is_root() {
        return;
    }
    let (mut host, moved) = on_one("run/sets", |at| mount_bind(at, at).unwrap());
    mount_remount(&moved.0, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    let before = host.disk();
    assert_eq!(host.try_order(6, stage(2)), Err("read_only".to_owned()));
    assert_eq!(host.disk(), before);
    whole(&host, 1);
    mount_remount(&moved.0, MountFlags::BIND, c"").unwrap();
    works_again(&mut host, 7);
    host.kill();
    drop(moved);
}

/// The set can flip, a place of it cannot: the place keeps the old version whole, and that is a place left behind.
#[test]
fn a_read_only_place_keeps_a_whole_version_until_it_can_be_written() {
    if !is_root() {
        return;
    }
    let (mut host, moved) = on_one("app", |at| mount_bind(at, at).unwrap());
    mount_remount(&moved.0, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    host.order(6, stage(2));
    let _ = host.try_order(6, activate(2));
    let copied = std::fs::read_to_string(host.app_dir().join("copied")).unwrap();
    assert_eq!(copied, secret(1), "a place that cannot be written shows what it had");
    let linked = std::fs::read_to_string(host.app_dir().join("password")).unwrap();
    assert!(linked == secret(1) || linked == secret(2), "a link leads to a whole version");
    mount_remount(&moved.0, MountFlags::BIND, c"").unwrap();
    host.order(7, OrderKind::RollBack { to: v(1) });
    host.order(8, stage(2));
    host.order(8, activate(2));
    let deadline = std::time::Instant::now() + crate::control::PATIENCE;
    while std::fs::read_to_string(host.app_dir().join("copied")).unwrap() != secret(2) {
        assert!(
            std::time::Instant::now() < deadline,
            "the copy is not written when it can be: {:#?}",
            host.db()
        );
        host.ask(9);
    }
    whole(&host, 2);
    host.kill();
    drop(moved);
}
