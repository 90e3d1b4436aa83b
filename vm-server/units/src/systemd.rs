//! systemd over D-Bus.
//!
//! A job is followed from before it is asked for: the signal that it ended may come before the reply that names it.
//! Signals count only from whoever owns systemd's name on the bus, since any peer may send one that looks alike.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, interval_at, timeout};
use zbus::message::Message;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use crate::error::UnitError;
use crate::escape;
use crate::life::{Health, LifeId, Look};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// How long one call may take.
const CALL_MS_MAX: u64 = 30_000;
/// How long a job may take: longer than systemd's own default for starting after stopping, which is 3 minutes.
const JOB_MS_MAX: u64 = 300_000;
/// How often the job itself is asked for, in case its signal was lost.
const JOB_LOOK_MS: u64 = 1_000;
/// How many signals may wait for us: other jobs of a busy host end meanwhile.
const SIGNALS_MAX: usize = 1024;

type Connecting = Pin<Box<dyn Future<Output = zbus::Result<Connection>> + Send>>;

/// Makes a connection to systemd, also again after one was lost.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> Connecting + Send + Sync>);

impl Connector {
    /// The system bus. systemd's own socket would be there earlier in boot, but names itself in a way that zbus
    /// takes for malformed.
    pub fn system_bus() -> Self {
        Self::new(|| {
            Box::pin(async {
                let timeout = Duration::from_millis(CALL_MS_MAX);
                zbus::connection::Builder::system().method_timeout(timeout).build().await
            })
        })
    }

    /// Any other way.
    pub fn new(connect: impl Fn() -> Connecting + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }
}

/// systemd, with a connection that is made when it is needed and again when it was lost.
#[derive(Clone)]
pub struct Systemd {
    connector: Connector,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// A connection, and the units that systemd keeps loaded because of it.
struct Kept {
    connection: Connection,
    units: HashSet<String>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// As asked.
    Done,
    /// Otherwise: systemd's word for it, such as `failed`, `timeout`, `canceled`, `dependency`.
    Otherwise(String),
    /// It is over, but its signal was never seen: only a look at the unit tells.
    Unseen,
}

/// What one look at a unit showed.
#[derive(Debug, Clone)]
pub(crate) struct UnitState {
    pub(crate) look: Look,
    pub(crate) load: String,
    /// The setting by which a failure would take the host down.
    pub(crate) danger: Option<String>,
}

impl Systemd {
    /// Whether PID 1 is systemd.
    pub fn is_here() -> bool {
        Path::new("/run/systemd/system").is_dir()
    }

    /// Connects when it is first asked something.
    pub fn new(connector: Connector) -> Self {
        Self { connector, kept: Arc::new(Mutex::new(None)) }
    }

