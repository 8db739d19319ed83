//! What is done with one input, by target: the fuzzer calls these functions, and so does the test
//! that replays the corpora. An input that shows a fault panics.

pub mod files;
pub mod forwarded;
pub mod jwt;
pub mod models;
pub mod path;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::{HeaderMap, Method};

use tollgate::config::compile::Settings;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::policy::facts::RequestFacts;

pub use files::{config, tiers};
pub use forwarded::forwarded;
pub use jwt::jwt;
pub use path::path;

/// What everything is loaded with where no file says otherwise.
static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let request = LoadRequest {
        config: None,
        tiers: None,
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    };
    load(&request).expect("the defaults are valid").settings
});
static NO_FIELDS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

/// What is known of a request from this machine that asks for nothing but this path.
fn get<'a>(path: &'a str, host: Option<&'a str>) -> RequestFacts<'a> {
    RequestFacts {
        method: &Method::GET,
        path,
        query: None,
        host,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        headers: &NO_FIELDS,
        certificate: None,
    }
}
