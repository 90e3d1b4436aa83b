//! A small server to log in to, for machines without any PostgreSQL: HTTPS with an authority of its own, versions
//! minted and revoked by the `Webhook` generator, and a log of every login that the judge reads.
//!
//! A login is `POST /login` with a name and a password; the connection that made it is the session. Of a password only a
//! salted digest is kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use aws_lc_rs::{digest, rand};
use axum::extract::{Path as InPath, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::{Value, json};
use tests_services::{Certificate, Login};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use crate::https;
use crate::launcher::{self, Program};
use crate::programs::Programs;

/// How long it may take until it answers.
const READY_WAIT: Duration = Duration::from_secs(30);

/// One version, as the server knows it.
struct Known {
    mark: String,
    username: String,
    salt: [u8; 16],
    verifier: Vec<u8>,
    /// By connection, what ends it.
    sessions: BTreeMap<u64, Arc<Notify>>,
}

impl Known {
    fn accepts(&self, username: &str, password: &str) -> bool {
        self.username == username && self.verifier == verifier(&self.salt, password)
    }
}

fn verifier(salt: &[u8], password: &str) -> Vec<u8> {
    let salted = [salt, password.as_bytes()].concat();
    digest::digest(&digest::SHA256, &salted).as_ref().to_vec()
}

struct Books {
    /// By the effect that minted it.
    known: BTreeMap<String, Known>,
    log: File,
}

impl Books {
    fn note(&mut self, connection: &Connection, user: &str, accepted: bool) -> anyhow::Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let login = Login {
            at_ms: u64::try_from(since.as_millis())?,
            client: Some(connection.client),
            user: user.to_owned(),
            accepted,
        };
        Ok(self.log.write_all(login.line(connection.number).as_bytes())?)
    }
}

struct Shared {
    books: Mutex<Books>,
    bearer: String,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, which is a session once somebody logged in on it.
#[derive(Clone)]
struct Connection {
    number: u64,
    client: IpAddr,
    end: Arc<Notify>,
    shared: Arc<Shared>,
}

type Refusal = (StatusCode, Json<Value>);

fn refusal(status: StatusCode, message: &str) -> Refusal {
    (status, Json(json!({"message": message})))
}

#[derive(Deserialize)]
struct Who {
    username: String,
    password: String,
}

#[derive(Deserialize)]
struct Minting {
    mark: String,
    value: Who,
}

#[derive(Deserialize)]
struct Verifying {
    value: Who,
}

async fn log_in(State(connection): State<Connection>, Json(who): Json<Who>) -> Result<(), Refusal> {
    let mut books = connection.shared.books();
    let known = books.known.values_mut().find(|known| known.accepts(&who.username, &who.password));
    let accepted = known.is_some();
    if let Some(known) = known {
        known.sessions.insert(connection.number, connection.end.clone());
    }
    if books.note(&connection, &who.username, accepted).is_err() {
        return Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "the log cannot be written"));
    }
    if accepted {
        return Ok(());
    }
    Err(refusal(StatusCode::UNAUTHORIZED, &format!("no login for user \"{}\"", who.username)))
}

async fn only_with_the_bearer(
    State(connection): State<Connection>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let said = request.headers().get("authorization").and_then(|said| said.to_str().ok());
    if said != Some(&format!("Bearer {}", connection.shared.bearer)) {
        return Err(refusal(StatusCode::UNAUTHORIZED, "the bearer token is not known here"));
    }
    Ok(next.run(request).await)
}

async fn mint(
    State(connection): State<Connection>,
    InPath(effect): InPath<String>,
    Json(minting): Json<Minting>,
) -> Result<Json<Value>, Refusal> {
    let mut books = connection.shared.books();
    let Who { username, password } = minting.value;
    match books.known.get(&effect) {
        Some(known) if known.accepts(&username, &password) => return Ok(Json(json!({}))),
        Some(_) => return Err(refusal(StatusCode::CONFLICT, "this effect minted another version")),
        None => {}
    }
    let mut salt = [0; 16];
    if rand::fill(&mut salt).is_err() {
        return Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "no randomness"));
    }
    let verifier = verifier(&salt, &password);
    let known = Known { mark: minting.mark, username, salt, verifier, sessions: BTreeMap::new() };
    books.known.insert(effect, known);
    Ok(Json(json!({})))
}

async fn verify(
    State(connection): State<Connection>,
    InPath(effect): InPath<String>,
    Json(Verifying { value }): Json<Verifying>,
) -> Json<Value> {
    let books = connection.shared.books();
    let known = books.known.get(&effect);
    Json(json!({"accepted": known.is_some_and(|known| known.accepts(&value.username, &value.password))}))
}

fn unknown() -> Refusal {
    refusal(StatusCode::NOT_FOUND, "no version of this effect")
}

async fn sessions(
    State(connection): State<Connection>,
    InPath(effect): InPath<String>,
) -> Result<Json<Value>, Refusal> {
    let books = connection.shared.books();
    let known = books.known.get(&effect).ok_or_else(unknown)?;
    Ok(Json(json!({"sessions": known.sessions.len()})))
}

async fn end_sessions(
    State(connection): State<Connection>,
    InPath(effect): InPath<String>,
) -> Result<(), Refusal> {
    let books = connection.shared.books();
    let known = books.known.get(&effect).ok_or_else(unknown)?;
    known.sessions.values().for_each(|end| end.notify_one());
    Ok(())
}

