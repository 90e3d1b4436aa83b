//! What people see. The texts stand in `snapshots`, so that a change of them is seen in review.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use esoctl::cli::{Cli, Until};
use esoctl::progress::{Watched, progress};
use esoctl::table::Shown;
use esoctl::{Exit, Streams};
use lifecycle::credential::Policy;
use lifecycle::{Epoch, Evidence, Generation, Version};
use protocol::api::{
    AuditEntry, AuditPage, Blocker, Clause, CredentialDetail, CredentialPhase, CredentialSummary,
    DeliveryPhase, DeliveryView, Figures, HeldBy, HolderView, HostDetail, HostPhase, HostSummary,
    PendingVersion, Refusal, ResourceFault, RolloutPhase, RolloutView, Rotated, Status, Stuck, VersionDetail,
    VersionPhase, Why,
};
use protocol::report::{Means, Notice};
use protocol::{HostId, InstallationId, UnixMillis};

const REFUSED: &str = "refused 7: not_in_policy: this host's policy has no such set";
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

#[allow(clippy::unnecessary_wraps, reason = "every place that it is for is optional")]
fn ago(seconds: u64) -> Option<UnixMillis> {
    Some(UnixMillis(NOW.0 - seconds * 1000))
}

fn v(number: u32) -> Version {
    Version::new(1, number)
}

fn delivery(name: &str, phase: DeliveryPhase, canary: bool) -> DeliveryView {
    DeliveryView {
        target: "0f".repeat(32).parse().unwrap(),
        name: name.to_owned(),
        phase,
        canary,
        generation: Some(Generation::new(1, 4)),
        reason: None,
        excused: false,
        flipped: None,
    }
}

fn summary() -> CredentialSummary {
    CredentialSummary {
        name: "orders-db".parse().unwrap(),
        phase: CredentialPhase::Rolling,
        current: Some(v(6)),
        rolling: Some(v(7)),
        live_versions: 2,
        targets: 3,
        adopted: 1,
        next_rotation_at: Some(NOW.plus_ms(7_200_000)),
    }
}

fn version(number: u32, phase: VersionPhase) -> VersionDetail {
    VersionDetail {
        version: v(number),
        phase,
        aborted: false,
        compromised: false,
        holds: Vec::new(),
        effect: None,
        since: ago(300),
        deliveries: vec![
            delivery("web-1", DeliveryPhase::Adopted, true),
            delivery("web-2", DeliveryPhase::Staged, false),
        ],
        figures: Figures::default(),
    }
}

fn rollout(phase: RolloutPhase, reason: Option<&str>) -> RolloutView {
    let mut silent = delivery("web-3", DeliveryPhase::Unreachable, false);
    silent.reason = Some("no answer for 4 minutes".to_owned());
    silent.excused = true;
    RolloutView {
        credential: "orders-db".parse().unwrap(),
        version: v(7),
        phase,
        reason: reason.map(str::to_owned),
        started_at: ago(90),
        deliveries: vec![
            delivery("web-1", DeliveryPhase::Adopted, true),
            delivery("web-2", DeliveryPhase::Staged, false),
            silent,
        ],
        figures: Figures::default(),
    }
}

fn detail() -> CredentialDetail {
    let mut old = version(6, VersionPhase::Active);
    old.holds.push(HeldBy { by: "operator:ann: audit".to_owned(), since: ago(60) });
    CredentialDetail {
        summary: summary(),
        policy: Policy::default(),
        versions: vec![version(7, VersionPhase::Rolling), old],
        rollout: Some(rollout(RolloutPhase::Staging, Some("waits for web-3"))),
        pending_wish: Some("demand".to_owned()),
        stuck: Vec::new(),
    }
}

fn why() -> Why {
    Why {
        credential: "orders-db".parse().unwrap(),
        version: v(6),
        phase: VersionPhase::Superseded,
        aborted: false,
        blockers: vec![
            Blocker {
                clause: Clause::NoHolder,
                who: "0f".repeat(32),
                name: Some("web-2".to_owned()),
                detail: Some("unit:legacy.service:3f9c: pid 4711".to_owned()),
                since: ago(7_300),
                remedy: Some(
                    "esoctl holders clear orders-db web-2 unit:legacy.service:3f9c --reason WHY".to_owned(),
                ),
            },
            Blocker {
                clause: Clause::Grace,
                who: "orders-db@6".to_owned(),
                name: None,
                detail: Some("4 m of 5 m left".to_owned()),
                since: ago(59),
                remedy: None,
            },
        ],
    }
}

