//! What people ask for: verbs, imports, a look at the source.

use lifecycle::credential::{Event, Rotate, RotateReason};
use lifecycle::{CredentialName, EffectId, Version};
use protocol::UnixMillis;
use resources::{Backing, First};

use backends::SecretValue;

use crate::audit::entry;
use crate::handle::{HandleError, Verb};
use crate::run::{Batch, RunError, Turn};
use crate::value::Content;
use crate::world::{Owned, World};

impl World {
    pub(crate) fn verb(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        name: &CredentialName,
        verb: Verb,
    ) -> Result<(), HandleError> {
        if matches!(verb, Verb::Delete { .. }) && self.resources.credentials.contains_key(name) {
            return Err(HandleError::Refused {
                code: "resource_exists".to_owned(),
                message: format!("the resource of {name} is still there, so the credential would come back"),
                action: "remove its resource, then delete it".to_owned(),
            });
        }
        let rotates = matches!(verb, Verb::Rotate { .. });
        if let Verb::Rotate { compromised, .. } = verb
            && let Some(refused) = self.mints_nothing(name, compromised)
        {
            return Err(refused);
        }
        let (action, detail, event) = described(verb, actor);
        self.apply(turn, batch, name, event)?;
        if let (true, Some(owned)) = (rotates, self.owned.get_mut(name)) {
            owned.kept.rotated_at = UnixMillis::now();
        }
        batch.audit.push(entry(actor, action, &format!("credential/{name}"), &detail));
        Ok(())
    }

    /// What a source brings is rotated there, and nowhere else; what is to be imported comes before anything is minted, or
    /// the value in use would never be known.
    pub(crate) fn mints_nothing(&self, name: &CredentialName, compromised: bool) -> Option<HandleError> {
        let owned = self.owned.get(name)?;
        let credential = &owned.kept.plan.credential;
        if credential.first == First::Import && owned.kept.state.versions().next().is_none() {
            return Some(HandleError::Refused {
                code: "import_first".to_owned(),
                message: format!("the resource of {name} says `first: import`, and nothing was imported yet"),
                action: format!(
                    "`esoctl credential import {name} --field NAME=FILE`, or say `first: mint` in its resource"
                ),
            });
        }
        let Backing::Source(source) = &credential.backing else { return None };
        let action = if compromised {
            format!(
                "revoke the old value where it was made, rotate it there, then `esoctl source refresh {name}`; whoever \
                 still holds the old one is listed by `esoctl holders list`"
            )
        } else {
            format!("rotate it there, then `esoctl source refresh {name}`")
        };
        Some(HandleError::Refused {
            code: "rotated_at_source".to_owned(),
            message: format!("the values of {name} come from the source {source}: we cannot mint one"),
            action,
        })
    }

    pub(crate) async fn import(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        name: &CredentialName,
        value: SecretValue,
    ) -> Result<Version, HandleError> {
        let owned = self.owned.get(name).ok_or_else(|| HandleError::Missing(format!("credential {name}")))?;
        let invalid = |error: crate::value::ContentError| HandleError::Invalid(error.to_string());
        let content = Content::new(value, &owned.kept.plan.credential.files).map_err(invalid)?;
        content.render().map_err(invalid)?;
        owned.must_be_replaceable(&content.value)?;
        let effect = crate::sources::random_effect()
            .ok_or_else(|| HandleError::Store(RunError::Random.to_string()))?;
        content.keep(&self.means.store, name, effect).await.map_err(invalid)?;
        if let Some(owned) = self.owned.get_mut(name) {
            owned.note_origin(effect);
        }
        if let Err(error) = self.apply(turn, batch, name, Event::Imported { value: effect }) {
            batch.forget.push((name.clone(), effect));
            return Err(error);
        }
        if let Some(owned) = self.owned.get_mut(name) {
            // Its first life begins here: the schedule counts from now.
            owned.kept.rotated_at = UnixMillis::now();
        }
        batch.audit.push(entry(actor, "import", &format!("credential/{name}"), ""));
        Ok(Version::new(self.epoch.counter, 0))
    }

