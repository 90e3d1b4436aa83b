//! The protected server and judge: it mints and revokes for the `Webhook` generator, lets applications log in, and
//! remembers everybody whom it refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// How many versions the server holds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// As many as it is asked for.
    Versions,
    /// Two users: a third version takes the place of the first.
    Pair,
}

/// What is done to the requests of the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Each one fails the first time that it is asked, with nothing done.
    RefusedOnce,
    /// Of each one the first answer is lost, after it was done.
    UnansweredOnce,
}

/// The server. It runs as long as the runtime.
#[derive(Clone)]
pub struct LoginServer {
    inner: Arc<Mutex<Inner>>,
    http: SocketAddr,
    logins: SocketAddr,
    overlap: Overlap,
}

struct Inner {
    accounts: BTreeMap<String, Account>,
    overlap: Overlap,
    /// Of a pair: the effects on its two users, the older one first.
    pair: Vec<String>,
    trouble: Trouble,
    troubled: BTreeSet<String>,
    told: Told,
    /// Of each version that it made the effect and the password, in order.
    values: Vec<(String, String)>,
}

struct Account {
    mark: String,
    username: String,
    password: String,
    sessions: u32,
}

/// What the server has seen.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Logins that were let in.
    pub accepted: u64,
    /// Who was refused: the name, and what the server knew of it.
    pub refused: Vec<String>,
    /// Versions that it made.
    pub minted: u32,
    /// Versions that it forgot.
    pub revoked: u32,
    /// The most versions that it let in at one time.
    pub alive_max: usize,
    /// What nobody may ask of it.
    pub wrong: Vec<String>,
}

impl LoginServer {
    /// Starts it on the loopback interface.
    pub fn start(overlap: Overlap, runtime: &Handle) -> anyhow::Result<Self> {
        let inner = Inner {
            accounts: BTreeMap::new(),
            overlap,
            pair: Vec::new(),
            trouble: Trouble::None,
            troubled: BTreeSet::new(),
            told: Told::default(),
            values: Vec::new(),
        };
        let inner = Arc::new(Mutex::new(inner));
        let _inside = runtime.enter();
        let (http, logins) = (listener()?, listener()?);
        let server = Self { inner, http: http.local_addr()?, logins: logins.local_addr()?, overlap };
        runtime.spawn(serve_http(http, server.clone()));
        runtime.spawn(serve_logins(logins, server.clone()));
        Ok(server)
    }

    /// Where applications log in: one line `USER PASSWORD`, answered `ok` or `no`. A session lasts as long as its
    /// connection.
    pub const fn logins(&self) -> SocketAddr {
        self.logins
    }

    /// The generator that asks it, as a resource.
    pub fn generator(&self, name: &str) -> String {
        let (overlap, chooses) = match self.overlap {
            Overlap::Versions => ("versions", "client"),
            Overlap::Pair => ("pair", "server"),
        };
        format!(
            "apiVersion: generators.external-secrets.io/v1alpha1\nkind: Webhook\nmetadata: {{ name: {name} }}\n\
             spec: {{ url: 'http://{}', tls: disable, overlap: {overlap}, chooses: {chooses} }}\n",
            self.http
        )
    }

    /// What is done to requests from now on; what was done before is forgotten.
    pub fn trouble(&self, trouble: Trouble) {
        let mut inner = self.lock();
        inner.trouble = trouble;
        inner.troubled.clear();
    }

    /// The effects of all versions that it lets in.
    pub fn alive(&self) -> BTreeSet<String> {
        self.lock().accounts.keys().cloned().collect()
    }

    /// The passwords of all versions that it ever made, in order, each with a name that may be shown.
    pub fn values(&self) -> Vec<(String, String)> {
        self.lock().values.clone()
    }

