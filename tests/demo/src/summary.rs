//! The figures at the end: what the protected server's log says of each application, and what reports and engine say of
//! each version.

use std::time::Duration;

use crate::host::{CAST, HOSTS};
use crate::scene::Scene;
use crate::terminal::{Tone, span};

/// Says them.
pub fn tell(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "what it comes to");
    let mut lines = vec![
        "application  on    logins  failed  longest gap without a login   (by the server's own log)"
            .to_owned(),
    ];
    for cast in &CAST {
        let tally = scene.protected.tally_since(cast.source(), scene.began_ms)?;
        let gap = span(Duration::from_millis(tally.gap_ms_max));
        let (name, host) = (cast.name, HOSTS[cast.host]);
        lines.push(format!("{name:11}  {host}  {:6}  {:6}  {gap}", tally.logins, tally.failed));
    }
    scene.terminal.say(Tone::Plain, lines.join("\n"));
    let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| span(Duration::from_millis(ms)));
    let mut lines = vec![
        "version  flipped together  skew of the flip  last holder's end to revocation   (by reports and engine)"
            .to_owned(),
    ];
    for (version, figures) in scene.narrator.figures() {
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
    scene.terminal.say(Tone::Plain, lines.join("\n"));
    Ok(())
}
