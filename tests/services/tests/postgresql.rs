//! The PostgreSQL generator against real servers: the installed one (15, TLS) and the one from PyPI (18, whose rules
//! for roles are those of 16 and later).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

use std::sync::Arc;
use std::time::Duration;

use backends::{Failure, Generator, Mark, SecretValue, SecretsDirectory, build};
use lifecycle::id::{EffectId, Epoch};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_services::{Minting, PostgresKind, PostgresServer};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

/// Each scenario on both servers.
macro_rules! on_both {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        mod $name {
            $(#[$doc])*
            #[tokio::test]
            async fn on_the_installed_server() {
                super::scenario::$name(super::PostgresKind::Installed).await;
            }

            #[tokio::test]
            async fn on_the_embedded_server() {
                super::scenario::$name(super::PostgresKind::Embedded).await;
            }
        }
    )*};
}

on_both! {
    a_version_lives_and_dies
    what_one_version_creates_the_next_one_alters
    the_server_never_sees_a_password
    hostile_names_stay_names
    a_lost_permission_is_named_before_anything_is_minted
    a_permission_lost_later_stops_the_revocation_until_it_is_back
    sessions_that_stay_are_waited_for_or_ended
    what_a_version_owns_is_reassigned_in_every_database
    rights_that_others_gave_are_named
    a_late_create_is_found_by_its_mark
    an_existing_role_is_never_overwritten
    lasting_roles_are_never_dropped
    a_preflight_that_died_leaves_nothing_behind
    every_step_may_be_broken_off_and_done_again
    a_lock_of_an_application_delays_us_and_not_the_application
    a_bad_server_is_no_bad_credential
    a_role_that_was_there_before_is_tried_and_left_as_it_is
    a_version_that_would_not_act_as_the_owner_is_refused
}

struct Scene {
    server: PostgresServer,
    minting: Minting,
    secrets: TempDir,
}

impl Scene {
    async fn new(kind: PostgresKind) -> Self {
        Self::named(kind, "minter", "orders_owner").await
    }

    async fn named(kind: PostgresKind, minter: &str, owner: &str) -> Self {
        let server = PostgresServer::start(kind).unwrap();
        let minting = server.prepare(minter, owner).await.unwrap();
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("minter"), format!("{}\n", minting.password)).unwrap();
        Self { server, minting, secrets }
    }

    fn generator(&self) -> Arc<dyn Generator> {
        self.generator_with(|_| {})
    }

    fn generator_with(&self, change: impl FnOnce(&mut Value)) -> Arc<dyn Generator> {
        let mut spec = self.server.generator_spec(&self.minting, "orders", "minter".as_ref());
        change(&mut spec);
        build("PostgreSql", &spec, Arc::new(SecretsDirectory::new(self.secrets.path()))).unwrap()
    }

    async fn admin(&self) -> Client {
        self.server.administrator(&self.minting.database).await.unwrap()
    }

    async fn run(&self, statements: &str) {
        let answer = self.admin().await.batch_execute(statements).await;
        answer.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    async fn login(&self, value: &SecretValue) -> Result<Client, anyhow::Error> {
        self.login_to(value, &self.minting.database).await
    }

    async fn login_to(&self, value: &SecretValue, database: &str) -> Result<Client, anyhow::Error> {
        let text = |name: &str| value.expose_text(name).unwrap();
        self.server.session(text("username"), text("password"), database).await
    }

    /// The roles at the server that are ours to make.
    async fn roles(&self) -> Vec<String> {
        let rows = self
            .admin()
            .await
            .query("SELECT rolname::text FROM pg_roles WHERE rolname ~ '_[0-9a-f]{32}$' ORDER BY 1", &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.server.log_file()).unwrap()
    }
}

fn mark(effect: u128) -> Mark {
    Mark { installation: "test".to_owned(), epoch: Epoch { counter: 1, id: 7 }, effect: EffectId(effect) }
}

async fn minted(generator: &dyn Generator, effect: u128) -> SecretValue {
    let value = generator.new_value(EffectId(effect)).unwrap();
    assert!(generator.mint(&mark(effect), &value).await.unwrap().is_none());
    value
}

