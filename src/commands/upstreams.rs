//! From `upstream` to the upstreams that are asked, and what is shown of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::HeaderValue;

use crate::clock;
use crate::config::compile_upstream::{HealthCheckSettings, MemberSettings, UpstreamSettings};
use crate::config::url::{UpstreamPlace, UpstreamScheme, UpstreamUrl};
use crate::health::upstream::{CheckRules, UpstreamHealth};
use crate::health::upstreams::{Member, UpstreamGroup};
use crate::metrics::labels::{BreakerState, Dependency};
use crate::metrics::registry::Metrics;
use crate::proxy::connect::{Place, Protocol, Target};
use crate::proxy::health_check::HealthCheck;
use crate::proxy::resolve::Addresses;
use crate::proxy::retry::Budget;
use crate::proxy::upstreams::{Upstream, Upstreams};
use crate::tls::client::{ClientSettings, ClientTls};

/// What the only upstream is called in metrics.
const ONLY_UPSTREAM: &str = "default";

const BREAKER_STATES: [BreakerState; BreakerState::COUNT] =
    [BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open];

/// Where the upstreams are, what is spoken there, and nothing known of them yet.
///
/// # Errors
/// TLS towards one of them cannot be set up.
pub fn upstreams(
    settings: Option<&UpstreamSettings>,
    check: Option<&HealthCheck>,
    metrics: &Metrics,
) -> anyhow::Result<Upstreams> {
    let members = settings.map_or(&[][..], |it| &it.members);
    let (mut places, mut group) = (Vec::new(), Vec::new());
    for MemberSettings { url, tls } in members {
        let label = url.label();
        let name = if members.len() > 1 { label.as_str() } else { ONLY_UPSTREAM };
        group.push(Member::new(name, upstream_health(settings, check)));
        places.push(Upstream {
            target: target(url, tls.as_ref())?,
            authority: HeaderValue::try_from(url.authority()).ok(),
            series: metrics.upstream(name),
        });
    }
    if places.is_empty() {
        // Only `tollgate explain` asks for none, and forwards nothing.
        let (place, protocol) = (Place::Tcp(Addresses::new("", 0)), Protocol::Http1);
        let (target, series) = (Target { place, protocol }, metrics.upstream(ONLY_UPSTREAM));
        places.push(Upstream { target, authority: None, series });
        group.push(Member::new(ONLY_UPSTREAM, upstream_health(settings, check)));
    }
    Ok(Upstreams {
        group: Arc::new(UpstreamGroup::new(group)),
        places: places.into(),
        budget: Budget::new(settings.map_or(0, |it| it.retry_budget), clock::monotonic()),
    })
}

fn target(url: &UpstreamUrl, tls: Option<&ClientSettings>) -> anyhow::Result<Target> {
    let protocol = match url.scheme {
        UpstreamScheme::Http => Protocol::Http1,
        UpstreamScheme::H2c => Protocol::Http2,
        UpstreamScheme::Https => {
            let tls = tls.context("no TLS towards an upstream that has to have it")?;
            let tls = ClientTls::new(tls).map_err(anyhow::Error::msg);
            Protocol::Tls(Arc::new(tls.context("cannot set up TLS towards the upstream")?))
        }
    };
    let place = match &url.place {
        UpstreamPlace::Tcp { host, port } => Place::Tcp(Addresses::new(host, *port)),
        UpstreamPlace::Unix { path } => Place::Unix(path.into()),
    };
    Ok(Target { place, protocol })
}

/// How each of them is checked.
pub fn health_check(settings: &HealthCheckSettings) -> HealthCheck {
    let HealthCheckSettings { target, interval, timeout, rise, fall } = settings.clone();
    HealthCheck { rules: CheckRules { interval, timeout, rise, fall }, target }
}

fn upstream_health(
    upstream: Option<&UpstreamSettings>,
    check: Option<&HealthCheck>,
) -> UpstreamHealth {
    let of_upstream = |get: fn(&UpstreamSettings) -> Duration| upstream.map_or(Duration::ZERO, get);
    // For a connection and an answer's head, and once more for a second try.
    let call_max = of_upstream(|it| it.connect_timeout + it.response_timeout) * 2;
    UpstreamHealth::new(check.map(|it| it.rules), call_max, clock::monotonic())
}

/// Has metrics show how they do.
pub fn publish(group: &UpstreamGroup, metrics: &Metrics) {
    let transitions = BREAKER_STATES.map(|state| group.transitions(state));
    metrics.publish_transitions(Dependency::Upstream, transitions);
    for member in group.views(clock::monotonic()) {
        let is_called = member.view.breaker == Some(BreakerState::Closed);
        metrics.set_upstream_member(&member.name, is_called, member.in_flight);
    }
}