    async fn connection(&self) -> Result<Connection, UnitError> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| !kept.connection.is_closed()) {
            return Ok(kept.connection.clone());
        }
        let connecting = timeout(Duration::from_millis(CALL_MS_MAX), (self.connector.0)());
        let connection = connecting
            .await
            .map_err(|_| UnitError::Lost("connecting took too long".into()))?
            .map_err(|error| UnitError::Lost(error.to_string()))?;
        // Without it systemd sends no signals.
        let subscribed =
            connection.call_method(Some(NAME), PATH, Some(MANAGER), "Subscribe", &()).await.map(drop);
        match subscribed.map_err(|error| answer("subscribe", "to its signals", error)) {
            Ok(()) | Err(UnitError::Systemd { .. }) => {}
            Err(error) => return Err(error),
        }
        *kept = Some(Kept { connection: connection.clone(), units: HashSet::new() });
        Ok(connection)
    }

    async fn drop_connection(&self) {
        *self.kept.lock().await = None;
    }

    async fn call<B>(
        &self,
        doing: &'static str,
        unit: &str,
        (path, interface, method): (&str, &str, &str),
        body: &B,
    ) -> Result<Message, UnitError>
    where
        B: serde::ser::Serialize + zbus::wire::DynamicType + Sync,
    {
        let connection = self.connection().await?;
        let limit = Duration::from_millis(CALL_MS_MAX);
        let answered =
            timeout(limit, connection.call_method(Some(NAME), path, Some(interface), method, body)).await;
        let result = match answered {
            Ok(result) => result.map_err(|error| answer(doing, unit, error)),
            Err(_) => Err(UnitError::Lost(format!("{method} was not answered within {CALL_MS_MAX} ms"))),
        };
        if let Err(UnitError::Lost(_)) = &result {
            self.drop_connection().await;
        }
        result
    }

    /// Asks for a job and waits until it has ended.
    pub(crate) async fn job<B>(
        &self,
        doing: &'static str,
        unit: &str,
        method: &str,
        body: &B,
    ) -> Result<JobEnd, UnitError>
    where
        B: serde::ser::Serialize + zbus::wire::DynamicType + Sync,
    {
        let connection = self.connection().await?;
        let lost = |error: zbus::Error| UnitError::Lost(error.to_string());
        let owner = owner_of_systemd(&connection).await.map_err(lost)?;
        let rule = MatchRule::try_from(
            "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
        )
        .map_err(lost)?;
        let most = std::num::NonZeroUsize::new(SIGNALS_MAX);
        let mut signals = MessageStream::for_match_rule(rule, &connection, most).await.map_err(lost)?;

        // Signals are taken off the queue while the reply is awaited: a full queue would hold the reply up.
        let mut ended: HashMap<OwnedObjectPath, String> = HashMap::new();
        let asked = self.call(doing, unit, (PATH, MANAGER, method), body).fuse();
        let mut asked = std::pin::pin!(asked);
        let job: OwnedObjectPath = loop {
            tokio::select! {
                biased;
                Some(signal) = signals.next() => {
                    if let Some((job, result)) = job_removed(signal, owner.as_deref()) {
                        ended.insert(job, result);
                    }
                }
                reply = &mut asked => {
                    break reply?.body().deserialize().map_err(|error| UnitError::Systemd {
                        doing,
                        unit: unit.into(),
                        message: format!("its answer is no job: {error}"),
                    })?;
                }
            }
        };
        if let Some(result) = ended.remove(&job) {
            return Ok(JobEnd::of(result));
        }
        self.await_job(doing, unit, &job, owner.as_deref(), signals).await
    }

    async fn await_job(
        &self,
        doing: &'static str,
        unit: &str,
        job: &OwnedObjectPath,
        owner: Option<&str>,
        mut signals: MessageStream,
    ) -> Result<JobEnd, UnitError> {
        let deadline = Instant::now() + Duration::from_millis(JOB_MS_MAX);
        let every = Duration::from_millis(JOB_LOOK_MS);
        let mut look = interval_at(Instant::now() + every, every);
        loop {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    let Some(signal) = signal else {
                        self.drop_connection().await;
                        return Err(UnitError::Lost("the connection ended while a job ran".into()));
                    };
                    if let Some((ended, result)) = job_removed(signal, owner)
                        && ended == *job
                    {
                        return Ok(JobEnd::of(result));
                    }
                }
                _ = look.tick() => {
                    let call = (job.as_str(), PROPERTIES, "Get");
                    let body = ("org.freedesktop.systemd1.Job", "State");
                    match self.call(doing, unit, call, &body).await {
                        Ok(_) => {}
                        // The signal is on its way or was lost; it comes before this answer when it comes at all.
                        Err(UnitError::Systemd { .. } | UnitError::Vanished { .. }) => {
                            while let Some(Some(signal)) = signals.next().now_or_never() {
                                if let Some((ended, result)) = job_removed(signal, owner)
                                    && ended == *job
                                {
                                    return Ok(JobEnd::of(result));
                                }
                            }
                            return Ok(JobEnd::Unseen);
                        }
                        Err(error) => return Err(error),
                    }
                    if Instant::now() >= deadline {
                        return Err(UnitError::TooLong { doing, unit: unit.into(), limit_ms: JOB_MS_MAX });
                    }
                }
            }
        }
    }

    /// Looks at a unit.
    pub(crate) async fn look(&self, unit: &str) -> Result<UnitState, UnitError> {
        let message = self.call("load", unit, (PATH, MANAGER, "LoadUnit"), &unit).await?;
        let path: OwnedObjectPath = message.body().deserialize().map_err(|error| malformed(unit, &error))?;
        let general = self.properties(unit, path.as_str(), UNIT).await?;
        let load = text(&general, "LoadState");
        if load == "not-found" {
            return Err(UnitError::Vanished { unit: unit.into(), state: load });
        }
        self.keep_loaded(unit).await?;
        let service = self.properties(unit, path.as_str(), SERVICE).await?;
        Ok(UnitState { look: look_of(&general, &service), load, danger: danger(&general) })
    }

    /// Lets systemd remember a unit that we look at. Otherwise it forgets a oneshot with all that came of it, as soon
    /// as that has ended and nothing else names it.
    async fn keep_loaded(&self, unit: &str) -> Result<(), UnitError> {
        let is_kept = |kept: &Kept| kept.units.contains(unit);
        if self.kept.lock().await.as_ref().is_some_and(is_kept) {
            return Ok(());
        }
        match self.call("keep", unit, (PATH, MANAGER, "RefUnit"), &unit).await {
            Ok(_) => {
                if let Some(kept) = self.kept.lock().await.as_mut() {
                    kept.units.insert(unit.to_owned());
                }
                Ok(())
            }
            // Not allowed, or gone meanwhile: the next look tells.
            Err(UnitError::Lost(message)) => Err(UnitError::Lost(message)),
            Err(_) => Ok(()),
        }
    }

    async fn properties(&self, unit: &str, path: &str, interface: &str) -> Result<Properties, UnitError> {
        let message = self.call("look at", unit, (path, PROPERTIES, "GetAll"), &interface).await?;
        message.body().deserialize().map_err(|error| malformed(unit, &error))
    }

    /// Each loaded service with the files that systemd reads for it: `EnvironmentFile=` and `LoadCredential=`, as
    /// written there. A service that goes away meanwhile is left out.
    pub async fn files_read_for_services(&self) -> Result<Vec<(String, PathBuf)>, UnitError> {
        type Listed =
            (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
        let (all, no_states) = ("*.service", Vec::<&str>::new());
        let call = (PATH, MANAGER, "ListUnitsByPatterns");
        let message = self.call("list", all, call, &(no_states, vec![all])).await?;
        let listed: Vec<Listed> = message.body().deserialize().map_err(|error| malformed(all, &error))?;
        let mut files = Vec::new();
        for (unit, _, load, _, _, _, path, ..) in listed {
            if load != "loaded" {
                continue;
            }
            match self.properties(&unit, path.as_str(), SERVICE).await {
                Ok(service) => {
                    let named = pairs::<bool>(&service, "EnvironmentFiles").into_iter().map(|(file, _)| file);
                    let credentials = pairs::<String>(&service, "LoadCredential").into_iter();
                    let named = named.chain(credentials.map(|(_, file)| file));
                    files.extend(named.map(|file| (unit.clone(), PathBuf::from(file))));
                }
                Err(UnitError::Vanished { .. } | UnitError::Systemd { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// Forgets that a unit failed, so that its start limit does not refuse the next start.
    pub(crate) async fn reset_failed(&self, unit: &str) -> Result<(), UnitError> {
        let call = (PATH, MANAGER, "ResetFailedUnit");
        match self.call("forget the failure of", unit, call, &unit).await {
            // Not loaded: then there is nothing to forget.
            Ok(_) | Err(UnitError::Vanished { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to a unit's main process.
    pub(crate) async fn kill(&self, unit: &str, signal: i32) -> Result<(), UnitError> {
        let body = (unit, "main", signal);
        self.call("signal", unit, (PATH, MANAGER, "KillUnit"), &body).await.map(drop)
    }

    /// Runs a program as a unit of its own and waits for its end.
    pub(crate) async fn run(
        &self,
        unit: &str,
        properties: &[(&str, Variant<'_>)],
    ) -> Result<JobEnd, UnitError> {
        self.start_transient("run", unit, properties).await
    }

    async fn start_transient(
        &self,
        doing: &'static str,
        unit: &str,
        properties: &[(&str, Variant<'_>)],
    ) -> Result<JobEnd, UnitError> {
        let beside: &[(&str, Vec<(&str, Variant<'_>)>)] = &[];
        self.job(doing, unit, "StartTransientUnit", &(unit, "fail", properties, beside)).await
    }

    /// Stops a transient unit that took too long.
    pub(crate) async fn stop(&self, unit: &str) -> Result<(), UnitError> {
        self.call("stop", unit, (PATH, MANAGER, "StopUnit"), &(unit, "replace")).await.map(drop)
    }

    /// Lets PID 1 mount a tmpfs: a mount made by a sandboxed unit is seen by nobody else.
    pub async fn mount_tmpfs(&self, at: &Path, options: &str) -> Result<(), UnitError> {
        let unit = format!("{}.mount", escape::path(at));
        // A unit of an earlier try that failed would be in the way.
        self.reset_failed(&unit).await?;
        let properties = [
            ("Description", Variant::from("A set of credentials")),
            ("What", Variant::from("tmpfs")),
            ("Type", Variant::from("tmpfs")),
            ("Options", Variant::from(options)),
        ];
        match self.start_transient("mount", &unit, &properties).await? {
            JobEnd::Done | JobEnd::Unseen => Ok(()),
            JobEnd::Otherwise(result) => Err(UnitError::Systemd {
                doing: "mount",
                unit,
                message: format!("the job ended as {result}"),
            }),
        }
    }
}

impl JobEnd {
    fn of(result: String) -> Self {
        if result == "done" { Self::Done } else { Self::Otherwise(result) }
    }
}

/// The unique name of systemd on a bus; none on a connection of two peers.
async fn owner_of_systemd(connection: &Connection) -> zbus::Result<Option<String>> {
    if !connection.is_bus() {
        return Ok(None);
    }
    let bus = "org.freedesktop.DBus";
    let call = connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "GetNameOwner", &NAME);
    call.await?.body().deserialize().map(Some)
}

fn job_removed(signal: zbus::Result<Message>, owner: Option<&str>) -> Option<(OwnedObjectPath, String)> {
    let signal = signal.ok()?;
    let header = signal.header();
    if owner.is_some() && header.sender().map(zbus::names::UniqueName::as_str) != owner {
        return None;
    }
    let body = signal.body();
    let (_, job, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize().ok()?;
    Some((job, result))
}

/// What an error of a call means.
fn answer(doing: &'static str, unit: &str, error: zbus::Error) -> UnitError {
    use zbus::fdo::Error as Bus;
    let systemd = |message: String| UnitError::Systemd { doing, unit: unit.into(), message };
    match error {
        zbus::Error::MethodError(name, message, _) => {
            let message = message.unwrap_or_default();
            if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" {
                return UnitError::Vanished { unit: unit.into(), state: "not loaded".into() };
            }
            systemd(format!("{message} ({name})"))
        }
        zbus::Error::FDO(error) => match *error {
            Bus::ServiceUnknown(_)
            | Bus::NameHasNoOwner(_)
            | Bus::NoReply(_)
            | Bus::NoServer(_)
            | Bus::Disconnected(_)
            | Bus::TimedOut(_)
            | Bus::Timeout(_)
            | Bus::ZBus(_) => UnitError::Lost(error.to_string()),
            error => systemd(error.to_string()),
        },
        error => UnitError::Lost(error.to_string()),
    }
}

fn malformed(unit: &str, error: &zbus::Error) -> UnitError {
    UnitError::Systemd {
        doing: "look at",
        unit: unit.into(),
        message: format!("its answer is malformed: {error}"),
    }
}

type Properties = HashMap<String, OwnedVariant>;

fn text(properties: &Properties, key: &str) -> String {
    let value = properties.get(key).and_then(|value| <&str>::try_from(&**value).ok());
    value.unwrap_or_default().to_owned()
}

fn number<T>(properties: &Properties, key: &str) -> T
where
    T: Default + for<'v> TryFrom<&'v Variant<'v>>,
{
    properties.get(key).and_then(|value| T::try_from(value).ok()).unwrap_or_default()
}

fn texts(properties: &Properties, key: &str) -> Vec<String> {
    let value = properties.get(key).and_then(|value| value.try_clone().ok());
    value.and_then(|value| Vec::<String>::try_from(value).ok()).unwrap_or_default()
}

/// A list of a text and something beside it.
fn pairs<T>(properties: &Properties, key: &str) -> Vec<(String, T)>
where
    Vec<(String, T)>: TryFrom<OwnedVariant>,
{
    let value = properties.get(key).and_then(|value| value.try_clone().ok());
    value.and_then(|value| Vec::<(String, T)>::try_from(value).ok()).unwrap_or_default()
}

fn invocation(general: &Properties) -> Option<LifeId> {
    let value = general.get("InvocationID").and_then(|value| value.try_clone().ok())?;
    let bytes = Vec::<u8>::try_from(value).ok().filter(|bytes| !bytes.is_empty())?;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Some(LifeId::Invocation(text))
}

fn look_of(general: &Properties, service: &Properties) -> Look {
    let active = text(general, "ActiveState");
    let result = text(service, "Result");
    let oneshot = text(service, "Type") == "oneshot";
    let last_life = invocation(general);
    let status: i32 = number(service, "ExecMainStatus");
    let why = || format!("{} ({result}, exit status {status})", text(general, "SubState"));
    let health = match active.as_str() {
        "active" => Health::Running,
        // `Restart=` waits for its next try: the one before failed.
        "activating" if text(general, "SubState") == "auto-restart" => Health::Failed(why()),
        "activating" | "deactivating" | "reloading" | "refreshing" | "maintenance" => Health::Changing,
        "failed" => Health::Failed(why()),
        _ if oneshot && result == "success" && status == 0 && last_life.is_some() => Health::Finished,
        _ => Health::Idle,
    };
    let runs = matches!(health, Health::Running | Health::Changing);
    let main_pid: u32 = number(service, "MainPID");
    let began: u64 = number(general, "InactiveExitTimestampMonotonic");
    Look {
        life: last_life.clone().filter(|_| runs),
        health,
        main_pid: i32::try_from(main_pid).unwrap_or_default(),
        restarts: number(service, "NRestarts"),
        last_life,
        began_ms: Some(began / 1000).filter(|began| *began > 0),
        earlier_ended_ms: Some(earlier_ended(general, began) / 1000).filter(|ended| *ended > 0),
    }
}

/// When the life before the one that began then had ended, in microseconds; 0 when there was none. With
/// `RestartMode=direct` a unit is active no longer, but never inactive.
fn earlier_ended(general: &Properties, began: u64) -> u64 {
    let moments = ["InactiveEnterTimestampMonotonic", "ActiveExitTimestampMonotonic"];
    let moments = moments.into_iter().map(|key| number::<u64>(general, key));
    // What is later is the end of the present life.
    moments.filter(|moment| *moment <= began).max().unwrap_or(0)
}

/// The setting by which a failure of the unit would take the host down.
fn danger(general: &Properties) -> Option<String> {
    for key in ["FailureAction", "SuccessAction", "StartLimitAction", "JobTimeoutAction"] {
        let action = text(general, key);
        if !matches!(action.as_str(), "" | "none") {
            return Some(format!("{key}={action}"));
        }
    }
    for key in ["OnFailure", "OnSuccess"] {
        if let Some(unit) = texts(general, key).into_iter().find(|unit| takes_the_host_down(unit)) {
            return Some(format!("{key}={unit}"));
        }
    }
    for key in ["RefuseManualStart", "RefuseManualStop"] {
        if properties_flag(general, key) {
            return Some(format!("{key}=yes"));
        }
    }
    None
}

fn properties_flag(properties: &Properties, key: &str) -> bool {
    number(properties, key)
}

fn takes_the_host_down(unit: &str) -> bool {
    const STEMS: &[&str] = &[
        "ctrl-alt-del",
        "emergency",
        "exit",
        "final",
        "halt",
        "hibernate",
        "kexec",
        "poweroff",
        "reboot",
        "rescue",
        "shutdown",
        "soft-reboot",
        "suspend",
    ];
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    STEMS.contains(&stem.strip_prefix("systemd-").unwrap_or(stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, Variant<'static>)]) -> Properties {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.try_clone().unwrap().try_into().unwrap()))
            .collect()
    }

    #[test]
    fn a_unit_whose_failure_would_reboot_the_host_is_dangerous() {
        assert_eq!(danger(&properties(&[("FailureAction", "none".into())])), None);
        for (key, value) in [
            ("FailureAction", Variant::from("reboot-force")),
            ("StartLimitAction", "poweroff".into()),
            ("SuccessAction", "exit".into()),
            ("JobTimeoutAction", "reboot".into()),
            ("OnFailure", Variant::from(vec!["mail@x.service".to_owned(), "reboot.target".to_owned()])),
            ("OnFailure", Variant::from(vec!["systemd-poweroff.service".to_owned()])),
            ("RefuseManualStop", Variant::from(true)),
        ] {
            assert!(danger(&properties(&[(key, value)])).is_some(), "{key}");
        }
        let mail = properties(&[("OnFailure", Variant::from(vec!["mail@x.service".to_owned()]))]);
        assert_eq!(danger(&mail), None);
    }
}