fn refused<T>(answer: Result<T, Failure>) -> String {
    match answer {
        Err(Failure::Refused(words)) => words,
        Err(Failure::Retry(words)) => panic!("to be tried again: {words}"),
        Ok(_) => panic!("not refused"),
    }
}

fn retried<T>(answer: Result<T, Failure>) -> String {
    match answer {
        Err(Failure::Retry(words)) => words,
        Err(Failure::Refused(words)) => panic!("refused: {words}"),
        Ok(_) => panic!("done"),
    }
}

mod scenario {
    #[allow(clippy::wildcard_imports, reason = "one file, parted for the macro's sake")]
    use super::*;

    pub(super) async fn a_version_lives_and_dies(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        generator.preflight(&mark(1)).await.unwrap();
        assert!(scene.roles().await.is_empty(), "a preflight leaves nothing");

        let value = minted(&*generator, 2).await;
        generator.mint(&mark(2), &value).await.unwrap();
        generator.verify(EffectId(2), &value).await.unwrap();
        assert_eq!(generator.sessions(EffectId(2), Some(&value)).await.unwrap(), Some(0));
        let session = scene.login(&value).await.unwrap();
        assert_eq!(generator.sessions(EffectId(2), Some(&value)).await.unwrap(), Some(1));
        assert_eq!(generator.sessions(EffectId(2), None).await.unwrap(), Some(1), "found by its mark too");
        let orphans = generator.orphans("test").await.unwrap();
        assert_eq!(orphans.iter().map(|orphan| orphan.mark.clone()).collect::<Vec<_>>(), [mark(2)]);
        assert!(generator.orphans("another").await.unwrap().is_empty());

        generator.end_sessions(EffectId(2), Some(&value)).await.unwrap();
        assert_eq!(generator.sessions(EffectId(2), Some(&value)).await.unwrap(), Some(0));
        assert!(session.batch_execute("SELECT 1").await.is_err());

        generator.revoke(EffectId(2), Some(&value)).await.unwrap();
        assert!(scene.login(&value).await.is_err());
        generator.revoke(EffectId(2), Some(&value)).await.unwrap();
        generator.revoke(EffectId(2), None).await.unwrap();
        generator.end_sessions(EffectId(2), Some(&value)).await.unwrap();
        assert_eq!(generator.sessions(EffectId(2), Some(&value)).await.unwrap(), Some(0));
        assert!(refused(generator.verify(EffectId(2), &value).await).contains("refuses a login"));
        assert!(generator.orphans("test").await.unwrap().is_empty());
    }

    /// What an administrator has to run, as a refusal says it.
    fn advised(words: &str) -> &str {
        words.split("run as an administrator: ").nth(1).unwrap()
    }

