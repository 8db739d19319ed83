//! The reference of the three files, in Markdown: a table for each mapping, made of the very types
//! that read them.
//!
//! Owns how a type, a default and a choice are written. What a key means its own documentation
//! says; whether it is built yet says [`super::unsupported`].

use std::fmt::Write;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::keys_file::KeysFile;
use super::schema::Config;
use super::schema_tiers::TiersFile;
use super::unsupported;

/// Keys of `tollgate.yaml` that name a file whose content is taken over when it changes.
const FOLLOWED: &[&str] = &[
    "server.listeners[].tls.cert",
    "server.listeners[].tls.key",
    "server.listeners[].tls.sni.NAME.cert",
    "server.listeners[].tls.sni.NAME.key",
    "server.listeners[].tls.client_ca",
    "server.listeners[].tls.client_crl",
    "identity[].jwt.secret_file",
    "identity[].jwt.public_key_file",
    "identity[].jwt.jwks_file",
    "identity[].api_key.keys_file",
];

/// What holds where a key is not given, and is no value of its own.
const OTHERWISE: &[(&str, &str)] = &[
    ("identity", "`[{ ip: {} }]`"),
    ("tier_lookup.redis.url", "that of `store.redis`"),
    ("tiers", "the four built-in tiers"),
    ("subscriptions", "basic, pro, business, staff"),
    ("tiers.NAME.burst", "`per_second`"),
    ("tiers.NAME.on_failure", "the store's"),
    ("endpoints[].limits.NAME.burst", "`per_second`"),
    ("endpoints[].on_failure", "the tier's"),
    ("endpoints[].slow_threshold", "`slow_thresholds.upstream`"),
];

/// When a change of a key is in force.
#[derive(Clone, Copy)]
enum Change {
    /// With the next start.
    Restart,
    /// While tollgate runs.
    Reload,
}

/// The three files, each a chapter.
pub fn files() -> String {
    let mut text = String::new();
    let not_built: Vec<String> = unsupported::in_config().map(str::to_owned).collect();
    chapter::<Config>(&mut text, "tollgate.yaml", CONFIG, Change::Restart, &not_built);
    let not_built: Vec<String> = unsupported::in_tiers().collect();
    chapter::<TiersFile>(&mut text, "tiers.yaml", TIERS, Change::Reload, &not_built);
    chapter::<KeysFile>(&mut text, "keys.yaml", KEYS, Change::Reload, &[]);
    text
}

const CONFIG: &str = "\
Where tollgate listens, what it forwards to, where it keeps its counters. Named by `--config`; a file
may leave out any key. It is read at the start: a change takes a restart, as the log and the metrics
say then. Of files whose *content* is said to be reloaded, the name takes
a restart, and what is in them is taken over within a second of its change, or at SIGHUP.
[config/tollgate.yaml](../config/tollgate.yaml) is this table as a file.
";

const TIERS: &str = "\
The policy: who may do how much, and where it costs more. Named by `--tiers`. A change of any key is in
force within a second, without a restart, with what callers have used so far.
[config/tiers.yaml](../config/tiers.yaml) is an example; [endpoints.md](endpoints.md) has the rules.
";

const KEYS: &str = "\
API keys, by their hashes; the file that `identity[].api_key.keys_file` names. A change is in force
within a second. [identity.md](identity.md#api-keys) shows how to make one.
";

fn chapter<T: JsonSchema>(
    text: &mut String,
    name: &str,
    introduction: &str,
    change: Change,
    not_built: &[String],
) {
    let generator = SchemaSettings::draft07().into_generator();
    let root = generator.into_root_schema_for::<T>().to_value();
    let definitions = root.get("definitions").unwrap_or(&Value::Null);
    let reader = Reader { definitions, change, not_built };
    // Writing to a string cannot fail, here and below.
    let _ = write!(text, "\n## {name}\n\n{introduction}");
    reader.section(text, "", &root);
}

struct Reader<'r> {
    definitions: &'r Value,
    change: Change,
    not_built: &'r [String],
}

/// A schema behind its references.
struct Shape<'s> {
    /// Its type's name, if it has one.
    name: &'s str,
    schema: &'s Value,
    may_be_null: bool,
}

impl<'r> Reader<'r> {
    /// The table of a mapping's keys, and those of the mappings in it.
    fn section(&self, text: &mut String, path: &str, schema: &'r Value) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let under = if path.is_empty() { String::new() } else { format!("{path}.") };
        if !path.is_empty() {
            let _ = write!(text, "\n### `{path}`\n");
        }
        text.push_str("\n| key | type | default | change | |\n|---|---|---|---|---|\n");
        for (key, property) in properties {
            self.row(text, &format!("{under}{key}"), key, property);
        }
        for (key, property) in properties {
            let (below, schema) = self.inner(format!("{under}{key}"), property);
            self.section(text, &below, schema);
        }
    }

    fn row(&self, text: &mut String, path: &str, key: &str, property: &'r Value) {
        let shape = self.resolved(property);
        let meaning = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        let (meaning, is_required) = match meaning.strip_suffix("; required.") {
            Some(meaning) => (format!("{meaning}."), true),
            None => (meaning, false),
        };
        let (below, inner) = self.inner(path.to_owned(), property);
        let more = if inner["properties"].is_object() {
            format!(" See [`{below}`](#{}).", anchor(&below))
        } else {
            choices(shape.schema)
        };
        let is_built = !self.not_built.iter().any(|it| covers(it, path));
        let more = if is_built { more } else { format!(" **Not built yet.**{more}") };
        let change = match self.change {
            Change::Restart if FOLLOWED.contains(&path) => "restart; content: reload",
            Change::Restart => "restart",
            Change::Reload => "reload",
        };
        let default = default(path, property, &shape, is_required);
        let kind = self.kind(property);
        let _ = writeln!(text, "| `{key}` | {kind} | {default} | {change} | {meaning}{more} |");
    }

