//! One path of an OpenBao or Vault KV v2 engine: as a source that somebody else rotates, and as a target.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;
use vaultrs::api::kv2::requests::{ReadSecretRequest, SetSecretMetadataRequest, SetSecretRequestOptions};
use vaultrs::api::kv2::responses::ReadSecretMetadataResponse;
use vaultrs::api::{self, EndpointMiddleware};
use vaultrs::client::{VaultClient, VaultClientSettingsBuilder};
use vaultrs::error::ClientError;
use vaultrs::kv2;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::generator::Answer;
use crate::mark::Mark;
use crate::reference::{SecretRef, Secrets};
use crate::source::{Destroyed, Notice, Retiring, Snapshot, Source};
use crate::spec::{self, SpecError};
use crate::store_target::{StoreTarget, Stored};
use crate::tls::TlsSpec;
use crate::value::SecretValue;

const KIND: &str = "VaultKv";
/// How often a source is asked, unless its `pollSeconds` says otherwise.
const POLL_SECONDS: u64 = 10;
/// The most that `pollSeconds` may say.
const POLL_SECONDS_MAX: u64 = 3600;
/// The longest that a silent store is left alone.
const BACKOFF_MAX: Duration = Duration::from_mins(1);
/// The first wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);
/// Client errors that pass by themselves: the server waited too long for us, is not yet up to what another replica said,
/// or is asked too often.
const PASSING: [u16; 3] = [408, 412, 429];
/// Where the mark of the last write stands in the path's own metadata, and which revision it speaks of.
const MARK_KEY: &str = "eso-mark";
const REVISION_KEY: &str = "eso-revision";

/// One path of a KV v2 engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VaultKvSpec {
    /// `https://vault.example:8200`; `http://` for an address of this machine only, with `tls: disable`.
    pub server: String,
    /// Where the engine is mounted; `secret`.
    #[serde(default = "secret")]
    pub mount: String,
    /// The path below it.
    pub path: String,
    /// The namespace, where the server has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How we say who we are.
    pub auth: VaultAuthSpec,
    /// How the server is reached.
    #[serde(default)]
    pub tls: TlsSpec,
    /// How long one request may take; 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// How we say who we are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VaultAuthSpec {
    /// Where the token stands; read anew for each request, so an agent may renew it.
    pub token_secret_ref: SecretRef,
}

/// A path that somebody else rotates: the keys of a [`VaultKvSpec`] and two more. They stand here once again, since a
/// flattened structure would take unknown keys in silence.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VaultKvSourceSpec {
    /// As of a [`VaultKvSpec`].
    pub server: String,
    /// As of a [`VaultKvSpec`].
    #[serde(default = "secret")]
    pub mount: String,
    /// As of a [`VaultKvSpec`].
    pub path: String,
    /// As of a [`VaultKvSpec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// As of a [`VaultKvSpec`].
    pub auth: VaultAuthSpec,
    /// As of a [`VaultKvSpec`].
    #[serde(default)]
    pub tls: TlsSpec,
    /// As of a [`VaultKvSpec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// How often it is asked; 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<u64>,
    /// What retiring an old version means.
    #[serde(default)]
    pub retiring: Retiring,
}

impl VaultKvSourceSpec {
    /// Which path.
    fn into_store(self) -> VaultKvSpec {
        let Self { server, mount, path, namespace, auth, tls, timeout_seconds, .. } = self;
        VaultKvSpec { server, mount, path, namespace, auth, tls, timeout_seconds }
    }
}

fn secret() -> String {
    "secret".to_owned()
}

/// The path, ready to be asked.
struct Kv {
    spec: VaultKvSpec,
    secrets: Arc<dyn Secrets>,
    timeout: Duration,
}

/// What stands at the path.
struct Found {
    value: SecretValue,
    revision: u64,
}

impl Kv {
    fn new(spec: VaultKvSpec, secrets: Arc<dyn Secrets>) -> Result<Self, SpecError> {
        let wrong = |words: String| SpecError::new(KIND, words);
        let url = reqwest::Url::parse(&spec.server)
            .map_err(|error| wrong(format!("`server` is no address: {error}; use https://NAME:8200")))?;
        let host = url.host_str().unwrap_or_default();
        match (url.scheme(), &spec.tls) {
            ("https", TlsSpec::Trust(_)) | ("http", TlsSpec::Disable(_)) => {}
            _ => {
                return Err(wrong(
                    "`server` must begin with https:// (or http:// together with `tls: disable`)".to_owned(),
                ));
            }
        }
        spec.tls.check(host).map_err(wrong)?;
        if url.path() != "/"
            || url.query().is_some()
            || !url.username().is_empty()
            || url.password().is_some()
        {
            return Err(wrong("`server` is an address alone: leave out path, query and password".to_owned()));
        }
        for (key, path) in [("mount", &spec.mount), ("path", &spec.path)] {
            if !is_path(path) {
                return Err(wrong(format!(
                    "`{key}` is {path:?}: use names of letters, digits, '-', '_', '.', '@' and ' ' parted by single slashes"
                )));
            }
        }
        let timeout = spec::timeout(KIND, spec.timeout_seconds)?;
        Ok(Self { spec, secrets, timeout })
    }