    pub(super) async fn a_role_that_was_there_before_is_tried_and_left_as_it_is(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        scene.run("CREATE ROLE legacy LOGIN PASSWORD 'of-old'; GRANT orders_owner TO legacy").await;
        let legacy = SecretValue::new().with("username", b"legacy").with("password", b"of-old");
        let session = scene.login(&legacy).await.unwrap();
        session
            .batch_execute("CREATE TABLE old_orders (id int); INSERT INTO old_orders VALUES (1)")
            .await
            .unwrap();
        scene.run("ALTER ROLE minter NOCREATEROLE").await;
        let words = refused(generator.try_revoking(EffectId(1), &legacy).await);
        assert!(words.contains("legacy"), "{words}");
        if scene.server.version() >= 16 {
            // May create roles, but not touch those that others made.
            scene.run("ALTER ROLE minter CREATEROLE").await;
            let still = refused(generator.try_revoking(EffectId(1), &legacy).await);
            assert!(still.contains("ADMIN OPTION"), "{still}");
        }
        scene.run(advised(&words)).await;
        for _ in 0..2 {
            generator.try_revoking(EffectId(1), &legacy).await.unwrap();
        }
        // Nothing was changed by it, and the preflight that follows leaves it alone too.
        generator.preflight(&mark(2)).await.unwrap();
        session.batch_execute("INSERT INTO old_orders VALUES (2)").await.unwrap();
        scene.login(&legacy).await.unwrap();
        let granted = scene
            .admin()
            .await
            .query_one(
                "SELECT count(*) FROM pg_auth_members m WHERE roleid = 'legacy'::regrole \
                 AND grantor = 'minter'::regrole",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(granted.get::<_, i64>(0), 0);
        // What was promised holds.
        generator.revoke(EffectId(1), Some(&legacy)).await.unwrap();
        assert!(scene.login(&legacy).await.is_err());
        let next = minted(&*generator, 3).await;
        scene.login(&next).await.unwrap().batch_execute("ALTER TABLE old_orders ADD n int").await.unwrap();
        // What is not there, is ours, or lasts, is nothing to try.
        generator.try_revoking(EffectId(1), &legacy).await.unwrap();
        generator.try_revoking(EffectId(3), &next).await.unwrap();
        let lasting = SecretValue::new().with("username", b"orders_owner").with("password", b"x");
        generator.try_revoking(EffectId(4), &lasting).await.unwrap();
        let elsewhere = refused(generator.try_revoking(EffectId(4), &next).await);
        assert!(elsewhere.contains("another effect"), "{elsewhere}");
    }

    /// What it creates would be its own, and the next version could not alter it.
    pub(super) async fn a_version_that_would_not_act_as_the_owner_is_refused(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let value = minted(&*generator, 1).await;
        generator.verify(EffectId(1), &value).await.unwrap();
        let name = value.expose_text("username").unwrap();
        scene.run(&format!("ALTER ROLE \"{name}\" RESET role")).await;
        let words = refused(generator.verify(EffectId(1), &value).await);
        assert!(words.contains("acts as") && words.contains("orders_owner"), "{words}");
        // An imported one was never told to: it is taken as it is.
        generator.verify(EffectId(2), &value).await.unwrap();
    }

    pub(super) async fn what_one_version_creates_the_next_one_alters(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let first = minted(&*generator, 1).await;
        let session = scene.login(&first).await.unwrap();
        session.batch_execute("CREATE TABLE orders (id int); INSERT INTO orders VALUES (1)").await.unwrap();
        // A pool that resets its sessions stays the owner.
        session.batch_execute("DISCARD ALL").await.unwrap();
        session.batch_execute("CREATE TABLE more (id int)").await.unwrap();

        let second = minted(&*generator, 2).await;
        generator.revoke(EffectId(1), Some(&first)).await.unwrap();
        let session = scene.login(&second).await.unwrap();
        session.batch_execute("ALTER TABLE orders ADD COLUMN price int; DROP TABLE more").await.unwrap();
        assert_eq!(session.query("SELECT price FROM orders", &[]).await.unwrap().len(), 1);
    }

    pub(super) async fn the_server_never_sees_a_password(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        scene.run("ALTER SYSTEM SET log_statement = 'all'").await;
        scene.run("SELECT pg_reload_conf()").await;
        let generator = scene.generator();
        generator.preflight(&mark(1)).await.unwrap();
        let value = minted(&*generator, 2).await;
        generator.verify(EffectId(2), &value).await.unwrap();
        // A statement that fails stands in the log as it was sent.
        generator.mint(&mark(2), &value).await.unwrap();
        scene.run("ALTER ROLE minter NOCREATEROLE").await;
        let other = generator.new_value(EffectId(3)).unwrap();
        assert!(generator.mint(&mark(3), &other).await.is_err());
        generator.revoke(EffectId(2), Some(&value)).await.unwrap_err();

        let log = scene.log();
        assert!(
            log.contains("CREATE ROLE") && log.contains("SCRAM-SHA-256$4096:"),
            "the log says what was sent"
        );
        for value in [&value, &other] {
            let password = value.expose_text("password").unwrap();
            assert!(!log.contains(password));
            assert!(!log.contains(&hex::encode(password)));
        }
        assert!(!log.contains(&scene.minting.password));
    }

    pub(super) async fn hostile_names_stay_names(kind: PostgresKind) {
        let owner = "o\"wn'er; DROP ROLE postgres; --";
        let scene = Scene::named(kind, "min\"ter\\", owner).await;
        scene.run("CREATE ROLE witness").await;
        scene.run("CREATE DATABASE \"d\"\"b; DROP\"").await;
        let prefixes = [
            "a\"b",
            "a'b",
            "a\\'b",
            "x\"; DROP ROLE witness; --",
            "x'; DROP ROLE witness; --",
            "$$; DROP ROLE witness",
            "b\u{f6}se \u{2603}\u{1f600}",
            "UPPER case",
            "line\nbreak",
            "tab\t%n$1",
            "select",
            "-- x",
            "/* x",
            "a/*b*/c",
        ];
        for (number, prefix) in prefixes.iter().enumerate() {
            let effect = number as u128 + 10;
            let generator = scene.generator_with(|spec| spec["user"]["username"] = json!(prefix));
            if number < 4 {
                generator.preflight(&mark(1)).await.unwrap_or_else(|failure| panic!("{prefix:?}: {failure}"));
            }
            let value = minted(&*generator, effect).await;
            assert_eq!(scene.roles().await, [format!("{prefix}_{}", EffectId(effect))]);
            generator.verify(EffectId(effect), &value).await.unwrap();
            let session = scene.login_to(&value, "d\"b; DROP").await.unwrap();
            session.batch_execute("SET ROLE NONE; CREATE TEMP TABLE t (id int)").await.unwrap();
            assert_eq!(generator.sessions(EffectId(effect), Some(&value)).await.unwrap(), Some(1));
            assert_eq!(generator.orphans("test").await.unwrap().len(), 1);
            generator.revoke(EffectId(effect), Some(&value)).await.unwrap();
            assert!(scene.roles().await.is_empty(), "{prefix:?}");
        }
        assert_eq!(
            scene
                .admin()
                .await
                .query("SELECT FROM pg_roles WHERE rolname = 'witness'", &[])
                .await
                .unwrap()
                .len(),
            1
        );

        // NUL, too long, and what the server keeps for itself are refused before anything is sent.
        for prefix in ["a\0b", &"x".repeat(31), &"\u{f6}".repeat(16), "", "pg_x"] {
            let mut spec = scene.server.generator_spec(&scene.minting, prefix, "minter".as_ref());
            let secrets = Arc::new(SecretsDirectory::new(scene.secrets.path()));
            assert!(build("PostgreSql", &spec, secrets.clone()).is_err(), "{prefix:?}");
            spec["user"]["username"] = json!("orders");
            spec["user"]["owner"] = json!(format!("{prefix}{}", "\0"));
            assert!(build("PostgreSql", &spec, secrets).is_err());
        }
        // A value that was tampered with or imported is no way in either.
        let generator = scene.generator();
        for name in ["a\0b", "", &"x".repeat(64)] {
            let value = SecretValue::new().with("username", name.as_bytes()).with("password", b"p");
            refused(generator.verify(EffectId(1), &value).await);
            refused(generator.revoke(EffectId(1), Some(&value)).await);
        }
    }

    pub(super) async fn a_lost_permission_is_named_before_anything_is_minted(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let admin_option = if scene.server.version() < 16 { "" } else { " WITH ADMIN OPTION" };
        for (break_it, words, mend_it) in [
            ("ALTER ROLE minter NOCREATEROLE".to_owned(), "CREATEROLE", "ALTER ROLE minter CREATEROLE".to_owned()),
            (
                "REVOKE orders_owner FROM minter".to_owned(),
                // Before 16 whoever has CREATEROLE may give any role to a version, and has it through the version.
                if scene.server.version() < 16 { "" } else { "GRANT \"orders_owner\" TO \"minter\"" },
                format!("GRANT orders_owner TO minter{admin_option}"),
            ),
            (
                // Whoever is a member of the owner may connect as the owner may.
                "CREATE DATABASE other; REVOKE CONNECT ON DATABASE other FROM PUBLIC; GRANT CONNECT ON DATABASE other TO orders_owner".to_owned(),
                "",
                "DROP DATABASE other".to_owned(),
            ),
            ("ALTER ROLE orders_owner SUPERUSER".to_owned(), "superuser", "ALTER ROLE orders_owner NOSUPERUSER".to_owned()),
            ("ALTER ROLE minter NOLOGIN".to_owned(), "`auth`", "ALTER ROLE minter LOGIN".to_owned()),
            ("REVOKE CONNECT ON DATABASE app FROM PUBLIC".to_owned(), "app", "GRANT CONNECT ON DATABASE app TO PUBLIC".to_owned()),
        ] {
            for statement in break_it.split("; ") {
                scene.run(statement).await;
            }
            let answer = generator.preflight(&mark(1)).await;
            if words.is_empty() {
                answer.unwrap_or_else(|failure| panic!("{break_it}: {failure}"));
            } else {
                let said = refused(answer);
                assert!(said.contains(words), "{break_it}: {said}");
                assert!(!said.contains(&scene.minting.password));
            }
            assert!(scene.roles().await.is_empty(), "{break_it}: nothing is left");
            for statement in mend_it.split("; ") {
                scene.run(statement).await;
            }
        }
        generator.preflight(&mark(1)).await.unwrap();

        let missing = scene.generator_with(|spec| spec["user"]["owner"] = json!("nobody"));
        assert!(refused(missing.preflight(&mark(1)).await).contains("CREATE ROLE \"nobody\" NOLOGIN"));
        scene.run("CREATE ROLE reader").await;
        let reader = scene.generator_with(|spec| spec["user"]["roles"] = json!(["reader"]));
        assert!(refused(reader.preflight(&mark(1)).await).contains("GRANT \"reader\" TO \"orders_owner\""));
        scene.run("GRANT reader TO orders_owner").await;
        reader.preflight(&mark(1)).await.unwrap();
        std::fs::write(scene.secrets.path().join("minter"), "wrong").unwrap();
        assert!(refused(generator.preflight(&mark(1)).await).contains("`auth`"));
        std::fs::remove_file(scene.secrets.path().join("minter")).unwrap();
        assert!(retried(generator.preflight(&mark(1)).await).contains("failed to read"));
    }

    pub(super) async fn a_permission_lost_later_stops_the_revocation_until_it_is_back(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let value = minted(&*generator, 1).await;
        scene.run("ALTER ROLE minter NOCREATEROLE").await;
        assert!(refused(generator.revoke(EffectId(1), Some(&value)).await).contains("failed to"));
        assert!(scene.login(&value).await.is_ok(), "nothing was half done");
        scene.run("ALTER ROLE minter CREATEROLE").await;
        generator.revoke(EffectId(1), Some(&value)).await.unwrap();
        assert!(scene.login(&value).await.is_err());
    }

    pub(super) async fn sessions_that_stay_are_waited_for_or_ended(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let waiting = scene.generator_with(|spec| spec["user"]["sessionsAtRevoke"] = json!("wait"));
        let value = minted(&*waiting, 1).await;
        let session = scene.login(&value).await.unwrap();
        assert!(retried(waiting.revoke(EffectId(1), Some(&value)).await).contains("1 sessions"));
        session.batch_execute("SELECT 1").await.unwrap();
        assert!(scene.login(&value).await.is_err(), "nobody comes in any more");
        drop(session);
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(failure) = waiting.revoke(EffectId(1), Some(&value)).await {
            assert!(Instant::now() < until, "{failure}");
            sleep(Duration::from_millis(20)).await;
        }

        let ending = scene.generator();
        let value = minted(&*ending, 2).await;
        let session = scene.login(&value).await.unwrap();
        // A thief who comes back again and again.
        let thief = tokio::spawn({
            let config = scene.server.config(
                value.expose_text("username").unwrap(),
                value.expose_text("password").unwrap(),
                &scene.minting.database,
            );
            async move {
                let mut kept = Vec::new();
                loop {
                    if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                        tokio::spawn(async move { drop(connection.await) });
                        kept.push(client);
                    }
                    sleep(Duration::from_millis(2)).await;
                }
            }
        });
        ending.revoke(EffectId(2), Some(&value)).await.unwrap();
        thief.abort();
        assert!(session.batch_execute("SELECT 1").await.is_err());
        let left = scene
            .admin()
            .await
            .query_one("SELECT count(*) FROM pg_stat_activity a WHERE usesysid IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles WHERE oid = a.usesysid)", &[])
            .await
            .unwrap();
        assert_eq!(left.get::<_, i64>(0), 0, "no session outlives its role");
    }