fn holder() -> HolderView {
    HolderView {
        credential: "orders-db".parse().unwrap(),
        version: v(6),
        target: "0f".repeat(32).parse().unwrap(),
        name: "web-2".to_owned(),
        kind: "holder".to_owned(),
        id: "unit:legacy.service:3f9c".to_owned(),
        consumer: Some("legacy.service".parse().unwrap()),
        evidence: Evidence::Kernel,
        // A process may be called anything.
        description: "pid 4711 \u{1b}[31mevil\nname".to_owned(),
    }
}

fn host() -> HostSummary {
    HostSummary {
        id: HostId([15; 32]),
        name: "web-1".to_owned(),
        address: "10.0.0.7:1323".to_owned(),
        labels: BTreeMap::from([("role".to_owned(), "web".to_owned()), ("zone".to_owned(), "a".to_owned())]),
        phase: HostPhase::Connected,
        reason: None,
        enrolled_at: UnixMillis(NOW.0 - 86_400_000),
        reported_at: ago(3),
        sets: 2,
        evidence: Evidence::Declared,
    }
}

fn refusal(credential: &str, name: &str) -> Refusal {
    Refusal {
        credential: credential.parse().unwrap(),
        version: v(7),
        name: name.to_owned(),
        reason: "not_in_policy: this host's policy has no such set".to_owned(),
    }
}

#[test]
fn status() {
    let status = Status {
        installation: InstallationId("6b2f1d8e-8f0a-4a55-9d5c-0f6f3f0d1c11".parse().unwrap()),
        program: "0.1.0".to_owned(),
        epoch: Epoch { counter: 1, id: 7 },
        starting: true,
        credentials: BTreeMap::from([(CredentialPhase::Active, 3), (CredentialPhase::Rolling, 1)]),
        hosts: BTreeMap::from([(HostPhase::Connected, 9), (HostPhase::Silent, 1)]),
        pending_versions: 2,
        stuck: vec![Stuck {
            credential: "mail".parse().unwrap(),
            version: Some(v(3)),
            reason: "the server refuses the minter".to_owned(),
            action: "grant it CREATEROLE, then `esoctl credential rotate mail`".to_owned(),
        }],
        refusals: vec![
            refusal("orders-db", "web-4"),
            refusal("orders-db", "web-5"),
            refusal("mail", "web-4"),
        ],
        resource_faults: vec![ResourceFault {
            file: "orders.yaml".to_owned(),
            line: Some(12),
            message: "unknown field `canarys`; did you mean `canaries`?".to_owned(),
        }],
    };
    insta::assert_snapshot!(status.shown(NOW));
}

#[test]
fn credentials() {
    let empty = CredentialSummary {
        name: "new".parse().unwrap(),
        phase: CredentialPhase::Empty,
        current: None,
        rolling: None,
        live_versions: 0,
        targets: 0,
        adopted: 0,
        next_rotation_at: Some(UnixMillis(0)),
    };
    insta::assert_snapshot!(vec![summary(), empty].shown(NOW));
    insta::assert_snapshot!(Vec::<CredentialSummary>::new().shown(NOW));
}

#[test]
fn credential() {
    insta::assert_snapshot!(detail().shown(NOW));
}

#[test]
fn who_does_not_take_a_version_is_shown_with_the_reason() {
    let refuses = |phase, number| {
        let mut refused = delivery("web-4", DeliveryPhase::Refused, false);
        refused.reason = Some(REFUSED.to_owned());
        VersionDetail { deliveries: vec![refused], ..version(number, phase) }
    };
    let versions = vec![refuses(VersionPhase::Active, 7), refuses(VersionPhase::Retired, 6)];
    insta::assert_snapshot!(CredentialDetail { versions, ..quiet() }.shown(NOW));
}

#[test]
fn only_what_was_revoked_is_called_so_and_only_what_was_replaced_superseded() {
    let figures = Figures { last_holder_to_revoke_ms: Some(1069), ..Figures::default() };
    let ended = |number, phase, aborted| VersionDetail { figures, aborted, ..version(number, phase) };
    let versions = vec![
        version(9, VersionPhase::Active),
        ended(8, VersionPhase::Superseded, true),
        ended(7, VersionPhase::Sealing, true),
        ended(6, VersionPhase::Superseded, false),
        ended(5, VersionPhase::Retired, false),
        ended(4, VersionPhase::Erased, false),
    ];
    insta::assert_snapshot!(CredentialDetail { versions, ..quiet() }.shown(NOW));
    let pending = PendingVersion { why: Why { aborted: true, ..why() }, since: ago(7_400), holders: vec![] };
    let said = vec![pending].shown(NOW);
    assert!(said.starts_with("orders-db@6 has been aborted for 2h\n"), "{said}");
}

