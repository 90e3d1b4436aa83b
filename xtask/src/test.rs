//! `cargo xtask test`: every test, in an order in which the cheapest to understand fails first.

use std::process::Command;

use anyhow::bail;

use crate::{machine, process};

/// One part of the whole.
struct Part {
    name: &'static str,
    /// What it needs that this machine may lack.
    needs: Need,
    command: fn() -> Command,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Packages of [`machine::PACKAGES`] or Python packages.
    Services,
    Root,
}

const PARTS: &[Part] = &[
    Part { name: "unit, property, model and process tests", needs: Need::Nothing, command: quick_tests },
    Part { name: "real services", needs: Need::Services, command: service_tests },
];

/// Runs what can run here; with `quick`, what needs nothing.
pub fn run(quick: bool) -> anyhow::Result<()> {
    machine::install_missing()?;
    process::run(&mut process::cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    let mut left_out = Vec::new();
    for part in PARTS {
        if let Some(why) = why_left_out(part, quick) {
            left_out.push(format!("{}: {why}", part.name));
            continue;
        }
        println!("\n== {}", part.name);
        process::run(&mut (part.command)())?;
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
        Need::Services if !machine::missing().is_empty() => {
            Some(format!("needs {}", machine::missing().join(", ")))
        }
        Need::Root if !machine::is_root() => Some("needs root".to_owned()),
        Need::Services | Need::Root => None,
    }
}

/// The workspace's own tests, without those that start real services.
fn quick_tests() -> Command {
    process::cargo(&["test", "--workspace", "--quiet", "--exclude", "tests-services"])
}

fn service_tests() -> Command {
    process::cargo(&["test", "--workspace", "--quiet", "--package", "tests-services"])
}
