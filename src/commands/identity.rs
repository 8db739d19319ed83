//! From the settings of identities to what knows callers by them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;

use crate::config::compile_identity::{
    ApiKeySettings, IdentitySettings, JwtSettings, MethodSettings,
};
use crate::config::compile_keys::{KeyFile, KeyOrigin, key_set};
use crate::health::slow::SlowCalls;
use crate::identity::api_key::KeyTable;
use crate::identity::cache::TokenCache;
use crate::identity::identifier::{ApiKeyMethod, Identifier, JwtMethod, Method};
use crate::identity::jwks::{KeySource, RemoteKeys};
use crate::identity::keys::KeySet;
use crate::metrics::registry::Metrics;

/// What becomes of fetches of keys that are slow.
#[derive(Clone, Copy, Debug)]
pub struct Slow<'a> {
    /// One that takes longer than this is counted,
    pub after: Duration,
    /// and told of here.
    pub calls: &'a Arc<SlowCalls>,
}

/// Makes what the settings describe.
///
/// # Errors
/// TLS towards a key set's server cannot be set up.
pub fn identifier(
    settings: &IdentitySettings,
    slow: Slow<'_>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Identifier> {
    let methods: Vec<Method> = settings
        .methods
        .iter()
        .map(|method| {
            Ok(match method {
                MethodSettings::Jwt(jwt) => Method::Jwt(Box::new(self::jwt(jwt, slow, metrics)?)),
                MethodSettings::ApiKey(api_key) => Method::ApiKey(self::api_key(api_key)),
                MethodSettings::Mtls => Method::Certificate,
                MethodSettings::Ip => Method::Address,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Identifier::new(methods, Arc::clone(metrics)))
}

fn jwt(jwt: &JwtSettings, slow: Slow<'_>, metrics: &Arc<Metrics>) -> anyhow::Result<JwtMethod> {
    let algorithms = &jwt.rules.algorithms;
    let mut remote = None;
    let keys = match &jwt.keys {
        KeyOrigin::Secret(secret) => {
            let set = KeySet::of_secret(secret.expose().as_bytes(), algorithms);
            Arc::new(KeySource::new(set))
        }
        KeyOrigin::File(KeyFile { kind, content, .. }) => {
            let set = key_set(*kind, content.expose(), algorithms);
            let set = set.map_err(|problem| anyhow::anyhow!(problem.message()))?;
            Arc::new(KeySource::new(set))
        }
        KeyOrigin::Url(url) => {
            let (calls, metrics) = (Arc::clone(slow.calls), Arc::clone(metrics));
            let keys = RemoteKeys::new(url, algorithms, slow.after, calls, metrics)
                .context("cannot set up TLS for jwks_url")?;
            let source = Arc::clone(&keys.source);
            remote = Some(Arc::new(keys));
            source
        }
    };
    Ok(JwtMethod {
        places: jwt.places.clone(),
        rules: jwt.rules.clone(),
        keys,
        remote,
        on_invalid: jwt.on_invalid,
        cache: TokenCache::default(),
    })
}

fn api_key(api_key: &ApiKeySettings) -> ApiKeyMethod {
    let table = KeyTable::new(api_key.keys.iter().cloned());
    ApiKeyMethod {
        header: api_key.header.clone(),
        keys: Arc::new(ArcSwap::from_pointee(table)),
        strip: api_key.strip,
        on_invalid: api_key.on_invalid,
    }
}
