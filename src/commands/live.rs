//! What the admin API asks of a tollgate that serves: to explain a request, and to reload.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderName, StatusCode};
use serde_json::json;

use crate::admin::answers::{Answer, error_response, json, text};
use crate::admin::api::{Reply, bad_request};
use crate::admin::explain::ExplainRequest;
use crate::admin::parameters::short;
use crate::config::report::ConfigErrors;

use super::explain::request::described;
use super::explain::{Source, Tollgate, explained};
use super::reload::{Handle, ReloadError};
use super::wiring::Wired;

/// Has the API's questions answered from here on.
pub fn answer(wired: &Wired, reload: Handle) {
    let admin = &wired.admin;
    let (gate, counters) = (Arc::clone(&wired.gate), Arc::clone(&admin.counters));
    // Set once: this is called once.
    let _ = admin.explain.set(Box::new(move |request: ExplainRequest| {
        let (gate, counters) = (Arc::clone(&gate), Arc::clone(&counters));
        Box::pin(async move {
            let ExplainRequest { method, path, ip, headers, client_cert, for_eyes } = request;
            let lines = field_lines(&headers)?;
            let described = described(&method, &path, &lines).map_err(|it| wrong(&it))?;
            let described = described.shown(client_cert.as_deref());
            let active = gate.active.load_full();
            let source = Source::Live(&counters);
            let tollgate = Tollgate { gate: &gate, active: &active, source };
            let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let explanation = explained(&tollgate, &described, ip).await.map_err(|failure| {
                error_response(StatusCode::INTERNAL_SERVER_ERROR, &failure.to_string())
            })?;
            Ok(Reply::Answer(if for_eyes {
                text(explanation.to_text(false))
            } else {
                json(StatusCode::OK, &explanation.to_json())
            }))
        })
    }));
    let _ = admin.reload.set(Box::new(move || {
        let reload = reload.clone();
        Box::pin(async move { reload.reload().await.map_err(not_reloaded) })
    }));
}

/// Fields as lines. Within a line, a colon would end a name, and white space would be cut.
fn field_lines(fields: &BTreeMap<String, String>) -> Result<Vec<String>, Answer> {
    let line = |(name, value): (&String, &String)| {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(bad_request("headers: expected the names of fields"));
        }
        // Nothing of a value is repeated: it may be a token.
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            let error = format!("headers: a control character in the value of {}", short(name));
            return Err(bad_request(&error));
        }
        Ok(format!("{name}: {value}"))
    };
    fields.iter().map(line).collect()
}

/// The parts of a request have other names here than on the command line.
fn wrong(errors: &ConfigErrors) -> Answer {
    let text = errors.to_string();
    let (option, why) = text.split_once(':').unwrap_or(("", &text));
    let name = match option {
        "METHOD" => "method",
        "PATH" => "path",
        _ => "headers",
    };
    bad_request(&format!("{name}:{why}"))
}

fn not_reloaded(error: ReloadError) -> Answer {
    match error {
        ReloadError::NoFiles => {
            let error = "no file was given at the start, so there is none to reload";
            error_response(StatusCode::CONFLICT, error)
        }
        ReloadError::Busy => {
            let error = "other reloads are under way, try again";
            error_response(StatusCode::SERVICE_UNAVAILABLE, error)
        }
        ReloadError::Refused(errors) => {
            let error = "not reloaded, what ran before goes on";
            let body = json!({ "error": error, "errors": errors });
            json(StatusCode::UNPROCESSABLE_ENTITY, &body)
        }
    }
}
