//! The files that every tollgate watches: the policy, which is swapped while it runs, and the
//! configuration, of which a change takes a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::admin::state::AdminState;
use crate::clock;
use crate::config::compile::Settings;
use crate::config::compile_identity::{IdentitySettings, MethodSettings};
use crate::config::compile_keys::{KeyFile, KeyOrigin, key_set};
use crate::config::keys_file;
use crate::config::load::{AsRead, Overrides, key_text, load_policy, look_through_config};
use crate::identity::api_key::KeyTable;
use crate::identity::identifier::{ApiKeyMethod, JwtMethod, Method};
use crate::metrics::policy::PolicyMetrics;
use crate::proxy::gate::{Active, Gate};

use super::reload::{OnChange, Reloader, Retired, Watched};
use super::tls::TlsListener;
use super::wiring::{Wired, shown_hash};

/// Where everything came from when tollgate was started.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// `tollgate.yaml`, if there is one.
    pub config: Option<PathBuf>,
    /// `tiers.yaml`, if there is one.
    pub tiers: Option<PathBuf>,
    /// What the command line said in place of the configuration.
    pub overrides: Overrides,
}

/// What watches the files that there were.
pub fn reloader(
    wired: &Wired,
    tls: Vec<TlsListener>,
    settings: Settings,
    origin: Origin,
    read: AsRead,
) -> Reloader {
    let retired = Retired::default();
    let mut files = Vec::new();
    let identity = identity_files(&wired.gate, &settings.identity);
    if let (Some(path), Some(in_force)) = (&origin.tiers, read.tiers) {
        let policy = PolicyFile {
            path: path.clone(),
            settings,
            gate: Arc::clone(&wired.gate),
            admin: Arc::clone(&wired.admin),
            retired: retired.clone(),
        };
        let reload = Box::new(move |content| policy.reload(content));
        files.push(Watched::new(path, in_force, OnChange::Reload(reload)));
    }
    if let (Some(path), Some(in_force)) = (&origin.config, read.config) {
        let (admin, overrides, running) =
            (Arc::clone(&wired.admin), origin.overrides, read.sections);
        let tell = {
            let path = path.clone();
            Box::new(move |content: Result<Vec<u8>, String>| {
                let said = content.map(|content| {
                    let read = look_through_config(&path, content, &overrides, &variable);
                    read.map(|now| running.differing(&now).join(", ")).map_err(|it| it.to_string())
                });
                let is_pending = tell_of_config(&path, said);
                admin.metrics.set_restart_pending(is_pending);
            })
        };
        files.push(Watched::new(path, in_force, OnChange::Tell(tell)));
    }
    let metrics = Arc::clone(&wired.gate.metrics);
    files.extend(identity);
    files.extend(tls.into_iter().flat_map(|it| it.watched(&wired.gate.clock)));
    let reloads = Arc::clone(&wired.admin.reloads);
    Reloader { files, metrics, reloads, clock: wired.gate.clock.clone(), retired }
}

/// The files of keys and secrets that callers are known by.
fn identity_files(gate: &Arc<Gate>, settings: &IdentitySettings) -> Vec<Watched> {
    let methods = gate.identifier.methods().iter().zip(&settings.methods);
    let watched = |(method, settings): (&Method, &MethodSettings)| match (method, settings) {
        (Method::Jwt(jwt), MethodSettings::Jwt(settings)) => {
            let KeyOrigin::File(file) = &settings.keys else { return None };
            let reload = reload_keys(jwt, file);
            Some(Watched::new(Path::new(&file.path), file.digest, OnChange::Reload(reload)))
        }
        (Method::ApiKey(api_key), MethodSettings::ApiKey(settings)) => {
            let path = PathBuf::from(&settings.file);
            let reload = reload_api_keys(api_key, gate, path.clone());
            Some(Watched::new(&path, settings.digest, OnChange::Reload(reload)))
        }
        _ => None,
    };
    methods.filter_map(watched).collect()
}

