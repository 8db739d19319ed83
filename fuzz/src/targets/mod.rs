//! What is done with one input, by target: the fuzzer calls these functions, and so does the test
//! that replays the corpora. An input that shows a fault panics.

pub mod access_log;
pub mod admin;
pub mod files;
pub mod forwarded;
pub mod jwt;
pub mod log_line;
pub mod models;
pub mod path;
pub mod proxy_protocol;
pub mod redis_reply;
pub mod request;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::{HeaderMap, Method};

use tollgate::config::compile::Settings;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Loaded, Overrides, load};
use tollgate::policy::facts::RequestFacts;

pub use access_log::access_log;
pub use admin::admin;
pub use files::{config, tiers};
pub use forwarded::forwarded;
pub use jwt::jwt;
pub use log_line::log_line;
pub use path::path;
pub use proxy_protocol::proxy_protocol;
pub use redis_reply::redis_reply;
pub use request::request;

/// What everything is loaded with where no file says otherwise.
static SETTINGS: LazyLock<Settings> = LazyLock::new(|| defaults().settings);
static NO_FIELDS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

/// What there is without any file.
fn defaults() -> Loaded {
    let request = LoadRequest {
        config: None,
        tiers: None,
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    };
    load(&request).expect("the defaults are valid")
}

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

/// An input that is taken apart; behind its end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A count of bytes, and a number in so many: small ones are as likely as large ones.
    fn number(&mut self) -> u64 {
        let count = usize::from(self.byte() % 9);
        self.take(count).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// As far as the next one of these bytes, which is passed over.
    fn until(&mut self, end: u8) -> &'a [u8] {
        let length = self.0.iter().position(|it| *it == end).unwrap_or(self.0.len());
        let taken = self.take(length);
        self.take(1);
        taken
    }
}
