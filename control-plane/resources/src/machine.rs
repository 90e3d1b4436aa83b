//! `VirtualMachine`: accepted as users of External Secrets wrote it. A host of ours enrols itself and its owner says
//! what may be written there, so the object says little more than which host is meant, and its conditions say so.

use serde::Deserialize;

/// A reference into a Secret, as those manifests write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretKey {
    #[allow(dead_code, reason = "accepted as written; never read")]
    name: String,
    #[allow(dead_code, reason = "accepted as written; never read")]
    namespace: Option<String>,
    #[allow(dead_code, reason = "accepted as written; never read")]
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Written {
    url: String,
    paths: Vec<String>,
    ca_bundle: Option<String>,
    auth: Option<WrittenAuth>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenAuth {
    certificate: Option<WrittenCertificate>,
    basic: Option<WrittenBasic>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "accepted as written; never read")]
struct WrittenCertificate {
    client_certificate_secret_ref: SecretKey,
    client_key_secret_ref: SecretKey,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "refused as written; never read")]
struct WrittenBasic {
    username_secret_ref: SecretKey,
    password_secret_ref: SecretKey,
}

/// A validated machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualMachine {
    /// Its name: that of an enrolled host.
    pub name: String,
    /// Where it was pushed to.
    pub url: String,
    /// What may be delivered there; it narrows the host's own policy and never widens it.
    pub paths: Vec<String>,
    /// Whether the object can be used.
    pub condition: Condition,
}

/// The `Ready` condition of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether the object can be used.
    pub ready: bool,
    /// One word.
    pub reason: &'static str,
    /// What to do, in words.
    pub message: String,
}

impl Written {
    pub(crate) fn validate(self, name: &str) -> Result<VirtualMachine, String> {
        if self.paths.is_empty() {
            return Err("`paths` must name at least one path".to_owned());
        }
        if let Some(path) = self.paths.iter().find(|path| !is_absolute_and_plain(path)) {
            return Err(format!("`paths` has {path:?}: write absolute paths without `..`"));
        }
        let condition = condition(&self);
        Ok(VirtualMachine { name: name.to_owned(), url: self.url, paths: self.paths, condition })
    }
}

fn is_absolute_and_plain(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == ".." || part == ".") && !path.contains('\0')
}

fn condition(written: &Written) -> Condition {
    let not = |reason, message: &str| Condition { ready: false, reason, message: message.to_owned() };
    if !written.url.starts_with("https://") {
        return not("PlainHttp", "`url` must begin with https://: nothing is sent without TLS");
    }
    match &written.auth {
        Some(WrittenAuth { basic: Some(_), .. }) => not(
            "BasicAuthRefused",
            "`auth.basic` was sent but never checked by the old daemon: remove `auth`, and enrol the host with `esoctl host enroll-token`",
        ),
        Some(WrittenAuth { certificate: Some(_), .. }) => not(
            "EnrolInstead",
            "a client certificate from a Secret is not used: hosts are reached with the control plane's own; remove `auth`, and enrol the host with `esoctl host enroll-token`",
        ),
        _ if written.ca_bundle.is_some() => not(
            "EnrolInstead",
            "`caBundle` is not used: an enrolled host has a certificate of the built-in authority; remove it, and enrol the host with `esoctl host enroll-token`",
        ),
        _ => Condition {
            ready: true,
            reason: "Accepted",
            message: "means the enrolled host of this name; `paths` narrows what may be delivered there"
                .to_owned(),
        },
    }
}
