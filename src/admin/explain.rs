//! The call that says what becomes of a request, and why, as things stand now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;

use super::answers::error_response;
use super::api::{Asked, Pending};
use super::state::AdminState;

/// A request that is to be explained.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Its method.
    pub method: String,
    /// Its path with the query, or a whole URL.
    pub path: String,
    /// Who connects; the loopback address where none is given.
    pub ip: Option<IpAddr>,
    /// Its fields by name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The common name of its client's certificate, taken for verified.
    #[serde(default)]
    pub client_cert: Option<String>,
    /// Whether it is to be a text.
    #[serde(skip)]
    pub for_eyes: bool,
}

/// What the query knows.
pub const PARAMETERS: &[&str] = &["format"];

/// `POST /api/v1/explain`.
pub fn explain(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let mut request: ExplainRequest = asked.json()?;
        request.for_eyes =
            asked.parameters.read("format", false, "human or json", |text| match text {
                "human" => Some(true),
                "json" => Some(false),
                _ => None,
            })?;
        match state.explain.get() {
            Some(explain) => explain(request).await,
            None => {
                let error = "tollgate is not serving yet";
                Err(error_response(StatusCode::SERVICE_UNAVAILABLE, error))
            }
        }
    })
}
