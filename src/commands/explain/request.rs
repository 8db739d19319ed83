//! The request that a command line describes, as the data port would read it.
//!
//! Nothing of a field's value is ever repeated in a message: it may be a token or a key.

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use crate::config::report::{ConfigError, ConfigErrors, Problem};
use crate::config::url::quoted;
use crate::policy::explain::rules::shown;
use crate::policy::facts::ClientCertificate;
use crate::proxy::headers::{Present, check_request};
use crate::proxy::reply::Refusal;

/// Longest target that is read (`http` has a place for no more).
const TARGET_BYTES_MAX: usize = 65_534;
/// The host of a request that names none, as a `curl` on the same machine would.
const HOST_OF_NONE: &str = "localhost";

/// A request without its body.
pub struct Described {
    /// Its head, `Host` settled.
    pub request: Request<()>,
    /// The path as it came, fit to be printed; without the query.
    pub shown: String,
    /// What it is refused for before anybody asks who sends it: status and reason.
    pub refusal: Option<(u16, String)>,
    /// What looks like a slip.
    pub warnings: Vec<String>,
    /// What its client showed.
    pub certificate: Option<ClientCertificate>,
}

impl Described {
    /// The same, from a client whose verified certificate has this common name.
    pub fn shown(mut self, common_name: Option<&str>) -> Self {
        self.certificate = common_name.map(ClientCertificate::named);
        self
    }
}

/// Reads method, target and fields.
///
/// # Errors
/// What is none of a request's at all, by option.
pub fn described(method: &str, target: &str, lines: &[String]) -> Result<Described, ConfigErrors> {
    let method_read = Method::from_bytes(method.as_bytes()).map_err(|_| {
        let expected = "a method of HTTP, such as GET";
        wrong("METHOD", Problem::new(quoted(method)).expected(expected))
    })?;
    let (target, host) = origin_form(target)?;
    let mut headers = fields(lines)?;
    if !headers.contains_key(HOST) {
        let host = host.as_deref().unwrap_or(HOST_OF_NONE);
        let value = HeaderValue::from_str(host).map_err(|_| {
            wrong("PATH", Problem::new("another host").expected("http://HOST[:PORT]/PATH"))
        })?;
        headers.insert(HOST, value);
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut refusal = None;
    let uri = target.parse::<Uri>().unwrap_or_else(|error| {
        refusal = Some(match target.len() > TARGET_BYTES_MAX {
            true => (414, "the target is too long".to_owned()),
            false => (400, format!("the target cannot be read: {error}")),
        });
        Uri::default()
    });
    let mut request = Request::new(());
    *request.method_mut() = method_read;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    let present = Present::in_fields(request.headers());
    if refusal.is_none()
        && let Err(refused) = check_request(&mut request, present)
    {
        refusal = Some((refused.status().as_u16(), reason(refused)));
    }
    let warnings = slips(method);
    Ok(Described { shown: shown(path.as_bytes()), request, refusal, warnings, certificate: None })
}

/// A path with its query, and the host of a whole URL.
fn origin_form(target: &str) -> Result<(String, Option<String>), ConfigErrors> {
    if target.starts_with('/') || target == "*" {
        return Ok((target.to_owned(), None));
    }
    // Nothing of it is repeated: it may hold a password or a token.
    let fault = || {
        let expected = "a path that begins with /, or a whole URL";
        wrong("PATH", Problem::new("another form").expected(expected))
    };
    let (scheme, rest) = target.split_once("://").ok_or_else(fault)?;
    if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(fault());
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() {
        return Err(fault());
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((format!("{slash}{path}"), Some(host.to_owned())))
}

fn fields(lines: &[String]) -> Result<HeaderMap, ConfigErrors> {
    let mut headers = HeaderMap::new();
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        let fault =
            |found: String| wrong("--header", Problem::new(found).expected("'NAME: VALUE'"));
        let (name, value) =
            line.split_once(':').ok_or_else(|| fault(format!("no colon in header {number}")))?;
        let named = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| fault(format!("another name in header {number}")))?;
        let value = HeaderValue::from_bytes(value.trim_ascii().as_bytes())
            .map_err(|_| fault(format!("a control character in the value of {named}")))?;
        headers.append(named, value);
    }
    Ok(headers)
}

/// A wrong argument, by its name.
pub fn wrong(option: &str, problem: Problem) -> ConfigErrors {
    ConfigErrors(vec![ConfigError::of_whole(Some(option), &[], &problem)])
}

fn reason(refusal: Refusal) -> String {
    match refusal {
        Refusal::MethodNotAllowed => "a reverse proxy passes on neither CONNECT nor TRACE",
        _ => "Host, Transfer-Encoding or the target is malformed or ambiguous",
    }
    .to_owned()
}

/// Methods are compared letter by letter (RFC 9110 §9.1).
fn slips(method: &str) -> Vec<String> {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    let meant = KNOWN.iter().find(|it| it.eq_ignore_ascii_case(method) && **it != method);
    let warning = |meant: &&str| {
        format!("{method} is another method than {meant}: methods are case-sensitive")
    };
    meant.map(warning).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_and_target(target: &str, lines: &[&str]) -> String {
        let lines: Vec<String> = lines.iter().map(|it| (*it).to_owned()).collect();
        match described("GET", target, &lines) {
            Ok(it) => {
                let host = it.request.headers().get(HOST).unwrap().to_str().unwrap().to_owned();
                format!("{host} {} {:?}", it.request.uri(), it.refusal.map(|it| it.0))
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let of = |target: &str| host_and_target(target, &[]);
        assert_eq!(of("/a?b=c"), "localhost /a?b=c None");
        assert_eq!(of("//fo/x"), "localhost //fo/x None");
        assert_eq!(of("https://u:p@api.test:8443/a?b#c"), "api.test:8443 /a?b None");
        assert_eq!(of("http://api.test"), "api.test / None");
        assert_eq!(of("http://api.test?x=1"), "api.test /?x=1 None");
        assert_eq!(of("http://[::1]:80/a"), "[::1]:80 /a None");
        assert_eq!(of("*"), "localhost * Some(400)");
        assert_eq!(of("/a b"), "localhost / Some(400)");
        assert_eq!(of(&format!("/{}", "a".repeat(70_000))), "localhost / Some(414)");
        assert_eq!(host_and_target("http://a/b", &["Host: c"]), "c /b None");
        assert_eq!(host_and_target("/b", &["Host: c", "host: d"]), "c /b Some(400)");
        for neither in ["a", "", "ftp://a/b", "http:///b", "a.test/b"] {
            let said = of(neither);
            assert_eq!(
                said,
                "PATH: another form, expected a path that begins with /, or a whole URL"
            );
        }
    }

    #[test]
    fn no_message_repeats_a_value() {
        for line in ["Authorization hunter2", "a b: hunter2", "X-Key: hunter2\u{1}"] {
            let said = host_and_target("/", &[line]);
            assert!(said.starts_with("--header: ") && !said.contains("hunter2"), "{said}");
        }
    }
}
