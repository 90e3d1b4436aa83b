//! The package itself: what is in it, and a host from its installation to its removal.

use std::fs;
use std::path::Path;

use protocol::api::DeliveryPhase;
use tests_host::Package;

use crate::control::{FIRST, SECOND};
use crate::host::{Host, UNIT};
use crate::{ready, until};

/// By these a program can be told to die at a step, and that it is another boot. They stand in every build with the
/// feature and in no other.
const NAMES: [&[u8]; 2] = [b"ESO_FAILPOINT", b"ESO_BOOT_ID"];

/// Builds the package last: the build with failpoints lies where the package's programs are taken from.
pub(crate) fn build() -> anyhow::Result<Package> {
    fs::copy(tests_host::applier_with_failpoints()?, with_failpoints())?;
    Package::build()
}

fn with_failpoints() -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("applier-with-failpoints")
}

/// Which of the names stand in a program.
fn names_in(program: &Path) -> Vec<&'static [u8]> {
    let program = fs::read(program).unwrap();
    let stands = |name: &&[u8]| program.windows(name.len()).any(|window| window == *name);
    NAMES.into_iter().filter(stands).collect()
}

#[test]
fn no_package_contains_failpoints() {
    let Some(ready) = ready() else { return };
    assert_eq!(names_in(&with_failpoints()), NAMES, "the search itself finds nothing");
    let directory = tempfile::tempdir().unwrap();
    ready.package.unpack(directory.path()).unwrap();
    let programs: Vec<_> = fs::read_dir(directory.path().join("usr/sbin")).unwrap().collect();
    assert_eq!(programs.len(), 2);
    for program in programs {
        let path = program.unwrap().path();
        assert!(names_in(&path).is_empty(), "{} can be told to die", path.display());
    }
}

#[test]
fn a_host_from_the_package_rotates_and_outlives_upgrade_and_removal() {
    let Some(ready) = ready() else { return };
    let host = Host::installed(ready, "package");
    for (unit, state) in [("eso-vm-applier", "inactive"), ("eso-vm-server", "active")] {
        assert_eq!(host.property(unit, "UnitFileState"), "enabled");
        // The applier waits for its enrolment.
        assert_eq!(host.property(unit, "ActiveState"), state, "{unit}");
    }
    host.begin("restart", "ExecStart=/bin/sh -c 'read -r P </etc/orders/password; exec sleep 100000'");
    assert_eq!(host.current(), "v1.1");
    let mounts = fs::read_to_string(host.machine.path("/proc/1/mountinfo")).unwrap();
    let of_set = mounts.lines().filter(|line| line.contains(" /run/eso-vm-server/sets/orders-db "));
    assert_eq!(of_set.filter(|line| line.contains(" - tmpfs ")).count(), 1, "{mounts}");

    host.our_own_restart_and_upgrade_change_nothing();
    let before = host.invocation();
    host.control.rotate();
    host.control.until_delivered(SECOND, DeliveryPhase::Adopted);
    assert_ne!(before, host.invocation());
    host.control.until_dead(FIRST);
    assert!(!host.has("v1.1") && host.current() == "v1.2");
    host.our_own_restart_and_upgrade_change_nothing();

    host.no_value_is_where_it_does_not_belong();
    let before = host.invocation();
    host.machine.run(&["dpkg", "--remove", "eso-vm-server"]).unwrap();
    for unit in ["eso-vm-applier", "eso-vm-server"] {
        until("it is stopped", || (host.property(unit, "ActiveState") == "inactive").then_some(()));
    }
    // Sets outlive the package, since applications read them.
    assert_eq!((host.current().as_str(), host.invocation()), ("v1.2", before.clone()));
    assert_eq!(host.property(UNIT, "ActiveState"), "active");
    // What ran before runs again once the package is back.
    host.machine.run(&["dpkg", "--install", "/root/eso.deb"]).unwrap();
    for unit in ["eso-vm-applier", "eso-vm-server"] {
        until("it runs again", || (host.property(unit, "ActiveState") == "active").then_some(()));
        assert_eq!(host.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    assert_eq!((host.current().as_str(), host.invocation()), ("v1.2", before));
}
