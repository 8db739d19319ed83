//! Where tollgate listens, the certificates that each listener shows, and those that it asks for.
//!
//! Collects every error, not the first. Certificates and keys are read here, so that what is wrong
//! with them is said at the start; a reload comes back for [`certificate`] and [`odd_times`].

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::ServerName;

use crate::clock::Clock;
use crate::config_path;
use crate::limiter::time::Timestamp;
use crate::tls::certificate::{CertificateError, ServerCertificate, days_left};
use crate::tls::revocations::Revocations;
use crate::tls::roots::Roots;
use crate::tls::server::{ClientAuth, Shown};

use super::compile::address;
use super::load::read_pem;
use super::reload::{Digest, digest};
use super::report::{Path, Problem, Report, Step};
use super::schema::{ClientAuthMode, LISTEN_DEFAULT, ListenerTls, Server};
use super::url::quoted;

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

/// What a listener shows and asks for, and where that came from.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// For whoever names no server, or one of which there is no other.
    pub default: CertificateSettings,
    /// By server name, in lower case; `*.` stands for one label.
    pub by_name: Vec<(Box<str>, CertificateSettings)>,
    /// The authorities of clients; `None`: no client is asked for a certificate.
    pub clients: Option<ClientSettings>,
}

/// A certificate, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateSettings {
    /// The file of the certificate and those above it.
    pub cert: PemFile,
    /// The file of its private key.
    pub key: PemFile,
    /// What they held.
    pub certificate: ServerCertificate,
}

/// The authorities of clients, and where they came from.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    /// Their file.
    pub file: PemFile,
    /// That of what they have taken back.
    pub revoked: Option<PemFile>,
    /// What both held, and what is asked for.
    pub auth: ClientAuth,
}

impl TlsSettings {
    /// The same, without the files.
    pub fn shown(&self) -> Shown {
        let by_name = self.by_name.iter().map(|(name, it)| (name.clone(), it.certificate.clone()));
        Shown {
            default: self.default.certificate.clone(),
            by_name: by_name.collect(),
            clients: self.clients.as_ref().map(|it| it.auth.clone()),
        }
    }
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
    let default = shown(path, tls.cert.as_deref(), tls.key.as_deref(), report);
    let mut by_name: Vec<(Box<str>, CertificateSettings)> = Vec::new();
    for (name, files) in tls.sni.iter() {
        let at = [path, &config_path!["sni", name][..]].concat();
        let settings = shown(&at, files.cert.as_deref(), files.key.as_deref(), report);
        let Some((name, example)) = sni_name(&at, name, report) else { continue };
        if by_name.iter().any(|(it, _)| *it == name) {
            report.key(at, Problem::new(format!("{name}, a second time")));
            continue;
        }
        let Some(settings) = settings else { continue };
        if !settings.certificate.is_for(&example) {
            let file = &settings.cert.path;
            let problem = Problem::new(format!("{file}: a certificate that is not for {name}"));
            report.warn(at, problem.expected("one with that name among its subjectAltNames"));
        }
        by_name.push((name, settings));
    }
    let clients = clients(path, tls, report);
    Some(TlsSettings { default: default?, by_name, clients: clients? })
}

/// A certificate and its key, from their files.
fn shown(
    path: &[Step],
    cert: Option<&str>,
    key: Option<&str>,
    report: &mut Report<'_>,
) -> Option<CertificateSettings> {
    let at = |key: &str| [path, &[Step::from(key)]].concat();
    let cert = pem(at("cert"), cert, "a file of certificates in PEM", report);
    let key = pem(at("key"), key, "a file of the private key in PEM", report);
    let ((cert, chain), (key, secret)) = (cert?, key?);
    match certificate((&cert.path, &chain), (&key.path, &secret)) {
        Ok(certificate) => {
            if let Some(odd) = odd_times(&certificate, Clock::System.now()) {
                report.warn(at("cert"), Problem::new(format!("{}: {odd}", cert.path)));
            }
            Some(CertificateSettings { cert, key, certificate })
        }
        Err((side, reason)) => {
            report.value(at(side), Problem::new(reason));
            None
        }
    }
}