    /// A client for one exchange: token and certificates may have been rotated since the last.
    fn client(&self) -> Result<VaultClient, Failure> {
        let set_up = |error: String| {
            Failure::refused(format!("failed to set up a client for {}: {error}", self.place()))
        };
        let token = self.secrets.read_text(&self.spec.auth.token_secret_ref)?;
        let mut builder =
            reqwest::Client::builder().timeout(self.timeout).redirect(reqwest::redirect::Policy::none());
        // Without TLS the configuration is never used, but the client wants one.
        let tls = match self.spec.tls.client_config(self.secrets.as_ref())? {
            Some(tls) => tls,
            None => crate::tls::no_trust()?,
        };
        builder = builder.tls_backend_preconfigured(tls).no_proxy();
        let http = builder.build().map_err(|error| set_up(error.to_string()))?;
        // The settings could be printed, so the token is not among them.
        let settings = VaultClientSettingsBuilder::default()
            .address(&self.spec.server)
            .token(String::new())
            .identity(None)
            .ca_certs(Vec::new())
            .verify(true)
            .timeout(Some(self.timeout))
            .build()
            .map_err(|error| set_up(error.to_string()))?;
        Ok(VaultClient {
            http: rustify::clients::reqwest::Client::new(self.spec.server.trim_end_matches('/'), http),
            middle: EndpointMiddleware {
                token: token.to_string(),
                version: "v1".to_owned(),
                wrap: None,
                namespace: self.spec.namespace.clone(),
            },
            settings,
        })
    }

    fn place(&self) -> String {
        format!("{}/{} at {}", self.spec.mount, self.spec.path, self.spec.server)
    }

    /// What stands there; `None` where nothing does, or the newest revision was deleted.
    async fn read(&self) -> Result<Option<Found>, Failure> {
        let request = ReadSecretRequest::builder()
            .mount(&self.spec.mount)
            .path(&self.spec.path)
            .build()
            .map_err(|error| Failure::refused(format!("failed to ask for {}: {error}", self.place())))?;
        match api::exec_with_result(&self.client()?, request).await {
            Ok(answer) => Ok(Some(Found {
                value: to_value(answer.data, &self.place())?,
                revision: answer.metadata.version,
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&error, "read")),
        }
    }

    async fn metadata(&self) -> Result<Option<ReadSecretMetadataResponse>, Failure> {
        match kv2::read_metadata(&self.client()?, &self.spec.mount, &self.spec.path).await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&error, "read the metadata of")),
        }
    }

    /// Destroys a revision and proves it: by the path's own history, which outlives every revision. Where there is no
    /// history nothing is proved: another server, another mount and a path that somebody deleted with its history look
    /// alike. What is current is destroyed only where that is said.
    async fn destroy(&self, revision: u64, also_current: bool) -> Result<Destroyed, Failure> {
        let Some(metadata) = self.metadata().await? else { return Err(self.no_history(revision)) };
        if is_destroyed(&metadata, revision) {
            return Ok(Destroyed::Gone);
        }
        if metadata.current_version == revision && !also_current {
            return Ok(Destroyed::Left(format!(
                "revision {revision} of {} is the current one",
                self.place()
            )));
        }
        kv2::destroy_versions(&self.client()?, &self.spec.mount, &self.spec.path, vec![revision])
            .await
            .map_err(|error| self.failure(&error, "destroy a revision of"))?;
        match self.metadata().await? {
            Some(metadata) if is_destroyed(&metadata, revision) => Ok(Destroyed::Gone),
            Some(_) => Err(Failure::retry(format!("revision {revision} of {} is still there", self.place()))),
            None => Err(self.no_history(revision)),
        }
    }

    fn no_history(&self, revision: u64) -> Failure {
        Failure::refused(format!(
            "nothing is known of {}, so nobody can say whether revision {revision} was destroyed: correct `server`, `mount` or `path` if it moved; if somebody deleted it with its history, take `retiring: destroy-version` from a source, or retire the target",
            self.place()
        ))
    }

    /// What an error means. The server's own words are kept; answers that could hold a value are not.
    fn failure(&self, error: &ClientError, doing: &str) -> Failure {
        let what = format!("failed to {doing} {}", self.place());
        match (error, status(error)) {
            (ClientError::APIError { errors, .. }, Some(401 | 403)) => Failure::refused(format!(
                "{what}: the server refuses the token at {} ({}): give it a policy for this path, or a new token",
                self.spec.auth.token_secret_ref,
                errors.join("; ")
            )),
            (ClientError::APIError { errors, .. }, Some(code @ 400..=499)) if !PASSING.contains(&code) => {
                Failure::refused(format!("{what}: {}", errors.join("; ")))
            }
            (ClientError::APIError { errors, code }, _) => {
                Failure::retry(format!("{what}: {} (status {code})", errors.join("; ")))
            }
            (ClientError::RestClientError { source }, _) => {
                Failure::retry(format!("{what}: {}", innermost(source)))
            }
            _ => Failure::retry(format!("{what}: {error}")),
        }
    }
}

