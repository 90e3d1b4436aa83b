//! The protected server, and the judge that reads its log.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use aws_lc_rs::rand;
use tests_services::logins::LoginLog;
use tests_services::postgres::{Kind as PostgresKind, PostgresServer};

use crate::host::CAST;
use crate::judge::{Away, GAP_MAX, Tally, without};
use crate::login::{Login, Verdict, Visitor};
use crate::login_server::LoginServer;
use crate::programs::Programs;

/// The loopback address that the demo's own tries come from.
pub const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 2, 1));

/// Which server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A private PostgreSQL.
    Postgres(PostgresKind),
    /// The demo's own login server.
    Logins,
}

impl Kind {
    /// The installed PostgreSQL, else the one from PyPI, else the demo's own login server; and why none is better.
    pub fn auto() -> (Self, Option<String>) {
        let postgres = PostgresKind::auto();
        match postgres.programs() {
            Ok(_) => (Self::Postgres(postgres), None),
            Err(error) => (Self::Logins, Some(format!("no PostgreSQL to be had: {error:#}"))),
        }
    }
}

/// The server itself.
pub enum Server {
    /// A private PostgreSQL.
    Postgres(Box<PostgresServer>),
    /// The demo's own.
    Logins(LoginServer),
}

/// The server and its log.
pub struct Protected {
    server: Server,
    log: LoginLog,
    act_began_ms: u64,
    away: Vec<Away>,
}

impl Protected {
    /// Starts a server and judges it.
    pub fn start(kind: Kind, programs: &Programs) -> anyhow::Result<Self> {
        let server = match kind {
            Kind::Postgres(kind) => Server::Postgres(Box::new(PostgresServer::start(kind)?)),
            Kind::Logins => Server::Logins(LoginServer::start(programs)?),
        };
        let log = match &server {
            Server::Postgres(server) => LoginLog::new(server.log_file()),
            Server::Logins(server) => LoginLog::new(server.log()),
        };
        Ok(Self { server, log, act_began_ms: 0, away: Vec::new() })
    }

    /// The server.
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// The server in a few words, for people.
    pub fn describe(&self) -> String {
        match &self.server {
            Server::Postgres(server) => server.describe(),
            Server::Logins(_) => {
                "a small login server of the demo's own (HTTPS, its own authority)".to_owned()
            }
        }
    }

    /// Where applications connect.
    pub fn address(&self) -> SocketAddr {
        match &self.server {
            Server::Postgres(server) => server.address(),
            Server::Logins(server) => server.address(),
        }
    }

    /// The authority that applications trust, where they connect over HTTPS.
    pub fn authority(&self) -> Option<PathBuf> {
        match &self.server {
            Server::Postgres(_) => None,
            Server::Logins(server) => Some(server.authority()),
        }
    }

    /// Everything that the server wrote.
    pub fn directory(&self) -> &Path {
        match &self.server {
            Server::Postgres(server) => server.directory(),
            Server::Logins(server) => server.directory(),
        }
    }

    /// Where it keeps secrets of its own.
    pub fn places_of_values(&self) -> Vec<PathBuf> {
        match &self.server {
            Server::Postgres(_) => Vec::new(),
            Server::Logins(server) => vec![server.bearer()],
        }
    }

    /// The log that is judged.
    pub fn log_file(&self) -> PathBuf {
        match &self.server {
            Server::Postgres(server) => server.log_file().to_owned(),
            Server::Logins(server) => server.log(),
        }
    }

    /// Makes what the generator needs, and puts its own credential where the control plane finds the backends' secrets.
    /// That credential, with a name that may be shown.
    pub fn prepare(&self, secrets: &Path) -> anyhow::Result<(String, String)> {
        match &self.server {
            Server::Postgres(server) => {
                let password = random()?;
                server
                    .admin_execute(&format!("CREATE ROLE minter LOGIN CREATEROLE PASSWORD '{password}'"))?;
                server.admin_execute("CREATE ROLE orders_owner")?;
                server.admin_execute("GRANT orders_owner TO minter WITH ADMIN OPTION")?;
                server.admin_execute("CREATE DATABASE orders OWNER orders_owner")?;
                keep(&secrets.join("orders-minter"), "password", &password)?;
                Ok(("the password of the role that mints".to_owned(), password))
            }
            Server::Logins(server) => {
                let bearer = std::fs::read_to_string(server.bearer())?;
                keep(&secrets.join("orders-minter"), "bearer", &bearer)?;
                Ok(("the bearer token of the login server".to_owned(), bearer))
            }
        }
    }

