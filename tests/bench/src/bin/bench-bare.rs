//! The floor of `eso-vm-server`: rustls and hyper on one thread, answering each request with as many bytes as it asks
//! for. With `--timer` that of a flip: a rename at an instant. Uses nothing of ours.
#![allow(clippy::print_stdout, reason = "the address is told on standard output")]

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "--timer") {
        let place = words.next().context("name the directory of the link")?;
        return rename_at_instants(&PathBuf::from(place));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve())
}

/// Reads lines of an instant (nanoseconds since 1970) and a name, and lets the link lead to that name at the instant.
fn rename_at_instants(place: &Path) -> anyhow::Result<()> {
    let directory = std::fs::File::open(place)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (instant, name) = line.split_once(' ').context("an instant and a name are expected")?;
        let at = UNIX_EPOCH + Duration::from_nanos(instant.parse()?);
        std::thread::sleep(at.duration_since(SystemTime::now()).unwrap_or_default());
        std::os::unix::fs::symlink(name, place.join("..data.new"))?;
        std::fs::rename(place.join("..data.new"), place.join("..data"))?;
        directory.sync_all()?;
    }
    Ok(())
}

async fn serve() -> anyhow::Result<()> {
    let files = PathBuf::from(std::env::args_os().nth(1).context("name the directory of the certificates")?);
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.join("ca.pem"))?)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let chain = vec![CertificateDer::from_pem_file(files.join("chain.pem"))?];
    let key = PrivateKeyDer::from_pem_file(files.join("key.pem"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let mut http = http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new());
            // A client that leaves is no error.
            let _ = http.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let wanted = request.headers().get("x-answer-bytes").and_then(|value| value.to_str().ok()?.parse().ok());
    // What cannot be read is not answered with less.
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::new(Bytes::from(vec![b'x'; wanted.unwrap_or(0)]))))
}
