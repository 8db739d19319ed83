//! Source lines as excerpts may show them: what may be a secret is blotted out.
//!
//! Works on text alone, so that a file that cannot even be parsed keeps its secrets. In doubt it
//! hides too much; columns hold.

use super::report::{lines, nearest};
use super::tree::Mark;

/// Keys whose value is a secret; one that is nearly so is taken for a slip of the pen.
const SECRET_KEYS: [&str; 5] =
    ["secret", "identity_hash_secret", "password", "passwd", "client_secret"];
/// A key that is near one of those by its letters alone: its value is the name of a file.
const FILE_KEY: &str = "client_cert";
/// What a private key in PEM begins and ends with (RFC 7468 §10), of whatever kind.
const PRIVATE_KEY: &str = "PRIVATE KEY-----";
/// Keys whose value is a URL that may hold a password.
const URL_KEYS: [&str; 3] = ["url", "urls", "postgres"];
/// A line without any of these has none of those keys.
const OPENING: [&str; 5] = ["secre", "passw", "url", "postgres", "SECRE"];

/// Whether the key's value is a secret, and not the name of a file that holds it.
pub fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let is_file = key.ends_with("_file");
    !is_file && key != FILE_KEY && (key.ends_with("secret") || nearest(&key, SECRET_KEYS).is_some())
}

/// The first variable of a value, if by its name it holds a secret: `${JWT_SECRET}`.
pub fn secret_variable(text: &str, mark: Mark) -> Option<&str> {
    let line = lines(text).nth(mark.line.checked_sub(1)?)?;
    let (at, _) = line.char_indices().nth(mark.column.checked_sub(1)?)?;
    let (_, reference) = line.get(at..)?.split_once("${")?;
    let name = reference.split(['}', ':']).next()?;
    let upper = name.to_ascii_uppercase();
    let is_secret = ["SECRET", "PASS", "TOKEN", "KEY", "CREDENTIAL"].iter();
    let is_place = ["FILE", "PATH", "DIR", "URL"].iter().any(|end| upper.ends_with(end));
    (!is_place && is_secret.into_iter().any(|part| upper.contains(part))).then_some(name)
}

/// A line of a file, from 1, with what may be a secret blotted out character by character.
pub fn blotted(text: &str, number: usize) -> Vec<char> {
    let line = lines(text).nth(number.saturating_sub(1)).unwrap_or_default();
    let mut shown: Vec<char> = line.chars().collect();
    if is_continued(text, number) || is_in_private_key(text, number) {
        hide(&mut shown, 0);
        return shown;
    }
    hide_user_info(&mut shown);
    hide_passwords(line, &mut shown);
    // A URL whose end, and perhaps whose `@`, is on another line.
    if let Some(open) = opened(line, None).filter(|open| open.quote.is_some()) {
        hide(&mut shown, line.get(..open.value).unwrap_or_default().chars().count());
    }
    // What follows on the same line goes as well: where a secret ends, only a parser would know.
    if let Some(key) = keys(line).find(|key| is_secret(key.name)) {
        let value = line.get(key.end..).unwrap_or_default();
        let start = key.end + reference(value).unwrap_or_default();
        hide(&mut shown, line.get(..start).unwrap_or_default().chars().count());
    }
    shown
}

/// Where a reference to the environment, with which a value begins and which is no secret, ends.
fn reference(value: &str) -> Option<usize> {
    let text = value.trim_start().trim_start_matches(['"', '\'']);
    let name = text.strip_prefix("${")?.split_once('}')?.0;
    let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    is_name.then_some(value.len() - text.len() + "${}".len() + name.len())
}

/// A value as messages may repeat it: its user and password aside.
pub fn without_password(text: &str) -> String {
    let mut shown: Vec<char> = text.chars().collect();
    hide_user_info(&mut shown);
    hide_passwords(text, &mut shown);
    if is_private_key(text) {
        hide(&mut shown, 0);
    }
    shown.into_iter().collect()
}

fn hide(shown: &mut [char], from: usize) {
    shown.iter_mut().skip(from).filter(|c| !c.is_whitespace()).for_each(|c| *c = '*');
}

/// User and password of a URL, and of what should have been one.
fn hide_user_info(shown: &mut [char]) {
    let is_end = |c: &char| c.is_whitespace() || "\"'".contains(*c);
    for word in shown.split_mut(is_end) {
        let text: String = word.iter().collect();
        let is_identity = text.starts_with("user:") || text.starts_with("key:");
        if let Some(at) = word.iter().rposition(|c| *c == '@')
            && !is_identity
        {
            let scheme = text.find("://").and_then(|byte| text.get(..byte + 3));
            let start = scheme.map_or(0, |scheme| scheme.chars().count());
            word.iter_mut().take(at).skip(start).for_each(|c| *c = '*');
        }
    }
}

