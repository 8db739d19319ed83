//! `identity:` to the ways in which callers are known.
//!
//! Collects every error, not the first. What tokens are verified with is [`super::compile_keys`]'s,
//! the file of API keys [`super::keys_file`]'s.

use http::header::{self, HeaderName};

use crate::config_path;
use crate::identity::api_key::ApiKey;
use crate::identity::identifier::OnInvalid;
use crate::identity::present::TokenPlaces;
use crate::identity::token::TokenRules;
use crate::limiter::time::Micros;
use crate::policy::identity::PrefixLengths;

use super::compile_keys::{KeyOrigin, algorithms, keys};
use super::load::ReadError;
use super::reload::Digest;
use super::report::{Path, Problem, Report};
use super::schema::{self, IdentityEntry, IpIdentity, Jwt, Mtls, Subject};
use super::url::quoted;
use super::value::{ByteSize, HumanDuration};

/// Longer tokens than that do not fit into a head.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Clocks that differ by more are broken.
const LEEWAY_MAX: HumanDuration = HumanDuration::secs(3600);

/// Fields that say how a message is framed or whom it is for, and so bear no credential.
const OTHER_FIELDS: [HeaderName; 12] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
];

/// The ways in which callers are known.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentitySettings {
    /// In order.
    pub methods: Vec<MethodSettings>,
    /// How much of an address makes an identity; the policy holds it too.
    pub prefixes: PrefixLengths,
}

/// One way of knowing a caller.
#[derive(Clone, Debug, PartialEq)]
pub enum MethodSettings {
    /// By a token.
    Jwt(Box<JwtSettings>),
    /// By an API key.
    ApiKey(ApiKeySettings),
    /// By the certificate that the client showed.
    Mtls,
    /// By the address.
    Ip,
}

/// Tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtSettings {
    /// Where they are looked for.
    pub places: TokenPlaces,
    /// What is asked of them.
    pub rules: TokenRules,
    /// What they are verified with.
    pub keys: KeyOrigin,
    /// What an invalid one means.
    pub on_invalid: OnInvalid,
}

/// API keys.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKeySettings {
    /// The field that bears them.
    pub header: HeaderName,
    /// The file that lists them.
    pub file: String,
    /// What it lists.
    pub keys: Vec<ApiKey>,
    /// Of its bytes.
    pub digest: Digest,
    /// Whether the field is taken out of what the upstream sees.
    pub strip: bool,
    /// What an unknown one means.
    pub on_invalid: OnInvalid,
}

/// Compiles every entry. The keys of API keys' files are still to be read.
pub fn identity(entries: &[IdentityEntry], report: &mut Report<'_>) -> IdentitySettings {
    let mut settings = IdentitySettings { methods: Vec::new(), prefixes: PrefixLengths::default() };
    let mut ip_before = None;
    let mut fields: Vec<(MethodSettings, usize)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = || config_path!["identity", index];
        let IdentityEntry { jwt, api_key, mtls, ip } = entry;
        let given = [jwt.is_some(), api_key.is_some(), mtls.is_some(), ip.is_some()];
        let given = given.iter().filter(|is_given| **is_given).count();
        if given != 1 && !report.is_silent_below(&path()) {
            let found = if given == 0 { "an empty entry" } else { "several kinds in one entry" };
            let problem = Problem::new(found).expected("one of jwt, api_key, mtls, ip");
            report.value(path(), problem);
        }
        if let Some(before) = ip_before
            && ip.is_none()
        {
            let found = format!("never reached: everybody has an address (identity[{before}])");
            report.warn(path(), Problem::new(found).expected("ip as the last entry"));
        }
        let method = match (jwt, api_key, mtls) {
            (Some(jwt), ..) => self::jwt(index, jwt, report).map(MethodSettings::Jwt),
            (None, Some(api_key), _) => self::api_key(index, api_key, report),
            (None, None, Some(Mtls { subject: Subject::Cn })) => Some(MethodSettings::Mtls),
            (None, None, None) => None,
        };
        if let Some(method) = method {
            let before = fields.iter().find(|(before, _)| takes_all_of(before, &method));
            if let Some((_, before)) = before {
                let problem =
                    Problem::new(format!("identity[{before}] decides on that field already"));
                let hint = "the first entry that finds a credential decides, whatever comes of it";
                report.warn(path(), problem.expected("another header").hint(hint));
            }
            fields.push((method.clone(), index));
            settings.methods.push(method);
        }
        if let Some(ip) = ip {
            if let Some(before) = ip_before {
                let problem = Problem::new("a second ip entry")
                    .expected(format!("only that of identity[{before}]"));
                report.key(config_path!["identity", index, "ip"], problem);
            }
            ip_before = Some(index);
            settings.prefixes = prefixes(index, ip, report);
            settings.methods.push(MethodSettings::Ip);
        }
    }
    settings
}