#[test]
fn pending_and_why() {
    let pending = PendingVersion { why: why(), since: ago(7_400), holders: vec![holder()] };
    insta::assert_snapshot!(vec![pending].shown(NOW));
    insta::assert_snapshot!(why().shown(NOW));
}

#[test]
fn hosts() {
    insta::assert_snapshot!(vec![host()].shown(NOW));
    let mut report = lifecycle::SetReport {
        current: Some(v(7)),
        adopted: Some(v(6)),
        evidence: Evidence::Kernel,
        ..lifecycle::SetReport::default()
    };
    report.refused = Some(lifecycle::report::Refused {
        generation: Generation::new(1, 9),
        version: v(8),
        code: "clock_off".to_owned(),
        message: "this host's clock is 9 s behind; set it".to_owned(),
    });
    report.present.insert(v(6), lifecycle::EffectId(1));
    report.present.insert(v(7), lifecycle::EffectId(2));
    let reports = BTreeMap::from([("orders-db".parse().unwrap(), report)]);
    let means = vec![Means {
        name: "fanotify".into(),
        in_use: false,
        detail: "opens cannot be seen here: needs CAP_SYS_ADMIN".into(),
    }];
    let notices = vec![Notice {
        code: "drift".into(),
        message: "/etc/orders/password was replaced and has been put right".into(),
    }];
    insta::assert_snapshot!(HostDetail { summary: host(), reports, means, notices }.shown(NOW));
}

#[test]
fn audit() {
    let entry = AuditEntry {
        sequence: 41,
        at: NOW,
        actor: "operator:ann".to_owned(),
        action: "rotate".to_owned(),
        subject: "credential/orders-db".to_owned(),
        detail: "demand".to_owned(),
        link: "00".to_owned(),
    };
    insta::assert_snapshot!(AuditPage { entries: vec![entry], next: None, previous: None }.shown(NOW));
}

#[test]
fn the_audit_log_names_hosts_where_one_alone_has_the_name() {
    let other = HostSummary { id: HostId([1; 32]), name: "twin".to_owned(), ..host() };
    let hosts = [host(), HostSummary { id: HostId([2; 32]), ..other.clone() }, other];
    let (id, twin) = (hosts[0].id, hosts[1].id);
    let entry = AuditEntry {
        sequence: 1,
        at: NOW,
        actor: format!("host:{id}"),
        action: "order_refused".to_owned(),
        subject: format!("host/{twin}"),
        detail: format!("{id}, a{id} and {id}0: {id}"),
        link: "00".to_owned(),
    };
    let mut page = AuditPage { entries: vec![entry], next: None, previous: None };
    esoctl::table::name_hosts(&mut page, &hosts);
    let [row] = &page.entries[..] else { unreachable!() };
    assert_eq!((row.actor.as_str(), row.subject.clone()), ("host:web-1", format!("host/{twin}")));
    assert_eq!(row.detail, format!("web-1, a{id} and {id}0: web-1"));
}

#[test]
fn a_rotation_names_its_version_once() {
    let rotated = Rotated { version: Some(v(2)), message: "version 2 is on its way".to_owned() };
    assert_eq!(rotated.shown(NOW), "version 2 is on its way\n");
}

