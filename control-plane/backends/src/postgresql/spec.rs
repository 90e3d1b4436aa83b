//! The `spec` of a `PostgreSql` generator: as it is written, and as it was understood.

use std::time::Duration;

use lifecycle::id::EffectId;
use serde::{Deserialize, Serialize};

use super::quote::{Ident, NAME_BYTES_MAX};
use crate::draw::{Draws, PasswordSpec};
use crate::reference::SecretRef;
use crate::spec::SpecError;
use crate::tls::TlsSpec;

const KIND: &str = "PostgreSql";
/// An underscore and the effect's id.
const SUFFIX_BYTES: usize = 33;

/// A PostgreSQL server, and how versions are login roles there.
///
/// Each version is a login role `PREFIX_EFFECT`, a member of one lasting owner role that it acts as, so that what one
/// version created the next one can alter. The owner role and the database exist already; preflight says so otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PostgreSqlSpec {
    /// The database that versions are tried in.
    pub database: String,
    /// A name, an address, or the directory of a Unix socket.
    pub host: String,
    /// The port; 5432.
    #[serde(default)]
    pub port: Port,
    /// Who mints.
    pub auth: AuthSpec,
    /// How the server is reached; by TLS, trusting the system's certificates.
    #[serde(default)]
    pub tls: TlsSpec,
    /// What versions look like.
    pub user: UserSpec,
    /// Of the former product. Read and not used: what is retired when is the credential's own gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup_policy: Option<serde_json::Value>,
    /// How long a connection or a statement may take; 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// A port, as a number or as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Port {
    /// `port: 5432`.
    Number(u16),
    /// `port: "5432"`.
    Text(String),
}

impl Default for Port {
    fn default() -> Self {
        Self::Number(5432)
    }
}

/// Who mints: a role with CREATEROLE, better not a superuser.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSpec {
    /// Its name.
    pub username: String,
    /// Where its password stands.
    pub password: SecretRef,
}

/// What versions look like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UserSpec {
    /// What the names of version roles begin with; an underscore and 32 hexadecimal digits follow. 30 bytes at most.
    pub username: String,
    /// The lasting role that every version acts as. Without it `reassignTo`, without that the role named `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Roles whose rights the owner must have; preflight checks that.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Further attributes of the login role.
    #[serde(default)]
    pub attributes: Vec<AttributeSpec>,
    /// Drop what a version still owns when it is revoked, instead of giving it to the owner.
    #[serde(default)]
    pub destructive_cleanup: bool,
    /// Who gets what a version still owns when it is revoked; the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reassign_to: Option<String>,
    /// Of the former product. Read and not used: names always end in all of the effect's 32 digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix_size: Option<u32>,
    /// How passwords look; 32 letters and digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordSpec>,
    /// What becomes of sessions that are there when a version is revoked.
    #[serde(default)]
    pub sessions_at_revoke: SessionsAtRevoke,
}

/// One attribute of a login role: `CONNECTION LIMIT`, `CREATEDB`, `INHERIT`, `REPLICATION`, `BYPASSRLS` or `NO...`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeSpec {
    /// Its name.
    pub name: String,
    /// Its value, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What becomes of sessions that are there when a version is revoked. Nobody can log in any more in either case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionsAtRevoke {
    /// They are ended.
    #[default]
    Terminate,
    /// They are waited for.
    Wait,
}

/// A spec that was understood.
pub(super) struct Plan {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: String,
    pub(super) minter: String,
    pub(super) minter_password: SecretRef,
    pub(super) tls: TlsSpec,
    pub(super) prefix: String,
    pub(super) owner: Ident,
    pub(super) heir: Ident,
    pub(super) roles: Vec<Ident>,
    /// Ready to stand in a statement.
    pub(super) attributes: String,
    pub(super) destructive: bool,
    pub(super) sessions_at_revoke: SessionsAtRevoke,
    pub(super) draws: Draws,
    pub(super) timeout: Duration,
}

impl Plan {
    pub(super) fn new(spec: PostgreSqlSpec) -> Result<Self, SpecError> {
        let user = spec.user;
        let port = match spec.port {
            Port::Number(number) => number,
            Port::Text(text) => text
                .trim()
                .parse()
                .map_err(|_| wrong(format!("`port` is {text:?}: use a number such as 5432")))?,
        };
        spec.tls.check(&spec.host).map_err(wrong)?;
        ident("auth.username", &spec.auth.username)?;
        ident("user.username", &user.username)?;
        if user.username.len() > NAME_BYTES_MAX - SUFFIX_BYTES {
            return Err(wrong(format!(
                "`user.username` is {} bytes long: it may have {}, since an underscore and 32 digits follow and PostgreSQL keeps {NAME_BYTES_MAX} bytes of a name",
                user.username.len(),
                NAME_BYTES_MAX - SUFFIX_BYTES
            )));
        }
        if spec.database.is_empty() || spec.database.contains('\0') || spec.database.len() > NAME_BYTES_MAX {
            return Err(wrong(format!("`database` must have 1 to {NAME_BYTES_MAX} bytes and no NUL")));
        }
        let owner_name = user.owner.as_ref().or(user.reassign_to.as_ref()).unwrap_or(&user.username);
        let owner = ident("user.owner", owner_name)?;
        if owner.raw() == spec.auth.username {
            return Err(wrong(
                "`user.owner` is the role that mints: versions would act as it and could mint themselves; create an owner role of its own"
                    .to_owned(),
            ));
        }
        let password = user.password.unwrap_or_else(PasswordSpec::plain);
        if !password.secret_keys.is_empty() {
            return Err(wrong("`user.password.secretKeys` has no meaning here: remove it".to_owned()));
        }
        let timeout = crate::spec::timeout(KIND, spec.timeout_seconds)?;
        Ok(Self {
            host: spec.host,
            port,
            database: spec.database,
            minter: spec.auth.username,
            minter_password: spec.auth.password,
            tls: spec.tls,
            heir: user
                .reassign_to
                .map_or_else(|| Ok(owner.clone()), |name| ident("user.reassignTo", &name))?,
            owner,
            prefix: user.username,
            roles: user.roles.iter().map(|role| ident("user.roles", role)).collect::<Result<_, _>>()?,
            attributes: attributes(&user.attributes)?,
            destructive: user.destructive_cleanup,
            sessions_at_revoke: user.sessions_at_revoke,
            draws: password.draws(KIND)?,
            timeout,
        })
    }

