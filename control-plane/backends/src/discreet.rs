//! What a backend says goes to people, logs and the audit log, and a backend may repeat what it was told: "the password
//! X is too weak". Here, and nowhere else, its words lose every value that it was told, in whatever form, and are cut
//! to a bounded length. Everything that [`crate::build`] and its siblings make stands behind this.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use futures_util::future::FutureExt as _;
use futures_util::stream::{BoxStream, StreamExt as _};
use lifecycle::credential::{Authority, Overlap};
use lifecycle::id::EffectId;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::generator::{Answer, Generator, Marked};
use crate::mark::Mark;
use crate::reference::{SecretRef, Secrets};
use crate::source::{Destroyed, Notice, Retiring, Snapshot, Source};
use crate::store_target::{StoreTarget, Stored};
use crate::value::SecretValue;

/// The most characters of a failure's words.
const WORDS_CHARS_MAX: usize = 1000;
/// What is longer is not even looked through, in bytes.
const LOOKED_THROUGH_BYTES_MAX: usize = 16 * 1024;
/// So many bytes in a row of a value are too many, in any of its forms.
const PIECE: usize = 8;
/// What is shorter is no secret, in bytes: it would be found in every sentence.
const SHORTEST: usize = 4;
/// The field that names a version's user is what people look for in a backend's words.
const USER_NAME: &str = "username";
/// Stands where something was left out.
const LEFT_OUT: &str = "[not repeated]";

/// A backend whose failures say nothing of what it was told.
pub(crate) struct Discreet<T: ?Sized> {
    inner: Arc<T>,
    own: Arc<Remembered>,
}

impl<T: ?Sized> Discreet<T> {
    pub(crate) fn new(inner: Arc<T>, own: Arc<Remembered>) -> Self {
        Self { inner, own }
    }

    fn about<'a, V>(&'a self, value: Option<&'a SecretValue>, asked: Answer<'a, V>) -> Answer<'a, V>
    where
        V: Send + 'a,
    {
        let own = &self.own;
        async move { asked.await.map_err(|failure| own.strip(value, failure)) }.boxed()
    }
}

/// The secrets that a backend's own login needs: read anew at each use, and remembered for as long as its words may
/// repeat them.
pub(crate) struct Remembered {
    inner: Arc<dyn Secrets>,
    /// The newest two of each, by where they stand: one may be exchanged while it is in use.
    read: Mutex<BTreeMap<String, [Zeroizing<Vec<u8>>; 2]>>,
}

impl Remembered {
    pub(crate) fn new(inner: Arc<dyn Secrets>) -> Self {
        Self { inner, read: Mutex::default() }
    }

    fn strip(&self, value: Option<&SecretValue>, failure: Failure) -> Failure {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let own = read.values().flatten().map(|secret| secret.as_slice());
        let fields = value.into_iter().flat_map(SecretValue::expose_fields);
        let told = fields.filter(|(name, _)| *name != USER_NAME).map(|(_, content)| content);
        let secrets: Vec<&[u8]> = own.chain(told).collect();
        match failure {
            Failure::Retry(words) => Failure::Retry(without(&words, &secrets)),
            Failure::Refused(words) => Failure::Refused(without(&words, &secrets)),
        }
    }
}

impl Secrets for Remembered {
    fn read(&self, reference: &SecretRef) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let secret = self.inner.read(reference)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let [newest, before] = read.entry(reference.to_string()).or_default();
        if *newest != secret {
            *before = std::mem::replace(newest, secret.clone());
        }
        Ok(secret)
    }
}