#[test]
fn nothing_that_a_host_wrote_drives_the_terminal() {
    let text = vec![holder()].shown(NOW);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn watching_tells_each_stage_and_how_it_ended() {
    let before = quiet();
    let mut watched = Watched::new(&before, Until::Retired);
    let mut lines = Vec::new();
    let mut tell = |detail: &CredentialDetail| {
        let now = progress(&mut watched, detail);
        lines.push(format!("{} {:?}", now.line, now.end));
    };
    tell(&before);
    let mut state = detail();
    state.pending_wish = None;
    tell(&state);
    state.rollout = Some(rollout(RolloutPhase::Halted, Some("web-1 rolled back: exit code 1")));
    tell(&state);
    state.rollout = None;
    state.versions = vec![version(7, VersionPhase::Active), version(6, VersionPhase::Superseded)];
    tell(&state);
    state.versions[1].phase = VersionPhase::Retired;
    tell(&state);
    state.versions[0].aborted = true;
    tell(&state);
    state.stuck = vec![Stuck {
        credential: "orders-db".parse().unwrap(),
        version: Some(v(7)),
        reason: "the backend is gone".to_owned(),
        action: "bring it back".to_owned(),
    }];
    tell(&state);
    insta::assert_snapshot!(lines.join("\n"));
}

/// Version 6 is active and nothing is on its way.
fn quiet() -> CredentialDetail {
    let mut state = detail();
    state.pending_wish = None;
    state.rollout = None;
    state.summary.rolling = None;
    state.versions.remove(0);
    state
}

/// Somebody else's rollout of 7 is under way when we wish for a version.
#[test]
fn watching_is_for_the_version_that_the_own_wish_brings() {
    let mut watched = Watched::new(&quiet(), Until::Retired);
    let mut tell = |detail: &CredentialDetail| {
        let now = progress(&mut watched, detail);
        (now.line, now.end)
    };
    let waits = "orders-db: waits for the end of the rollout of version 7";
    // Its number is a guess as long as it is tried whether we may mint.
    let mut state = quiet();
    state.pending_wish = Some("waiting".to_owned());
    state.rollout = Some(rollout(RolloutPhase::Preflight, None));
    assert_eq!(tell(&state), (waits.to_owned(), None));
    let mut state = detail();
    assert_eq!(tell(&state), (waits.to_owned(), None));
    // What is stuck meanwhile is none of ours.
    state.stuck = vec![Stuck {
        credential: "orders-db".parse().unwrap(),
        version: Some(v(6)),
        reason: "the backend is gone".to_owned(),
        action: "bring it back".to_owned(),
    }];
    assert_eq!(tell(&state), (waits.to_owned(), None));

    let mut state = quiet();
    state.versions = vec![version(7, VersionPhase::Active), version(6, VersionPhase::Superseded)];
    state.summary.current = Some(v(7));
    state.rollout = Some(RolloutView { version: v(8), ..rollout(RolloutPhase::Preflight, None) });
    assert_eq!(tell(&state), ("orders-db: whether we may mint and revoke is tried".to_owned(), None));
    // A leftover was found at the backend and has the number that was guessed.
    state.versions.insert(0, VersionDetail { aborted: true, ..version(8, VersionPhase::Sealing) });
    state.versions.insert(0, version(9, VersionPhase::Rolling));
    state.summary.rolling = Some(v(9));
    state.rollout = Some(RolloutView { version: v(9), ..rollout(RolloutPhase::Staging, None) });
    assert!(matches!(tell(&state), (line, None) if line.starts_with("orders-db@9: staging")));
    // Both that were active since the wish have to end.
    state.rollout = None;
    state.summary.current = Some(v(9));
    state.versions[0].phase = VersionPhase::Active;
    state.versions[2].phase = VersionPhase::Superseded;
    let left = |line: &str| line.contains("see `esoctl why orders-db@7`");
    assert!(matches!(tell(&state), (line, None) if left(&line)));
    state.versions[2].phase = VersionPhase::Retired;
    assert!(matches!(tell(&state), (line, None) if line.contains("orders-db@6")));
    state.versions[3].phase = VersionPhase::Retired;
    assert_eq!(tell(&state), ("orders-db@9: active".to_owned(), Some(Exit::Done)));
}

#[test]
fn a_wish_behind_a_halted_rollout_and_one_that_cannot_begin_are_told() {
    let mut watched = Watched::new(&detail(), Until::Active);
    let mut state = detail();
    state.rollout = Some(rollout(RolloutPhase::Halted, Some("web-1 rolled back")));
    let now = progress(&mut watched, &state);
    assert_eq!(now.end, Some(Exit::Stopped));
    assert!(now.line.contains("version 7, which is halted"), "{}", now.line);
    let mut state = quiet();
    state.stuck = vec![Stuck {
        credential: "orders-db".parse().unwrap(),
        version: None,
        reason: "the backend may not mint".to_owned(),
        action: "grant it".to_owned(),
    }];
    let now = progress(&mut watched, &state);
    assert_eq!(
        (now.line.as_str(), now.end),
        ("orders-db: stuck: the backend may not mint; grant it", Some(Exit::Stopped))
    );
    let mut state = quiet();
    state.rollout =
        Some(rollout(RolloutPhase::Preflight, Some("preflight failed and is tried again: no route")));
    let now = progress(&mut watched, &state);
    assert!(now.line.ends_with("is tried: preflight failed and is tried again: no route"), "{}", now.line);
}

#[test]
fn a_rotation_that_left_a_target_out_says_which_and_why() {
    let mut watched = Watched::new(&quiet(), Until::Active);
    let mut state = quiet();
    state.summary.current = Some(v(7));
    let mut refused = delivery("web-4", DeliveryPhase::Refused, false);
    refused.reason = Some(REFUSED.to_owned());
    let new = VersionDetail {
        deliveries: vec![delivery("web-1", DeliveryPhase::Adopted, true), refused],
        ..version(7, VersionPhase::Active)
    };
    state.versions.insert(0, new);
    let now = progress(&mut watched, &state);
    let line =
        "orders-db@7: active; not on web-4: refused 7: not_in_policy: this host's policy has no such set";
    assert_eq!((now.line.as_str(), now.end), (line, Some(Exit::Done)));
}

#[test]
fn help() {
    use clap::CommandFactory as _;
    let mut command = Cli::command().term_width(100);
    command.build();
    insta::assert_snapshot!(command.render_long_help().to_string());
    let mut all = Vec::new();
    list(&command, "", &mut all);
    insta::assert_snapshot!(all.join("\n"));
}

fn list(command: &clap::Command, before: &str, all: &mut Vec<String>) {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            list(command, &format!("{name} "), all);
        } else {
            all.push(format!("{name}: {}", command.get_about().unwrap()));
        }
    }
}

