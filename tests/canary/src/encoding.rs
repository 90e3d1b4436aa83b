//! The forms in which a value may turn up.

use std::fmt;

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// What is shorter is looked for whole; of what is longer each half alone is a find, in bytes.
const WHOLE_BELOW: usize = 24;

/// A form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// Base64 at any of the three alignments, in the standard or the URL-safe alphabet.
    Base64,
    /// Hex, in lower or upper case.
    Hex,
    /// Percent-encoded, all bytes or only those that need it.
    Url,
    /// UTF-16, little-endian.
    Utf16Le,
    /// UTF-16, big-endian.
    Utf16Be,
    /// A JSON string, once or twice escaped, or as Rust's `Debug` writes it.
    Json,
    /// A list of numbers, as JSON and `Debug` write bytes.
    Numbers,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Raw,
        Self::Base64,
        Self::Hex,
        Self::Url,
        Self::Utf16Le,
        Self::Utf16Be,
        Self::Json,
        Self::Numbers,
    ];
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw bytes",
            Self::Base64 => "base64",
            Self::Hex => "hex",
            Self::Url => "URL escapes",
            Self::Utf16Le => "UTF-16LE",
            Self::Utf16Be => "UTF-16BE",
            Self::Json => "JSON escapes",
            Self::Numbers => "a list of numbers",
        })
    }
}

/// Every form of a value; the same bytes may come more than once.
pub(crate) fn forms(value: &[u8]) -> Vec<(Encoding, Vec<u8>)> {
    let mut forms = vec![(Encoding::Raw, value.to_vec())];
    for ahead in 0..3 {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            forms.push((Encoding::Base64, base64_inside(&engine, ahead, value)));
        }
    }
    forms.push((Encoding::Hex, hex::encode(value).into_bytes()));
    forms.push((Encoding::Hex, hex::encode_upper(value).into_bytes()));
    for lower in [false, true] {
        for needed in [Needed::NotUnreserved, Needed::NotAlphanumeric, Needed::All] {
            for plus in [false, true] {
                forms.push((Encoding::Url, percent(value, needed, lower, plus)));
            }
        }
    }
    for separator in [",", ", "] {
        let numbers: Vec<_> = value.iter().map(ToString::to_string).collect();
        forms.push((Encoding::Numbers, numbers.join(separator).into_bytes()));
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let units = || text.encode_utf16();
        let wide = [
            (Encoding::Utf16Le, units().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
            (Encoding::Utf16Be, units().flat_map(u16::to_be_bytes).collect()),
        ];
        for (encoding, wide) in wide {
            // Of ASCII these are text too, which a log or an answer may escape.
            if let Ok(text) = std::str::from_utf8(&wide) {
                forms.push((encoding, json(text).into_bytes()));
                let debug = text.escape_debug().to_string();
                forms.push((encoding, json(&debug).into_bytes()));
                forms.push((encoding, debug.into_bytes()));
            }
            forms.push((encoding, wide));
        }
        let once = json(text);
        for form in [json(&once), ascii_json(&once), ascii_json(text), text.escape_debug().to_string(), once]
        {
            forms.push((Encoding::Json, form.into_bytes()));
        }
        forms.push((Encoding::Json, json(text).replace('/', "\\/").into_bytes()));
    }
    forms
}

/// A long form is looked for by its halves, so that one cut through it hides nothing.
pub(crate) fn parts(form: &[u8]) -> Vec<&[u8]> {
    if form.len() < WHOLE_BELOW {
        return vec![form];
    }
    let (first, second) = form.split_at(form.len() / 2);
    vec![first, second]
}

/// The characters that only the value decides, when it stands `ahead` bytes after a multiple of three.
fn base64_inside(engine: &impl base64::Engine, ahead: usize, value: &[u8]) -> Vec<u8> {
    let mut padded = vec![0; ahead];
    padded.extend_from_slice(value);
    let whole = padded.len() * 8 / 6;
    let text = engine.encode(padded);
    // Zero, two and three characters at the beginning hold bits of what stands ahead.
    let begin = [0, 2, 3][ahead];
    text.as_bytes()[begin..whole].to_vec()
}

#[derive(Clone, Copy)]
enum Needed {
    NotUnreserved,
    NotAlphanumeric,
    All,
}

fn percent(value: &[u8], needed: Needed, lower: bool, plus: bool) -> Vec<u8> {
    let mut text = Vec::new();
    for &byte in value {
        let plain = match needed {
            Needed::NotUnreserved => byte.is_ascii_alphanumeric() || b"-._~".contains(&byte),
            Needed::NotAlphanumeric => byte.is_ascii_alphanumeric(),
            Needed::All => false,
        };
        match byte {
            b' ' if plus => text.push(b'+'),
            _ if plain => text.push(byte),
            _ if lower => text.extend_from_slice(format!("%{byte:02x}").as_bytes()),
            _ => text.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    text
}

/// The inside of a JSON string.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// The same with nothing but ASCII.
fn ascii_json(text: &str) -> String {
    let ascii = |character: char| {
        if character.is_ascii() {
            return character.to_string();
        }
        let mut units = [0; 2];
        let escaped = character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"));
        escaped.collect::<Vec<_>>().concat()
    };
    json(text).chars().map(ascii).collect()
}
