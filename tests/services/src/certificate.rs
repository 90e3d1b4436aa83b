//! A certificate for a private server, from an authority of its own.

use anyhow::Result;

/// What a server on the loopback interface needs for TLS.
pub struct Certificate {
    /// The authority to trust, PEM.
    pub authority: String,
    /// The server's certificate, PEM; for 127.0.0.1 and localhost.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

impl Certificate {
    /// A new one, from a new authority.
    pub fn new() -> Result<Self> {
        let mut authority = rcgen::CertificateParams::new(Vec::new())?;
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "a private server's authority");
        let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate()?)?;
        let key = rcgen::KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &authority)?;
        Ok(Self { authority: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}
