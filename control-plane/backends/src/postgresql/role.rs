//! A version as a login role: made, looked at, taken away. Every step finds done what was done before.

use std::time::Duration;

use lifecycle::id::EffectId;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

use super::link::{Link, failure, server_words};
use super::quote::{Ident, literal};
use super::spec::{Plan, SessionsAtRevoke};
use crate::failure::Failure;
use crate::mark::{MARK_PREFIX, Mark};

/// How long ended sessions may take to vanish.
const END_WAIT: Duration = Duration::from_secs(10);

/// What the server knows about a role.
pub(super) struct Role {
    pub(super) name: Ident,
    pub(super) oid: u32,
    pub(super) superuser: bool,
    pub(super) comment: Option<String>,
}

/// Who we are at the server.
pub(super) struct Minter {
    pub(super) link: Link,
    pub(super) superuser: bool,
    /// As in `server_version_num`: 150006, 180001.
    pub(super) server: i32,
}

impl Minter {
    /// Looks at who we are.
    pub(super) async fn new(link: Link) -> Result<Self, Failure> {
        let row = link
            .client
            .query_one(
                "SELECT rolsuper, current_setting('server_version_num')::int4 FROM pg_roles WHERE rolname = current_user",
                &[],
            )
            .await
            .map_err(|error| failure(&error))?;
        Ok(Self { superuser: row.get(0), server: row.get(1), link })
    }

    /// A role by its name.
    pub(super) async fn role(&self, name: &Ident) -> Result<Option<Role>, Failure> {
        let row = self
            .link
            .client
            .query_opt(
                "SELECT oid, rolsuper, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1::text",
                &[&name.raw()],
            )
            .await
            .map_err(|error| failure(&error))?;
        Ok(row.map(|row| Role {
            name: name.clone(),
            oid: row.get(0),
            superuser: row.get(1),
            comment: row.get(2),
        }))
    }

