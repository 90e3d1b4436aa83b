//! Answers for people: aligned columns, ages instead of points in time, nothing that could drive a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use protocol::UnixMillis;
use protocol::api::{
    AuditPage, BackedUp, Blocker, CredentialDetail, CredentialSummary, DeliveryPhase, DeliveryView, Done,
    DryRun, EnrolTokenIssued, Figures, HolderView, HostDetail, HostSummary, Imported, OperatorIssued,
    OperatorView, PendingVersion, Refusal, RolloutView, Rotated, Status, Stuck, VersionDetail, VersionPhase,
    Whoami, Why,
};
use serde::Serialize;

/// What people see of a value at a given time. Always ends with a line break.
pub trait Shown {
    /// As text.
    fn shown(&self, now: UnixMillis) -> String;
}

/// Without control characters: hosts wrote some of it, and a terminal obeys what it is sent.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The word of a unit variant, as the API writes it.
pub fn word(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// How long ago, in the largest unit that fits.
pub fn age(now: UnixMillis, since: Option<UnixMillis>) -> String {
    since.map_or_else(|| "-".to_owned(), |since| span(now.ms_since(since)))
}

fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn date(at: UnixMillis) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |at| format!("{at:.0}"))
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Rows under a heading; nothing but `empty` when there are none.
fn table<const N: usize>(heading: [&str; N], rows: Vec<[String; N]>, empty: &str) -> String {
    if rows.is_empty() {
        return format!("{empty}\n");
    }
    let mut all = vec![heading.map(str::to_owned)];
    all.extend(rows.into_iter().map(|row| row.map(|cell| plain(&cell))));
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `key  value` lines.
fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    facts.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key:width$}  {}", plain(value));
        text
    })
}

fn counts<K: Serialize>(counts: &BTreeMap<K, u32>) -> String {
    let words: Vec<_> = counts.iter().map(|(key, count)| format!("{count} {}", word(key))).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let words: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}

fn stuck(stuck: &[Stuck]) -> String {
    stuck.iter().fold(String::new(), |mut text, stuck| {
        let what = match stuck.version {
            Some(version) => format!("{}@{version}", stuck.credential),
            None => stuck.credential.to_string(),
        };
        let _ = writeln!(text, "stuck  {what}: {}; {}", plain(&stuck.reason), plain(&stuck.action));
        text
    })
}

/// A line for each credential: hundreds of hosts may refuse for one reason.
fn refused(refusals: &[Refusal]) -> String {
    refusals.chunk_by(|a, b| a.credential == b.credential).fold(String::new(), |mut text, refusals| {
        let [first, others @ ..] = refusals else { return text };
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        let Refusal { credential, version, name, reason } = first;
        let (name, reason) = (plain(name), plain(reason));
        let _ = writeln!(
            text,
            "refused  {credential}@{version} by {name}{more}: {reason}; see `esoctl credential show {credential}`"
        );
        text
    })
}

impl<T: Shown + ?Sized> Shown for &T {
    fn shown(&self, now: UnixMillis) -> String {
        (**self).shown(now)
    }
}

impl Shown for Status {
    fn shown(&self, now: UnixMillis) -> String {
        let _ = now;
        let mut text = facts(&[
            ("installation", self.installation.to_string()),
            ("program", self.program.clone()),
            ("epoch", self.epoch.counter.to_string()),
            ("credentials", counts(&self.credentials)),
            ("hosts", counts(&self.hosts)),
            (
                "pending",
                match self.pending_versions {
                    1 => "1 older version waits for its gate".to_owned(),
                    count => format!("{count} older versions wait for their gate"),
                },
            ),
        ]);
        if self.starting {
            text.push_str("starting      waits for reachable targets; nothing goes out meanwhile\n");
        }
        text.push_str(&stuck(&self.stuck));
        text.push_str(&refused(&self.refusals));
        for fault in &self.resource_faults {
            let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
            let _ = writeln!(text, "fault  {}{line}: {}", plain(&fault.file), plain(&fault.message));
        }
        text
    }
}