fn innermost(error: &rustify::errors::ClientError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        words = inner.to_string();
        cause = inner.source();
    }
    words
}

fn status(error: &ClientError) -> Option<u16> {
    match error {
        ClientError::APIError { code, .. }
        | ClientError::RestClientError {
            source: rustify::errors::ClientError::ServerResponseError { code, .. },
        } => Some(*code),
        _ => None,
    }
}

fn is_path(path: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@ ".contains(c))
    };
    path.len() <= 512 && path.split('/').all(is_part)
}

fn is_destroyed(metadata: &ReadSecretMetadataResponse, revision: u64) -> bool {
    match metadata.versions.get(&revision.to_string()) {
        Some(version) => version.destroyed,
        // Older than the server keeps; never one that is still to come.
        None => revision < metadata.oldest_version || revision <= metadata.current_version,
    }
}

/// Fields from what the server answered: texts as they are, everything else as JSON.
fn to_value(data: serde_json::Value, place: &str) -> Result<SecretValue, Failure> {
    let serde_json::Value::Object(fields) = data else {
        return Err(Failure::retry(format!("{place} holds no fields")));
    };
    let mut value = SecretValue::new();
    for (name, content) in fields {
        let bytes = match content {
            serde_json::Value::String(text) => text.into_bytes(),
            other => other.to_string().into_bytes(),
        };
        value
            .insert(&name, Zeroizing::new(bytes))
            .map_err(|error| Failure::refused(format!("{place} cannot be distributed: {error}")))?;
    }
    Ok(value)
}

/// A path that somebody else rotates.
pub(crate) struct VaultKvSource {
    kv: Kv,
    poll: Duration,
    retiring: Retiring,
    refresh: Notify,
}

impl VaultKvSource {
    pub(crate) fn new(spec: VaultKvSourceSpec, secrets: Arc<dyn Secrets>) -> Result<Self, SpecError> {
        let poll_seconds = spec.poll_seconds.unwrap_or(POLL_SECONDS);
        let poll = spec::seconds(KIND, "pollSeconds", poll_seconds, POLL_SECONDS_MAX)?;
        let retiring = spec.retiring;
        Ok(Self { kv: Kv::new(spec.into_store(), secrets)?, poll, retiring, refresh: Notify::new() })
    }

    async fn snapshot(&self) -> Result<Snapshot, Failure> {
        match self.kv.read().await? {
            Some(found) if !found.value.is_empty() => {
                Ok(Snapshot { value: found.value, revision: Some(found.revision) })
            }
            _ => Err(Failure::retry(format!(
                "nothing stands at {}: it was never written, or deleted",
                self.kv.place()
            ))),
        }
    }
}

/// What one watcher knows.
struct Polling {
    source: Arc<VaultKvSource>,
    told: Option<Snapshot>,
    pause: Duration,
    failing: bool,
}

impl Polling {
    async fn next(&mut self) -> Notice {
        loop {
            if !self.pause.is_zero() {
                tokio::select! {
                    () = sleep(self.pause) => {}
                    () = self.source.refresh.notified() => {}
                }
            }
            match self.source.snapshot().await {
                Ok(snapshot) => {
                    self.pause = self.source.poll;
                    let failed_before = std::mem::take(&mut self.failing);
                    // Counted by the store, compared by content: a write of the same value changes nothing.
                    if self.told.as_ref().is_none_or(|told| !told.value.same_as(&snapshot.value)) {
                        self.told = Some(snapshot.clone());
                        return Notice::Value(snapshot);
                    }
                    if failed_before {
                        return Notice::Available;
                    }
                }
                Err(failure) => {
                    self.pause = if self.failing { (self.pause * 2).min(BACKOFF_MAX) } else { BACKOFF };
                    if !std::mem::replace(&mut self.failing, true) {
                        return Notice::Unavailable(failure);
                    }
                }
            }
        }
    }
}

