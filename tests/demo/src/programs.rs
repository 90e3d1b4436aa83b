//! Where the programs are: beside the demo's own.

use std::path::PathBuf;

use anyhow::{Context, bail};

/// Whether a part left out is a failure.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// The folder of the built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Those beside the running program.
    pub fn beside_us() -> anyhow::Result<Self> {
        let folder = std::env::current_exe()?.parent().context("the program has no folder")?.to_owned();
        let programs = Self { folder };
        for name in [
            "eso-control-plane",
            "eso-vm-server",
            "eso-vm-applier",
            "esoctl",
            "demo-launcher",
            "demo-application",
            "demo-login-server",
        ] {
            if !programs.path(name).exists() {
                bail!("{name} is not built: run `cargo xtask demo`, which builds everything first");
            }
        }
        Ok(programs)
    }

    /// The path of a program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text, for an argument list.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
