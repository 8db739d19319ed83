//! What it costs to know a caller, by the way in which they are known, and what wrong tokens cost.
//! `cargo bench --bench identity`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method as HttpMethod;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::Algorithm as Signing;
use serde_json::json;

use tollgate::clock::monotonic;
use tollgate::identity::algorithm::Algorithm;
use tollgate::identity::api_key::{ApiKey, KeyTable};
use tollgate::identity::cache::{self, TokenCache};
use tollgate::identity::identifier::{
    ApiKeyMethod, Identified, Identifier, JwtMethod, Method, OnInvalid,
};
use tollgate::identity::jwks::KeySource;
use tollgate::identity::keys::KeySet;
use tollgate::identity::present::TokenPlaces;
use tollgate::identity::token::{TokenRules, verify};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::metrics::registry::{Build, Metrics};
use tollgate::policy::facts::RequestFacts;

use tokens::Signer;

#[path = "../tests/support/tokens.rs"]
mod tokens;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const CALLS: usize = 2048;
const ROUNDS: usize = 100;
/// Wrong tokens of one flood, and how far they are apart: 10,000 a second.
const FLOOD: usize = 10_000;
const APART: Micros = Micros::from_micros(100);

fn main() {
    let address = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    println!("{:<44} {:>10}", "to know a caller", "ns");
    let nobody = identifier(Vec::new());
    row(
        "by address, nothing else configured",
        best(|| identify(&nobody, &HeaderMap::new(), address, NOW)),
    );

    let signer = Signer::new(Signing::HS256);
    let (jwt, _) = jwt_method(Algorithm::Hs256, &signer);
    let api_keys: Vec<ApiKey> = (0..10_000)
        .map(|n| ApiKey {
            sha256: cache::hash(&format!("key-{n}")),
            id: format!("id{n}").into(),
            tier: Some("premium".into()),
            expires: None,
        })
        .collect();
    let api_key = Method::ApiKey(ApiKeyMethod {
        header: HeaderName::from_static("x-api-key"),
        keys: Arc::new(ArcSwap::from_pointee(KeyTable::new(api_keys))),
        strip: true,
        on_invalid: OnInvalid::Ip,
    });
    let both = identifier(vec![Method::Jwt(Box::new(jwt)), api_key]);
    row(
        "by address, tokens and keys configured",
        best(|| identify(&both, &HeaderMap::new(), address, NOW)),
    );
    let token = signer.token(&claims(7));
    let bearer = fields(AUTHORIZATION, &format!("Bearer {token}"));
    let name = format!("by a token that is known ({} bytes)", token.len());
    row(&name, best(|| identify(&both, &bearer, address, NOW)));
    let key = fields(HeaderName::from_static("x-api-key"), "key-4711");
    row("by an API key, one of 10,000", best(|| identify(&both, &key, address, NOW)));

    println!(
        "\n{:<10} {:>18} {:>24} {:>24}",
        "us", "a new good token", "the same wrong one again", "a flood of wrong ones"
    );
    for (signing, algorithm) in [
        (Signing::HS256, Algorithm::Hs256),
        (Signing::RS256, Algorithm::Rs256),
        (Signing::PS256, Algorithm::Ps256),
        (Signing::ES256, Algorithm::Es256),
        (Signing::ES384, Algorithm::Es384),
        (Signing::EdDSA, Algorithm::EdDsa),
    ] {
        let signer = Signer::new(signing);
        let (method, rules) = jwt_method(algorithm, &signer);
        let keys = self::keys(algorithm, &signer);
        let token = signer.token(&claims(7));
        let new = best(|| {
            let verified = verify(black_box(&token), &rules, &keys, NOW);
            assert!(verified.is_ok());
        }) / 1e3;
        let identifier = identifier(vec![Method::Jwt(Box::new(method))]);
        let forger = match signing {
            Signing::HS256 => Signer::of_secret(signing, &[1; 64]),
            _ => Signer::new(signing),
        };
        let wrong = fields(AUTHORIZATION, &format!("Bearer {}", forger.token(&claims(1))));
        let again = best(|| identify(&identifier, &wrong, address, NOW)) / 1e3;
        // Every one another, each with a signature of the right shape, none of the right key.
        let flood: Vec<HeaderMap> = (0..FLOOD)
            .map(|n| {
                let made = forger.token(&claims(0));
                let (message, signature) = made.rsplit_once('.').unwrap_or_default();
                let (header, _) = message.split_once('.').unwrap_or_default();
                let other = format!("eyJzdWIiOjF9{n:012}");
                fields(AUTHORIZATION, &format!("Bearer {header}.{other}.{signature}"))
            })
            .collect();
        let start = monotonic();
        let mut now = NOW;
        for headers in &flood {
            now = now.plus(APART);
            identify(&identifier, headers, address, now);
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / FLOOD as f64;
        println!("{:<10} {new:>18.1} {again:>24.2} {each:>24.2}", algorithm.as_str());
    }
}

fn claims(user: u64) -> serde_json::Value {
    json!({
        "sub": user.to_string(),
        "tier": "premium",
        "iss": "https://id.example.com",
        "exp": 1_800_003_600_u64,
    })
}

fn identifier(methods: Vec<Method>) -> Identifier {
    let build = Build { version: "bench", commit: "unknown", rustc: "unknown" };
    Identifier::new(methods, Metrics::new(1, build, Duration::from_millis(10)))
}

fn keys(algorithm: Algorithm, signer: &Signer) -> KeySet {
    KeySet::parse(signer.jwk.to_string().as_bytes(), &[algorithm]).unwrap_or_default()
}

fn jwt_method(algorithm: Algorithm, signer: &Signer) -> (JwtMethod, TokenRules) {
    let rules = TokenRules {
        algorithms: [algorithm].into(),
        user_claims: ["user_id".into(), "sub".into()].into(),
        tier_claims: ["tier".into(), "subscription".into()].into(),
        issuer: Some("https://id.example.com".into()),
        audience: None,
        leeway: Micros::from_micros(30_000_000),
        bytes_max: 8192,
    };
    let method = JwtMethod {
        places: TokenPlaces { header: AUTHORIZATION, cookie: None, query: None },
        rules: rules.clone(),
        keys: Arc::new(KeySource::new(keys(algorithm, signer))),
        remote: None,
        on_invalid: OnInvalid::Ip,
        cache: TokenCache::default(),
    };
    (method, rules)
}

fn fields(name: HeaderName, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // What a browser sends beside it.
    for (name, value) in [("host", "api.example.com"), ("accept", "*/*"), ("user-agent", "bench")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(name, HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("?")));
    headers
}

fn identify(
    identifier: &Identifier,
    headers: &HeaderMap,
    address: IpAddr,
    now: Timestamp,
) -> Identified {
    let facts = RequestFacts {
        method: &HttpMethod::GET,
        path: "/",
        query: None,
        host: Some("api.example.com"),
        peer: address,
        headers,
        certificate: None,
    };
    black_box(identifier.identify(black_box(&facts), address, now))
}

fn row(name: &str, nanos: f64) {
    println!("{name:<44} {nanos:>10.0}");
}

/// Nanoseconds per call of the best round.
fn best<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = monotonic();
        for _ in 0..CALLS {
            black_box(call());
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / CALLS as f64);
    }
    best
}