impl Shown for Vec<CredentialSummary> {
    fn shown(&self, now: UnixMillis) -> String {
        let rows = self.iter().map(|row| {
            let next = row.next_rotation_at.map(|at| match at.ms_since(now) {
                0 => "due".to_owned(),
                left => format!("in {}", span(left)),
            });
            [
                row.name.to_string(),
                word(&row.phase),
                or_dash(row.current),
                or_dash(row.rolling),
                row.live_versions.to_string(),
                format!("{}/{}", row.adopted, row.targets),
                or_dash(next),
            ]
        });
        let heading = ["NAME", "PHASE", "CURRENT", "ROLLING", "LIVE", "ADOPTED", "NEXT"];
        table(heading, rows.collect(), "no credentials; put a Credential into the resources directory")
    }
}

impl Shown for CredentialDetail {
    fn shown(&self, now: UnixMillis) -> String {
        let summary = &self.summary;
        let mut text = facts(&[
            ("name", summary.name.to_string()),
            ("phase", word(&summary.phase)),
            ("current", or_dash(summary.current)),
            ("rolling", or_dash(summary.rolling)),
            ("wish", or_dash(self.pending_wish.as_ref())),
            ("adopted", format!("{} of {} targets", summary.adopted, summary.targets)),
        ]);
        text.push_str(&stuck(&self.stuck));
        text.push('\n');
        let rows = self.versions.iter().map(|row| version_row(row, now));
        let heading = ["VERSION", "PHASE", "SINCE", "FLAGS", "TARGETS"];
        text.push_str(&table(
            heading,
            rows.collect(),
            "no versions yet; `esoctl credential rotate` makes one, `esoctl credential import` takes one over",
        ));
        // A rollout shows each target with its reason.
        let rolling = self.rollout.as_ref().map(|rollout| rollout.version);
        let left_out = refusing(self.versions.iter().filter(|row| Some(row.version) != rolling));
        if !left_out.is_empty() {
            text.push('\n');
            text.push_str(&table(["VERSION", "REFUSED BY", "REASON"], left_out, ""));
        }
        if let Some(rollout) = &self.rollout {
            text.push('\n');
            text.push_str(&rollout.shown(now));
        }
        text
    }
}

const ABORTED: &str = "aborted";

/// Where a version is. One that was given up waits for its gate as a superseded one does, but nothing superseded it.
fn standing(phase: VersionPhase, aborted: bool) -> String {
    if aborted && phase == VersionPhase::Superseded { ABORTED.to_owned() } else { word(&phase) }
}

fn version_row(row: &VersionDetail, now: UnixMillis) -> [String; 5] {
    let mut flags = Vec::new();
    let phase = standing(row.phase, row.aborted);
    if row.aborted && phase != ABORTED {
        flags.push(ABORTED.to_owned());
    }
    if row.compromised {
        flags.push("compromised".to_owned());
    }
    flags.extend(row.holds.iter().map(|hold| format!("held by {}", hold.by)));
    flags.extend(flipped(&row.figures));
    // The figure is of every end; only one of them is a revocation.
    let revoke_ms = row.figures.last_holder_to_revoke_ms.filter(|_| row.phase == VersionPhase::Retired);
    flags.extend(revoke_ms.map(|ms| format!("revoked {ms} ms after its last holder")));
    let mut targets = BTreeMap::new();
    for delivery in &row.deliveries {
        *targets.entry(delivery.phase).or_insert(0) += 1;
    }
    let flags = if flags.is_empty() { "-".to_owned() } else { flags.join(", ") };
    [row.version.to_string(), phase, age(now, row.since), flags, counts(&targets)]
}