    /// Makes a login by hand, as people do it.
    pub fn mint(&self, username: &str, password: &str) -> anyhow::Result<()> {
        match &self.server {
            Server::Postgres(server) => server.admin_execute(&format!(
                "CREATE ROLE {username} LOGIN PASSWORD '{password}' IN ROLE orders_owner; ALTER ROLE {username} SET role = orders_owner"
            )),
            Server::Logins(server) => server.mint(username, password),
        }
    }

    /// Revokes a login by hand, as people do it.
    pub fn revoke(&self, username: &str) -> anyhow::Result<()> {
        match &self.server {
            Server::Postgres(server) => server.admin_execute(&format!(
                "ALTER ROLE {username} NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{username}'"
            )),
            Server::Logins(server) => server.revoke(username),
        }
    }

    /// Who owns a table in the database of the applications, and how many columns beyond the first it has. `None` where
    /// there are no tables.
    pub fn table(&self, name: &str) -> anyhow::Result<Option<(String, i64)>> {
        let Server::Postgres(server) = &self.server else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = server.administrator("orders").await?;
            let row = client
                .query_one(
                    "SELECT tableowner::text, (SELECT count(*) FROM information_schema.columns c \
                     WHERE c.table_name = t.tablename) - 1 FROM pg_tables t WHERE tablename = $1::text",
                    &[&name],
                )
                .await
                .with_context(|| format!("there is no table {name}"))?;
            Ok(Some((row.get(0), row.get(1))))
        })
    }

    /// Tries a login from the demo's own address. The session ends at once.
    pub fn try_login(&self, login: &Login) -> anyhow::Result<Verdict> {
        let authority = self.authority();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let visitor = Visitor { from: PROBE, name: "probe", authority: authority.as_deref() };
        runtime.block_on(login.log_in(visitor))
    }

    /// From now on tallies count anew: each act has its own.
    pub fn start_act(&mut self) -> anyhow::Result<()> {
        self.act_began_ms = now_ms()?;
        Ok(())
    }

    /// What an address did since the act began.
    pub fn tally(&mut self, source: IpAddr) -> anyhow::Result<Tally> {
        self.tally_since(source, self.act_began_ms)
    }

    /// What an address did since then, in milliseconds since 1970. The gaps are those in which it may not be away.
    pub fn tally_since(&mut self, source: IpAddr, since_ms: u64) -> anyhow::Result<Tally> {
        let time = since_ms..now_ms()?;
        let logins = self.log.read()?;
        let gap = |time| Tally::of(logins, source, time).gap_ms_max;
        let gap_ms_max =
            without(&self.away, source, time.clone()).into_iter().map(gap).max().unwrap_or_default();
        Ok(Tally { gap_ms_max, ..Tally::of(logins, source, time) })
    }

    /// From the beginning of the act until now an address may have been away. The longest time that it was, in
    /// milliseconds.
    pub fn was_away(&mut self, source: IpAddr) -> anyhow::Result<u64> {
        let time = self.act_began_ms..now_ms()?;
        self.away.push(Away { source, time: time.clone() });
        Ok(Tally::of(self.log.read()?, source, time).gap_ms_max)
    }

    /// The longest gap of an address while it may have been away, in milliseconds.
    pub fn price(&mut self, source: IpAddr) -> anyhow::Result<Option<u64>> {
        let logins = self.log.read()?;
        let away = self.away.iter().filter(|away| away.source == source);
        Ok(away.map(|away| Tally::of(logins, source, away.time.clone()).gap_ms_max).max())
    }

    /// Waits until every application logged in once more, but no longer than one may be away: whoever does not is seen
    /// by its gap.
    pub fn until_all_log_in(&mut self) -> anyhow::Result<()> {
        let (since, deadline) = (now_ms()?, Instant::now() + GAP_MAX + Duration::from_secs(1));
        for cast in &CAST {
            while Tally::of(self.log.read()?, cast.source(), since..u64::MAX).logins == 0
                && Instant::now() < deadline
            {
                crate::interrupt::check()?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// As whom an address logged in since the act began, in order, each with the time of its first login.
    pub fn users(&mut self, source: IpAddr) -> anyhow::Result<Vec<(String, u64)>> {
        let mut users: Vec<(String, u64)> = Vec::new();
        for login in self.log.read()?.iter().filter(|login| login.client == Some(source)) {
            let known = users.last().is_some_and(|(user, _)| *user == login.user);
            if login.accepted && !known && login.at_ms >= self.act_began_ms {
                users.push((login.user.clone(), login.at_ms));
            }
        }
        Ok(users)
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> anyhow::Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// 32 characters that nobody guesses.
pub fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok().context("no randomness")?;
    Ok(hex::encode(bytes))
}

fn keep(directory: &Path, name: &str, value: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    std::fs::create_dir_all(directory)?;
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(name))?;
    Ok(file.write_all(value.as_bytes())?)
}
