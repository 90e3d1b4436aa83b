//! One connection to the server, and what its errors mean.

use std::error::Error as _;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::spec::Plan;
use crate::failure::Failure;

/// A connection that ends when it is dropped.
pub(super) struct Link {
    pub(super) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How a login ended.
pub(super) enum Login {
    /// The server let us in.
    Accepted(Link),
    /// The server does not know this name with this password, or does not let it in.
    Refused(String),
}

impl Plan {
    /// Tries a login.
    pub(super) async fn login(
        &self,
        user: &str,
        password: &[u8],
        database: &str,
        tls: Option<ClientConfig>,
    ) -> Result<Login, Failure> {
        let config = self.config(user, password, database, tls.is_some()).await?;
        let connecting = async {
            let Some(tls) = tls else {
                let (client, connection) = config.connect(NoTls).await?;
                return Ok(Link { client, driver: tokio::spawn(async move { drop(connection.await) }) });
            };
            let (client, connection) = config.connect(MakeRustlsConnect::new(tls)).await?;
            Ok::<_, Error>(Link { client, driver: tokio::spawn(async move { drop(connection.await) }) })
        };
        match timeout(self.timeout, connecting).await {
            Ok(Ok(link)) => Ok(Login::Accepted(link)),
            Ok(Err(error)) => match error.code() {
                Some(code) if is_login_refused(code) => Ok(Login::Refused(server_words(&error))),
                _ => Err(failure(&error).during(&format!("connect to {}", self.place()))),
            },
            Err(_) => Err(Failure::retry(format!(
                "failed to connect to {} within {} s",
                self.place(),
                self.timeout.as_secs()
            ))),
        }
    }

    async fn config(
        &self,
        user: &str,
        password: &[u8],
        database: &str,
        tls: bool,
    ) -> Result<Config, Failure> {
        let mut config = Config::new();
        config
            .user(user)
            .password(password)
            .dbname(database)
            .application_name("eso-control-plane")
            .connect_timeout(self.timeout)
            .keepalives_idle(Duration::from_secs(30))
            .ssl_mode(if tls { SslMode::Require } else { SslMode::Disable });
        match self.tls.server_name() {
            Some(name) => {
                let found = tokio::net::lookup_host((self.host.as_str(), self.port))
                    .await
                    .map_err(|error| Failure::retry(format!("failed to look {} up: {error}", self.host)))?;
                for address in found {
                    config.host(name).hostaddr(address.ip()).port(address.port());
                }
            }
            None => {
                config.host(&self.host).port(self.port);
            }
        }
        Ok(config)
    }

    /// The server, for people.
    pub(super) fn place(&self) -> String {
        format!("PostgreSQL at {}:{}", self.host, self.port)
    }
}

impl Link {
    /// Makes the session mean what our statements say, and bounds how long each may take or wait for a lock: an
    /// application must never queue behind us for long.
    pub(super) async fn settle(&self, limit: Duration) -> Result<(), Failure> {
        let limit_ms = limit.as_millis();
        self.run(&format!(
            "SET search_path = pg_catalog; SET standard_conforming_strings = on; SET statement_timeout = {limit_ms}; \
             SET lock_timeout = {}; SET client_min_messages = warning",
            limit_ms.min(2000)
        ))
        .await
    }

    /// Runs statements that answer nothing.
    pub(super) async fn run(&self, statements: &str) -> Result<(), Failure> {
        self.client.batch_execute(statements).await.map_err(|error| failure(&error))
    }
}

/// Whether the server says no to name and password: that is no other trouble with connecting.
fn is_login_refused(code: &SqlState) -> bool {
    *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
}

/// What the server said. Its message names objects; details and statements are left out.
pub(super) fn server_words(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = inner.source();
    }
    words
}

/// What an error means for whoever asked.
pub(super) fn failure(error: &Error) -> Failure {
    let words = server_words(error);
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE || is_login_refused(code) => {
            Failure::Refused(words)
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME || *code == SqlState::UNDEFINED_OBJECT => {
            Failure::Refused(words)
        }
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
            Failure::Retry(format!("{words}; a transaction of an application holds it, it is tried again"))
        }
        _ => Failure::Retry(words),
    }
}
