//! What the applier asks of a consumer, whoever supervises it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use host_policy::{Adopt, Command, Consumer, Life, PidFileLife, Probe, SupervisorMode, UnitName};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::UnitError;
use crate::life::{Health, LifeId, Look};
use crate::pidfile;
use crate::probe::{self, Runner};
use crate::systemd::{Connector, JobEnd, Systemd};

/// How often a unit is looked at within its settle time, unless that is short.
const SETTLE_LOOK_MS: u64 = 500;
/// How long a unit may stay between two states before that counts as a failure.
const CHANGING_MS_MAX: u64 = 90_000;

/// Who supervises the consumers of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// systemd, over D-Bus; consumers with a pid file beside it.
    Systemd,
    /// Nobody that we could ask: consumers have pid files.
    PidFile,
}

/// Whether a new version is taken up or an old one returned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To a new version: a consumer that does not run stays as it is.
    Forward,
    /// Back, after the consumer failed on a new one that we had it take up: it is started again, past systemd's
    /// start limit.
    Back,
}

/// What asking a consumer led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// It lives this life now and was told; it has yet to settle.
    Asked(LifeId),
    /// It was living another life than the journaled one already: nothing was asked.
    AlreadyNew(LifeId),
    /// It does not run, and was not started.
    Idle,
    /// It takes the version up by itself, or a person does it.
    Waiting,
    /// It did not come up.
    Failed(String),
}

/// How a settle time ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The same life all through, or a oneshot that ended with exit status 0; the probe passed.
    Healthy,
    /// Another life, a failure, or a probe that did not pass; why, in words.
    Failed(String),
    /// It was stopped by somebody, without a failure.
    Idle,
}

/// Restarts, reloads, looks at and probes the consumers of this host.
pub struct Supervisor {
    systemd: Option<Systemd>,
    runner: Runner,
}

impl Supervisor {
    /// As the policy says. `program` is an executable that answers to `probe ...` as
    /// [`crate::probe::run_as_program`] does: the applier itself.
    pub fn new(mode: SupervisorMode, program: PathBuf) -> Self {
        match mode {
            SupervisorMode::Systemd => Self::with_systemd(Systemd::new(Connector::system_bus()), program),
            SupervisorMode::Auto if Systemd::is_here() => {
                Self::with_systemd(Systemd::new(Connector::system_bus()), program)
            }
            SupervisorMode::Auto | SupervisorMode::None => Self::without_systemd(),
        }
    }

    /// With this systemd.
    pub fn with_systemd(systemd: Systemd, program: PathBuf) -> Self {
        Self { runner: Runner::Units { systemd: systemd.clone(), program }, systemd: Some(systemd) }
    }

    /// With pid files only; probes and commands are children of ours.
    pub const fn without_systemd() -> Self {
        Self { systemd: None, runner: Runner::Children }
    }

    /// Which of the two it is, for reports.
    pub const fn kind(&self) -> Kind {
        if self.systemd.is_some() { Kind::Systemd } else { Kind::PidFile }
    }

    /// systemd, where it is: for mounts.
    pub const fn systemd(&self) -> Option<&Systemd> {
        self.systemd.as_ref()
    }

    fn need_systemd(&self, unit: &UnitName) -> Result<&Systemd, UnitError> {
        self.systemd.as_ref().ok_or_else(|| UnitError::NoSystemd(unit.to_string()))
    }

    /// How a consumer looks now.
    pub async fn look(&self, consumer: &Consumer) -> Result<Look, UnitError> {
        match &consumer.life {
            Life::Unit(unit) => Ok(self.need_systemd(unit)?.look(unit.as_str()).await?.look),
            Life::PidFile(life) => pidfile::look(consumer, life),
        }
    }

    /// Refuses a consumer that must not be disturbed by us, since its failure would take the host down, or that is not
    /// there. Asked before every restart, reload, signal and start too. Whom we never ask anything is not looked at.
    pub async fn check(&self, consumer: &Consumer) -> Result<(), UnitError> {
        match consumer.adopt {
            Adopt::Restart | Adopt::Reload | Adopt::Signal(_) => self.check_unit(consumer).await,
            Adopt::Reopen | Adopt::NextStart | Adopt::Manual => Ok(()),
        }
    }

    async fn check_unit(&self, consumer: &Consumer) -> Result<(), UnitError> {
        match &consumer.life {
            Life::PidFile(_) => Ok(()),
            Life::Unit(unit) => {
                let state = self.need_systemd(unit)?.look(unit.as_str()).await?;
                // A signal is neither a start nor a stop.
                let signalled = matches!(consumer.adopt, Adopt::Signal(_));
                let danger = state.danger.filter(|danger| !(signalled && danger.starts_with("RefuseManual")));
                match (danger, state.load.as_str()) {
                    (Some(setting), _) => Err(UnitError::Dangerous { unit: unit.to_string(), setting }),
                    (None, "loaded") => Ok(()),
                    (None, load) => Err(UnitError::Vanished { unit: unit.to_string(), state: load.into() }),
                }
            }
        }
    }

