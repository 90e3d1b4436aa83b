//! Who may call what: every route without an identity and with every wrong one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of the shared world")]

mod world;

use eso_control_plane::{Needs, table::table};
use protocol::api::{AuditPage, Done, OperatorView, Problem, Reason, Role};
use protocol::enrol::{Bundle, EnrolRequest, EnrolResponse, RenewRequest, TokenId};
use reqwest::Method;
use world::{Caller, HostKeys, World, csr};

/// Whether a caller may do what needs this.
type Allowed = Box<dyn Fn(Needs) -> bool>;

fn path(template: &str) -> String {
    template
        .replace("{name}", "nothing")
        .replace("{version}", "1")
        .replace("{host}", "nobody")
        .replace("{id}", "x")
}

#[tokio::test]
async fn every_route_refuses_nobody_and_every_wrong_kind() {
    let world = World::start().await;
    let host = world.host("web-1").await;
    let bundle = world.bundle("web-2").await;
    let (scraper, _) = world.operator(Role::Scraper).await;
    let (viewer, _) = world.operator(Role::Viewer).await;
    let (operator, _) = world.operator(Role::Operator).await;
    let (admin, _) = world.operator(Role::Admin).await;
    let (ended, issued) = world.operator(Role::Admin).await;
    let end = format!("/v1/operators/{}", issued.operator.id);
    assert_eq!(admin.request(Method::DELETE, &end).send().await.unwrap().status(), 200);
    let host_with_token = Caller { token: admin.token.clone(), ..world.host("web-3").await.caller };
    let role = |role| move |needs| matches!(needs, Needs::Operator(least) if role >= least);
    let callers: [(&str, Caller, Allowed); 11] = [
        ("nobody", world.anybody(), Box::new(|_| false)),
        ("a made-up token", world.with_token("eso_op_00"), Box::new(|_| false)),
        ("an enrolment token's id", world.with_token(&bundle.token.to_string()), Box::new(|_| false)),
        ("a revoked admin", ended, Box::new(|_| false)),
        ("a host with an admin's token", host_with_token, Box::new(|_| false)),
        ("a host", host.caller, Box::new(|needs| needs == Needs::Host)),
        ("a scraper", scraper, Box::new(|needs| needs == Needs::Scraper)),
        ("a viewer", viewer, Box::new(role(Role::Viewer))),
        ("an operator", operator, Box::new(role(Role::Operator))),
        ("an admin by token", admin, Box::new(role(Role::Admin))),
        ("an admin by certificate", world.admin(), Box::new(role(Role::Admin))),
    ];
    let unenrolled = unenrolled(&world, &bundle).await;
    let routes = table();
    assert!(routes.len() > 35);
    assert!(routes.iter().any(|route| route.needs == Needs::EnrolmentToken));
    for route in routes {
        for (who, caller, allowed) in &callers {
            let response = caller.request(route.method.clone(), &path(route.path)).send().await.unwrap();
            let status = response.status().as_u16();
            let what = format!("{who}: {} {} -> {status}", route.method, route.path);
            match route.needs {
                Needs::Nothing => assert_eq!(status, 200, "{what}"),
                // Whatever else is shown, the token in the body decides; here there is none.
                Needs::EnrolmentToken => {
                    assert_eq!(status, 415, "{what}");
                    for (wrong, request) in &unenrolled {
                        let refused = caller.post(route.path, request).await;
                        let status = refused.status().as_u16();
                        assert!(status == 401 || status == 403, "{what}, with {wrong}: {status}");
                        let problem: Problem = refused.json().await.unwrap();
                        assert!(!problem.action.is_empty(), "{what}, with {wrong}");
                    }
                }
                needs if allowed(needs) => assert!(status != 401 && status != 403, "{what}"),
                _ => {
                    assert!(status == 401 || status == 403, "{what}");
                    let problem: Problem = response.json().await.unwrap();
                    assert!(!problem.action.is_empty(), "{what}");
                }
            }
        }
    }
    // None of all that used the good token up.
    let response = world.anybody().post("/v1/enroll", &HostKeys::new().request(&bundle)).await;
    assert_eq!(response.status(), 200);
    world.stop().await;
}

/// Whole enrolment requests, each with a token that is not good.
async fn unenrolled(world: &World, bundle: &Bundle) -> Vec<(&'static str, EnrolRequest)> {
    let used = world.bundle("web-4").await;
    let response = world.anybody().post("/v1/enroll", &HostKeys::new().request(&used)).await;
    assert_eq!(response.status(), 200);
    let mut unknown = HostKeys::new().request(bundle);
    unknown.token = TokenId(bundle.installation.0);
    let mut stolen = HostKeys::new().request(bundle);
    stolen.network_secret = used.network_secret.clone();
    vec![
        ("a token that was used", HostKeys::new().request(&used)),
        ("a token that nobody issued", unknown),
        ("a token without its secret", stolen),
    ]
}

