//! Every default of a resource in one table.

use crate::credential::{EVERY_MIN, policy_defaults};
use crate::duration::show;
use crate::load::{FILE_BYTES_MAX, FILES_MAX};
use crate::template::{SUBSTITUTIONS_MAX, TEMPLATE_BYTES_MAX};

/// One default or limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Default {
    /// Where it is written, for example `spec.policy.grace`. Limits cannot be written and begin with `limit.`.
    pub key: String,
    /// Its value as it would be written.
    pub value: String,
    /// What it means.
    pub meaning: String,
}

/// Every default and limit of resources.
pub fn defaults() -> Vec<Default> {
    let row = |key: &str, value: &str, meaning: &str| Default {
        key: key.to_owned(),
        value: value.to_owned(),
        meaning: meaning.to_owned(),
    };
    let mut rows = vec![
        row("spec.set", "(the name)", "The set that hosts know the credential by."),
        row("spec.files", "(each field)", "Without it each field of the value is a file of its name."),
        row("spec.schedule.every", "(never)", "How often a new version is minted by itself."),
        row(
            "spec.first",
            "mint",
            "What brings the first version: `mint`, or `import`, which waits for an operator.",
        ),
    ];
    for (key, _, value, meaning) in policy_defaults() {
        rows.push(row(&format!("spec.policy.{}", camel(key)), &value, &meaning));
    }
    rows.push(row(
        "limit.schedule_every",
        &show(EVERY_MIN),
        "The shortest span between two scheduled rotations.",
    ));
    rows.push(row("limit.resource_file_bytes", &FILE_BYTES_MAX.to_string(), "Bytes of one resource file."));
    rows.push(row("limit.resource_files", &FILES_MAX.to_string(), "Resource files in the directory."));
    rows.push(row("limit.template_bytes", &TEMPLATE_BYTES_MAX.to_string(), "Bytes of one template."));
    rows.push(row("limit.substitutions", &SUBSTITUTIONS_MAX.to_string(), "Substitutions in one template."));
    rows
}

fn camel(snake: &str) -> String {
    let mut words = snake.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        text + &head.to_ascii_uppercase() + tail
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests stop at what they did not expect")]
mod tests {
    use super::*;

    /// The backend says these two, so nobody writes them.
    const NOT_WRITTEN: [&str; 2] = ["overlap", "authority"];

    #[test]
    fn every_field_of_the_policy_can_be_written_and_stands_in_the_table() {
        let policy = serde_json::to_value(lifecycle::credential::Policy::default()).unwrap();
        let mut fields: Vec<&str> = policy_defaults().iter().map(|(_, field, ..)| *field).collect();
        fields.extend(NOT_WRITTEN);
        fields.sort_unstable();
        let mut known: Vec<&str> = policy.as_object().unwrap().keys().map(String::as_str).collect();
        known.sort_unstable();
        assert_eq!(fields, known);
    }

    #[test]
    fn the_table_says_what_each_default_means() {
        let rows = defaults();
        assert!(rows.iter().all(|row| !row.meaning.is_empty() && !row.value.is_empty()), "{rows:#?}");
        assert!(rows.iter().any(|row| row.key == "spec.policy.liveVersionsMax" && row.value == "4"));
        assert!(rows.iter().any(|row| row.key == "spec.policy.grace" && row.value == "5m"));
    }
}
