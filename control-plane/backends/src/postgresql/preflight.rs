//! Whether we may mint *and* revoke, found out by doing all of it to a role that is thrown away.

use lifecycle::id::EffectId;

use super::PostgreSql;
use super::link::{Link, Login, failure};
use super::role::{Minter, Role, empty_database};
use crate::failure::Failure;
use crate::generator::Generator as _;
use crate::mark::Mark;
use crate::value::SecretValue;

/// The oldest server whose rules for roles are known here.
const SERVER_MIN: i32 = 150_000;
/// The most databases that are tried.
const DATABASES_MAX: usize = 500;

impl PostgreSql {
    /// Mints, uses and revokes a role that is thrown away, whatever comes of it.
    pub(super) async fn try_everything(&self, mark: &Mark) -> Result<(), Failure> {
        let minter = self.minter().await?;
        self.look_at_server(&minter).await?;
        // What an earlier try left when we died on the way.
        if minter.marked(mark.effect).await?.is_some() {
            self.throw_away(mark.effect, None).await?;
        }
        let value = self.new_value(mark.effect)?;
        let tried = self.try_minting(&minter, mark, &value).await;
        let thrown_away = self.throw_away(mark.effect, Some(&value)).await;
        tried.and(thrown_away)
    }

    /// Whether a role that we did not make could be revoked. Before PostgreSQL 16 whoever may create roles may; since
    /// then an administrator has to say so for each role that somebody else made.
    pub(super) async fn try_existing(&self, effect: EffectId, value: &SecretValue) -> Result<(), Failure> {
        let (name, _) = super::login_fields(value)?;
        if name.raw() == self.plan.role_name(effect) {
            return Ok(());
        }
        let minter = self.minter().await?;
        let Some(role) = minter.role(&name).await? else { return Ok(()) };
        // A lasting role is replaced all the same: what is left of it is done by hand, whenever it is retired.
        if Minter::is_lasting(&self.plan, &role) {
            return Ok(());
        }
        Minter::may_revoke(&self.plan, &role, effect)?;
        minter.try_closing(&self.plan, &role).await?;
        for database in minter.databases_with(&self.plan, &role).await? {
            let during = format!("take from {name} what it has in the database {database:?}");
            self.administer(&database).await.map_err(|failure| failure.during(&during))?;
        }
        Ok(())
    }

    async fn throw_away(&self, effect: EffectId, value: Option<&SecretValue>) -> Result<(), Failure> {
        self.revoke(effect, value).await.map_err(|failure| failure.during("revoke a throwaway role"))
    }

    async fn try_minting(&self, minter: &Minter, mark: &Mark, value: &SecretValue) -> Result<(), Failure> {
        self.mint(mark, value).await.map_err(|failure| failure.during("mint a throwaway role"))?;
        self.verify(mark.effect, value).await.map_err(|failure| failure.during("use a throwaway role"))?;
        let Some(role) = minter.marked(mark.effect).await? else {
            return Err(Failure::retry("the throwaway role vanished while it was tried"));
        };
        let session = self.throwaway_session(value, &self.plan.database).await?;
        if minter.sessions(&role).await? == 0 {
            return Err(Failure::refused(
                "the server does not show sessions of a version: let the role that mints read pg_stat_activity",
            ));
        }
        let missing = || minter.what_is_missing(&self.plan);
        minter.end_sessions(&role).await.map_err(|failure| match failure {
            Failure::Refused(words) => Failure::Refused(format!("{words}; {}", missing())),
            retry @ Failure::Retry(_) => retry,
        })?;
        drop(session);
        self.try_databases(minter, &role, value).await
    }

    async fn throwaway_session(&self, value: &SecretValue, database: &str) -> Result<Option<Link>, Failure> {
        let (name, password) = super::login_fields(value)?;
        match self.login(name.raw(), password, database).await? {
            Login::Accepted(link) => Ok(Some(link)),
            Login::Refused(_) => Ok(None),
        }
    }

    /// The owner is there, and has what versions are to have.
    async fn look_at_server(&self, minter: &Minter) -> Result<(), Failure> {
        let plan = &self.plan;
        if minter.server < SERVER_MIN {
            return Err(Failure::refused(format!(
                "{} is version {}: 15 is the oldest that is known here",
                plan.place(),
                minter.server / 10_000
            )));
        }
        for lasting in [&plan.owner, &plan.heir] {
            match minter.role(lasting).await? {
                None => {
                    return Err(Failure::refused(format!(
                        "the owner role {lasting} does not exist: run as an administrator: CREATE ROLE {lasting} NOLOGIN; and let it own what the application works with"
                    )));
                }
                Some(role) if role.superuser => {
                    return Err(Failure::refused(format!(
                        "the owner role {lasting} is a superuser, and every version would be one: name another owner"
                    )));
                }
                Some(_) => {}
            }
        }
        for role in &plan.roles {
            let sql = "SELECT pg_has_role($1::text, oid, 'USAGE') FROM pg_roles WHERE rolname = $2::text";
            let row = minter
                .link
                .client
                .query_opt(sql, &[&plan.owner.raw(), &role.raw()])
                .await
                .map_err(|error| failure(&error))?;
            if !row.is_some_and(|row| row.get(0)) {
                return Err(Failure::refused(format!(
                    "the owner {} does not have the role {role}: run as an administrator: GRANT {role} TO {};",
                    plan.owner, plan.owner
                )));
            }
        }
        Ok(())
    }

    /// Where a version can log in it can leave something, so there we must be able to take it away.
    async fn try_databases(&self, minter: &Minter, role: &Role, value: &SecretValue) -> Result<(), Failure> {
        let rows = minter
            .link
            .client
            .query(
                "SELECT datname::text FROM pg_database WHERE datallowconn \
                 AND has_database_privilege($1::oid, oid, 'CONNECT') ORDER BY datname = $2::text DESC, datname",
                &[&role.oid, &self.plan.database],
            )
            .await
            .map_err(|error| failure(&error))?;
        if rows.len() > DATABASES_MAX {
            return Err(Failure::refused(format!(
                "a version could log in to {} databases, and {DATABASES_MAX} are tried at most: REVOKE CONNECT ON DATABASE ... FROM PUBLIC where it is not needed",
                rows.len()
            )));
        }
        for row in rows {
            let database: String = row.get(0);
            let during = format!("revoke a throwaway role in the database {database:?}");
            let link = match self.administer(&database).await {
                Ok(link) => link,
                Err(retry @ Failure::Retry(_)) => return Err(retry.during(&during)),
                // Where versions are not let in either, nothing of them can be.
                Err(Failure::Refused(_))
                    if self.throwaway_session(value, &database).await.is_ok_and(|s| s.is_none()) =>
                {
                    continue;
                }
                Err(refused) => {
                    return Err(Failure::refused(format!(
                        "{}; versions can log in there and we cannot: run as an administrator: GRANT CONNECT ON DATABASE ... TO the role that mints, or REVOKE it FROM PUBLIC",
                        refused.during(&during).words()
                    )));
                }
            };
            empty_database(&self.plan, &link, &role.name).await.map_err(|failure| match failure {
                Failure::Refused(words) => Failure::Refused(format!(
                    "failed to {during}: {words}; {}",
                    minter.what_is_missing(&self.plan)
                )),
                retry @ Failure::Retry(_) => retry.during(&during),
            })?;
        }
        Ok(())
    }
}
