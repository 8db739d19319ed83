//! Certificates of clients that their authorities have taken back (RFC 5280 §5).

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;

use crate::limiter::time::Timestamp;

use super::certificate::moment;

/// The lists of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    lists: Vec<CertificateRevocationListDer<'static>>,
    next_update: Option<Timestamp>,
}

impl Revocations {
    /// Reads the lists of a file in PEM.
    ///
    /// # Errors
    /// There is none in it, or one that is broken.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let (mut lists, mut next_update) = (Vec::new(), None::<Timestamp>);
        for list in CertificateRevocationListDer::pem_slice_iter(pem) {
            let list = list.map_err(|error| format!("no PEM: {error}"))?;
            let read = CertificateList::from_der(&list)
                .map_err(|error| format!("a list that cannot be read: {error}"))?;
            let next = read.tbs_cert_list.next_update.map(moment);
            next_update = next_update.into_iter().chain(next).min();
            lists.push(list);
        }
        if lists.is_empty() {
            return Err("no list of revoked certificates in it".to_owned());
        }
        Ok(Revocations { lists, next_update })
    }

    /// The lists, as they stand there.
    pub fn lists(&self) -> impl Iterator<Item = CertificateRevocationListDer<'static>> {
        self.lists.iter().cloned()
    }

    /// When the first of them is to have been replaced, if one says so (RFC 5280 §5.1.2.5).
    pub fn next_update(&self) -> Option<Timestamp> {
        self.next_update
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_lists_has_none() {
        let error = Revocations::from_pem(b"hello").unwrap_err();
        assert_eq!(error, "no list of revoked certificates in it");
        let broken = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        let error = Revocations::from_pem(broken).unwrap_err();
        assert!(error.starts_with("a list that cannot be read"), "{error}");
    }
}
