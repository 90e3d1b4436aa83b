//! Every test that the documents name exists, and every threat that is to be met has one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `path/of/a/file.rs::name_of_a_test`, wherever it stands in backticks.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let mut named = Vec::new();
    for words in quoted {
        if let Some((path, name)) = words.rsplit_once("::")
            && Path::new(path).extension().is_some_and(|extension| extension == "rs")
        {
            named.push((path, name));
        }
    }
    named
}

/// Why this is no test of that file, if it is none. What an attribute, a list of names or a macro makes a test is one.
fn missing(sources: &mut BTreeMap<String, String>, path: &str, name: &str) -> Option<String> {
    if !sources.contains_key(path) {
        let read = std::fs::read_to_string(root().join(path));
        sources.insert(path.to_owned(), read.unwrap_or_default());
    }
    let source = &sources[path];
    if source.is_empty() {
        return Some(format!("{path} is not there"));
    }
    let definition = format!("fn {name}(");
    let Some(at) = source.find(&definition) else { return Some(format!("{path} has no {name}")) };
    let above: Vec<&str> = source[..at].lines().rev().take(8).collect();
    let attribute = above.iter().any(|line| {
        let line = line.trim();
        line.starts_with("#[test") || line.starts_with("#[tokio::test") || line == "proptest! {"
    });
    let ignored = above.iter().take(4).any(|line| line.trim().starts_with("#[ignore"));
    let listed = source.matches(name).count() > 1;
    (ignored || !(attribute || listed)).then(|| format!("{name} in {path} is not run as a test"))
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut sources = BTreeMap::new();
    let mut count = 0;
    let mut faults = Vec::new();
    for document in ["docs/security.md", "README.md", "ARCHITECTURE.md", "docs/for-developers.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for (path, name) in named(&text) {
            count += 1;
            faults.extend(missing(&mut sources, path, name).map(|why| format!("{document}: {why}")));
        }
    }
    assert!(count > 80, "only {count} tests are named");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_threat_that_is_to_be_met_has_a_test() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let table = text.split("\n## Threats").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: BTreeSet<u32> = table
        .lines()
        .filter(|line| line.starts_with('|') && !named(line).is_empty())
        .filter_map(|line| line.split('|').nth(1)?.trim().parse().ok())
        .collect();
    assert_eq!(rows, (1..=6).chain(11..=20).collect::<BTreeSet<u32>>());
}

#[test]
fn a_name_of_nothing_is_found_out() {
    let mut sources = BTreeMap::new();
    let own = "docs/samples/tests/named.rs";
    assert_eq!(missing(&mut sources, own, "a_name_of_nothing_is_found_out"), None);
    assert!(missing(&mut sources, own, "no_such_test").is_some());
    assert!(missing(&mut sources, "no/such/file.rs", "root").is_some());
    assert_eq!(named("see `a/b.rs::c` and `d::e`"), [("a/b.rs", "c")]);
}
