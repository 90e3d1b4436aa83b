//! A systemd that lives in this process, at the other end of a socket pair.
//!
//! It keeps one unit and counts what it was asked. Each test says when its job ends and with what, so that the order
//! of signal and reply, a lost signal and a lost connection are chosen and not hoped for.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use units::{Connector, Systemd};
use zbus::message::{Message, Type};
use zbus::{Connection, Guid, MessageStream, OwnedObjectPath, Variant};

const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/orders";

/// When the signal that a job ended is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Before the reply that names the job.
    BeforeReply,
    /// After it.
    AfterReply,
    /// Never: it was lost.
    Never,
    /// The connection ends instead, after the job was done.
    ConnectionEnds,
}

/// What the one unit looks like, and what the next job does to it.
#[derive(Clone)]
pub struct State {
    pub load: &'static str,
    pub active: &'static str,
    pub sub: &'static str,
    pub kind: &'static str,
    pub result: &'static str,
    pub exit: i32,
    pub invocation: u8,
    pub main_pid: u32,
    pub restarts: u32,
    pub failure_action: &'static str,
    pub signal: Signal,
    pub job_result: &'static str,
    /// What the unit is after a job that starts it: active state, sub state, result.
    pub started: (&'static str, &'static str, &'static str),
    /// Changes at each look, after these many looks.
    pub changes_after: Option<(u32, Change)>,
    pub looks: u32,
    /// How often it was asked whether a job is still there.
    pub asked_for_job: u32,
    /// Past the start limit: starts are refused until the failure is forgotten.
    pub limit_hit: bool,
    pub asked: Vec<String>,
    /// The properties of the last transient unit, as text.
    pub transient: String,
}

/// What happens to the unit by itself.
#[derive(Clone, Copy)]
pub enum Change {
    Restarted,
    MainReplaced,
    Failed,
    Stopped,
    Finished,
}

impl State {
    fn change(&mut self, change: Change) {
        match change {
            Change::Restarted => {
                self.restarts += 1;
                self.invocation += 1;
            }
            Change::MainReplaced => self.main_pid += 1,
            Change::Failed => {
                (self.active, self.sub, self.result, self.exit) = ("failed", "failed", "exit-code", 1);
            }
            Change::Stopped => (self.active, self.sub, self.result) = ("inactive", "dead", "success"),
            Change::Finished => {
                (self.active, self.sub, self.result, self.exit) = ("inactive", "dead", "success", 0);
            }
        }
    }

    fn start(&mut self) {
        self.invocation += 1;
        self.main_pid += 1;
        (self.active, self.sub, self.result) = self.started;
        self.exit = i32::from(self.active == "failed");
    }
}

/// The fake, and how it is reached.
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub systemd: Systemd,
    connections: Arc<Mutex<u32>>,
}

impl Fake {
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State {
            load: "loaded",
            active: "active",
            sub: "running",
            kind: "simple",
            result: "success",
            exit: 0,
            invocation: 1,
            main_pid: 100,
            restarts: 0,
            failure_action: "none",
            signal: Signal::AfterReply,
            job_result: "done",
            started: ("active", "running", "success"),
            changes_after: None,
            looks: 0,
            asked_for_job: 0,
            limit_hit: false,
            asked: Vec::new(),
            transient: String::new(),
        }));
        let connections = Arc::new(Mutex::new(0));
        let (shared, counted) = (state.clone(), connections.clone());
        let connector = Connector::new(move || {
            *counted.lock().unwrap() += 1;
            let shared = shared.clone();
            Box::pin(async move {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let server =
                    zbus::connection::Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
                let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
                let (server, client) = futures_util::try_join!(server, client)?;
                tokio::spawn(serve(server, shared));
                Ok(client)
            })
        });
        Self { state, systemd: Systemd::new(connector), connections }
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What was asked of the unit, without looks.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    pub fn connections(&self) -> u32 {
        *self.connections.lock().unwrap()
    }
}

