//! What is not exactly ours, for us and in time is refused, by a stable word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod samples;

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{GapId, Generation, HolderId, Millis, Order, OrderKind, SetName};
use proptest::prelude::*;
use protocol::enrol::{EnrolError, Registration, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::order::{Ask, Body, OrderPayload, Rekey, SetOrder};
use protocol::report::ReportError;
use protocol::seal::{InvalidSet, OpenError, StagedSet, Value};
use protocol::{
    FileName, Frame, HostId, InstallationId, OpeningKey, SigningKey, UnixMillis, VersionKey, ack, limit,
    order, report,
};
use samples::{EPOCH, NOW, Samples, version};

fn code(samples: &Samples, frame: &Frame) -> &'static str {
    match order::verify(frame, &samples.anchor(), samples.host(), UnixMillis(NOW)) {
        Ok(_) => "accepted",
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.code()
        }
    }
}

#[test]
fn an_order_is_refused_for_each_reason_by_its_word() {
    let samples = Samples::new();
    let adopt = || samples.set_order(OrderKind::Adopt { version: version(8) }, None);
    let with = |change: &dyn Fn(&mut OrderPayload)| {
        let mut payload = adopt();
        change(&mut payload);
        payload
    };
    let arm = |in_ms| OrderKind::Arm { version: version(8), in_ms: Millis(in_ms), answers: None };
    let stage = || OrderKind::Stage { version: version(8), effect: lifecycle::EffectId(9) };
    let many_questions = (0..=limit::SETS_PER_HOST_MAX)
        .map(|n| (SetName::new(format!("s{n}")).unwrap(), 1))
        .collect::<BTreeMap<_, _>>();
    let many_dead =
        (0..=u32::try_from(limit::DEAD_PER_SET_MAX).unwrap()).map(version).collect::<BTreeSet<_>>();
    let many_holders =
        (0..=limit::CLEARED_MAX).map(|n| HolderId::new(format!("h{n}")).unwrap()).collect::<BTreeSet<_>>();
    let many_gaps =
        (0..=limit::CLEARED_MAX).map(|n| GapId::new(format!("g{n}")).unwrap()).collect::<BTreeSet<_>>();
    let seal = |cleared, cleared_gaps| OrderKind::Seal {
        version: version(8),
        cleared,
        cleared_gaps,
        withdraw: false,
    };
    let mut crowded = Samples::stage();
    crowded.digests = (0..=limit::FILES_PER_SET_MAX)
        .map(|n| (FileName::new(format!("f{n}")).unwrap(), protocol::KeyedDigest([0; 32])))
        .collect();
    let cases = [
        ("as it should be", adopt(), "accepted"),
        ("another installation", with(&|p| p.installation = InstallationId::random()), "other_installation"),
        ("another host", with(&|p| p.host = HostId([0; 32])), "other_host"),
        ("at the last moment", with(&|p| p.expires_at = UnixMillis(NOW)), "accepted"),
        ("a moment late", with(&|p| p.expires_at = UnixMillis(NOW - 1)), "expired"),
        ("a little ahead", with(&|p| p.sent_at = UnixMillis(NOW + limit::CLOCK_AHEAD_MS_MAX)), "accepted"),
        (
            "far ahead",
            with(&|p| {
                p.sent_at = UnixMillis(NOW + limit::CLOCK_AHEAD_MS_MAX + 1);
                p.expires_at = p.sent_at.plus_ms(1000);
            }),
            "clock_off",
        ),
        ("for ever", with(&|p| p.expires_at = UnixMillis(u64::MAX)), "clock_off"),
        ("another epoch inside", with(&|p| p.epoch.id = 1), "malformed"),
        ("a stage without files", samples.set_order(stage(), None), "malformed"),
        ("files with an arm", samples.set_order(arm(1), Some(Samples::stage())), "malformed"),
        ("too many files", samples.set_order(stage(), Some(crowded)), "over_limit"),
        ("at the horizon", samples.set_order(arm(limit::ARM_HORIZON_MS_MAX), None), "accepted"),
        ("beyond the horizon", samples.set_order(arm(limit::ARM_HORIZON_MS_MAX + 1), None), "over_limit"),
        ("too many sets", samples.payload(Body::Ask(Ask { questions: many_questions })), "over_limit"),
        (
            "too many dead",
            with(&|p| {
                let Body::Set(SetOrder { order, .. }) = &mut p.body else { unreachable!() };
                order.dead.clone_from(&many_dead);
            }),
            "over_limit",
        ),
        ("too many holders", samples.set_order(seal(many_holders, BTreeSet::new()), None), "over_limit"),
        ("too many gaps", samples.set_order(seal(BTreeSet::new(), many_gaps), None), "over_limit"),
    ];
    for (what, payload, expected) in cases {
        let frame = payload.sign(&samples.order_key).unwrap();
        assert_eq!(code(&samples, &frame), expected, "{what}");
    }
    assert_eq!(order::newest_dead(&many_dead).len(), limit::DEAD_PER_SET_MAX);
}

