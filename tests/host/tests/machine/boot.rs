//! What a reboot leaves.

use tests_host::Machine;

use crate::control::FIRST;
use crate::host::{Host, PLACE, UNIT};
use crate::ready;

/// The machine's own boot id is a mount over the kernel's, which these settings would hide: with them a second boot of
/// the machine looks like the first.
const KNOWS_ITS_BOOT: (&str, &str) = (
    "/etc/systemd/system/eso-vm-applier.service.d/boot-id.conf",
    "[Service]\nProtectKernelTunables=no\nProtectControlGroups=no\n",
);

#[test]
fn after_a_reboot_a_unit_finds_its_set_at_its_start_while_the_control_plane_is_away() {
    let Some(ready) = ready() else { return };
    // It fails for good where the credential is not there yet.
    let service = format!("ExecStart=/bin/sh -c 'read -r P <{PLACE}; test -n \"$$P\" && exec sleep 100000'");
    let host = Host::new(ready, "reboot", "restart", &service);
    host.machine.run(&["systemctl", "enable", UNIT]).unwrap();
    host.machine.write(KNOWS_ITS_BOOT.0, KNOWS_ITS_BOOT.1).unwrap();
    let Host { machine, mut control, directory, default_port } = host;
    control.stop();
    machine.power_off().unwrap();
    let machine = Machine::boot(&ready.base, directory.path(), "reboot").unwrap();
    let mut host = Host { machine, control, directory, default_port };
    assert_eq!(host.property(UNIT, "Result"), "success");
    assert_eq!(host.property(UNIT, "ActiveState"), "active");
    assert_eq!(host.current(), "v1.1");
    // Its reader of this boot is known as soon as somebody asks.
    host.control.start_again();
    host.until_held_by(FIRST, &[Host::life(&host.invocation())]);
    host.no_value_is_where_it_does_not_belong();
}
