//! The webhook generator against a login service over HTTPS: one that holds as many versions as it is asked for, and
//! one with a pair of users, where minting N+2 is revoking N.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use backends::{Failure, Generator, Mark, SecretValue, SecretsDirectory, build};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use lifecycle::credential::Overlap;
use lifecycle::id::{EffectId, Epoch};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_canary::Canaries;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const BEARER: &str = "a-bearer-token";

/// What the service remembers of one version.
#[derive(Clone)]
struct Known {
    mark: String,
    username: String,
    password: String,
    sessions: u32,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<String, Known>,
    /// For a pair: which effects hold its two users, the older one first.
    pair: Option<Vec<String>>,
    mints: u32,
    /// It lists nothing.
    forgetful: bool,
    /// It takes a revocation and does nothing.
    lazy: bool,
    broken: Option<(u16, String)>,
}

type Service = Arc<Mutex<Inner>>;
type Refusal = (StatusCode, Json<Value>);

fn allowed(service: &Service, headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.get("authorization").and_then(|header| header.to_str().ok())
        != Some(&format!("Bearer {BEARER}"))
    {
        return Err((StatusCode::UNAUTHORIZED, Json(json!({"message": "who are you?"}))));
    }
    match &service.lock().unwrap().broken {
        Some((status, message)) => Err((
            StatusCode::from_u16(*status).unwrap(),
            Json(json!({"message": message, "secret": "not for the log"})),
        )),
        None => Ok(()),
    }
}

async fn preflight(State(service): State<Service>, headers: HeaderMap) -> Result<(), Refusal> {
    allowed(&service, &headers)
}

async fn mint(
    State(service): State<Service>,
    Path(effect): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Json<Value>, Refusal> {
    allowed(&service, &headers)?;
    let mut inner = service.lock().unwrap();
    let is_new = !inner.known.contains_key(&effect);
    if is_new {
        inner.mints += 1;
        let mints = inner.mints;
        let text = |key: &str| body["value"][key].as_str().map(str::to_owned);
        let username = match &mut inner.pair {
            Some(pair) => {
                pair.push(effect.clone());
                let dead = (pair.len() > 2).then(|| pair.remove(0));
                dead.map(|dead| inner.known.remove(&dead));
                format!("user-{}", mints % 2)
            }
            None => text("username").unwrap_or_else(|| format!("chosen-{mints}")),
        };
        let password = text("password").unwrap_or_else(|| format!("drawn-{mints}"));
        let mark = body["mark"].as_str().unwrap().to_owned();
        inner.known.insert(effect.clone(), Known { mark, username, password, sessions: 1 });
    }
    let known = &inner.known[&effect];
    Ok(Json(json!({"value": {"username": known.username, "password": known.password}})))
}

async fn verify(
    State(service): State<Service>,
    Path(effect): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Json<Value>, Refusal> {
    allowed(&service, &headers)?;
    let inner = service.lock().unwrap();
    let accepted = inner.known.get(&effect).is_some_and(|known| {
        body["value"]["username"] == known.username.as_str()
            && body["value"]["password"] == known.password.as_str()
    });
    Ok(Json(json!({"accepted": accepted})))
}

async fn sessions(
    State(service): State<Service>,
    Path(effect): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    allowed(&service, &headers)?;
    match service.lock().unwrap().known.get(&effect) {
        Some(known) => Ok(Json(json!({"sessions": known.sessions}))),
        None => Ok(Json(json!({"sessions": 0}))),
    }
}

async fn end_sessions(
    State(service): State<Service>,
    Path(effect): Path<String>,
    headers: HeaderMap,
) -> Result<(), Refusal> {
    allowed(&service, &headers)?;
    if let Some(known) = service.lock().unwrap().known.get_mut(&effect) {
        known.sessions = 0;
    }
    Ok(())
}

async fn revoke(
    State(service): State<Service>,
    Path(effect): Path<String>,
    headers: HeaderMap,
) -> Result<(), Refusal> {
    allowed(&service, &headers)?;
    let mut inner = service.lock().unwrap();
    if inner.lazy {
        return Ok(());
    }
    match inner.known.remove(&effect) {
        Some(_) => Ok(()),
        None => Err((StatusCode::NOT_FOUND, Json(json!({})))),
    }
}

async fn list(
    State(service): State<Service>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    allowed(&service, &headers)?;
    let wanted = |effect: &str| match query.get("effect") {
        Some(wanted) => wanted == effect,
        None => query["installation"] == "test",
    };
    let inner = service.lock().unwrap();
    let known = inner.known.iter().filter(|(effect, _)| wanted(effect) && !inner.forgetful);
    let known = known.map(|(_, known)| json!({"mark": known.mark, "name": known.username}));
    Ok(Json(json!({"credentials": known.collect::<Vec<_>>()})))
}

fn router(service: Service) -> Router {
    Router::new()
        .route("/eso/preflight", post(preflight))
        .route("/eso/credentials", get(list))
        .route("/eso/credentials/{effect}", put(mint).delete(revoke))
        .route("/eso/credentials/{effect}/verify", post(verify))
        .route("/eso/credentials/{effect}/sessions", get(sessions).delete(end_sessions))
        .with_state(service)
}

/// The service, listening with a certificate of its own.
struct Scene {
    service: Service,
    address: SocketAddr,
    ca_pem: String,
    secrets: TempDir,
    listening: JoinHandle<()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Scene {
    async fn new() -> Self {
        let service = Service::default();
        Self::serving(service.clone(), router(service)).await
    }

    async fn serving(service: Service, router: Router) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(transport::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = TowerToHyperService::new(router);
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    drop(serving.await);
                });
            }
        });
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("bearer"), BEARER).unwrap();
        Self { service, address, ca_pem: certified.cert.pem(), secrets, listening }
    }

    fn generator(&self, change: impl FnOnce(&mut Value)) -> Arc<dyn Generator> {
        let mut spec = json!({
            "url": format!("https://{}/eso", self.address),
            "tls": {"caBundle": self.ca_pem},
            "auth": {"bearerSecretRef": {"file": "bearer"}},
            "username": "orders",
            "timeoutSeconds": 2,
        });
        change(&mut spec);
        build("Webhook", &spec, Arc::new(SecretsDirectory::new(self.secrets.path()))).unwrap()
    }
}

