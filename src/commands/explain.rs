//! `tollgate explain`: who a request is, what it meets, and why; by the modules that `run` has.
//!
//! Serves nothing and asks no running tollgate: the limits are those of a caller who has sent
//! nothing yet.

mod identity;
pub mod request;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use http::header::HOST;
use http::{HeaderMap, HeaderValue};
use serde_json::json;

use crate::config::compile::Settings;
use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Overrides, load};
use crate::identity::identifier::Invalid;
use crate::limiter::decision::Decision;
use crate::policy::caller::Caller;
use crate::policy::compiled::Policy;
use crate::policy::explain::rules::{effects, mode, rule, shown};
use crate::policy::explain::{
    Asked, Database, Explanation, Limit, Outcome, Step, address, limits, tier, tier_name,
};
use crate::policy::facts::RequestFacts;
use crate::policy::plan::{Disposition, Plan};
use crate::proxy::caller;
use crate::proxy::gate::{Active, Gate};
use crate::proxy::headers::{Numbers, Present, add_limit};
use crate::store::counters::Counters;
use crate::subscriptions::Bought;

use self::request::Described;
use super::admin_client::{self, Question};
use super::logging::Recorders;
use super::wiring::Wired;
use super::{ExplainArgs, Failure, Format, print, subscriptions};

/// Says what becomes of a request, and why.
///
/// # Errors
/// Wrong usage, or an error in a file. Whatever becomes of the request is none.
pub fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let described = request::described(&args.method, &args.path, &args.header)?
        .shown(args.client_cert.as_deref());
    if let Some(live) = &args.live {
        return ask(args, &described, live).map_err(Failure::Running);
    }
    let loaded = load(&LoadRequest {
        config: args.files.config.as_deref(),
        tiers: args.files.tiers.as_deref(),
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|name| std::env::var(name).ok(),
    })?;
    let settings = loaded.settings.clone();
    let gate = Wired::new(loaded, 1, None, Recorders::default(), None)?.gate;
    let active = gate.active.load_full();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    let tollgate = Tollgate { gate: &gate, active: &active, source: Source::Idle(&settings) };
    let explanation = runtime.block_on(explained(&tollgate, &described, args.ip));
    runtime.shutdown_background();
    let explanation = explanation?;
    match args.format {
        Format::Human => print(explanation.to_text(has_colours())),
        Format::Json => print(format_args!("{:#}", explanation.to_json())),
    }
    Ok(())
}

/// Asks a tollgate that serves.
fn ask(args: &ExplainArgs, described: &Described, live: &str) -> anyhow::Result<()> {
    let mut headers: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, value) in described.request.headers() {
        let value = value.to_str().with_context(|| format!("{name} is not ASCII"))?;
        let is_first = headers.insert(name.as_str(), value).is_none();
        ensure!(is_first, "--header: {name} is given twice, which cannot be asked of --live");
    }
    let (path, target) = match args.format {
        Format::Human => ("/api/v1/explain?format=human", &args.path),
        Format::Json => ("/api/v1/explain", &args.path),
    };
    let body = json!({
        "method": args.method, "path": target, "ip": args.ip, "headers": headers,
        "client_cert": args.client_cert,
    });
    let token = args.token_file.as_deref().map(admin_client::read_token).transpose()?;
    let question =
        Question { method: "POST", token, body: Some(body.to_string()), ..Question::get(path) };
    let answer = question.ask("--live", live)?.good()?;
    match args.format {
        Format::Human => print(answer.trim_end()),
        Format::Json => {
            let answer: serde_json::Value = serde_json::from_str(&answer)?;
            print(format_args!("{answer:#}"));
        }
    }
    Ok(())
}

fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// The tollgate that is asked.
#[derive(Clone, Copy)]
pub struct Tollgate<'a> {
    /// What its workers have.
    pub gate: &'a Gate,
    /// Its policy.
    pub active: &'a Active,
    /// What is used of limits.
    pub source: Source<'a>,
}

