//! A new version of one set: its files and sealed copy are written, invisible, and its policy's command is asked.

use std::sync::Arc;
use std::time::Duration;

use host_policy::SetPolicy;
use lifecycle::Version;
use lifecycle::host::HostEvent;
use protocol::seal::StagedSet;
use sets::SetError;
use units::UnitError;

use crate::copies::CopyError;
use crate::record::KeptAccess;
use crate::set::{ASK_MAX, Set, set_files, version_dir};
use crate::tools::Tools;

/// The end of a validation command whose own limit did not end it.
const VALIDATE_MAX: Duration = Duration::from_millis(host_policy::defaults::SPAN_MS_MAX);

impl Set {
    pub(crate) fn write(&mut self, tools: &mut Tools, version: Version) -> HostEvent {
        let Some((_, files)) = self.incoming.take().filter(|(incoming, _)| *incoming == version) else {
            let message = "the files did not come with the order".to_owned();
            return HostEvent::WriteFailed { version, code: "no_files".to_owned(), message };
        };
        match self.try_write(tools, version, &files) {
            Ok(()) => {
                self.record.digests.insert(version, files.digests());
                if let Some(policy) = &self.policy {
                    let kept = files.files().keys().map(|name| {
                        (name.as_str().to_owned(), KeptAccess::from(policy.access_of(name.as_str())))
                    });
                    self.record.access.extend(kept);
                }
                HostEvent::Written { version }
            }
            Err((code, message)) => HostEvent::WriteFailed { version, code, message },
        }
    }

    fn try_write(
        &mut self,
        tools: &mut Tools,
        version: Version,
        files: &StagedSet,
    ) -> Result<(), (String, String)> {
        let set_failed = |error: SetError| (error.code().to_owned(), error.to_string());
        let policy = self.policy.clone().ok_or(("not_in_policy".to_owned(), "no such set".to_owned()))?;
        let missing =
            policy.places.iter().find(|place| !files.files().keys().any(|name| name.as_str() == place.file));
        if let Some(place) = missing {
            let message =
                format!("the set has no file {:?}, which {} asks for", place.file, place.path.display());
            return Err(("no_such_file".to_owned(), message));
        }
        check_units(tools, &policy)?;
        self.open_dir(tools).map_err(set_failed)?;
        let copied = tools.copies.write(&self.name, version, files);
        copied.map_err(|error: CopyError| ("copy_failed".to_owned(), error.to_string()))?;
        let Some(dir) = &self.dir else { return Err(("write_failed".to_owned(), "no directory".to_owned())) };
        let evidence = &mut self.record.evidence;
        let mut mark = tools.witness.marker(evidence, &mut self.pins, version, &policy);
        dir.stage(version, &set_files(files), &policy, &mut mark).map_err(set_failed)?;
        drop(mark);
        self.validate(tools, version, &policy)
    }

    /// Asks the policy's command whether the version is any good, before it may become current.
    fn validate(
        &self,
        tools: &mut Tools,
        version: Version,
        policy: &SetPolicy,
    ) -> Result<(), (String, String)> {
        let (Some(command), Some(dir)) = (&policy.validate, &self.dir) else { return Ok(()) };
        let code = "not_valid".to_owned();
        dir.show(version).map_err(|error| (code.clone(), error.to_string()))?;
        let path = dir.path().join(version_dir(version));
        let (supervisor, command) = (Arc::clone(tools.tasks.supervisor()), command.clone());
        let validated = tools.wait(VALIDATE_MAX, async move { supervisor.validate(&command, &path).await });
        match validated {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(why))) => Err((code, format!("the validation command said no: {why}"))),
            Some(Err(error)) => Err((code, error.to_string())),
            None => Err((code, "the validation command did not end".to_owned())),
        }
    }
}

/// A unit that must not be disturbed by us is no consumer that a version could be staged for: the flip could not be
/// followed by its adoption. One that is not installed yet does not run either, which an operator is told.
fn check_units(tools: &mut Tools, policy: &SetPolicy) -> Result<(), (String, String)> {
    for consumer in policy.consumers.iter().filter(|consumer| consumer.unit().is_some()) {
        let (supervisor, asked) = (Arc::clone(tools.tasks.supervisor()), consumer.clone());
        match tools.wait(ASK_MAX, async move { supervisor.check(&asked).await }) {
            Some(Err(error @ (UnitError::Dangerous { .. } | UnitError::NoSystemd(_)))) => {
                return Err((error.code().to_owned(), error.to_string()));
            }
            Some(Err(error @ UnitError::Vanished { .. })) => {
                tools.trouble(&policy.name, &consumer.name, Some((error.code(), error.to_string())));
            }
            // Asked again before anything is done to it.
            Some(Ok(()) | Err(_)) | None => {}
        }
    }
    Ok(())
}
