//! A service of somebody's own that mints and revokes, asked over HTTPS.
//!
//! Below the spec's `url`, with `EFFECT` the effect's id in 32 hexadecimal digits:
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `POST preflight` | the mark | 2xx |
//! | `PUT credentials/EFFECT` | the mark, and `value` where we choose it | `{"value": {...}}` where the service chooses |
//! | `POST credentials/EFFECT/verify` | `value` | `{"accepted": true}`; `false` also for an effect that it does not know |
//! | `GET credentials/EFFECT/sessions` | | `{"sessions": 2}`, or `null` where it cannot tell; 0 or `null` for an effect that it does not know |
//! | `DELETE credentials/EFFECT/sessions` | | 2xx, also where there is none |
//! | `DELETE credentials/EFFECT` | | 2xx or 404 |
//! | `GET credentials?installation=ID` | | `{"credentials": [{"mark": "...", "name": "..."}]}` |
//! | `GET credentials?effect=EFFECT` | | the same, of this effect only: empty where the service does not know it |
//!
//! The effect's id is the idempotency key: the same `PUT` again is the same version with the same value. 401, 403, 404,
//! 409 and 422 need an operator, everything else that is not 2xx is tried again.
//!
//! **A 404 proves nothing**: a service that moved away answers it to everything. What was revoked is proved by two
//! answers of 200, whatever `DELETE` was answered: a listing of the effect without its mark and, where we know the
//! value, `"accepted": false`. So that an empty listing means something, what was minted must stand in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use lifecycle::credential::{Authority, Overlap};
use lifecycle::id::EffectId;
use reqwest::{Method, Response, Url};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::draw::{Draws, PasswordSpec};
use crate::failure::Failure;
use crate::generator::{Answer, Generator, Marked};
use crate::mark::Mark;
use crate::reference::{SecretRef, Secrets};
use crate::spec::SpecError;
use crate::tls::TlsSpec;
use crate::value::SecretValue;

const KIND: &str = "Webhook";
/// The most bytes that an answer may have.
const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The most bytes of a refusing answer that are repeated.
const WORDS_BYTES_MAX: usize = 400;

/// A service that mints and revokes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WebhookSpec {
    /// Where it is; `http://` for an address of this machine only, with `tls: disable`.
    pub url: String,
    /// How it is reached.
    #[serde(default)]
    pub tls: TlsSpec,
    /// How we say who we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<WebhookAuthSpec>,
    /// How many versions it can hold at once.
    #[serde(default)]
    pub overlap: Overlap,
    /// Who chooses the value.
    #[serde(default)]
    pub chooses: Chooses,
    /// Where we choose: the name is this, an underscore and the effect's id; `eso`. With `overlap: pair` a service that
    /// has its two names already chooses the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where we choose: how the password looks; 32 letters and digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordSpec>,
    /// How long one request may take; 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// How we say who we are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WebhookAuthSpec {
    /// Where the bearer token stands.
    pub bearer_secret_ref: SecretRef,
}

/// Who chooses the value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chooses {
    /// We do.
    #[default]
    Client,
    /// The service does.
    Server,
}

/// A service that mints and revokes.
pub(crate) struct Webhook {
    base: Url,
    tls: TlsSpec,
    bearer: Option<SecretRef>,
    overlap: Overlap,
    chooses: Chooses,
    username: String,
    draws: Draws,
    timeout: Duration,
    secrets: Arc<dyn Secrets>,
}