/// A name of `sni:` in lower case, and one that it stands for.
fn sni_name(
    path: &[Step],
    name: &str,
    report: &mut Report<'_>,
) -> Option<(Box<str>, ServerName<'static>)> {
    let lower = name.to_ascii_lowercase();
    let example = match lower.strip_prefix("*.") {
        Some(parent) => format!("any.{parent}"),
        None => lower.clone(),
    };
    match ServerName::try_from(example) {
        Ok(example @ ServerName::DnsName(_)) if !lower.ends_with('.') => {
            Some((lower.into(), example))
        }
        _ => {
            let problem = Problem::new(quoted(name)).expected("a host name, or *.NAME");
            let hint = "clients name no address, and no dot at the end (RFC 6066 section 3)";
            report.key(path.to_vec(), problem.hint(hint));
            None
        }
    }
}

/// The authorities of clients. The outer `None`: what is wrong was reported.
#[expect(clippy::option_option, reason = "none asked for is not the same as none to be had")]
fn clients(
    path: &[Step],
    tls: &ListenerTls,
    report: &mut Report<'_>,
) -> Option<Option<ClientSettings>> {
    let at = |key: &str| [path, &[Step::from(key)]].concat();
    let is_optional = tls.client_auth == ClientAuthMode::Optional;
    if tls.client_ca.is_none() {
        let given = [("client_auth", is_optional), ("client_crl", tls.client_crl.is_some())];
        for (key, _) in given.iter().filter(|(_, is_given)| *is_given) {
            let problem = Problem::new("given without client_ca: nobody is asked");
            let problem = problem.expected("client_ca beside it, the authorities of clients");
            report.key(at(key), problem);
        }
        return Some(None);
    }
    let (file, roots) = pem_of(
        at("client_ca"),
        tls.client_ca.as_deref(),
        "a file of certificates of authorities, in PEM",
        Roots::from_pem,
        report,
    )?;
    let mut auth = ClientAuth { roots, revocations: None, is_optional };
    let mut revoked = None;
    if tls.client_crl.is_some() {
        let (file, revocations) = pem_of(
            at("client_crl"),
            tls.client_crl.as_deref(),
            "a file of lists of revoked certificates, in PEM",
            |content| revocations(content, &auth),
            report,
        )?;
        if let Some(odd) = overdue(&revocations, Clock::System.now()) {
            report.warn(at("client_crl"), Problem::new(format!("{}: {odd}", file.path)));
        }
        auth.revocations = Some(revocations);
        revoked = Some(file);
    }
    Some(Some(ClientSettings { file, revoked, auth }))
}

/// What a file of PEM holds. `None`: what is wrong was reported.
fn pem_of<T>(
    path: Path,
    file: Option<&str>,
    expected: &str,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
    report: &mut Report<'_>,
) -> Option<(PemFile, T)> {
    let (file, content) = pem(path.clone(), file, expected, report)?;
    match read(&content) {
        Ok(held) => Some((file, held)),
        Err(reason) => {
            let problem = Problem::new(format!("{}: {reason}", file.path)).expected(expected);
            report.value(path, problem);
            None
        }
    }
}

/// The lists of a file, if clients can be judged by them.
///
/// # Errors
/// There is none in it, or one that is broken.
fn revocations(pem: &[u8], auth: &ClientAuth) -> Result<Revocations, String> {
    let revocations = Revocations::from_pem(pem)?;
    let judged = ClientAuth { revocations: Some(revocations.clone()), ..auth.clone() };
    judged.verifier().map(|_| revocations)
}

/// What is odd about the time of lists that hold all the same: there may be newer ones.
pub fn overdue(revocations: &Revocations, now: Timestamp) -> Option<String> {
    let next = revocations.next_update().filter(|next| *next < now)?;
    Some(format!("a list that was to be replaced by {}; it still holds", written(next)))
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