type Reload = Box<dyn FnMut(Vec<u8>) -> Result<(), String> + Send>;

/// Puts the keys in force that a file of keys or a secret makes.
fn reload_keys(jwt: &JwtMethod, file: &KeyFile) -> Reload {
    let (keys, algorithms) = (Arc::clone(&jwt.keys), jwt.rules.algorithms.clone());
    let (name, kind) = (file.path.clone(), file.kind);
    Box::new(move |content| {
        let text = key_text(content).map_err(|reason| format!("{name}: {reason}"))?;
        let set = key_set(kind, &text, &algorithms)
            .map_err(|problem| format!("{name}: {}", problem.message()))?;
        tracing::info!(file = name, keys = set.len(), "keys of tokens reloaded");
        keys.replace(set);
        Ok(())
    })
}

fn reload_api_keys(api_key: &ApiKeyMethod, gate: &Arc<Gate>, path: PathBuf) -> Reload {
    let (keys, gate) = (Arc::clone(&api_key.keys), Arc::clone(gate));
    Box::new(move |content| {
        let active = gate.active.load_full();
        let is_plan = |name: &str| active.policy.knows_plan(name);
        let read = keys_file::read(&path, Some(content), &variable, &is_plan)
            .map_err(|errors| errors.to_string())?;
        for warning in &read.warnings {
            tracing::warn!("{warning}");
        }
        let table = KeyTable::new(read.keys);
        tracing::info!(file = %path.display(), keys = table.len(), "API keys reloaded");
        keys.store(Arc::new(table));
        Ok(())
    })
}

/// The policy's file and what it is compiled for.
struct PolicyFile {
    path: PathBuf,
    /// Those that run, not those that a restart would bring.
    settings: Settings,
    gate: Arc<Gate>,
    admin: Arc<AdminState>,
    retired: Retired,
}

impl PolicyFile {
    /// Compiles the policy and puts it in force for every request whose head arrives from now on.
    /// Requests under way end under the policy that they began with.
    fn reload(&self, content: Vec<u8>) -> Result<(), String> {
        let started = clock::monotonic();
        let loaded = load_policy(&self.path, content, &self.settings, &variable)
            .map_err(|errors| errors.to_string())?;
        let policy = loaded.policy;
        let (tiers, rules) = (policy.tiers().len(), policy.rules().len());
        let metrics = PolicyMetrics::new(&self.gate.metrics, &policy, self.settings.slow_upstream);
        let took = clock::monotonic().saturating_duration_since(started);
        let compiled_ms = took.as_micros() as f64 / 1000.0;
        let was = self.admin.in_force.read().hash.clone();
        let hash = shown_hash(&loaded.policy_hash);
        let active = Arc::new(Active { policy: Arc::new(policy), metrics });
        self.retired.keep(self.gate.active.swap(active));
        if let Some(redis) = &self.gate.redis {
            redis.forget_denials();
        }
        self.admin.set_in_force(hash);
        let file = self.path.display();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let warnings = loaded.warnings.len();
        tracing::info!(%file, hash, %was, tiers, rules, warnings, compiled_ms, "policy reloaded");
        Ok(())
    }
}

/// Says what the configuration's file, as it stands now, means for what runs, and whether there is
/// something that takes a restart.
fn tell_of_config(path: &Path, said: Result<Result<String, String>, String>) -> bool {
    let file = path.display();
    match said {
        Ok(Ok(keys)) if keys.is_empty() => {
            tracing::info!(%file, "the configuration's file says what runs");
            false
        }
        Ok(Ok(keys)) => {
            tracing::warn!(%file, keys, "the configuration has changed; that takes a restart");
            true
        }
        Ok(Err(errors)) => {
            tracing::warn!(
                %file,
                "the configuration goes on as it was read; a start would fail: {errors}"
            );
            true
        }
        Err(reason) => {
            tracing::warn!(%file, "the configuration {reason}; a start would fail");
            true
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