/// Whether nothing in the second one's field is left for it: an entry of tokens leaves other
/// schemes of `Authorization`, but no tokens.
fn takes_all_of(first: &MethodSettings, second: &MethodSettings) -> bool {
    use MethodSettings::{ApiKey, Ip, Jwt, Mtls};
    match (first, second) {
        (Jwt(first), Jwt(second)) => first.places.header == second.places.header,
        (Jwt(first), ApiKey(second)) => {
            let header = &first.places.header;
            *header == second.header && *header != header::AUTHORIZATION
        }
        (ApiKey(first), Jwt(second)) => first.header == second.places.header,
        (ApiKey(first), ApiKey(second)) => first.header == second.header,
        (Mtls, Mtls) => true,
        (Ip | Mtls, _) | (_, Ip | Mtls) => false,
    }
}

fn jwt(index: usize, jwt: &Jwt, report: &mut Report<'_>) -> Option<Box<JwtSettings>> {
    let at = |key: &str| config_path!["identity", index, "jwt", key];
    let header = field(at("header"), jwt.header.as_deref().unwrap_or("Authorization"), report);
    let places = TokenPlaces {
        header: header?,
        cookie: name(at("cookie"), jwt.cookie.as_deref(), report),
        query: name(at("query"), jwt.query.as_deref(), report),
    };
    let algorithms = algorithms(index, &jwt.algorithms, report);
    let claims = |key: &str, claims: &[String], report: &mut Report<'_>| -> Box<[Box<str>]> {
        for (place, claim) in claims.iter().enumerate() {
            if claim.is_empty() {
                let path = config_path!["identity", index, "jwt", key, place];
                report.value(path, Problem::new("an empty name").expected("the name of a claim"));
            }
        }
        claims.iter().map(|claim| claim.as_str().into()).collect()
    };
    let user_claims = claims("user_claim", &jwt.user_claim, report);
    if user_claims.is_empty() {
        let problem = Problem::new("an empty list").expected("the name of a claim");
        report.value(at("user_claim"), problem);
    }
    let rules = TokenRules {
        user_claims,
        tier_claims: claims("tier_claim", &jwt.tier_claim, report),
        issuer: filled(at("issuer"), jwt.issuer.as_deref(), report),
        audience: filled(at("audience"), jwt.audience.as_deref(), report),
        leeway: leeway(at("leeway"), jwt.leeway, report),
        bytes_max: bytes_max(at("max_bytes"), jwt.max_bytes, report),
        algorithms: algorithms.clone().unwrap_or_default().into(),
    };
    let keys = keys(index, jwt, algorithms.as_deref(), report)?;
    Some(Box::new(JwtSettings { places, rules, keys, on_invalid: on_invalid(jwt.on_invalid) }))
}

