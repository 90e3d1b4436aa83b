//! Every refusal has its code and changes nothing on disk.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{Epoch, OrderKind};
use protocol::order::{Body, OrderPayload};
use protocol::seal::{StagedSet, Value};
use protocol::{FileName, Frame, HostId, InstallationId, SigningKey, UnixMillis, VersionKey};

use crate::control::{Host, activate, arm, seal, stage, v};

pub(crate) const POLICY: &str = r#"
[set.db]
places = [{ path = "{app}/password", file = "password", kind = "link" }]
"#;

/// On version 1 in generation 5.
pub(crate) fn on_one() -> Host {
    let mut host = Host::new(POLICY);
    host.up();
    host.order(5, stage(1));
    host.order(5, activate(1));
    host
}

#[track_caller]
fn refused(host: &mut Host, frame: Frame, code: &str) {
    let before = host.disk();
    let (current, generation) = (host.db().current, host.db().generation);
    assert_eq!(host.try_frame(frame), Err(code.to_owned()));
    assert_eq!(host.disk(), before, "nothing changed on disk");
    assert_eq!((host.db().current, host.db().generation), (current, generation));
}

#[test]
fn refusals_name_their_code_and_change_nothing_on_disk() {
    let mut host = on_one();
    let with = |host: &Host, change: &dyn Fn(&mut OrderPayload)| {
        let mut payload = host.payload(6, stage(2));
        change(&mut payload);
        host.sign(&payload)
    };

    let frame = with(&host, &|payload| payload.installation = InstallationId::random());
    refused(&mut host, frame, "other_installation");
    let stranger = SigningKey::generate().unwrap();
    let frame = with(&host, &|payload| payload.host = HostId::of(&stranger.public()));
    refused(&mut host, frame, "other_host");
    let frame = with(&host, &|payload| payload.expires_at = UnixMillis(payload.sent_at.0 - 1));
    refused(&mut host, frame, "expired");
    let frame = host.payload(6, stage(2)).sign(&stranger).unwrap();
    refused(&mut host, frame, "foreign_key");
    let mut bytes = host.sign(&host.payload(6, stage(2))).to_bytes();
    bytes[4..68].fill(0);
    let frame = Frame::parse(&bytes, bytes.len()).unwrap();
    refused(&mut host, frame, "foreign_key");
    let frame = host.sign(&host.payload(4, stage(2)));
    refused(&mut host, frame, "older_generation");
    let frame = host.sign(&host.payload(5, stage(2)));
    refused(&mut host, frame, "replay");
    let frame = host.sign(&host.payload_with(6, stage(1), "-another", BTreeSet::new()));
    refused(&mut host, frame, "other_digest");
    let frame = host.sign(&host.payload(6, activate(3)));
    refused(&mut host, frame, "not_staged");
    let frame = host.sign(&host.payload(6, OrderKind::Adopt { version: v(3) }));
    refused(&mut host, frame, "not_current");
    let frame = with(&host, &|payload| {
        payload.sent_at = UnixMillis(payload.sent_at.0 - 30_000);
        if let Body::Set(order) = &mut payload.body {
            order.order.kind = arm(1, 50_000);
            order.stage = None;
        }
    });
    refused(&mut host, frame, "clock_off");
    let frame = with(&host, &|payload| {
        if let Body::Set(order) = &mut payload.body {
            order.set = lifecycle::SetName::new("elsewhere").unwrap();
        }
    });
    refused(&mut host, frame, "not_in_policy");
}

#[test]
fn an_order_that_was_accepted_is_a_replay_after_a_later_one() {
    let mut host = on_one();
    let frame = host.sign(&host.payload(6, stage(2)));
    assert_eq!(host.try_frame(frame.clone()), Ok(()));
    assert_eq!(host.try_frame(frame.clone()), Ok(()), "again, with nothing newer: the recorded outcome");
    host.order(7, OrderKind::RollBack { to: v(1) });
    refused(&mut host, frame, "replay");
}