/// Labels choose the credentials that a host gets, so whoever sets them decides who reads values, as whoever issues an
/// enrolment token does. Nobody below an admin may, whatever they may do to a rotation.
#[tokio::test]
async fn who_may_rotate_may_not_decide_who_gets_values() {
    let world = World::start().await;
    let host = world.host("web-1").await;
    let labels = serde_json::json!({ "labels": { "app": "orders" } });
    let token = serde_json::json!({ "name": "web-2", "labels": { "app": "orders" } });
    let path = format!("/v1/hosts/{}/labels", host.id);
    for role in [Role::Scraper, Role::Viewer, Role::Operator] {
        let (caller, _) = world.operator(role).await;
        let answer = caller.request(Method::PUT, &path).json(&labels).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{role:?} labels a host");
        let answer = caller.post("/v1/hosts/enroll-token", &token).await;
        assert_eq!(answer.status(), 403, "{role:?} issues a token");
    }
    let own = host.caller.request(Method::PUT, &path).json(&labels).send().await.unwrap();
    assert_eq!(own.status(), 403, "a host labels itself");
    let detail: serde_json::Value =
        world.admin().get(&format!("/v1/hosts/{}", host.id)).await.json().await.unwrap();
    assert_eq!(detail["labels"], serde_json::json!({}));
    let (admin, _) = world.operator(Role::Admin).await;
    let answer = admin.request(Method::PUT, &path).json(&labels).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    world.stop().await;
}

/// A deadline clears whoever still holds the old version. One that has come before anybody could let go is a forced
/// retirement, which is an admin's to order.
#[tokio::test]
async fn a_deadline_that_leaves_no_time_is_an_admins() {
    let world = World::start().await;
    let (operator, _) = world.operator(Role::Operator).await;
    let (admin, _) = world.operator(Role::Admin).await;
    let path = "/v1/credentials/nothing/rotate";
    let wish = |deadline_ms: u64| serde_json::json!({ "compromised": true, "deadline_ms": deadline_ms });
    for deadline_ms in [0, 1, 59_999] {
        let refused = operator.post(path, &wish(deadline_ms)).await;
        assert_eq!(refused.status(), 403, "{deadline_ms}");
        assert_eq!(refused.json::<Problem>().await.unwrap().code, "short_deadline");
        // There is no such credential: that is as far as somebody comes who may.
        assert_eq!(admin.post(path, &wish(deadline_ms)).await.status(), 404, "{deadline_ms}");
    }
    assert_eq!(operator.post(path, &wish(60_000)).await.status(), 404);
    let page: AuditPage = world.admin().get("/v1/audit").await.json().await.unwrap();
    let denied = page.entries.iter().filter(|entry| entry.action == "denied");
    let denied: Vec<_> = denied.map(|entry| (entry.actor.as_str(), entry.subject.as_str())).collect();
    assert_eq!(denied, [("operator:Operator", path)]);
    world.stop().await;
}

