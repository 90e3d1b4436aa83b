//! One machine, running.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Base;
use crate::built::run;

/// How long a machine may take to boot.
const BOOT_WAIT: Duration = Duration::from_mins(3);
/// How long it may take to power off before it is killed.
const POWER_OFF_WAIT: Duration = Duration::from_mins(1);
/// Where control groups are mounted: on their own, beside those of version 1, and version 1 of systemd's.
const CGROUPS: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];
/// What a machine may ask of the kernel beyond what it may by itself: what our programs use.
const CALLS: &str = "fanotify_init fanotify_mark pidfd_open pidfd_getfd pidfd_send_signal openat2 fsopen fsconfig \
    landlock_create_ruleset landlock_add_rule landlock_restrict_self";
/// Lays the machine's own files over the base where nobody else sees it, moves to control groups of its own, since
/// two machines in one would each take the other's units for theirs, and becomes the machine.
const BECOME: &str = r#"set -e
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$OWN/upper,workdir=$OWN/work" "$OWN/root"
for groups in $CGROUPS; do
    if [ -e "$groups/cgroup.procs" ]; then mkdir -p "$groups/$NAME"; echo $$ >"$groups/$NAME/cgroup.procs"; fi
done
exec systemd-nspawn --quiet --directory "$OWN/root" --machine "$NAME" --boot --register=no --keep-unit \
    --link-journal=no --console=pipe --capability=all --system-call-filter="$CALLS"
"#;

/// One machine, running. Dropping it powers it off.
#[derive(Debug)]
pub struct Machine {
    nspawn: Child,
    leader: u32,
    name: String,
}

impl Machine {
    /// Boots a machine whose own files lie in `directory`. What an earlier one of that directory wrote is there again,
    /// as after a reboot; `/run` is empty.
    pub fn boot(base: &Base, directory: &Path, name: &str) -> anyhow::Result<Self> {
        for folder in ["upper", "work", "root"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        let name = format!("{name}-{}", std::process::id());
        let mut command = Command::new("setpriv");
        // It ends with us, also when we are killed.
        command.args(["--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private"]);
        command.args(["sh", "-c", BECOME]).env("BASE", base.root()).env("OWN", directory).env("NAME", &name);
        command.env("CALLS", CALLS).env("CGROUPS", CGROUPS.join(" "));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        let console = fs::File::create(directory.join("console"))?;
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        let nspawn = command.spawn().context("failed to start systemd-nspawn")?;
        let mut machine = Self { nspawn, leader: 0, name };
        machine.wait_booted(directory)?;
        Ok(machine)
    }

    fn wait_booted(&mut self, directory: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_WAIT;
        loop {
            if let Some(leader) = self.find_leader() {
                self.leader = leader;
                let state = self.inside(&["systemctl", "is-system-running"]).output()?;
                // `degraded`: a unit failed; whoever needs that one will say so.
                if matches!(state.stdout.trim_ascii(), b"running" | b"degraded") {
                    return Ok(());
                }
            }
            let ended = self.nspawn.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let console = fs::read_to_string(directory.join("console")).unwrap_or_default();
                let how = ended.map_or_else(|| "hangs".to_owned(), |status| format!("ended with {status}"));
                bail!("{} does not boot ({how}); its console:\n{console}", self.name);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Its PID 1, as we see it: the one child of systemd-nspawn that is no nspawn any more.
    fn find_leader(&self) -> Option<u32> {
        let nspawn = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        let systemd = |pid: &str| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "systemd")
        };
        children.split_whitespace().find(|pid| systemd(pid))?.parse().ok()
    }

    fn inside(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.leader.to_string());
        command.args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd=/", "--"]);
        // Of our own environment only what a program needs anywhere.
        command.args(argv).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in it, and says what it printed.
    pub fn run(&self, argv: &[&str]) -> anyhow::Result<String> {
        run(&mut self.inside(argv)).with_context(|| format!("in {}", self.name))
    }

    /// Runs a program as a unit of the machine, with a control group like any service.
    pub fn run_as_unit(&self, argv: &[&str]) -> anyhow::Result<String> {
        self.run(&[&["systemd-run", "--quiet", "--wait", "--pipe", "--collect"], argv].concat())
    }

    /// Where a file of the machine is for us. Reading a credential through it makes us its holder.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.leader))
    }

    /// Writes a file in it, and the directories on the way.
    pub fn write(&self, inside: &str, content: &str) -> anyhow::Result<()> {
        let path = self.path(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("failed to write {inside} in {}", self.name))
    }

    /// Copies a program of ours into it.
    pub fn copy_in(&self, ours: &Path, inside: &str) -> anyhow::Result<()> {
        fs::copy(ours, self.path(inside)).with_context(|| format!("failed to copy {}", ours.display()))?;
        Ok(())
    }

    /// Powers it off in good order.
    pub fn power_off(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.nspawn.try_wait()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.nspawn.id())?);
            // It passes the wish on to its machine.
            kill(pid, Signal::SIGTERM)?;
            let deadline = Instant::now() + POWER_OFF_WAIT;
            while self.nspawn.try_wait()?.is_none() {
                if Instant::now() > deadline {
                    self.nspawn.kill()?;
                }
                sleep(Duration::from_millis(20));
            }
        }
        for groups in CGROUPS {
            remove_groups(&Path::new(groups).join(&self.name));
        }
        let status = self.nspawn.wait()?;
        if status.signal().is_some() {
            bail!("{} had to be killed: {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.end();
    }
}

/// Control groups that nobody is in any more, the innermost first.
fn remove_groups(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
