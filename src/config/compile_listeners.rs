//! Where tollgate listens, and the certificate that each listener shows.
//!
//! Collects every error, not the first. Certificates and keys are read here, so that what is wrong
//! with them is said at the start; a reload comes back for [`certificate`] and [`odd_times`].

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock::Clock;
use crate::config_path;
use crate::limiter::time::Timestamp;
use crate::tls::certificate::{CertificateError, ServerCertificate, days_left};

use super::compile::address;
use super::load::read_pem;
use super::reload::{Digest, digest};
use super::report::{Path, Problem, Report, Step};
use super::schema::{LISTEN_DEFAULT, ListenerTls, Server};

/// A certificate that ends sooner is warned of: who renews does it about then.
const DAYS_WARN: f64 = 30.0;

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerSettings {
    /// Where; port 0 lets the system choose.
    pub address: SocketAddr,
    /// What it shows; `None`: it is plain.
    pub tls: Option<TlsSettings>,
}

/// The certificate of a listener, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// The file of the certificate and those above it.
    pub cert: PemFile,
    /// The file of its private key.
    pub key: PemFile,
    /// What they held.
    pub certificate: ServerCertificate,
}

/// A file of PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct PemFile {
    /// Its name.
    pub path: String,
    /// Of its bytes when it was read.
    pub digest: Digest,
}

/// Where to listen, at least at one address; in place of what is wrong stands something.
pub fn listeners(server: &Server, report: &mut Report<'_>) -> Vec<ListenerSettings> {
    let Some(listeners) = &server.listeners else {
        let listen = server.listen.as_deref().unwrap_or(LISTEN_DEFAULT);
        let address = address(config_path!["server", "listen"], listen, report);
        return vec![ListenerSettings { address, tls: None }];
    };
    if server.listen.is_some() {
        let problem = Problem::new("given beside server.listen").expected("one of the two");
        report.key(config_path!["server", "listeners"], problem);
    }
    if listeners.is_empty() {
        let problem = Problem::new("an empty list").expected("at least one listener");
        report.value(config_path!["server", "listeners"], problem);
    }
    let mut compiled: Vec<ListenerSettings> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let at = |key: &str| config_path!["server", "listeners", index, key];
        let tls = listener.tls.as_ref().and_then(|it| tls(&at("tls"), it, report));
        let Some(text) = &listener.address else {
            report.value(at("address"), Problem::new("missing").expected("ADDRESS:PORT"));
            continue;
        };
        let address = address(at("address"), text, report);
        if address.port() != 0 && compiled.iter().any(|it| it.address == address) {
            report.value(at("address"), Problem::new(format!("{address}, a second time")));
        }
        compiled.push(ListenerSettings { address, tls });
    }
    compiled
}

fn tls(path: &[Step], tls: &ListenerTls, report: &mut Report<'_>) -> Option<TlsSettings> {
    // What was refused already is enough for one run.
    if report.has_errors_below(path.to_vec()) {
        return None;
    }
    let at = |key: &str| [path, &[Step::from(key)]].concat();
    let cert = pem(at("cert"), tls.cert.as_deref(), "a file of certificates in PEM", report);
    let key = pem(at("key"), tls.key.as_deref(), "a file of the private key in PEM", report);
    let ((cert, chain), (key, secret)) = (cert?, key?);
    match certificate((&cert.path, &chain), (&key.path, &secret)) {
        Ok(certificate) => {
            if let Some(odd) = odd_times(&certificate, Clock::System.now()) {
                report.warn(at("cert"), Problem::new(format!("{}: {odd}", cert.path)));
            }
            Some(TlsSettings { cert, key, certificate })
        }
        Err((side, reason)) => {
            report.value(at(side), Problem::new(reason));
            None
        }
    }
}

fn pem(
    path: Path,
    file: Option<&str>,
    expected: &str,
    report: &mut Report<'_>,
) -> Option<(PemFile, Vec<u8>)> {
    let Some(file) = file else {
        report.value(path, Problem::new("missing").expected(expected));
        return None;
    };
    // The thing itself in place of its file's name: it is not repeated.
    if file.contains("-----") || file.contains('\n') {
        report.value(path, Problem::new("no name of a file").expected(expected));
        return None;
    }
    match read_pem(file) {
        Ok(content) => Some((PemFile { path: file.to_owned(), digest: digest(&content) }, content)),
        Err(reason) => {
            report.value(path, Problem::new(format!("{file}: {reason}")));
            None
        }
    }
}

/// The certificate that two files make, each given by its name and content.
///
/// # Errors
/// Which of the two is wrong, `cert` or `key`, and why; nothing of the key is repeated.
pub fn certificate(
    (cert, chain): (&str, &[u8]),
    (key, secret): (&str, &[u8]),
) -> Result<ServerCertificate, (&'static str, String)> {
    ServerCertificate::from_pem(chain, secret).map_err(|error| match error {
        CertificateError::Chain(reason) => ("cert", format!("{cert}: {reason}")),
        CertificateError::Key(reason) => ("key", format!("{key}: {reason}")),
        CertificateError::Mismatch(reason) => {
            ("key", format!("{key} does not fit {cert}: {reason}"))
        }
    })
}

/// What is odd about the times of a certificate, if anything: it is over, or soon will be, or has
/// not begun. It is shown all the same: who connects will say more than nothing, and may not look.
pub fn odd_times(certificate: &ServerCertificate, now: Timestamp) -> Option<String> {
    let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
    let days = days_left(not_after, now);
    if days < 0.0 {
        return Some(format!("expired on {}", written(not_after)));
    }
    if now < not_before {
        return Some(format!("not valid before {}", written(not_before)));
    }
    (days < DAYS_WARN)
        .then(|| format!("expires in {} days, on {}", days as u32, written(not_after)))
}

/// A moment in UTC (RFC 3339).
pub fn written(moment: Timestamp) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_micros(moment.as_micros()));
    at.map_or_else(String::new, |at| humantime::format_rfc3339_seconds(at).to_string())
}
