//! Asks a consumer whether it is healthy, and runs the policy's commands.
//!
//! Where systemd is, all of it runs as transient units: the applier itself has no network, and a command never gets
//! the applier's rights. Where it is not, commands are child processes with a deadline.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use host_policy::{Command, Http, Principal, Probe, ProbeKind};
use tokio::time::sleep;
use zbus::Variant;

use crate::error::UnitError;
use crate::systemd::{JobEnd, Systemd};

/// What a program finds of the environment, beside what the caller adds.
const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most bytes of an answer that are read: the status line is enough.
const ANSWER_BYTES_MAX: u64 = 512;

/// Where probes and commands run.
pub(crate) enum Runner {
    /// As transient units; `program` answers to `probe tcp|http ...` as [`run_as_program`] does.
    Units { systemd: Systemd, program: PathBuf },
    /// As children of ours.
    Children,
}

/// Tries a probe as often as it says. `Ok(Err(why))` when the consumer is not healthy.
pub(crate) async fn ask(runner: &Runner, probe: &Probe) -> Result<Result<(), String>, UnitError> {
    let mut last = String::new();
    for round in 0..probe.tries {
        if round > 0 {
            sleep(Duration::from_millis(probe.pause_ms)).await;
        }
        match once(runner, &probe.kind, probe.timeout_ms).await? {
            Ok(()) => return Ok(Ok(())),
            Err(why) => last = why,
        }
    }
    Ok(Err(last))
}

async fn once(runner: &Runner, kind: &ProbeKind, timeout_ms: u64) -> Result<Result<(), String>, UnitError> {
    match (runner, kind) {
        (_, ProbeKind::Command(command)) => run(runner, command, &[]).await,
        (Runner::Units { systemd, program }, ProbeKind::Tcp(address)) => {
            let argv = [words(program), vec!["tcp".into(), address.to_string()]].concat();
            run_unit(systemd, &argv, None, timeout_ms, &[]).await
        }
        (Runner::Units { systemd, program }, ProbeKind::Http(page)) => {
            let page =
                vec!["http".into(), page.address.to_string(), page.path.clone(), page.status.to_string()];
            let argv = [words(program), page].concat();
            run_unit(systemd, &argv, None, timeout_ms, &[]).await
        }
        (Runner::Children, kind) => {
            let kind = kind.clone();
            let limit = Duration::from_millis(timeout_ms);
            let asked = tokio::task::spawn_blocking(move || match kind {
                ProbeKind::Tcp(address) => tcp(address, limit),
                ProbeKind::Http(page) => http(&page, limit),
                ProbeKind::Command(_) => Ok(()),
            });
            asked
                .await
                .map_err(|error| UnitError::Command { program: "probe".into(), message: error.to_string() })
        }
    }
}

fn words(program: &Path) -> Vec<String> {
    vec![program.to_string_lossy().into_owned(), "probe".into()]
}

/// Runs a command of the policy. `Ok(Err(why))` when it said no or took too long.
pub(crate) async fn run(
    runner: &Runner,
    command: &Command,
    environment: &[(&str, String)],
) -> Result<Result<(), String>, UnitError> {
    match runner {
        Runner::Units { systemd, .. } => {
            run_unit(systemd, &command.argv, command.user.as_ref(), command.timeout_ms, environment).await
        }
        Runner::Children => run_child(command, environment).await,
    }
}

async fn run_unit(
    systemd: &Systemd,
    argv: &[String],
    user: Option<&Principal>,
    timeout_ms: u64,
    environment: &[(&str, String)],
) -> Result<Result<(), String>, UnitError> {
    let program = argv.first().cloned().unwrap_or_default();
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| UnitError::Command { program: program.clone(), message: errno.to_string() })?;
    let unit = format!("eso-run-{:016x}.service", u64::from_ne_bytes(random));
    let mut variables = vec![SEARCH_PATH.to_owned()];
    variables.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    let mut properties = vec![
        ("Description", Variant::from("A check that the policy of eso-vm-server asks for")),
        ("Type", "oneshot".into()),
        ("ExecStart", Variant::from(vec![(program.clone(), argv.to_vec(), false)])),
        ("Environment", Variant::from(variables)),
        ("TimeoutStartUSec", Variant::from(timeout_ms.saturating_mul(1000))),
        // Nothing of it stays, also when it failed.
        ("CollectMode", "inactive-or-failed".into()),
        // Its output could hold what it checks.
        ("StandardInput", "null".into()),
        ("StandardOutput", "null".into()),
        ("StandardError", "null".into()),
        ("NoNewPrivileges", true.into()),
        ("PrivateTmp", true.into()),
        ("ProtectSystem", "strict".into()),
        ("CapabilityBoundingSet", 0_u64.into()),
    ];
    match user {
        Some(user) => properties.push(("User", user.to_string().into())),
        None => properties.push(("DynamicUser", true.into())),
    }
    match systemd.run(&unit, &properties).await {
        Ok(JobEnd::Done) => Ok(Ok(())),
        Ok(JobEnd::Otherwise(result)) => Ok(Err(format!("{program} ended as {result}"))),
        Ok(JobEnd::Unseen) => Ok(Err(format!("{program} ended unseen"))),
        Err(UnitError::TooLong { limit_ms, .. }) => {
            systemd.stop(&unit).await?;
            Ok(Err(format!("{program} took longer than {limit_ms} ms")))
        }
        Err(error) => Err(error),
    }
}

