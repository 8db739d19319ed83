//! `/api/v1/…`: which call a request makes, whether it may, and what its parameters are.
//!
//! A call is a row of `CALLS`: its path, the parameters that it knows, and a plain function of
//! the state and these.

use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode};

use super::access::{self, Caller};
use super::answers::{Answer, error_response};
use super::parameters::{BadParameter, Parameters};
use super::slow;
use super::state::AdminState;
use super::top;

/// What every path of the API begins with.
pub const PREFIX: &str = "/api";

/// A call of the API; all of them read.
struct Call {
    path: &'static str,
    parameters: &'static [&'static str],
    answer: fn(&AdminState, &Parameters) -> Result<Answer, BadParameter>,
}

const CALLS: &[Call] = &[
    Call {
        path: "/api/v1/slow",
        parameters: &[],
        answer: |state, _| Ok(slow::slow_response(state)),
    },
    Call { path: "/api/v1/top", parameters: top::PARAMETERS, answer: top::top },
];

/// Whether a path is the API's.
pub fn is_api(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request for a path of the API.
pub fn respond(state: &AdminState, method: &Method, caller: Caller<'_>) -> Answer {
    // Whoever may not call learns nothing else, not even which calls there are.
    if let Err(denied) = access::check(state.token.as_ref(), caller) {
        return denied.answer();
    }
    let Some(call) = CALLS.iter().find(|call| call.path == caller.uri.path()) else {
        return error_response(StatusCode::NOT_FOUND, "Not found");
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let answer = error_response(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
        return answer.with_field(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    let query = caller.uri.query().unwrap_or_default();
    let answer =
        Parameters::parse(query, call.parameters).and_then(|given| (call.answer)(state, &given));
    answer.unwrap_or_else(|wrong| error_response(StatusCode::BAD_REQUEST, &wrong.to_string()))
}
