//! The same rotation as people do it today, under the same judge: write the new file everywhere, tell who can be told,
//! revoke the old role at once. What fails here proves that the judge sees failures.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::application::Adoption;
use crate::host::{CAST, FILE, HOSTS, Host};
use crate::programs::Programs;
use crate::protected::{Kind, Protected, Server};
use crate::terminal::{Terminal, Tone};

/// How many logins failed, in all.
pub fn play(terminal: &Terminal, kind: Kind) -> anyhow::Result<u64> {
    let programs = Programs::beside_us()?;
    let directory = tempfile::Builder::new().prefix("eso-demo-").tempdir()?;
    terminal.say(Tone::Heading, "the same as people do it today: write the file, revoke at once");
    let mut protected = Protected::start(kind, &programs)?;
    terminal.say(Tone::Plain, format!("{} on {}", protected.describe(), protected.address()));
    protected.prepare(&directory.path().join("secrets"))?;
    let mut hosts = Vec::new();
    protected.mint("v1", &password(1))?;
    for place in 0..HOSTS.len() {
        let host = Host::bare(&programs, directory.path(), place, false)?;
        write(&host, &protected, 1)?;
        symlink(host.set_directory().join("..data").join(FILE), host.place())?;
        hosts.push(host);
    }
    for cast in &CAST {
        hosts[cast.host].start_application(&programs, cast, &protected)?;
    }
    protected.start_act()?;
    wait_for_logins(&mut protected, 5)?;
    terminal
        .say(Tone::Person, "version 2 is written to all hosts, applications are told, version 1 is revoked");
    protected.mint("v2", &password(2))?;
    for host in &hosts {
        write(host, &protected, 2)?;
    }
    tell(&mut hosts)?;
    protected.revoke("v1")?;
    wait_for_logins(&mut protected, 20)?;
    let mut failed = 0;
    for cast in &CAST {
        let tally = protected.tally(cast.source())?;
        failed += tally.failed;
        let tone = if tally.failed == 0 { Tone::Good } else { Tone::Bad };
        terminal.say(
            tone,
            format!(
                "{}: {} logins, {} failed, longest gap {} ms",
                cast.name, tally.logins, tally.failed, tally.gap_ms_max
            ),
        );
    }
    Ok(failed)
}

fn password(version: u32) -> String {
    format!("passwordofversion{version}")
}

fn write(host: &Host, protected: &Protected, version: u32) -> anyhow::Result<()> {
    let set = host.set_directory();
    let files = set.join(directory(version));
    std::fs::create_dir_all(&files)?;
    let scheme = match protected.server() {
        Server::Postgres(_) => "postgresql",
        Server::Logins(_) => "https",
    };
    let text = format!("{scheme}://v{version}:{}@{}/orders", password(version), protected.address());
    std::fs::write(files.join(FILE), text)?;
    flip(&set, version)
}

fn directory(version: u32) -> String {
    format!("v1.{version}")
}

fn flip(set: &Path, version: u32) -> anyhow::Result<()> {
    let unfinished = set.join("..data.new");
    symlink(directory(version), &unfinished)?;
    std::fs::rename(unfinished, set.join("..data")).context("failed to flip")
}

/// Those that can be told by a signal; nobody knows of the one that a person must restart.
fn tell(hosts: &mut [Host]) -> anyhow::Result<()> {
    for cast in &CAST {
        match cast.adoption {
            Adoption::Restart => hosts[cast.host].signal(cast.name, Signal::SIGTERM)?,
            Adoption::Reload => hosts[cast.host].signal(cast.name, Signal::SIGHUP)?,
            Adoption::Reopen | Adoption::Manual => {}
        }
    }
    Ok(())
}

/// Waits until the server has seen so many attempts of each.
fn wait_for_logins(protected: &mut Protected, attempts: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    for cast in &CAST {
        loop {
            let tally = protected.tally(cast.source())?;
            if tally.logins + tally.failed >= attempts {
                break;
            }
            crate::interrupt::check()?;
            if Instant::now() > deadline {
                bail!("{} made no {attempts} attempts within 30 s", cast.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
