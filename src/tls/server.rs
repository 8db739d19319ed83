//! What a listener shows to those who connect: its certificate, for now and until the next reload.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};

use super::certificate::ServerCertificate;

/// Protocols by ALPN (RFC 7301), best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Sessions of TLS 1.2 that are kept for clients that take no tickets (RFC 5246 §7.4.1.2); the
/// oldest goes first. Tickets, which all others take, are kept by the clients.
const SESSIONS_MAX: usize = 4096;

/// The TLS of one listener. A handshake that is under way keeps the configuration that it began
/// with; the next one takes what is in force then.
#[derive(Debug)]
pub struct ServerTls {
    config: ArcSwap<ServerConfig>,
}

impl ServerTls {
    /// With this configuration until the first [`ServerTls::replace`].
    pub fn new(config: Arc<ServerConfig>) -> Arc<Self> {
        Arc::new(ServerTls { config: ArcSwap::new(config) })
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Takes another one from the next handshake on.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.config.store(config);
    }

    /// Shows another certificate from the next handshake on. Keys of tickets and kept sessions
    /// stay: whoever was here before resumes, whatever was renewed meanwhile.
    pub fn renew(&self, certificate: &ServerCertificate) {
        let mut config = ServerConfig::clone(&self.config());
        config.cert_resolver = resolver(certificate);
        self.replace(Arc::new(config));
    }
}

/// A configuration that shows this certificate to all: TLS 1.2 and 1.3 with the cipher suites of
/// aws-lc-rs, HTTP/2 and 1.1 by ALPN. Sessions are resumed by tickets (RFC 5077, RFC 8446 §2.2)
/// whose keys change every six hours and are known to this process alone. There is no early data:
/// what is sent with it can be sent again by anybody (RFC 8446 §8).
///
/// # Errors
/// The system gives no randomness.
pub fn server_config(certificate: &ServerCertificate) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver(certificate));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    config.ticketer = Ticketer::new()?;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    config.max_early_data_size = 0;
    Ok(config)
}

fn resolver(certificate: &ServerCertificate) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(Arc::clone(certificate.certified())))
}
