//! What a listener shows to those who connect: its certificate, for now and until the next reload.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

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
}
