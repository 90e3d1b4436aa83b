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

/// Private constants as they stand in a source file: each that is named, with its documentation and its value.
fn constants(source: &str, names: &[&str]) -> Vec<(String, String, String)> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let one = |name: &&str| {
        let head = format!("const {name}: ");
        let at = lines.iter().position(|line| line.contains(&head) && line.ends_with(';'));
        let at = at.unwrap_or_else(|| panic!("{name} is no constant of one line"));
        let docs = lines[..at].iter().rev().map_while(|line| line.strip_prefix("/// ")).collect::<Vec<_>>();
        let words = docs.into_iter().rev().collect::<Vec<_>>().join(" ");
        let (_, expression) = lines[at].split_once(" = ").unwrap();
        ((*name).to_owned(), shown(expression.trim_end_matches(';')), words)
    };
    names.iter().map(one).collect()
}

/// A constant's expression as people would write its value.
fn shown(expression: &str) -> String {
    if let Some(text) = expression.strip_prefix('"') {
        return text.trim_end_matches('"').to_owned();
    }
    for (call, unit) in [
        ("Duration::from_millis(", "ms"),
        ("Duration::from_secs(", "s"),
        ("Duration::from_mins(", "m"),
        ("Duration::from_hours(", "h"),
    ] {
        if let Some(argument) = expression.strip_prefix(call) {
            return format!("{}{unit}", evaluated(argument.trim_end_matches(')')));
        }
    }
    evaluated(expression).to_string()
}

