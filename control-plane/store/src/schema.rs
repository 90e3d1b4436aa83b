//! The tables, and the way from each schema to the next.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::Failure;

/// "esoc" in ASCII: tells our files from other people's.
pub(crate) const APPLICATION_ID: i32 = 0x6573_6f63;

/// Each entry leads from the schema of its index to the next. Never change one that was released: add one.
pub(crate) const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    text TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Which lives of the store there were; the last is in force.
CREATE TABLE epochs (
    counter INTEGER PRIMARY KEY,
    id      TEXT NOT NULL
) STRICT;

-- The whole lifecycle state with its outbox: who has what. Never a value.
CREATE TABLE credentials (
    name     TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    state    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Values, encrypted. Written once, by the effect that minted them; erased when retired.
CREATE TABLE secret_values (
    effect     TEXT PRIMARY KEY,
    credential TEXT NOT NULL,
    sealed     BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The control plane's own keys (order key, certificate authority), encrypted.
CREATE TABLE own_keys (
    name   TEXT PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    labels       TEXT NOT NULL,
    address      TEXT NOT NULL,
    verify_key   BLOB NOT NULL,
    seal_key     BLOB NOT NULL,
    spki         TEXT NOT NULL,
    status       TEXT NOT NULL,
    enrolled_ms  INTEGER NOT NULL,
    last_seen_ms INTEGER NOT NULL,
    progress     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX hosts_by_name ON hosts (name);

CREATE TABLE tokens (
    id          TEXT PRIMARY KEY,
    sealed      BLOB NOT NULL,
    host_name   TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    consumed_ms INTEGER,
    consumed_by TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE operators (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    role       TEXT NOT NULL,
    proof_kind TEXT NOT NULL,
    proof      TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    at_ms    INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    link     BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_subject ON audit (subject, sequence);
",
    "
-- Records that decide who may do what, and who gets values, are signed: see `records`.
ALTER TABLE operators ADD COLUMN signature BLOB;
ALTER TABLE hosts ADD COLUMN signature BLOB;
",
];

pub(crate) fn setting(connection: &Connection, name: &str) -> Result<Option<String>, Failure> {
    let text = connection
        .prepare_cached("SELECT text FROM settings WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(text)
}

pub(crate) fn set_setting(connection: &Connection, name: &str, text: &str) -> Result<(), Failure> {
    connection
        .prepare_cached(
            "INSERT INTO settings (name, text) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET text = ?2",
        )?
        .execute(params![name, text])?;
    Ok(())
}