    /// The role that this effect minted, by its mark.
    pub(super) async fn marked(&self, effect: EffectId) -> Result<Option<Role>, Failure> {
        let rows = self.all_marked().await?;
        match rows.into_iter().find(|(_, mark)| mark.effect == effect) {
            Some((name, _)) => match Ident::new(&name) {
                Ok(name) => self.role(&name).await,
                Err(_) => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// All roles that carry a mark, whoever made them.
    pub(super) async fn all_marked(&self) -> Result<Vec<(String, Mark)>, Failure> {
        let rows = self
            .link
            .client
            .query(
                "SELECT r.rolname::text, d.description FROM pg_roles r JOIN pg_shdescription d \
                 ON d.objoid = r.oid AND d.classoid = 'pg_authid'::regclass \
                 WHERE starts_with(d.description, $1::text)",
                &[&MARK_PREFIX],
            )
            .await
            .map_err(|error| failure(&error))?;
        Ok(rows
            .iter()
            .filter_map(|row| Some((row.get::<_, String>(0), row.get::<_, String>(1).parse().ok()?)))
            .collect())
    }

    /// Makes the role, its membership and its mark in one transaction. The password goes out as a verifier only: a
    /// statement that fails stands in the server's log.
    pub(super) async fn create(
        &self,
        plan: &Plan,
        name: &Ident,
        mark: &Mark,
        password: &[u8],
    ) -> Result<(), Failure> {
        let verifier = postgres_protocol::password::scram_sha_256(password);
        let owner = &plan.owner;
        let grant = self.grant_to_us(name).unwrap_or_default();
        let statements = format!(
            "BEGIN; \
             CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEROLE{} PASSWORD {} IN ROLE {owner}; \
             COMMENT ON ROLE {name} IS {}; \
             ALTER ROLE {name} SET role = {}; \
             {grant} \
             COMMIT",
            plan.attributes,
            literal(&verifier),
            literal(&mark.to_string()),
            literal(owner.raw()),
        );
        let Err(error) = self.link.client.batch_execute(&statements).await else { return Ok(()) };
        drop(self.link.client.batch_execute("ROLLBACK").await);
        match error.code() {
            Some(code) if *code == SqlState::DUPLICATE_OBJECT => match self.role(name).await? {
                Some(role) if role.comment.as_deref() == Some(mark.to_string().as_str()) => Ok(()),
                _ => Err(Failure::refused(format!(
                    "the role {name} exists already and is not ours; it is left as it is"
                ))),
            },
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                Err(Failure::refused(format!("{}; {}", server_words(&error), self.what_is_missing(plan))))
            }
            _ => Err(failure(&error)),
        }
    }

    /// What lets us reassign, drop and terminate later; a superuser needs nothing.
    fn grant_to_us(&self, name: &Ident) -> Option<String> {
        match (self.superuser, self.server) {
            (true, _) => None,
            (false, ..160_000) => Some(format!("GRANT {name} TO CURRENT_USER;")),
            (false, _) => Some(format!("GRANT {name} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE;")),
        }
    }

    /// What an administrator runs so that we may mint and revoke.
    pub(super) fn what_is_missing(&self, plan: &Plan) -> String {
        let owner = &plan.owner;
        let minter = quoted_minter(plan);
        let membership =
            if self.server < 160_000 { "" } else { " WITH ADMIN OPTION, INHERIT TRUE, SET TRUE" };
        format!(
            "run as an administrator: ALTER ROLE {minter} CREATEROLE; GRANT {owner} TO {minter}{membership};"
        )
    }

    /// How many sessions the role has.
    pub(super) async fn sessions(&self, role: &Role) -> Result<u32, Failure> {
        let row = self
            .link
            .client
            .query_one("SELECT count(*) FROM pg_stat_activity WHERE usesysid = $1", &[&role.oid])
            .await
            .map_err(|error| failure(&error))?;
        Ok(u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX))
    }

    /// Ends the role's sessions, and waits until they are gone.
    pub(super) async fn end_sessions(&self, role: &Role) -> Result<(), Failure> {
        let until = Instant::now() + END_WAIT;
        loop {
            let rows = self
                .link
                .client
                .query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = $1",
                    &[&role.oid],
                )
                .await
                .map_err(|error| failure(&error).during(&format!("end the sessions of {}", role.name)))?;
            if rows.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Failure::retry(format!(
                    "{} sessions of {} did not end within {} s",
                    rows.len(),
                    role.name,
                    END_WAIT.as_secs()
                )));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nobody can log in with the role any more; sessions go on.
    pub(super) async fn close(&self, role: &Role) -> Result<(), Failure> {
        self.link
            .run(&format!("ALTER ROLE {} NOLOGIN", role.name))
            .await
            .map_err(|failure| failure.during(&format!("close {} to logins", role.name)))?;
        // The grant may come from a former minter.
        if let Some(grant) = self.grant_to_us(&role.name) {
            self.link
                .run(&grant)
                .await
                .map_err(|failure| failure.during(&format!("become a member of {}", role.name)))?;
        }
        Ok(())
    }

    /// Whether the role could be closed and taken from, by doing the beginning of it and taking that back. It locks the
    /// rows of the role, and nothing that an application works with.
    pub(super) async fn try_closing(&self, plan: &Plan, role: &Role) -> Result<(), Failure> {
        let name = &role.name;
        let grant = self.grant_to_us(name).unwrap_or_default();
        let tried =
            self.link.client.batch_execute(&format!("BEGIN; ALTER ROLE {name} NOLOGIN; {grant}")).await;
        let taken_back = self.link.client.batch_execute("ROLLBACK").await;
        match tried {
            Ok(()) => taken_back.map_err(|error| failure(&error)),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                Err(Failure::refused(format!(
                    "{name} could not be revoked once it is replaced: {}; {}",
                    server_words(&error),
                    self.what_is_missing_for(plan, name)
                )))
            }
            Err(error) => Err(failure(&error).during(&format!("try whether {name} can be revoked"))),
        }
    }