fn mark(effect: u128) -> Mark {
    Mark { installation: "test".to_owned(), epoch: Epoch { counter: 1, id: 7 }, effect: EffectId(effect) }
}

#[tokio::test]
async fn a_version_lives_and_dies() {
    let scene = Scene::new().await;
    let generator = scene.generator(|_| {});
    generator.preflight(&mark(9)).await.unwrap();
    let value = generator.new_value(EffectId(1)).unwrap();
    for _ in 0..2 {
        assert!(generator.mint(&mark(1), &value).await.unwrap().is_none());
    }
    assert_eq!(scene.service.lock().unwrap().mints, 1, "the effect's id is the idempotency key");
    generator.verify(EffectId(1), &value).await.unwrap();
    assert_eq!(generator.sessions(EffectId(1), Some(&value)).await.unwrap(), Some(1));
    generator.end_sessions(EffectId(1), Some(&value)).await.unwrap();
    assert_eq!(generator.sessions(EffectId(1), Some(&value)).await.unwrap(), Some(0));
    let orphans = generator.orphans("test").await.unwrap();
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].mark, mark(1));
    for _ in 0..2 {
        generator.revoke(EffectId(1), Some(&value)).await.unwrap();
    }
    generator.revoke(EffectId(1), None).await.unwrap();
    assert!(matches!(generator.verify(EffectId(1), &value).await, Err(Failure::Refused(_))));
    assert_eq!(generator.sessions(EffectId(1), None).await.unwrap(), Some(0));
}

/// Whatever the service says of what it does not have: it moved, and somebody else answers there now.
#[tokio::test]
async fn a_404_proves_nothing() {
    let scene = Scene::serving(Service::default(), Router::new()).await;
    let generator = scene.generator(|_| {});
    let value = generator.new_value(EffectId(1)).unwrap();
    let refused = |failure: Failure| {
        assert!(
            matches!(&failure, Failure::Refused(words) if words.contains("404") && words.contains("`url`"))
        );
    };
    refused(generator.preflight(&mark(1)).await.unwrap_err());
    refused(generator.mint(&mark(1), &value).await.err().unwrap());
    refused(generator.verify(EffectId(1), &value).await.unwrap_err());
    refused(generator.sessions(EffectId(1), Some(&value)).await.unwrap_err());
    refused(generator.sessions(EffectId(1), None).await.unwrap_err());
    refused(generator.end_sessions(EffectId(1), Some(&value)).await.unwrap_err());
    refused(generator.revoke(EffectId(1), Some(&value)).await.unwrap_err());
    refused(generator.revoke(EffectId(1), None).await.unwrap_err());
    refused(generator.orphans("test").await.unwrap_err());
}

