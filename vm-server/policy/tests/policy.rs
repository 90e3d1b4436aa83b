//! A host's policy is taken whole or not at all, and every mistake is named where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use host_policy::{Adopt, HostPolicy, Life, PlaceKind, ProbeKind, Signal, defaults};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A policy directory with these files, written as root's would be.
fn policy(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    dir
}

fn refusal(dir: &tempfile::TempDir) -> String {
    let error = HostPolicy::load(dir.path()).expect_err("the policy was accepted");
    error
        .to_string()
        .replace(&format!("{}/", dir.path().display()), "")
        .replace(&dir.path().display().to_string(), "DIR")
}

/// Each file begins with the message that it must be refused with. `UPDATE_EXPECTED=1` writes them anew, to be read
/// before they are committed.
#[test]
fn each_mistake_is_named_where_it_stands() {
    let mut cases: Vec<_> =
        fs::read_dir(here("testdata/refused")).unwrap().map(|case| case.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 50, "the cases are gone");
    for case in cases {
        let text = fs::read_to_string(&case).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let found = refusal(&policy(&[("config.toml", &text)]));
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&case, format!("# {found}\n{rest}")).unwrap();
            continue;
        }
        assert_eq!(first.strip_prefix("# ").unwrap(), found, "{}", case.display());
    }
}

#[test]
fn the_annotated_example_is_valid() {
    let policy = HostPolicy::load(example(str::to_owned).path()).unwrap();
    let set = policy.set(&"orders-db".parse().unwrap()).unwrap();
    assert_eq!(set.places.len(), 2);
    assert_eq!(set.places[1].kind, PlaceKind::Copy);
    assert_eq!(set.access_of("url").mode, 0o440);
    let adopts: Vec<Adopt> = set.consumers.iter().map(|consumer| consumer.adopt).collect();
    assert_eq!(adopts, [Adopt::Restart, Adopt::Signal(Signal::Hup), Adopt::Reopen, Adopt::Manual]);
    let trusted: Vec<bool> = set.consumers.iter().map(|consumer| consumer.trust_reported).collect();
    assert_eq!(trusted, [false, true, true, false]);
    assert!(matches!(set.consumers[0].probe.as_ref().unwrap().kind, ProbeKind::Http(_)));
    assert!(matches!(set.consumers[1].life, Life::PidFile(_)));
    assert!(set.consumers.iter().all(|consumer| consumer.settle_ms == defaults::SETTLE_MS));
    assert_eq!((set.refresh_ms, set.consumers[1].start_ms), (defaults::REFRESH_MS, defaults::START_MS));
    assert_eq!(policy.files.len(), 2);
}

/// What stands in the example as a choice is a choice: it is taken when its `#` goes.
#[test]
fn the_choices_of_the_annotated_example_are_valid() {
    let dir = example(|text| {
        let made: Vec<&str> = text
            .lines()
            .filter(|line| *line != "adopt = \"manual\"")
            .map(|line| match line.strip_prefix('#') {
                Some(choice) if choice.starts_with(|first: char| first.is_ascii_lowercase()) => choice,
                _ => line,
            })
            .collect();
        made.join("\n")
    });
    let policy = HostPolicy::load(dir.path()).unwrap();
    let set = policy.set(&"orders-db".parse().unwrap()).unwrap();
    assert_eq!(set.controllers.len(), 1);
    assert!(set.validate.is_some());
    assert!(set.consumers[3].window.is_some());
    assert!(policy.daemon.control_plane.is_some() && policy.daemon.advertise.is_some());
}

/// The annotated example, each file changed by this.
fn example(change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let files = ["config.toml", "conf.d/orders-db.toml"];
    let texts = files.map(|file| (file, change(&fs::read_to_string(here("examples").join(file)).unwrap())));
    policy(&texts.each_ref().map(|(name, text)| (*name, text.as_str())))
}

