//! Tokens are used once, renewal is bound to the key, and nobody is let in under a name that is not theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use identity::{AccessError, Caller, EnrolError, Identities, Lives, RenewError};
use protocol::api::{EnrolToken, NewOperator, OperatorProof, Role};
use protocol::enrol::{Bundle, EnrolRequest, Registration, RenewRequest};
use protocol::{OpeningKey, SigningKey, UnixMillis};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use store::{KeyEncryptionKey, Store};
use tempfile::TempDir;
use transport::{Peer, TlsIdentity, Trust};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

struct World {
    identities: Identities,
    store: Store,
    directory: TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyEncryptionKey::generate().unwrap();
        let store = Store::open(directory.path().join("eso.db"), key).await.unwrap();
        Identities::init(&store, None, NOW).await.unwrap();
        let identities = Identities::open(store.clone(), Lives::default()).await.unwrap();
        Self { identities, store, directory }
    }

    async fn bundle(&self, name: &str) -> Bundle {
        let request = EnrolToken { name: name.to_owned(), labels: BTreeMap::new(), life_ms: None };
        self.identities.issue_token(&request, "https://eso.test:8443", "operator:ann", NOW).await.unwrap()
    }
}

/// A new host's two halves.
struct Host {
    tls: KeyPair,
    report: SigningKey,
    open: OpeningKey,
}

impl Host {
    fn new() -> Self {
        Self {
            tls: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
            report: SigningKey::generate().unwrap(),
            open: OpeningKey::generate().unwrap(),
        }
    }

    fn request(&self, bundle: &Bundle) -> EnrolRequest {
        EnrolRequest {
            token: bundle.token.clone(),
            network_secret: bundle.network_secret.clone(),
            csr_pem: csr(&self.tls),
            registration: Registration::new(bundle, &self.report, self.open.public()).unwrap(),
            name: "anything".to_owned(),
            address: "127.0.0.1:1323".to_owned(),
        }
    }
}

