//! `cargo xtask`: the one entry for the demo, the tests and the figures.

#![allow(clippy::print_stdout, reason = "this program speaks to a person in a terminal")]

mod bench;
mod demo;
mod machine;
mod process;
mod test;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds what is needed, then runs it")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the main job live: rotate a credential across three hosts. See `demo --help`.
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to the demo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure every figure beside its floor, on the programs as packages have them. See `bench --help`.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run every test, setting up what they need.
    Test {
        /// Only what needs nothing beyond the toolchain.
        #[arg(long)]
        quick: bool,
    },
    /// Say the features with which tests build programs that die and fail at a step.
    Failpoints,
}

fn main() -> anyhow::Result<()> {
    // Hosts refuse directories that others may write, which is what some users' umask makes of all that is made here.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    match Arguments::parse().task {
        Task::Demo { arguments } => demo::run(&arguments),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Test { quick } => test::run(quick),
        Task::Failpoints => {
            println!("{}", tests_host::FAILPOINTS);
            Ok(())
        }
    }
}
