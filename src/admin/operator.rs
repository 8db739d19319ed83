//! Who asks for a change, as far as that is known: everybody bears the same token, so that a name is
//! what its bearer says, and the address is what the socket says.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{HeaderMap, HeaderName};

use super::answers::Answer;
use super::api::bad_request;

/// The field in which callers may name themselves.
const OPERATOR: HeaderName = HeaderName::from_static("x-tollgate-operator");
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 64;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// What they say that they are called.
    pub name: Option<Box<str>>,
    /// The other end of the socket.
    pub address: IpAddr,
}

impl Operator {
    /// Whose request has these fields.
    ///
    /// # Errors
    /// 400: the name is none that can be shown.
    pub fn of(fields: &HeaderMap, address: IpAddr) -> Result<Self, Answer> {
        let address = address.to_canonical();
        let Some(field) = fields.get(OPERATOR) else { return Ok(Operator { name: None, address }) };
        let name = std::str::from_utf8(field.as_bytes()).unwrap_or_default().trim();
        let is_name = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
        if !is_name || name.chars().any(char::is_control) {
            return Err(bad_request(&format!(
                "{OPERATOR}: expected a name of 1 to {NAME_CHARS_MAX} characters"
            )));
        }
        Ok(Operator { name: Some(name.into()), address })
    }
}

impl Default for Operator {
    fn default() -> Self {
        Operator { name: None, address: Ipv4Addr::LOCALHOST.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn name(field: &[u8]) -> Option<String> {
        let mut fields = HeaderMap::new();
        fields.insert(OPERATOR, HeaderValue::from_bytes(field).unwrap());
        let operator = Operator::of(&fields, Ipv4Addr::LOCALHOST.into()).ok()?;
        operator.name.map(String::from)
    }

    #[test]
    fn a_name_can_be_shown() {
        assert_eq!(name(b" Alice "), Some("Alice".to_owned()));
        assert_eq!(name("Zoë".as_bytes()), Some("Zoë".to_owned()));
        for wrong in [&b""[..], b" ", b"\xff", &[b'a'; 65], "a\u{85}b".as_bytes()] {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
        assert_eq!(
            Operator::of(&HeaderMap::new(), Ipv4Addr::LOCALHOST.into()),
            Ok(Operator::default())
        );
    }
}
