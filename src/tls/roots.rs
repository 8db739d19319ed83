//! The authorities that tollgate trusts when it is the one who connects.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The authorities that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of this machine, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    System,
    /// These; at least one.
    Given(Vec<CertificateDer<'static>>),
}

impl Roots {
    /// Reads the certificates of a file in PEM.
    ///
    /// # Errors
    /// There is none in it, or one that is broken.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let certificates = certificates(pem)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            let added = store.add(certificate.clone());
            added.map_err(|error| format!("a certificate that cannot be used: {error}"))?;
        }
        Ok(Roots::Given(certificates))
    }

    /// What verifiers look into.
    ///
    /// # Errors
    /// This machine has no authorities.
    pub fn store(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match self {
            // What is odd in the machine's own store is not ours to complain of.
            Roots::System => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if store.is_empty() {
                    return Err("this machine has no certificates of authorities".to_owned());
                }
            }
            Roots::Given(certificates) => {
                store.add_parsable_certificates(certificates.iter().cloned());
            }
        }
        Ok(store)
    }
}

/// The certificates of a file in PEM, as they stand there; at least one.
///
/// # Errors
/// There is none in it, or what is no PEM.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificates.push(certificate.map_err(|error| format!("no PEM: {error}"))?);
    }
    if certificates.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_none_of_authorities() {
        assert_eq!(Roots::from_pem(b"hello").unwrap_err(), "no certificate in it");
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = Roots::from_pem(broken).unwrap_err();
        assert!(error.starts_with("a certificate that cannot be used"), "{error}");
    }
}