    /// The name of the role that this effect mints: never made from a version's number, which a restored store may
    /// give out again.
    pub(super) fn role_name(&self, effect: EffectId) -> String {
        format!("{}_{effect}", self.prefix)
    }
}

fn wrong(words: String) -> SpecError {
    SpecError::new(KIND, words)
}

fn ident(key: &str, name: &str) -> Result<Ident, SpecError> {
    Ident::new(name).map_err(|error| wrong(format!("`{key}` {error}")))
}

/// Attributes by a closed list: nothing that is written here gets into a statement as it is.
fn attributes(written: &[AttributeSpec]) -> Result<String, SpecError> {
    let mut ready = String::new();
    for AttributeSpec { name, value } in written {
        let upper = name.trim().to_ascii_uppercase();
        let known = [
            "CREATEDB",
            "NOCREATEDB",
            "INHERIT",
            "NOINHERIT",
            "REPLICATION",
            "NOREPLICATION",
            "BYPASSRLS",
            "NOBYPASSRLS",
        ];
        if upper == "CONNECTION LIMIT" {
            let limit: i32 = value.as_deref().unwrap_or_default().trim().parse().map_err(|_| {
                wrong("the attribute CONNECTION LIMIT needs a number as its `value`".to_owned())
            })?;
            ready.push_str(" CONNECTION LIMIT ");
            ready.push_str(&limit.to_string());
        } else if let Some(word) = known.iter().find(|word| **word == upper) {
            if value.as_deref().is_some_and(|value| !value.is_empty()) {
                return Err(wrong(format!("the attribute {word} takes no `value`")));
            }
            ready.push(' ');
            ready.push_str(word);
        } else {
            return Err(wrong(format!(
                "the attribute {upper:?} cannot be given: use CONNECTION LIMIT, {}; what versions may do otherwise is a matter of the owner role",
                known.join(", ")
            )));
        }
    }
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Result<Plan, SpecError> {
        let mut spec = json!({
            "database": "app", "host": "127.0.0.1", "tls": "disable",
            "auth": {"username": "minter", "password": {"file": "minter"}},
            "user": {"username": "orders"},
        });
        change(&mut spec);
        Plan::new(crate::spec::parse(KIND, &spec)?)
    }

    fn words(change: impl FnOnce(&mut serde_json::Value)) -> String {
        spec(change).err().map(|error| error.words).unwrap()
    }

    #[test]
    fn names_of_roles_come_from_the_effect_and_fit() {
        let plan = spec(|spec| spec["user"]["username"] = json!("x".repeat(30))).unwrap();
        assert_eq!(plan.role_name(EffectId(u128::MAX)).len(), NAME_BYTES_MAX);
        assert!(words(|spec| spec["user"]["username"] = json!("x".repeat(31))).contains("31 bytes"));
        assert_eq!(plan.owner.raw(), "x".repeat(30));
    }

    #[test]
    fn manifests_of_the_former_product_are_understood() {
        let plan = spec(|spec| {
            spec["port"] = json!("5433");
            spec["user"] = json!({
                "username": "orders", "suffixSize": 8, "roles": ["reader"], "destructiveCleanup": false,
                "reassignTo": "orders_owner", "attributes": [{"name": "connection limit", "value": "5"}],
            });
            spec["cleanupPolicy"] = json!({"type": "idle", "idleTimeout": "24h"});
        })
        .unwrap();
        assert_eq!(
            (plan.port, plan.owner.raw(), plan.attributes.as_str()),
            (5433, "orders_owner", " CONNECTION LIMIT 5")
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        assert!(words(|spec| spec["host"] = json!("db.example")).contains("tls"));
        assert!(words(|spec| spec["port"] = json!("x")).contains("port"));
        assert!(words(|spec| spec["user"]["owner"] = json!("minter")).contains("owner role of its own"));
        assert!(words(|spec| spec["user"]["username"] = json!("a\0b")).contains("NUL"));
        assert!(words(|spec| spec["user"]["username"] = json!("pg_orders")).contains("pg_"));
        assert!(words(|spec| spec["usr"] = json!({})).contains("usr"));
        for attribute in ["SUPERUSER", "LOGIN PASSWORD 'x'", "CREATEROLE", "CONNECTION LIMIT 1; DROP ROLE x"]
        {
            let attributes = json!([{"name": attribute}]);
            assert!(
                words(|spec| spec["user"]["attributes"] = attributes).contains("cannot be given"),
                "{attribute}"
            );
        }
    }
}
