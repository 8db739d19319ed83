//! Lines of JSON, one object each, with the names that proxies give their fields: nginx's variables,
//! Caddy, Traefik, Envoy, HAProxy, Google Cloud's load balancers, and tollgate's own.
//!
//! A field of an object within `request`, `httpRequest` or `http` counts like one outside of it. Of two
//! fields that say the same thing the first one counts.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::limiter::time::{Micros, Timestamp};
use crate::log::access::Decided;

use super::line::{Fault, Line, Moment, Wanted, is_nothing};
use super::{line, moment};

/// Reads a line.
///
/// # Errors
/// It is no request.
pub fn read<'a>(line: &'a [u8], wanted: &Wanted) -> Result<Line<'a>, Fault> {
    const OBJECT: Fault = Fault::Unreadable("an object of JSON");
    let mut reader = serde_json::Deserializer::from_slice(line);
    let mut found = Found::default();
    let fields = Fields { found: &mut found, wanted, depth: 0 };
    reader.deserialize_map(fields).and_then(|()| reader.end()).map_err(|_| OBJECT)?;
    found.into_line()
}

/// What was found so far.
#[derive(Default)]
struct Found<'a> {
    line: Line<'a>,
    at: Option<(Timestamp, Moment)>,
    request_line: Option<Cow<'a, str>>,
    /// A span without a unit.
    bare_span: Option<Value<'a>>,
}

impl<'a> Found<'a> {
    fn into_line(self) -> Result<Line<'a>, Fault> {
        const MOMENT: Fault = Fault::Unreadable(
            "a moment in a field such as \"time\", \"ts\", \"timestamp\", \"time_local\"",
        );
        const TARGET: Fault = Fault::Unreadable(
            "a method and a path in fields such as \"method\" and \"path\", or \"request\"",
        );
        let Found { mut line, at, request_line, bare_span } = self;
        (line.at, line.moment) = at.ok_or(MOMENT)?;
        line.duration = line.duration.or_else(|| bare_span.and_then(|span| span.span()));
        if line.method.is_empty() || line.target.is_empty() {
            match request_line {
                Some(request) => line.set_request(request)?,
                None if line.method == "-" || line.target == "-" => return Err(Fault::NoRequest),
                None => return Err(TARGET),
            }
        }
        if is_nothing(line.method.as_bytes()) || is_nothing(line.target.as_bytes()) {
            return Err(Fault::NoRequest);
        }
        Ok(line)
    }

    fn set(&mut self, name: &str, value: Value<'a>, wanted: &Wanted) {
        let line = &mut self.line;
        if wanted.identity_field() == Some(name) && line.named.is_none() {
            line.named = value.clone().into_text();
        }
        if wanted.tier_field.as_deref() == Some(name) && line.tier.is_none() {
            line.tier = value.clone().into_text();
        }
        match name {
            "start_time" | "StartUTC" | "StartLocal" | "started_at" => {
                self.set_moment(&value, Moment::Began);
            }
            "ts" | "time" | "timestamp" | "@timestamp" | "time_iso8601" | "time_local" | "msec"
            | "date" | "datetime" | "t" => self.set_moment(&value, Moment::Ended),
            "method" | "request_method" | "RequestMethod" | "requestMethod" | "http_method"
            | "verb" => set(&mut line.method, value),
            "path"
            | "uri"
            | "request_uri"
            | "RequestPath"
            | "requestUrl"
            | "url"
            | "target"
            | "http_path"
            | "x-envoy-original-path" => set(&mut line.target, value),
            "request" => self.request_line = self.request_line.take().or(value.into_text()),
            "host" | "http_host" | "RequestHost" | "authority" | ":authority" => {
                set_some(&mut line.host, value);
            }
            "remote_addr"
            | "client_ip"
            | "clientip"
            | "ClientHost"
            | "remote_ip"
            | "remoteIp"
            | "ip"
            | "remote_address"
            | "downstream_remote_address"
            | "ClientAddr"
            | "client"
            | "address"
            | "peer" => set_some(&mut line.address, value),
            "remote_user" | "user" | "user_id" | "ClientUsername" | "userid" | "sub" => {
                set_some(&mut line.user, value);
            }
            "status" | "response_code" | "DownstreamStatus" | "status_code" | "statusCode" => {
                let status = value.number().and_then(|text| text.parse().ok());
                line.status = line.status.or(status);
            }
            "request_time" | "duration" | "Duration" | "latency" | "elapsed" => {
                // Traefik counts in nanoseconds.
                let value = if name == "Duration" { value.as_nanos() } else { value };
                self.bare_span = self.bare_span.take().or(Some(value));
            }
            "duration_us" => line.duration = line.duration.or(value.span_of(1.0)),
            "duration_ms" | "response_time_ms" => {
                line.duration = line.duration.or(value.span_of(1e3));
            }
            "identity" => set_some(&mut line.identity, value),
            "tier" => set_some(&mut line.tier, value),
            "decision" => line.decided = line.decided.or(value.as_decided()),
            "upstream_us" => line.is_unasked = matches!(value, Value::Null),
            _ => {}
        }
    }

    /// What says when it began goes before what says when it ended.
    fn set_moment(&mut self, value: &Value<'_>, of: Moment) {
        let is_known = self.at.is_some_and(|(_, known)| known == Moment::Began || known == of);
        if !is_known && let Some(at) = value.moment() {
            self.at = Some((at, of));
        }
    }
}

