//! The one way in: files, environment and command line to settings and a policy.
//!
//! Reads files and nothing else. A file is only looked for where it is named; what is wrong with
//! either file, and with the command line, comes back together.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::config_path;
use crate::policy::compiled::{Policy, PolicyParts};

use super::compile::{Settings, settings};
use super::compile_identity::{IdentitySettings, MethodSettings};
use super::compile_tests;
use super::compile_tiers::{self, PolicyTest};
use super::compile_upstream::UpstreamNeed;
use super::decode::decode;
use super::keys_file;
use super::reload::{self, Digest, Sections};
use super::report::{ConfigError, ConfigErrors, Part, Problem, Report};
use super::schema::{Config, RedisConfig};
use super::schema_tiers::{BUILT_IN, TiersFile};
use super::swapped;
use super::tree::{self, FILE_BYTES_MAX, Mark, Misplaced, Node};
use super::value::Redacted;
use super::warnings;

/// Longest secret that is read from a file.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Longest file of public keys.
const KEY_BYTES_MAX: u64 = 1 << 20;

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
    /// What the files held, for whoever watches them.
    pub read: AsRead,
}

/// What the files held when they were read.
#[derive(Clone, Debug, Default)]
pub struct AsRead {
    /// `tollgate.yaml`; `None` where there is none.
    pub config: Option<Digest>,
    /// `tiers.yaml`, likewise.
    pub tiers: Option<Digest>,
    /// `tollgate.yaml` by top-level key.
    pub sections: Sections,
}

/// A policy that was loaded by itself.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// What `tiers.yaml` says.
    pub policy: Policy,
    /// As [`Loaded::policy_hash`].
    pub policy_hash: String,
    /// What is odd, and no error.
    pub warnings: Vec<ConfigError>,
}

/// What is said of files that cannot be used.
#[derive(Debug)]
pub struct Rejected {
    /// Everything that is wrong, in the order of the files.
    pub errors: ConfigErrors,
    /// What is odd beside it, likewise.
    pub warnings: Vec<ConfigError>,
}

/// Loads everything.
///
/// # Errors
/// Everything that is wrong, in the order of the files.
pub fn load(request: &LoadRequest<'_>) -> Result<Loaded, ConfigErrors> {
    examine(request).map_err(|rejected| rejected.errors)
}

/// Loads everything, and tells what is odd even where something is wrong.
///
/// # Errors
/// Both.
pub fn examine(request: &LoadRequest<'_>) -> Result<Loaded, Rejected> {
    let config = Source::read(request.config, "", request.env);
    let tiers = Source::read(request.tiers, BUILT_IN, request.env);
    let (config, tiers) = match (config, tiers) {
        (Ok(config), Ok(tiers)) => (config, tiers),
        (config, tiers) => return Err(errors_of_both(config, tiers)),
    };
    let (mut file, mut report) = config.decoded::<Config>();
    apply(&request.overrides, &mut file, &mut report);
    let mut settings = settings(&file, request.upstream, &read_secret, &mut report);
    warnings::secrets(&file, &mut report);
    let (mut errors, mut warnings) = report.finish();
    swapped::hint_in_config(&mut errors);
    let draft = Draft::new(&tiers, &settings);
    let is_plan = |name: &str| is_plan(&draft.file, name);
    let (key_errors, key_warnings) = read_api_keys(&mut settings.identity, request.env, &is_plan);
    errors.extend(draft.errors.into_iter().chain(key_errors));
    warnings.extend(draft.warnings.into_iter().chain(key_warnings));
    if !errors.is_empty() {
        return Err(Rejected { errors: ConfigErrors(errors), warnings });
    }
    let sections = Sections::of(&config.root);
    Ok(Loaded {
        policy: Policy::new(draft.parts),
        policy_hash: policy_hash(&tiers, &settings),
        settings,
        tests: draft.tests,
        warnings,
        read: AsRead { config: config.digest, tiers: tiers.digest, sections },
    })
}

