//! A tree to the mirror of its file: the serde half of reading.
//!
//! Every error of shape is found, not the first: what is wrong is reported, taken out of the tree,
//! and the rest is decoded again. Text may stand for anything a field can read from text, a field
//! that is null counts as not given, and `false` is `off` where a choice knows `off`.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::blot::without_password;
use super::report::{Part, Path, Problem, Step, shortened};
use super::tree::{Entry, Kind, Node};

/// More errors of shape than that are not looked for.
const FAULTS_MAX: usize = 64;

/// An error of shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field.
    pub path: Path,
    /// Its key or its value.
    pub part: Part,
    /// What is wrong; an empty `found` is filled in with the value.
    pub problem: Problem,
}

/// Decodes a tree, and takes out of it what could not be decoded.
pub fn decode<T: DeserializeOwned + Default>(root: &mut Node) -> (T, Vec<Fault>) {
    let mut faults = Vec::new();
    if root.is_null() {
        return (T::default(), faults);
    }
    while faults.len() < FAULTS_MAX {
        match T::deserialize(&*root) {
            Ok(value) => return (value, faults),
            Err(fault) => {
                let fault = fault.found_in(root);
                let is_pruned = !fault.path.is_empty() && root.prune(&fault.path);
                faults.push(fault);
                if !is_pruned {
                    break;
                }
            }
        }
    }
    (T::default(), faults)
}

/// A value as messages repeat it.
pub fn described(node: &Node) -> String {
    match &node.kind {
        _ if node.is_null() => "nothing".to_owned(),
        Kind::Scalar { text, is_plain: true } => shortened(&without_password(text)),
        Kind::Scalar { text, .. } => format!("\"{}\"", shortened(&without_password(text))),
        Kind::Sequence(_) => "a list".to_owned(),
        Kind::Mapping(_) => "a mapping".to_owned(),
        Kind::Pruned => "nothing".to_owned(),
    }
}

impl Fault {
    fn new(problem: Problem) -> Self {
        Fault { path: Vec::new(), part: Part::Value, problem }
    }

    fn mismatch(expected: impl fmt::Display) -> Self {
        Self::new(Problem::new("").expected(expected.to_string()))
    }

    fn hinting(mut self, sentence: Option<String>) -> Self {
        self.problem.suggestion = sentence;
        self
    }

    /// Names the value that was found, where the fault is this very value's.
    fn found_in(mut self, node: &Node) -> Self {
        if self.path.is_empty() && self.problem.found.is_empty() {
            self.problem.found = described(node);
        }
        self
    }

