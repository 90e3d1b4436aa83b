//! The one table of defaults and limits, `docs/defaults.md`, is what the code says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Names with their documentation, as they stand behind `before` in a source file, up to a line that is `end`.
fn documented(source: &str, begin: &str, before: &str, end: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut words: Vec<&str> = Vec::new();
    let lines = source.lines().skip_while(|line| !line.starts_with(begin)).take_while(|line| *line != end);
    for line in lines.map(str::trim) {
        if let Some(doc) = line.strip_prefix("/// ") {
            words.push(doc);
        } else if let Some(item) = line.strip_prefix(before).filter(|_| line.contains(':')) {
            found.insert(item.split(':').next().unwrap().trim().to_owned(), words.join(" "));
            words.clear();
        } else {
            words.clear();
        }
    }
    found
}

struct Table {
    text: String,
    rows: usize,
}

impl Table {
    fn section(&mut self, heading: &str, words: &str) {
        write!(
            self.text,
            "\n## {heading}\n\n{words}\n\n| key | default | what it means |\n| --- | --- | --- |\n"
        )
        .unwrap();
    }

    fn row(&mut self, key: &str, value: &str, meaning: &str) {
        assert!(!meaning.is_empty(), "{key} has no meaning");
        writeln!(self.text, "| `{key}` | {value} | {} |", meaning.replace('|', "\\|")).unwrap();
        self.rows += 1;
    }

    /// Every item that the source has, each with its value.
    fn rows(&mut self, docs: &BTreeMap<String, String>, values: &[(&str, String)]) {
        let named: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(docs.keys().map(String::as_str).collect::<Vec<_>>(), sorted, "the table and the code");
        for (name, value) in values {
            self.row(name, value, &docs[*name]);
        }
    }
}

/// Fields of a value or constants of a module, by name.
macro_rules! values {
    ($from:expr; $($field:ident),* $(,)?) => {{
        let from = $from;
        vec![$((stringify!($field), from.$field.to_string())),*]
    }};
    (in $($module:ident)::+ { $($constant:ident),* $(,)? }) => {{
        use $($module)::+ as module;
        vec![$((stringify!($constant), module::$constant.to_string())),*]
    }};
}

fn table() -> Table {
    let mut table = Table {
        text: "# Every default and limit\n\nMade from the code, and compared with it by \
               `control-plane/server/tests/defaults.rs`; `UPDATE_DEFAULTS=1` writes it anew.\n"
            .to_owned(),
        rows: 0,
    };
    table.section(
        "A credential",
        "Keys of the resource `Credential`; what begins with `limit.` cannot be changed.",
    );
    for row in resources::defaults() {
        table.row(&row.key, &row.value, &row.meaning);
    }
    table.section("A host", "Keys of the policy below `/etc/eso-vm-server`.");
    for row in host_policy::defaults::table() {
        table.row(row.key, &row.value, row.why);
    }
    table.section("Limits of a host's policy", "They cannot be changed.");
    let source = include_str!("../../../vm-server/policy/src/defaults.rs");
    let limits: BTreeMap<_, _> =
        documented(source, "/// The most bytes", "pub const ", "/// One row of the table of defaults.");
    table.rows(
        &limits,
        &values!(in host_policy::defaults {
            FILE_BYTES_MAX, FILES_MAX, SETS_MAX, PLACES_MAX, CONSUMERS_MAX, INTERVAL_MS_MIN, SPAN_MS_MAX,
            PROBE_TRIES_MAX,
        }),
    );
    table.section(
        "The wire",
        "Limits between control plane and hosts. Both ends refuse what is beyond; they cannot be changed.",
    );
    table.rows(
        &documented(include_str!("../../../protocol/src/limit.rs"), "///", "pub const ", "\0"),
        &values!(in protocol::limit {
            FILE_BYTES_MAX, SET_BYTES_MAX, FILES_PER_SET_MAX, FILE_NAME_CHARS_MAX, USER_NAME_CHARS_MAX,
            ORDER_BYTES_MAX, ORDERS_PER_PUSH_MAX, PUSH_BYTES_MAX, REPORT_BYTES_MAX, ACK_BYTES_MAX,
            ENROL_BYTES_MAX, BUNDLE_BYTES_MAX, LOCAL_BYTES_MAX, REPORTED_BYTES_MAX, JSON_DEPTH_MAX,
            SETS_PER_HOST_MAX, DEAD_PER_SET_MAX, CLEARED_MAX, RECEIPTS_MAX, NOTICES_MAX, SENTENCE_CHARS_MAX,
            ORDER_VALIDITY_MS_MAX, ORDER_VALIDITY_MS, CLOCK_AHEAD_MS_MAX, ARM_CLOCK_OFF_MS_MAX,
            ARM_HORIZON_MS_MAX,
            PUSHES_AT_ONCE_MAX, HOST_CONNECTIONS_MAX, PUSH_MS_MAX, HANDSHAKE_MS_MAX, IDLE_CONNECTION_MS_MAX,
            TOKEN_LIFE_MS_MAX, RETRY_MS_MAX, APPLIER_MS_MAX,
        }),
    );
    table.section(
        "Listeners",
        "What a listener spends on a caller at most. (A host has less room: see the wire.)",
    );
    table.rows(
        &documented(include_str!("../../../transport/src/serve.rs"), "pub struct Limits", "pub ", "}"),
        &values!(transport::Limits::default();
            connections_max, handshake_ms_max, header_ms_max, header_bytes_max, request_ms_max, body_bytes_max,
            streams_max, idle_anonymous_ms_max, idle_known_ms_max, ping_ms, drain_ms_max,
        ),
    );
    table.section("Pushes", "How the control plane reaches its hosts.");
    table.rows(
        &documented(include_str!("../../fleet/src/settings.rs"), "pub struct Settings", "pub ", "}"),
        &values!(fleet::Settings::default();
            dials_at_once_max, pushes_at_once_max, dial_ms_max, push_ms_max, backoff_first_ms, backoff_ms_max,
            ping_every_ms, ping_answer_ms_max,
        ),
    );
    table.section("Identities", "How long certificates and tokens live.");
    table.rows(
        &documented(include_str!("../../identity/src/lib.rs"), "pub struct Lives", "pub ", "}"),
        &values!(identity::Lives::default(); host_ms, own_ms, operator_ms, operator_ms_max, token_ms),
    );
    table
}

#[test]
fn the_table_of_defaults_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/defaults.md");
    let now = table();
    assert!(now.rows > 80, "only {} rows", now.rows);
    if std::env::var_os("UPDATE_DEFAULTS").is_some() {
        std::fs::write(path, &now.text).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        now.text == checked_in,
        "docs/defaults.md is old: run the test again with UPDATE_DEFAULTS=1 and commit it"
    );
    // What operators most often look for stands there under the words of the design.
    for word in ["settle_ms", "policy.grace", "policy.barrier", "policy.wave", "attemptsMax", "retryPauseMax"]
    {
        assert!(checked_in.contains(word), "{word}");
    }
}
