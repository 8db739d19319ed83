//! `/api/v1/…`: which call a request makes, whether it may, and what it is asked for.
//!
//! A call is a row of `CALLS`: its method, its path, the parameters that it knows, and a function of
//! the state and these. `openapi.json` describes the same rows, and a test holds the two together.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::access::{self, Caller, Denied};
use super::answers::{Answer, error_response};
use super::body::Events;
use super::calls::CALLS;
use super::operator::Operator;
use super::parameters::{Parameters, decode_segment, short};
use super::state::AdminState;

/// What every path of the API begins with.
pub const PREFIX: &str = "/api";
/// The content type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

const JSON: &str = "application/json";

/// What is answered.
#[derive(Debug)]
pub enum Reply {
    /// At once.
    Answer(Answer),
    /// For as long as somebody listens.
    Events(Events),
}

/// What a call comes to; an error is its answer, too.
pub type Answered = Result<Reply, Answer>;
/// A call under way.
pub type Pending = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// A call of the API.
#[derive(Debug)]
pub struct Call {
    /// Its method. GET stands for HEAD, too.
    pub method: Method,
    /// Its path; `{id}` is one segment, percent-encoded.
    pub path: &'static str,
    /// The parameters of its query.
    pub parameters: &'static [&'static str],
    /// What it does.
    pub act: Act,
}

/// What a call does.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Tells what the state holds.
    Tell(fn(&AdminState, &Asked) -> Result<Answer, Answer>),
    /// Asks others, changes something, or goes on telling.
    Do(fn(Arc<AdminState>, Asked) -> Pending),
}

/// What a call is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Its query.
    pub parameters: Parameters,
    /// What stands for `{id}`, decoded.
    pub id: String,
    /// Its body.
    body: Bytes,
    /// Who asks.
    pub operator: Operator,
}

/// A call that may be made, but for its body.
#[derive(Debug)]
pub struct Admitted {
    act: Act,
    is_json: bool,
    asked: Asked,
}

/// Whether a path is the API's.
pub fn is_api(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The call that a request makes.
///
/// # Errors
/// The answer to one that may not be made, or that there is not.
pub fn call(state: &AdminState, method: &Method, caller: Caller<'_>) -> Result<Admitted, Answer> {
    // Whoever may not call learns nothing else, not even which calls there are.
    access::check(state.token.as_ref(), &state.failures, caller, state.clock.now())
        .map_err(|denied| refused(state, caller, denied))?;
    let path = caller.uri.path();
    let (call, id) = find(method, path)?;
    let query = caller.uri.query().unwrap_or_default();
    let parameters = Parameters::parse(query, call.parameters)?;
    let operator = Operator::of(caller.fields, caller.peer)?;
    let is_json = is_json(caller.fields);
    let asked = Asked { parameters, id, body: Bytes::new(), operator };
    Ok(Admitted { act: call.act, is_json, asked })
}

/// Counts one who may not call, and says who guesses: once, however long it goes on.
fn refused(state: &AdminState, caller: Caller<'_>, denied: Denied) -> Answer {
    state.metrics.admin_refused(denied.reason());
    if let Denied::Throttled(wait) = denied
        && wait.is_first
    {
        tracing::warn!(
            from = %caller.peer.to_canonical(),
            "too many wrong tokens for the admin API; those of this address are not looked at now"
        );
    }
    denied.answer()
}

impl Admitted {
    /// Makes the call.
    pub async fn answer(self, state: Arc<AdminState>, body: &Bytes) -> Reply {
        let Admitted { act, is_json, mut asked } = self;
        if !body.is_empty() && !is_json {
            let error = "expected a body of Content-Type: application/json";
            return Reply::Answer(error_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        asked.body = body.clone();
        let answered = match act {
            Act::Tell(tell) => tell(&state, &asked).map(Reply::Answer),
            Act::Do(act) => act(state, asked).await,
        };
        answered.unwrap_or_else(Reply::Answer)
    }
}

impl Asked {
    /// The body; an empty one is `{}`.
    ///
    /// # Errors
    /// It is not JSON, or not of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        // A list of values in the order of its fields would do for a struct, too.
        if body.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
            return Err(bad_request("body: expected an object of JSON"));
        }
        serde_json::from_slice(body)
            .map_err(|error| bad_request(&format!("body: {}", short(&error.to_string()))))
    }
}

/// 400, and why.
pub fn bad_request(error: &str) -> Answer {
    error_response(StatusCode::BAD_REQUEST, error)
}

fn find(method: &Method, path: &str) -> Result<(&'static Call, String), Answer> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let mut allowed = String::new();
    for call in CALLS {
        let Some(id) = matched(call.path, path) else { continue };
        if call.method == *method {
            let wrong = || bad_request("path: not UTF-8 in percent-encoding");
            return Ok((call, decode_segment(id).ok_or_else(wrong)?));
        }
        let separator = if allowed.is_empty() { "" } else { ", " };
        let also = if call.method == Method::GET { ", HEAD" } else { "" };
        // A string takes everything.
        let _ = write!(allowed, "{separator}{}{also}", call.method);
    }
    match HeaderValue::try_from(&allowed) {
        Ok(methods) if !allowed.is_empty() => {
            let answer = error_response(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
            Err(answer.with_field(ALLOW, methods))
        }
        _ => Err(error_response(StatusCode::NOT_FOUND, "Not found")),
    }
}

/// Whether a path is of this form; what stands for `{id}`, empty where there is none.
fn matched<'p>(form: &str, path: &'p str) -> Option<&'p str> {
    let (mut id, mut segments) = ("", path.split('/'));
    for expected in form.split('/') {
        let found = segments.next()?;
        if expected == "{id}" && !found.is_empty() {
            id = found;
        } else if expected != found {
            return None;
        }
    }
    segments.next().is_none().then_some(id)
}

fn is_json(fields: &HeaderMap) -> bool {
    let field = fields.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let essence = field.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_form() {
        let form = "/api/v1/identities/{id}/override";
        assert_eq!(matched(form, "/api/v1/identities/ip:1.2.3.4/override"), Some("ip:1.2.3.4"));
        assert_eq!(matched(form, "/api/v1/identities/%2F/override"), Some("%2F"));
        for other in [
            "/api/v1/identities/override",
            "/api/v1/identities//override",
            "/api/v1/identities/a/override/",
            "/api/v1/identities/a/b/override",
            "/api/v1/identities/a",
            "",
        ] {
            assert_eq!(matched(form, other), None, "{other}");
        }
        assert_eq!(matched("/api/v1/slow", "/api/v1/slow"), Some(""));
    }

    #[test]
    fn no_two_calls_are_one() {
        for (index, call) in CALLS.iter().enumerate() {
            let same = |it: &&Call| it.method == call.method && it.path == call.path;
            assert_eq!(CALLS.iter().position(|it| same(&it)), Some(index), "{}", call.path);
        }
    }
}
