//! Keeps the processes of one host of the demo. Started by the demo, not by hand.

use clap::Parser;

#[derive(Parser)]
enum Arguments {
    /// Take commands on standard input until it ends.
    Serve,
    /// Become a program, in a session of its own.
    Become {
        /// How many kept descriptors it inherits.
        announced: usize,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse() {
        Arguments::Serve => tests_demo::launcher::run(),
        Arguments::Become { announced, argv } => {
            let Err(error) = tests_demo::launcher::become_program(&argv, announced);
            Err(error)
        }
    }
}
