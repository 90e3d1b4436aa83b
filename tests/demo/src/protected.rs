//! The protected server: a private PostgreSQL, and the judge that reads its log.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use tests_services::logins::LoginLog;
use tests_services::postgres::PostgresServer;
use tokio::net::TcpSocket;

use crate::judge::Tally;

/// The loopback address that the demo's own tries come from.
pub const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 2, 1));

/// A username and a password, kept to be tried once it must not work any more.
#[derive(Clone)]
pub struct Login {
    username: String,
    password: String,
}

impl Login {
    /// From the content of the credential's file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        #[derive(serde::Deserialize)]
        struct Written {
            username: String,
            password: String,
        }
        let Written { username, password } = serde_json::from_str(text)?;
        Ok(Self { username, password })
    }

    /// The name alone.
    pub fn username(&self) -> &str {
        &self.username
    }
}

/// What the server said to a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It let us in.
    Accepted,
    /// It refused, in its own words.
    Refused(String),
}

/// The server and its log.
pub struct Protected {
    server: PostgresServer,
    log: LoginLog,
    act_began_ms: u64,
}

impl Protected {
    /// Judges this server.
    pub fn new(server: PostgresServer) -> Self {
        Self { log: LoginLog::new(server.log_file()), server, act_began_ms: 0 }
    }

    /// The server.
    pub const fn server(&self) -> &PostgresServer {
        &self.server
    }

    /// Where applications connect.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Tries a login from the demo's own address.
    pub fn try_login(&self, login: &Login) -> anyhow::Result<Verdict> {
        let address = self.address();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(PROBE, 0))?;
            let stream = socket.connect(address).await?;
            let connected = tokio_postgres::Config::new()
                .user(&login.username)
                .password(&login.password)
                .dbname("orders")
                .application_name("probe")
                .connect_raw(stream, tokio_postgres::NoTls)
                .await;
            match connected {
                Ok(_) => Ok(Verdict::Accepted),
                Err(error) => match error.as_db_error() {
                    Some(said) => Ok(Verdict::Refused(said.message().to_owned())),
                    None => Err(error.into()),
                },
            }
        })
    }

    /// From now on tallies count anew: each act has its own.
    pub fn start_act(&mut self) -> anyhow::Result<()> {
        self.act_began_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        Ok(())
    }

    /// What an address did since the act began.
    pub fn tally(&mut self, source: IpAddr) -> anyhow::Result<Tally> {
        Ok(Tally::of(self.log.read()?, source, self.act_began_ms))
    }
}
