//! `tollgate demo`: the main job with nothing else running.

use anyhow::Context;

use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Overrides, load};

use super::handover::Inherited;
use super::reload_files::Origin;
use super::run::{Addresses, serve};
use super::{DemoArgs, Failure, example_backend, print};

/// Serves the built-in tiers in front of an example backend until a signal ends it.
///
/// # Errors
/// An address that is none, or one that is in use.
pub fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let backend = example_backend::start().context("cannot start the example backend")?;
    let loaded = load(&LoadRequest {
        config: None,
        tiers: None,
        overrides: Overrides {
            upstream: Some(format!("http://{backend}")),
            listen: Some(args.listen.clone()),
            admin: Some(args.admin.clone()),
            redis: None,
        },
        upstream: UpstreamNeed::Required,
        env: &|_| None,
    })?;
    serve(loaded, Origin::default(), Inherited::default(), |addresses| {
        print(format_args!("An example backend listens on {backend}."));
        print(invitation(addresses));
    })
}

fn invitation(addresses: &Addresses) -> String {
    let data = addresses.data.first().map(ToString::to_string).unwrap_or_default();
    let admin = addresses.admin;
    let url = format!(
        "http://{data}/fo/strike-distribution?symbol=NIFTY50&timeframe=5&expiry=2025-11-04"
    );
    format!(
        "tollgate stands in front of it: listening on {data}, admin on {admin}

You are an address of the FREE tier: 5 requests a second with a burst of 10, 100 a minute, 1000 an
hour. Try, in another terminal:

  an allowed request, with what is left of the limit in its head
    curl -i '{url}'

  twelve on one connection, and the last answer: 429, and when to come back
    curl -si -w '\\n' '{url}&n=[1-12]' | tail -n 11

  what tollgate counted
    curl -s http://{admin}/metrics | grep -E '^rate_limit_(hits|blocks)' | grep -v ' 0$'

  the same and more, live, in a browser
    http://{admin}/

Ctrl-C ends it."
    )
}
