//! What a listener shows to those who connect, and what it asks them for: certificates by server
//! name and the authorities of clients, for now and until the next reload.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoClientAuth, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use crate::limiter::time::Timestamp;

use super::certificate::ServerCertificate;
use super::revocations::Revocations;
use super::roots::Roots;

/// Protocols by ALPN (RFC 7301), best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Sessions of TLS 1.2 that are kept for clients that take no tickets (RFC 5246 §7.4.1.2); the
/// oldest goes first. Tickets, which all others take, are kept by the clients.
const SESSIONS_MAX: usize = 4096;

/// What a listener shows, and whom it lets in.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For whoever names no server, or one of which there is no other.
    pub default: ServerCertificate,
    /// By what clients name (RFC 6066 §3), in lower case; `*.` for one label.
    pub by_name: Vec<(Box<str>, ServerCertificate)>,
    /// Whose clients are believed; `None`: no client is asked for a certificate.
    pub clients: Option<ClientAuth>,
}

/// Clients that show certificates.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientAuth {
    /// Who may have signed them.
    pub roots: Roots,
    /// Which of those are taken back. With lists, nobody is let in of whom none of them says.
    pub revocations: Option<Revocations>,
    /// Whether somebody without one is let in.
    pub is_optional: bool,
}

impl ClientAuth {
    /// What judges them.
    ///
    /// # Errors
    /// None of the authorities can be used, or one of the lists.
    pub fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let roots = Arc::new(self.roots.store()?);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        if let Some(revocations) = &self.revocations {
            builder = builder.with_crls(revocations.lists());
        }
        if self.is_optional {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|error| error.to_string())?;
        Ok(verifier)
    }
}

/// Which of a listener's certificates is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one for everybody else.
    Default,
    /// That of this name, as [`Shown::by_name`] has it.
    Named(Box<str>),
}

/// The TLS of one listener. A handshake that is under way keeps the configuration that it began
/// with; the next one takes what is in force then.
#[derive(Debug)]
pub struct ServerTls {
    config: ArcSwap<ServerConfig>,
    shown: Mutex<Shown>,
}

impl ServerTls {
    /// With this until something of it is replaced.
    ///
    /// # Errors
    /// The system gives no randomness, or nobody can be believed.
    pub fn new(shown: Shown) -> Result<Arc<Self>, String> {
        let config = Arc::new(server_config(&shown)?);
        Ok(Arc::new(ServerTls { config: ArcSwap::new(config), shown: Mutex::new(shown) }))
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// The last second in which every certificate that is shown is valid.
    pub fn first_end(&self) -> Timestamp {
        let shown = self.shown.lock();
        let named = shown.by_name.iter().map(|(_, it)| it.not_after());
        named.fold(shown.default.not_after(), Timestamp::min)
    }

    /// Shows another certificate from the next handshake on. Keys of tickets and kept sessions
    /// stay: whoever was here before resumes, whatever was renewed meanwhile.
    pub fn renew(&self, which: &Which, certificate: &ServerCertificate) {
        let mut shown = self.shown.lock();
        match which {
            Which::Default => shown.default = certificate.clone(),
            Which::Named(name) => {
                for (_, of_name) in shown.by_name.iter_mut().filter(|(it, _)| it == name) {
                    *of_name = certificate.clone();
                }
            }
        }
        let mut config = ServerConfig::clone(&self.config());
        config.cert_resolver = Arc::new(ByName::new(&shown));
        self.config.store(Arc::new(config));
    }

    /// Judges clients otherwise from the next handshake on: by other authorities, by other lists. No
    /// session that began before is resumed: it would bring a client in whom nobody vouches for any
    /// more.
    ///
    /// # Errors
    /// The system gives no randomness, or the change cannot be used; it goes on as it was.
    pub fn judge(&self, change: impl FnOnce(&mut ClientAuth)) -> Result<(), String> {
        let mut shown = self.shown.lock();
        let mut changed = shown.clone();
        let Some(clients) = &mut changed.clients else { return Ok(()) };
        change(clients);
        self.config.store(Arc::new(server_config(&changed)?));
        *shown = changed;
        Ok(())
    }
}

/// A configuration of TLS 1.2 and 1.3 with the cipher suites of aws-lc-rs, HTTP/2 and 1.1 by ALPN.
/// Sessions are resumed by tickets (RFC 5077, RFC 8446 §2.2) whose keys change every six hours and
/// are known to this listener alone: one that asks for certificates resumes no session of one that
/// does not. There is no early data: what is sent with it can be sent again by anybody
/// (RFC 8446 §8).
fn server_config(shown: &Shown) -> Result<ServerConfig, String> {
    let verifier = match &shown.clients {
        Some(clients) => clients.verifier()?,
        None => Arc::new(NoClientAuth),
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(ByName::new(shown)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    config.max_early_data_size = 0;
    Ok(config)
}

/// Chooses by the name that a client asks for: its own, then that of its parent's `*`, then the
/// default. Whether the certificate fits is the client's to judge.
#[derive(Debug)]
struct ByName {
    default: Arc<CertifiedKey>,
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By what stands behind `*.`.
    wildcards: HashMap<Box<str>, Arc<CertifiedKey>>,
}

impl ByName {
    fn new(shown: &Shown) -> Self {
        let (mut exact, mut wildcards) = (HashMap::new(), HashMap::new());
        for (name, certificate) in &shown.by_name {
            let certified = Arc::clone(certificate.certified());
            match name.strip_prefix("*.") {
                Some(parent) => wildcards.insert(parent.into(), certified),
                None => exact.insert(name.clone(), certified),
            };
        }
        ByName { default: Arc::clone(shown.default.certified()), exact, wildcards }
    }

    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let of_name = |name: &str| {
            let parent = || name.split_once('.').and_then(|(_, it)| self.wildcards.get(it));
            self.exact.get(name).or_else(parent)
        };
        let found = name.and_then(|name| {
            let lower = name.bytes().any(|it| it.is_ascii_uppercase());
            if lower { of_name(&name.to_ascii_lowercase()) } else { of_name(name) }
        });
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.find(hello.server_name())))
    }
}
