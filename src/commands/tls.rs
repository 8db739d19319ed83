//! The TLS of listeners: made at the start, watched and renewed while tollgate runs.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::clock::Clock;
use crate::config::compile_listeners::{
    ListenerSettings, TlsSettings, certificate, odd_times, written,
};
use crate::metrics::registry::Metrics;
use crate::metrics::series::ListenerSeries;
use crate::proxy::listener::Bound;
use crate::tls::server::{ServerTls, server_config};

use super::reload::Watched;

/// A listener that speaks TLS, and where its certificate came from.
pub struct TlsListener {
    name: String,
    tls: Arc<ServerTls>,
    settings: TlsSettings,
    series: Arc<ListenerSeries>,
}

/// Gives each of these sockets the TLS of its settings.
///
/// # Errors
/// The system gives no randomness.
pub fn equip(
    sockets: Vec<TcpListener>,
    settings: &[ListenerSettings],
    metrics: &Metrics,
) -> anyhow::Result<(Vec<Bound>, Vec<TlsListener>)> {
    let (mut bound, mut listeners) = (Vec::new(), Vec::new());
    for (socket, settings) in sockets.into_iter().zip(settings) {
        let Some(settings) = settings.tls.clone() else {
            bound.push(Bound { socket, tls: None });
            continue;
        };
        let config = server_config(&settings.certificate).context("cannot set up TLS")?;
        let tls = ServerTls::new(Arc::new(config));
        let name = socket.local_addr().map(|it| it.to_string()).unwrap_or_default();
        let series = metrics.listener(&name);
        series.set_certificate_end(settings.certificate.not_after());
        metrics.tls_configured();
        bound.push(Bound { socket, tls: Some(Arc::clone(&tls)) });
        listeners.push(TlsListener { name, tls, settings, series });
    }
    Ok((bound, listeners))
}

impl TlsListener {
    /// Its files, from which its certificate is renewed. Whoever is connected stays so, under the
    /// certificate that they were shown.
    pub fn watched(self, clock: Clock) -> Watched {
        let TlsListener { name, tls, settings, series } = self;
        let files = [&settings.cert, &settings.key].map(|it| (Path::new(&*it.path), it.digest));
        let (cert, key) = (settings.cert.path.clone(), settings.key.path.clone());
        Watched::pair(files, move |chain, secret| {
            let made = certificate((&cert, &chain), (&key, &secret));
            let renewed = made.map_err(|(_, reason)| reason)?;
            tls.renew(&renewed);
            series.set_certificate_end(renewed.not_after());
            if let Some(odd) = odd_times(&renewed, clock.now()) {
                tracing::warn!(listener = name, "{cert}: {odd}");
            }
            let not_after = written(renewed.not_after());
            tracing::info!(listener = name, file = cert, not_after, "certificate reloaded");
            Ok(())
        })
    }
}