#[test]
fn sets_that_are_too_large_or_lack_a_file_are_refused() {
    let mut host = on_one();
    let sealed = |host: &Host, files: Vec<(&str, Vec<u8>)>| {
        let files: BTreeMap<FileName, Value> = files
            .into_iter()
            .map(|(name, content)| (FileName::new(name).unwrap(), Value::new(content)))
            .collect();
        let set = StagedSet::new(VersionKey::from_bytes([2; 32]), files, None).unwrap();
        let mut payload = host.payload(6, stage(2));
        let stage = set.seal(&payload.seal_context().unwrap(), &host.keys.sealing_key).unwrap();
        if let Body::Set(order) = &mut payload.body {
            order.stage = Some(stage);
        }
        host.sign(&payload)
    };
    for _again in 0..2 {
        let frame = sealed(&host, vec![("other", b"x".to_vec())]);
        refused_stage(&mut host, frame, "no_such_file");
    }
    // No set over the limits can be made with our own types, so one is cut open and sealed as it is.
    let mut payload = host.payload(6, stage(2));
    if let Body::Set(order) = &mut payload.body {
        let digests = (0..65).map(|n| {
            (
                FileName::new(format!("f{n}")).unwrap(),
                order.stage.as_ref().unwrap().digests.values().next().copied().unwrap(),
            )
        });
        order.stage.as_mut().unwrap().digests = digests.collect();
    }
    let frame = host.sign(&payload);
    refused(&mut host, frame, "over_limit");
    // Sealed for another version: it cannot be moved to this order.
    let mut payload = host.payload(6, stage(2));
    let other = host.payload(6, stage(3));
    if let (Body::Set(order), Body::Set(other)) = (&mut payload.body, other.body) {
        order.stage = other.stage;
    }
    let frame = host.sign(&payload);
    refused(&mut host, frame, "not_sealed_to_us");
}

/// A stage that was taken and could not be carried out: the intent stands, the disk is as it was.
#[track_caller]
fn refused_stage(host: &mut Host, frame: Frame, code: &str) {
    let before = host.disk();
    assert_eq!(host.try_frame(frame), Err(code.to_owned()));
    assert_eq!(host.disk(), before);
    assert!(!host.db().present.contains_key(&v(2)));
}

#[test]
fn a_new_epoch_ends_the_old_one_for_ever() {
    let mut host = on_one();
    let late = host.sign(&host.payload(9, stage(2)));
    host.epoch = Epoch { counter: 2, id: 99 };
    let report = host.ask(3);
    assert_eq!((report.epoch, report.sets[&host.set()].answers), (Some(host.epoch), 3));
    refused(&mut host, late.clone(), "old_epoch");
    host.restart();
    host.ask(4);
    refused(&mut host, late, "old_epoch");
    host.epoch = Epoch { counter: 2, id: 98 };
    let frame = host.sign(&host.payload(1, stage(2)));
    refused(&mut host, frame, "stranger_epoch");
}

#[test]
fn a_dead_version_never_comes_back() {
    let mut host = on_one();
    host.order(6, stage(2));
    host.order(6, activate(2));
    host.order(6, seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
    for kind in [stage(1), activate(1), OrderKind::RollBack { to: v(1) }] {
        let frame = host.sign(&host.payload(7, kind));
        refused(&mut host, frame, "dead");
    }
    host.restart();
    host.ask(1);
    let frame = host.sign(&host.payload(7, stage(1)));
    refused(&mut host, frame, "dead");
}

#[test]
fn a_policy_that_is_broken_leaves_the_one_before_in_force() {
    let mut host = on_one();
    host.write_policy("[set.db]\nplases = []\n");
    let report = host.until_report("a notice", |report| {
        report.notices.iter().any(|notice| notice.code == "policy_refused")
    });
    let notice = report.notices.iter().find(|notice| notice.code == "policy_refused").unwrap();
    assert!(notice.message.contains("db.toml") && notice.message.contains("places"), "{}", notice.message);
    host.order(6, stage(2));
    host.write_policy(POLICY);
    host.until_report("the end of it", |report| {
        report.notices.iter().all(|notice| notice.code != "policy_refused")
    });
}

#[test]
fn a_set_that_policy_dropped_is_still_served() {
    let mut host = on_one();
    host.write_policy("");
    let before = host.disk();
    let deadline = std::time::Instant::now() + crate::control::PATIENCE;
    let mut generation = 6;
    loop {
        match host.try_order(generation, stage(2)) {
            Err(code) if code == "not_in_policy" => break,
            _ => generation += 1,
        }
        assert!(std::time::Instant::now() < deadline, "the new policy is not taken");
    }
    assert_eq!(host.current("password"), before.values().find(|text| text.contains("version-1")).cloned());
}

#[test]
fn an_owner_that_does_not_exist_leaves_a_whole_working_set() {
    let mut host = on_one();
    let before = host.disk();
    host.write_policy(&POLICY.replace("[set.db]", "[set.db]\nowner = \"no-such-user-here\""));
    let deadline = std::time::Instant::now() + crate::control::PATIENCE;
    let mut generation = 6;
    loop {
        match host.try_order(generation, stage(2)) {
            Err(code) => break assert_eq!(code, "no_such_owner"),
            Ok(()) => host.order(generation, OrderKind::Discard { version: v(2) }),
        };
        generation += 1;
        assert!(std::time::Instant::now() < deadline, "the new policy is not taken");
    }
    assert_eq!(host.disk(), before);
    assert_eq!(host.db().current, Some(v(1)));
}