#[test]
fn only_the_right_key_signs_each_kind_of_message() {
    let samples = Samples::new();
    let stranger = SigningKey::generate().unwrap();
    let adopt = samples.set_order(OrderKind::Adopt { version: version(8) }, None);
    assert_eq!(code(&samples, &adopt.sign(&stranger).unwrap()), "foreign_key");
    assert_eq!(code(&samples, &adopt.sign(&samples.report_key).unwrap()), "foreign_key");
    assert_eq!(code(&samples, &adopt.sign(&samples.root_key).unwrap()), "root_signed");
    // The offline root may do this one thing, and so may the present key.
    let rekey =
        |number| samples.payload(Body::Rekey(Rekey { number, order_key: stranger.public(), root_key: None }));
    assert_eq!(code(&samples, &rekey(4).sign(&samples.root_key).unwrap()), "accepted");
    assert_eq!(code(&samples, &rekey(4).sign(&samples.order_key).unwrap()), "accepted");
    assert_eq!(code(&samples, &rekey(4).sign(&stranger).unwrap()), "foreign_key");
    assert_eq!(code(&samples, &rekey(3).sign(&samples.root_key).unwrap()), "old_rekey");
    // After it only the new key counts.
    let Body::Rekey(change) = rekey(4).body else { unreachable!() };
    let anchor = samples.anchor().rekeyed(&change);
    assert_eq!(anchor.root_key, Some(samples.root_key.public()), "none keeps the present root");
    let verify =
        |key| order::verify(&adopt.sign(key).unwrap(), &anchor, samples.host(), UnixMillis(NOW)).is_ok();
    assert!(verify(&stranger) && !verify(&samples.order_key));
}

#[test]
fn one_kind_of_message_does_not_pass_for_another() {
    let mut samples = Samples::new();
    // Even if one key signed everything.
    samples.report_key = SigningKey::from_seed(&samples.order_key.expose_seed().unwrap()).unwrap();
    let (installation, host, anchor) = (samples.installation, samples.host(), samples.anchor());
    let own = [samples.order_key.public()];
    let adopt =
        samples.set_order(OrderKind::Adopt { version: version(8) }, None).sign(&samples.order_key).unwrap();
    let report = samples.report().sign(&samples.report_key).unwrap();
    let ack = samples.ack().sign(&samples.order_key).unwrap();
    for frame in [&report, &ack, &samples.registration().keys] {
        assert_eq!(code(&samples, frame), "foreign_key");
    }
    for frame in [&adopt, &ack] {
        let refused = report::verify(frame, installation, &own[0], &own).unwrap_err();
        assert_eq!(refused, ReportError::ForeignKey);
    }
    for frame in [&adopt, &report] {
        assert!(ack::verify(frame, &anchor, host).is_err());
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let samples = Samples::new();
    let own = [samples.order_key.public()];
    let mut frames: Vec<(&str, Vec<u8>)> = samples
        .orders()
        .into_iter()
        .map(|(name, payload)| (name, payload.sign(&samples.order_key).unwrap().to_bytes()))
        .collect();
    frames.push(("report", samples.report().sign(&samples.report_key).unwrap().to_bytes()));
    frames.push(("acknowledgement", samples.ack().sign(&samples.order_key).unwrap().to_bytes()));
    for (name, bytes) in frames {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(frame) = Frame::parse(&flipped, limit::ORDER_BYTES_MAX) else { continue };
            let accepted = match name {
                "report" => {
                    report::verify(&frame, samples.installation, &samples.report_key.public(), &own).is_ok()
                }
                "acknowledgement" => ack::verify(&frame, &samples.anchor(), samples.host()).is_ok(),
                _ => code(&samples, &frame) == "accepted",
            };
            assert!(!accepted, "{name} with bit {bit} flipped");
        }
    }
}

