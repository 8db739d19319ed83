//! The calls for the policy: what is in force, and to read the files anew.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use crate::clock::monotonic;
use crate::policy::describe::describe;

use super::answers::{Answer, error_response, json};
use super::api::{Asked, Pending, Reply};
use super::health::rfc3339;
use super::identities::reloaded;
use super::state::AdminState;

/// `GET /api/v1/policy`.
pub fn policy(state: &AdminState) -> Answer {
    let mut policy = describe(&(state.policy)());
    let in_force = state.in_force.read().clone();
    let age = monotonic().saturating_duration_since(in_force.since);
    if let Some(object) = policy.as_object_mut() {
        object.insert("hash".to_owned(), json!(in_force.hash));
        object.insert("loaded_at".to_owned(), json!(rfc3339(in_force.at)));
        object.insert("age_seconds".to_owned(), json!(age.as_secs()));
        object.insert("last_reload".to_owned(), json!(last_reload(state)));
    }
    json(StatusCode::OK, &policy)
}

/// What the last reload came to.
#[derive(Serialize)]
pub struct LastReload {
    ok: bool,
    at: Option<String>,
    error: Option<Box<str>>,
}

/// The same, as it stands.
pub fn last_reload(state: &AdminState) -> LastReload {
    let last = state.reloads.last();
    LastReload { ok: last.error.is_none(), at: last.at.map(rfc3339), error: last.error }
}

/// `POST /api/v1/reload`.
pub fn reload(state: Arc<AdminState>, asked: Asked) -> Pending {
    Box::pin(async move {
        let Some(reload) = state.reload.get() else {
            let error = "tollgate is not serving yet";
            return Err(error_response(StatusCode::SERVICE_UNAVAILABLE, error));
        };
        reload().await?;
        let hash = state.in_force.read().hash.clone();
        reloaded(&state, &asked, &hash).await;
        let answer = json!({ "reloaded": true, "hash": hash });
        Ok(Reply::Answer(json(StatusCode::OK, &answer)))
    })
}
