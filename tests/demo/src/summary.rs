//! The figures at the end: what the protected server's log says of each application, and what reports and engine say of
//! each version.

use std::time::Duration;

use crate::host::{CAST, HOSTS};
use crate::scene::Scene;
use crate::terminal::{Tone, span};

/// Says them.
pub fn tell(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "what it comes to");
    let mut text = String::from(
        "application  on    logins  failed  longest gap without a login   (by the server's own log)",
    );
    for cast in &CAST {
        let tally = scene.protected.tally_since(cast.source(), scene.began_ms)?;
        let gap = span(Duration::from_millis(tally.gap_ms_max));
        text.push_str(&format!(
            "\n{:11}  {}  {:6}  {:6}  {gap}",
            cast.name, HOSTS[cast.host], tally.logins, tally.failed
        ));
    }
    scene.terminal.say(Tone::Plain, text);
    let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| span(Duration::from_millis(ms)));
    let mut text = String::from(
        "version  flipped together  skew of the flip  last holder's end to its revocation, 1 s of grace included   (by reports and engine)",
    );
    for (version, figures) in scene.narrator.figures() {
        text.push_str(&format!(
            "\n{:7}  {:16}  {:16}  {}",
            version.to_string(),
            match figures.flipped_together {
                0 | 1 => "-".to_owned(),
                hosts => format!("{hosts} hosts"),
            },
            ms(figures.flip_skew_ms),
            ms(figures.last_holder_to_revoke_ms),
        ));
    }
    scene.terminal.say(Tone::Plain, text);
    Ok(())
}