#[tokio::test]
async fn what_is_no_route_is_said_so_to_nobody_in_particular() {
    let world = World::start().await;
    let (viewer, _) = world.operator(Role::Viewer).await;
    for caller in [world.anybody(), viewer] {
        assert_eq!(caller.get("/").await.status(), 404);
        assert_eq!(caller.get("/v1/credentials/a/value").await.status(), 404);
        let wrong = caller.request(Method::DELETE, "/v1/status").send().await.unwrap();
        assert_eq!(wrong.status(), 405);
        assert_eq!(wrong.json::<Problem>().await.unwrap().code, "wrong_method");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_refusal_is_audited_with_who_and_what() {
    let world = World::start().await;
    let (viewer, _) = world.operator(Role::Viewer).await;
    let response = viewer.post("/v1/credentials/orders/rotate", &serde_json::json!({})).await;
    assert_eq!(response.status(), 403);
    assert!(response.json::<Problem>().await.unwrap().detail.contains("operator"));
    let page: AuditPage = world.admin().get("/v1/audit").await.json().await.unwrap();
    let denied = page.entries.iter().find(|entry| entry.action == "denied").expect("an entry");
    assert_eq!(denied.actor, "operator:Viewer");
    assert_eq!(denied.subject, "/v1/credentials/orders/rotate");
    // Who goes on trying fills no log with it.
    for number in 0..30 {
        let other = format!("/v1/credentials/other-{number}/rotate");
        assert_eq!(viewer.post(&other, &serde_json::json!({})).await.status(), 403);
    }
    let page: AuditPage = world.admin().get("/v1/audit").await.json().await.unwrap();
    assert_eq!(page.entries.iter().filter(|entry| entry.action == "denied").count(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_host_renews_with_its_own_key_only_and_not_at_all_once_retired() {
    let world = World::start().await;
    let (host, other) = (world.host("web-1").await, world.host("web-2").await);
    let renew = |key| RenewRequest { csr_pem: csr(key), address: "127.0.0.1:10".to_owned() };
    let response = host.caller.post("/v1/renew", &renew(&host.keys.tls)).await;
    assert_eq!(response.status(), 200);
    let renewed: EnrolResponse = response.json().await.unwrap();
    assert!(renewed.chain_pem.contains("BEGIN CERTIFICATE"));
    // A valid certificate of another host.
    let stolen = other.caller.post("/v1/renew", &renew(&host.keys.tls)).await;
    assert_eq!(stolen.status(), 403);
    assert_eq!(stolen.json::<Problem>().await.unwrap().code, "other_key");

    let retire = format!("/v1/hosts/{}/retire", host.id);
    let response = world.admin().post(&retire, &Reason { reason: "reimaged".to_owned() }).await;
    assert_eq!(response.status(), 200, "{:?}", response.text().await);
    let refused = host.caller.post("/v1/renew", &renew(&host.keys.tls)).await;
    assert_eq!(refused.json::<Problem>().await.unwrap().code, "host_retired");
    world.stop().await;
}

#[tokio::test]
async fn one_token_makes_one_host_over_the_network_too() {
    let world = World::start().await;
    let bundle = world.bundle("web-1").await;
    let attempts = (0..100).map(|_| {
        let (caller, request) = (world.anybody(), HostKeys::new().request(&bundle));
        tokio::spawn(async move { caller.post("/v1/enroll", &request).await.status().as_u16() })
    });
    let attempts: Vec<_> = attempts.collect();
    let mut enrolled = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            200 => enrolled += 1,
            status => assert_eq!(status, 401),
        }
    }
    assert_eq!(enrolled, 1);
    let hosts: serde_json::Value = world.admin().get("/v1/hosts").await.json().await.unwrap();
    assert_eq!(hosts.as_array().unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_foreign_certificate_does_not_even_shake_hands() {
    let (world, foreign) = (World::start().await, World::start().await);
    let stranger = foreign.host("web-1").await;
    let client = world.client(Some(&stranger.identity));
    let url = format!("https://localhost:{}/healthz", world.ready.listen.port());
    assert!(client.get(url).send().await.is_err());
    world.stop().await;
    foreign.stop().await;
}

#[tokio::test]
async fn bodies_are_bounded_whole_plain_and_of_the_right_shape() {
    let world = World::start().await;
    let admin = world.admin();
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = &deep[..60_000];
    let huge = vec![b'x'; 5 * 1024 * 1024];
    let rotate = "/v1/credentials/orders/rotate";
    let json = "application/json";
    let cases: [(&str, &str, &str, Vec<u8>, u16); 8] = [
        ("too deep", rotate, json, deep.as_bytes().to_vec(), 422),
        ("too large", rotate, json, vec![b' '; 70_000], 413),
        ("far too large", "/v1/credentials/orders/import", json, huge, 413),
        ("not JSON", rotate, json, b"{".to_vec(), 422),
        ("compressed", rotate, json, vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0], 422),
        ("unknown field", rotate, json, b"{\"dry_rum\":true}".to_vec(), 422),
        ("another type", rotate, "text/plain", b"{}".to_vec(), 415),
        ("no reason", "/v1/credentials/orders/rollout/halt", json, b"{\"reason\":\" \"}".to_vec(), 422),
    ];
    for (what, path, kind, body, expected) in cases {
        let response = admin.request(Method::POST, path).header("content-type", kind).body(body).send().await;
        let response = response.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(response.status().as_u16(), expected, "{what}");
        let problem: Problem = response.json().await.unwrap();
        assert!(!problem.detail.is_empty() && !problem.action.is_empty(), "{what}: {problem:?}");
    }
    world.stop().await;
}

/// What is wrong with a value is said without repeating it.
#[tokio::test]
async fn a_refused_import_repeats_nothing_of_the_value() {
    let world = World::start().await;
    let canary = "canary-5f1e9c";
    for body in [
        format!("{{\"fields\":{{\"password\":\"{canary}!\"}}}}"),
        format!("{{\"fields\":\"{canary}\"}}"),
        format!("{{\"fields\":{{\"password\":[\"{canary}\"]}}}}"),
        format!("{{\"fields\":{{}},\"{canary}"),
    ] {
        let import = world.admin().request(Method::POST, "/v1/credentials/orders/import");
        let response =
            import.header("content-type", "application/json").body(body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 422);
        let text = response.text().await.unwrap();
        assert!(!text.contains(canary), "{text}");
    }
    world.stop().await;
}

#[tokio::test]
async fn operators_come_and_go() {
    let world = World::start().await;
    let (viewer, issued) = world.operator(Role::Viewer).await;
    assert_eq!(viewer.get("/v1/whoami").await.status(), 200);
    let all: Vec<OperatorView> = world.admin().get("/v1/operators").await.json().await.unwrap();
    assert_eq!(all.len(), 2);
    let end = format!("/v1/operators/{}", issued.operator.id);
    let done: Done = world.admin().request(Method::DELETE, &end).send().await.unwrap().json().await.unwrap();
    assert_eq!(done.message, "revoked");
    // The connection that it is on stays open; the identity on it is worth nothing any more.
    assert_eq!(viewer.get("/v1/whoami").await.status(), 401);
    assert_eq!(world.admin().request(Method::DELETE, &end).send().await.unwrap().status(), 404);
    world.stop().await;
}
