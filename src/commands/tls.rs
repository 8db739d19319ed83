//! The TLS of listeners: made at the start, watched and renewed while tollgate runs.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::clock::Clock;
use crate::config::compile_listeners::{
    CertificateSettings, ListenerSettings, PemFile, TlsSettings, certificate, odd_times, overdue,
    written,
};
use crate::metrics::registry::Metrics;
use crate::metrics::series::ListenerSeries;
use crate::proxy::listener::Bound;
use crate::tls::revocations::Revocations;
use crate::tls::roots::Roots;
use crate::tls::server::{ServerTls, Which};

use super::handover::Listening;
use super::reload::{OnChange, Watched};

/// A listener that speaks TLS, and where what it shows came from.
pub struct TlsListener {
    name: String,
    tls: Arc<ServerTls>,
    settings: TlsSettings,
    series: Arc<ListenerSeries>,
}

/// Gives each of these sockets the TLS of its settings.
///
/// # Errors
/// The system gives no randomness, or the authorities of clients cannot be used.
pub fn equip(
    sockets: Vec<Listening>,
    settings: &[ListenerSettings],
    metrics: &Metrics,
) -> anyhow::Result<(Vec<Bound>, Vec<TlsListener>)> {
    let (mut bound, mut listeners) = (Vec::new(), Vec::new());
    for (Listening { socket, is_shared }, settings) in sockets.into_iter().zip(settings) {
        let Some(settings) = settings.tls.clone() else {
            bound.push(Bound { socket, tls: None, is_shared });
            continue;
        };
        let tls = ServerTls::new(settings.shown());
        let tls = tls.map_err(anyhow::Error::msg).context("cannot set up TLS")?;
        let name = socket.local_addr().map(|it| it.to_string()).unwrap_or_default();
        let series = metrics.listener(&name);
        series.set_certificate_end(tls.first_end());
        metrics.tls_configured();
        bound.push(Bound { socket, tls: Some(Arc::clone(&tls)), is_shared });
        listeners.push(TlsListener { name, tls, settings, series });
    }
    Ok((bound, listeners))
}

impl TlsListener {
    /// Its files, from which what it shows is renewed. Whoever is connected stays so, under the
    /// certificate that they were shown.
    pub fn watched(self, clock: &Clock) -> Vec<Watched> {
        let named = self.settings.by_name.iter();
        let named = named.map(|(name, files)| (Which::Named(name.clone()), files));
        let mut watched: Vec<Watched> = [(Which::Default, &self.settings.default)]
            .into_iter()
            .chain(named)
            .map(|(which, files)| self.certificate(which, files, clock.clone()))
            .collect();
        if let Some(clients) = &self.settings.clients {
            watched.push(self.authorities(&clients.file));
            watched.extend(clients.revoked.as_ref().map(|it| self.revoked(it, clock.clone())));
        }
        watched
    }

    fn certificate(&self, which: Which, files: &CertificateSettings, clock: Clock) -> Watched {
        let (name, tls, series) =
            (self.name.clone(), Arc::clone(&self.tls), Arc::clone(&self.series));
        let (cert, key) = (files.cert.path.clone(), files.key.path.clone());
        let files = [&files.cert, &files.key].map(|it| (Path::new(&*it.path), it.digest));
        Watched::pair(files, move |chain, secret| {
            let made = certificate((&cert, &chain), (&key, &secret));
            let renewed = made.map_err(|(_, reason)| reason)?;
            tls.renew(&which, &renewed);
            series.set_certificate_end(tls.first_end());
            if let Some(odd) = odd_times(&renewed, clock.now()) {
                tracing::warn!(listener = name, "{cert}: {odd}");
            }
            let not_after = written(renewed.not_after());
            tracing::info!(listener = name, file = cert, not_after, "certificate reloaded");
            Ok(())
        })
    }

    fn authorities(&self, of: &PemFile) -> Watched {
        let (name, tls, file) = (self.name.clone(), Arc::clone(&self.tls), of.path.clone());
        let reload = Box::new(move |content: Vec<u8>| {
            let roots = Roots::from_pem(&content);
            let judged = roots.and_then(|roots| tls.judge(|clients| clients.roots = roots));
            judged.map_err(|reason| format!("{file}: {reason}"))?;
            tracing::info!(listener = name, file, "authorities of clients reloaded");
            Ok(())
        });
        Watched::new(Path::new(&of.path), of.digest, OnChange::Reload(reload))
    }

    fn revoked(&self, of: &PemFile, clock: Clock) -> Watched {
        let (name, tls, file) = (self.name.clone(), Arc::clone(&self.tls), of.path.clone());
        let reload = Box::new(move |content: Vec<u8>| {
            let lists = Revocations::from_pem(&content);
            let lists = lists.map_err(|reason| format!("{file}: {reason}"))?;
            let odd = overdue(&lists, clock.now());
            let judged = tls.judge(|clients| clients.revocations = Some(lists));
            judged.map_err(|reason| format!("{file}: {reason}"))?;
            if let Some(odd) = odd {
                tracing::warn!(listener = name, "{file}: {odd}");
            }
            tracing::info!(listener = name, file, "revoked certificates reloaded");
            Ok(())
        });
        Watched::new(Path::new(&of.path), of.digest, OnChange::Reload(reload))
    }
}