fn set<'a>(field: &mut Cow<'a, str>, value: Value<'a>) {
    if field.is_empty()
        && let Some(text) = value.into_text()
    {
        *field = text;
    }
}

fn set_some<'a>(field: &mut Option<Cow<'a, str>>, value: Value<'a>) {
    if field.is_none() {
        *field = value.into_text();
    }
}

/// What a field holds.
#[derive(Clone, Debug)]
enum Value<'a> {
    Null,
    Text(Cow<'a, str>),
    Number(Cow<'a, str>),
    /// An object or an array: looked into or not, nothing of it is left.
    Nested,
}

impl<'a> Value<'a> {
    fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Value::Text(text) => Some(text).filter(|text| !is_nothing(text.as_bytes())),
            Value::Number(number) => Some(number),
            Value::Null | Value::Nested => None,
        }
    }

    /// The number, also where it is written as a text.
    fn number(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Number(text) => Some(text),
            Value::Null | Value::Nested => None,
        }
    }

    fn moment(&self) -> Option<Timestamp> {
        self.number().and_then(|text| moment::of_any(text.as_bytes()))
    }

    /// A span in units of so many microseconds.
    fn span_of(&self, unit: f64) -> Option<Micros> {
        line::span(self.number()?, unit)
    }

    /// A span without a unit: with a fraction it is in seconds, as nginx and Caddy have it; whole, in
    /// milliseconds, as Envoy has it. As a text it may end in `s`, as Google's do.
    fn span(&self) -> Option<Micros> {
        let text = self.number()?;
        if let Some(seconds) = text.strip_suffix('s') {
            return Value::Text(Cow::Borrowed(seconds)).span_of(1e6);
        }
        let is_whole = text.bytes().all(|byte| byte.is_ascii_digit());
        self.span_of(if is_whole && matches!(self, Value::Number(_)) { 1e3 } else { 1e6 })
    }

    fn as_nanos(&self) -> Value<'a> {
        let micros = self.span_of(1e-3).map(Micros::as_micros);
        // With a fraction, in seconds.
        let seconds =
            micros.map(|micros| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000));
        seconds.map_or(Value::Null, |text| Value::Number(Cow::Owned(text)))
    }

    fn as_decided(&self) -> Option<Decided> {
        Decided::of(self.number()?)
    }
}

/// An object whose fields are looked at.
struct Fields<'f, 'a> {
    found: &'f mut Found<'a>,
    wanted: &'f Wanted,
    depth: u8,
}

impl<'a> Visitor<'a> for Fields<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let Fields { found, wanted, depth } = self;
        while let Some(Name(name)) = map.next_key()? {
            let value = match &*name {
                "request" | "httpRequest" | "http" if depth == 0 => {
                    let nested = Fields { found: &mut *found, wanted, depth: 1 };
                    map.next_value_seed(Either(nested))?
                }
                _ => map.next_value::<Value<'a>>()?,
            };
            found.set(&name, value, wanted);
        }
        Ok(())
    }
}

/// An object whose fields are looked at, or a text.
struct Either<'f, 'a>(Fields<'f, 'a>);

impl<'a> serde::de::DeserializeSeed<'a> for Either<'_, 'a> {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Value<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Either<'_, 'a> {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a text")
    }

    fn visit_map<A: MapAccess<'a>>(self, map: A) -> Result<Value<'a>, A::Error> {
        self.0.visit_map(map).map(|()| Value::Nested)
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Value<'a>, E> {
        Ok(Value::Null)
    }
}

/// A field's name, borrowed where it has no escape.
struct Name<'a>(Cow<'a, str>);

impl<'a> Deserialize<'a> for Name<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(Scalar)? {
            Value::Text(text) => Ok(Name(text)),
            _ => Ok(Name(Cow::Borrowed(""))),
        }
    }
}

