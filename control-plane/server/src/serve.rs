//! Serving: everything is put together here, and taken apart in the same order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backends::SecretsDirectory;
use engine::{Backends, Engine, FleetRoad, StartError};
use fleet::Fleet;
use identity::{AuthorityError, Identities, IdentitiesError, Lives};
use protocol::{InstallationId, UnixMillis};
use store::{KeyError, OpenError, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use transport::{Clients, Limits, ServerTls, ServerTlsError, Trust, TrustError};

use crate::app::{App, Parts};
use crate::route::router;
use crate::settings;
use crate::table::table;

/// The names under which this machine always answers to itself.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// After a failure to make a new certificate of our own, how long until the next attempt.
const RENEWAL_PAUSE: Duration = Duration::from_mins(1);

/// What a caller is told once requests are answered.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The address that was bound.
    pub listen: SocketAddr,
    /// Where hosts call.
    pub url: String,
    /// Which installation.
    pub installation: InstallationId,
}

/// Why a control plane does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("failed to listen on {address}: {why}; choose another with --listen, or stop what listens there")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        why: std::io::Error,
    },
    /// The data directory was never made.
    #[error("found no database {0}; run `eso-control-plane init` first, or `restore`")]
    NoDatabase(PathBuf),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Authority and order key.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// A certificate of our own.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The authority as a trust anchor.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The TLS configuration.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The engine ended by itself.
    #[error("the engine ended: {0}; restart the control plane once its cause is gone")]
    Engine(String),
    /// The listener ended.
    #[error(transparent)]
    Serve(#[from] transport::ServeError),
}

/// Serves until `stop` ends. `ready` is called once requests are answered.
pub async fn serve(
    settings: &settings::Serve,
    ready: impl FnOnce(&Ready),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let database = settings.data.database();
    if !database.exists() {
        return Err(ServeError::NoDatabase(database));
    }
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|why| ServeError::Listen { address: settings.listen, why })?;
    let listen = listener.local_addr().map_err(|why| ServeError::Listen { address: settings.listen, why })?;
    let store = Store::open(database, settings.data.read_key()?).await?;
    let identities = Arc::new(Identities::open(store.clone(), Lives::default()).await?);
    let names = served_names(settings);
    let life_ms = identities.lives().own_ms;
    let (own, _) = identities.authority().issue_own(&names, UnixMillis::now(), life_ms)?;
    let trust = identities.trust()?;
    let (fleet, notices) =
        Fleet::new(identities.installation(), own.clone(), trust.clone(), fleet::Settings::default());
    let tls = Arc::new(ServerTls::new(own, Clients::Optional(trust.clone()))?);
    let mut engine = start_engine(settings, &store, &identities, fleet.clone(), notices).await?;
    let url = settings.url.clone().unwrap_or_else(|| default_url(&names, listen));
    let (tell_stop, stopping) = watch::channel(false);
    let app = App::new(Parts {
        handle: engine.handle().clone(),
        identities: identities.clone(),
        store,
        url: url.clone(),
        backups: settings.data.backups(),
        stopping: stopping.clone(),
    });
    let renewal = tokio::spawn(renew(identities.clone(), names, trust, tls.clone(), fleet));
    let said = Ready { listen, url, installation: identities.installation() };
    let mut stopped = stopping;
    let serving =
        transport::serve(listener, tls, limits(), router(&app, table()), |_| ready(&said), async move {
            let _ = stopped.wait_for(|stopping| *stopping).await;
        });
    let mut serving = std::pin::pin!(serving);
    let end = tokio::select! {
        result = serving.as_mut() => End::Listener(result),
        () = stop => End::Asked,
        result = engine.ended() => End::Engine(result.err().map(|error| error.to_string())),
    };
    renewal.abort();
    match end {
        End::Listener(result) => {
            engine.stop().await;
            Ok(result?)
        }
        End::Asked => {
            tell_stop.send_replace(true);
            let result = serving.await;
            engine.stop().await;
            Ok(result?)
        }
        // It ends by itself only when its database fails it. Then we end too, so that whoever supervises us starts
        // us again: everything that was committed is found again.
        End::Engine(why) => Err(ServeError::Engine(why.unwrap_or_else(|| "without a reason".to_owned()))),
    }
}

enum End {
    Listener(Result<(), transport::ServeError>),
    Asked,
    Engine(Option<String>),
}

async fn start_engine(
    settings: &settings::Serve,
    store: &Store,
    identities: &Identities,
    fleet: Fleet,
    notices: fleet::Notices,
) -> Result<Engine, ServeError> {
    let (road, reachable) = FleetRoad::new(fleet, notices);
    let secrets = Arc::new(SecretsDirectory::new(&settings.secrets));
    let engine = Engine::start(engine::Settings {
        store: store.clone(),
        order_key: identities.order_key(),
        anchor: identities.trust_anchor(),
        earlier_keys: Vec::new(),
        resources: settings.resources.clone(),
        makers: Arc::new(Backends::new(secrets)),
        road,
        reachable,
    });
    Ok(engine.await?)
}

/// Names that were asked for first: the first one stands in the URL for hosts.
fn served_names(settings: &settings::Serve) -> Vec<String> {
    let mut names: Vec<String> = settings.names.clone();
    let from_url = settings.url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    let from_url =
        from_url.as_ref().and_then(http::Uri::host).map(|host| host.trim_matches(['[', ']']).to_owned());
    let listened = settings.listen.ip();
    let listened = (!listened.is_unspecified()).then(|| listened.to_string());
    for name in from_url.into_iter().chain(listened).chain(LOOPBACK.map(str::to_owned)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn default_url(names: &[String], listen: SocketAddr) -> String {
    let name = names.first().map_or("localhost", String::as_str);
    let port = listen.port();
    if name.contains(':') { format!("https://[{name}]:{port}") } else { format!("https://{name}:{port}") }
}

fn limits() -> Limits {
    // Operators wait for changes for 20 s on purpose; nothing may take longer than half a minute.
    Limits { request_ms_max: 30_000, ..Limits::default() }
}

/// Makes a new certificate of our own at half the life of each. Connections that are open go on.
async fn renew(
    identities: Arc<Identities>,
    names: Vec<String>,
    trust: Trust,
    tls: Arc<ServerTls>,
    fleet: Fleet,
) {
    let life_ms = identities.lives().own_ms;
    loop {
        tokio::time::sleep(Duration::from_millis(life_ms / 2)).await;
        loop {
            let made = identities.authority().issue_own(&names, UnixMillis::now(), life_ms);
            let replaced = made.map_err(ServeError::from).and_then(|(own, _)| {
                fleet.replace_identity(own.clone(), trust.clone());
                Ok(tls.replace_identity(own)?)
            });
            match replaced {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(%error, "failed to renew our own certificate");
                    tokio::time::sleep(RENEWAL_PAUSE).await;
                }
            }
        }
    }
}