#[test]
fn a_report_is_refused_for_each_reason() {
    let samples = Samples::new();
    let (key, own) = (&samples.report_key, [samples.order_key.public()]);
    let verify = |report: protocol::report::Report, by: &SigningKey| {
        report::verify(&report.sign(by).unwrap(), samples.installation, &by.public(), &own)
            .map_err(|e| e.code())
    };
    let change = |change: &dyn Fn(&mut protocol::report::Report)| {
        let mut report = samples.report();
        change(&mut report);
        report
    };
    assert!(verify(samples.report(), key).is_ok());
    assert!(verify(change(&|r| r.acknowledged = None), key).is_ok());
    let stranger = SigningKey::generate().unwrap();
    assert_eq!(verify(samples.report(), &stranger).unwrap_err(), "other_host");
    let elsewhere = change(&|r| r.installation = InstallationId::random());
    assert_eq!(verify(elsewhere, key).unwrap_err(), "other_installation");
    let forged = change(&|r| r.acknowledged = Some(samples.ack().sign(&stranger).unwrap()));
    assert_eq!(verify(forged, key).unwrap_err(), "foreign_acknowledgement");
    let of_another = change(&|r| {
        let mut ack = samples.ack();
        ack.host = HostId([1; 32]);
        r.acknowledged = Some(ack.sign(&samples.order_key).unwrap());
    });
    assert_eq!(verify(of_another, key).unwrap_err(), "foreign_acknowledgement");
    let crowded = change(&|r| r.receipts = vec![r.receipts[0].clone(); limit::RECEIPTS_MAX + 1]);
    assert_eq!(verify(crowded, key).unwrap_err(), "over_limit");
    let huge = change(&|r| r.notices[0].message = "x".repeat(limit::REPORT_BYTES_MAX));
    assert!(huge.sign(key).is_err(), "too large to send is known before sending");
    let frame = samples.report().sign(key).unwrap();
    assert_eq!(report::claimed_host(&frame).unwrap(), samples.host());
}

#[test]
fn sealed_files_open_for_one_host_and_one_order_only() {
    let samples = Samples::new();
    let open = |payload: &OrderPayload, key: &OpeningKey| {
        let frame = payload.sign(&samples.order_key).unwrap();
        let host = payload.host;
        let mut anchor = samples.anchor();
        anchor.installation = payload.installation;
        order::verify(&frame, &anchor, host, UnixMillis(NOW)).unwrap().open_stage(key)
    };
    let good = samples.orders().remove(0).1;
    assert_eq!(open(&good, &samples.opening_key).unwrap(), Samples::set());
    assert_eq!(open(&good, &OpeningKey::generate().unwrap()).unwrap_err(), OpenError::NotForUs);
    assert_eq!(open(&samples.orders().remove(1).1, &samples.opening_key).unwrap_err(), OpenError::NoFiles);
    let moves: [&dyn Fn(&mut OrderPayload); 5] = [
        &|p| p.host = HostId([1; 32]),
        &|p| p.installation = InstallationId::random(),
        &|p| edit(p).set = SetName::new("other").unwrap(),
        &|p| edit(p).order.kind = OrderKind::Stage { version: version(9), effect: lifecycle::EffectId(9) },
        &|p| edit(p).order.kind = OrderKind::Stage { version: version(8), effect: lifecycle::EffectId(10) },
    ];
    for (n, moved) in moves.iter().enumerate() {
        let mut payload = good.clone();
        moved(&mut payload);
        assert_eq!(open(&payload, &samples.opening_key).unwrap_err(), OpenError::NotForUs, "move {n}");
    }
    // The same seal under another intent opens: it is the same version.
    let mut resent = good.clone();
    edit(&mut resent).order.generation = Generation::new(2, 6);
    assert!(open(&resent, &samples.opening_key).is_ok());
    let mut swapped = good;
    let digests = &mut edit(&mut swapped).stage.as_mut().unwrap().digests;
    digests.values_mut().next().unwrap().0[0] ^= 1;
    assert_eq!(open(&swapped, &samples.opening_key).unwrap_err(), OpenError::DigestMismatch);
}