/// Where the state of limits comes from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Nobody has sent anything yet: limits are shown as they stand after the request. The database
    /// that these settings name is not connected to yet.
    Idle(&'a Settings),
    /// As they stand now; nothing is charged.
    Live(&'a Counters),
}

/// Explains a request that comes from `peer`.
///
/// # Errors
/// A database that is not connected to yet cannot be set up.
pub async fn explained(
    tollgate: &Tollgate<'_>,
    described: &Described,
    peer: IpAddr,
) -> Result<Explanation, Failure> {
    let Tollgate { gate, active, source } = *tollgate;
    let policy = &active.policy;
    let (uri, headers) = (described.request.uri(), described.request.headers());
    let method = described.request.method();
    let facts = RequestFacts::of(method, uri.path(), uri.query(), headers, peer)
        .shown(described.certificate.as_ref());
    let fetched = match source {
        Source::Idle(_) => identity::fetch_keys(&gate.identifier, &facts).await,
        // One that serves sees to its keys itself.
        Source::Live(_) => Vec::new(),
    };
    let present = Present::in_fields(headers);
    let (mut caller, invalid) = caller::of(gate, active, &facts, present).await;
    let database = ask_database(tollgate, &mut caller).await?;
    let now = gate.clock.now();
    let who = policy.identity_of(&caller);

    let mut identity_step = identity::step(&gate.identifier, &facts, caller.address, &who, now);
    identity_step.notes = fetched;
    let asked = Asked { database, overrides: matches!(source, Source::Live(_)) };
    let mut steps =
        vec![address(policy, &facts), identity_step, tier(policy, &who, &caller, asked)];
    let plan = policy.plan(&facts, &caller);
    let settled = settled(gate, described, &facts, invalid, &plan);
    let decision = match (&settled, &plan) {
        (None, Ok(plan)) => Some(match source {
            Source::Idle(_) => gate.memory.check(plan, now),
            Source::Live(counters) => counters.peek(plan, now).await.0,
        }),
        _ => None,
    };
    steps.push(rule_step(policy, &facts, &plan, described));
    let checked = plan.as_ref().ok().zip(decision.as_ref());
    let outcome = match (settled, checked) {
        (None, Some((plan, decision))) => Outcome::checked(policy, plan, decision),
        (settled, _) => settled.unwrap_or(Outcome::Unlimited),
    };
    let resolved = policy.resolve(&who, &caller);
    let plan = plan.ok().filter(|_| described.refusal.is_none());
    Ok(Explanation {
        method: shown(method.as_str().as_bytes()),
        path: described.shown.clone(),
        host: host(headers),
        peer,
        is_live: matches!(source, Source::Live(_)),
        tier: tier_name(policy, resolved.tier).to_owned(),
        tier_source: resolved.source,
        endpoint: policy.endpoint_name(plan.as_ref().and_then(|it| it.endpoint)).to_owned(),
        cost: plan.as_ref().map_or(1, |plan| plan.cost),
        mode: mode(policy, plan.as_ref().and_then(|it| it.endpoint)),
        limits: checked_limits(policy, plan.as_ref(), decision.as_ref()),
        fields: answer_fields(gate, &outcome, invalid, decision.as_ref()),
        on_failure: gate
            .redis
            .as_ref()
            .map(|redis| plan.and_then(|it| it.on_failure).unwrap_or(redis.settings().on_failure)),
        identity: who,
        outcome,
        steps,
        warnings: described.warnings.clone(),
    })
}

/// Asks the database of subscriptions, where a running tollgate would. It is not connected to
/// before that is sure: most requests can be explained without it.
async fn ask_database(tollgate: &Tollgate<'_>, caller: &mut Caller) -> Result<Database, Failure> {
    let Tollgate { active, gate, source } = *tollgate;
    let settings = match source {
        Source::Idle(settings) if settings.lookup.is_some() => Some(settings),
        Source::Live(_) if gate.subscriptions.is_some() => None,
        Source::Idle(_) | Source::Live(_) => return Ok(Database::Absent),
    };
    let Some(credential) = caller.credential.as_ref() else { return Ok(Database::Answers) };
    if !active.policy.asks_database(credential) {
        return Ok(Database::Answers);
    }
    let started = match settings {
        Some(settings) => subscriptions::start(settings, 1, &Arc::default())?,
        None => gate.subscriptions.clone(),
    };
    let asked = caller::ask_database(started.as_deref(), &active.policy, credential).await;
    let database = match asked {
        Some(Bought::Unknown) => Database::Silent,
        Some(Bought::Plan(_) | Bought::None) | None => Database::Answers,
    };
    caller.bought = asked.and_then(Bought::into_plan);
    Ok(database)
}

/// What comes of a request before a limit is checked, in the order of the data path; `None`: its
/// limits decide.
fn settled<E: ToString>(
    gate: &Gate,
    described: &Described,
    facts: &RequestFacts<'_>,
    invalid: Option<Invalid>,
    plan: &Result<Plan<'_>, E>,
) -> Option<Outcome> {
    let refused = |status, why| Some(Outcome::Refused { status, why });
    if let Some((status, why)) = &described.refusal {
        return refused(*status, why.clone());
    }
    let is_own = gate.self_service.as_ref().is_some_and(|it| it.is_asked(&described.request));
    if is_own || gate.exposed(&described.request).is_some() {
        return Some(Outcome::OwnPage);
    }
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return refused(400, error.to_string()),
    };
    if let Some(invalid) = invalid.filter(|it| it.is_rejected)
        && plan.disposition != Disposition::Refused
    {
        return refused(401, identity::why_rejected(&invalid));
    }
    if is_too_large(gate, facts.headers) {
        return refused(413, "its Content-Length is above server.max_body_bytes".to_owned());
    }
    match plan.disposition {
        Disposition::Refused => Some(Outcome::DenyListed),
        Disposition::Exempt => Some(Outcome::Exempt),
        Disposition::Unlimited => Some(Outcome::Unlimited),
        Disposition::Limited => None,
    }
}

