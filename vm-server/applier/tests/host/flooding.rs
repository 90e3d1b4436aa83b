//! A network half that sends more than can be judged.

use std::io::{ErrorKind, Write as _};
use std::time::{Duration, Instant};

use protocol::local::{FromApplier, ToApplier};

use crate::control::{Host, PATIENCE, read, stage};
use crate::rotating::policy;

/// More than two socket buffers hold.
const PUSHES_MAX: u64 = 20_000;

#[test]
fn pushes_that_are_not_answered_yet_stay_with_the_network_half() {
    let mut host = Host::new(&policy(r#"adopt = "restart""#, ""));
    host.up();
    host.order(1, stage(1));
    let frame = host.sign(&host.payload(1, stage(1)));
    let mut stream = host.stream.take().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // Not one answer is read, so in the end none can be written, and nothing more is taken in.
    let mut last = 1_000_000;
    let blocked = loop {
        assert!(last < 1_000_000 + PUSHES_MAX, "everything was taken in");
        let message = ToApplier::Orders { push: last + 1, frames: vec![frame.clone()] };
        match stream.write_all(&message.to_bytes().unwrap()) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
    // What was sent is answered as soon as somebody reads.
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the last push is not answered");
        if matches!(read(&mut stream), Some(FromApplier::Answer { push, .. }) if push == last) {
            break;
        }
    }
}
