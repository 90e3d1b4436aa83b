//! Real orders from a control plane to units of a real systemd.

use std::fs;

use protocol::api::{Clause, DeliveryPhase, RolloutPhase};

use crate::control::{FIRST, SECOND};
use crate::host::{Host, UNIT};
use crate::{ready, until};

/// Reads the credential once, as most programs do.
const READS_ONCE: &str = "ExecStart=/bin/sh -c 'read -r P </etc/orders/password; exec sleep 100000'";

fn lines(host: &Host, path: &str) -> Vec<String> {
    let text = fs::read_to_string(host.machine.path(path)).unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_restart_is_one_job_that_is_waited_for_also_across_our_own_death() {
    let Some(ready) = ready() else { return };
    let slow = "ExecStartPre=/bin/sh -c 'echo $$INVOCATION_ID >>/var/starts; sleep 3'";
    let host = Host::new(ready, "job", "restart", &format!("{slow}\n{READS_ONCE}"));
    let before = host.invocation();
    host.control.rotate();
    until("the unit is being started", || {
        (host.invocation() != before && host.property(UNIT, "ActiveState") == "activating").then_some(())
    });
    // The job was asked for and has not ended.
    host.machine.run(&["systemctl", "kill", "--signal=KILL", "eso-vm-applier"]).unwrap();
    assert_ne!(host.control.delivery(SECOND), Some(DeliveryPhase::Adopted));
    host.control.until_delivered(SECOND, DeliveryPhase::Adopted);
    host.control.until_dead(FIRST);
    host.our_own_restart_and_upgrade_change_nothing();
    assert_eq!(lines(&host, "/var/starts"), [before, host.invocation()], "one start for each version");
    host.no_value_is_where_it_does_not_belong();
}

#[test]
fn a_start_that_fails_rolls_back_past_the_start_limit() {
    let Some(ready) = ready() else { return };
    // Two starts an hour: the first version's and the second's. A third one is refused unless it is reset.
    let service = "Restart=on-failure\nRestartSec=10ms\nExecStart=/bin/sh -c 'read -r P </etc/orders/password; \
        case $$(readlink /run/eso-vm-server/sets/orders-db/..data) in v1.2) exit 1;; esac; exec sleep 100000'\n\
        [Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2";
    let host = Host::new(ready, "limit", "restart", service);
    let before = host.invocation();
    host.control.rotate();
    host.control.until_delivered(SECOND, DeliveryPhase::RolledBack);
    until("the unit is back on the old version", || {
        (host.property(UNIT, "ActiveState") == "active" && host.invocation() != before).then_some(())
    });
    assert_eq!(host.current(), "v1.1");
    until("the rollout is halted", || {
        host.control.credential().rollout.filter(|rollout| rollout.phase == RolloutPhase::Halted)
    });
    host.our_own_restart_and_upgrade_change_nothing();
    host.control.esoctl(&["rollout", "abort", "orders-db", "--reason", "it does not start"]);
    host.control.until_dead(SECOND);
    assert!(host.current() == "v1.1" && host.has("v1.1") && !host.has("v1.2"));
    assert_eq!(host.property(UNIT, "ActiveState"), "active");
    host.no_value_is_where_it_does_not_belong();
}

#[test]
fn a_reload_that_does_nothing_is_not_adopted() {
    let Some(ready) = ready() else { return };
    let service = format!("{READS_ONCE}\nExecReload=/bin/sh -c 'echo x >>/var/reloads'");
    let host = Host::new(ready, "reload", "reload", &service);
    let before = host.invocation();
    host.control.rotate();
    until("the unit was reloaded", || (!lines(&host, "/var/reloads").is_empty()).then_some(()));
    // Well past its settle time.
    host.our_own_restart_and_upgrade_change_nothing();
    assert_eq!(host.control.delivery(SECOND), Some(DeliveryPhase::Activated));
    host.until_held_by(FIRST, &[Host::life(&before)]);
    let why = host.control.pending(FIRST).map(|pending| pending.why.blockers).unwrap_or_default();
    let adopting = host.control.credential().rollout.is_some();
    assert!(adopting || why.iter().any(|blocker| blocker.clause == Clause::Adopted), "{why:?}");
    // Somebody restarts it.
    host.machine.run(&["systemctl", "restart", UNIT]).unwrap();
    host.control.until_delivered(SECOND, DeliveryPhase::Adopted);
    host.control.until_dead(FIRST);
    host.no_value_is_where_it_does_not_belong();
}

#[test]
fn a_child_that_outlives_the_restart_keeps_the_old_version() {
    let Some(ready) = ready() else { return };
    let service = "KillMode=process\nExecStart=/bin/sh -c 'read -r P </etc/orders/password; sleep 100000 & \
        echo $$! >/run/child-of-$$INVOCATION_ID; exec sleep 100001'";
    let host = Host::new(ready, "child", "restart", service);
    let before = host.invocation();
    host.control.rotate();
    host.control.until_delivered(SECOND, DeliveryPhase::Adopted);
    let (old, new) = (Host::life(&before), Host::life(&host.invocation()));
    assert_ne!(old, new);
    host.our_own_restart_and_upgrade_change_nothing();
    host.until_held_by(FIRST, &[old]);
    host.until_held_by(SECOND, &[new]);
    assert!(host.has("v1.1"), "it was unlinked while somebody has it");
    let child = lines(&host, &format!("/run/child-of-{before}"));
    host.machine.run(&["kill", &child[0]]).unwrap();
    host.control.until_dead(FIRST);
    assert!(!host.has("v1.1"));
    host.no_value_is_where_it_does_not_belong();
}

#[test]
fn what_pid_1_reads_for_a_unit_is_held_by_that_life_of_the_unit() {
    let Some(ready) = ready() else { return };
    let service = "EnvironmentFile=/etc/orders/password\nExecStart=/bin/sleep 100000";
    let host = Host::new(ready, "environment", "restart", service);
    let before = host.invocation();
    host.until_held_by(FIRST, &[Host::life(&before)]);
    host.our_own_restart_and_upgrade_change_nothing();
    host.until_held_by(FIRST, &[Host::life(&before)]);
    host.control.rotate();
    host.control.until_dead(FIRST);
    host.until_held_by(SECOND, &[Host::life(&host.invocation())]);
    host.no_value_is_where_it_does_not_belong();
}