impl Source for VaultKvSource {
    fn retiring(&self) -> Retiring {
        self.retiring
    }

    fn current(&self) -> Answer<'_, Snapshot> {
        self.snapshot().boxed()
    }

    fn changes(self: Arc<Self>) -> BoxStream<'static, Notice> {
        let polling = Polling { source: self, told: None, pause: Duration::ZERO, failing: false };
        stream::unfold(polling, |mut polling| async move { Some((polling.next().await, polling)) }).boxed()
    }

    fn refresh(&self) {
        self.refresh.notify_one();
    }

    fn destroy(&self, revision: u64) -> Answer<'_, Destroyed> {
        self.kv.destroy(revision, false).boxed()
    }
}

/// A path that versions are delivered to.
pub(crate) struct VaultKvTarget {
    kv: Kv,
}

impl VaultKvTarget {
    pub(crate) fn new(spec: VaultKvSpec, secrets: Arc<dyn Secrets>) -> Result<Self, SpecError> {
        Ok(Self { kv: Kv::new(spec, secrets)? })
    }

    async fn write(&self, mark: &Mark, value: &SecretValue, after: u64) -> Result<u64, Failure> {
        if let Some(found) = self.kv.read().await?
            && found.value.same_as(value)
        {
            self.sign(mark, found.revision).await?;
            return Ok(found.revision);
        }
        let current = self.kv.metadata().await?.map_or(0, |metadata| metadata.current_version);
        if current != after {
            return Err(self.conflict(after, current));
        }
        let revision = match self.set(value, after).await {
            Ok(revision) => revision,
            // Our own write may have arrived although its answer was lost; anything else is somebody else's.
            Err(failure) => match self.kv.read().await? {
                Some(found) if found.value.same_as(value) => found.revision,
                Some(found) if found.revision != after => return Err(self.conflict(after, found.revision)),
                _ => return Err(failure),
            },
        };
        self.sign(mark, revision).await?;
        Ok(revision)
    }

    async fn set(&self, value: &SecretValue, after: u64) -> Result<u64, Failure> {
        let mut data = serde_json::Map::new();
        for (name, content) in value.expose_fields() {
            let text = std::str::from_utf8(content).map_err(|_| {
                Failure::refused(format!(
                    "the field {name:?} is not text, and {} can hold text only",
                    self.kv.place()
                ))
            })?;
            data.insert(name.to_owned(), text.into());
        }
        let cas = u32::try_from(after)
            .map_err(|_| Failure::refused("the store counted beyond what it can compare"))?;
        let Kv { spec, .. } = &self.kv;
        kv2::set_with_options(
            &self.kv.client()?,
            &spec.mount,
            &spec.path,
            &data,
            SetSecretRequestOptions { cas },
        )
        .await
        .map(|metadata| metadata.version)
        .map_err(|error| self.kv.failure(&error, "write"))
    }

    /// Says in the path's metadata whose the revision is; what others wrote there stays.
    async fn sign(&self, mark: &Mark, revision: u64) -> Result<(), Failure> {
        let Some(metadata) = self.kv.metadata().await? else {
            return Err(Failure::retry(format!("{} vanished after it was written", self.kv.place())));
        };
        let mut custom: HashMap<String, String> = metadata.custom_metadata.unwrap_or_default();
        let ours = [(MARK_KEY, mark.to_string()), (REVISION_KEY, revision.to_string())];
        if ours.iter().all(|(key, text)| custom.get(*key) == Some(text)) {
            return Ok(());
        }
        custom.extend(ours.map(|(key, text)| (key.to_owned(), text)));
        let mut request = SetSecretMetadataRequest::builder();
        request.custom_metadata(custom);
        let Kv { spec, .. } = &self.kv;
        kv2::set_metadata(&self.kv.client()?, &spec.mount, &spec.path, Some(&mut request))
            .await
            .map_err(|error| self.kv.failure(&error, "write the metadata of"))
    }

    fn conflict(&self, after: u64, current: u64) -> Failure {
        Failure::refused(format!(
            "somebody else wrote {}: revision {current} stands there, {after} was expected; it is left as it is: find out who writes there, or make the path a source",
            self.kv.place()
        ))
    }
}