    pub(super) async fn what_a_version_owns_is_reassigned_in_every_database(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        scene.run("CREATE DATABASE second").await;
        for database in ["app", "second"] {
            let admin = scene.server.administrator(database).await.unwrap();
            admin.batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await.unwrap();
        }
        let generator = scene.generator();
        let value = minted(&*generator, 1).await;
        let name = value.expose_text("username").unwrap();
        for database in ["app", "second"] {
            let session = scene.login_to(&value, database).await.unwrap();
            session
                .batch_execute(
                    "SET ROLE NONE; CREATE TABLE mine (id int); CREATE VIEW seen AS SELECT * FROM mine; \
                     GRANT SELECT ON mine TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC; \
                     SELECT lo_create(0)",
                )
                .await
                .unwrap();
            let admin = scene.server.administrator(database).await.unwrap();
            admin
                .batch_execute(&format!(
                    "SET ROLE orders_owner; CREATE TABLE theirs (id int); GRANT SELECT ON theirs TO \"{name}\""
                ))
                .await
                .unwrap();
        }

        generator.revoke(EffectId(1), Some(&value)).await.unwrap();
        for database in ["app", "second"] {
            let admin = scene.server.administrator(database).await.unwrap();
            let owner = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname = 'mine'";
            assert_eq!(admin.query_one(owner, &[]).await.unwrap().get::<_, String>(0), "orders_owner");
        }

        let destructive = scene.generator_with(|spec| spec["user"]["destructiveCleanup"] = json!(true));
        let value = minted(&*destructive, 2).await;
        let session = scene.login(&value).await.unwrap();
        session.batch_execute("SET ROLE NONE; CREATE TABLE passing (id int)").await.unwrap();
        destructive.revoke(EffectId(2), Some(&value)).await.unwrap();
        let left =
            scene.admin().await.query("SELECT FROM pg_class WHERE relname = 'passing'", &[]).await.unwrap();
        assert!(left.is_empty());
    }