fn edit(payload: &mut OrderPayload) -> &mut SetOrder {
    match &mut payload.body {
        Body::Set(order) => order,
        _ => unreachable!(),
    }
}

#[test]
fn a_digest_depends_on_key_name_and_content_and_on_where_one_ends() {
    let name = |text: &str| FileName::new(text).unwrap();
    let key = VersionKey::from_bytes([1; 32]);
    let digest = key.digest(&name("ab"), b"c");
    assert_eq!(digest, key.digest(&name("ab"), b"c"));
    assert_ne!(digest, VersionKey::from_bytes([2; 32]).digest(&name("ab"), b"c"));
    assert_ne!(digest, key.digest(&name("a"), b"bc"));
    assert_ne!(digest, key.digest(&name("ab"), b"d"));
}

#[test]
fn a_set_over_a_limit_is_none() {
    let set = |files: Vec<(String, usize)>| {
        let files = files.into_iter().map(|(n, size)| (FileName::new(n).unwrap(), Value::new(vec![0; size])));
        StagedSet::new(VersionKey::from_bytes([1; 32]), files.collect(), None)
    };
    let files = |count: usize, size: usize| (0..count).map(|n| (format!("f{n}"), size)).collect();
    assert!(set(files(1, limit::FILE_BYTES_MAX)).is_ok());
    assert!(set(files(limit::FILES_PER_SET_MAX, limit::SET_BYTES_MAX / limit::FILES_PER_SET_MAX)).is_ok());
    assert!(set(files(1, 0)).is_ok(), "an empty file is a file");
    assert_eq!(set(files(0, 0)).unwrap_err(), InvalidSet::Empty);
    assert!(matches!(set(files(limit::FILES_PER_SET_MAX + 1, 1)), Err(InvalidSet::TooManyFiles { .. })));
    assert!(matches!(set(files(1, limit::FILE_BYTES_MAX + 1)), Err(InvalidSet::FileTooLarge { .. })));
    assert!(matches!(set(files(5, limit::FILE_BYTES_MAX)), Err(InvalidSet::SetTooLarge { .. })));
    let long = Some("x".repeat(limit::USER_NAME_CHARS_MAX + 1));
    let one = BTreeMap::from([(FileName::new("f").unwrap(), Value::new(Vec::new()))]);
    assert!(matches!(
        StagedSet::new(VersionKey::from_bytes([1; 32]), one, long),
        Err(InvalidSet::UserNameTooLong)
    ));
    for name in ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "ü"] {
        assert!(FileName::new(name).is_err(), "{name:?}");
    }
    assert!(FileName::new("x".repeat(limit::FILE_NAME_CHARS_MAX + 1)).is_err());
}