impl StoreTarget for VaultKvTarget {
    fn write<'a>(&'a self, mark: &'a Mark, value: &'a SecretValue, after: u64) -> Answer<'a, u64> {
        self.write(mark, value, after).boxed()
    }

    fn read_back(&self) -> Answer<'_, Option<Stored>> {
        async {
            let Some(found) = self.kv.read().await? else { return Ok(None) };
            let custom =
                self.kv.metadata().await?.and_then(|metadata| metadata.custom_metadata).unwrap_or_default();
            let speaks_of_it = custom.get(REVISION_KEY) == Some(&found.revision.to_string());
            let mark = custom.get(MARK_KEY).filter(|_| speaks_of_it).and_then(|text| text.parse().ok());
            Ok(Some(Stored { value: found.value, revision: found.revision, mark }))
        }
        .boxed()
    }

    fn destroy(&self, revision: u64) -> Answer<'_, ()> {
        async move {
            match self.kv.destroy(revision, false).await? {
                Destroyed::Gone => Ok(()),
                Destroyed::Left(words) => {
                    Err(Failure::refused(format!("{words} and is not destroyed while it is")))
                }
            }
        }
        .boxed()
    }

    fn withdraw(&self, revision: u64) -> Answer<'_, ()> {
        async move { self.kv.destroy(revision, true).await.map(drop) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reference::SecretsDirectory;

    fn target(change: impl FnOnce(&mut serde_json::Value)) -> Result<VaultKvTarget, SpecError> {
        let mut spec = json!({
            "server": "http://127.0.0.1:8200", "path": "apps/orders", "tls": "disable",
            "auth": {"tokenSecretRef": {"file": "token"}},
        });
        change(&mut spec);
        VaultKvTarget::new(crate::spec::parse(KIND, &spec)?, Arc::new(SecretsDirectory::new("/")))
    }

    #[test]
    fn an_unknown_key_is_refused_by_a_source_as_by_a_target() {
        let source = |key: &str, word: &str| {
            let mut spec = json!({
                "server": "https://vault.example:8200", "mount": "kv", "path": "apps/orders",
                "namespace": "a", "auth": {"tokenSecretRef": {"file": "token"}}, "timeoutSeconds": 3,
                "pollSeconds": 4,
            });
            spec[key] = json!(word);
            let secrets = Arc::new(SecretsDirectory::new("/"));
            VaultKvSource::new(crate::spec::parse(KIND, &spec)?, secrets)
        };
        let known = source("retiring", "destroy-version").ok().unwrap();
        assert_eq!((known.retiring, known.poll), (Retiring::DestroyVersion, Duration::from_secs(4)));
        let Kv { spec, timeout, .. } = &known.kv;
        assert_eq!((spec.mount.as_str(), spec.namespace.as_deref()), ("kv", Some("a")));
        assert_eq!(*timeout, Duration::from_secs(3));
        for key in ["retirng", "poll_seconds", "store"] {
            let error = source(key, "destroy-version").err().unwrap();
            assert!(error.words.contains(key) && error.words.contains("`retiring`"), "{error}");
            assert!(target(|spec| spec[key] = json!("notify")).is_err());
        }
        assert!(target(|spec| spec["retiring"] = json!("notify")).is_err(), "a target retires nothing");
    }

    #[test]
    fn what_passes_by_itself_is_no_refusal() {
        let kv = target(|_| {}).ok().unwrap().kv;
        let failed = |code| {
            let error = ClientError::APIError { code, errors: vec!["not now".to_owned()] };
            kv.failure(&error, "write")
        };
        for code in [408, 412, 429, 500, 502, 503] {
            assert!(matches!(failed(code), Failure::Retry(words) if words.contains("not now")), "{code}");
        }
        for code in [400, 401, 403, 404, 405] {
            assert!(matches!(failed(code), Failure::Refused(_)), "{code}");
        }
    }

    #[test]
    fn a_path_cannot_leave_its_mount_and_an_address_cannot_leave_this_machine_without_tls() {
        assert!(target(|_| {}).is_ok());
        assert!(target(|spec| spec["path"] = json!("a/../../sys/policy")).is_err());
        for path in ["", "/a", "a//b", "a?list=true", "a%2f..", "a#b", "a\nb"] {
            assert!(target(|spec| spec["path"] = json!(path)).is_err(), "{path:?}");
        }
        assert!(target(|spec| spec["server"] = json!("http://vault.example:8200")).is_err());
        assert!(target(|spec| spec["server"] = json!("https://vault.example:8200")).is_err());
        assert!(target(|spec| spec["server"] = json!("http://127.0.0.1:8200/v1")).is_err());
        assert!(
            target(|spec| {
                spec["server"] = json!("https://vault.example:8200");
                spec["tls"] = json!({});
            })
            .is_ok()
        );
    }
}
