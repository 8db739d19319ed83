//! `tollgate health`: what a container's health check runs.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use super::admin_client::{Answered, Question};
use super::{Format, HealthArgs, print};

/// Prints `/health` of a running tollgate.
///
/// # Errors
/// It cannot be reached, does not answer in time, or says that it does not serve.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    let path = match args.format {
        Format::Human => "/health?verbose=1",
        Format::Json => "/health",
    };
    let Answered { status, body } = Question::get(path).ask("--admin", &args.admin)?;
    let summary: Option<Value> = serde_json::from_str(&body).ok();
    match (&summary, args.format) {
        (Some(summary), Format::Human) => print(in_short(summary)),
        _ => print(body.trim_end()),
    }
    ensure!(status == 200, "it does not serve (status {status})");
    // Whatever else listens there may be well, and is not asked about.
    let is_ours = summary.is_some_and(|it| it.get("status").is_some_and(Value::is_string));
    ensure!(is_ours, "{} is no admin port: no status in its answer", args.admin);
    Ok(())
}

/// A few lines for eyes.
fn in_short(summary: &Value) -> String {
    let at = |pointer: &str| summary.pointer(pointer).map_or_else(|| "?".to_owned(), word);
    let mut text = at("/status");
    let reasons = summary.get("reasons").and_then(Value::as_array);
    let reasons: Vec<String> = reasons.into_iter().flatten().map(word).collect();
    if !reasons.is_empty() {
        let _ = write!(text, ": {}", reasons.join(", "));
    }
    let up = summary.get("uptime_seconds").and_then(Value::as_u64);
    let _ = write!(
        text,
        "\ntollgate {} on {}, up {}; limits {} since {}",
        at("/version"),
        at("/instance"),
        humantime::format_duration(Duration::from_secs(up.unwrap_or(0))),
        at("/rate_limiter/mode"),
        at("/rate_limiter/since"),
    );
    let dependencies = summary.get("dependencies").and_then(Value::as_object);
    for (name, status) in
        dependencies.into_iter().flatten().filter(|(_, it)| *it != "not_configured")
    {
        let _ = write!(text, "\n  {name}: {}", word(status));
        if let Some(breaker) = summary.get("circuit_breakers").and_then(|it| it.get(name)) {
            let _ = write!(text, ", circuit {}", word(breaker));
        }
    }
    text
}

/// A value in words; what a terminal would obey is left out.
fn word(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().filter(|it| !it.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_summary_in_short() {
        let summary = json!({
            "status": "degraded", "version": "0.1.0", "instance": "a\u{1b}[2J", "uptime_seconds": 3723,
            "dependencies": { "redis": "unhealthy", "upstream": "healthy" },
            "circuit_breakers": { "redis": "open" },
            "rate_limiter": { "mode": "local", "since": "2026-01-01T00:00:00Z" },
            "reasons": ["redis unhealthy", "redis circuit open"],
        });
        assert_eq!(
            in_short(&summary),
            "degraded: redis unhealthy, redis circuit open\n\
             tollgate 0.1.0 on a[2J, up 1h 2m 3s; limits local since 2026-01-01T00:00:00Z\n  \
             redis: unhealthy, circuit open\n  \
             upstream: healthy"
        );
        assert!(in_short(&json!([1])).starts_with("?\n"));
    }
}