#[derive(Deserialize)]
struct MintAnswer {
    value: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct VerifyAnswer {
    accepted: bool,
}

#[derive(Deserialize)]
struct SessionsAnswer {
    sessions: Option<u32>,
}

#[derive(Deserialize)]
struct OrphansAnswer {
    credentials: Vec<OrphanAnswer>,
}

#[derive(Deserialize)]
struct OrphanAnswer {
    mark: String,
    name: String,
}

impl Webhook {
    pub(crate) fn new(spec: WebhookSpec, secrets: Arc<dyn Secrets>) -> Result<Self, SpecError> {
        let wrong = |words: String| SpecError::new(KIND, words);
        let mut base = Url::parse(&spec.url)
            .map_err(|error| wrong(format!("`url` is no address: {error}; use https://NAME/PATH")))?;
        match (base.scheme(), &spec.tls) {
            ("https", TlsSpec::Trust(_)) | ("http", TlsSpec::Disable(_)) => {}
            _ => {
                return Err(wrong(
                    "`url` must begin with https:// (or http:// together with `tls: disable`)".to_owned(),
                ));
            }
        }
        spec.tls.check(base.host_str().unwrap_or_default()).map_err(wrong)?;
        if base.query().is_some()
            || base.fragment().is_some()
            || !base.username().is_empty()
            || base.password().is_some()
        {
            return Err(wrong("`url` has a query, a fragment or a password: leave them out".to_owned()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let timeout = crate::spec::timeout(KIND, spec.timeout_seconds)?;
        let password = spec.password.unwrap_or_else(PasswordSpec::plain);
        Ok(Self {
            base,
            tls: spec.tls,
            bearer: spec.auth.map(|auth| auth.bearer_secret_ref),
            overlap: spec.overlap,
            chooses: spec.chooses,
            username: spec.username.unwrap_or_else(|| "eso".to_owned()),
            draws: password.draws(KIND)?,
            timeout,
            secrets,
        })
    }

    /// Asks, and takes nothing but 2xx with a bounded body for an answer.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.ask_for(method, path, body)
            .await?
            .map_err(|absent| Failure::refused(format!("{absent}; correct `url` if the service moved")))
    }

    /// The same; the inner error is a 404 in words, which says nothing of what was asked about.
    async fn ask_for(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Result<Zeroizing<Vec<u8>>, String>, Failure> {
        let what = format!("{method} {}{path}", self.base);
        let url = self.base.join(path).map_err(|error| Failure::refused(format!("{what}: {error}")))?;
        let mut request = self.client()?.request(method.clone(), url);
        if let Some(bearer) = &self.bearer {
            request = request.bearer_auth(self.secrets.read_text(bearer)?.as_str());
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_vec());
        }
        let response = request.send().await.map_err(|error| transport(&what, error))?;
        let status = response.status();
        let answer = bounded(response, &what).await?;
        if status.is_success() {
            return Ok(Ok(answer));
        }
        // Of a value that the service chose and we do not know yet its words could not be stripped.
        let may_name_it = method == Method::PUT && self.chooses == Chooses::Server;
        let said = if may_name_it { String::new() } else { quoted(&answer) };
        let words = format!("{what}: the service answers {status}{said}");
        match status.as_u16() {
            404 => Ok(Err(words)),
            401 | 403 => {
                Err(Failure::refused(format!("{words}; correct `auth` or what the service allows us")))
            }
            400 | 405 | 409 | 410 | 422 => Err(Failure::refused(words)),
            _ => Err(Failure::retry(words)),
        }
    }

    fn client(&self) -> Result<reqwest::Client, Failure> {
        let builder = reqwest::Client::builder()
            .timeout(self.timeout)
            .connect_timeout(self.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let mut tls = match self.tls.client_config(self.secrets.as_ref())? {
            Some(tls) => tls,
            None => crate::tls::no_trust()?,
        };
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        builder.tls_backend_preconfigured(tls).build().map_err(|error| {
            Failure::refused(format!("failed to set up a client for {}: {error}", self.base))
        })
    }

    async fn mint(&self, mark: &Mark, chosen: &SecretValue) -> Result<Option<SecretValue>, Failure> {
        let value = (self.chooses == Chooses::Client).then_some(chosen);
        let path = format!("credentials/{}", mark.effect);
        let body = body(Some(mark), value)?;
        let answer = self.ask(Method::PUT, &path, Some(body)).await?;
        self.prove_listed(mark).await?;
        if self.chooses == Chooses::Client {
            return Ok(None);
        }
        let answer: MintAnswer = parsed(&path, &answer)?;
        let Some(fields) = answer.value.filter(|fields| !fields.is_empty()) else {
            return Err(Failure::refused(format!(
                "{path}: `chooses: server`, but the service answers no `value` with fields"
            )));
        };
        let mut value = SecretValue::new();
        for (name, content) in fields {
            let content = Zeroizing::new(content.into_bytes());
            value.insert(&name, content).map_err(|error| Failure::refused(format!("{path}: {error}")))?;
        }
        Ok(Some(value))
    }

    /// Whether the service accepts a login with the value.
    async fn accepts(&self, effect: EffectId, value: &SecretValue) -> Result<bool, Failure> {
        let path = format!("credentials/{effect}/verify");
        let answer = self.ask(Method::POST, &path, Some(body(None, Some(value))?)).await?;
        Ok(parsed::<VerifyAnswer>(&path, &answer)?.accepted)
    }

    async fn revoke(&self, effect: EffectId, value: Option<&SecretValue>) -> Result<(), Failure> {
        // Whether it was there does not matter: what proves that it is gone comes after.
        drop(self.ask_for(Method::DELETE, &format!("credentials/{effect}"), None).await?);
        if self.lists(effect).await? {
            return Err(Failure::retry(format!(
                "{} still lists the version of effect {effect}, which it was told to revoke",
                self.base
            )));
        }
        match value {
            Some(value) if self.accepts(effect, value).await? => Err(Failure::retry(format!(
                "{} still accepts a login with what it says is revoked",
                self.base
            ))),
            _ => Ok(()),
        }
    }

    /// A service that does not list what it minted could not prove that it is gone either.
    async fn prove_listed(&self, mark: &Mark) -> Result<(), Failure> {
        if self.lists(mark.effect).await? {
            return Ok(());
        }
        Err(Failure::retry(format!(
            "{} does not list the version of effect {} that it minted, so it could never prove that it is gone: let GET credentials?effect=... answer it with its mark",
            self.base, mark.effect
        )))
    }

    /// Whether the service lists what this effect minted.
    async fn lists(&self, effect: EffectId) -> Result<bool, Failure> {
        let marked = self.listing(&format!("credentials?effect={effect}")).await?;
        Ok(marked.iter().any(|marked| marked.mark.effect == effect))
    }

    async fn orphans(&self, installation: &str) -> Result<Vec<Marked>, Failure> {
        // Letters, digits, '-', '_' and '.' only, so nothing in it needs escaping.
        let marked = self.listing(&format!("credentials?installation={installation}")).await?;
        Ok(marked.into_iter().filter(|marked| marked.mark.installation == installation).collect())
    }

    async fn listing(&self, path: &str) -> Result<Vec<Marked>, Failure> {
        let answer: OrphansAnswer = parsed(path, &self.ask(Method::GET, path, None).await?)?;
        let marked = answer.credentials.into_iter().filter_map(|orphan| {
            let mark: Mark = orphan.mark.parse().ok()?;
            Some(Marked { mark, name: orphan.name })
        });
        Ok(marked.collect())
    }

    /// Tries what can be tried without minting: that it lets us, and that it lists.
    async fn try_it(&self, mark: &Mark) -> Result<(), Failure> {
        self.ask(Method::POST, "preflight", Some(body(Some(mark), None)?)).await?;
        self.orphans(&mark.installation).await?;
        self.lists(mark.effect).await.map(drop)
    }
}

/// What goes out.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    #[serde(flatten)]
    parts: Option<&'a Mark>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<BTreeMap<&'a str, &'a str>>,
}

/// A body of JSON, wiped when it is dropped.
fn body(mark: Option<&Mark>, value: Option<&SecretValue>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut fields: Option<BTreeMap<&str, &str>> = None;
    for (name, content) in value.iter().flat_map(|value| value.expose_fields()) {
        let text = std::str::from_utf8(content).map_err(|_| {
            Failure::refused(format!("the field {name:?} is not text, which a webhook needs"))
        })?;
        fields.get_or_insert_default().insert(name, text);
    }
    let written = serde_json::to_vec(&Body { mark: mark.map(Mark::to_string), parts: mark, value: fields });
    written.map(Zeroizing::new).map_err(|_| Failure::refused("failed to write a request as JSON"))
}

/// The whole answer, as far as it is bounded.
async fn bounded(mut response: Response, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let too_large =
        || Failure::refused(format!("{what}: the answer is larger than {ANSWER_BYTES_MAX} bytes"));
    if response.content_length().is_some_and(|length| length > ANSWER_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let mut answer = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(what, error))? {
        if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(too_large());
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(Zeroizing::new(Vec::from(answer)))
}

fn parsed<T: for<'de> Deserialize<'de>>(path: &str, answer: &[u8]) -> Result<T, Failure> {
    // The parser's words could quote what it read.
    serde_json::from_slice(answer).map_err(|error| {
        Failure::refused(format!("{path}: the answer is not what is expected (line {})", error.line()))
    })
}

/// The service's own words about a refusal: only the `message` of a JSON answer, cut short between two words. What is
/// left of a value that was cut through could not be told any more.
fn quoted(answer: &[u8]) -> String {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return String::new() };
    let Some(message) = answer.get("message").and_then(|message| message.as_str()) else {
        return String::new();
    };
    let mut words: String = message.chars().filter(|character| !character.is_control()).collect();
    if words.len() > WORDS_BYTES_MAX {
        let end = words.floor_char_boundary(WORDS_BYTES_MAX);
        words.truncate(words[..end].rfind(' ').unwrap_or(0));
    }
    format!(": {words}")
}

fn transport(what: &str, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        words = inner.to_string();
        cause = inner.source();
    }
    Failure::retry(format!("failed to ask {what}: {words}"))
}

impl Generator for Webhook {
    fn overlap(&self) -> Overlap {
        self.overlap
    }

