//! The mirror of `tiers.yaml`, the policy: every key, its type and its default. No behaviour.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::OnFailure;
use super::value::{HumanDuration, Ordered};

/// What holds where no file says otherwise: the four tiers, and what plans are usually called.
/// `tiers` and `subscriptions` stand in together for a file that gives no tiers.
pub const BUILT_IN: &str = "\
tiers:
  free:       { per_second: 5,    burst: 10,   per_minute: 100,   per_hour: 1000 }
  premium:    { per_second: 20,   burst: 50,   per_minute: 500,   per_hour: 10000 }
  enterprise: { per_second: 100,  burst: 200,  per_minute: 3000,  per_hour: 50000 }
  internal:   { per_second: 1000, burst: 2000, per_minute: 30000, per_hour: 500000 }
subscriptions: { basic: free, pro: premium, business: enterprise, staff: internal }
";

/// The policy of tollgate: who may do how much, and where it costs more.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "tiers.yaml")]
pub struct TiersFile {
    /// The tier of whoever nothing else is known of.
    pub default_tier: String,
    /// Named sets of limits; left out: the four built-in ones.
    pub tiers: Option<Ordered<LimitSpec>>,
    /// Names of plans, as tokens and databases carry them, to tiers.
    pub subscriptions: Option<Ordered<String>>,
    /// Networks to tiers, for callers known by address only.
    pub networks: Ordered<String>,
    /// Identities (`ip:…`, `user:…`, `key:…`) to tiers, or to `deny`: 403, always.
    pub identities: Ordered<String>,
    /// Endpoint rules; the most specific match wins.
    pub endpoints: Vec<Endpoint>,
    /// Whether limits refuse at all.
    pub mode: ModeSpec,
    /// What `tollgate check` verifies.
    pub tests: Vec<TestSpec>,
}

impl Default for TiersFile {
    fn default() -> Self {
        TiersFile {
            default_tier: "free".to_owned(),
            tiers: None,
            subscriptions: None,
            networks: Ordered::default(),
            identities: Ordered::default(),
            endpoints: Vec::new(),
            mode: ModeSpec::Enforce,
            tests: Vec::new(),
        }
    }
}

/// The limits of a tier, or those of a rule for one tier; every one is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSpec {
    /// Tokens that come back each second.
    pub per_second: Option<u32>,
    /// Tokens that may be spent at once; `per_second` where it is not given.
    pub burst: Option<u32>,
    /// Tokens that may be spent in any 60 seconds.
    pub per_minute: Option<u32>,
    /// Tokens that may be spent in any 60 minutes.
    pub per_hour: Option<u32>,
    /// Tokens that may be spent in a day of UTC.
    pub per_day: Option<u32>,
    /// Tokens that may be spent in a month of UTC.
    pub per_month: Option<u32>,
    /// Requests at once.
    pub concurrency: Option<u32>,
    /// Who is shed last; of a tier only.
    pub priority: Option<u32>,
    /// What decides without Redis, where it differs from the store's; of a tier only.
    pub on_failure: Option<OnFailure>,
}

/// An endpoint rule.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "path"]))]
pub struct Endpoint {
    /// What labels and logs call it: up to 64 letters, digits, and any of `_-.` behind the first;
    /// required.
    pub name: Option<String>,
    /// Literal segments, `{name}` for one, `/**` for the path itself and all below it; required.
    pub path: Option<String>,
    /// Any of these, `GET` includes `HEAD`; left out: every method.
    pub methods: Vec<String>,
    /// This host only.
    pub host: Option<String>,
    /// These header fields, each with exactly this value.
    pub headers: Ordered<String>,
    /// Which readings of a path meet the rule.
    #[serde(rename = "match")]
    pub matching: Matching,
    /// Time to the head of an answer that counts as slow here.
    pub slow_threshold: Option<HumanDuration>,
    /// The rule's own limits by tier; `any` is for every tier that is not named.
    pub limits: Ordered<LimitSpec>,
    /// Tokens that a request spends of every limit, at least 1.
    pub cost: u32,
    /// No limits at all.
    pub exempt: bool,
    /// Whether its limits refuse.
    pub mode: ModeSpec,
    /// The part of identities, in percent, for whom they refuse.
    pub enforce_percent: u8,
    /// What decides without Redis, where it differs from the tier's.
    pub on_failure: Option<OnFailure>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Endpoint {
            name: None,
            path: None,
            methods: Vec::new(),
            host: None,
            headers: Ordered::default(),
            matching: Matching::Lenient,
            slow_threshold: None,
            limits: Ordered::default(),
            cost: 1,
            exempt: false,
            mode: ModeSpec::Enforce,
            enforce_percent: 100,
            on_failure: None,
        }
    }
}

/// `match:` of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// Both readings of a path.
    Lenient,
    /// The strict one alone.
    Strict,
}

/// Whether limits refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeSpec {
    /// They do.
    Enforce,
    /// They are counted and reported only.
    Shadow,
}

/// One of `tests:`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["request"]))]
pub struct TestSpec {
    /// Method and path: `GET /fo/history/2025`; required.
    pub request: Option<String>,
    /// The caller's address.
    #[schemars(extend("default" = "127.0.0.1"))]
    pub ip: Option<String>,
    /// Whom a verified token, certificate or key names, beside the address: `user:42`, `key:acme`.
    pub identity: Option<String>,
    /// The tier or subscription that this token or key carries, or that the database knows.
    pub subscription: Option<String>,
    /// Header fields of the request.
    pub headers: Ordered<String>,
    /// What must come of it.
    pub expect: Expectation,
}

/// `expect:` of a test; what is not given is not compared.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Expectation {
    /// The caller's tier.
    pub tier: Option<String>,
    /// The rule's name; `other` for none.
    pub endpoint: Option<String>,
    /// Who the caller is: `ip:203.0.113.9`.
    pub identity: Option<String>,
    /// Tokens that the request spends.
    pub cost: Option<u32>,
    /// What happens before any limit is asked.
    pub disposition: Option<DispositionSpec>,
}

/// What happens to a request before any limit is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DispositionSpec {
    /// Its limits are checked.
    Limited,
    /// No limit is checked.
    Exempt,
    /// It has none.
    Unlimited,
    /// It is on the deny list.
    Refused,
}
