//! The JSON Schemas of the files, for editors, made of the very types that read them.
//!
//! Owns how the reader's leniency looks in a schema: a key that is null counts as not given, text
//! may be any scalar, and `${NAME}` may stand wherever a single value does. A schema knows shapes
//! only; what a value means, and whether it is built yet, `tollgate check` says.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::keys_file::KeysFile;
use super::schema::Config;
use super::schema_tiers::TiersFile;

/// Text that takes something from the environment.
const REFERENCE: &str = "\\$\\{";
/// How YAML 1.1 writes a boolean beside `true` and `false`; an editor that reads YAML 1.2 takes
/// them for text.
const BOOLEAN_WORDS: &str = "^([Oo][Nn]|[Oo][Ff][Ff]|[Yy][Ee][Ss]|[Nn][Oo])$";
/// What else than `off` and `false` is `off`.
const OFF_WORDS: &str = "^([Oo][Ff][Ff]|[Nn][Oo])$";

/// The schema of `tollgate.yaml`.
pub fn of_config() -> Value {
    schema_of::<Config>(true)
}

/// The schema of `tiers.yaml`.
pub fn of_tiers() -> Value {
    schema_of::<TiersFile>(true)
}

/// The schema of a file of API keys.
pub fn of_keys() -> Value {
    schema_of::<KeysFile>(false)
}

/// Draft 7 is the one that editors know best. `may_be_empty`: an empty file is all defaults.
fn schema_of<T: JsonSchema>(may_be_empty: bool) -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    relax(&mut schema, may_be_empty);
    schema
}

/// Rewrites what serde's types say into what the reader accepts. `may_be_null`: it is the value of
/// a key, or the file itself.
fn relax(schema: &mut Value, may_be_null: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    unwrap_option(object);
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    let required: Vec<Value> =
        object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        relax(property, !required.contains(&json!(name)));
    }
    for below in ["items", "additionalProperties"] {
        object.get_mut(below).into_iter().for_each(|schema| relax(schema, false));
    }
    if let Some(choices) = object.remove("oneOf").or_else(|| object.remove("enum")) {
        object.remove("type");
        object.insert("anyOf".to_owned(), choice(choices, may_be_null));
        return;
    }
    if object.remove("format").is_some_and(|format| format == "uint32") {
        object.insert("maximum".to_owned(), json!(u32::MAX));
    }
    let mut types: Vec<Value> = match object.remove("type") {
        Some(Value::Array(types)) => types,
        Some(one) => vec![one],
        None => return,
    };
    types.retain(|kind| kind != "null");
    let is = |name: &str| types.iter().any(|kind| kind == name);
    let is_text = is("string") && !object.contains_key("pattern");
    if is_text {
        types.extend([json!("number"), json!("boolean")]);
    } else if !is("object") && !is("array") {
        let own = object.get("pattern").and_then(Value::as_str).map(str::to_owned);
        let own = own.or_else(|| is("boolean").then(|| BOOLEAN_WORDS.to_owned()));
        let pattern = own.into_iter().chain([REFERENCE.to_owned()]).collect::<Vec<_>>().join("|");
        object.insert("pattern".to_owned(), json!(pattern));
        if !is("string") {
            types.push(json!("string"));
        }
    }
    types.extend(may_be_null.then(|| json!("null")));
    let types = if let [one] = types.as_slice() { one.clone() } else { Value::Array(types) };
    object.insert("type".to_owned(), types);
}

/// What an `Option` of a choice is wrapped in.
fn unwrap_option(object: &mut Map<String, Value>) {
    let Some(Value::Array(branches)) = object.remove("anyOf") else { return };
    let inner = branches.into_iter().find(|branch| branch["type"] != "null");
    for (key, value) in inner.as_ref().and_then(Value::as_object).into_iter().flatten() {
        object.entry(key).or_insert_with(|| value.clone());
    }
}

/// The branches of a closed set of words.
fn choice(choices: Value, may_be_null: bool) -> Value {
    let mut branches: Vec<Value> = Vec::new();
    for choice in choices.as_array().into_iter().flatten() {
        let mut branch = Map::new();
        let word = if choice.is_object() { &choice["const"] } else { choice };
        branch.insert("const".to_owned(), word.clone());
        branch
            .extend(choice.get("description").map(|text| ("description".to_owned(), text.clone())));
        branches.push(branch.into());
    }
    let knows_off = branches.iter().any(|branch| branch["const"] == "off");
    let pattern = if knows_off { format!("{OFF_WORDS}|{REFERENCE}") } else { REFERENCE.to_owned() };
    branches.push(json!({ "type": "string", "pattern": pattern }));
    branches.extend(knows_off.then(|| json!({ "const": false })));
    branches.extend(may_be_null.then(|| json!({ "type": "null" })));
    Value::Array(branches)
}
