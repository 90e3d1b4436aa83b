//! A control plane served in this process on port 0, and callers of every kind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use eso_control_plane::settings::{Data, Init, Serve};
use eso_control_plane::{Initialised, Ready, ServeError};
use protocol::api::{EnrolToken, EnrolTokenIssued, NewOperator, OperatorIssued, OperatorProof, Role};
use protocol::enrol::{Bundle, EnrolRequest, EnrolResponse, Registration};
use protocol::{HostId, OpeningKey, SigningKey};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::{Client, Method, Response};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use transport::{Names, TlsIdentity, Trust, client_config, http_client};

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) ready: Ready,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

pub(crate) fn data(directory: &TempDir) -> Data {
    Data { data: directory.path().join("data"), key: None, key_credential: None }
}

pub(crate) async fn init(directory: &TempDir) -> Initialised {
    transport::install_provider();
    let init = Init {
        data: data(directory),
        admin: "admin".to_owned(),
        url: "https://localhost:1".to_owned(),
        root_key: None,
    };
    let made = eso_control_plane::init(&init).await.unwrap();
    for name in ["resources", "secrets"] {
        std::fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    made
}

pub(crate) fn settings(directory: &TempDir) -> Serve {
    Serve {
        data: data(directory),
        resources: directory.path().join("resources"),
        secrets: directory.path().join("secrets"),
        listen: "127.0.0.1:0".parse().unwrap(),
        names: Vec::new(),
        url: None,
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        init(&directory).await;
        Self::serve(directory).await
    }

    pub(crate) async fn serve(directory: TempDir) -> Self {
        let settings = settings(&directory);
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            let ready = |ready: &Ready| tell.send(ready.clone()).unwrap();
            let stop = async { drop(stopped.await) };
            eso_control_plane::serve(&settings, ready, stop).await
        });
        match tokio::time::timeout(SOON, told).await.unwrap() {
            Ok(ready) => Self { directory, ready, stop, task },
            Err(oneshot::error::RecvError { .. }) => panic!("{}", task.await.unwrap().unwrap_err()),
        }
    }

    /// Stops it and waits until the database is free.
    pub(crate) async fn stop(self) -> TempDir {
        drop(self.stop);
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap().unwrap();
        self.directory
    }

    pub(crate) fn admin_file(&self, name: &str) -> PathBuf {
        self.directory.path().join("data/admin").join(name)
    }

    pub(crate) fn ca(&self) -> String {
        std::fs::read_to_string(self.admin_file("ca.pem")).unwrap()
    }

    pub(crate) fn client(&self, identity: Option<&TlsIdentity>) -> Client {
        let config = client_config(identity, &Trust::from_pem(&self.ca()).unwrap(), Names::Checked).unwrap();
        http_client(config).timeout(SOON).build().unwrap()
    }

    pub(crate) fn admin(&self) -> Caller {
        let read = |name| std::fs::read_to_string(self.admin_file(name)).unwrap();
        let identity = TlsIdentity::from_pem(&read("cert.pem"), &read("key.pem")).unwrap();
        Caller { client: self.client(Some(&identity)), token: None, base: self.base() }
    }

    pub(crate) fn anybody(&self) -> Caller {
        Caller { client: self.client(None), token: None, base: self.base() }
    }

    pub(crate) fn with_token(&self, token: &str) -> Caller {
        Caller { token: Some(token.to_owned()), ..self.anybody() }
    }

    fn base(&self) -> String {
        format!("https://localhost:{}", self.ready.listen.port())
    }

    /// Somebody with this role, by token.
    pub(crate) async fn operator(&self, role: Role) -> (Caller, OperatorIssued) {
        let new = NewOperator { name: format!("{role:?}"), role, proof: OperatorProof::Token, life_ms: None };
        let issued: OperatorIssued = self.admin().post("/v1/operators", &new).await.json().await.unwrap();
        (self.with_token(issued.token.as_ref().unwrap()), issued)
    }

    pub(crate) async fn bundle(&self, name: &str) -> Bundle {
        let request = EnrolToken { name: name.to_owned(), labels: BTreeMap::new(), life_ms: None };
        let response = self.admin().post("/v1/hosts/enroll-token", &request).await;
        assert_eq!(response.status(), 200);
        response.json::<EnrolTokenIssued>().await.unwrap().bundle
    }

    /// Enrols a host as its two halves would.
    pub(crate) async fn host(&self, name: &str) -> Host {
        let bundle = self.bundle(name).await;
        let host = HostKeys::new();
        let response = self.anybody().post("/v1/enroll", &host.request(&bundle)).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let response: EnrolResponse = response.json().await.unwrap();
        let identity = TlsIdentity::from_pem(&response.chain_pem, &host.tls.serialize_pem()).unwrap();
        let caller = Caller { client: self.client(Some(&identity)), token: None, base: self.base() };
        Host { id: HostId::of(&host.report.public()), caller, keys: host, identity }
    }
}

pub(crate) struct HostKeys {
    pub(crate) tls: KeyPair,
    pub(crate) report: SigningKey,
    pub(crate) open: OpeningKey,
}

impl HostKeys {
    pub(crate) fn new() -> Self {
        Self {
            tls: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
            report: SigningKey::generate().unwrap(),
            open: OpeningKey::generate().unwrap(),
        }
    }

    pub(crate) fn request(&self, bundle: &Bundle) -> EnrolRequest {
        EnrolRequest {
            token: bundle.token.clone(),
            network_secret: bundle.network_secret.clone(),
            csr_pem: csr(&self.tls),
            registration: Registration::new(bundle, &self.report, self.open.public()).unwrap(),
            name: "itself".to_owned(),
            address: "127.0.0.1:9".to_owned(),
        }
    }
}

pub(crate) fn csr(key: &KeyPair) -> String {
    CertificateParams::new(Vec::new()).unwrap().serialize_request(key).unwrap().pem().unwrap()
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) caller: Caller,
    pub(crate) keys: HostKeys,
    pub(crate) identity: TlsIdentity,
}

pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) token: Option<String>,
    pub(crate) base: String,
}

impl Caller {
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &impl serde::Serialize) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }
}