    /// What a schema refers to, and whether null may stand for it.
    fn resolved(&self, schema: &'r Value) -> Shape<'r> {
        let mut shape = Shape { name: "", schema, may_be_null: false };
        loop {
            let Some(object) = shape.schema.as_object() else { return shape };
            if let Some(name) = object.get("$ref").and_then(Value::as_str) {
                shape.name = name.rsplit('/').next().unwrap_or_default();
                shape.schema = &self.definitions[shape.name];
            } else if let Some(one) = only(object, "allOf") {
                shape.schema = one;
            } else if let Some(one) = only(object, "anyOf") {
                shape.may_be_null = true;
                shape.schema = one;
            } else {
                shape.may_be_null |= object
                    .get("type")
                    .and_then(Value::as_array)
                    .is_some_and(|types| types.iter().any(|kind| kind == "null"));
                return shape;
            }
        }
    }

    /// The mapping behind a key, a list's items or a mapping's values, and what it is called.
    fn inner(&self, path: String, property: &'r Value) -> (String, &'r Value) {
        let schema = self.resolved(property).schema;
        if schema["items"].is_object() {
            (format!("{path}[]"), self.resolved(&schema["items"]).schema)
        } else if schema["additionalProperties"].is_object() {
            (format!("{path}.NAME"), self.resolved(&schema["additionalProperties"]).schema)
        } else {
            (path, schema)
        }
    }

    fn kind(&self, property: &'r Value) -> String {
        let shape = self.resolved(property);
        let schema = shape.schema;
        match shape.name {
            "Duration" => return "duration".to_owned(),
            "Size" => return "size".to_owned(),
            "Secret" => return "secret".to_owned(),
            "AccessLog" => return "`off`, `stdout` or a file".to_owned(),
            _ => {}
        }
        if let Some(words) = words(schema) {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            return words.join(", ");
        }
        if schema["items"].is_object() {
            return format!("list of {}", plural(&self.kind(&schema["items"])));
        }
        if schema["additionalProperties"].is_object() {
            return format!("names, each with {}", self.kind(&schema["additionalProperties"]));
        }
        let kind = match &schema["type"] {
            Value::Array(types) => {
                types.iter().find(|kind| *kind != "null").unwrap_or(&Value::Null)
            }
            one => one,
        };
        let description = property["description"].as_str().unwrap_or_default();
        let is_file = ["A file", "File "].iter().any(|begin| description.starts_with(begin));
        match kind.as_str() {
            Some("string") if is_file => "file",
            Some("boolean") => "`true`, `false`",
            Some("integer") => "whole number",
            Some("number") => "number",
            Some("object") => "mapping",
            _ => "text",
        }
        .to_owned()
    }
}

/// The one schema in `allOf`, or in `anyOf` beside null.
fn only<'s>(object: &'s Map<String, Value>, key: &str) -> Option<&'s Value> {
    object.get(key)?.as_array()?.iter().find(|schema| schema["type"] != "null")
}

/// The words of a closed set, each with what it means.
fn words(schema: &Value) -> Option<Vec<(&str, &str)>> {
    let branches = schema["oneOf"].as_array().or_else(|| schema["enum"].as_array())?;
    Some(branches.iter().filter_map(word).collect())
}

/// A word of a closed set: alone, or with its documentation.
fn word(branch: &Value) -> Option<(&str, &str)> {
    let says = branch["description"].as_str().unwrap_or_default();
    Some((branch["const"].as_str().or_else(|| branch.as_str())?, says))
}

/// What the words of a closed set mean.
fn choices(schema: &Value) -> String {
    let words = words(schema).unwrap_or_default();
    let one = |(word, says): &(&str, &str)| format!("`{word}`: {}", lowered(says));
    let all: Vec<String> = words.iter().filter(|(_, says)| !says.is_empty()).map(one).collect();
    if all.is_empty() { String::new() } else { format!(" {}.", all.join("; ")) }
}

/// A sentence as part of another.
fn lowered(sentence: &str) -> String {
    let sentence = sentence.replace('\n', " ");
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    let is_name = sentence.chars().nth(1).is_some_and(char::is_uppercase);
    match letters.next() {
        Some(first) if !is_name => first.to_lowercase().chain(letters).collect(),
        _ => sentence.to_owned(),
    }
}

fn plural(kind: &str) -> String {
    match kind {
        "text" => "texts".to_owned(),
        "mapping" => "mappings".to_owned(),
        other => other.to_owned(),
    }
}

fn default(path: &str, property: &Value, shape: &Shape<'_>, is_required: bool) -> String {
    if let Some((_, says)) = OTHERWISE.iter().find(|(key, _)| *key == path) {
        return (*says).to_owned();
    }
    if is_required {
        return "required".to_owned();
    }
    match &property["default"] {
        Value::Null => {}
        Value::String(text) => return format!("`{text}`"),
        Value::Array(list) => {
            let items: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            return format!("`[{}]`", items.join(", "));
        }
        other => return format!("`{other}`"),
    }
    let schema = shape.schema;
    let is_list = schema["items"].is_object();
    match (shape.may_be_null, is_list, schema["additionalProperties"].is_object()) {
        (false, true, _) => "`[]`".to_owned(),
        (false, _, true) => "`{}`".to_owned(),
        (true, ..) => "`null`".to_owned(),
        _ => String::new(),
    }
}

/// Whether what is said of a key holds for this one: for itself and all below it.
fn covers(key: &str, path: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What GitHub and its like make of a heading.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
        .map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}