/// Which targets do not take which version, and why. What has ended is nobody's matter any more.
fn refusing<'a>(versions: impl Iterator<Item = &'a VersionDetail>) -> Vec<[String; 3]> {
    let alive = versions.filter(|row| !matches!(row.phase, VersionPhase::Retired | VersionPhase::Erased));
    let rows = alive.flat_map(|row| {
        let refused = row.deliveries.iter().filter(|delivery| delivery.phase == DeliveryPhase::Refused);
        refused.map(|delivery| {
            [row.version.to_string(), delivery.name.clone(), or_dash(delivery.reason.as_ref())]
        })
    });
    rows.collect()
}

fn deliveries(deliveries: &[DeliveryView]) -> String {
    let rows = deliveries.iter().map(|row| {
        let mut phase = word(&row.phase);
        if row.excused {
            phase.push_str(" (excused)");
        }
        let canary = if row.canary { "canary" } else { "-" };
        [row.name.clone(), phase, canary.to_owned(), or_dash(row.generation), or_dash(row.reason.as_ref())]
    });
    table(["TARGET", "PHASE", "FIRST", "GENERATION", "REASON"], rows.collect(), "no targets")
}

/// How close together its targets flipped, where that was measured.
fn flipped(figures: &Figures) -> Option<String> {
    figures.flip_skew_ms.map(|ms| format!("{} flipped within {ms} ms", figures.flipped_together))
}

impl Shown for RolloutView {
    fn shown(&self, now: UnixMillis) -> String {
        let mut rows = vec![
            ("rollout", format!("{}@{}", self.credential, self.version)),
            ("phase", word(&self.phase)),
            ("reason", or_dash(self.reason.as_ref())),
            ("since", age(now, self.started_at)),
        ];
        rows.extend(flipped(&self.figures).map(|words| ("measured", words)));
        let mut text = facts(&rows);
        text.push('\n');
        text.push_str(&deliveries(&self.deliveries));
        text
    }
}

impl Shown for Option<RolloutView> {
    fn shown(&self, now: UnixMillis) -> String {
        self.as_ref().map_or_else(|| "nothing is on its way\n".to_owned(), |rollout| rollout.shown(now))
    }
}

fn blockers(blockers: &[Blocker], now: UnixMillis) -> String {
    let rows = blockers.iter().map(|blocker| {
        // Some blockers are nobody's: then the words say it all, once.
        let nobody = blocker.name.is_none() && blocker.detail.as_ref() == Some(&blocker.who);
        let who = if nobody { "-" } else { blocker.name.as_ref().unwrap_or(&blocker.who) }.to_owned();
        let (detail, remedy) = (or_dash(blocker.detail.as_ref()), or_dash(blocker.remedy.as_ref()));
        [word(&blocker.clause), who, age(now, blocker.since), detail, remedy]
    });
    table(["CLAUSE", "WHO", "SINCE", "DETAIL", "TO END IT"], rows.collect(), "nothing keeps it alive")
}

impl Shown for Why {
    fn shown(&self, now: UnixMillis) -> String {
        format!(
            "{}@{} is {}\n\n{}",
            self.credential,
            self.version,
            standing(self.phase, self.aborted),
            blockers(&self.blockers, now)
        )
    }
}

impl Shown for Vec<PendingVersion> {
    fn shown(&self, now: UnixMillis) -> String {
        if self.is_empty() {
            return "no older version waits\n".to_owned();
        }
        let parts = self.iter().map(|pending| {
            let why = &pending.why;
            let phase = standing(why.phase, why.aborted);
            let what = format!("{}@{}", why.credential, why.version);
            let mut text = match pending.since {
                Some(_) => format!("{what} has been {phase} for {}", age(now, pending.since)),
                None => format!("{what} is {phase}"),
            };
            text.push_str("\n\n");
            text.push_str(&blockers(&why.blockers, now));
            if !pending.holders.is_empty() {
                text.push('\n');
                text.push_str(&holders(&pending.holders));
            }
            text
        });
        parts.collect::<Vec<_>>().join("\n")
    }
}