    pub(super) async fn rights_that_others_gave_are_named(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        scene.run("CREATE TABLE theirs (id int)").await;
        let generator = scene.generator();
        let value = minted(&*generator, 1).await;
        let name = value.expose_text("username").unwrap();
        scene.run(&format!("GRANT SELECT ON theirs TO \"{name}\"")).await;
        let said = refused(generator.revoke(EffectId(1), Some(&value)).await);
        assert!(said.contains("theirs") && said.contains("DROP OWNED BY"), "{said}");
        assert!(scene.login(&value).await.is_err(), "it is closed all the same");
        scene.run(&format!("DROP OWNED BY \"{name}\"")).await;
        generator.revoke(EffectId(1), Some(&value)).await.unwrap();
        assert!(scene.roles().await.is_empty());
    }

    pub(super) async fn a_late_create_is_found_by_its_mark(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let value = generator.new_value(EffectId(1)).unwrap();
        // The intent is aborted, the drop finds nothing, then the request arrives.
        generator.revoke(EffectId(1), Some(&value)).await.unwrap();
        generator.mint(&mark(1), &value).await.unwrap();
        let orphans = generator.orphans("test").await.unwrap();
        assert_eq!(orphans.len(), 1);
        assert_eq!(orphans[0].mark, mark(1));
        // Its value may be lost by then.
        generator.revoke(orphans[0].mark.effect, None).await.unwrap();
        assert!(scene.login(&value).await.is_err());
        assert!(generator.orphans("test").await.unwrap().is_empty());
    }