async fn exit(arguments: &[&str]) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
    let arguments = std::iter::once("esoctl").chain(arguments.iter().copied()).map(Into::into);
    let exit = esoctl::run(arguments, &mut streams).await;
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[tokio::test]
async fn mistakes_have_codes_and_say_what_to_do() {
    transport::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("typo.toml"), "sever = 'https://localhost:1'\n").unwrap();
    std::fs::write(path("http.toml"), "server = 'http://localhost:1'\n").unwrap();
    std::fs::write(path("no-ca.toml"), "server = 'https://localhost:1'\nca = 'missing.pem'\n").unwrap();
    std::fs::write(
        path("half.toml"),
        "server = 'https://localhost:1'\nca = 'half.toml'\nkey = 'half.toml'\n",
    )
    .unwrap();
    let (typo, http, no_ca, half) =
        (path("typo.toml"), path("http.toml"), path("no-ca.toml"), path("half.toml"));
    let cases: [(&[&str], Exit, &str); 9] = [
        (&["bogus"], Exit::Usage, "unrecognized subcommand"),
        (&["why", "orders-db"], Exit::Usage, "write NAME@VERSION"),
        (&["credential", "retire", "a@1", "--reason", "x"], Exit::Usage, "--force"),
        (&["credential", "rotate", "a", "--deadline", "1h"], Exit::Usage, "--compromised"),
        (&["source", "refresh"], Exit::Usage, "<NAME|--all>"),
        (&["status", "--config", &typo], Exit::Usage, "unknown field `sever`"),
        (&["status", "--config", &http], Exit::Usage, "write https://NAME:PORT"),
        (&["status", "--config", &no_ca], Exit::Usage, "failed to read the certificate authority"),
        (&["status", "--config", &half], Exit::Usage, "ESOCTL_CERTIFICATE"),
    ];
    for (arguments, expected, said) in cases {
        let (code, _, err) = exit(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
    let (_, _, err) = exit(&["--config", "a", "--server", "b", "-o", "json", "why"]).await;
    assert!(err.contains("Usage: esoctl why <VERSION>\n"), "what is given is not asked for: {err}");
    let (_, out, _) = exit(&["host", "enroll-token", "--help"]).await;
    let (own, global) = out.split_once("Connection:").unwrap();
    assert!(own.contains("--out <") && !own.contains("--config") && global.contains("--config"), "{out}");
    let (code, out, _) = exit(&["--help"]).await;
    assert_eq!(code, Exit::Done);
    assert!(out.contains("Exit codes:"), "{out}");
    let (code, out, _) = exit(&["completions", "bash"]).await;
    assert_eq!(code, Exit::Done);
    assert!(out.contains("complete -F"), "{out}");
}
