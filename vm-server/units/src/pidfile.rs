//! Consumers outside any unit: found by a pid file, checked against the policy, asked by signals.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use host_policy::{Consumer, PidFileLife, Principal, Signal};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::UnitError;
use crate::life::{Health, LifeId, Look};
use crate::process::Process;

/// How long a consumer may take to end after TERM.
pub(crate) const STOP_MS_MAX: u64 = 90_000;
/// How often the pid file is looked at while a new life is awaited.
const LOOK_MS: u64 = 50;
/// The most bytes of a pid file.
const PIDFILE_BYTES_MAX: u64 = 32;

/// The live process of a consumer; `None` when it does not run.
pub(crate) fn find(consumer: &Consumer, life: &PidFileLife) -> Result<Option<Process>, UnitError> {
    let wrong = |message: String| UnitError::Process { consumer: consumer.name.to_string(), message };
    let Some(pid) = read_pid(&life.pidfile).map_err(wrong)? else { return Ok(None) };
    let looked =
        Process::look(pid).map_err(|error| wrong(format!("failed to look at process {pid}: {error}")))?;
    let Some(process) = looked else { return Ok(None) };
    let expected = fs::canonicalize(&life.exe).unwrap_or_else(|_| life.exe.clone());
    if process.exe.as_ref().is_none_or(|exe| *exe != expected && *exe != life.exe) {
        return Err(wrong(format!(
            "{} names process {pid}, which does not run {}: correct `exe`, or remove a stale pid file",
            life.pidfile.display(),
            life.exe.display()
        )));
    }
    let uid = match &life.user {
        None => rustix::process::geteuid().as_raw(),
        Some(Principal::Id(id)) => *id,
        Some(Principal::Name(name)) => nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .ok_or_else(|| wrong(format!("the user {name:?} does not exist on this host")))?
            .uid
            .as_raw(),
    };
    if process.uid != uid {
        return Err(wrong(format!(
            "{} names process {pid} of user {}, not of user {uid}: correct `user` in the policy",
            life.pidfile.display(),
            process.uid
        )));
    }
    Ok(Some(process))
}

/// The number in a pid file; `None` when there is none, or only half of one.
fn read_pid(path: &Path) -> Result<Option<i32>, String> {
    // A pipe in its place must not hold us up.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NOCTTY;
    #[expect(clippy::cast_possible_wrap, reason = "open(2) takes its flags as a C int")]
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("failed to open {}: {error}", path.display())),
    };
    let mut text = Vec::new();
    file.take(PIDFILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|error| format!("failed to read {}: {error}", path.display()))?;
    let pid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // 1 is whoever supervises the host, never a consumer.
    Ok(pid.filter(|pid| *pid > 1))
}

pub(crate) fn id_of(process: &Process) -> LifeId {
    LifeId::Process { pid: process.pid, start: process.start }
}

pub(crate) fn look(consumer: &Consumer, life: &PidFileLife) -> Result<Look, UnitError> {
    Ok(match find(consumer, life)? {
        None => Look {
            life: None,
            health: Health::Idle,
            main_pid: 0,
            restarts: 0,
            last_life: None,
            began_ms: None,
            earlier_ended_ms: None,
        },
        Some(process) => Look {
            life: Some(id_of(&process)),
            health: Health::Running,
            main_pid: process.pid,
            restarts: 0,
            last_life: Some(id_of(&process)),
            began_ms: None,
            earlier_ended_ms: None,
        },
    })
}

/// Sends TERM and waits until another life is there. Whoever supervises the consumer starts it.
pub(crate) async fn restart(
    consumer: &Consumer,
    life: &PidFileLife,
    process: Process,
) -> Result<LifeId, UnitError> {
    let old = id_of(&process);
    send(consumer, &process.pidfd, rustix::process::Signal::TERM)?;
    let too_long = |doing, limit_ms| UnitError::TooLong { doing, unit: consumer.name.to_string(), limit_ms };
    let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
    timeout_at(deadline, ended(consumer, process.pidfd))
        .await
        .map_err(|_| too_long("the end after TERM of", STOP_MS_MAX))??;
    let deadline = Instant::now() + Duration::from_millis(consumer.start_ms);
    loop {
        // Right after a start the pid file may still name the old process, or a fork that becomes the program only
        // with exec: what cannot be believed yet is looked at again.
        match find(consumer, life) {
            Ok(Some(process)) if id_of(&process) != old => return Ok(id_of(&process)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            _ if Instant::now() >= deadline => return Err(too_long("a new start of", consumer.start_ms)),
            _ => sleep(Duration::from_millis(LOOK_MS)).await,
        }
    }
}

/// Waits until a process has ended.
pub(crate) async fn ended(consumer: &Consumer, pidfd: OwnedFd) -> Result<(), UnitError> {
    let wrong = |error: std::io::Error| UnitError::Process {
        consumer: consumer.name.to_string(),
        message: error.to_string(),
    };
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that swap their descriptor; an OwnedFd never does"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE).map_err(wrong)?;
    pidfd.readable().await.map_err(wrong)?.retain_ready();
    Ok(())
}

/// Sends the signal by which the consumer reads its files again.
pub(crate) fn signal(consumer: &Consumer, process: &Process, signal: Signal) -> Result<(), UnitError> {
    let signal = match signal {
        Signal::Hup => rustix::process::Signal::HUP,
        Signal::Usr1 => rustix::process::Signal::USR1,
        Signal::Usr2 => rustix::process::Signal::USR2,
        Signal::Winch => rustix::process::Signal::WINCH,
    };
    send(consumer, &process.pidfd, signal)
}

fn send(consumer: &Consumer, pidfd: &OwnedFd, signal: rustix::process::Signal) -> Result<(), UnitError> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        // Gone meanwhile: what was to be told has nobody to hear it.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(UnitError::Process {
            consumer: consumer.name.to_string(),
            message: format!("failed to signal it: {errno}"),
        }),
    }
}