    pub(super) async fn an_existing_role_is_never_overwritten(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let value = generator.new_value(EffectId(1)).unwrap();
        let name = value.expose_text("username").unwrap();
        scene.run(&format!("CREATE ROLE \"{name}\" LOGIN PASSWORD 'theirs'")).await;
        assert!(refused(generator.mint(&mark(1), &value).await).contains("exists already"));
        assert!(scene.server.session(name, "theirs", "app").await.is_ok());

        // A store that was reverted mints the same effect for another installation: also no.
        let mine = minted(&*generator, 2).await;
        let foreign = Mark { installation: "another".to_owned(), ..mark(2) };
        assert!(refused(generator.mint(&foreign, &mine).await).contains("exists already"));
        assert!(scene.login(&mine).await.is_ok());
        // The same effect with another value is found out by a login.
        let other = generator.new_value(EffectId(2)).unwrap();
        generator.mint(&mark(2), &other).await.unwrap();
        refused(generator.verify(EffectId(2), &other).await);
        assert!(scene.login(&mine).await.is_ok());
        // And an effect does not revoke what another one minted.
        assert!(refused(generator.revoke(EffectId(3), Some(&mine)).await).contains("another effect"));
        assert!(scene.login(&mine).await.is_ok());
    }

    pub(super) async fn lasting_roles_are_never_dropped(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        for (name, password) in [("orders_owner", "x"), ("minter", "x"), ("postgres", "x")] {
            let value =
                SecretValue::new().with("username", name.as_bytes()).with("password", password.as_bytes());
            assert!(refused(generator.revoke(EffectId(1), Some(&value)).await).contains("not dropped by us"));
        }
        assert!(scene.admin().await.batch_execute("SELECT 1").await.is_ok());
    }