async fn revoke(State(connection): State<Connection>, InPath(effect): InPath<String>) -> Result<(), Refusal> {
    let known = connection.shared.books().known.remove(&effect).ok_or_else(unknown)?;
    known.sessions.values().for_each(|end| end.notify_one());
    Ok(())
}

async fn list(
    State(connection): State<Connection>,
    Query(_installation): Query<BTreeMap<String, String>>,
) -> Json<Value> {
    let books = connection.shared.books();
    let known = books.known.values().map(|known| json!({"mark": known.mark, "name": known.username}));
    Json(json!({"credentials": known.collect::<Vec<_>>()}))
}

fn router(connection: Connection) -> Router {
    let minting = Router::new()
        .route("/preflight", post(async || {}))
        .route("/credentials", get(list))
        .route("/credentials/{effect}", put(mint).delete(revoke))
        .route("/credentials/{effect}/verify", post(verify))
        .route("/credentials/{effect}/sessions", get(sessions).delete(end_sessions))
        .layer(middleware::from_fn_with_state(connection.clone(), only_with_the_bearer));
    Router::new().nest("/eso", minting).route("/login", post(log_in)).with_state(connection)
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, connection: Connection) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = TowerToHyperService::new(router(connection.clone()));
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = serving => drop(served),
        () = connection.end.notified() => {}
    }
    for known in connection.shared.books().known.values_mut() {
        known.sessions.remove(&connection.number);
    }
}

/// Where the server writes what clients need.
struct Files(PathBuf);

impl Files {
    fn authority(&self) -> PathBuf {
        self.0.join("authority.pem")
    }

    fn log(&self) -> PathBuf {
        self.0.join("logins.log")
    }

    fn bearer(&self) -> PathBuf {
        self.0.join("bearer")
    }

    /// Written last: who finds it there can connect.
    fn address(&self) -> PathBuf {
        self.0.join("address")
    }
}

/// Serves until it is killed. The bearer token stands in the directory already.
pub async fn run(directory: PathBuf) -> anyhow::Result<()> {
    let files = Files(directory);
    let certificate = Certificate::new()?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(transport::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?,
        )?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    std::fs::write(files.authority(), &certificate.authority)?;
    let shared = Arc::new(Shared {
        books: Mutex::new(Books { known: BTreeMap::new(), log: File::create(files.log())? }),
        bearer: std::fs::read_to_string(files.bearer()).context("failed to read the bearer token")?,
    });
    let unfinished = files.address().with_extension("new");
    std::fs::write(&unfinished, listener.local_addr()?.to_string())?;
    std::fs::rename(unfinished, files.address())?;
    let mut number = 0;
    loop {
        let Ok((stream, client)) = listener.accept().await else { continue };
        number += 1;
        let end = Arc::new(Notify::new());
        let connection = Connection { number, client: client.ip(), end, shared: shared.clone() };
        tokio::spawn(serve(stream, acceptor.clone(), connection));
    }
}

/// The server as a process of its own, from outside. Ended when it is dropped.
pub struct LoginServer {
    // Ended before its directory is removed.
    _launcher: launcher::Handle,
    files: Files,
    address: SocketAddr,
    bearer: String,
    _directory: tempfile::TempDir,
}

impl LoginServer {
    /// Starts it and waits until it can be asked.
    pub fn start(programs: &Programs) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("eso-logins-").tempdir()?;
        let files = Files(directory.path().to_owned());

        let bearer = crate::protected::random()?;
        std::fs::write(files.bearer(), &bearer)?;
        let mut launcher = launcher::Handle::spawn(&programs.path("demo-launcher"), false)?;
        launcher.ask(&launcher::Command::Start(Program {
            name: "login-server".into(),
            argv: vec![programs.text("demo-login-server"), directory.path().display().to_string()],
            env: [].into(),
            respawn: false,
            keeps_descriptors: false,
            log: directory.path().join("server.log"),
        }))?;
        let deadline = Instant::now() + READY_WAIT;
        let address = loop {
            if let Ok(address) = std::fs::read_to_string(files.address()) {
                break address.parse()?;
            }
            crate::interrupt::check()?;
            if Instant::now() > deadline {
                bail!("the login server did not listen within {} s", READY_WAIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Self { _launcher: launcher, files, address, bearer, _directory: directory })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the authority to trust.
    pub fn authority(&self) -> PathBuf {
        self.files.authority()
    }

    /// Its log of logins.
    pub fn log(&self) -> PathBuf {
        self.files.log()
    }

    /// Everything that it wrote.
    pub fn directory(&self) -> &Path {
        &self.files.0
    }

    /// The file with the token of whoever may mint.
    pub fn bearer(&self) -> PathBuf {
        self.files.bearer()
    }

    /// A version made by hand, as people do it.
    pub fn mint(&self, username: &str, password: &str) -> anyhow::Result<()> {
        let value = json!({"username": username, "password": password});
        self.ask(Method::PUT, username, Some(&json!({"mark": "by hand", "value": value})))
    }

    /// A version revoked by hand.
    pub fn revoke(&self, username: &str) -> anyhow::Result<()> {
        self.ask(Method::DELETE, username, None)
    }

    fn ask(&self, method: Method, effect: &str, body: Option<&Value>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let from = crate::protected::PROBE;
            let mut connection = https::Connection::open(from, self.address, &self.authority())
                .await?
                .with_bearer(&self.bearer);
            let answer = connection.ask(method, &format!("/eso/credentials/{effect}"), body).await?;
            if !answer.status.is_success() {
                bail!("the login server answers {}: {}", answer.status, https::message(&answer.body));
            }
            Ok(())
        })
    }
}
