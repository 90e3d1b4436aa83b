//! Whose orders are obeyed changes by the old key's word or the offline root's, and not back.

use protocol::order::{Body, OrderPayload, Rekey};
use protocol::{Frame, SigningKey};

use crate::control::{Host, activate, stage, v};

fn rekey(host: &Host, number: u64, to: &SigningKey, by: &SigningKey) -> Frame {
    let payload = host.payload(1, activate(1));
    let body = Body::Rekey(Rekey { number, order_key: to.public(), root_key: None });
    OrderPayload { body, ..payload }.sign(by).unwrap()
}

/// The control plane signs with another key from now on. Gives the one before.
fn change_to(host: &mut Host, key: SigningKey) -> SigningKey {
    host.former.push(host.key.public());
    std::mem::replace(&mut host.key, key)
}

fn on_one() -> Host {
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    host
}

/// Sends an order that is signed by this key.
fn order_by(host: &mut Host, key: &SigningKey, generation: u32, number: u32) -> Result<(), String> {
    let frame = host.payload(generation, stage(number)).sign(key).unwrap();
    host.try_frame(frame)
}

#[test]
fn the_old_key_hands_over_to_a_new_one_for_good() {
    let mut host = on_one();
    let (new, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let frame = rekey(&host, 1, &new, &stranger);
    assert_eq!(host.try_frame(frame), Err("foreign_key".to_owned()), "nobody else may");
    let frame = rekey(&host, 1, &new, &host.key);
    assert_eq!(host.try_frame(frame), Ok(()));
    let old = change_to(&mut host, new);
    assert_eq!(order_by(&mut host, &old, 2, 2), Err("foreign_key".to_owned()));
    host.order(2, stage(2));
    host.restart();
    assert_eq!(order_by(&mut host, &old, 3, 3), Err("foreign_key".to_owned()), "also after a restart");
    host.order(3, stage(3));
    host.order(3, activate(3));
    host.until("the new key's order", |report| report.current == Some(v(3)));
}

#[test]
fn the_offline_root_takes_a_host_back_from_a_lost_key() {
    let mut host = on_one();
    let new = SigningKey::generate().unwrap();
    let frame = rekey(&host, 1, &new, &host.root);
    assert_eq!(host.try_frame(frame.clone()), Ok(()));
    let old = change_to(&mut host, new);
    host.restart();
    assert_eq!(order_by(&mut host, &old, 2, 2), Err("foreign_key".to_owned()));
    host.order(2, stage(2));
    assert_eq!(host.try_frame(frame), Err("old_rekey".to_owned()), "it is not taken a second time");
    let frame = rekey(&host, 1, &old, &host.root);
    assert_eq!(host.try_frame(frame), Err("old_rekey".to_owned()), "nor does its number lead back");
    let frame = host.payload(3, stage(3)).sign(&host.root).unwrap();
    assert!(host.try_frame(frame).is_err(), "the root signs nothing else");
}
