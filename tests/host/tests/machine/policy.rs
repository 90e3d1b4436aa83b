//! What a host's policy asks for, on a real systemd: keys that the machine seals, probes that are units of their own,
//! and units that are left alone.

use lifecycle::Version;
use protocol::api::DeliveryPhase;

use crate::control::{CREDENTIAL, SECOND};
use crate::host::{Host, PLACE, UNIT};
use crate::{ready, until_or};

const THIRD: Version = Version::new(1, 3);

/// Consumers beside the one that every host has. In force when this returns.
fn consumers(host: &Host, more: &str) {
    let policy = format!(
        "[set.{CREDENTIAL}]\n\
        places = [{{ path = \"{PLACE}\", file = \"password\" }}]\n\
        [[set.{CREDENTIAL}.consumers]]\nunit = \"{UNIT}\"\nadopt = \"restart\"\nsettle_ms = 1_000\n\
        probe = {{ command = [\"/usr/bin/test\", \"-d\", \"/run/systemd\"] }}\n{more}"
    );
    host.machine.write("/etc/eso-vm-server/conf.d/orders.toml", &policy).unwrap();
    host.machine.run(&["systemctl", "restart", "eso-vm-applier"]).unwrap();
}

fn another(unit: &str) -> String {
    format!("[[set.{CREDENTIAL}.consumers]]\nunit = \"{unit}\"\nadopt = \"restart\"\nsettle_ms = 1_000\n")
}

fn until_logged(host: &Host, what: &str) {
    let log = || host.machine.run(&["journalctl", "--no-pager", "--output=cat"]).unwrap_or_default();
    until_or(|| format!("{what} in the log:\n{}", log()), || log().contains(what).then_some(()));
}

#[test]
fn keys_are_sealed_probes_are_units_and_a_unit_that_would_reboot_the_host_is_left_alone() {
    let Some(ready) = ready() else { return };
    let service = "ExecStart=/bin/sh -c 'read -r P </etc/orders/password; exec sleep 100000'";
    let host = Host::new(ready, "policy", "restart", service);
    let key = |name: &str| host.machine.path(&format!("/var/lib/eso-vm-server/applier/{name}")).exists();
    assert!(key("identity.cred") && !key("identity.key"), "keys are sealed by the machine, and only that");

    consumers(&host, "");
    host.control.rotate();
    host.control.until_delivered(SECOND, DeliveryPhase::Adopted);
    until_logged(&host, "A check that the policy of eso-vm-server asks for");

    let reboots = "[Unit]\nFailureAction=reboot\n[Service]\nExecStart=/bin/sleep 100000\n";
    host.machine.write("/etc/systemd/system/precious.service", reboots).unwrap();
    host.machine.run(&["systemctl", "daemon-reload"]).unwrap();
    host.machine.run(&["systemctl", "start", "precious.service"]).unwrap();
    let before = (host.invocation(), host.property("precious.service", "InvocationID"));
    consumers(&host, &another("precious.service"));
    host.control.rotate();
    host.control.until_delivered(THIRD, DeliveryPhase::Refused);
    until_logged(&host, "unit_dangerous");
    assert_eq!(host.current(), "v1.2");
    assert_eq!(before, (host.invocation(), host.property("precious.service", "InvocationID")));

    // One that is not installed does not run, and is told of; it keeps no version from coming.
    consumers(&host, &another("ghost.service"));
    host.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "a unit that is left alone"]);
    host.control.rotate();
    until_or(|| format!("{:#?}", host.control.credential()), || (host.current() == "v1.4").then_some(()));
    until_logged(&host, "unit_vanished");
}