#[test]
fn the_largest_set_fits_into_one_order_and_one_order_into_a_push() {
    let samples = Samples::new();
    let size = limit::SET_BYTES_MAX / limit::FILES_PER_SET_MAX;
    let files = (0..limit::FILES_PER_SET_MAX)
        .map(|n| (FileName::new(format!("f{n}")).unwrap(), Value::new(vec![0xff; size])))
        .collect();
    let set = StagedSet::new(VersionKey::random().unwrap(), files, None).unwrap();
    let stage = set.seal(&samples.stage_context(), &samples.opening_key.public()).unwrap();
    let payload = samples
        .set_order(OrderKind::Stage { version: version(8), effect: lifecycle::EffectId(9) }, Some(stage));
    let frame = payload.sign(&samples.order_key).unwrap();
    assert!(frame.to_bytes().len() <= limit::PUSH_BYTES_MAX);
    let verified = order::verify(&frame, &samples.anchor(), samples.host(), UnixMillis(NOW)).unwrap();
    assert_eq!(verified.open_stage(&samples.opening_key).unwrap(), set);
    let message = protocol::local::ToApplier::Orders { push: 1, frames: vec![frame] };
    assert!(message.to_bytes().is_ok());
}

#[test]
fn the_network_half_cannot_register_keys_of_its_own() {
    let samples = Samples::new();
    let bundle = samples.bundle();
    let verify = |registration: &Registration| {
        registration.verify(bundle.installation, &bundle.token, &bundle.applier_secret)
    };
    assert!(verify(&samples.registration()).is_ok());
    // It has the bundle's network secret and public parts, and keys of its own.
    let mut stolen = samples.bundle();
    stolen.applier_secret = EnrolmentSecret::from_bytes(*stolen.network_secret.expose());
    let own = SigningKey::generate().unwrap();
    let forged = Registration::new(&stolen, &own, samples.opening_key.public()).unwrap();
    assert_eq!(verify(&forged).unwrap_err(), EnrolError::ForeignRegistration);
    let mut renamed = samples.registration();
    renamed.host = HostId::of(&own.public());
    assert_eq!(verify(&renamed).unwrap_err(), EnrolError::ForeignRegistration);
    let token = TokenId::random();
    let other = samples.registration().verify(bundle.installation, &token, &bundle.applier_secret);
    assert_eq!(other.unwrap_err(), EnrolError::OtherToken);
}

