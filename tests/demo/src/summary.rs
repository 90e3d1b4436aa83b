//! The figures at the end: what the protected server's log says of each application, and what reports and engine say of
//! each version.

use std::time::Duration;

use crate::host::{CAST, HOSTS};
use crate::judge::GAP_MAX;
use crate::narrator::Narrator;
use crate::protected::Protected;
use crate::terminal::{Terminal, Tone, span};

/// Says them, and gives what was promised of the whole run, each with whether it held: what failed between two acts counts
/// too. Failures count from the first login on, gaps since then, in milliseconds since 1970.
pub fn tell(
    terminal: &Terminal,
    protected: &mut Protected,
    narrator: &Narrator,
    since_ms: u64,
) -> anyhow::Result<Vec<(bool, String)>> {
    terminal.say(Tone::Heading, "what it comes to");
    protected.until_all_log_in()?;
    let mut lines = vec![
        "application  on    logins  failed  longest gap without a login   (by the server's own log)"
            .to_owned(),
    ];
    let (mut failed, mut gap_ms_max, mut well) = (0, 0, true);
    for cast in &CAST {
        failed += protected.tally_since(cast.source(), 0)?.failed;
        let tally = protected.tally_since(cast.source(), since_ms)?;
        gap_ms_max = gap_ms_max.max(tally.gap_ms_max);
        well &= tally.is_well();
        let gap = span(Duration::from_millis(tally.gap_ms_max));
        let price = protected.price(cast.source())?.map_or_else(String::new, |price| {
            format!(", beside {} as the price of act 3", span(Duration::from_millis(price)))
        });
        let (name, host) = (cast.name, HOSTS[cast.host]);
        lines.push(format!("{name:11}  {host}  {:6}  {:6}  {gap}{price}", tally.logins, tally.failed));
    }
    terminal.say(Tone::Plain, lines.join("\n"));
    tell_versions(terminal, narrator);
    let gap = span(Duration::from_millis(gap_ms_max));
    Ok(vec![
        (failed == 0, format!("{failed} failed logins in the whole run, between the acts too")),
        (well, format!("no application was ever without a login for more than {}: {gap}", span(GAP_MAX))),
    ])
}

fn tell_versions(terminal: &Terminal, narrator: &Narrator) {
    let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| span(Duration::from_millis(ms)));
    let mut lines = vec![
        "version  flipped together  skew of the flip  last holder's end to revocation   (by reports and engine)"
            .to_owned(),
    ];
    for (version, figures) in narrator.figures() {
        let together = match figures.flipped_together {
            0 | 1 => "-".to_owned(),
            hosts => format!("{hosts} hosts"),
        };
        let (skew, end) = (ms(figures.flip_skew_ms), ms(figures.last_holder_to_revoke_ms));
        lines.push(format!("{:7}  {together:16}  {skew:16}  {end}", version.to_string()));
    }
    lines.push(
        "grace time and a last look at every host are in it; the version that is used has none".to_owned(),
    );
    terminal.say(Tone::Plain, lines.join("\n"));
}
