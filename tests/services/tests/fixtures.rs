//! The fixtures themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

use tests_services::{OpenBao, PostgresKind, PostgresServer};

async fn a_cluster_is_private_and_vanishes(kind: PostgresKind) {
    let server = PostgresServer::start(kind).unwrap();
    let address = server.address();
    let admin = server.administrator("postgres").await.unwrap();
    let version: i32 =
        admin.query_one("SELECT current_setting('server_version_num')::int4", &[]).await.unwrap().get(0);
    assert_eq!(u32::try_from(version).unwrap() / 10_000, server.version());
    assert!(server.session("postgres", "wrong", "postgres").await.is_err());

    let logins = server.logins().unwrap();
    let seen: Vec<_> = logins.iter().map(|login| (login.client.is_some(), login.accepted)).collect();
    assert_eq!(seen, [(false, true), (true, false)], "{logins:?}");

    let log = server.log_file().to_owned();
    drop(admin);
    drop(server);
    assert!(std::net::TcpStream::connect(address).is_err());
    assert!(!log.parent().unwrap().exists());
}

#[tokio::test]
async fn an_installed_cluster_is_private_and_vanishes() {
    a_cluster_is_private_and_vanishes(PostgresKind::Installed).await;
}

#[tokio::test]
async fn an_embedded_cluster_is_private_and_vanishes() {
    a_cluster_is_private_and_vanishes(PostgresKind::Embedded).await;
}

#[test]
fn an_openbao_is_private_and_vanishes() {
    let bao = OpenBao::start().unwrap();
    bao.run(&["kv", "put", "-mount=secret", "a", "b=c"]).unwrap();
    assert_eq!(bao.run(&["kv", "get", "-mount=secret", "-field=b", "a"]).unwrap().trim(), "c");
    let token = bao.token_file();
    drop(bao);
    assert!(!token.exists());
}
