//! What a listener shows: a chain of certificates and the private key of the first, from PEM.
//!
//! Says in plain words what is wrong with either. Nothing of a key is ever part of what it says.

use std::fmt;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use x509_cert::certificate::Version;
use x509_cert::der::Decode;
use x509_cert::time::Time;

use crate::limiter::time::Timestamp;

/// Microseconds of a day.
const DAY: f64 = 86_400e6;

/// A chain of certificates with the key that fits its first.
#[derive(Clone)]
pub struct ServerCertificate {
    certified: Arc<CertifiedKey>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why there is nothing to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The certificates cannot be used.
    #[error("{0}")]
    Chain(String),
    /// The key cannot be used.
    #[error("{0}")]
    Key(String),
    /// Each is good, and they are no pair.
    #[error("{0}")]
    Mismatch(String),
}

impl ServerCertificate {
    /// Reads the texts of both files, which are in PEM (RFC 7468). The certificate of the server
    /// is the first, then those that lead up to an authority (RFC 8446 §4.4.2).
    ///
    /// # Errors
    /// One of them cannot be used, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = read_chain(chain).map_err(CertificateError::Chain)?;
        let (not_before, not_after) = examine(&chain).map_err(CertificateError::Chain)?;
        let key = read_key(key).map_err(CertificateError::Key)?;
        let key = aws_lc_rs::default_provider().key_provider.load_private_key(key);
        let key = key.map_err(|_| {
            let expected = "RSA of 2048 bits or more, ECDSA (P-256, P-384, P-521) or Ed25519";
            CertificateError::Key(format!("a key that cannot be used, expected {expected}"))
        })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => {
                Ok(ServerCertificate { certified: Arc::new(certified), not_before, not_after })
            }
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(CertificateError::Mismatch(mismatch(certified)))
            }
            Err(error) => {
                Err(CertificateError::Chain(format!("a certificate that cannot be used: {error}")))
            }
        }
    }

    /// Chain and key, for rustls.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Whether a client that asks for this name finds it in the server's own certificate (RFC 9525).
    pub fn is_for(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.certified.end_entity_cert().and_then(ParsedCertificate::try_from);
        parsed.is_ok_and(|it| verify_server_name(&it, name).is_ok())
    }

    /// The first second in which the server's own certificate is valid.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The last one.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Days from `now` to the end of a certificate; below zero once it is over.
pub fn days_left(not_after: Timestamp, now: Timestamp) -> f64 {
    (not_after.as_micros() as f64 - now.as_micros() as f64) / DAY
}

impl PartialEq for ServerCertificate {
    /// The chain alone: keys are not compared.
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("certificates", &self.certified.cert.len())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn read_chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| broken(&error))?;
    if chain.is_empty() {
        let holds = if PrivateKeyDer::from_pem_slice(text).is_ok() {
            "a private key and no certificate"
        } else {
            "no certificate in it"
        };
        return Err(expected(holds, text, "CERTIFICATE"));
    }
    Ok(chain)
}

fn read_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let is_encrypted = |mark: &[u8]| text.windows(mark.len()).any(|it| it == mark);
    if is_encrypted(b"BEGIN ENCRYPTED PRIVATE KEY") || is_encrypted(b"Proc-Type: 4,ENCRYPTED") {
        let how = "`openssl pkey -in OLD -out NEW` takes the passphrase off";
        return Err(format!("an encrypted private key, expected one without a passphrase; {how}"));
    }
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let is_chain = CertificateDer::from_pem_slice(text).is_ok();
            let holds =
                if is_chain { "a certificate and no private key" } else { "no private key in it" };
            Err(expected(holds, text, "PRIVATE KEY"))
        }
        Err(error) => Err(broken(&error)),
    }
}

fn expected(holds: &str, text: &[u8], label: &str) -> String {
    // What DER begins with: a sequence whose length takes two octets.
    let is_der = text.starts_with(&[0x30, 0x82]);
    let holds = if text.is_empty() { "an empty file" } else { holds };
    let holds = if is_der { "DER" } else { holds };
    format!("{holds}, expected PEM: -----BEGIN {label}-----")
}

/// Nothing of the text is repeated: it may be a key's.
fn broken(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "cut off: no -----END line".to_owned(),
        pem::Error::Base64Decode(_) => "broken PEM: not Base64".to_owned(),
        _ => "broken PEM".to_owned(),
    }
}

/// When the first of the chain is valid. All of them must be certificates.
fn examine(chain: &[CertificateDer<'static>]) -> Result<(Timestamp, Timestamp), String> {
    let mut valid = None;
    for (index, der) in chain.iter().enumerate() {
        let number = index.saturating_add(1);
        let certificate = x509_cert::Certificate::from_der(der)
            .map_err(|_| format!("certificate {number} of it cannot be read as X.509"))?
            .tbs_certificate;
        if index == 0 {
            if certificate.version != Version::V3 {
                let expected = "version 3, with a subjectAltName";
                return Err(format!("an X.509 certificate of an old version, expected {expected}"));
            }
            let validity = certificate.validity;
            valid = Some((moment(validity.not_before), moment(validity.not_after)));
        }
    }
    valid.ok_or_else(|| "no certificate in it".to_owned())
}

/// A time of a certificate; what does not fit is the last.
pub fn moment(time: Time) -> Timestamp {
    let micros = time.to_unix_duration().as_micros();
    Timestamp::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// What may be the matter with a key that does not fit.
fn mismatch(certified: CertifiedKey) -> String {
    let fits = |der: &CertificateDer<'static>| {
        CertifiedKey::new(vec![der.clone()], Arc::clone(&certified.key)).keys_match().is_ok()
    };
    match certified.cert.iter().position(fits) {
        Some(index) => format!(
            "the key of certificate {}, expected that of the first: the server's own certificate \
             comes first",
            index.saturating_add(1)
        ),
        None => "not the key that the certificate was made for".to_owned(),
    }
}