async fn serve(connection: Connection, state: Arc<Mutex<State>>) {
    let mut calls = MessageStream::from(&connection);
    while let Some(Ok(call)) = calls.next().await {
        if call.message_type() != Type::MethodCall {
            continue;
        }
        let header = call.header();
        let member = header.member().unwrap().to_string();
        match member.as_str() {
            "Subscribe" | "RefUnit" => connection.reply(&header, &()).await.unwrap(),
            "LoadUnit" => connection.reply(&header, &path(UNIT_PATH)).await.unwrap(),
            "GetAll" => {
                let interface: String = call.body().deserialize().unwrap();
                let properties = properties(&state, &interface);
                connection.reply(&header, &properties).await.unwrap();
            }
            // Only jobs are asked for one property, and ours are over when the reply is there.
            "Get" => {
                state.lock().unwrap().asked_for_job += 1;
                let gone = "org.freedesktop.DBus.Error.UnknownObject";
                connection.reply_error(&header, gone, &"no such job").await.unwrap();
            }
            "ResetFailedUnit" => {
                forget_failure(&mut state.lock().unwrap(), member);
                connection.reply(&header, &()).await.unwrap();
            }
            "KillUnit" => {
                let (_, whom, signal): (String, String, i32) = call.body().deserialize().unwrap();
                state.lock().unwrap().asked.push(format!("{member} {whom} {signal}"));
                connection.reply(&header, &()).await.unwrap();
            }
            _ => {
                if !job(&connection, &call, &member, &state).await {
                    return;
                }
            }
        }
    }
}

fn forget_failure(state: &mut State, member: String) {
    state.limit_hit = false;
    if state.active == "failed" {
        (state.active, state.sub) = ("inactive", "dead");
    }
    state.asked.push(member);
}

/// Answers what makes a job. `false` when the connection was to end.
async fn job(connection: &Connection, call: &Message, member: &str, state: &Mutex<State>) -> bool {
    let (signal, result) = {
        let mut state = state.lock().unwrap();
        state.asked.push(member.to_owned());
        if member == "StartTransientUnit" {
            state.transient = format!("{:?}", texts_of(call));
        }
        let starts = match member {
            "TryRestartUnit" | "ReloadOrTryRestartUnit" => state.active == "active",
            "StartUnit" => true,
            _ => false,
        };
        if starts && member != "ReloadOrTryRestartUnit" {
            if state.limit_hit {
                state.job_result = "failed";
            } else {
                state.start();
            }
        }
        (state.signal, state.job_result)
    };
    let job = path("/org/freedesktop/systemd1/job/7");
    let removed = (7_u32, job.clone(), "orders.service", result);
    let header = call.header();
    // Somebody else's job, and one that is malformed, are passed over.
    let other = (8_u32, path("/org/freedesktop/systemd1/job/8"), "other.service", "failed");
    let no_one = None::<&str>;
    connection.emit_signal(no_one, PATH, MANAGER, "JobRemoved", &other).await.unwrap();
    connection.emit_signal(no_one, PATH, MANAGER, "JobRemoved", &"nonsense").await.unwrap();
    if signal == Signal::BeforeReply {
        connection.emit_signal(no_one, PATH, MANAGER, "JobRemoved", &removed).await.unwrap();
    }
    if signal == Signal::ConnectionEnds {
        state.lock().unwrap().signal = Signal::AfterReply;
        connection.clone().close().await.unwrap();
        return false;
    }
    connection.reply(&header, &job).await.unwrap();
    if signal == Signal::AfterReply {
        connection.emit_signal(no_one, PATH, MANAGER, "JobRemoved", &removed).await.unwrap();
    }
    true
}

fn texts_of(call: &Message) -> Vec<(String, String)> {
    type Body =
        (String, String, Vec<(String, zbus::OwnedVariant)>, Vec<(String, Vec<(String, zbus::OwnedVariant)>)>);
    let body = call.body();
    let (_, _, properties, _): Body = body.deserialize().unwrap();
    properties.into_iter().map(|(key, value)| (key, format!("{value:?}"))).collect()
}

fn properties(state: &Mutex<State>, interface: &str) -> HashMap<&'static str, Variant<'static>> {
    let mut state = state.lock().unwrap();
    if interface.ends_with(".Unit") {
        state.looks += 1;
        if let Some((after, change)) = state.changes_after
            && state.looks > after
        {
            state.changes_after = None;
            state.change(change);
        }
        let invocation = if state.invocation == 0 { Vec::new() } else { vec![state.invocation; 16] };
        return HashMap::from([
            ("LoadState", state.load.into()),
            ("ActiveState", state.active.into()),
            ("SubState", state.sub.into()),
            ("FailureAction", state.failure_action.into()),
            ("InvocationID", invocation.into()),
        ]);
    }
    let runs = state.active == "active";
    HashMap::from([
        ("Type", state.kind.into()),
        ("Result", state.result.into()),
        ("ExecMainStatus", state.exit.into()),
        ("MainPID", (if runs { state.main_pid } else { 0 }).into()),
        ("NRestarts", state.restarts.into()),
    ])
}

fn path(text: &str) -> OwnedObjectPath {
    text.try_into().unwrap()
}
