//! Looks for every value that was used in everything that was written meanwhile. A value may lie where it belongs, and
//! these places are named; anywhere else it is a broken promise.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tests_canary::{Canaries, Leak};

use crate::control::ControlPlane;
use crate::host::{CAST, Host};
use crate::login::Login;
use crate::protected::Protected;
use crate::scene::Scene;
use crate::terminal::{Terminal, Tone};

/// A search, and what it found so far.
pub(crate) struct Search {
    canaries: Canaries,
    count: usize,
    leaks: Vec<Leak>,
}

impl Search {
    /// For everything that applications logged in with, and what else is given, each with a name that may be shown.
    pub(crate) fn of(logins: &[Login], more: &[(String, String)]) -> anyhow::Result<Self> {
        let named =
            |login: &Login| (format!("the password of {}", login.username()), login.password().to_owned());
        let mut values: Vec<(String, String)> =
            logins.iter().map(named).chain(more.iter().cloned()).collect();
        values.sort();
        values.dedup();
        let count = values.len();
        let canaries = Canaries::new(values).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { canaries, count, leaks: Vec::new() })
    }

    /// Bytes that are at hand.
    pub(crate) fn bytes(&mut self, place: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        self.leaks.extend(self.canaries.in_bytes(place, bytes));
    }

    /// Everything below a directory but what is excepted.
    pub(crate) fn tree(&mut self, root: &Path, except: &[PathBuf]) -> anyhow::Result<()> {
        let except: Vec<&Path> = except.iter().map(PathBuf::as_path).collect();
        let leaks = self.canaries.in_tree(root, &except);
        self.leaks.extend(leaks.with_context(|| format!("failed to search {}", root.display()))?);
        Ok(())
    }

    /// Arguments and environment of a process, by its directory in `/proc`.
    pub(crate) fn process(&mut self, who: &str, directory: &Path) {
        for what in ["cmdline", "environ"] {
            // A process that ended meanwhile shows nothing any more, nor does one that hides it from us.
            if let Ok(bytes) = std::fs::read(directory.join(what)) {
                self.bytes(format!("{what} of {who}"), bytes);
            }
        }
    }

    /// Audit log, metrics, and what `esoctl` and the demo itself said.
    pub(crate) fn outputs(&mut self, control: &ControlPlane, terminal: &Terminal) -> anyhow::Result<()> {
        let audit = control.esoctl(&["audit", "-o", "json"])?;
        self.bytes("the audit log", audit);
        self.bytes("the metrics", control.metrics()?);
        self.bytes("the output of esoctl", control.printed());
        self.bytes("the output of the demo", terminal.said());
        Ok(())
    }

    /// What the protected server wrote.
    pub(crate) fn protected(&mut self, protected: &Protected) -> anyhow::Result<()> {
        self.tree(protected.directory(), &protected.places_of_values())
    }

    /// Each leak, and what was searched, each with whether it is a promise that held.
    pub(crate) fn promises(self) -> Vec<(bool, String)> {
        let Self { count, leaks, .. } = self;
        let what = format!(
            "{count} values were looked for in every log, state, database, environment, audit row, metric and output: raw, base64, hex, URL-escaped, UTF-16: {}",
            if leaks.is_empty() { "none is there" } else { "found" }
        );
        let held = leaks.is_empty();
        let leaks = leaks.into_iter().map(|leak| (false, leak.to_string()));
        leaks.chain([(held, what)]).collect()
    }
}

/// Searches logs, states, databases, audit, metrics and what `esoctl` and the demo itself said.
pub fn everywhere(scene: &mut Scene) -> anyhow::Result<()> {
    let mut logins = Vec::new();
    for cast in &CAST {
        logins.extend(scene.hosts[cast.host].shown(cast)?);
    }
    let mut search = Search::of(&logins, &scene.planted)?;
    search.outputs(&scene.control, &scene.terminal)?;
    search.tree(scene.directory(), &legitimate(scene))?;
    search.protected(&scene.protected)?;
    if let Some(bao) = &scene.bao {
        search.tree(&bao.log(), &[])?;
    }
    for host in &mut scene.hosts {
        for (program, process) in host.processes()? {
            let who = format!("{program} on {}", host.name);
            search.process(&who, Path::new(&format!("/proc/{process}")));
        }
    }
    if let Some(process) = scene.control.process()? {
        search.process("the control plane", Path::new(&format!("/proc/{process}")));
    }
    for (held, what) in search.promises() {
        scene.promise(held, what);
    }
    scene.terminal.say(
        Tone::Why,
        "left out, since values belong there: the sets and copies on the hosts, what applications show the demo, the \
         directory that is a source, and the secrets of the control plane's own logins",
    );
    Ok(())
}

/// Where values lie because they belong there.
fn legitimate(scene: &Scene) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = scene.hosts.iter().flat_map(Host::places_of_values).collect();
    places.push(scene.control.secrets());
    places.extend(scene.kept_by_others().filter(|path| path.exists()));
    places
}
