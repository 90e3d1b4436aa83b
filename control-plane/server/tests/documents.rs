//! What the documents show is what the programs take: every resource, every command line, every figure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use backends::{Secrets, SecretsDirectory};
use clap::Parser as _;
use resources::{Resources, load};

fn document(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// The fenced blocks that begin with this line, each with its line number.
fn blocks(text: &str, fence: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.starts_with("```") {
            let inside = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```");
            let inside = inside.fold(String::new(), |block, line| block + line + "\n");
            found.extend((line == fence).then_some((number, inside)));
        }
    }
    found
}

/// What its backends say of it, beyond what is a resource.
fn faults(resources: &Resources) -> Vec<String> {
    let secrets: Arc<dyn Secrets> = Arc::new(SecretsDirectory::new("/nowhere"));
    let mut faults: Vec<String> = resources.faults.iter().map(ToString::to_string).collect();
    for (reference, setting) in &resources.generators {
        let built = backends::build(&reference.kind, &setting.spec, secrets.clone());
        faults.extend(built.err().map(|error| error.to_string()));
    }
    for (reference, setting) in &resources.sources {
        let built = backends::build_source(&reference.kind, &setting.spec, secrets.clone());
        faults.extend(built.err().map(|error| error.to_string()));
    }
    for (reference, setting) in &resources.stores {
        let built = backends::build_store_target(&reference.kind, &setting.spec, secrets.clone());
        faults.extend(built.err().map(|error| error.to_string()));
    }
    faults
}

#[test]
fn every_example_of_a_resource_is_taken_as_it_stands_and_every_kind_has_one() {
    let mut shown = BTreeSet::new();
    for (line, block) in blocks(&document("docs/resources.md"), "```yaml") {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("example.yaml"), block).unwrap();
        let resources = load(directory.path(), &Resources::default());
        assert_eq!(faults(&resources), Vec::<String>::new(), "the example at docs/resources.md:{line}");
        let Resources { credentials, generators, sources, stores, machines, .. } = &resources;
        shown.extend(generators.keys().map(|reference| format!("generator {}", reference.kind)));
        shown.extend(sources.keys().map(|reference| format!("source {}", reference.kind)));
        shown.extend(stores.keys().map(|reference| format!("store {}", reference.kind)));
        shown.extend(credentials.keys().map(|_| "Credential".to_owned()));
        shown.extend(machines.keys().map(|_| "VirtualMachine".to_owned()));
    }
    let generators = backends::GENERATOR_KINDS.map(|kind| format!("generator {kind}"));
    let sources = backends::SOURCE_KINDS.map(|kind| format!("source {kind}"));
    let stores = backends::STORE_TARGET_KINDS.map(|kind| format!("store {kind}"));
    let others = ["Credential", "VirtualMachine"].map(str::to_owned);
    let every: BTreeSet<String> =
        [&generators[..], &sources, &stores, &others].concat().into_iter().collect();
    assert_eq!(shown, every);
}

#[test]
fn every_key_of_a_credential_is_explained() {
    let text = document("docs/resources.md");
    for row in resources::defaults() {
        let Some(key) = row.key.strip_prefix("spec.") else { continue };
        let key = key.strip_prefix("policy.").unwrap_or(key);
        assert!(text.contains(&format!("| `{key}` |")), "{key} is in no table of docs/resources.md");
    }
}

/// The words of a command line, without the comment, the pipe or the redirection behind it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in line.split('"').enumerate() {
        if place % 2 == 1 {
            words.push(part.to_owned());
            continue;
        }
        for word in part.split_whitespace() {
            if word.starts_with(['#', '>', '|']) {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}

#[test]
fn every_command_line_of_the_documents_is_one() {
    let mut count = 0;
    for path in ["README.md", "docs/operations.md", "docs/resources.md"] {
        for (_, block) in blocks(&document(path), "```") {
            for line in block.lines() {
                let refused = match line.split(' ').next() {
                    Some("esoctl") => esoctl::cli::Cli::try_parse_from(words(line)).err(),
                    Some("eso-control-plane") => {
                        eso_control_plane::settings::Cli::try_parse_from(words(line)).err()
                    }
                    _ => continue,
                };
                count += 1;
                if let Some(refused) = refused {
                    panic!("{path}: {line}\n{refused}");
                }
            }
        }
    }
    assert!(count > 40, "only {count} command lines were found");
}

#[test]
fn every_figure_is_named() {
    let text = document("docs/operations.md");
    let engine = ("eso_", include_str!("../../engine/src/metrics.rs"));
    let requests = ("eso_http_", include_str!("../src/figures.rs"));
    let mut count = 0;
    for (prefix, source) in [engine, requests] {
        for registered in source.split(".register(").skip(1) {
            let name = registered.split('"').nth(1).unwrap();
            assert!(
                text.contains(&format!("`{prefix}{name}")),
                "{prefix}{name} is not in docs/operations.md"
            );
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} figures were found");
}
