//! The one way in: files, environment and command line to settings and a policy.
//!
//! Reads files and nothing else. A file is only looked for where it is named; what is wrong with
//! either file, and with the command line, comes back together.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::config_path;
use crate::policy::compiled::Policy;

use super::compile::{Settings, UpstreamNeed, settings};
use super::compile_tests;
use super::compile_tiers::{self, PolicyTest};
use super::decode::decode;
use super::report::{ConfigError, ConfigErrors, Part, Problem, Report};
use super::schema::{Config, RedisConfig};
use super::schema_tiers::{BUILT_IN, TiersFile};
use super::tree::{self, FILE_BYTES_MAX, Mark, Misplaced, Node};
use super::value::Redacted;
use super::warnings;

/// Longest secret that is read from a file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What the command line and the environment say in place of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--upstream`
    pub upstream: Option<String>,
    /// `--listen`; replaces all listeners.
    pub listen: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--redis`; replaces the URL only.
    pub redis: Option<Redacted>,
}

/// What is to be loaded.
pub struct LoadRequest<'a> {
    /// `tollgate.yaml`; defaults without it.
    pub config: Option<&'a Path>,
    /// `tiers.yaml`; the built-in tiers without it.
    pub tiers: Option<&'a Path>,
    /// What the command line says in place of the file.
    pub overrides: Overrides,
    /// Whether there must be an upstream.
    pub upstream: UpstreamNeed,
    /// Looks up a variable of the environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// Everything that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What `tollgate.yaml` and the command line say.
    pub settings: Settings,
    /// What `tiers.yaml` says.
    pub policy: Policy,
    /// What `tollgate check` verifies.
    pub tests: Vec<PolicyTest>,
    /// What is odd, and no error.
    pub warnings: Vec<ConfigError>,
    /// SHA-256 of everything that the policy was made of, in hexadecimal: equal for equal
    /// policies, whatever their comments and layout.
    pub policy_hash: String,
}

/// Loads everything.
///
/// # Errors
/// Everything that is wrong, in the order of the files.
pub fn load(request: &LoadRequest<'_>) -> Result<Loaded, ConfigErrors> {
    let config = Source::read(request.config, "", request.env);
    let tiers = Source::read(request.tiers, BUILT_IN, request.env);
    let (config, tiers) = match (config, tiers) {
        (Ok(config), Ok(tiers)) => (config, tiers),
        (config, tiers) => return Err(errors_of_both(config, tiers)),
    };
    let (mut file, mut config_report) = config.decoded::<Config>();
    apply(&request.overrides, &mut file, &mut config_report);
    let settings = settings(&file, request.upstream, &read_secret, &mut config_report);
    warnings::secrets(&file, &mut config_report);

    let (mut file, mut report) = tiers.decoded::<TiersFile>();
    fill_in_built_in(&mut file);
    let mut parts = compile_tiers::parts(&file, settings.prefixes, &mut report);
    warnings::networks(&file, &parts, &settings, &mut report);
    warnings::exposed(&file, &settings.server, &mut report);
    let tests = compile_tests::tests(&file, settings.prefixes, &mut report);

    let ((mut errors, mut warnings), (more_errors, more_warnings)) =
        (config_report.finish(), report.finish());
    errors.extend(more_errors);
    warnings.extend(more_warnings);
    if !errors.is_empty() {
        return Err(ConfigErrors(errors, warnings));
    }
    parts.trusted_proxies = settings.trusted_proxies.clone();
    let mut hash = Sha256::new();
    tiers.root.digest(&mut hash);
    hash.update(format!("{:?}{:?}", settings.prefixes, settings.trusted_proxies));
    let policy_hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Loaded { policy: Policy::new(parts), settings, tests, warnings, policy_hash })
}

/// A file's text, parsed.
struct Source {
    name: Option<String>,
    text: String,
    /// As the operator wrote it; what cannot be decoded is taken out of a copy.
    root: Node,
    faults: Vec<Misplaced>,
}

impl Source {
    fn read(
        path: Option<&Path>,
        default: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Box<ConfigError>> {
        let name = path.map(|path| path.display().to_string());
        let text = match (path, &name) {
            (Some(path), Some(name)) => read_text(path, name)?,
            _ => default.to_owned(),
        };
        // A mark of the byte order, which some editors leave, is no part of the text.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        match tree::parse(&text, env) {
            Ok(tree) => Ok(Source { name, text, root: tree.root, faults: tree.faults }),
            Err(fault) => {
                let file = name.as_deref().unwrap_or("built-in");
                let Misplaced { path, mark, problem, .. } = *fault;
                Err(Box::new(ConfigError::at(file, &text, mark, &path, &problem)))
            }
        }
    }

    fn decoded<T: DeserializeOwned + Default>(&self) -> (T, Report<'_>) {
        let mut report = Report::new(self.name.as_deref(), &self.text, &self.root);
        for fault in &self.faults {
            report.error(&fault.path, Part::Value, Some(fault.mark), &fault.problem);
        }
        for fault in self.faults.iter().filter(|fault| fault.is_pruned) {
            report.silence(fault.path.clone());
        }
        let (file, faults) = decode::<T>(&mut self.root.clone());
        for fault in faults {
            report.error(&fault.path, fault.part, None, &fault.problem);
            report.silence(fault.path);
        }
        (file, report)
    }
}

/// Where a file cannot be parsed, the other's own trouble is still worth saying.
fn errors_of_both(
    config: Result<Source, Box<ConfigError>>,
    tiers: Result<Source, Box<ConfigError>>,
) -> ConfigErrors {
    fn of<T: DeserializeOwned + Default>(
        source: Result<Source, Box<ConfigError>>,
    ) -> (Vec<ConfigError>, Vec<ConfigError>) {
        match source {
            Err(error) => (vec![*error], Vec::new()),
            Ok(source) => source.decoded::<T>().1.finish(),
        }
    }
    let ((mut errors, mut warnings), of_tiers) = (of::<Config>(config), of::<TiersFile>(tiers));
    errors.extend(of_tiers.0);
    warnings.extend(of_tiers.1);
    ConfigErrors(errors, warnings)
}

fn apply(overrides: &Overrides, config: &mut Config, report: &mut Report<'_>) {
    if let Some(url) = &overrides.upstream {
        config.upstream.url = Some(url.clone());
        config.upstream.urls = None;
        report.overridden(config_path!["upstream", "url"], "--upstream");
    }
    if let Some(listen) = &overrides.listen {
        config.server.listen = Some(listen.clone());
        config.server.listeners = None;
        report.overridden(config_path!["server", "listen"], "--listen");
    }
    if let Some(listen) = &overrides.admin {
        config.admin.listen = listen.clone();
        report.overridden(config_path!["admin", "listen"], "--admin");
    }
    if let Some(url) = &overrides.redis {
        let redis = config.store.redis.get_or_insert_with(RedisConfig::default);
        (redis.url, redis.url_file) = (Some(url.clone()), None);
        report.overridden(config_path!["store", "redis", "url"], "--redis");
    }
}

/// The built-in tiers, and the names of plans that lead to them, where the file gives no tiers.
fn fill_in_built_in(file: &mut TiersFile) {
    if file.tiers.is_some() {
        return;
    }
    let built_in = tree::parse(BUILT_IN, &|_| None).map(|mut tree| decode(&mut tree.root).0);
    let built_in: TiersFile = built_in.unwrap_or_default();
    file.tiers = built_in.tiers;
    file.subscriptions = file.subscriptions.take().or(built_in.subscriptions);
}

fn read_text(path: &Path, name: &str) -> Result<String, Box<ConfigError>> {
    let whole = |problem: Problem| Box::new(ConfigError::of_whole(Some(name), &[], &problem));
    let bytes =
        read_bytes(path, FILE_BYTES_MAX as u64).map_err(|reason| whole(Problem::new(reason)))?;
    if bytes.len() > FILE_BYTES_MAX {
        let problem = Problem::new("too long").expected(format!("at most {FILE_BYTES_MAX} bytes"));
        return Err(whole(problem));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let good = String::from_utf8_lossy(good);
        let line = good.rsplit('\n').next().unwrap_or("");
        let column = line.chars().count() + 1;
        let mark = Mark { line: good.matches('\n').count() + 1, column, length: 1 };
        let problem = Problem::new("bytes that are no UTF-8").expected("UTF-8 text");
        Box::new(ConfigError::at(name, &good, mark, &[], &problem))
    })
}

/// The file's bytes, one more than `most` where it is longer.
fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    if path.is_dir() {
        return Err("a directory, expected a file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    Ok(bytes)
}

/// A secret's file, its last line end aside.
fn read_secret(file: &str) -> Result<String, String> {
    let bytes = read_bytes(Path::new(file), SECRET_BYTES_MAX)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("too long, expected at most {SECRET_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err("empty, expected a secret".to_owned());
    }
    Ok(secret.to_owned())
}
