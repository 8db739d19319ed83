//! Query strings, without the credentials in them.

use crate::policy::path::decode;

/// What stands in place of a credential.
const BLOT: &[u8] = b"***";

/// Hands over the query piece by piece, with a blot in place of the value of every parameter whose
/// name is one of `names`.
///
/// Names are compared as the most forgiving reader would: percent-decoded twice, `+` a space,
/// letters in any case, at both dividers (`&` and `;`): what a backend may take for a token is none
/// of the log's.
pub fn pieces<'q>(query: &'q str, names: &[Box<str>], mut each: impl FnMut(&'q [u8])) {
    if names.is_empty() {
        return each(query.as_bytes());
    }
    let mut rest = query;
    while !rest.is_empty() {
        let end = rest.find(['&', ';']).map_or(rest.len(), |at| at.saturating_add(1));
        let (pair, next) = rest.split_at_checked(end).unwrap_or((rest, ""));
        rest = next;
        let (body, divider) = match pair.strip_suffix(['&', ';']) {
            Some(body) => pair.split_at_checked(body.len()).unwrap_or((pair, "")),
            None => (pair, ""),
        };
        match body.find('=').and_then(|at| body.split_at_checked(at.saturating_add(1))) {
            Some((name, value)) if !value.is_empty() && is_secret(name, names) => {
                each(name.as_bytes());
                each(BLOT);
            }
            _ => each(body.as_bytes()),
        }
        each(divider.as_bytes());
    }
}

/// `name` with its `=`.
fn is_secret(name: &str, names: &[Box<str>]) -> bool {
    let name = name.strip_suffix('=').unwrap_or(name).as_bytes();
    let decoded = decoded(&decoded(name));
    let trimmed = decoded.trim_ascii();
    names.iter().any(|secret| trimmed.eq_ignore_ascii_case(secret.as_bytes()))
}

/// Once, with `+` for a space.
fn decoded(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes.iter().map(|it| if *it == b'+' { b' ' } else { *it }).collect();
    decode(&spaced).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_blotted_out_however_its_name_is_written() {
        let names = ["token".into(), "access_token".into()];
        for (query, expected) in [
            ("a=1&token=eyJ.a.b&c=2", "a=1&token=***&c=2"),
            ("token=x;token=y", "token=***;token=***"),
            ("%74oke%6E=x", "%74oke%6E=***"),
            ("%2574oken=x&TOKEN=y&+token+=z", "%2574oken=***&TOKEN=***&+token+=***"),
            ("access_token=a=b=c", "access_token=***"),
            ("tokens=x&xtoken=y&token", "tokens=x&xtoken=y&token"),
            ("token=", "token="),
            ("&&=;%&%7", "&&=;%&%7"),
            ("", ""),
        ] {
            let mut out = Vec::new();
            pieces(query, &names, |piece| out.extend_from_slice(piece));
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