    pub(super) async fn a_preflight_that_died_leaves_nothing_behind(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        for delay_ms in (0..400).step_by(40) {
            drop(timeout(Duration::from_millis(delay_ms), generator.preflight(&mark(1))).await);
        }
        generator.preflight(&mark(1)).await.unwrap();
        assert!(scene.roles().await.is_empty());
        assert!(generator.orphans("test").await.unwrap().is_empty());
    }

    pub(super) async fn every_step_may_be_broken_off_and_done_again(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        for delay_ms in (1..300).step_by(30) {
            let effect = u128::from(delay_ms) + 1000;
            let value = generator.new_value(EffectId(effect)).unwrap();
            drop(timeout(Duration::from_millis(delay_ms), generator.mint(&mark(effect), &value)).await);
            generator.mint(&mark(effect), &value).await.unwrap();
            generator.verify(EffectId(effect), &value).await.unwrap();
            let session = scene.login(&value).await.unwrap();
            session.batch_execute("CREATE TABLE IF NOT EXISTS t (id int)").await.unwrap();
            drop(
                timeout(Duration::from_millis(delay_ms), generator.revoke(EffectId(effect), Some(&value)))
                    .await,
            );
            generator.revoke(EffectId(effect), Some(&value)).await.unwrap();
            assert!(scene.login(&value).await.is_err());
        }
        assert!(scene.roles().await.is_empty());
    }

    pub(super) async fn a_lock_of_an_application_delays_us_and_not_the_application(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        scene.run("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
        let generator = scene.generator();
        let old = minted(&*generator, 1).await;
        let new = minted(&*generator, 2).await;
        let session = scene.login(&old).await.unwrap();
        session
            .batch_execute("SET ROLE NONE; CREATE TABLE busy (id int); GRANT ALL ON busy TO PUBLIC")
            .await
            .unwrap();
        let mut application = scene.login(&new).await.unwrap();
        let transaction = application.transaction().await.unwrap();
        transaction.batch_execute("INSERT INTO busy VALUES (1)").await.unwrap();
        let said = retried(generator.revoke(EffectId(1), Some(&old)).await);
        assert!(said.contains("lock"), "{said}");
        transaction.batch_execute("INSERT INTO busy VALUES (2)").await.unwrap();
        transaction.commit().await.unwrap();
        generator.revoke(EffectId(1), Some(&old)).await.unwrap();
    }

    pub(super) async fn a_bad_server_is_no_bad_credential(kind: PostgresKind) {
        let scene = Scene::new(kind).await;
        let generator = scene.generator();
        let value = minted(&*generator, 1).await;
        // A certificate of somebody else, or no TLS at all where it is asked for: nothing is said to that server.
        let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let before = scene.server.logins().unwrap().len();
        let suspicious = scene.generator_with(|spec| spec["tls"] = json!({"caBundle": stranger.cert.pem()}));
        retried(suspicious.verify(EffectId(1), &value).await);
        retried(suspicious.revoke(EffectId(1), Some(&value)).await);
        assert_eq!(scene.server.logins().unwrap().len(), before);
        // Full is not refused.
        let limited = scene.generator_with(|spec| {
            spec["user"]["attributes"] = json!([{"name": "CONNECTION LIMIT", "value": "1"}]);
        });
        let value = minted(&*limited, 2).await;
        let _session = scene.login(&value).await.unwrap();
        retried(limited.verify(EffectId(2), &value).await);
        // Nobody there.
        let nobody = scene.generator_with(|spec| spec["port"] = json!("1"));
        retried(nobody.revoke(EffectId(1), Some(&value)).await);
    }
}
