//! `cargo xtask bench`: measures every figure beside its floor.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this program speaks to a person in a terminal"
)]

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Parser;
use tests_bench::figure::{self, Figure};
use tests_bench::figures::{ALL, Scale};

/// Measures each figure beside its floor: the same work with nothing around it, in the same run.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Write the figures as JSON: a list of name, value, unit, floor and ratio.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this measurement; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(ALL.iter().map(|one| one.name)))]
    only: Vec<String>,
    /// Only a few repetitions: shows that everything works, and measures nothing.
    #[arg(long)]
    smoke: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let scale = Scale { smoke: arguments.smoke };
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let mut all: Vec<Figure> = Vec::new();
    println!("{}", figure::head());
    for measurement in ALL.iter().filter(|one| wanted(one.name)) {
        eprintln!("measuring {} ...", measurement.name);
        let figures = (measurement.run)(scale).with_context(|| measurement.name)?;
        for figure in &figures {
            ensure!(figure.value.is_finite() && figure.value >= 0.0, "{} cannot be", figure.name);
            println!("{}", figure.row());
            if !figure.meaning.is_empty() {
                println!("    {}", figure.meaning);
            }
        }
        all.extend(figures);
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    if arguments.smoke {
        println!("these are no measurements: --smoke");
        return Ok(());
    }
    let missed: Vec<&str> =
        all.iter().filter(|one| one.is_met() == Some(false)).map(|one| one.name.as_str()).collect();
    if !missed.is_empty() {
        println!("missed: {}", missed.join("; "));
    }
    Ok(())
}