fn is_too_large(gate: &Gate, headers: &HeaderMap) -> bool {
    let most = gate.settings.body_bytes_max;
    let length = headers.get(http::header::CONTENT_LENGTH).and_then(|it| it.to_str().ok());
    let length = length.and_then(|it| it.parse::<u64>().ok());
    most > 0 && length.is_some_and(|length| length > most)
}

fn rule_step<E: ToString>(
    policy: &Policy,
    facts: &RequestFacts<'_>,
    plan: &Result<Plan<'_>, E>,
    described: &Described,
) -> Step {
    let unread = |why: String| Step {
        name: "rule",
        result: "none".to_owned(),
        looked_at: Vec::new(),
        notes: vec![format!("No rule is looked for: {why}.")],
    };
    if let Some((_, why)) = &described.refusal {
        return unread(why.clone());
    }
    let mut step = match rule(policy, facts) {
        Ok(step) => step,
        Err(error) => return unread(error.to_string()),
    };
    if let Ok(plan) = plan {
        step.notes.extend(effects(policy, facts, plan));
    }
    step
}

fn checked_limits(
    policy: &Policy,
    plan: Option<&Plan<'_>>,
    decision: Option<&Decision>,
) -> Vec<Limit> {
    plan.zip(decision).map_or_else(Vec::new, |(plan, decision)| limits(policy, plan, decision))
}

/// The fields that the answer carries because of what was decided.
fn answer_fields(
    gate: &Gate,
    outcome: &Outcome,
    invalid: Option<Invalid>,
    decision: Option<&Decision>,
) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    if let Outcome::Refused { status: 401, .. } = outcome
        && let Some(invalid) = invalid
    {
        let challenge = gate.identifier.challenge(invalid.method);
        fields.push(("WWW-Authenticate".to_owned(), challenge));
    }
    if let Outcome::Checked { retry_after: Some(seconds), .. } = outcome {
        fields.push(("Retry-After".to_owned(), seconds.to_string()));
    }
    let shown = decision.and_then(|decision| Some((decision.shown()?, decision.now)));
    if let Some((shown, now)) = shown {
        let mut headers = HeaderMap::new();
        add_limit(&mut headers, gate.settings.fields, shown, now, &Numbers::default());
        for name in ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"] {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            fields.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        }
    }
    fields
}

fn host(headers: &HeaderMap) -> String {
    shown(headers.get(HOST).map_or(b"", HeaderValue::as_bytes))
}