    fn authority(&self) -> Authority {
        Authority::Revokes
    }

    fn preflight<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        self.try_it(mark).boxed()
    }

    fn new_value(&self, effect: EffectId) -> Result<SecretValue, Failure> {
        match self.chooses {
            Chooses::Server => Ok(SecretValue::new()),
            Chooses::Client => Ok(SecretValue::new()
                .with("username", format!("{}_{effect}", self.username).as_bytes())
                .with("password", self.draws.draw()?.as_bytes())),
        }
    }

    fn mint<'a>(&'a self, mark: &'a Mark, chosen: &'a SecretValue) -> Answer<'a, Option<SecretValue>> {
        self.mint(mark, chosen).boxed()
    }

    fn verify<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        async move {
            if self.accepts(effect, value).await? {
                return Ok(());
            }
            Err(Failure::refused(format!(
                "{} does not accept a login with the version of effect {effect}",
                self.base
            )))
        }
        .boxed()
    }

    fn sessions<'a>(&'a self, effect: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, Option<u32>> {
        async move {
            let path = format!("credentials/{effect}/sessions");
            Ok(parsed::<SessionsAnswer>(&path, &self.ask(Method::GET, &path, None).await?)?.sessions)
        }
        .boxed()
    }

    fn end_sessions<'a>(&'a self, effect: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, ()> {
        async move {
            self.ask(Method::DELETE, &format!("credentials/{effect}/sessions"), None).await.map(drop)
        }
        .boxed()
    }

    fn revoke<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()> {
        self.revoke(effect, value).boxed()
    }

    fn orphans<'a>(&'a self, installation: &'a str) -> Answer<'a, Vec<Marked>> {
        self.orphans(installation).boxed()
    }
}
