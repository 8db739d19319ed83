//! Certificates towards those that tollgate connects to, from their files.

use crate::tls::client::ClientIdentity;
use crate::tls::roots::Roots;

use super::load::read_pem;
use super::report::{Path, Problem, Report};

/// The authorities of a file, or those of this machine. What is wrong is reported at `path`.
pub fn roots(file: Option<&str>, path: Path, report: &mut Report<'_>) -> Option<Roots> {
    let Some(file) = file else { return Some(Roots::System) };
    let read = read_pem(file).and_then(|pem| Roots::from_pem(&pem));
    wanted(file, read, path, "certificates of authorities, in PEM", report)
}

/// What tollgate shows of itself; `at` gives the place of `client_cert` and `client_key`, which
/// are keys of `whose`.
pub fn identity(
    cert: Option<&str>,
    key: Option<&str>,
    whose: &str,
    at: &dyn Fn(&str) -> Path,
    report: &mut Report<'_>,
) -> Option<ClientIdentity> {
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            let problem = Problem::new("given without client_key").expected("both or neither");
            report.key(at("client_cert"), problem);
            return None;
        }
        (None, Some(_)) => {
            let problem = Problem::new("given without client_cert").expected("both or neither");
            report.key(at("client_key"), problem);
            return None;
        }
        (None, None) => return None,
    };
    let chain = read_pem(cert).and_then(|pem| ClientIdentity::chain(&pem));
    let chain = wanted(cert, chain, at("client_cert"), "a certificate, in PEM", report);
    let expected = format!("the private key of {whose}.client_cert, in PEM");
    let key_bytes = wanted(key, read_pem(key), at("client_key"), &expected, report);
    let identity = ClientIdentity::new(chain?, &key_bytes?)
        .and_then(|identity| identity.check().map(|()| identity));
    wanted(key, identity, at("client_key"), &expected, report)
}

/// What was read of a file; what is wrong with it is reported, by the file's name.
fn wanted<T>(
    file: &str,
    read: Result<T, String>,
    path: Path,
    expected: &str,
    report: &mut Report<'_>,
) -> Option<T> {
    read.map_err(|reason| {
        report.value(path, Problem::new(format!("{file}: {reason}")).expected(expected));
    })
    .ok()
}
