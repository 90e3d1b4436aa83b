//! A control plane that has all its keys and means harm: what policy does not name it cannot write, restart or run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use protocol::Frame;
use protocol::seal::StagedSet;
use serde_json::{Value, json};

use crate::control::{Host, stage};
use crate::rotating::on_one;

const OUTSIDE: [&str; 7] =
    ["../../../etc/cron.d/eso", "/etc/passwd", "..", "", "a/b", "..data", "line\nbreak"];

/// Signed by the control plane's own key, whatever it says.
fn signed(host: &Host, payload: &Value) -> Frame {
    let seed = host.key.expose_seed().unwrap();
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&*seed).unwrap();
    let payload = serde_json::to_vec(payload).unwrap();
    let signature = pair.sign(&[b"eso/v1/order\0", payload.as_slice()].concat());
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let bytes = [&length, signature.as_ref(), payload.as_slice()].concat();
    Frame::parse(&bytes, bytes.len()).unwrap()
}

/// Everything of this host's directories but what the applier keeps for itself.
fn elsewhere(host: &Host) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![host.root()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let kept = ["state", "private"].iter().any(|kept| entry.file_name() == *kept);
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && !kept => open.push(entry.path()),
                kind if kind.is_file() => {
                    found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
                }
                kind if kind.is_symlink() => {
                    let target = std::fs::read_link(entry.path()).unwrap();
                    found.insert(entry.path(), target.into_os_string().into_encoded_bytes());
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn a_hostile_control_plane_writes_restarts_and_runs_nothing_outside_policy() {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    let (before, starts) = (elsewhere(&host), app.starts());

    let honest = serde_json::to_value(host.payload(2, stage(2))).unwrap();
    // Whether the way of making them works at all: this one is taken.
    let mut hostile: Vec<(String, Value)> = Vec::new();
    let mut add = |what: String, change: &dyn Fn(&mut Value)| {
        let mut payload = honest.clone();
        change(&mut payload);
        assert_ne!(payload, honest, "{what}");
        hostile.push((what, payload));
    };
    // Sets and files that lead elsewhere.
    for name in OUTSIDE.into_iter().chain(["ssh", "root", "db2"]) {
        add(format!("the set {name:?}"), &|payload| payload["body"]["set"]["set"] = json!(name));
    }
    for name in OUTSIDE {
        add(format!("the file {name:?}"), &|payload| {
            let digests = &mut payload["body"]["set"]["stage"]["digests"];
            let digest = digests["password"].clone();
            digests.as_object_mut().unwrap().insert(name.to_owned(), digest);
        });
    }
    // Keys that name what only policy may name, at every level.
    for (key, value) in [
        ("path", json!("/etc/passwd")),
        ("places", json!([{ "path": "/etc/passwd", "file": "password" }])),
        ("unit", json!("ssh.service")),
        ("pidfile", json!("/run/sshd.pid")),
        ("signal", json!("KILL")),
        ("command", json!(["/bin/sh", "-c", "touch /tmp/eso-was-here"])),
        ("validate", json!({ "command": ["/bin/true"] })),
        ("owner", json!("root")),
        ("mode", json!("4777")),
    ] {
        for at in ["", "/body/set", "/body/set/order", "/body/set/order/kind/stage", "/body/set/stage"] {
            add(format!("the key {key} at {at:?}"), &|payload| {
                let object = payload.pointer_mut(at).unwrap_or_else(|| panic!("{at} is not in {honest:#}"));
                object.as_object_mut().unwrap().insert(key.to_owned(), value.clone());
            });
        }
    }
    add("an order of another kind".to_owned(), &|payload| {
        payload["body"]["set"]["order"]["kind"] = json!({ "run": { "command": ["/bin/true"] } });
    });
    for (what, payload) in &hostile {
        let refused = host.try_frame(signed(&host, payload));
        assert!(refused.is_err(), "{what} was taken");
        assert!(
            ["malformed", "not_in_policy", "not_sealed_to_us", "over_limit"]
                .contains(&refused.as_ref().unwrap_err().as_str()),
            "{what}: {refused:?}"
        );
    }
    // Names inside the sealed bytes, where only the applier sees them.
    for name in OUTSIDE {
        let mut plain = vec![7; 32];
        for part in ["", name, "a value"] {
            plain.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
            plain.extend(part.as_bytes());
        }
        assert!(StagedSet::from_bytes(&plain).is_err(), "{name:?} names a file");
    }
    // Sealed bytes that are no set, for the right host and order: noise in the place of the real ones.
    let mut noise = honest.clone();
    let sealed = noise["body"]["set"]["stage"]["sealed"].as_str().unwrap().len();
    noise["body"]["set"]["stage"]["sealed"] =
        json!(base64::engine::general_purpose::STANDARD.encode(vec![1; sealed / 4 * 3]));
    assert_eq!(host.try_frame(signed(&host, &noise)), Err("not_sealed_to_us".to_owned()));

    assert_eq!(elsewhere(&host), before, "something was written");
    assert_eq!(app.starts(), starts, "something was restarted");
    assert_eq!(host.db().present.len(), 1);
    assert!(!std::path::Path::new("/tmp/eso-was-here").exists(), "something was run");
    // And what it may do it can still do.
    assert_eq!(host.try_frame(signed(&host, &honest)), Ok(()));
}