/// `password=…`, in a query or among a database's parameters.
fn hide_passwords(line: &str, shown: &mut [char]) {
    let lower = line.to_ascii_lowercase();
    for (at, found) in lower.match_indices("password") {
        let after = lower.get(at + found.len()..).unwrap_or_default();
        let value = after.trim_start();
        if value.starts_with('=') {
            let start = lower.len() - value.len() + 1;
            hide(shown, lower.get(..start).unwrap_or_default().chars().count());
        }
    }
}

/// A key of a mapping, and where its colon ends.
struct Key<'a> {
    name: &'a str,
    end: usize,
}

/// What looks like a key in a line: a word, perhaps in quotes, before a colon.
fn keys(line: &str) -> impl Iterator<Item = Key<'_>> {
    line.match_indices(':').filter_map(|(colon, _)| {
        let before = line.get(..colon)?.trim_end().trim_end_matches(['"', '\'']);
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let start = before.rfind(|c| !is_word(c)).map_or(0, |at| {
            at + before.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
        });
        let name = before.get(start..).filter(|name| !name.is_empty())?;
        Some(Key { name, end: colon + 1 })
    })
}

/// A value that goes on below the line of its key.
struct Open {
    /// Where the key's line begins; deeper lines are the value's.
    indent: usize,
    /// Where it begins, in its key's line.
    value: usize,
    /// The quote that ends it.
    quote: Option<char>,
    /// Nothing of it has been seen: wherever the next line begins, it is the value's.
    is_awaited: bool,
    /// Whether it ought to be a URL: a mapping in its place has keys of its own to be looked at.
    is_url: bool,
}

/// Whether the line is part of a secret whose key stands above it.
fn is_continued(text: &str, number: usize) -> bool {
    let before = lines(text).take(number.saturating_sub(1));
    let open = before.fold(None, |open, line| opened(line, open));
    open.is_some_and(|open| {
        open.holds(lines(text).nth(number.saturating_sub(1)).unwrap_or_default())
    })
}

/// Whether a private key in PEM stands in it, which belongs into a file of its own.
pub fn is_private_key(text: &str) -> bool {
    text.contains(PRIVATE_KEY)
}

/// Whether the line is part of a private key in PEM.
fn is_in_private_key(text: &str, number: usize) -> bool {
    let before: Vec<&str> = lines(text).take(number).collect();
    let Some(line) = before.last() else { return false };
    // The last line above that begins or ends a key says in which of the two this one stands.
    let mut above = before.iter().rev().skip(1);
    let marked = above.find(|it| is_private_key(it) || it.contains("-----END"));
    is_private_key(line) || marked.is_some_and(|it| !it.contains("-----END"))
}

impl Open {
    fn holds(&self, line: &str) -> bool {
        if self.is_url && self.quote.is_none() && begins_entry(line) {
            return false;
        }
        self.quote.is_some() || self.is_awaited || indent(line) > self.indent
    }
}