fn csr(key: &KeyPair) -> String {
    // Asks for what it must not get: another name and to be an authority.
    let mut params = CertificateParams::new(vec!["control-plane.internal".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn peer(chain_pem: &str) -> Peer {
    Peer::from_der(&CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_is_consumed_once_by_a_hundred_at_the_same_time() {
    let world = std::sync::Arc::new(World::new().await);
    let bundle = world.bundle("web-1").await;
    let attempts: Vec<_> = (0..100)
        .map(|_| {
            let (world, request) = (world.clone(), Host::new().request(&bundle));
            tokio::spawn(async move { world.identities.enrol(&request, NOW).await })
        })
        .collect();
    let mut enrolled = Vec::new();
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok((host, _)) => enrolled.push(host),
            Err(EnrolError::Token) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(enrolled.len(), 1);
    let hosts = world.store.hosts().await.unwrap();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].host.id, enrolled[0].to_string());
    assert_eq!(hosts[0].host.name, "web-1");
}

#[tokio::test]
async fn a_certificate_says_who_the_token_and_the_key_say_and_nothing_that_the_request_asks() {
    let world = World::new().await;
    let host = Host::new();
    let (id, response) =
        world.identities.enrol(&host.request(&world.bundle("web-1").await), NOW).await.unwrap();
    let peer = peer(&response.chain_pem);
    assert_eq!(peer.uris, [format!("spiffe://{}/host/{id}", world.identities.installation())]);
    assert!(peer.dns.is_empty(), "{:?}", peer.dns);
    assert_eq!(peer.common_name.as_deref(), Some("web-1"));
    assert_eq!(id, protocol::HostId::of(&host.report.public()));
    assert!(response.renew_at < response.expires_at);
    assert_eq!(response.ca_pem, world.identities.authority().certificate_pem());
    TlsIdentity::from_pem(&response.chain_pem, &host.tls.serialize_pem()).unwrap();
    Trust::from_pem(&response.ca_pem).unwrap();
    let der = CertificateDer::from_pem_slice(response.chain_pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
    let caller = world.identities.authenticate(Some(&peer), None, NOW).await.unwrap();
    assert_eq!(caller, Caller::Host(id));
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again_by_the_same_keys_only() {
    let world = World::new().await;
    let bundle = world.bundle("web-1").await;
    let host = Host::new();
    let (first, _) = world.identities.enrol(&host.request(&bundle), NOW).await.unwrap();
    let (again, _) = world.identities.enrol(&host.request(&bundle), NOW).await.unwrap();
    assert_eq!(first, again);
    // A host that has moved meanwhile is looked for where it is now.
    let mut moved = host.request(&bundle);
    moved.address = "127.0.0.1:1400".to_owned();
    world.identities.enrol(&moved, NOW).await.unwrap();
    assert_eq!(world.store.host(&first.to_string()).await.unwrap().unwrap().host.address, moved.address);
    let thief = Host { tls: Host::new().tls, report: host.report, open: host.open };
    let refused = world.identities.enrol(&thief.request(&bundle), NOW).await;
    assert!(matches!(refused, Err(EnrolError::Token)), "{refused:?}");
}

#[tokio::test]
async fn a_host_that_asks_many_times_at_once_is_let_in_each_time() {
    let world = std::sync::Arc::new(World::new().await);
    let (bundle, host) = (world.bundle("web-1").await, Host::new());
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (world, request) = (world.clone(), host.request(&bundle));
        tries.spawn(async move { world.identities.enrol(&request, NOW).await });
    }
    while let Some(enrolled) = tries.join_next().await {
        enrolled.unwrap().unwrap();
    }
    assert_eq!(world.store.hosts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_not_exactly_the_bundles_is_refused_and_uses_up_nothing() {
    let world = World::new().await;
    let (bundle, other) = (world.bundle("web-1").await, world.bundle("web-2").await);
    let host = Host::new();

    let mut wrong_secret = host.request(&bundle);
    wrong_secret.network_secret = other.network_secret.clone();
    let mut foreign_keys = host.request(&bundle);
    foreign_keys.registration = Registration::new(&other, &host.report, host.open.public()).unwrap();
    // The network half swaps the applier's keys for its own: it has the bundle's network secret, not the applier's.
    let mut swapped = host.request(&bundle);
    let thief = Host::new();
    let mut guess = bundle.clone();
    guess.applier_secret = guess.network_secret.clone();
    swapped.registration = Registration::new(&guess, &thief.report, thief.open.public()).unwrap();
    let mut broken_csr = host.request(&bundle);
    broken_csr.csr_pem = broken_csr.csr_pem.replacen('A', "B", 3);
    let mut ed25519 = host.request(&bundle);
    ed25519.csr_pem = csr(&KeyPair::generate_for(&PKCS_ED25519).unwrap());
    let mut nowhere = host.request(&bundle);
    nowhere.address = "0.0.0.0:1323".to_owned();

    for (what, request) in [
        ("wrong secret", wrong_secret),
        ("foreign keys", foreign_keys),
        ("swapped keys", swapped),
        ("broken request", broken_csr),
        ("another kind of key", ed25519),
        ("an address that is none", nowhere),
    ] {
        assert!(world.identities.enrol(&request, NOW).await.is_err(), "{what}");
    }
    let late = UnixMillis(bundle.expires_at.0);
    assert!(matches!(world.identities.enrol(&host.request(&bundle), late).await, Err(EnrolError::Token)));
    world.identities.enrol(&host.request(&bundle), NOW).await.expect("the token is still good");
}

#[tokio::test]
async fn renewal_needs_the_very_key_that_is_renewed() {
    let world = World::new().await;
    let (host, other) = (Host::new(), Host::new());
    let (id, first) = world.identities.enrol(&host.request(&world.bundle("a").await), NOW).await.unwrap();
    let (_, others) = world.identities.enrol(&other.request(&world.bundle("b").await), NOW).await.unwrap();
    let request = |key: &KeyPair| RenewRequest { csr_pem: csr(key), address: "127.0.0.1:1324".to_owned() };

    let (renewed, answer) =
        world.identities.renew(&peer(&first.chain_pem), &request(&host.tls), NOW).await.unwrap();
    assert_eq!(renewed, id);
    assert_eq!(peer(&answer.chain_pem).spki, peer(&first.chain_pem).spki);
    assert_eq!(world.store.host(&id.to_string()).await.unwrap().unwrap().host.address, "127.0.0.1:1324");

    // A valid certificate of another host, with that host's key or with ours.
    for key in [&host.tls, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()] {
        let refused = world.identities.renew(&peer(&others.chain_pem), &request(key), NOW).await;
        assert!(matches!(refused, Err(RenewError::OtherKey)), "{refused:?}");
    }
    // Our certificate's names over another key: the connection proved that key, so it is what counts.
    let mut stolen = peer(&first.chain_pem);
    stolen.spki = peer(&others.chain_pem).spki;
    let refused = world.identities.renew(&stolen, &request(&other.tls), NOW).await;
    assert!(matches!(refused, Err(RenewError::Access(AccessError::OtherKey(_)))), "{refused:?}");
}

#[tokio::test]
async fn a_host_that_moves_all_the_time_does_not_fill_the_audit_log() {
    let world = World::new().await;
    let host = Host::new();
    let (id, answer) = world.identities.enrol(&host.request(&world.bundle("a").await), NOW).await.unwrap();
    for port in 1..=150 {
        let renew = RenewRequest { csr_pem: csr(&host.tls), address: format!("127.0.0.1:{port}") };
        world.identities.renew(&peer(&answer.chain_pem), &renew, NOW).await.unwrap();
    }
    // Where it is is known all the same.
    let row = world.store.host(&id.to_string()).await.unwrap().unwrap();
    assert_eq!(row.host.address, "127.0.0.1:150");
    let rows = world.store.audit_rows(0, 1000, Some(format!("host/{id}"))).await.unwrap();
    let told: Vec<_> = rows.iter().filter(|row| row.entry.action == "move").collect();
    assert_eq!(told.len(), 100);
    assert_eq!(told[0].entry.detail, "127.0.0.1:1");
    assert!(told[99].entry.detail.contains("not told here"), "{:?}", told[99]);
}

#[tokio::test]
async fn a_reimaged_host_of_the_same_name_is_another_host_and_a_retired_one_is_nobody() {
    let world = World::new().await;
    let (before, after) = (Host::new(), Host::new());
    let (old, answer) =
        world.identities.enrol(&before.request(&world.bundle("web-1").await), NOW).await.unwrap();
    let (new, _) = world.identities.enrol(&after.request(&world.bundle("web-1").await), NOW).await.unwrap();
    assert_ne!(old, new);
    world.store.retire_host(&old.to_string(), store::Audit::default()).await.unwrap();
    let refused = world.identities.authenticate(Some(&peer(&answer.chain_pem)), None, NOW).await;
    assert!(matches!(refused, Err(AccessError::Retired(_))), "{refused:?}");
    let token = world.bundle("web-1").await;
    let again = world.identities.enrol(&before.request(&token), NOW).await;
    assert!(matches!(again, Err(EnrolError::Retired(_))), "{again:?}");
    world.identities.enrol(&Host::new().request(&token), NOW).await.expect("that used up no token");
}

#[tokio::test]
async fn a_host_that_has_lost_its_certificate_comes_back_as_the_host_that_it_was() {
    let world = World::new().await;
    let host = Host::new();
    let (id, lost) = world.identities.enrol(&host.request(&world.bundle("web-1").await), NOW).await.unwrap();
    let mut anew = Host { tls: Host::new().tls, ..host };
    let mut request = anew.request(&world.bundle("another-name").await);
    request.address = "127.0.0.1:1400".to_owned();
    let (same, answer) = world.identities.enrol(&request, NOW).await.unwrap();
    assert_eq!(same, id);
    let caller = world.identities.authenticate(Some(&peer(&answer.chain_pem)), None, NOW).await.unwrap();
    assert_eq!(caller, Caller::Host(id));
    let refused = world.identities.authenticate(Some(&peer(&lost.chain_pem)), None, NOW).await;
    assert!(matches!(refused, Err(AccessError::OtherKey(_))), "{refused:?}");
    let rows = world.store.audit_rows(0, 1000, Some(format!("host/{id}"))).await.unwrap();
    assert_eq!(rows.last().unwrap().entry.action, "re_enroll", "{rows:?}");
    // What selects values for it stays as it was.
    let row = world.store.host(&id.to_string()).await.unwrap().unwrap();
    assert_eq!((row.host.name.as_str(), row.host.address.as_str()), ("web-1", "127.0.0.1:1400"));
    // The network half alone cannot bring another key for values.
    anew.open = Host::new().open;
    let refused = world.identities.enrol(&anew.request(&world.bundle("web-1").await), NOW).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn operators_are_known_by_key_or_token_until_they_expire_or_are_revoked() {
    let world = World::new().await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let new =
        |name: &str, role, proof| NewOperator { name: name.to_owned(), role, proof, life_ms: Some(1000) };
    let certificate = OperatorProof::Certificate { csr: csr(&key) };
    let ann =
        world.identities.add_operator(&new("ann", Role::Admin, certificate), "init", NOW).await.unwrap();
    let bob = new("bob", Role::Viewer, OperatorProof::Token);
    let bob = world.identities.add_operator(&bob, "operator:ann", NOW).await.unwrap();
    let (token, ann_peer) = (bob.token.unwrap(), peer(ann.certificate.as_ref().unwrap()));
    assert!(!format!("{ann:?}").contains("BEGIN"));

    let known = async |peer: Option<&Peer>, token: Option<&str>, at| match world
        .identities
        .authenticate(peer, token, at)
        .await
    {
        Ok(Caller::Operator(operator)) => Some((operator.name, operator.role)),
        Ok(Caller::Host(_)) => panic!("no host here"),
        Err(_) => None,
    };
    assert_eq!(known(Some(&ann_peer), None, NOW).await, Some(("ann".to_owned(), Role::Admin)));
    assert_eq!(known(None, Some(&token), NOW).await, Some(("bob".to_owned(), Role::Viewer)));
    assert_eq!(known(None, None, NOW).await, None);
    assert_eq!(known(None, Some("eso_op_00"), NOW).await, None);
    assert_eq!(known(None, Some(&token[..token.len() - 1]), NOW).await, None);
    let later = NOW.plus_ms(1000);
    assert_eq!(known(None, Some(&token), later).await, None, "expired");
    assert_eq!(known(Some(&ann_peer), None, later).await, None, "expired");

    // Another key under the same name, and the same key under another name.
    let mut imposter = ann_peer.clone();
    imposter.spki = transport::Spki([7; 32]);
    assert_eq!(known(Some(&imposter), None, NOW).await, None);
    let mut renamed = ann_peer.clone();
    renamed.uris = vec![transport::names::operator_uri(world.identities.installation(), "someone")];
    assert_eq!(known(Some(&renamed), None, NOW).await, None);

    assert!(world.identities.revoke_operator(&bob.operator.id, "operator:ann", NOW).await.unwrap());
    assert_eq!(known(None, Some(&token), NOW).await, None, "revoked");
    assert!(!world.identities.revoke_operator(&bob.operator.id, "operator:ann", NOW).await.unwrap());
    let database = std::fs::read(world.directory.path().join("eso.db-wal")).unwrap();
    let found = database.windows(token.len()).any(|window| window == token.as_bytes());
    assert!(!found, "the token itself is kept nowhere");
}

#[tokio::test]
async fn init_twice_changes_nothing() {
    let world = World::new().await;
    let before =
        (world.identities.authority().certificate_pem().to_owned(), world.identities.order_key().public());
    Identities::init(&world.store, None, NOW.plus_ms(5)).await.unwrap();
    let again = Identities::open(world.store.clone(), Lives::default()).await.unwrap();
    assert_eq!(before, (again.authority().certificate_pem().to_owned(), again.order_key().public()));
}