    /// What an administrator runs so that we may revoke a role that we did not make.
    fn what_is_missing_for(&self, plan: &Plan, name: &Ident) -> String {
        let minter = quoted_minter(plan);
        let grant = if self.server < 160_000 {
            String::new()
        } else {
            format!(" GRANT {name} TO {minter} WITH ADMIN OPTION;")
        };
        format!("run as an administrator: ALTER ROLE {minter} CREATEROLE;{grant}")
    }

    /// The databases that have something of the role; the plan's own one too where something is shared by all.
    pub(super) async fn databases_with(&self, plan: &Plan, role: &Role) -> Result<Vec<String>, Failure> {
        let rows = self
            .link
            .client
            .query(
                "SELECT DISTINCT coalesce(d.datname::text, $2::text), coalesce(d.datallowconn, true) \
                 FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid \
                 WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = $1",
                &[&role.oid, &plan.database],
            )
            .await
            .map_err(|error| failure(&error))?;
        if let Some(row) = rows.iter().find(|row| !row.get::<_, bool>(1)) {
            return Err(Failure::refused(format!(
                "the database {:?} has something of {} and allows no connections: run ALTER DATABASE ... ALLOW_CONNECTIONS true",
                row.get::<_, String>(0),
                role.name
            )));
        }
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Drops the role.
    pub(super) async fn drop_role(&self, role: &Role) -> Result<(), Failure> {
        match self.link.client.batch_execute(&format!("DROP ROLE IF EXISTS {}", role.name)).await {
            Ok(()) => Ok(()),
            Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                // Names of objects only; and what others gave, only they or an administrator can take back.
                let left = error.as_db_error().and_then(|said| said.detail()).unwrap_or_default();
                let left = left.lines().take(20).collect::<Vec<_>>().join("; ");
                Err(Failure::refused(format!(
                    "failed to drop {}, though nobody can log in with it any more: others gave it something that we cannot take back ({left}); run as an administrator in each database that is named: DROP OWNED BY {};",
                    role.name, role.name
                )))
            }
            Err(error) => Err(failure(&error).during(&format!("drop {}", role.name))),
        }
    }

    /// Whether it is an administrator's, the owner's or our own.
    pub(super) fn is_lasting(plan: &Plan, role: &Role) -> bool {
        let lasting = [plan.owner.raw(), plan.heir.raw(), plan.minter.as_str()];
        role.superuser || lasting.contains(&role.name.raw())
    }

    /// What may not be revoked, whoever asks.
    pub(super) fn may_revoke(plan: &Plan, role: &Role, effect: EffectId) -> Result<(), Failure> {
        let name = &role.name;
        if let Some(mark) = role.comment.as_deref().and_then(|comment| comment.parse::<Mark>().ok())
            && mark.effect != effect
        {
            return Err(Failure::refused(format!(
                "the role {name} was minted by another effect ({})",
                mark.effect
            )));
        }
        if Self::is_lasting(plan, role) {
            return Err(Failure::refused(format!(
                "the role {name} is an administrator's, the owner's or our own, and is not dropped by us: take its password away by hand (ALTER ROLE {name} PASSWORD NULL)"
            )));
        }
        Ok(())
    }
}

fn quoted_minter(plan: &Plan) -> String {
    format!("\"{}\"", plan.minter.replace('"', "\"\""))
}

/// Takes from the role whatever it has in this database.
pub(super) async fn empty_database(plan: &Plan, link: &Link, role: &Ident) -> Result<(), Failure> {
    let reassign =
        if plan.destructive { String::new() } else { format!("REASSIGN OWNED BY {role} TO {};", plan.heir) };
    link.run(&format!("BEGIN; {reassign} DROP OWNED BY {role}; COMMIT")).await
}

/// What is to be done about sessions before a role is dropped.
pub(super) async fn settle_sessions(plan: &Plan, minter: &Minter, role: &Role) -> Result<(), Failure> {
    if plan.sessions_at_revoke == SessionsAtRevoke::Terminate {
        return minter.end_sessions(role).await;
    }
    match minter.sessions(role).await? {
        0 => Ok(()),
        left => Err(Failure::retry(format!(
            "{left} sessions of {} are still there, and `sessionsAtRevoke: wait` waits for them; nobody can log in with it any more",
            role.name
        ))),
    }
}
