//! Versions as login roles of a PostgreSQL server (15 and later).
//!
//! Each version is a role of its own, named after the effect that minted it. At login it becomes the owner role
//! (`ALTER ROLE ... SET role`), so that tables belong to the owner and the next version can alter them. The server gets
//! a SCRAM verifier, never a password.

mod link;
mod preflight;
mod quote;
mod role;
mod spec;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use lifecycle::credential::{Authority, Overlap};
use lifecycle::id::EffectId;
use tokio::time::{sleep, timeout};

pub use spec::PostgreSqlSpec;

use self::link::{Link, Login};
use self::quote::Ident;
use self::role::{Minter, Role, empty_database, settle_sessions};
use self::spec::Plan;
use crate::failure::Failure;
use crate::generator::{Answer, Generator, Marked};
use crate::mark::Mark;
use crate::reference::Secrets;
use crate::spec::SpecError;
use crate::value::SecretValue;

/// How long a whole preflight may take; it visits every database.
const PREFLIGHT_LIMIT: Duration = Duration::from_mins(2);
/// How long a whole revocation may take; it visits every database that has something of the role.
const REVOKE_LIMIT: Duration = Duration::from_mins(2);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(45);

/// How long a login takes from the server's look at the role to its place in the list of sessions, with a margin.
const LATE_LOGIN: Duration = Duration::from_millis(200);

/// Versions as login roles.
pub(crate) struct PostgreSql {
    plan: Plan,
    secrets: Arc<dyn Secrets>,
}

impl PostgreSql {
    pub(crate) fn new(spec: PostgreSqlSpec, secrets: Arc<dyn Secrets>) -> Result<Self, SpecError> {
        let unused = [
            ("cleanupPolicy", spec.cleanup_policy.is_some()),
            ("suffixSize", spec.user.suffix_size.is_some()),
        ];
        for (key, _) in unused.iter().filter(|(_, is_there)| *is_there) {
            tracing::info!(
                kind = "PostgreSql",
                key,
                "read and not used: versions are retired by the credential's gate"
            );
        }
        Ok(Self { plan: Plan::new(spec)?, secrets })
    }

    /// A login as whoever mints, in this database.
    async fn administer(&self, database: &str) -> Result<Link, Failure> {
        let password = self.secrets.read(&self.plan.minter_password)?;
        match self.login(&self.plan.minter, &password, database).await? {
            Login::Accepted(link) => {
                link.settle(self.plan.timeout).await?;
                Ok(link)
            }
            Login::Refused(words) => Err(Failure::refused(format!(
                "{} refuses the role that mints in the database {database:?}: {words}; correct `auth`, or what pg_hba.conf says",
                self.plan.place()
            ))),
        }
    }

    async fn minter(&self) -> Result<Minter, Failure> {
        Minter::new(self.administer(&self.plan.database).await?).await
    }

    async fn login(&self, user: &str, password: &[u8], database: &str) -> Result<Login, Failure> {
        let tls = self.plan.tls.client_config(self.secrets.as_ref())?;
        self.plan.login(user, password, database, tls).await
    }

    /// The role of an effect: as its value names it, else by its mark.
    async fn role(
        &self,
        minter: &Minter,
        effect: EffectId,
        value: Option<&SecretValue>,
    ) -> Result<Option<Role>, Failure> {
        match value.and_then(|value| value.expose_text("username")) {
            Some(name) => minter.role(&known_name(name)?).await,
            None => minter.marked(effect).await,
        }
    }

    async fn mint(&self, mark: &Mark, value: &SecretValue) -> Result<(), Failure> {
        let (name, password) = login_fields(value)?;
        if name.raw() != self.plan.role_name(mark.effect) {
            return Err(Failure::refused(
                "the value names another role than this generator would mint: `user.username` was changed in between; abort this version",
            ));
        }
        let minter = self.minter().await?;
        minter
            .create(&self.plan, &name, mark, password)
            .await
            .map_err(|failure| failure.during(&format!("create {name}")))
    }

    async fn verify(&self, effect: EffectId, value: &SecretValue) -> Result<(), Failure> {
        let (name, password) = login_fields(value)?;
        let link = match self.login(name.raw(), password, &self.plan.database).await? {
            Login::Accepted(link) => link,
            Login::Refused(words) => {
                return Err(Failure::refused(format!(
                    "{} refuses a login as {name}: {words}",
                    self.plan.place()
                )));
            }
        };
        let row = link
            .client
            .query_one("SELECT session_user::text, current_user::text", &[])
            .await
            .map_err(|error| link::failure(&error))?;
        let (session, current): (String, String) = (row.get(0), row.get(1));
        if session != name.raw() {
            return Err(Failure::refused(format!("a login as {name} is {session:?} at the server")));
        }
        let is_ours = name.raw() == self.plan.role_name(effect);
        if is_ours && current != self.plan.owner.raw() {
            return Err(Failure::refused(format!(
                "{name} acts as {current:?} and not as the owner {}: what it creates the next version could not alter",
                self.plan.owner
            )));
        }
        Ok(())
    }