/// Each half of the proof alone is not enough.
#[tokio::test]
async fn a_revocation_is_proved_by_a_listing_and_by_a_login() {
    // It lists nothing, and answers 404 to a verification: the login is not known to be refused.
    let lists = get(|| async { Json(json!({"credentials": []})) });
    let scene = Scene::serving(Service::default(), Router::new().route("/eso/credentials", lists)).await;
    let generator = scene.generator(|_| {});
    let value = generator.new_value(EffectId(1)).unwrap();
    assert!(matches!(generator.revoke(EffectId(1), Some(&value)).await, Err(Failure::Refused(_))));

    // It says that it revoked, and did not.
    let scene = Scene::new().await;
    let generator = scene.generator(|_| {});
    let value = generator.new_value(EffectId(1)).unwrap();
    generator.mint(&mark(1), &value).await.unwrap();
    scene.service.lock().unwrap().lazy = true;
    for value in [Some(&value), None] {
        let failure = generator.revoke(EffectId(1), value).await.unwrap_err();
        assert!(matches!(&failure, Failure::Retry(words) if words.contains("still lists")), "{failure}");
    }
    scene.service.lock().unwrap().forgetful = true;
    let failure = generator.revoke(EffectId(1), Some(&value)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Retry(words) if words.contains("still accepts")), "{failure}");

    // It could never prove it: that is said while nobody uses the version yet.
    let failure = generator.mint(&mark(2), &value).await.err().unwrap();
    assert!(matches!(&failure, Failure::Retry(words) if words.contains("does not list")), "{failure}");
}

#[tokio::test]
async fn a_pair_holds_two_and_says_so() {
    let scene = Scene::new().await;
    scene.service.lock().unwrap().pair = Some(Vec::new());
    let generator = scene.generator(|spec| {
        spec["overlap"] = json!("pair");
        spec["chooses"] = json!("server");
    });
    assert_eq!(generator.overlap(), Overlap::Pair);
    assert!(generator.new_value(EffectId(1)).unwrap().is_empty(), "the service chooses");
    let mut values = Vec::new();
    for effect in 1..=3 {
        let chosen = generator.mint(&mark(effect), &SecretValue::new()).await.unwrap().unwrap();
        // Asked again after a crash: the same value.
        let again = generator.mint(&mark(effect), &SecretValue::new()).await.unwrap().unwrap();
        assert!(again.same_as(&chosen));
        values.push(chosen);
    }
    assert_eq!(values[0].expose("username"), values[2].expose("username"), "two users take turns");
    assert!(
        generator.verify(EffectId(1), &values[0]).await.is_err(),
        "minting the third was revoking the first"
    );
    generator.verify(EffectId(2), &values[1]).await.unwrap();
    generator.verify(EffectId(3), &values[2]).await.unwrap();
    generator.revoke(EffectId(1), Some(&values[0])).await.unwrap();
}

#[tokio::test]
async fn what_needs_an_operator_is_told_apart_from_what_passes() {
    let scene = Scene::new().await;
    let generator = scene.generator(|_| {});
    for (status, is_refused) in
        [(400, true), (403, true), (409, true), (422, true), (429, false), (500, false), (503, false)]
    {
        scene.service.lock().unwrap().broken = Some((status, "no\u{1b}[31m more users".to_owned()));
        let failure = generator.preflight(&mark(1)).await.unwrap_err();
        assert_eq!(matches!(failure, Failure::Refused(_)), is_refused, "{status}");
        assert!(failure.words().contains("more users") && !failure.words().contains('\u{1b}'), "{failure}");
        assert!(!failure.words().contains("not for the log"));
    }
    scene.service.lock().unwrap().broken = None;
    std::fs::write(scene.secrets.path().join("bearer"), "wrong").unwrap();
    assert!(
        matches!(generator.preflight(&mark(1)).await, Err(Failure::Refused(words)) if words.contains("`auth`"))
    );
    std::fs::write(scene.secrets.path().join("bearer"), BEARER).unwrap();
    generator.preflight(&mark(1)).await.unwrap();

    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let suspicious = scene.generator(|spec| spec["tls"] = json!({"caBundle": stranger.cert.pem()}));
    assert!(matches!(suspicious.preflight(&mark(1)).await, Err(Failure::Retry(_))));
}

