//! A set's fixed places.

use std::path::Path;

use host_policy::{Place, PlaceKind, SetPolicy};
use lifecycle::report::PlaceFault;
use lifecycle::{GapId, Version};
use sets::{Existing, PlaceState, Places, SetError, SetFile};

use crate::record::Fault;
use crate::set::{Set, set_files};
use crate::tools::Tools;

impl Set {
    /// Puts the current version's files and every place right, and remembers what cannot be.
    pub(crate) fn put_places_right(&mut self, tools: &mut Tools) {
        self.places_due = false;
        let (Some(policy), Some(current)) = (self.policy.clone(), self.machine().current()) else { return };
        let copy = match tools.copies.read(&self.name, current) {
            Ok(copy) => copy,
            Err(error) => return tools.notice("copy", self.about(current), error.to_string()),
        };
        tools.unnotice("copy", &self.about(current));
        let files = set_files(&copy);
        self.repair_files(tools, current, &files, &policy);
        self.foresee_copies(&policy, current);
        if self.record.places != self.kept_places {
            // What is not foreseen there is left out, and waits.
            let _ = self.keep(tools);
        }
        let looked = crate::clock::boot();
        let before = (self.record.written.clone(), self.record.place_faults.clone());
        let (ready, waiting): (Vec<&Place>, Vec<&Place>) =
            policy.places.iter().partition(|place| self.is_foreseen(place, current));
        for place in ready {
            self.put_place_right(tools, place, current, &files, &policy);
        }
        if before != (self.record.written.clone(), self.record.place_faults.clone()) {
            tools.changed = true;
            let _ = self.keep(tools);
        }
        self.places_looked = looked;
        self.places_due = !waiting.is_empty();
        if waiting.is_empty() {
            self.shown_in_places = Some(current);
        }
    }

    fn repair_files(&mut self, tools: &mut Tools, current: Version, files: &[SetFile], policy: &SetPolicy) {
        let Some(dir) = &self.dir else { return };
        let mut mark = tools.witness.marker(&mut self.record.evidence, &mut self.pins, current, policy);
        let repaired = dir.repair(current, files, policy, &mut mark);
        drop(mark);
        match repaired {
            Ok(found) if found.is_empty() => tools.unnotice("drift", self.name.as_str()),
            Ok(found) => {
                // What was made anew is in the evidence.
                self.unkept = true;
                let names: Vec<String> =
                    found.iter().map(|(name, drift)| format!("{name} ({drift:?})")).collect();
                let message = format!(
                    "{}: files were not as delivered and were repaired: {}",
                    self.name,
                    names.join(", ")
                );
                tools.notice("drift", self.name.as_str(), message);
            }
            Err(error) => tools.notice("set", self.name.as_str(), error.to_string()),
        }
    }

    /// Writes down which copies are about to hold the version, before they do.
    fn foresee_copies(&mut self, policy: &SetPolicy, current: Version) {
        for place in policy.places.iter().filter(|place| place.kind == PlaceKind::Copy) {
            self.record.places.entry(place.path.clone()).or_default().insert(current);
        }
    }

    /// Whether the journal knows that the place may hold the version: a seal will read it back. A link holds nothing.
    fn is_foreseen(&self, place: &Place, version: Version) -> bool {
        let kept = self.kept_places.get(&place.path);
        place.kind == PlaceKind::Link || kept.is_some_and(|versions| versions.contains(&version))
    }

    fn put_place_right(
        &mut self,
        tools: &mut Tools,
        place: &Place,
        current: Version,
        files: &[SetFile],
        policy: &SetPolicy,
    ) {
        let ours = self.record.written.contains(&place.path);
        if ours && place.kind == PlaceKind::Copy {
            self.watch_foreign_copy(tools, &place.path);
        }
        let Some(dir) = &self.dir else { return };
        let existing = if ours { Existing::Replace } else { Existing::KeepAside };
        let mut mark = tools.witness.marker(&mut self.record.evidence, &mut self.pins, current, policy);
        crate::failpoint::step("place.write");
        let written = Places::of(dir, tools.disk.clone()).write(place, files, existing, &mut mark);
        drop(mark);
        let about = place.path.display().to_string();
        match written {
            Ok(written) => {
                self.note_shown(place, current, &written.found);
                if place.kind == PlaceKind::Copy && written.found == PlaceState::Good {
                    self.keep_copy(tools, place, current);
                }
                self.record.written.insert(place.path.clone());
                self.record.place_faults.remove(&place.path);
                if let Some(kept) = &written.kept {
                    let message = format!("{about} was there before; it lies at {} now", kept.display());
                    tools.notice("kept_aside", about, message);
                } else if ours && drifted(place.kind, &written.found, self.flipped_lately()) {
                    let message =
                        format!("{about} was not as it should be ({:?}) and was repaired", written.found);
                    tools.notice("drift", about, message);
                } else {
                    tools.unnotice("drift", &about);
                }
            }
            Err(error) => self.fault(&place.path, &error),
        }
    }

    /// A copy that was not as it is now may have shown another version until now, to whoever began since the flip.
    fn note_shown(&mut self, place: &Place, current: Version, found: &PlaceState) {
        if place.kind == PlaceKind::Link || *found == PlaceState::Good {
            return;
        }
        let now = crate::clock::boot();
        let others = self.record.places.get(&place.path).into_iter().flatten();
        for version in others.filter(|version| **version != current) {
            self.record.evidence.was_shown(*version, now);
            self.unkept = true;
        }
    }

    /// A copy that still shows the version before is no drift right after a flip.
    fn flipped_lately(&self) -> bool {
        let current = self.machine().current();
        current.is_some_and(|current| self.shown_in_places != Some(current))
    }

    pub(crate) fn fault(&mut self, path: &Path, error: &SetError) {
        let why = format!("{}: {error}", path.display());
        let fault =
            self.record.place_faults.entry(path.to_owned()).or_insert(Fault { id: None, why: String::new() });
        fault.why = why;
    }

    /// What cannot be written or read back, for the report with this number; it names what no report has shown yet.
    pub(crate) fn faults(&mut self, sequence: u64) -> Vec<PlaceFault> {
        let mut shown = Vec::new();
        for (number, (path, fault)) in self.record.place_faults.iter_mut().enumerate() {
            if fault.id.is_none() {
                fault.id = GapId::new(format!("place:{sequence}:{number}")).ok();
            }
            let Some(id) = fault.id.clone() else { continue };
            let versions = self.record.places.get(path).cloned().unwrap_or_default();
            shown.push(PlaceFault { id, versions, description: protocol::report::sentence(&fault.why) });
        }
        shown
    }
}

/// Whether a place differed although nothing of ours had changed.
fn drifted(kind: PlaceKind, found: &PlaceState, flipped: bool) -> bool {
    match found {
        PlaceState::Good => false,
        PlaceState::Drifted(_) => kind == PlaceKind::Link || !flipped,
        PlaceState::Missing | PlaceState::OtherLink(_) | PlaceState::OtherKind => true,
    }
}