/// The words without any longer piece of any form of these secrets.
fn without(words: &str, secrets: &[&[u8]]) -> String {
    let words = &words[..words.floor_char_boundary(LOOKED_THROUGH_BYTES_MAX)];
    let plain = words.to_ascii_lowercase().into_bytes();
    let mut pieces: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (at, piece) in plain.windows(PIECE).enumerate() {
        pieces.entry(piece).or_default().push(at);
    }
    let mut left_out = vec![false; plain.len()];
    for form in secrets.iter().flat_map(|secret| forms(secret)) {
        let mut mark = |at: usize, length: usize| left_out[at..at + length].fill(true);
        if form.len() >= PIECE {
            for piece in form.windows(PIECE) {
                pieces.get(piece).into_iter().flatten().for_each(|at| mark(*at, PIECE));
            }
        } else if form.len() >= SHORTEST {
            let found = plain.windows(form.len()).enumerate().filter(|(_, piece)| *piece == form.as_slice());
            found.for_each(|(at, _)| mark(at, form.len()));
        }
    }
    let mut said = String::new();
    let mut is_out = false;
    for (at, character) in words.char_indices() {
        let was_out = is_out;
        is_out = left_out[at..at + character.len_utf8()].contains(&true);
        match (was_out, is_out) {
            (_, false) => said.push(character),
            (false, true) => said.push_str(LEFT_OUT),
            (true, true) => {}
        }
    }
    let end = said.char_indices().nth(WORDS_CHARS_MAX).map(|(at, _)| at);
    said.truncate(end.unwrap_or(said.len()));
    said
}

/// The forms in which a secret may come back, in lower case: whoever repeats it may have changed that too.
fn forms(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms: Vec<Vec<u8>> = vec![secret.to_vec()];
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        forms.extend((0..3).map(|ahead| base64_inside(&engine, ahead, secret)));
    }
    forms.push(secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    for kept in [&b"-._~"[..], b""] {
        for space in ["%20", "+"] {
            forms.push(percent(secret, |byte| byte.is_ascii_alphanumeric() || kept.contains(&byte), space));
        }
    }
    forms.push(percent(secret, |_| false, "%20"));
    for separator in [",", ", "] {
        forms.push(secret.iter().map(u8::to_string).collect::<Vec<_>>().join(separator).into_bytes());
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        let once = json(text);
        let texts = [
            // What is printed loses these.
            text.chars().filter(|character| !character.is_control()).collect(),
            text.escape_debug().to_string(),
            text.escape_default().to_string(),
            ascii_json(text),
            once.replace('/', "\\/"),
            json(&once),
            once,
        ];
        forms.extend(texts.map(String::into_bytes));
    }
    for form in &mut forms {
        form.make_ascii_lowercase();
    }
    forms.into_iter().map(Zeroizing::new).collect()
}

/// The characters that only the secret decides, when it stands `ahead` bytes after a multiple of three.
fn base64_inside(engine: &impl base64::Engine, ahead: usize, secret: &[u8]) -> Vec<u8> {
    let padded = Zeroizing::new([&[0; 2][..ahead], secret].concat());
    let whole = padded.len() * 8 / 6;
    // Zero, two and three characters at the beginning hold bits of what stands ahead.
    engine.encode(&padded).as_bytes().get([0, 2, 3][ahead]..whole).unwrap_or_default().to_vec()
}

fn percent(secret: &[u8], is_kept: impl Fn(u8) -> bool, space: &str) -> Vec<u8> {
    let escaped = |byte: &u8| match byte {
        b' ' => space.as_bytes().to_vec(),
        byte if is_kept(*byte) => vec![*byte],
        byte => format!("%{byte:02x}").into_bytes(),
    };
    secret.iter().flat_map(escaped).collect()
}

/// The inside of a JSON string.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// The same with nothing but ASCII.
fn ascii_json(text: &str) -> String {
    let mut ascii = String::new();
    for character in json(text).chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            let mut units = [0; 2];
            let units = character.encode_utf16(&mut units).iter();
            ascii.extend(units.map(|unit| format!("\\u{unit:04x}")));
        }
    }
    ascii
}

impl Generator for Discreet<dyn Generator> {
    fn overlap(&self) -> Overlap {
        self.inner.overlap()
    }