fn api_key(
    index: usize,
    api_key: &schema::ApiKey,
    report: &mut Report<'_>,
) -> Option<MethodSettings> {
    let at = |key: &str| config_path!["identity", index, "api_key", key];
    let header = field(at("header"), &api_key.header, report)?;
    let Some(file) = api_key.keys_file.clone() else {
        let problem = Problem::new("not set").expected("the file that lists the keys' hashes");
        report.key(at("keys_file"), problem);
        return None;
    };
    // What is in it is its reader's to judge; that it is there is this file's word.
    let fault = match std::fs::metadata(&file) {
        Ok(it) if it.is_dir() => Some(ReadError::Directory),
        Ok(_) => None,
        Err(error) => Some(ReadError::Io(error)),
    };
    if let Some(fault) = fault {
        let problem = Problem::new(format!("{file}: {fault}"));
        let from = "it begins in the directory that tollgate was started in, not beside this file";
        let is_relative = std::path::Path::new(&file).is_relative();
        report.value(at("keys_file"), if is_relative { problem.hint(from) } else { problem });
        return None;
    }
    let (strip, on_invalid) = (api_key.strip, on_invalid(api_key.on_invalid));
    let (keys, digest) = (Vec::new(), Digest::default());
    let settings = ApiKeySettings { header, file, keys, digest, strip, on_invalid };
    Some(MethodSettings::ApiKey(settings))
}

fn on_invalid(on_invalid: schema::OnInvalid) -> OnInvalid {
    match on_invalid {
        schema::OnInvalid::Ip => OnInvalid::Ip,
        schema::OnInvalid::Reject => OnInvalid::Reject,
    }
}

fn field(path: Path, name: &str, report: &mut Report<'_>) -> Option<HeaderName> {
    let header = HeaderName::from_bytes(name.as_bytes()).ok();
    let is_free = header.as_ref().is_some_and(|it| !OTHER_FIELDS.contains(it));
    if !is_free {
        let problem = Problem::new(quoted(name)).expected("the name of a header field");
        let is_cookie = header.is_some_and(|it| it == header::COOKIE);
        let problem = match is_cookie {
            true => problem.hint("a token in a cookie: `cookie: NAME`"),
            false => problem,
        };
        report.value(path, problem);
        return None;
    }
    header
}

/// The name of a cookie or a parameter: a token of RFC 9110 §5.6.2.
fn name(path: Path, name: Option<&str>, report: &mut Report<'_>) -> Option<Box<str>> {
    let name = name?;
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        report.value(path, Problem::new(quoted(name)).expected("a name of letters and digits"));
        return None;
    }
    Some(name.into())
}

fn filled(path: Path, text: Option<&str>, report: &mut Report<'_>) -> Option<Box<str>> {
    let text = text?;
    if text.is_empty() {
        let problem = Problem::new("an empty text").expected("what the claim must say, or null");
        report.value(path, problem);
    }
    Some(text.into())
}

fn leeway(path: Path, leeway: HumanDuration, report: &mut Report<'_>) -> Micros {
    if leeway.0 > LEEWAY_MAX.0 {
        let found = format!("{} s", leeway.0.as_secs());
        report.value(path, Problem::new(found).expected("at most 1h"));
    }
    Micros::from_micros(u64::try_from(leeway.0.as_micros()).unwrap_or(u64::MAX))
}

fn bytes_max(path: Path, bytes: ByteSize, report: &mut Report<'_>) -> usize {
    if !(1..=TOKEN_BYTES_MAX).contains(&bytes.0) {
        let problem = Problem::new(format!("{} bytes", bytes.0));
        report.value(path, problem.expected("1 byte to 64KiB"));
    }
    usize::try_from(bytes.0).unwrap_or(usize::MAX)
}

fn prefixes(index: usize, ip: &IpIdentity, report: &mut Report<'_>) -> PrefixLengths {
    for (key, length, most) in
        [("ipv4_prefix", ip.ipv4_prefix, 32), ("ipv6_prefix", ip.ipv6_prefix, 128)]
    {
        if length > most {
            let problem = Problem::new(length.to_string()).expected(format!("0 to {most}"));
            report.value(config_path!["identity", index, "ip", key], problem);
        }
    }
    PrefixLengths { ipv4: ip.ipv4_prefix.min(32), ipv6: ip.ipv6_prefix.min(128) }
}