fn holders(holders: &[HolderView]) -> String {
    let rows = holders.iter().map(|row| {
        [
            format!("{}@{}", row.credential, row.version),
            row.name.clone(),
            row.kind.clone(),
            or_dash(row.consumer.as_ref()),
            word(&row.evidence),
            row.id.clone(),
            row.description.clone(),
        ]
    });
    let heading = ["VERSION", "TARGET", "KIND", "CONSUMER", "EVIDENCE", "ID", "DESCRIPTION"];
    table(heading, rows.collect(), "no holders")
}

impl Shown for Vec<HolderView> {
    fn shown(&self, _: UnixMillis) -> String {
        holders(self)
    }
}

impl Shown for Vec<HostSummary> {
    fn shown(&self, now: UnixMillis) -> String {
        let rows = self.iter().map(|row| {
            [
                row.name.clone(),
                word(&row.phase),
                row.id.to_string().chars().take(12).collect(),
                row.address.clone(),
                row.sets.to_string(),
                word(&row.evidence),
                age(now, row.reported_at),
                labels(&row.labels),
            ]
        });
        let heading = ["NAME", "PHASE", "ID", "ADDRESS", "SETS", "EVIDENCE", "REPORTED", "LABELS"];
        table(heading, rows.collect(), "no hosts; `esoctl host enroll-token` lets one in")
    }
}

impl Shown for HostDetail {
    fn shown(&self, now: UnixMillis) -> String {
        let host = &self.summary;
        let mut text = facts(&[
            ("name", host.name.clone()),
            ("id", host.id.to_string()),
            ("phase", word(&host.phase)),
            ("reason", or_dash(host.reason.as_ref())),
            ("address", host.address.clone()),
            ("labels", labels(&host.labels)),
            ("enrolled", date(host.enrolled_at)),
            ("reported", age(now, host.reported_at)),
        ]);
        text.push('\n');
        let rows = self.reports.iter().map(|(set, report)| {
            [
                set.to_string(),
                or_dash(report.current),
                or_dash(report.adopted),
                report.present.keys().map(ToString::to_string).collect::<Vec<_>>().join(","),
                word(&report.evidence),
                report.holders.len().to_string(),
                (report.gaps.len() + report.places.len()).to_string(),
            ]
        });
        let heading = ["SET", "CURRENT", "ADOPTED", "PRESENT", "EVIDENCE", "HOLDERS", "GAPS"];
        text.push_str(&table(heading, rows.collect(), "no sets"));
        let refused = self.reports.iter().filter_map(|(set, report)| {
            let lifecycle::report::Refused { version, code, message, .. } = report.refused.as_ref()?;
            Some([set.to_string(), version.to_string(), format!("{code}: {message}")])
        });
        let refused: Vec<_> = refused.collect();
        if !refused.is_empty() {
            text.push('\n');
            text.push_str(&table(["SET", "VERSION", "REFUSED"], refused, ""));
        }
        if !self.means.is_empty() {
            let used = |used| if used { "yes" } else { "no" }.to_owned();
            let rows =
                self.means.iter().map(|mean| [mean.name.clone(), used(mean.in_use), mean.detail.clone()]);
            text.push('\n');
            text.push_str(&table(["MEANS", "IN USE", "DETAIL"], rows.collect(), ""));
        }
        if !self.notices.is_empty() {
            let rows = self.notices.iter().map(|notice| [notice.code.clone(), notice.message.clone()]);
            text.push('\n');
            text.push_str(&table(["NOTICE", "WHAT TO KNOW"], rows.collect(), ""));
        }
        text
    }
}