    async fn revoke(&self, effect: EffectId, value: Option<&SecretValue>) -> Result<(), Failure> {
        let minter = self.minter().await?;
        if let Some(role) = self.role(&minter, effect, value).await? {
            Minter::may_revoke(&self.plan, &role, effect)?;
            minter.close(&role).await?;
            settle_sessions(&self.plan, &minter, &role).await?;
            self.empty(&minter, &role).await?;
            // A login that was under way when the role was closed shows up only now.
            sleep(LATE_LOGIN).await;
            settle_sessions(&self.plan, &minter, &role).await?;
            minter.drop_role(&role).await?;
        }
        self.prove_revoked(&minter, effect, value).await
    }

    /// Takes from the role whatever it has anywhere.
    async fn empty(&self, minter: &Minter, role: &Role) -> Result<(), Failure> {
        for database in minter.databases_with(&self.plan, role).await? {
            let during = format!("take from {} what it has in the database {database:?}", role.name);
            let link = self.administer(&database).await.map_err(|failure| failure.during(&during))?;
            empty_database(&self.plan, &link, &role.name).await.map_err(|failure| failure.during(&during))?;
        }
        Ok(())
    }

    async fn prove_revoked(
        &self,
        minter: &Minter,
        effect: EffectId,
        value: Option<&SecretValue>,
    ) -> Result<(), Failure> {
        if let Some(role) = self.role(minter, effect, value).await? {
            return Err(Failure::retry(format!(
                "the role {} is there again after it was dropped",
                role.name
            )));
        }
        let Some(value) = value else { return Ok(()) };
        let (name, password) = login_fields(value)?;
        match self.login(name.raw(), password, &self.plan.database).await? {
            Login::Refused(_) => Ok(()),
            Login::Accepted(_) => Err(Failure::refused(format!(
                "{} still accepts a login as {name} after the role was dropped: look at pg_hba.conf and at who answers there",
                self.plan.place()
            ))),
        }
    }
}

/// Username and password of a value.
fn login_fields(value: &SecretValue) -> Result<(Ident, &[u8]), Failure> {
    match (value.expose_text("username"), value.expose("password")) {
        (Some(name), Some(password)) => Ok((known_name(name)?, password)),
        _ => Err(Failure::refused(
            "the value has no fields `username` and `password`, which a PostgreSQL login needs",
        )),
    }
}

fn known_name(name: &str) -> Result<Ident, Failure> {
    Ident::new(name).map_err(|error| Failure::refused(format!("the value's `username` {error}")))
}

/// Bounds a whole operation.
async fn within<T>(
    limit: Duration,
    what: &str,
    doing: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match timeout(limit, doing).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::retry(format!("failed to {what} within {} s", limit.as_secs()))),
    }
}

impl Generator for PostgreSql {
    fn overlap(&self) -> Overlap {
        Overlap::Versions
    }

    fn authority(&self) -> Authority {
        Authority::Revokes
    }

    fn preflight<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        within(PREFLIGHT_LIMIT, "try minting and revoking", self.try_everything(mark)).boxed()
    }

    fn try_revoking<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        within(LIMIT, "try revoking", self.try_existing(effect, value)).boxed()
    }

    fn new_value(&self, effect: EffectId) -> Result<SecretValue, Failure> {
        let name = self.plan.role_name(effect);
        Ok(SecretValue::new()
            .with("username", name.as_bytes())
            .with("password", self.plan.draws.draw()?.as_bytes()))
    }

    fn mint<'a>(&'a self, mark: &'a Mark, chosen: &'a SecretValue) -> Answer<'a, Option<SecretValue>> {
        within(LIMIT, "mint", async {
            self.mint(mark, chosen).await?;
            Ok(None)
        })
        .boxed()
    }

    fn verify<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        within(LIMIT, "verify", self.verify(effect, value)).boxed()
    }

    fn sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, Option<u32>> {
        within(LIMIT, "count sessions", async move {
            let minter = self.minter().await?;
            match self.role(&minter, effect, value).await? {
                Some(role) => minter.sessions(&role).await.map(Some),
                None => Ok(Some(0)),
            }
        })
        .boxed()
    }

    fn end_sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()> {
        within(LIMIT, "end sessions", async move {
            let minter = self.minter().await?;
            match self.role(&minter, effect, value).await? {
                Some(role) => minter.end_sessions(&role).await,
                None => Ok(()),
            }
        })
        .boxed()
    }

    fn revoke<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()> {
        within(REVOKE_LIMIT, "revoke", self.revoke(effect, value)).boxed()
    }

    fn orphans<'a>(&'a self, installation: &'a str) -> Answer<'a, Vec<Marked>> {
        within(LIMIT, "list what carries our mark", async move {
            let prefix = format!("{}_", self.plan.prefix);
            let all = self.minter().await?.all_marked().await?;
            let ours = all
                .into_iter()
                .filter(|(name, mark)| name.starts_with(&prefix) && mark.installation == installation);
            Ok(ours.map(|(name, mark)| Marked { mark, name }).collect())
        })
        .boxed()
    }
}
