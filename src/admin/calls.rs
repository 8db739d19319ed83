//! Every call of the API.

use http::Method;

use super::answers::openapi_response;
use super::api::{Act, Call};
use super::{explain, identities, policy, slow, stream, top, usage};

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
        path: "/api/v1/stream",
        parameters: &[],
        act: Act::Do(|state, _| Box::pin(async move { stream::listen(&state) })),
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
    Call {
        method: Method::GET,
        path: "/api/v1/identities/{id}",
        parameters: &[],
        act: Act::Do(identities::inspect),
    },
    Call {
        method: Method::DELETE,
        path: "/api/v1/identities/{id}",
        parameters: &[],
        act: Act::Do(identities::reset),
    },
    Call {
        method: Method::PUT,
        path: "/api/v1/identities/{id}/override",
        parameters: &[],
        act: Act::Do(identities::set_override),
    },
    Call {
        method: Method::DELETE,
        path: "/api/v1/identities/{id}/override",
        parameters: &[],
        act: Act::Do(identities::remove_override),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/overrides",
        parameters: &[],
        act: Act::Tell(|state, _| Ok(identities::list(state, false))),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/deny",
        parameters: &[],
        act: Act::Tell(|state, _| Ok(identities::list(state, true))),
    },
    Call {
        method: Method::PUT,
        path: "/api/v1/deny/{id}",
        parameters: &[],
        act: Act::Do(identities::deny),
    },
    Call {
        method: Method::DELETE,
        path: "/api/v1/deny/{id}",
        parameters: &[],
        act: Act::Do(identities::allow),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/changes",
        parameters: &[],
        act: Act::Tell(|state, _| Ok(identities::changes(state))),
    },
    Call {
        method: Method::POST,
        path: "/api/v1/explain",
        parameters: explain::PARAMETERS,
        act: Act::Do(explain::explain),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/policy",
        parameters: &[],
        act: Act::Tell(|state, _| Ok(policy::policy(state))),
    },
    Call {
        method: Method::POST,
        path: "/api/v1/reload",
        parameters: &[],
        act: Act::Do(policy::reload),
    },
    Call {
        method: Method::GET,
        path: "/api/v1/openapi.json",
        parameters: &[],
        act: Act::Tell(|_, _| Ok(openapi_response())),
    },
];
