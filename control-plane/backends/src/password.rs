//! The `Password` generator only draws values: nobody is asked, nobody revokes.

use futures_util::FutureExt as _;
use lifecycle::credential::{Authority, Overlap};
use lifecycle::id::EffectId;
use zeroize::Zeroizing;

use crate::draw::{Draws, PasswordSpec};
use crate::failure::Failure;
use crate::generator::{Answer, Generator, Marked};
use crate::mark::Mark;
use crate::spec::SpecError;
use crate::value::{FIELDS_MAX, SecretValue};

/// Draws values that nobody revokes.
pub(crate) struct Password {
    draws: Draws,
    fields: Vec<String>,
}

impl Password {
    pub(crate) fn new(spec: PasswordSpec) -> Result<Self, SpecError> {
        let draws = spec.draws("Password")?;
        let fields = if spec.secret_keys.is_empty() { vec!["password".to_owned()] } else { spec.secret_keys };
        if fields.len() > FIELDS_MAX {
            return Err(SpecError::new(
                "Password",
                format!("`secretKeys` has more than {FIELDS_MAX} entries"),
            ));
        }
        let mut probe = SecretValue::new();
        for field in &fields {
            let content = Zeroizing::default();
            probe.insert(field, content).map_err(|error| SpecError::new("Password", error.to_string()))?;
        }
        Ok(Self { draws, fields })
    }
}

impl Generator for Password {
    fn overlap(&self) -> Overlap {
        Overlap::Versions
    }

    fn authority(&self) -> Authority {
        Authority::ValueOnly
    }

    fn preflight<'a>(&'a self, _: &'a Mark) -> Answer<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn new_value(&self, _: EffectId) -> Result<SecretValue, Failure> {
        self.fields
            .iter()
            .try_fold(SecretValue::new(), |value, field| Ok(value.with(field, self.draws.draw()?.as_bytes())))
    }

    fn mint<'a>(&'a self, _: &'a Mark, _: &'a SecretValue) -> Answer<'a, Option<SecretValue>> {
        async { Ok(None) }.boxed()
    }

    fn verify<'a>(&'a self, _: EffectId, _: &'a SecretValue) -> Answer<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn sessions<'a>(&'a self, _: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, Option<u32>> {
        async { Ok(None) }.boxed()
    }

    fn end_sessions<'a>(&'a self, _: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn revoke<'a>(&'a self, _: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn orphans<'a>(&'a self, _: &'a str) -> Answer<'a, Vec<Marked>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_gets_a_password_of_its_own() {
        let spec = PasswordSpec { secret_keys: vec!["a".into(), "b".into()], ..PasswordSpec::default() };
        let value = Password::new(spec).unwrap().new_value(EffectId(1)).unwrap();
        assert!(value.expose("a").is_some() && value.expose("a") != value.expose("b"));
        let spec = PasswordSpec { secret_keys: vec!["../x".into()], ..PasswordSpec::default() };
        assert!(Password::new(spec).is_err());
    }
}