/// Whether the line begins with a key and its colon: `url: …`, not `redis://…`.
fn begins_entry(line: &str) -> bool {
    let is_blank =
        |end: usize| line.get(end..).is_none_or(|it| it.trim_start() != it || it.is_empty());
    keys(line).next().is_some_and(|key| {
        line.get(..key.end).is_some_and(|head| head.trim_start().len() <= key.name.len() + 3)
            && is_blank(key.end)
    })
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What is open behind a line.
fn opened(line: &str, open: Option<Open>) -> Option<Open> {
    if let Some(open) = open {
        if line.trim().is_empty() {
            return Some(open);
        }
        if open.holds(line) {
            let is_closed = open.quote.is_some_and(|quote| line.contains(quote));
            return (!is_closed).then_some(Open { is_awaited: false, ..open });
        }
    }
    // Every line of a file comes by here, once for every excerpt.
    if !OPENING.iter().any(|part| line.contains(part)) || line.trim_start().starts_with('#') {
        return None;
    }
    let is_url = |key: &Key<'_>| URL_KEYS.contains(&key.name.to_ascii_lowercase().as_str());
    let key = keys(line).filter(|key| is_secret(key.name) || is_url(key)).last()?;
    let is_url = is_url(&key);
    let value = line.get(key.end..).unwrap_or_default().trim();
    let value = if value.starts_with('#') { "" } else { value };
    let indent = indent(line);
    match value.chars().next() {
        None | Some('|' | '>' | '&' | '!') => {
            let is_awaited = value.is_empty();
            Some(Open { indent, value: key.end, quote: None, is_awaited, is_url })
        }
        Some(quote @ ('"' | '\'')) => {
            let is_closed = value.get(1..).is_some_and(|rest| rest.contains(quote));
            (!is_closed).then_some(Open {
                indent,
                value: key.end,
                quote: Some(quote),
                is_awaited: false,
                is_url,
            })
        }
        // A list or a mapping in its place, or plain text that may go on.
        Some('[' | '{') => None,
        Some(_) if is_secret(key.name) && !value.contains([',', '}']) => {
            Some(Open { indent, value: key.end, quote: None, is_awaited: false, is_url })
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, number: usize) -> String {
        blotted(text, number).into_iter().collect()
    }

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        for text in [
            "secret: hunter2",
            "'secret' : hunter2",
            "\"secret\": hunter2",
            "- jwt: { header: A, secret: hunter2, leeway: 1 }",
            "identity_hash_secret: \"hunter2\"",
            "secert: hunter2",
            "SECRET: hunter2",
            "password: hunter2",
            "url: redis://me:hunter2@host",
            "{ \"url\": \"redis://me:hunter2@host\", timeout: 1s }",
            "postgres: postgres://me:hunter2@host/db",
            "postgres: \"host=a password=hunter2\"",
            "postgres: postgres://host/db?user=a&password = hunter2",
            "url: me:hunter2@host",
            "url: 'redis://me:hu?nter@host'",
        ] {
            assert!(!shown(text, 1).contains("hunter"), "{text}: {}", shown(text, 1));
            assert!(!shown(text, 1).contains("nter@"), "{text}");
        }
        assert_eq!(shown("secret: ${NAME} # hunter2", 1), "secret: ${NAME} * *******");
        assert_eq!(shown("secret: \"${NAME}hunter2\"", 1), "secret: \"${NAME}********");
        assert!(!shown("secret: ${NAME:-hunter2}", 1).contains("hunter"));
        assert_eq!(shown("secret_file: /run/secret", 1), "secret_file: /run/secret");
        assert_eq!(shown("identity_hash_secret_file: a", 1), "identity_hash_secret_file: a");
        assert_eq!(shown("server: { per_second: 5 }", 1), "server: { per_second: 5 }");
        assert!(shown("  user:me@example.com: gold", 1).contains("me@example.com"));
    }

    #[test]
    fn a_private_key_is_hidden_whatever_its_key() {
        let pem =
            "key: |\n  -----BEGIN PRIVATE KEY-----\n hunter2\n  -----END PRIVATE KEY-----\nnext: 1";
        for number in 2..=4 {
            assert!(shown(pem, number).chars().all(|it| "* ".contains(it)), "{number}");
        }
        assert_eq!((&*shown(pem, 1), &*shown(pem, 5)), ("key: |", "next: 1"));
        let one_line = "key: \"-----BEGIN EC PRIVATE KEY-----\\nhunter2\\n-----END EC PRIVATE KEY-----\"\nnext: 1";
        assert!(!shown(one_line, 1).contains("hunter") && shown(one_line, 2) == "next: 1");
        assert_eq!(shown("cert: /etc/tls/private.key", 1), "cert: /etc/tls/private.key");
    }

    #[test]
    fn names_of_files_are_shown() {
        let text = "tls: { client_cert: tls.crt, client_key: tls.key }";
        assert_eq!(shown(text, 1), text);
    }

    #[test]
    fn a_mapping_in_place_of_a_url_is_looked_at_key_by_key() {
        let text = "postgres:\n  url: redis://me:hunter2@host\n  query: select a\n  pool: 4";
        assert_eq!(shown(text, 2), "  url: redis://**********@host");
        assert_eq!(shown(text, 3), "  query: select a");
        let text = "postgres:\n  postgres://me:hunter2@host\nnext: 1";
        assert!(!shown(text, 2).contains("hunter"));
        let text = "postgres:\n  url:\n    redis://me:hunter2@host\n  pool: 4";
        assert!(!shown(text, 3).contains("hunter") && shown(text, 4).contains("pool"));
    }

    #[test]
    fn secrets_are_hidden_on_the_lines_below_their_key() {
        for (text, number) in [
            ("secret: |\n  hunter2\nnext: 1", 2),
            ("secret: >-\n  a\n\n  hunter2\nnext: 1", 4),
            ("secret:\n  hunter2\nnext: 1", 2),
            ("secret:\n  - hunter2\nnext: 1", 2),
            ("secret: # of the tokens\n  hunter2\nnext: 1", 2),
            ("secret: \"a\n  hunter2\"\nnext: 1", 2),
            ("secret: a\n  hunter2\nnext: 1", 2),
            ("{ secret:\nhunter2, next: 1 }", 2),
            ("url: \"redis://me:a\\\n  hunter2@host\"\nnext: 1", 2),
            ("url: |-\r\n  hunter2\r\nnext: 1", 2),
        ] {
            assert!(!shown(text, number).contains("hunter"), "{text}");
            let last = lines(text).last().unwrap_or_default();
            if last.starts_with("next") {
                assert_eq!(shown(text, lines(text).count()), "next: 1", "{text}");
            }
        }
    }
}