/// Compiles what a `tiers.yaml` of this name holds now, for settings that are in force already.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_policy(
    path: &Path,
    content: Vec<u8>,
    settings: &Settings,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<LoadedPolicy, ConfigErrors> {
    let tiers = Source::of(path.display().to_string(), content, env)
        .map_err(|error| ConfigErrors(vec![*error]))?;
    if tiers.root.is_null() {
        // A start takes it for the built-in tiers. Of a policy that was in force it is what is left
        // when somebody cut it short, and nobody is let off the deny list for that.
        let problem =
            Problem::new("an empty file").expected("a policy, or {} for the built-in one");
        let error = ConfigError::of_whole(tiers.name.as_deref(), &[], &problem);
        return Err(ConfigErrors(vec![error]));
    }
    let draft = Draft::new(&tiers, settings);
    if !draft.errors.is_empty() {
        return Err(ConfigErrors(draft.errors));
    }
    Ok(LoadedPolicy {
        policy: Policy::new(draft.parts),
        policy_hash: policy_hash(&tiers, settings),
        warnings: draft.warnings,
    })
}

/// Looks through what a `tollgate.yaml` of this name holds now, as a start with it would, and gives
/// its values by top-level key.
///
/// # Errors
/// Everything that is wrong with it, for which a start would fail.
pub fn look_through_config(
    path: &Path,
    content: Vec<u8>,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Sections, ConfigErrors> {
    let config = Source::of(path.display().to_string(), content, env)
        .map_err(|error| ConfigErrors(vec![*error]))?;
    let (mut file, mut report) = config.decoded::<Config>();
    apply(overrides, &mut file, &mut report);
    settings(&file, UpstreamNeed::Required, &read_secret, &mut report);
    let (errors, _) = report.finish();
    if errors.is_empty() { Ok(Sections::of(&config.root)) } else { Err(ConfigErrors(errors)) }
}

/// A policy's parts, and what is to be said of them. Not to be used where there are errors.
struct Draft {
    file: TiersFile,
    parts: PolicyParts,
    tests: Vec<PolicyTest>,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

impl Draft {
    fn new(tiers: &Source, settings: &Settings) -> Self {
        let (mut file, mut report) = tiers.decoded::<TiersFile>();
        if tiers.name.is_some() && tiers.root.is_null() {
            warnings::empty(&mut report);
        }
        fill_in_built_in(&mut file);
        let mut parts = compile_tiers::parts(&file, settings.identity.prefixes, &mut report);
        warnings::networks(&file, &parts, settings, &mut report);
        warnings::denied(&file, settings, &mut report);
        warnings::exposed(&file, &settings.server, &mut report);
        let tests = compile_tests::tests(&file, settings.identity.prefixes, &mut report);
        parts.trusted_proxies = settings.trusted_proxies.clone();
        let (mut errors, warnings) = report.finish();
        swapped::hint_in_tiers(&mut errors);
        Draft { file, parts, tests, errors, warnings }
    }
}

fn policy_hash(tiers: &Source, settings: &Settings) -> String {
    let mut hash = Sha256::new();
    tiers.root.digest(&mut hash);
    hash.update(format!("{:?}{:?}", settings.identity.prefixes, settings.trusted_proxies));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether some tier or subscription has that name.
pub fn is_plan(file: &TiersFile, name: &str) -> bool {
    let tiers = file.tiers.iter().flat_map(|tiers| tiers.iter().map(|(tier, _)| tier));
    let plans = file.subscriptions.iter().flat_map(|plans| plans.iter().map(|(plan, _)| plan));
    tiers.chain(plans).any(|it| it.eq_ignore_ascii_case(name))
}

/// Reads the files of API keys that the settings name.
fn read_api_keys(
    identity: &mut IdentitySettings,
    env: &dyn Fn(&str) -> Option<String>,
    is_plan: &dyn Fn(&str) -> bool,
) -> (Vec<ConfigError>, Vec<ConfigError>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for method in &mut identity.methods {
        let MethodSettings::ApiKey(method) = method else { continue };
        match keys_file::read(Path::new(&method.file), None, env, is_plan) {
            Ok(keys) => {
                (method.keys, method.digest) = (keys.keys, keys.digest);
                warnings.extend(keys.warnings);
            }
            Err(ConfigErrors(found)) => errors.extend(found),
        }
    }
    (errors, warnings)
}

/// A file's text, parsed.
pub struct Source {
    name: Option<String>,
    /// Of its bytes; `None` where there is no file.
    digest: Option<Digest>,
    text: String,
    /// As the operator wrote it; what cannot be decoded is taken out of a copy.
    root: Node,
    faults: Vec<Misplaced>,
}

impl Source {
    /// Reads and parses a file; without one, the text that stands in for it.
    ///
    /// # Errors
    /// It cannot be read, or is no YAML.
    pub fn read(
        path: Option<&Path>,
        default: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Box<ConfigError>> {
        let Some(path) = path else { return Self::parsed(None, None, default.to_owned(), env) };
        let name = path.display().to_string();
        match read_file(path) {
            Ok(content) => Self::of(name, content, env),
            Err(reason) => {
                let problem = Problem::new(reason.to_string());
                Err(Box::new(ConfigError::of_whole(Some(&name), &[], &problem)))
            }
        }
    }

    /// Parses what a file of that name holds.
    ///
    /// # Errors
    /// It is no YAML.
    pub fn of(
        name: String,
        content: Vec<u8>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Box<ConfigError>> {
        let digest = reload::digest(&content);
        let text = text_of(content, &name)?;
        Self::parsed(Some(name), Some(digest), text, env)
    }

    fn parsed(
        name: Option<String>,
        digest: Option<Digest>,
        text: String,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Box<ConfigError>> {
        // A mark of the byte order, which some editors leave, is no part of the text.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        match tree::parse(&text, env) {
            Ok(tree) => Ok(Source { name, digest, text, root: tree.root, faults: tree.faults }),
            Err(fault) => {
                let file = name.as_deref().unwrap_or("built-in");
                let Misplaced { path, mark, problem, .. } = *fault;
                Err(Box::new(ConfigError::at(file, &text, mark, &path, &problem)))
            }
        }
    }

    /// Of the file's bytes, where there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Its mirror, and a report that holds what was wrong with its shape.
    pub fn decoded<T: DeserializeOwned + Default>(&self) -> (T, Report<'_>) {
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
) -> Rejected {
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
    Rejected { errors: ConfigErrors(errors), warnings }
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

/// The text of a file's bytes.
fn text_of(content: Vec<u8>, name: &str) -> Result<String, Box<ConfigError>> {
    if content.len() > FILE_BYTES_MAX {
        let problem = Problem::new("too long").expected(format!("at most {FILE_BYTES_MAX} bytes"));
        return Err(Box::new(ConfigError::of_whole(Some(name), &[], &problem)));
    }
    String::from_utf8(content).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let good = String::from_utf8_lossy(good);
        let line = good.rsplit('\n').next().unwrap_or("");
        let column = line.chars().count() + 1;
        let mark = Mark { line: good.matches('\n').count() + 1, column, length: 1 };
        let problem = Problem::new("bytes that are no UTF-8").expected("UTF-8 text");
        Box::new(ConfigError::at(name, &good, mark, &[], &problem))
    })
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is a directory.
    #[error("a directory, expected a file")]
    Directory,
    /// The system says why not.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

impl From<ReadError> for String {
    fn from(error: ReadError) -> Self {
        error.to_string()
    }
}

/// The bytes of a file that an operator wrote; where it is longer than any may be, no more of it
/// than shows that.
///
/// # Errors
/// It cannot be read, and why.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    read_bytes(path, FILE_BYTES_MAX as u64)
}

/// The file's bytes, one more than `most` where it is longer.
fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    if path.is_dir() {
        return Err(ReadError::Directory);
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file of public keys.
///
/// # Errors
/// Why it cannot be read.
pub fn read_key_text(file: &str) -> Result<String, String> {
    key_text(read_bytes(Path::new(file), KEY_BYTES_MAX)?)
}

/// The bytes of a file of certificates or of a private key.
///
/// # Errors
/// Why it cannot be read.
pub fn read_pem(file: &str) -> Result<Vec<u8>, String> {
    let bytes = read_bytes(Path::new(file), KEY_BYTES_MAX)?;
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err(format!("too long, expected at most {KEY_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// The text of what such a file holds.
///
/// # Errors
/// It is too long, or no text.
pub fn key_text(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err(format!("too long, expected at most {KEY_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

/// A secret as its file holds it, without what editors and `echo` leave: a mark of the byte order,
/// the last line end.
pub fn secret_in(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// A secret's file, its last line end aside.
///
/// # Errors
/// Why it cannot be read.
pub fn read_secret(file: &str) -> Result<String, String> {
    let bytes = read_bytes(Path::new(file), SECRET_BYTES_MAX)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("too long, expected at most {SECRET_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    let secret = secret_in(&text);
    if secret.is_empty() {
        return Err("empty, expected a secret".to_owned());
    }
    Ok(secret.to_owned())
}