/// Sums of products of numbers; one name is known.
fn evaluated(expression: &str) -> u64 {
    let number = |word: &str| match word {
        "limit::SET_BYTES_MAX" => protocol::limit::SET_BYTES_MAX as u64,
        digits => digits.replace('_', "").parse().unwrap_or_else(|_| panic!("{digits:?} in {expression:?}")),
    };
    let product = |text: &str| {
        let mut words = text.split_whitespace();
        let mut value = number(words.next().unwrap());
        while let (Some(sign), Some(word)) = (words.next(), words.next()) {
            match sign {
                "*" => value *= number(word),
                "/" => value /= number(word),
                _ => panic!("{sign:?} in {expression:?}"),
            }
        }
        value
    };
    expression.split(" + ").map(product).sum()
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

    /// Constants that are named, by how people call what has them.
    fn constants(&mut self, whose: &str, source: &str, names: &[&str]) {
        for (name, value, meaning) in constants(source, names) {
            self.row(&format!("{whose}.{name}"), &value, &meaning);
        }
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
    backends(&mut table);
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
    control_plane(&mut table);
    table.section("Identities", "How long certificates and tokens live.");
    table.rows(
        &documented(include_str!("../../identity/src/lib.rs"), "pub struct Lives", "pub ", "}"),
        &values!(identity::Lives::default(); host_ms, renew_ms, own_ms, operator_ms, operator_ms_max, token_ms),
    );
    table
}

/// Of the engine, of the API, and of who asks it.
fn control_plane(table: &mut Table) {
    table.section(
        "Patience",
        "What is tried again after which pause, and how much is done at once. It cannot be changed.",
    );
    let names = ["RETRY_FIRST", "RETRY_MAX", "RESEND_FIRST", "RESEND_MAX"];
    table.constants("host", include_str!("../../engine/src/lane.rs"), &names);
    let names = ["AGAIN_FIRST", "AGAIN_MAX", "SLEEP_MAX"];
    table.constants("engine", include_str!("../../engine/src/timers.rs"), &names);
    table.constants("engine", include_str!("../../engine/src/run.rs"), &["BATCH_MAX"]);
    table.constants("engine", include_str!("../../engine/src/handle.rs"), &["QUEUE_MAX"]);
    table.constants("source", include_str!("../../engine/src/sources.rs"), &["AGAIN"]);
    table.constants("resources", include_str!("../../engine/src/start.rs"), &["QUIET", "REREAD"]);
    table.section("The API", "What operators' requests may have. It cannot be changed, but for `--listen`.");
    table.constants("api", include_str!("../src/settings.rs"), &["LISTEN"]);
    table.constants("api", include_str!("../src/route.rs"), &["BODY_BYTES_MAX"]);
    table.constants("api", include_str!("../src/table.rs"), &["IMPORT_BYTES_MAX"]);
    table.constants("api", include_str!("../src/operate.rs"), &["REASON_CHARS_MAX", "DEADLINE_MS_MIN"]);
    table.constants("api", include_str!("../src/read.rs"), &["CHANGES_WAIT", "AUDIT_ROWS_MAX"]);
    let names = ["ANSWER_TIME_MAX", "ANSWER_BYTES_MAX"];
    table.constants("esoctl", include_str!("../../../esoctl/src/client.rs"), &names);
    table.constants("esoctl", include_str!("../../../esoctl/src/follow.rs"), &["AWAY_MAX", "AWAY_PAUSE"]);
}

/// Of generators, sources and store targets.
fn backends(table: &mut Table) {
    table.section(
        "A backend",
        "Generators, sources and store targets. `timeoutSeconds`, `pollSeconds` and `length` are keys of theirs; all else cannot be changed.",
    );
    macro_rules! of {
        ($whose:literal, $file:literal, $($name:literal),*) => {
            table.constants($whose, include_str!(concat!("../../backends/src/", $file)), &[$($name),*])
        };
    }
    of!("backend", "spec.rs", "TIMEOUT_SECONDS", "TIMEOUT_SECONDS_MAX");
    of!("backend", "discreet.rs", "WORDS_CHARS_MAX");
    of!("backend", "reference.rs", "REFERENCED_BYTES_MAX");
    of!("backend", "tls.rs", "BUNDLE_BYTES_MAX");
    of!("value", "value.rs", "FIELDS_MAX", "FIELD_BYTES_MAX", "VALUE_BYTES_MAX", "FIELD_NAME_BYTES_MAX");
    of!("password", "draw.rs", "LENGTH", "LENGTH_OF_LOGIN", "LENGTH_MIN", "LENGTH_MAX");
    of!("webhook", "webhook.rs", "ANSWER_BYTES_MAX", "WORDS_BYTES_MAX");

    of!("postgresql", "postgresql/mod.rs", "PREFLIGHT_LIMIT", "REVOKE_LIMIT", "LIMIT", "LATE_LOGIN");
    of!("postgresql", "postgresql/preflight.rs", "SERVER_MIN", "DATABASES_MAX");
    of!("postgresql", "postgresql/role.rs", "END_WAIT");
    of!("vault_kv", "vault_kv.rs", "POLL_SECONDS", "POLL_SECONDS_MAX", "BACKOFF", "BACKOFF_MAX");
    of!("directory", "directory.rs", "QUIET", "QUIET_MAX", "LOOK", "BACKOFF", "READS_MAX");
}

#[test]
fn a_constant_is_read_as_it_stands_in_its_source() {
    let source = "/// How long\n/// it is.\npub(crate) const A: Duration = Duration::from_millis(2 * 1_000);\n\
                  /// Where.\nconst B: &str = \"here\";\n/// How many.\nconst C: u64 = 6 / 3 * 4 + 1;\n";
    let found = constants(source, &["C", "A", "B"]);
    let expected = [("C", "9", "How many."), ("A", "2000ms", "How long it is."), ("B", "here", "Where.")];
    let expected = expected.map(|(name, value, words)| (name.to_owned(), value.to_owned(), words.to_owned()));
    assert_eq!(found, expected);
    assert!(std::panic::catch_unwind(|| constants(source, &["D"])).is_err(), "one that is gone is missed");
}

#[test]
fn the_table_of_defaults_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/defaults.md");
    let now = table();
    assert!(now.rows > 140, "only {} rows", now.rows);
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