    fn below(mut self, step: Step) -> Self {
        self.path.insert(0, step);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message())
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::new(Problem::new(message.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Fault::mismatch(expected)
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Fault::mismatch(expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Fault::new(Problem::new("").expected_one_of(variant, expected.iter().copied()))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Fault::new(Problem::new("unknown key").expected_one_of(field, expected.iter().copied()))
    }
}

/// A boolean, as the readers of YAML 1.1 and 1.2 together know it.
fn boolean(node: &Node) -> Option<bool> {
    match &node.kind {
        Kind::Scalar { text, is_plain: true } => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Some(true),
            "false" | "off" | "no" => Some(false),
            _ => None,
        },
        Kind::Pruned => Some(false),
        _ => None,
    }
}

/// The digits of a number that was written in quotes or in groups.
fn bare_digits(node: &Node) -> Option<String> {
    let Kind::Scalar { text, .. } = &node.kind else { return None };
    let digits: String = text.chars().filter(|c| !"_,' ".contains(*c)).collect();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(digits)
}

macro_rules! decode_whole_numbers {
    ($($method:ident $visit:ident $type:ty),*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number = match &self.kind {
                Kind::Scalar { text, is_plain: true } => text.parse::<$type>().ok(),
                Kind::Pruned => Some(0),
                _ => None,
            };
            let (least, most) = (<$type>::MIN, <$type>::MAX);
            let expected = || {
                let fault = Fault::mismatch(format!("a whole number from {least} to {most}"));
                fault.hinting(bare_digits(self).map(|digits| format!("write {digits}")))
            };
            visitor.$visit(number.ok_or_else(expected)?)
        }
    )* };
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.kind {
            Kind::Sequence(_) => self.deserialize_seq(visitor),
            Kind::Mapping(_) => self.deserialize_map(visitor),
            Kind::Scalar { .. } if self.is_null() => visitor.visit_unit(),
            Kind::Scalar { .. } => self.deserialize_str(visitor),
            Kind::Pruned => visitor.visit_unit(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_bool(boolean(self).ok_or_else(|| Fault::mismatch("true or false"))?)
    }

    decode_whole_numbers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = match &self.kind {
            Kind::Scalar { text, is_plain: true } => text.parse::<f64>().ok(),
            Kind::Pruned => Some(0.0),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite());
        visitor.visit_f64(number.ok_or_else(|| Fault::mismatch("a number"))?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => visitor.visit_str(text),
            // Whatever reads text may refuse this one; the field was reported, so it stays silent.
            Kind::Pruned => visitor.visit_str("0"),
            _ => Err(Fault::mismatch(Expecting(&visitor))),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.is_null() || matches!(self.kind, Kind::Pruned) {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.kind {
            Kind::Sequence(items) => visitor.visit_seq(Items { items, next: 0 }),
            Kind::Pruned => visitor.visit_seq(Items { items: &[], next: 0 }),
            _ => Err(Fault::mismatch("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.kind {
            Kind::Mapping(entries) => visitor.visit_map(Entries::new(entries, &[])),
            Kind::Pruned => visitor.visit_map(Entries::new(&[], &[])),
            _ => Err(Fault::mismatch("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.kind {
            Kind::Mapping(entries) => visitor.visit_map(Entries::new(entries, fields)),
            Kind::Pruned => visitor.visit_map(Entries::new(&[], fields)),
            _ => Err(Fault::mismatch(format!(
                "a mapping with {}",
                super::report::one_of(fields.iter().copied())
            ))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.kind {
            _ if variants.contains(&"off") && boolean(self) == Some(false) => {
                visitor.visit_enum(Choice("off"))
            }
            Kind::Scalar { text, .. } if !self.is_null() => visitor.visit_enum(Choice(text)),
            Kind::Pruned => visitor.visit_enum(Choice(variants.first().copied().unwrap_or(""))),
            _ => Err(Fault::mismatch(super::report::one_of(variants.iter().copied()))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        char bytes byte_buf unit unit_struct tuple tuple_struct identifier i128 u128
    }
}

/// What a visitor says that it expects.
struct Expecting<'v, V>(&'v V);

impl<'de, V: Visitor<'de>> fmt::Display for Expecting<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

/// One word of a closed set.
struct Choice<'de>(&'de str);

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let text: StrDeserializer<'de, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(text)?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(Fault::mismatch("a single word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::mismatch("a single word"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(Fault::mismatch("a single word"))
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        let decoded = seed.deserialize(item);
        decoded.map(Some).map_err(|fault| fault.found_in(item).below(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len().saturating_sub(self.next))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    /// A struct's own keys: null and pruned values of these count as not given.
    fields: &'static [&'static str],
    value: Option<&'de Entry>,
}

impl<'de> Entries<'de> {
    fn new(entries: &'de [Entry], fields: &'static [&'static str]) -> Self {
        Entries { entries: entries.iter(), fields, value: None }
    }

    fn is_absent(&self, entry: &Entry) -> bool {
        let is_pruned = matches!(entry.value.kind, Kind::Pruned);
        let is_null = entry.value.is_null() && self.fields.contains(&entry.key.as_str());
        !self.fields.is_empty() && (is_pruned || is_null)
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        while let Some(entry) = self.entries.next() {
            if self.is_absent(entry) {
                continue;
            }
            self.value = Some(entry);
            let key: StrDeserializer<'de, Fault> = entry.key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some).map_err(|fault| {
                let path = vec![Step::Key(entry.key.clone())];
                Fault { path, part: Part::Key, ..fault }
            });
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(entry) = self.value.take() else {
            return Err(Fault::mismatch("a key before its value"));
        };
        seed.deserialize(&entry.value)
            .map_err(|fault| fault.found_in(&entry.value).below(Step::Key(entry.key.clone())))
    }
}
