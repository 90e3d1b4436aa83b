//! The exact bytes on the wire, checked in under `testdata`. A change here is a change that older hosts cannot read.
//!
//! `ESO_WRITE_TESTDATA=1` writes the files anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod samples;

use std::path::PathBuf;

use protocol::enrol::{Bundle, PendingEnrolment};
use protocol::local::{FromApplier, ToApplier};
use protocol::{Frame, UnixMillis, ack, limit, order, report};
use samples::{NOW, Samples};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn compare(name: &str, bytes: &[u8]) {
    if std::env::var_os("ESO_WRITE_TESTDATA").is_some() {
        std::fs::write(path(name), bytes).unwrap();
    }
    let kept = std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(kept == bytes, "{name} differs from what is checked in: older hosts could not read it");
}

#[test]
fn signed_frames_are_these_very_bytes() {
    let samples = Samples::new();
    for (name, payload) in samples.orders() {
        let frame = payload.sign(&samples.order_key).unwrap();
        compare(&format!("order-{name}.frame"), &frame.to_bytes());
    }
    let report = samples.report();
    compare("report.frame", &report.sign(&samples.report_key).unwrap().to_bytes());
    compare("ack.frame", &samples.ack().sign(&samples.order_key).unwrap().to_bytes());
    compare("bundle.json", &samples.bundle().to_json().unwrap());
    compare("pending.json", &samples.bundle().pending(samples.registration()).to_json().unwrap());
}

#[test]
fn frames_that_were_kept_are_still_understood() {
    let samples = Samples::new();
    for (name, payload) in samples.orders() {
        let kept = std::fs::read(path(&format!("order-{name}.frame"))).unwrap();
        let frame = Frame::parse(&kept, limit::ORDER_BYTES_MAX).unwrap();
        let verified = order::verify(&frame, &samples.anchor(), samples.host(), UnixMillis(NOW)).unwrap();
        assert_eq!(verified.payload(), &payload, "{name}");
        if payload.seal_context().is_some() {
            assert_eq!(verified.open_stage(&samples.opening_key).unwrap(), Samples::set());
        }
    }
    let kept = std::fs::read(path("report.frame")).unwrap();
    let frame = Frame::parse(&kept, limit::REPORT_BYTES_MAX).unwrap();
    let own = [samples.order_key.public()];
    let verified = report::verify(&frame, samples.installation, &samples.report_key.public(), &own).unwrap();
    assert_eq!(verified.report(), &samples.report());
    assert_eq!(verified.acknowledged(), Some(&samples.ack()));
    let kept = std::fs::read(path("ack.frame")).unwrap();
    let frame = Frame::parse(&kept, limit::ACK_BYTES_MAX).unwrap();
    assert_eq!(ack::verify(&frame, &samples.anchor(), samples.host()).unwrap(), samples.ack());
    let bundle = Bundle::from_json(&std::fs::read(path("bundle.json")).unwrap()).unwrap();
    assert_eq!(bundle, samples.bundle());
    let pending = PendingEnrolment::from_json(&std::fs::read(path("pending.json")).unwrap()).unwrap();
    let keys =
        pending.registration.verify(bundle.installation, &bundle.token, &bundle.applier_secret).unwrap();
    assert_eq!(keys.host(), samples.host());
    assert_eq!(keys.sealing_key, samples.opening_key.public());
}

#[test]
fn a_set_sealed_elsewhere_opens() {
    // HPKE is fresh at each sealing, so only opening can have a vector, which is made once: a frame beside it has it.
    let samples = Samples::new();
    let name = "sealed-stage.json";
    if std::env::var_os("ESO_WRITE_TESTDATA").is_some() && !path(name).exists() {
        let context = samples.stage_context();
        let stage = Samples::set().seal(&context, &samples.opening_key.public()).unwrap();
        std::fs::write(path(name), serde_json::to_vec_pretty(&stage).unwrap()).unwrap();
    }
    assert_eq!(Samples::stage().digests, Samples::set().digests());
}

#[test]
fn schemas_are_those_that_are_checked_in() {
    for (name, schema) in protocol::schema::all() {
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        compare(&format!("{name}.schema.json"), text.as_bytes());
    }
}

#[test]
fn local_messages_come_back_as_they_went_and_show_nothing() {
    let samples = Samples::new();
    let stage = samples.orders().into_iter().find(|(name, _)| *name == "stage").unwrap().1;
    let frame = stage.sign(&samples.order_key).unwrap();
    let to = [
        ToApplier::Hello { version: 1, means: samples.report().means },
        ToApplier::Orders { push: 3, frames: vec![frame.clone(), frame.clone()] },
        ToApplier::Acknowledged { ack: frame.clone() },
    ];
    for message in to {
        let bytes = message.to_bytes().unwrap();
        let length = protocol::local::length(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - 4);
        assert_eq!(ToApplier::from_json(&bytes[4..]).unwrap(), message);
        assert!(format!("{message:?}").len() < 200, "{message:?}");
    }
    let from = [
        FromApplier::Hello {
            version: 1,
            host: Some(samples.host()),
            installation: Some(samples.installation),
        },
        FromApplier::Answer { push: 3, report: frame.clone() },
        FromApplier::Report { report: frame },
    ];
    for message in from {
        let bytes = message.to_bytes().unwrap();
        assert_eq!(FromApplier::from_json(&bytes[4..]).unwrap(), message);
        assert!(format!("{message:?}").len() < 200, "{message:?}");
    }
}

#[test]
fn nothing_that_holds_a_value_can_be_read_in_its_debug_form() {
    let samples = Samples::new();
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        Samples::set(),
        Samples::set().files(),
        Samples::set().key(),
        Samples::stage(),
        samples.bundle(),
        samples.order_key,
        samples.opening_key,
    );
    let secrets = [
        samples::PASSWORD.to_owned(),
        format!("{:?}", samples::PASSWORD.as_bytes()),
        hex::encode(Samples::set().key().expose()),
        hex::encode(samples.bundle().network_secret.expose()),
        hex::encode(samples.bundle().applier_secret.expose()),
        hex::encode(*samples.order_key.expose_seed().unwrap()),
        hex::encode(*samples.opening_key.expose_bytes()),
    ];
    for secret in secrets {
        assert!(!shown.contains(&secret), "{shown}");
    }
}