async fn run_child(
    command: &Command,
    environment: &[(&str, String)],
) -> Result<Result<(), String>, UnitError> {
    let program = command.argv.first().cloned().unwrap_or_default();
    let failed = |message: String| UnitError::Command { program: program.clone(), message };
    let mut child = std::process::Command::new(&program);
    child.args(command.argv.iter().skip(1)).env_clear().process_group(0);
    let (name, value) = SEARCH_PATH.split_once('=').unwrap_or_default();
    child.env(name, value).envs(environment.iter().map(|(name, value)| (*name, value)));
    child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    as_user(&mut child, command.user.as_ref()).map_err(&failed)?;
    let mut child = tokio::process::Command::from(child)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    match tokio::time::timeout(Duration::from_millis(command.timeout_ms), child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(Ok(())),
        Ok(Ok(status)) => Ok(Err(format!("{program} ended with {status}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => {
            if let Some(group) = group.and_then(rustix::process::Pid::from_raw) {
                // The child has not been waited for, so its group id is still its own.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait().await;
            Ok(Err(format!("{program} took longer than {} ms", command.timeout_ms)))
        }
    }
}

/// Gives up root's rights. A command of the policy never runs with them.
fn as_user(child: &mut std::process::Command, user: Option<&Principal>) -> Result<(), String> {
    let ours = rustix::process::geteuid();
    let (uid, gid) = match user {
        None if ours.is_root() => {
            return Err("name the `user` it runs as: it never runs as root by itself".into());
        }
        None => return Ok(()),
        Some(Principal::Name(name)) => {
            let found = nix::unistd::User::from_name(name).ok().flatten();
            let found = found.ok_or_else(|| format!("the user {name:?} does not exist on this host"))?;
            (found.uid.as_raw(), found.gid.as_raw())
        }
        Some(Principal::Id(id)) => {
            let found = nix::unistd::User::from_uid((*id).into()).ok().flatten();
            (*id, found.map_or(*id, |user| user.gid.as_raw()))
        }
    };
    if uid != ours.as_raw() {
        // Setting a user as root also drops the supplementary groups.
        child.gid(gid).uid(uid);
    }
    Ok(())
}

/// What the probe's own program does: `tcp ADDRESS`, or `http ADDRESS PATH STATUS`. The words after `probe`.
/// systemd bounds its time.
pub fn run_as_program(words: &[String]) -> Result<(), String> {
    const LIMIT: Duration = Duration::from_mins(1);
    let address = |text: &String| text.parse::<SocketAddr>().map_err(|error| format!("{text}: {error}"));
    match words {
        [kind, at] if kind == "tcp" => tcp(address(at)?, LIMIT),
        [kind, at, path, status] if kind == "http" => {
            let status = status.parse().map_err(|error| format!("{status}: {error}"))?;
            http(&Http { address: address(at)?, path: path.clone(), status }, LIMIT)
        }
        _ => Err("usage: probe tcp ADDRESS | probe http ADDRESS PATH STATUS".into()),
    }
}

fn tcp(address: SocketAddr, limit: Duration) -> Result<(), String> {
    TcpStream::connect_timeout(&address, limit).map(drop).map_err(|error| format!("{address}: {error}"))
}

fn http(page: &Http, limit: Duration) -> Result<(), String> {
    let at = page.address;
    let failed = |error: std::io::Error| format!("{at}{}: {error}", page.path);
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&at, limit).map_err(failed)?;
    let rest = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(rest)).map_err(failed)?;
    stream.set_write_timeout(Some(rest)).map_err(failed)?;
    // In one piece: a server may answer and close before it has read the rest.
    let asked = format!(
        "GET {} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: eso-vm-server\r\nConnection: close\r\n\r\n",
        page.path
    );
    stream.write_all(asked.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    let mut bytes = std::io::BufReader::new(stream.take(ANSWER_BYTES_MAX)).bytes();
    while let Some(byte) = bytes.next().transpose().map_err(failed)? {
        if byte == b'\n' {
            break;
        }
        if Instant::now() >= deadline {
            return Err(format!("{at}{}: answers too slowly", page.path));
        }
        answer.push(byte);
    }
    match status_of(&answer) {
        Some(status) if status == page.status => Ok(()),
        Some(status) => Err(format!("{at}{}: answered {status}, not {}", page.path, page.status)),
        None => Err(format!("{at}{}: does not speak HTTP", page.path)),
    }
}

fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
