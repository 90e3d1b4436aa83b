//! What is taken from a directory, what is not, and what is said about it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "tests are named for what they hold, and stop at what they did not expect"
)]

use std::path::Path;

use lifecycle::{CredentialName, Millis};
use resources::{Backing, Resources, load};

const GENERATOR: &str = "apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: {name: p}
spec: {length: 24}
";

fn credential(name: &str, more: &str) -> String {
    format!(
        "apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata:
  name: {name}
spec:
  generator: {{kind: Password, name: p}}
{more}"
    )
}

fn loaded(files: &[(&str, &str)]) -> (tempfile::TempDir, Resources) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let resources = load(directory.path(), &Resources::default());
    (directory, resources)
}

fn names(resources: &Resources) -> Vec<&str> {
    resources.credentials.keys().map(CredentialName::as_str).collect()
}

#[test]
fn the_annotated_example_is_taken_as_it_stands() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let resources = load(&examples, &Resources::default());
    assert_eq!(resources.faults, []);
    let orders = &resources.credentials[&CredentialName::new("orders-db").unwrap()];
    assert!(
        matches!(&orders.backing, Backing::Generator(reference) if reference.to_string() == "PostgreSql/orders")
    );
    assert_eq!(orders.every, Some(Millis::seconds(86_400)));
    assert_eq!(orders.policy, lifecycle::credential::Policy::default(), "the example shows the defaults");
    let labels = [("app".to_owned(), "orders".to_owned())].into();
    assert!(orders.hosts.selects("any", &labels) && !orders.hosts.is_canary(&labels));
    let kept = serde_json::to_string(orders).unwrap();
    assert_eq!(&serde_json::from_str::<resources::Credential>(&kept).unwrap(), orders);
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_the_nearest_known_one() {
    for (more, line, words) in [
        ("  polcy: {}\n", 7, "`policy`"),
        ("  policy:\n    gracee: 5m\n", 8, "`grace`"),
        ("  targets:\n    hosts:\n      matchLabel: {}\n", 9, "`matchLabels`"),
        ("  first: imprt\n", 7, "`import`"),
        ("  policy:\n    grace: 5\n", 8, "5m"),
        ("  policy:\n    grace: soon\n", 8, "30s"),
        ("  files:\n    a: \"{{ env .x }}\"\n", 8, "no functions"),
        ("  set: \"../x\"\n", 6, "not a valid set name"),
    ] {
        let (_directory, resources) = loaded(&[("g.yaml", GENERATOR), ("c.yaml", &credential("c", more))]);
        let [fault] = &resources.faults[..] else { panic!("{:?}", resources.faults) };
        assert!(fault.file.ends_with("c.yaml"), "{fault}");
        assert_eq!(fault.line, Some(line), "{fault}");
        assert!(fault.message.contains(words) || words == "5m", "{fault}");
        assert!(resources.credentials.is_empty());
    }
}

#[test]
fn a_bad_file_stops_nothing_else_and_keeps_what_it_had() {
    let (directory, resources) = loaded(&[
        ("g.yaml", GENERATOR),
        ("a.yaml", &credential("a", "")),
        ("b.yaml", &format!("{}---\n{}", credential("b", ""), credential("b2", ""))),
    ]);
    assert_eq!(names(&resources), ["a", "b", "b2"]);
    std::fs::write(directory.path().join("b.yaml"), format!("{}---\nkind: [", credential("b", ""))).unwrap();
    std::fs::write(directory.path().join("d.yaml"), credential("d", "")).unwrap();
    let after = load(directory.path(), &resources);
    assert_eq!(names(&after), ["a", "b", "b2", "d"]);
    assert_eq!(after.faults.len(), 1);
    let fresh = load(directory.path(), &Resources::default());
    assert_eq!(names(&fresh), ["a", "d"], "without a past, no half of a file is taken");
}

#[test]
fn a_directory_that_vanishes_is_one_fault() {
    let (directory, resources) = loaded(&[("g.yaml", GENERATOR), ("a.yaml", &credential("a", ""))]);
    let gone = load(&directory.path().join("nowhere"), &resources);
    assert_eq!((names(&gone).len(), gone.faults.len()), (0, 1));
}

#[test]
fn what_an_object_says_about_others_must_be_true() {
    let other = credential("b", "  set: a\n");
    let missing = credential("c", "").replace("name: p}", "name: q}");
    let (_directory, resources) = loaded(&[
        ("g.yaml", GENERATOR),
        ("a.yaml", &credential("a", "")),
        ("a2.yaml", &credential("a", "  set: again\n")),
        ("b.yaml", &other),
        ("c.yaml", &missing),
    ]);
    assert_eq!(names(&resources), ["a"]);
    let words: Vec<String> = resources.faults.iter().map(ToString::to_string).collect();
    for part in ["stands in", "the set a is that of the credential a", "did you mean Password/p?"] {
        assert!(words.iter().any(|text| text.contains(part)), "{part}: {words:?}");
    }
}

#[test]
fn evidence_that_no_target_could_ever_give_is_refused() {
    let text = |evidence: &str| {
        let stores = "  targets: {stores: [{kind: VaultKv, name: kv}]}\n";
        credential("a", &format!("{stores}  policy: {{evidence: {evidence}}}\n"))
    };
    for (evidence, is_met) in [("declared", true), ("reported", false), ("kernel", false)] {
        let (_directory, resources) = loaded(&[("g.yaml", GENERATOR), ("a.yaml", &text(evidence))]);
        let words: Vec<String> = resources.faults.iter().map(ToString::to_string).collect();
        let refused = words.iter().any(|text| text.contains("can never be met at `targets.stores`"));
        assert_eq!(refused, !is_met, "{evidence}: {words:?}");
    }
}

#[test]
fn a_backends_word_about_its_spec_gets_the_line() {
    let text = format!("# first\n{GENERATOR}").replace("spec: {length: 24}", "spec:\n  lenght: 24");
    let (_directory, resources) = loaded(&[("g.yaml", &text)]);
    let reference = resources.generators.keys().next().unwrap();
    let words = "Password: unknown field `lenght`, expected `length` or `symbols`";
    let fault = resources.fault_of(reference, words);
    assert_eq!(fault.line, Some(6));
    assert!(fault.message.ends_with("did you mean `length`?"), "{fault}");
}

#[test]
fn a_virtual_machine_is_taken_and_basic_authentication_refused_by_name() {
    let machine = |more: &str| {
        format!(
            "apiVersion: target.external-secrets.io/v1alpha1
kind: VirtualMachine
metadata: {{name: vm, namespace: default}}
spec:
  url: https://vm.example.org:1323
  paths: [/etc/app]
{more}"
        )
    };
    let (_directory, resources) = loaded(&[("vm.yaml", &machine(""))]);
    assert!(resources.machines["vm"].condition.ready);
    assert_eq!(resources.faults, []);

    let basic = "  auth:\n    basic:\n      usernameSecretRef: {name: s, namespace: d, key: u}\n      passwordSecretRef: {name: s, namespace: d, key: p}\n";
    let (_directory, resources) = loaded(&[("vm.yaml", &machine(basic))]);
    assert_eq!(resources.machines["vm"].condition.reason, "BasicAuthRefused");
    assert_eq!(resources.faults.len(), 1);

    let (_directory, resources) = loaded(&[("vm.yaml", &machine("").replace("/etc/app", "/etc/../app"))]);
    assert!(resources.faults[0].message.contains("without `..`"));
}