    /// Has a consumer take up the version that is current now. `before` is its life as journaled before the flip,
    /// or before this was first asked: when it lives another one already, nothing is asked again.
    pub async fn adopt(
        &self,
        consumer: &Consumer,
        before: Option<&LifeId>,
        direction: Direction,
    ) -> Result<Adopted, UnitError> {
        match &consumer.life {
            Life::Unit(unit) => self.adopt_unit(consumer, unit, before, direction).await,
            Life::PidFile(life) => Self::adopt_process(consumer, life, before).await,
        }
    }

    async fn adopt_unit(
        &self,
        consumer: &Consumer,
        unit: &UnitName,
        before: Option<&LifeId>,
        direction: Direction,
    ) -> Result<Adopted, UnitError> {
        let systemd = self.need_systemd(unit)?;
        let name = unit.as_str();
        let look = systemd.look(name).await?.look;
        if let (Some(life), Some(before)) = (&look.life, before)
            && life != before
        {
            return Ok(Adopted::AlreadyNew(life.clone()));
        }
        if direction == Direction::Back && look.life.is_none() {
            self.check_unit(consumer).await?;
            systemd.reset_failed(name).await?;
            let started = systemd.job("start", name, "StartUnit", &(name, "replace")).await?;
            return self.after_job(systemd, name, started).await;
        }
        match (&consumer.adopt, look.life) {
            (Adopt::Reopen | Adopt::NextStart | Adopt::Manual, _) => Ok(Adopted::Waiting),
            (_, None) => Ok(match look.health {
                Health::Failed(why) => Adopted::Failed(why),
                _ => Adopted::Idle,
            }),
            (Adopt::Signal(signal), Some(life)) => {
                self.check_unit(consumer).await?;
                systemd.kill(name, signal_number(*signal)).await?;
                Ok(Adopted::Asked(life))
            }
            (adopt, Some(_)) => {
                self.check_unit(consumer).await?;
                // Also where it did not fail yet: a start limit counts tries, not failures.
                if direction == Direction::Back {
                    systemd.reset_failed(name).await?;
                }
                let (doing, method) = match adopt {
                    Adopt::Reload => ("reload", "ReloadOrTryRestartUnit"),
                    _ => ("restart", "TryRestartUnit"),
                };
                let ended = systemd.job(doing, name, method, &(name, "replace")).await?;
                self.after_job(systemd, name, ended).await
            }
        }
    }

    async fn after_job(&self, systemd: &Systemd, unit: &str, ended: JobEnd) -> Result<Adopted, UnitError> {
        let look = systemd.look(unit).await?.look;
        Ok(match (ended, look.life, look.health) {
            (JobEnd::Otherwise(result), _, health) => Adopted::Failed(match health {
                Health::Failed(why) => format!("the job ended as {result}: {why}"),
                _ => format!("the job ended as {result}"),
            }),
            (_, Some(life), _) => Adopted::Asked(life),
            (_, None, Health::Failed(why)) => Adopted::Failed(why),
            // A oneshot that has ended already.
            (_, None, Health::Finished) => look.last_life.map_or(Adopted::Idle, Adopted::Asked),
            (_, None, _) => Adopted::Failed("it ended right after its start".into()),
        })
    }

