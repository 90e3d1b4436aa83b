//! Logging in as the URL in the credential's file says: to PostgreSQL, or over HTTPS to the demo's own login server.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use hyper::{Method, StatusCode};
use tokio::net::TcpSocket;

use crate::https;

/// A login: where, and with what. Kept also to be tried once it must not work any more.
#[derive(Clone)]
pub struct Login {
    scheme: Scheme,
    username: String,
    password: String,
    server: SocketAddr,
    database: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    PostgreSql,
    Https,
}

/// Who logs in.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// The loopback address that it comes from, by which the judge tells it apart.
    pub from: IpAddr,
    /// Its name.
    pub name: &'a str,
    /// The authority to trust, where the server is asked over HTTPS.
    pub authority: Option<&'a Path>,
}

/// An open session. It ends when this is dropped.
pub struct Session {
    _open: Box<dyn Any + Send>,
}

/// What the server said.
pub enum Verdict {
    /// It let us in.
    Accepted(Session),
    /// It refused, in its own words.
    Refused(String),
}

impl Login {
    /// From the content of the file: `SCHEME://USERNAME:PASSWORD@ADDRESS:PORT/DATABASE`, taken as it stands.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let parts = || {
            let (scheme, rest) = url.trim_end().split_once("://")?;
            let (who, place) = rest.rsplit_once('@')?;
            let (username, password) = who.split_once(':')?;
            let (server, database) = place.split_once('/')?;
            Some((scheme, username, password, server, database))
        };
        let (scheme, username, password, server, database) =
            parts().context("the file holds no URL with a login")?;
        let scheme = match scheme {
            "postgresql" => Scheme::PostgreSql,
            "https" => Scheme::Https,
            _ => bail!("the URL begins with a scheme that is not known here"),
        };
        Ok(Self {
            scheme,
            username: username.to_owned(),
            password: password.to_owned(),
            server: server.parse().context("the URL names no address")?,
            database: database.to_owned(),
        })
    }

    /// As many programs do it, which decode the URL and did not expect such a password.
    pub fn parse_strictly(url: &str) -> anyhow::Result<Self> {
        let login = Self::parse(url)?;
        if login.password.contains(|c: char| !c.is_ascii_alphanumeric()) {
            bail!("the database URL does not parse: it holds a character that begins an escape");
        }
        Ok(login)
    }

    /// The name alone.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// What must never be seen where it does not belong.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Whether tables can be made there.
    pub fn is_database(&self) -> bool {
        self.scheme == Scheme::PostgreSql
    }

    /// Logs in on a new connection.
    pub async fn log_in(&self, visitor: Visitor<'_>) -> anyhow::Result<Verdict> {
        match self.scheme {
            Scheme::PostgreSql => match self.connect(visitor).await? {
                Ok(client) => Ok(Verdict::Accepted(Session { _open: Box::new(client) })),
                Err(words) => Ok(Verdict::Refused(words)),
            },
            Scheme::Https => self.log_in_over_https(visitor).await,
        }
    }

    /// A session with PostgreSQL, or the server's own words of refusal.
    pub async fn connect(
        &self,
        visitor: Visitor<'_>,
    ) -> anyhow::Result<Result<tokio_postgres::Client, String>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(visitor.from, 0))?;
        let stream = socket.connect(self.server).await.context("failed to connect")?;
        let connected = tokio_postgres::Config::new()
            .user(&self.username)
            .password(&self.password)
            .dbname(&self.database)
            .application_name(visitor.name)
            .connect_raw(stream, tokio_postgres::NoTls)
            .await;
        let (client, connection) = match connected {
            Ok(connected) => connected,
            Err(error) => match error.as_db_error() {
                Some(said) => return Ok(Err(said.message().to_owned())),
                None => return Err(error.into()),
            },
        };
        tokio::spawn(connection);
        client.simple_query("SELECT 1").await?;
        Ok(Ok(client))
    }

    async fn log_in_over_https(&self, visitor: Visitor<'_>) -> anyhow::Result<Verdict> {
        let authority = visitor.authority.context("an authority to trust is needed for HTTPS")?;
        let mut connection = https::Connection::open(visitor.from, self.server, authority).await?;
        let who = serde_json::json!({"username": self.username, "password": self.password});
        let answer = connection.ask(Method::POST, "/login", Some(&who)).await?;
        match answer.status {
            StatusCode::OK => Ok(Verdict::Accepted(Session { _open: Box::new(connection) })),
            StatusCode::UNAUTHORIZED => Ok(Verdict::Refused(https::message(&answer.body))),
            status => bail!("the login server answers {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_a_strict_program_stumbles_over_an_escape() {
        let plain = "postgresql://orders_1:abc@127.0.0.1:5432/orders\n";
        let login = Login::parse(plain).unwrap();
        assert_eq!((login.username(), login.password(), login.is_database()), ("orders_1", "abc", true));
        assert!(Login::parse_strictly(plain).is_ok());
        let escape = "https://orders_1:a%@/bc@127.0.0.1:5432/orders";
        assert_eq!(Login::parse(escape).unwrap().password(), "a%@/bc");
        assert!(Login::parse_strictly(escape).is_err());
        assert!(Login::parse("orders_1:abc").is_err());
    }
}