impl<'a> Deserialize<'a> for Value<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl<'a> Visitor<'a> for Scalar {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'a>, E> {
        Ok(Value::Number(Cow::Owned(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'a>, E> {
        Ok(Value::Number(Cow::Owned(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value<'a>, E> {
        // With six digits behind the point: a moment in seconds to its microsecond.
        Ok(Value::Number(Cow::Owned(format!("{number:.6}"))))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'a>, E> {
        Ok(Value::Nested)
    }

    fn visit_unit<E>(self) -> Result<Value<'a>, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Value<'a>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Nested)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Value<'a>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Nested)
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::IdentityFrom;
    use super::*;

    fn of(line: &str) -> Result<Line<'_>, Fault> {
        read(line.as_bytes(), &Wanted::default())
    }

    #[test]
    fn lines_of_many_proxies() {
        // Each line of the same request: 0.25 s, begun at 971211336.
        for (proxy, line) in [
            (
                "nginx",
                r#"{"time_iso8601":"2000-10-10T20:55:36+00:00","remote_addr":"203.0.113.9","remote_user":"","request":"GET /a?b=1 HTTP/1.1","status":"200","request_time":"0.000"}"#,
            ),
            (
                "nginx, msec",
                r#"{"msec":"971211336.250","remote_addr":"203.0.113.9","request_method":"GET","request_uri":"/a?b=1","status":200,"request_time":0.250}"#,
            ),
            (
                "caddy",
                r#"{"level":"info","ts":971211336.25,"logger":"http.log.access","msg":"handled request","request":{"remote_ip":"203.0.113.9","remote_port":"41342","proto":"HTTP/2.0","method":"GET","host":"localhost","uri":"/a?b=1","headers":{"User-Agent":["curl"]}},"user_id":"","duration":0.25,"status":200}"#,
            ),
            (
                "traefik",
                r#"{"ClientAddr":"203.0.113.9:5","ClientHost":"203.0.113.9","ClientUsername":"-","DownstreamStatus":200,"Duration":250000000,"RequestHost":"a","RequestMethod":"GET","RequestPath":"/a?b=1","StartUTC":"2000-10-10T20:55:36Z","time":"2000-10-10T20:55:36Z"}"#,
            ),
            (
                "envoy",
                r#"{"start_time":"2000-10-10T20:55:36.000Z","method":"GET","path":"/a?b=1","response_code":200,"duration":250,"authority":"a","downstream_remote_address":"203.0.113.9:5"}"#,
            ),
            (
                "google",
                r#"{"timestamp":"2000-10-10T20:55:36.25Z","httpRequest":{"requestMethod":"GET","requestUrl":"/a?b=1","status":200,"remoteIp":"203.0.113.9","latency":"0.25s"}}"#,
            ),
        ] {
            let line = of(line).unwrap_or_else(|fault| panic!("{proxy}: {fault:?}"));
            assert_eq!(line.began().as_micros(), 971_211_336_000_000, "{proxy}");
            assert_eq!((&*line.method, &*line.target), ("GET", "/a?b=1"), "{proxy}");
            assert!(line.address.unwrap().starts_with("203.0.113.9"), "{proxy}");
            assert_eq!((line.status, line.user), (Some(200), None), "{proxy}");
        }
    }

    #[test]
    fn a_claim_in_a_field_of_any_name() {
        let line = r#"{"time":1,"method":"GET","path":"/","jwt_sub":"a\"b","plan":7}"#;
        let wanted = Wanted {
            identity: IdentityFrom::Field("jwt_sub".into()),
            tier_field: Some("plan".into()),
        };
        let line = read(line.as_bytes(), &wanted).unwrap();
        assert_eq!(line.named.as_deref(), Some("a\"b"));
        assert_eq!(line.tier.as_deref(), Some("7"));
    }

    #[test]
    fn what_is_no_request() {
        for line in [
            "",
            "{",
            "[]",
            "{}x",
            r#"{"method":"GET","path":"/"}"#,
            r#"{"time":"yesterday","method":"GET","path":"/"}"#,
            r#"{"time":1,"method":"GET"}"#,
            r#"{"time":1,"path":"/"}"#,
        ] {
            assert!(matches!(of(line), Err(Fault::Unreadable(_))), "{line}");
        }
        for line in [
            r#"{"time":1,"request":"-"}"#,
            r#"{"time":1,"request":""}"#,
            r#"{"time":1,"method":"-","path":"-"}"#,
        ] {
            assert!(of(line).is_err(), "{line}");
        }
    }
}