    fn authority(&self) -> Authority {
        self.inner.authority()
    }

    fn preflight<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        self.about(None, self.inner.preflight(mark))
    }

    fn try_revoking<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        self.about(Some(value), self.inner.try_revoking(effect, value))
    }

    fn new_value(&self, effect: EffectId) -> Result<SecretValue, Failure> {
        self.inner.new_value(effect).map_err(|failure| self.own.strip(None, failure))
    }

    fn mint<'a>(&'a self, mark: &'a Mark, chosen: &'a SecretValue) -> Answer<'a, Option<SecretValue>> {
        self.about(Some(chosen), self.inner.mint(mark, chosen))
    }

    fn verify<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        self.about(Some(value), self.inner.verify(effect, value))
    }

    fn sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, Option<u32>> {
        self.about(value, self.inner.sessions(effect, value))
    }

    fn end_sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()> {
        self.about(value, self.inner.end_sessions(effect, value))
    }

    fn revoke<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()> {
        self.about(value, self.inner.revoke(effect, value))
    }

    fn orphans<'a>(&'a self, installation: &'a str) -> Answer<'a, Vec<Marked>> {
        self.about(None, self.inner.orphans(installation))
    }
}

impl Source for Discreet<dyn Source> {
    fn retiring(&self) -> Retiring {
        self.inner.retiring()
    }

    fn current(&self) -> Answer<'_, Snapshot> {
        self.about(None, self.inner.current())
    }

    fn changes(self: Arc<Self>) -> BoxStream<'static, Notice> {
        let own = self.own.clone();
        let stripped = move |notice| match notice {
            Notice::Unavailable(failure) => Notice::Unavailable(own.strip(None, failure)),
            Notice::Value(_) | Notice::Available => notice,
        };
        self.inner.clone().changes().map(stripped).boxed()
    }

    fn refresh(&self) {
        self.inner.refresh();
    }

    fn destroy(&self, revision: u64) -> Answer<'_, Destroyed> {
        self.about(None, self.inner.destroy(revision))
    }
}

impl StoreTarget for Discreet<dyn StoreTarget> {
    fn write<'a>(&'a self, mark: &'a Mark, value: &'a SecretValue, after: u64) -> Answer<'a, u64> {
        self.about(Some(value), self.inner.write(mark, value, after))
    }

    fn read_back(&self) -> Answer<'_, Option<Stored>> {
        self.about(None, self.inner.read_back())
    }

    fn destroy(&self, revision: u64) -> Answer<'_, ()> {
        self.about(None, self.inner.destroy(revision))
    }

    fn withdraw(&self, revision: u64) -> Answer<'_, ()> {
        self.about(None, self.inner.withdraw(revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_of_a_secret_is_left_in_any_form() {
        let secret = "Xa9/3f+0 \"k\u{e9}y\" q7\tTz";
        for form in forms(secret.as_bytes()) {
            let form = String::from_utf8_lossy(&form).into_owned();
            for told in [form.clone(), form.to_ascii_uppercase(), form.chars().take(9).collect()] {
                let words = without(&format!("the password {told} is too weak"), &[secret.as_bytes()]);
                // A space beside it may belong to it too.
                let words: String = words.split(' ').collect();
                assert_eq!(words, format!("thepassword{LEFT_OUT}istooweak").replace(' ', ""), "{told}");
            }
        }
    }

    #[test]
    fn words_without_a_secret_stay_as_they_are_and_end_somewhere() {
        let words = "der Rolle \u{201e}orders\u{201c} fehlt ein Recht (42501)";
        assert_eq!(without(words, &[b"something else", b"", b"e", b"le"]), words);
        assert_eq!(without("pin 4711!", &[b"4711"]), format!("pin {LEFT_OUT}!"));
        assert_eq!(without(&"\u{e4}".repeat(100_000), &[b"secret"]).chars().count(), WORDS_CHARS_MAX);
    }
}
