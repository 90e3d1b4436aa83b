//! A value is planted in each kind of output that only a run of the whole has, and has to be found there: the log of a real
//! PostgreSQL, what `esoctl` prints, what the demo's terminal says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use tests_canary::Canaries;
use tests_demo::terminal::{Terminal, Tone};
use tests_services::{PostgresKind, PostgresServer};

const CANARY: &str = "kQ7planted0Zr4canary9xTzWv";

/// The value as it is and in the forms that are one word of any text.
fn plants() -> Vec<String> {
    let each = |digits: fn(u8) -> String| CANARY.bytes().map(digits).collect::<String>();
    // `printf %s VALUE | base64`, made by other means than the search makes it.
    let base64 = "a1E3cGxhbnRlZDBacjRjYW5hcnk5eFR6V3Y=".to_owned();
    vec![CANARY.to_owned(), each(|byte| format!("{byte:02x}")), each(|byte| format!("%{byte:02X}")), base64]
}

fn found_in(kind: &str, plant: &str, output: impl AsRef<[u8]>) {
    let canaries = Canaries::new([("the planted value", CANARY)]).unwrap();
    let leaks = canaries.in_bytes(kind, output);
    assert!(!leaks.is_empty(), "{plant} in {kind} was not found");
    let said = leaks.iter().map(ToString::to_string).collect::<String>();
    assert_eq!(canaries.in_bytes("what was said", said), [], "the value was shown");
}

#[test]
fn in_the_log_of_a_real_postgresql() {
    let kind = PostgresKind::Installed;
    if !tests_needs::is_there(kind.programs().is_ok(), "a leak in PostgreSQL's log: needs postgresql") {
        return;
    }
    let server = PostgresServer::start(kind).unwrap();
    for plant in plants() {
        let written = || std::fs::read(server.log_file()).unwrap();
        let before = written().len();
        // A statement that fails is written into the log, with whatever stands in it.
        server.admin_execute(&format!("CREATE ROLE planted PASSWORD '{plant}' NO SUCH THING")).unwrap_err();
        found_in("PostgreSQL's log", &plant, &written()[before..]);
    }
}

#[test]
fn in_what_esoctl_prints() {
    let esoctl = Path::new(env!("CARGO_BIN_EXE_demo")).with_file_name("esoctl");
    for plant in plants() {
        let output = Command::new(&esoctl).args(["credential", &plant]).output().unwrap();
        assert!(!output.status.success());
        found_in("the output of esoctl", &plant, [output.stdout, output.stderr].concat());
    }
}

#[test]
fn in_what_the_terminal_says() {
    for plant in plants() {
        for tone in [Tone::Heading, Tone::Why, Tone::Plain, Tone::Good, Tone::Bad, Tone::Stop] {
            let terminal = Terminal::default();
            terminal.say(
                tone,
                format!("the server refuses the password of orders: it was {plant}, and more words follow"),
            );
            found_in("what the terminal said", &plant, terminal.said());
        }
    }
}