/// A service that repeats what it was told, as many do of a password that they find too weak. What it says ends in the
/// audit log, which is for ever.
#[tokio::test]
async fn what_a_service_repeats_of_a_value_or_of_our_login_goes_nowhere() {
    use base64::Engine as _;
    let scene = Scene::new().await;
    let generator = scene.generator(|_| {});
    let value = generator.new_value(EffectId(1)).unwrap();
    let password = value.expose_text("password").unwrap();
    let canaries = Canaries::new([("the password", password), ("our token", BEARER)]).unwrap();
    let mut said = Vec::new();
    for secret in [password, BEARER] {
        let wide = secret.chars().flat_map(|character| ['\0', character]).collect::<String>();
        let forms = [
            secret.to_owned(),
            secret.to_uppercase(),
            secret[..12].to_owned(),
            format!("{}\n{}", &secret[..7], &secret[7..]),
            wide,
            hex::encode(secret),
            secret.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat(),
            base64::engine::general_purpose::STANDARD.encode(format!("user:{secret}")),
            format!("{:?}", secret.as_bytes()),
            format!("{}{secret}", "so weak ".repeat(49)),
        ];
        for form in forms {
            let message = format!("the password {form} is too weak");
            for status in [403, 422, 500] {
                scene.service.lock().unwrap().broken = Some((status, message.clone()));
                said.extend([
                    generator.mint(&mark(1), &value).await.err().map(|failure| failure.to_string()),
                    generator.verify(EffectId(1), &value).await.err().map(|failure| failure.to_string()),
                    generator.sessions(EffectId(1), Some(&value)).await.err().map(|why| why.to_string()),
                    generator.end_sessions(EffectId(1), Some(&value)).await.err().map(|why| why.to_string()),
                    generator.revoke(EffectId(1), Some(&value)).await.err().map(|why| why.to_string()),
                ]);
            }
        }
    }
    let said: Vec<String> = said.into_iter().map(|failure| failure.expect("it refuses everything")).collect();
    for words in &said {
        assert_eq!(canaries.in_bytes("what the service said", words), [], "found above");
        assert!(!words.to_lowercase().contains(&password[..12].to_lowercase()));
        assert!(words.chars().count() <= 1000);
    }
    // What it has to say otherwise is said.
    assert!(said.iter().any(|words| words.contains("is too weak")));

    // Where it chooses, only it knows what must not be repeated.
    let chooses = scene.generator(|spec| spec["chooses"] = json!("server"));
    let canaries = Canaries::new([("its value", "drawn-by-the-service-1")]).unwrap();
    scene.service.lock().unwrap().broken = Some((422, "drawn-by-the-service-1 is taken".to_owned()));
    let failure = chooses.mint(&mark(2), &SecretValue::new()).await.err().unwrap();
    assert_eq!(canaries.in_bytes("what the service said", failure.words()), []);
    assert!(failure.words().contains("422"), "its status is said");
}

#[tokio::test]
async fn answers_are_bounded_in_size_and_time_and_redirects_are_not_followed() {
    let endless = Router::new()
        .route(
            "/eso/credentials",
            get(|Query(query): Query<BTreeMap<String, String>>| async move {
                match query.get("effect") {
                    Some(_) => json!({"credentials": [{"mark": mark(1).to_string(), "name": "a"}]})
                        .to_string()
                        .into_bytes(),
                    None => vec![b' '; 3 * 1024 * 1024],
                }
            }),
        )
        .route("/eso/credentials/{effect}", put(|| async { "{\"value\": \"not fields\"}" }))
        .route(
            "/eso/credentials/{effect}/verify",
            post(|| async { axum::response::Redirect::temporary("/elsewhere") }),
        )
        .route("/elsewhere", post(|| async { Json(json!({"accepted": true})) }))
        .route(
            "/eso/preflight",
            post(|| async {
                tokio::time::sleep(Duration::from_mins(1)).await;
            }),
        );
    let scene = Scene::serving(Service::default(), endless).await;
    let generator = scene.generator(|spec| spec["chooses"] = json!("server"));
    assert!(
        matches!(generator.orphans("test").await, Err(Failure::Refused(words)) if words.contains("larger"))
    );
    assert!(matches!(generator.preflight(&mark(1)).await, Err(Failure::Retry(_))));
    assert!(matches!(generator.mint(&mark(1), &SecretValue::new()).await, Err(Failure::Refused(_))));
    let value = SecretValue::new().with("password", b"a-secret");
    let failure = generator.verify(EffectId(1), &value).await.unwrap_err();
    assert!(!failure.words().contains("a-secret"), "{failure}");
}

#[test]
fn an_address_without_tls_is_for_this_machine_only() {
    let refused = |spec: Value| build("Webhook", &spec, Arc::new(SecretsDirectory::new("/"))).is_err();
    assert!(!refused(json!({"url": "https://login.example/eso"})));
    assert!(!refused(json!({"url": "http://127.0.0.1:8080/eso", "tls": "disable"})));
    assert!(refused(json!({"url": "http://login.example/eso"})));
    assert!(refused(json!({"url": "http://login.example/eso", "tls": "disable"})));
    assert!(refused(json!({"url": "http://127.0.0.1/eso"})));
    assert!(refused(json!({"url": "https://user:password@login.example/eso"})));
    assert!(refused(json!({"url": "https://login.example/eso?token=x"})));
}