/// Writes the names of hosts in place of their ids, where no other host has the name.
pub fn name_hosts(page: &mut AuditPage, hosts: &[HostSummary]) {
    let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for host in hosts {
        ids.entry(&host.name).or_default().push(host.id.to_string());
    }
    let unique = ids.into_iter().filter_map(|(name, ids)| Some((<[String; 1]>::try_from(ids).ok()?, name)));
    let names: BTreeMap<String, &str> = unique.map(|([id], name)| (id, name)).collect();
    let rewrite = |text: &mut String| {
        // Each piece ends with the first character that can be of no id.
        let pieces = text.split_inclusive(|c: char| !c.is_ascii_hexdigit()).map(|piece| {
            let id = piece.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
            names.get(id).map_or_else(|| piece.to_owned(), |name| piece.replacen(id, name, 1))
        });
        *text = pieces.collect();
    };
    for row in &mut page.entries {
        rewrite(&mut row.actor);
        rewrite(&mut row.subject);
        rewrite(&mut row.detail);
    }
}

impl Shown for AuditPage {
    fn shown(&self, _: UnixMillis) -> String {
        let rows = self.entries.iter().map(|row| {
            [
                row.sequence.to_string(),
                date(row.at),
                row.actor.clone(),
                row.action.clone(),
                row.subject.clone(),
                row.detail.clone(),
            ]
        });
        table(["ROW", "AT", "ACTOR", "ACTION", "SUBJECT", "DETAIL"], rows.collect(), "no rows")
    }
}

impl Shown for Done {
    fn shown(&self, _: UnixMillis) -> String {
        format!("{}\n", plain(&self.message))
    }
}

impl Shown for Rotated {
    fn shown(&self, _: UnixMillis) -> String {
        format!("{}\n", plain(&self.message))
    }
}

impl Shown for Imported {
    fn shown(&self, _: UnixMillis) -> String {
        format!("{}\n", plain(&self.message))
    }
}

impl Shown for DryRun {
    fn shown(&self, _: UnixMillis) -> String {
        let mut text = String::from(if self.accepted { "would be accepted\n" } else { "would be refused\n" });
        for reason in &self.reasons {
            let _ = writeln!(text, "  {}", plain(reason));
        }
        text.push('\n');
        text.push_str(&deliveries(&self.targets));
        text
    }
}

impl Shown for BackedUp {
    fn shown(&self, _: UnixMillis) -> String {
        format!("{}\nThe key is not in it: keep a copy of the key elsewhere.\n", plain(&self.file))
    }
}

impl Shown for Whoami {
    fn shown(&self, _: UnixMillis) -> String {
        facts(&[("name", self.name.clone()), ("role", word(&self.role)), ("until", date(self.expires_at))])
    }
}

impl Shown for Vec<OperatorView> {
    fn shown(&self, now: UnixMillis) -> String {
        let rows = self.iter().map(|row| {
            let state = match row.revoked_at {
                Some(_) => "revoked",
                None if row.expires_at <= now => "expired",
                None => "good",
            };
            [
                row.name.clone(),
                word(&row.role),
                row.proof.clone(),
                state.to_owned(),
                date(row.expires_at),
                row.id.clone(),
            ]
        });
        table(["NAME", "ROLE", "PROOF", "STATE", "UNTIL", "ID"], rows.collect(), "nobody")
    }
}

impl Shown for OperatorIssued {
    fn shown(&self, _: UnixMillis) -> String {
        // Alone on stdout, so that it can be written to a file.
        match (&self.certificate, &self.token) {
            (Some(certificate), _) => certificate.clone(),
            (None, Some(token)) => format!("{token}\n"),
            (None, None) => format!("{}\n", self.operator.id),
        }
    }
}

impl Shown for EnrolTokenIssued {
    fn shown(&self, _: UnixMillis) -> String {
        // The bundle alone, as `eso-vm-applier enroll --bundle` reads it.
        self.bundle
            .to_json()
            .map_or_else(|_| String::new(), |json| format!("{}\n", String::from_utf8_lossy(&json)))
    }
}