    /// What it has seen.
    pub fn told(&self) -> Told {
        self.lock().told.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listener() -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

impl Inner {
    fn mint(&mut self, effect: &str, body: &Value) -> Result<Value, String> {
        let asked = |field: &str| body["value"][field].as_str().map(str::to_owned);
        if let Some(known) = self.accounts.get(effect) {
            if asked("password").is_some_and(|password| password != known.password) {
                self.told.wrong.push(format!("{effect} was minted twice, with two values"));
                return Err("the name is taken".to_owned());
            }
            return Ok(json!({"value": {"username": known.username, "password": known.password}}));
        }
        let number = self.told.minted;
        self.told.minted += 1;
        if self.overlap == Overlap::Pair {
            self.pair.push(effect.to_owned());
            if self.pair.len() > 2 {
                let replaced = self.pair.remove(0);
                let in_use = self.accounts.remove(&replaced).is_some_and(|account| account.sessions > 0);
                if in_use {
                    self.told.wrong.push(format!("{replaced} had sessions when it was replaced"));
                }
            }
        }
        let account = Account {
            mark: body["mark"].as_str().unwrap_or_default().to_owned(),
            username: asked("username").unwrap_or_else(|| format!("user_{}", number % 2)),
            password: asked("password").unwrap_or_else(random),
            sessions: 0,
        };
        let value = json!({"value": {"username": account.username, "password": account.password}});
        self.values.push((format!("the password of {effect}"), account.password.clone()));
        self.accounts.insert(effect.to_owned(), account);
        self.told.alive_max = self.told.alive_max.max(self.accounts.len());
        Ok(value)
    }

    /// The effect that a login belongs to.
    fn login(&mut self, username: &str, password: &str) -> Option<String> {
        let matches = |account: &Account| account.username == username && account.password == password;
        let found = self.accounts.iter_mut().find(|(_, account)| matches(account));
        if let Some((effect, account)) = found {
            account.sessions += 1;
            self.told.accepted += 1;
            return Some(effect.clone());
        }
        let known = self.accounts.values().any(|account| account.username == username);
        let why = if known { "another password" } else { "no such user" };
        self.told.refused.push(format!("{username}: {why}"));
        None
    }

    fn ended(&mut self, effect: &str) {
        if let Some(account) = self.accounts.get_mut(effect) {
            account.sessions = account.sessions.saturating_sub(1);
        }
    }
}

/// 32 characters that appear nowhere by chance: the hashers of the standard library are seeded by the system.
fn random() -> String {
    let drawn = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
    format!("{:016x}{:016x}", drawn(), drawn())
}

type Refusal = (StatusCode, Json<Value>);

async fn serve_http(listener: TcpListener, server: LoginServer) {
    let router = Router::new()
        .route("/preflight", post(async || {}))
        .route("/credentials", get(marked))
        .route("/credentials/{effect}", put(mint).delete(revoke))
        .route("/credentials/{effect}/verify", post(verify))
        .route("/credentials/{effect}/sessions", get(sessions).delete(async || {}))
        .layer(from_fn_with_state(server.clone(), troubled))
        .with_state(server);
    if let Err(error) = axum::serve(listener, router).await {
        eprintln!("the login server ended: {error}");
    }
}

async fn troubled(State(server): State<LoginServer>, request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri());
    let trouble = {
        let mut inner = server.lock();
        let first = inner.trouble != Trouble::None && inner.troubled.insert(what);
        if first { inner.trouble } else { Trouble::None }
    };
    let away = || (StatusCode::SERVICE_UNAVAILABLE, "not this time").into_response();
    match trouble {
        Trouble::None => next.run(request).await,
        Trouble::RefusedOnce => away(),
        Trouble::UnansweredOnce => {
            drop(next.run(request).await);
            away()
        }
    }
}

async fn mint(
    State(server): State<LoginServer>,
    Path(effect): Path<String>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, Refusal> {
    let minted = server.lock().mint(&effect, &body);
    minted.map(Json).map_err(|message| (StatusCode::CONFLICT, Json(json!({"message": message}))))
}

async fn verify(
    State(server): State<LoginServer>,
    Path(effect): Path<String>,
    Json(body): Json<Value>,
) -> Json<Value> {
    let inner = server.lock();
    let accepted = inner.accounts.get(&effect).is_some_and(|account| {
        body["value"]["username"] == account.username.as_str()
            && body["value"]["password"] == account.password.as_str()
    });
    Json(json!({"accepted": accepted}))
}

async fn sessions(State(server): State<LoginServer>, Path(effect): Path<String>) -> Json<Value> {
    let sessions = server.lock().accounts.get(&effect).map_or(0, |account| account.sessions);
    Json(json!({"sessions": sessions}))
}

async fn revoke(State(server): State<LoginServer>, Path(effect): Path<String>) -> StatusCode {
    let mut inner = server.lock();
    if inner.accounts.remove(&effect).is_none() {
        return StatusCode::NOT_FOUND;
    }
    inner.pair.retain(|of| *of != effect);
    inner.told.revoked += 1;
    StatusCode::OK
}

async fn marked(
    State(server): State<LoginServer>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let inner = server.lock();
    let installation = asked.get("installation").cloned().unwrap_or_default();
    let ours = inner.accounts.values().filter(|account| account.mark.contains(&installation));
    let ours: Vec<Value> =
        ours.map(|account| json!({"mark": account.mark, "name": account.username})).collect();
    Json(json!({ "credentials": ours }))
}

async fn serve_logins(listener: TcpListener, server: LoginServer) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(session(stream, server.clone()));
        }
    }
}

async fn session(stream: TcpStream, server: LoginServer) {
    let (reads, mut writes) = stream.into_split();
    let mut lines = BufReader::new(reads).lines();
    let Ok(Some(line)) = lines.next_line().await else { return };
    let (username, password) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let effect = server.lock().login(username, password);
    let answer: &[u8] = if effect.is_some() { b"ok\n" } else { b"no\n" };
    if writes.write_all(answer).await.is_ok() && effect.is_some() {
        // Until the other end goes.
        while let Ok(Some(_)) = lines.next_line().await {}
    }
    if let Some(effect) = effect {
        server.lock().ended(&effect);
    }
}
