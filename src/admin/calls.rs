//! Every call of the API.

use http::Method;

use super::api::{Act, Call};
use super::{slow, top, usage};

/// All of them, as `openapi.json` describes them.
pub const CALLS: &[Call] = &[
    Call {
        method: Method::GET,
        path: "/api/v1/slow",
        parameters: &[],
        act: Act::Tell(|state, _| Ok(slow::slow_response(state))),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/top",
        parameters: top::PARAMETERS,
        act: Act::Tell(|state, asked| Ok(top::top(state, &asked.parameters)?)),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/usage",
        parameters: usage::PARAMETERS,
        act: Act::Do(|state, asked| Box::pin(usage::records(state, asked))),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/usage/totals",
        parameters: &[],
        act: Act::Do(|state, _| Box::pin(usage::totals(state))),
    },
];
