//! Kinds of values that the files share: durations, sizes, secrets, mappings that keep their order.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Unexpected, Visitor};

/// Longest duration that a file may name; more would only overflow timers.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

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
            let unit_us: u64 = match unit {
                "us" | "µs" => 1,
                "ms" => 1_000,
                "s" => 1_000_000,
                "m" => 60_000_000,
                "h" => 3_600_000_000,
                "d" => 86_400_000_000,
                _ => return None,
            };
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