    async fn adopt_process(
        consumer: &Consumer,
        life: &PidFileLife,
        before: Option<&LifeId>,
    ) -> Result<Adopted, UnitError> {
        let Some(process) = pidfile::find(consumer, life)? else {
            return Ok(match consumer.adopt {
                Adopt::Reopen | Adopt::NextStart | Adopt::Manual => Adopted::Waiting,
                _ => Adopted::Idle,
            });
        };
        let id = pidfile::id_of(&process);
        if before.is_some_and(|before| *before != id) {
            return Ok(Adopted::AlreadyNew(id));
        }
        match consumer.adopt {
            Adopt::Reopen | Adopt::NextStart | Adopt::Manual => Ok(Adopted::Waiting),
            Adopt::Signal(signal) => {
                pidfile::signal(consumer, &process, signal)?;
                Ok(Adopted::Asked(id))
            }
            Adopt::Restart | Adopt::Reload => match pidfile::restart(consumer, life, process).await {
                Ok(life) => Ok(Adopted::Asked(life)),
                Err(UnitError::TooLong { doing, limit_ms, .. }) => {
                    Ok(Adopted::Failed(format!("{doing} it took longer than {limit_ms} ms")))
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Waits through the consumer's settle time: the same life, not restarted by systemd meanwhile, and at its end
    /// the probe passes. A oneshot counts at once when it has ended with exit status 0.
    pub async fn settle(&self, consumer: &Consumer, life: &LifeId) -> Result<Settled, UnitError> {
        let deadline = Instant::now() + Duration::from_millis(consumer.settle_ms);
        let watched = match &consumer.life {
            Life::Unit(unit) => self.settle_unit(unit, life, deadline).await?,
            Life::PidFile(process) => Self::settle_process(consumer, process, life, deadline).await?,
        };
        if watched != Settled::Healthy {
            return Ok(watched);
        }
        match &consumer.probe {
            None => Ok(Settled::Healthy),
            Some(probe) => Ok(match self.probe(probe).await? {
                Ok(()) => Settled::Healthy,
                Err(why) => Settled::Failed(format!("the probe did not pass: {why}")),
            }),
        }
    }

    async fn settle_unit(
        &self,
        unit: &UnitName,
        life: &LifeId,
        deadline: Instant,
    ) -> Result<Settled, UnitError> {
        let systemd = self.need_systemd(unit)?;
        let patience = Instant::now() + Duration::from_millis(CHANGING_MS_MAX);
        let mut first: Option<Look> = None;
        loop {
            // A short settle time is looked at often enough to mean something.
            let pause = deadline.saturating_duration_since(Instant::now()) / 4;
            let pause = pause.clamp(Duration::from_millis(20), Duration::from_millis(SETTLE_LOOK_MS));
            let over = Instant::now() >= deadline;
            let look = systemd.look(unit.as_str()).await?.look;
            match &look.health {
                Health::Failed(why) => return Ok(Settled::Failed(why.clone())),
                Health::Finished if look.last_life.as_ref() == Some(life) => return Ok(Settled::Healthy),
                Health::Idle | Health::Finished => return Ok(Settled::Idle),
                Health::Changing if Instant::now() >= patience.max(deadline) => {
                    return Ok(Settled::Failed("it stays between two states".into()));
                }
                Health::Changing => {}
                Health::Running => {
                    if look.life.as_ref() != Some(life) {
                        return Ok(Settled::Failed("it was restarted within its settle time".into()));
                    }
                    let first = first.get_or_insert_with(|| look.clone());
                    if first.restarts != look.restarts {
                        return Ok(Settled::Failed(format!(
                            "systemd restarted it ({} times)",
                            look.restarts
                        )));
                    }
                    if first.main_pid != look.main_pid {
                        return Ok(Settled::Failed("its main process was replaced".into()));
                    }
                    if over {
                        return Ok(Settled::Healthy);
                    }
                }
            }
            sleep(pause).await;
        }
    }

    async fn settle_process(
        consumer: &Consumer,
        life: &PidFileLife,
        id: &LifeId,
        deadline: Instant,
    ) -> Result<Settled, UnitError> {
        let same =
            |found: Option<crate::process::Process>| found.filter(|found| pidfile::id_of(found) == *id);
        let Some(process) = same(pidfile::find(consumer, life)?) else {
            return Ok(Settled::Failed("it ended within its settle time".into()));
        };
        tokio::select! {
            ended = pidfile::ended(consumer, process.pidfd) => {
                ended?;
                Ok(Settled::Failed("it ended within its settle time".into()))
            }
            () = sleep_until(deadline) => Ok(match same(pidfile::find(consumer, life)?) {
                Some(_) => Settled::Healthy,
                None => Settled::Failed("another process took its place within its settle time".into()),
            }),
        }
    }

    /// Tries a probe as often as it says. `Ok(Err(why))` when it did not pass.
    pub async fn probe(&self, probe: &Probe) -> Result<Result<(), String>, UnitError> {
        probe::ask(&self.runner, probe).await
    }

    /// Runs the policy's validation command on a version's directory. `Ok(Err(why))` when it said no.
    pub async fn validate(&self, command: &Command, dir: &Path) -> Result<Result<(), String>, UnitError> {
        probe::run(&self.runner, command, &[("ESO_SET_DIR", dir.to_string_lossy().into_owned())]).await
    }

    /// Forgets that a consumer's unit failed. Done by [`Self::adopt`] on the way back; here for operators.
    pub async fn reset_failed(&self, consumer: &Consumer) -> Result<(), UnitError> {
        match &consumer.life {
            Life::Unit(unit) => self.need_systemd(unit)?.reset_failed(unit.as_str()).await,
            Life::PidFile(_) => Ok(()),
        }
    }
}

const fn signal_number(signal: host_policy::Signal) -> i32 {
    use rustix::process::Signal;
    match signal {
        host_policy::Signal::Hup => Signal::HUP,
        host_policy::Signal::Usr1 => Signal::USR1,
        host_policy::Signal::Usr2 => Signal::USR2,
        host_policy::Signal::Winch => Signal::WINCH,
    }
    .as_raw()
}