#[test]
fn deep_or_unknown_json_is_refused_before_or_while_it_is_read() {
    let deep = "[".repeat(100_000);
    let bundle = format!("{{\"installation\":{deep}");
    let error =
        protocol::enrol::Bundle::from_json(&bundle.as_bytes()[..limit::BUNDLE_BYTES_MAX]).unwrap_err();
    assert!(error.to_string().contains("nested deeper"), "{error}");
    let huge = vec![b' '; limit::BUNDLE_BYTES_MAX + 1];
    assert!(protocol::enrol::Bundle::from_json(&huge).unwrap_err().to_string().contains("at most"));
    let statement = protocol::reported::Statement::from_line;
    assert!(statement(br#"{"set":"orders-db","on":"8","dropped":["7"]}"#).is_ok());
    assert!(statement(br#"{"set":"orders-db","on":"8"}"#).is_ok());
    let error = statement(br#"{"set":"orders-db","on":"8","secret":"hunter2"}"#).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "an error must not quote: {error}");
    assert!(statement("[".repeat(20).as_bytes()).is_err());
    assert!(
        statement(b"{\"set\":\"orders-db\\\\\",\"on\":\"8\"}").is_ok(),
        "escapes do not confuse the depth"
    );
}

fn payloads() -> impl Strategy<Value = OrderPayload> {
    let kinds = (0_u8..8, any::<u32>(), any::<u128>(), 0..limit::ARM_HORIZON_MS_MAX);
    (
        kinds,
        any::<u32>(),
        any::<u64>(),
        proptest::collection::btree_set(any::<u32>(), 0..20),
        "[a-z][a-z0-9@._/-]{0,40}",
    )
        .prop_map(|((kind, number, effect, in_ms), generation, question, dead, set)| {
            let samples = Samples::new();
            let version = version(number);
            let kind = match kind {
                0 => OrderKind::Arm { version, in_ms: Millis(in_ms), answers: None },
                1 => OrderKind::Activate { version, answers: Some(Generation::new(1, generation)) },
                2 => OrderKind::Adopt { version },
                3 => OrderKind::Disarm { version },
                4 => OrderKind::RollBack { to: version },
                5 => OrderKind::Discard { version },
                6 => OrderKind::Stage { version, effect: lifecycle::EffectId(effect) },
                _ => {
                    let questions = BTreeMap::from([(SetName::new(set).unwrap(), question)]);
                    return samples.payload(Body::Ask(Ask { questions }));
                }
            };
            let stage = matches!(kind, OrderKind::Stage { .. }).then(Samples::stage);
            let dead = dead.into_iter().map(samples::version).collect();
            let order = Order { epoch: EPOCH, generation: Generation::new(2, generation), kind, dead };
            samples.payload(Body::Set(SetOrder { set: SetName::new(set).unwrap(), order, stage }))
        })
}

fn sets() -> impl Strategy<Value = StagedSet> {
    let content = proptest::collection::vec(any::<u8>(), 0..200);
    let files = proptest::collection::btree_map("[a-z0-9][a-zA-Z0-9._-]{0,20}", content, 1..10);
    (any::<[u8; 32]>(), files, proptest::option::of("[a-z_]{1,30}")).prop_map(|(key, files, user_name)| {
        let files = files.into_iter().map(|(name, bytes)| (FileName::new(name).unwrap(), Value::new(bytes)));
        StagedSet::new(VersionKey::from_bytes(key), files.collect(), user_name).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn orders_come_back_as_they_went(payloads in proptest::collection::vec(payloads(), 1..6)) {
        let samples = Samples::new();
        let frames: Vec<_> = payloads.iter().map(|p| p.sign(&samples.order_key).unwrap()).collect();
        let body = Frame::join(&frames);
        let split = Frame::split(&body, limit::ORDER_BYTES_MAX, limit::ORDERS_PER_PUSH_MAX).unwrap();
        prop_assert_eq!(&split, &frames);
        for (frame, payload) in split.iter().zip(&payloads) {
            let verified = order::verify(frame, &samples.anchor(), samples.host(), UnixMillis(NOW)).unwrap();
            prop_assert_eq!(verified.payload(), payload);
            prop_assert_eq!(verified.frame(), frame.digest());
            prop_assert_eq!(verified.identity(), payload.identity());
        }
    }

    #[test]
    fn sealed_sets_come_back_as_they_went(set in sets()) {
        let samples = Samples::new();
        let context = samples.stage_context();
        let stage = set.seal(&context, &samples.opening_key.public()).unwrap();
        let kind = OrderKind::Stage { version: context.version, effect: context.effect };
        let frame = samples.set_order(kind, Some(stage)).sign(&samples.order_key).unwrap();
        let verified = order::verify(&frame, &samples.anchor(), samples.host(), UnixMillis(NOW)).unwrap();
        prop_assert_eq!(verified.open_stage(&samples.opening_key).unwrap(), set.clone());
        prop_assert_eq!(StagedSet::from_bytes(&set.expose_bytes()).unwrap(), set);
    }

    #[test]
    fn no_bytes_at_all_bring_a_decoder_down(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let samples = Samples::new();
        if let Ok(frames) = Frame::split(&bytes, 1000, 4) {
            for frame in frames {
                prop_assert_ne!(code(&samples, &frame), "accepted");
            }
        }
        let _ = StagedSet::from_bytes(&bytes);
        let _ = protocol::local::ToApplier::from_json(&bytes);
        let _ = protocol::local::FromApplier::from_json(&bytes);
        prop_assert!(protocol::enrol::Bundle::from_json(&bytes).is_err());
    }

    #[test]
    fn a_set_that_was_damaged_is_none_or_another(set in sets(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = set.expose_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = StagedSet::from_bytes(&bytes) {
            prop_assert_ne!(other, set);
        }
    }
}
