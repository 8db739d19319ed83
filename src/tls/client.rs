//! TLS towards those that tollgate connects to: whom it believes, and what it shows of itself.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder};

use super::roots::{Roots, certificates};

/// HTTP/2, as ALPN names it.
pub const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1, as ALPN names it.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// TLS towards an upstream, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// Who may have signed its certificate.
    pub roots: Roots,
    /// The name or the address that its certificate must bear; a name is sent along as SNI.
    pub server_name: ServerName<'static>,
    /// What tollgate shows of itself, if it is asked.
    pub identity: Option<ClientIdentity>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    // Its `Debug` shows nothing of it.
    key: Arc<PrivateKeyDer<'static>>,
}

/// TLS towards an upstream, ready to be used.
#[derive(Debug)]
pub struct ClientTls {
    /// Offers HTTP/2 and HTTP/1.1.
    pub any: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone: only there can a connection be upgraded.
    pub http1: Arc<ClientConfig>,
    /// The name or the address that the certificate must bear.
    pub server_name: ServerName<'static>,
}

/// Reads a name, or an address with or without brackets, that a certificate may bear.
pub fn server_name(text: &str) -> Option<ServerName<'static>> {
    // A certificate never has the final dot of a name, nor may SNI (RFC 6066 §3).
    let text = text.strip_suffix('.').unwrap_or(text);
    let text = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    ServerName::try_from(text.to_owned()).ok()
}

impl ClientIdentity {
    /// Takes a chain of certificates as it was read, and reads their key.
    ///
    /// # Errors
    /// There is no key in it that can be used.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => "no private key in it".to_owned(),
            error => format!("no PEM: {error}"),
        })?;
        Ok(ClientIdentity { chain, key: Arc::new(key) })
    }

    /// Reads a chain of certificates.
    ///
    /// # Errors
    /// There is none in it.
    pub fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        certificates(pem)
    }

    /// Whether TLS can use the two together.
    ///
    /// # Errors
    /// Why not: mostly that the key is not the certificate's.
    pub fn check(&self) -> Result<(), String> {
        let builder = builder(&Roots::Given(self.chain.clone()))?;
        with_identity(builder, Some(self)).map(drop)
    }
}

impl ClientTls {
    /// Reads the system's authorities, where those are to be trusted.
    ///
    /// # Errors
    /// There are no authorities to trust, or key and certificate do not fit.
    pub fn new(settings: &ClientSettings) -> Result<Self, String> {
        let config = with_identity(builder(&settings.roots)?, settings.identity.as_ref())?;
        let (mut any, mut http1) = (config.clone(), config);
        any.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        http1.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        Ok(ClientTls {
            any: Arc::new(any),
            http1: Arc::new(http1),
            server_name: settings.server_name.clone(),
        })
    }
}

/// TLS without a certificate of tollgate's own, and without ALPN.
///
/// # Errors
/// There are no authorities to trust.
pub fn plain_client(roots: &Roots) -> Result<ClientConfig, String> {
    client_config(roots, None)
}

/// TLS with this certificate, if a server asks for one, and without ALPN.
///
/// # Errors
/// There are no authorities to trust, or key and certificate do not fit.
pub fn client_config(
    roots: &Roots,
    identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, String> {
    with_identity(builder(roots)?, identity)
}

type WantsIdentity = ConfigBuilder<ClientConfig, WantsClientCert>;

fn builder(roots: &Roots) -> Result<WantsIdentity, String> {
    // Given by hand: what the process takes for its default is no business of this file.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots.store()?))
}

fn with_identity(
    builder: WantsIdentity,
    identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, String> {
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(ClientIdentity { chain, key }) => builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => "not the certificate's key".to_owned(),
                error => error.to_string(),
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_what_a_certificate_bears() {
        let read = |text| server_name(text).map(|name| format!("{name:?}"));
        assert_eq!(read("backend.local."), read("backend.local"));
        assert!(matches!(server_name("[::1]"), Some(ServerName::IpAddress(_))));
        assert!(matches!(server_name("192.0.2.7"), Some(ServerName::IpAddress(_))));
        assert!(matches!(server_name("backend"), Some(ServerName::DnsName(_))));
        for wrong in ["", "a b", "a..b", "http://a", "a:443"] {
            assert_eq!(server_name(wrong), None, "{wrong}");
        }
    }
}
