//! Kinds of values that the files share: durations, sizes, secrets, mappings that keep their order.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, MapAccess, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

/// Longest duration that a file may name; more would only overflow timers.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Units of durations in microseconds, the longest first.
const DURATION_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// A duration as it is written: `250ms`, `5s`, `1h`, `90d`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        HumanDuration(Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn secs(secs: u64) -> Self {
        HumanDuration(Duration::from_secs(secs))
    }

    /// Reads a duration; `None` where it is none, or longer than [`DURATION_MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(HumanDuration(Duration::ZERO));
        }
        let mut rest = text;
        let mut total = Duration::ZERO;
        let mut unit_before = u64::MAX;
        while !rest.is_empty() || text.is_empty() {
            let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
            let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let unit = if unit == "µs" { "us" } else { unit };
            let (_, unit_us) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit)?;
            // Longest first, each once: `1h30m`, not `30m1h` or `1s1s`.
            if unit_us >= unit_before {
                return None;
            }
            unit_before = unit_us;
            let part = digits.parse::<u64>().ok()?.checked_mul(unit_us)?;
            total = total.checked_add(Duration::from_micros(part))?;
            rest = after;
        }
        (total <= DURATION_MAX).then_some(HumanDuration(total))
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a duration with its unit, such as 250ms, 5s, 10m, 1h or 90d";
        deserializer.deserialize_str(Parsed { expected, parse: HumanDuration::parse })
    }
}

/// As [`HumanDuration::parse`] reads it: longest unit first, none twice.
impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_micros();
        if left == 0 {
            return f.write_str("0");
        }
        for (unit, unit_us) in DURATION_UNITS {
            let unit_us = u128::from(unit_us);
            if left >= unit_us {
                write!(f, "{}{unit}", left / unit_us)?;
                left %= unit_us;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // YAML reads a bare 0 as a number, every other duration as text.
        json_schema!({
            "type": ["string", "integer"],
            "pattern": "^(0|(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?([0-9]+(us|µs))?)$",
            "minimum": 0,
            "maximum": 0,
        })
    }
}

/// A number of bytes as it is written: `64KiB`, `10MiB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Reads a size; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(factor).map(ByteSize)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a size, such as 65536, 64KiB or 10MiB";
        deserializer.deserialize_str(Parsed { expected, parse: ByteSize::parse })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => {
                serializer.collect_str(&format_args!("{}{unit}", self.0 / factor))
            }
            None => serializer.serialize_u64(self.0),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "pattern": "^[0-9]+ *(B|KiB|MiB|GiB|kB|KB|MB|GB)?$",
            "minimum": 0,
        })
    }
}

/// A secret: neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(String);

impl Redacted {
    /// Takes a secret in.
    pub fn new(secret: impl Into<String>) -> Self {
        Redacted(secret.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Redacted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| Some(Redacted::new(text));
        deserializer.deserialize_str(Parsed { expected: "text", parse })
    }
}

impl JsonSchema for Redacted {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// This file.
    File(String),
}

impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| match text {
            "" => None,
            _ if ["off", "false", "no"].contains(&text.to_ascii_lowercase().as_str()) => {
                Some(AccessLog::Off)
            }
            "stdout" => Some(AccessLog::Stdout),
            file => Some(AccessLog::File(file.to_owned())),
        };
        deserializer.deserialize_str(Parsed { expected: "off, stdout or a file", parse })
    }
}

impl Serialize for AccessLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            AccessLog::Off => "off",
            AccessLog::Stdout => "stdout",
            AccessLog::File(file) => file,
        })
    }
}

impl JsonSchema for AccessLog {
    fn schema_name() -> Cow<'static, str> {
        "AccessLog".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "examples": ["off", "stdout"] })
    }
}

/// A mapping whose keys are the operator's own, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered<V>(pub Vec<(String, V)>);

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<V> Ordered<V> {
    /// Every key and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Ordered<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<V>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<V: JsonSchema> JsonSchema for Ordered<V> {
    fn schema_name() -> Cow<'static, str> {
        format!("Mapping_of_{}", V::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "additionalProperties": generator.subschema_for::<V>(),
        })
    }
}

/// Visits text that a function can read, or cannot.
struct Parsed<T> {
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let micros = |text| HumanDuration::parse(text).map(|it| it.0.as_micros());
        assert_eq!(micros("250ms"), Some(250_000));
        assert_eq!(micros("5s"), Some(5_000_000));
        assert_eq!(micros("10m"), Some(600_000_000));
        assert_eq!(micros("1h30m"), Some(5_400_000_000));
        assert_eq!(micros("90d"), Some(90 * 86_400_000_000));
        assert_eq!(micros("100us"), Some(100));
        assert_eq!(micros("0"), Some(0));
        assert_eq!(micros("1ms5µs"), Some(1_005));
        for text in ["0", "250ms", "1h30m", "90d", "1d1h1m1s1ms1us"] {
            assert_eq!(HumanDuration::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "1.5s",
            "5S",
            "30m1h",
            "1s1s",
            "5sec",
            "9999999d",
            "5s ",
            "99999999999999999999s",
            "µ",
            "5ß",
        ] {
            assert_eq!(micros(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        let bytes = |text| ByteSize::parse(text).map(|it| it.0);
        assert_eq!(bytes("65536"), Some(65_536));
        assert_eq!(bytes("64KiB"), Some(65_536));
        assert_eq!(bytes("10 MiB"), Some(10 << 20));
        assert_eq!(bytes("1GB"), Some(1_000_000_000));
        for bad in
            ["", "KiB", "64K", "-1", "1.5MiB", "99999999999999999999", "18446744073709551615KiB"]
        {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Redacted::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }
}