    pub(crate) fn refresh(
        &self,
        batch: &mut Batch,
        actor: &str,
        name: Option<&CredentialName>,
    ) -> Result<u32, HandleError> {
        if let Some(name) = name {
            self.must_have_source(name)?;
        }
        let mut asked = 0;
        for (owner, owned) in &self.owned {
            let source = owned.equipment.as_ref().and_then(|equipment| equipment.source());
            if let Some(source) = source.filter(|_| name.is_none_or(|name| name == owner)) {
                source.refresh();
                batch.audit.push(entry(actor, "refresh", &format!("credential/{owner}"), ""));
                asked += 1;
            }
        }
        Ok(asked)
    }
}

impl World {
    fn must_have_source(&self, name: &CredentialName) -> Result<(), HandleError> {
        let owned = self.owned.get(name).ok_or_else(|| HandleError::Missing(format!("credential {name}")))?;
        let (code, message, action) = match &owned.kept.plan.credential.backing {
            Backing::Generator(generator) => (
                "no_source",
                format!("{name} has no source to ask: its values are made by {generator}"),
                format!("`esoctl credential rotate {name}` makes a new one"),
            ),
            Backing::Source(source) if owned.equipment.is_none() => (
                "unusable_source",
                format!("the source {source} of {name} cannot be used, so it is not asked"),
                "see its fault in `esoctl status`".to_owned(),
            ),
            Backing::Source(_) => return Ok(()),
        };
        Err(HandleError::Refused { code: code.to_owned(), message, action })
    }
}

impl Owned {
    /// What replaces an imported value has to lie at the same places: where each field is a file, none may lack that the
    /// generator makes.
    fn must_be_replaceable(&self, value: &SecretValue) -> Result<(), HandleError> {
        if !self.kept.plan.credential.files.is_empty() {
            return Ok(());
        }
        let generator = self.equipment.as_ref().and_then(|equipment| equipment.generator());
        let Some(Ok(minted)) = generator.map(|generator| generator.new_value(EffectId(0))) else {
            return Ok(());
        };
        let lacking = minted.names().find(|name| !value.names().any(|given| given == *name));
        let Some(name) = lacking else { return Ok(()) };
        Err(HandleError::Invalid(format!(
            "the field {name:?} is missing, which each later version will have; give it with `--field {name}=FILE`"
        )))
    }
}

/// The stable word, the detail and the event of a verb.
fn described(verb: Verb, actor: &str) -> (&'static str, String, Event) {
    match verb {
        Verb::Rotate { compromised, deadline } => {
            let (reason, detail) = if compromised {
                let span = deadline.map_or_else(|| "none".to_owned(), resources::duration::show);
                (RotateReason::Compromised { deadline_ms: deadline }, format!("compromised, deadline {span}"))
            } else {
                (RotateReason::Demand, String::new())
            };
            ("rotate", detail, Event::Rotate(Rotate { reason }))
        }
        Verb::Halt { reason } => ("halt", reason.clone(), Event::Halt { reason }),
        Verb::Resume => ("resume", String::new(), Event::Resume),
        Verb::Abort { reason } => ("abort", reason.clone(), Event::Abort { reason }),
        Verb::Hold { version, reason } => {
            let by = format!("{actor}: {reason}");
            ("hold", format!("version {version}: {reason}"), Event::Hold { version, by })
        }
        Verb::Unhold { version } => ("unhold", format!("version {version}"), Event::Unhold { version }),
        Verb::Excuse { target, version, reason } => {
            ("excuse", format!("{target} for version {version}: {reason}"), Event::Excuse { target, version })
        }
        Verb::ClearHolder { target, holder, reason } => {
            ("clear_holder", format!("{holder} on {target}: {reason}"), Event::ClearHolder { target, holder })
        }
        Verb::ClearGap { target, gap, reason } => {
            ("clear_gap", format!("{gap} on {target}: {reason}"), Event::ClearGap { target, gap })
        }
        Verb::Delete { reason } => ("delete", reason, Event::Deleted),
        Verb::Force { version, reason } => {
            ("force", format!("version {version}: {reason}"), Event::Forced { version, reason })
        }
    }
}