/// The example shows every default as it is, so that nobody reads a wrong one.
#[test]
fn the_table_of_defaults_is_what_an_empty_policy_means() {
    let text = "[set.a]\nconsumers = [{ unit = \"a.service\", adopt = \"restart\", probe = { http = \"http://127.0.0.1:80\" } }]\nvalidate = { command = [\"/bin/true\"] }\n";
    let policy = HostPolicy::load(policy(&[("config.toml", text)]).path()).unwrap();
    let set = &policy.sets[&"a".parse().unwrap()];
    let consumer = &set.consumers[0];
    let probe = consumer.probe.as_ref().unwrap();
    let ProbeKind::Http(page) = &probe.kind else { panic!("asked for a page") };
    let found = |key: &str| match key {
        "daemon.state_dir" => policy.daemon.state_dir.display().to_string(),
        "daemon.run_dir" => policy.daemon.run_dir.display().to_string(),
        "daemon.listen" => policy.daemon.listen.to_string(),
        "daemon.supervisor" => format!("{:?}", policy.daemon.supervisor).to_lowercase(),
        "daemon.mount" => format!("{:?}", policy.daemon.mount).to_lowercase(),
        "daemon.evidence" => format!("{:?}", policy.daemon.evidence).to_lowercase(),
        "daemon.report_ms" => policy.daemon.report_ms.to_string(),
        "set.mode" => format!("{:04o}", set.access.mode),
        "set.refresh_ms" => set.refresh_ms.to_string(),
        "consumers.start_ms" => consumer.start_ms.to_string(),
        "consumers.settle_ms" => consumer.settle_ms.to_string(),
        "probe.timeout_ms" => probe.timeout_ms.to_string(),
        "probe.tries" => probe.tries.to_string(),
        "probe.pause_ms" => probe.pause_ms.to_string(),
        "probe.status" => page.status.to_string(),
        "validate.timeout_ms" => set.validate.as_ref().unwrap().timeout_ms.to_string(),
        other => panic!("{other} is in the table and in no test"),
    };
    for row in defaults::table() {
        assert_eq!(row.value, found(row.key), "{}", row.key);
    }
}

#[test]
fn a_key_in_two_files_is_refused_with_both() {
    let first = "[daemon]\nreport_ms = 1_000\n[set.a]\n";
    let dir = policy(&[("config.toml", first), ("conf.d/10.toml", "\n[set.a]\n")]);
    assert_eq!(refusal(&dir), "conf.d/10.toml:2: set.a: stands in config.toml:3 too: keep one of the two");
    let dir = policy(&[("config.toml", first), ("conf.d/10.toml", "[daemon]\nreport_ms = 1_000\n")]);
    assert_eq!(
        refusal(&dir),
        "conf.d/10.toml:2: daemon.report_ms: stands in config.toml:2 too: keep one of the two"
    );
}

#[test]
fn parts_of_daemon_may_stand_in_two_files_and_other_files_are_not_read() {
    let dir = policy(&[
        ("config.toml", "[daemon]\nreport_ms = 1_000\n"),
        ("conf.d/10.toml", "[daemon]\nlisten = \"127.0.0.1:0\"\n[set.a]\n"),
        ("conf.d/20.toml.bak", "nonsense"),
        ("conf.d/.30.toml", "nonsense"),
    ]);
    let policy = HostPolicy::load(dir.path()).unwrap();
    assert_eq!((policy.daemon.report_ms, policy.daemon.listen.port()), (1_000, 0));
    assert_eq!(policy.sets.len(), 1);
}

#[test]
fn one_bad_file_leaves_nothing_of_the_good_ones() {
    let dir = policy(&[("config.toml", "[set.a]\n"), ("conf.d/10.toml", "[set.b]\nmode = \"0666\"\n")]);
    assert!(HostPolicy::load(dir.path()).is_err());
}

#[test]
fn a_policy_that_others_may_write_is_refused() {
    for (path, mode) in [("config.toml", 0o664), ("conf.d", 0o777), ("", 0o757), ("conf.d/10.toml", 0o646)] {
        let dir = policy(&[("config.toml", ""), ("conf.d/10.toml", "")]);
        let changed = dir.path().join(path);
        fs::set_permissions(&changed, fs::Permissions::from_mode(mode)).unwrap();
        let found = refusal(&dir);
        assert!(found.contains("may be written by others: run `chmod go-w"), "{path}: {found}");
    }
}

#[test]
fn a_missing_policy_says_what_to_do() {
    let dir = policy(&[]);
    let found = refusal(&dir);
    assert_eq!(
        found,
        "config.toml: failed to open it: No such file or directory (os error 2): write it, an annotated example comes with the package"
    );
}

#[test]
fn a_huge_file_is_not_read() {
    let text = format!("#{}\n", "x".repeat(usize::try_from(defaults::FILE_BYTES_MAX).unwrap()));
    assert!(refusal(&policy(&[("config.toml", &text)])).contains("is longer than 1048576 bytes"));
}

#[test]
fn a_window_may_span_midnight_and_the_week() {
    let text = "[set.a]\nconsumers = [{ unit = \"a.service\", adopt = \"window\", window = { days = [\"sun\"], from = \"23:00\", to = \"02:00\", then = \"restart\" } }]\n";
    let policy = HostPolicy::load(policy(&[("config.toml", text)]).path()).unwrap();
    let window = policy.sets[&"a".parse().unwrap()].consumers[0].window.unwrap();
    // 1970-01-04 was a Sunday.
    let (day, hour) = (86_400, 3_600);
    assert!(!window.is_open(3 * day + 22 * hour));
    assert!(window.is_open(3 * day + 23 * hour));
    assert!(window.is_open(4 * day + hour));
    assert!(!window.is_open(4 * day + 2 * hour));
    assert!(!window.is_open(4 * day + 23 * hour));
    assert!(!window.is_open(2 * day + 23 * hour));
}
