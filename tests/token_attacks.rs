//! Tokens that lie, and tokens that are merely odd: what is believed of each.
//!
//! Signed by another implementation than the one that verifies. Everything runs through the very
//! function that requests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;
#[path = "support/tokens.rs"]
mod tokens;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm as Signing;
use proptest::prelude::*;
use serde_json::{Value, json};

use tollgate::identity::algorithm::Algorithm;
use tollgate::identity::keys::{KeyError, KeySet};
use tollgate::identity::token::{Token, TokenFault, TokenRules, verify};
use tollgate::limiter::time::{Micros, Timestamp};

use tokens::{SECRET, Signer, pem};

/// When all of this happens, in seconds.
const NOW: u64 = 1_800_000_000;

const ALGORITHMS: [(Signing, Algorithm); 12] = [
    (Signing::HS256, Algorithm::Hs256),
    (Signing::HS384, Algorithm::Hs384),
    (Signing::HS512, Algorithm::Hs512),
    (Signing::RS256, Algorithm::Rs256),
    (Signing::RS384, Algorithm::Rs384),
    (Signing::RS512, Algorithm::Rs512),
    (Signing::PS256, Algorithm::Ps256),
    (Signing::PS384, Algorithm::Ps384),
    (Signing::PS512, Algorithm::Ps512),
    (Signing::ES256, Algorithm::Es256),
    (Signing::ES384, Algorithm::Es384),
    (Signing::EdDSA, Algorithm::EdDsa),
];

fn rules(algorithms: &[Algorithm]) -> TokenRules {
    TokenRules {
        algorithms: algorithms.into(),
        user_claims: ["user_id".into(), "sub".into()].into(),
        tier_claims: ["tier".into(), "/app/plan".into()].into(),
        issuer: None,
        audience: None,
        leeway: Micros::from_micros(30_000_000),
        bytes_max: 8192,
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn good() -> Value {
    json!({"sub": "42", "exp": NOW + 60})
}

/// What is made of a token: the user and the subscription, or why not.
fn verdict(token: &str, rules: &TokenRules, keys: &KeySet) -> Result<String, TokenFault> {
    verify(token, rules, keys, at(NOW)).map(|Token { credential, .. }| {
        let plan = credential.subscription.map(|it| format!(" {it}")).unwrap_or_default();
        format!("{}{plan}", credential.identity)
    })
}

#[test]
fn every_algorithm_verifies_its_own_and_no_other() {
    let all: Vec<Algorithm> = ALGORITHMS.map(|(_, it)| it).into();
    for (signing, algorithm) in ALGORITHMS {
        let signer = Signer::new(signing);
        let token = signer.token(&good());
        let jwk = signer.jwk.to_string();
        let set = json!({"keys": [signer.jwk("a")]}).to_string();
        let mut texts = vec![jwk, set];
        if !algorithm.is_symmetric() {
            texts.push(signer.pem());
        }
        for text in &texts {
            let keys = KeySet::parse(text.as_bytes(), &[algorithm]).unwrap();
            let only = rules(&[algorithm]);
            assert_eq!(verdict(&token, &only, &keys), Ok("user:42".into()), "{algorithm:?}");
            // Another key of the kind.
            let other = Signer::of_other_key(signing).token(&good());
            assert_eq!(verdict(&other, &only, &keys), Err(TokenFault::BadSignature));
            // A signature cut, or longer.
            let cut = &token[..token.len() - 4];
            let refused = [TokenFault::BadSignature, TokenFault::Malformed];
            assert!(refused.contains(&verdict(cut, &only, &keys).unwrap_err()));
            // The algorithm is not one that is accepted, although the key would fit.
            let others: Vec<Algorithm> =
                all.iter().copied().filter(|it| *it != algorithm).collect();
            assert_eq!(verdict(&token, &rules(&others), &keys), Err(TokenFault::Unacceptable));
        }
    }
}

impl Signer {
    fn of_other_key(signing: Signing) -> Self {
        match signing {
            Signing::HS256 | Signing::HS384 | Signing::HS512 => {
                Signer::of_secret(signing, &[7; 64])
            }
            _ => Signer::new(signing),
        }
    }
}

/// Tokens of RFC 7515 appendix A.1 and A.3 and of RFC 8037 appendix A.4, letter by letter.
#[test]
fn the_tokens_of_the_standards_verify() {
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19\
                  yb290Ijp0cnVlfQ";
    let cases = [
        (
            Algorithm::Hs256,
            r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#,
            format!(
                "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{claims}.\
                 dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
            ),
        ),
        (
            Algorithm::Es256,
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{claims}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw\
                 5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
            ),
        ),
    ];
    for (algorithm, jwk, token) in cases {
        let keys = KeySet::parse(jwk.as_bytes(), &[algorithm]).unwrap();
        let mut rules = rules(&[algorithm]);
        rules.user_claims = ["iss".into()].into();
        let before = verify(&token, &rules, &keys, at(1_300_819_379)).unwrap();
        assert_eq!(before.credential.identity.to_string(), "user:joe");
        let after = verify(&token, &rules, &keys, at(1_300_819_380 + 30));
        assert_eq!(after, Err(TokenFault::Expired));
    }
    // What RFC 8037 signs is no JSON: the signature counts all the same.
    let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let keys = KeySet::parse(jwk.as_bytes(), &[Algorithm::EdDsa]).unwrap();
    let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_\
                     MuM0KAg";
    let fits = keys.verify(
        Algorithm::EdDsa,
        None,
        message.as_bytes(),
        &URL_SAFE_NO_PAD.decode(signature).unwrap(),
    );
    assert_eq!(fits, Ok(()));
    let token = format!("{message}.{signature}");
    assert_eq!(verdict(&token, &rules(&[Algorithm::EdDsa]), &keys), Err(TokenFault::Malformed));
}

/// Each attack and what becomes of it. The name is what an attacker would call it.
#[test]
fn attacks_fail_as_they_should() {
    use TokenFault::{
        BadSignature, Expired, Malformed, NoUser, NotYetValid, Unacceptable, UnknownKid,
    };
    let hs = Signer::new(Signing::HS256);
    let rs = Signer::new(Signing::RS256);
    let jwks = json!({"keys": [rs.jwk("k1"), Signer::new(Signing::RS256).jwk("k2")]}).to_string();
    let rs_keys = KeySet::parse(jwks.as_bytes(), &[Algorithm::Rs256]).unwrap();
    let hs_keys = KeySet::of_secret(SECRET.as_bytes(), &[Algorithm::Hs256]);
    // Both kinds of algorithm are accepted, for a set that holds both kinds of key.
    let both_text = json!({"keys": [rs.jwk("k1"), hs.jwk("h1")]}).to_string();
    let both_algorithms = [Algorithm::Hs256, Algorithm::Rs256];
    let both_keys = KeySet::parse(both_text.as_bytes(), &both_algorithms).unwrap();
    let (hs_rules, rs_rules) = (rules(&[Algorithm::Hs256]), rules(&[Algorithm::Rs256]));
    let both_rules = rules(&both_algorithms);
    let strict = TokenRules {
        issuer: Some("https://id.example".into()),
        audience: Some("api".into()),
        ..hs_rules.clone()
    };
    let claims = good().to_string();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let none =
        |alg: &str| format!("{}.{}.", encode(&format!(r#"{{"alg":"{alg}"}}"#)), encode(&claims));
    let hs_of = |header: &str| hs.token_of(header, &claims);
    let of = |claims: Value| hs.token(&claims);
    let said = |claims: &str| hs.token_of(r#"{"alg":"HS256"}"#, claims);
    let confused = |secret: &[u8], kid: &str| {
        let forger = Signer::of_secret(Signing::HS256, secret);
        forger.token_of(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), &claims)
    };
    let issued = |iss: &str, aud: Value| of(json!({"sub": "1", "iss": iss, "aud": aud}));
    let with_exp = |exp: Value| of(json!({"sub": "1", "exp": exp}));

    type Case<'a> = (&'a str, String, &'a TokenRules, &'a KeySet, Result<&'a str, TokenFault>);
    let cases: Vec<Case<'_>> = vec![
        ("alg none", none("none"), &hs_rules, &hs_keys, Err(Unacceptable)),
        ("alg None", none("None"), &hs_rules, &hs_keys, Err(Unacceptable)),
        ("alg nOnE with RSA keys", none("nOnE"), &rs_rules, &rs_keys, Err(Unacceptable)),
        ("no alg", hs_of("{}"), &hs_rules, &hs_keys, Err(Malformed)),
        ("alg of another type", hs_of(r#"{"alg":["HS256"]}"#), &hs_rules, &hs_keys, Err(Malformed)),
        ("alg in lower case", hs_of(r#"{"alg":"hs256"}"#), &hs_rules, &hs_keys, Err(Unacceptable)),
        (
            "RS256 key's PEM as HMAC secret",
            confused(rs.pem().as_bytes(), "k1"),
            &rs_rules,
            &rs_keys,
            Err(Unacceptable),
        ),
        (
            "the same where HS256 is accepted, too",
            confused(rs.pem().as_bytes(), "k1"),
            &both_rules,
            &both_keys,
            Err(UnknownKid),
        ),
        (
            "RS256 key's DER as HMAC secret, without kid",
            Signer::of_secret(Signing::HS256, &rs.der).token(&good()),
            &both_rules,
            &both_keys,
            Err(BadSignature),
        ),
        (
            "kid that is a path",
            rs.token_with_kid(Some("../../../../dev/null"), &good()),
            &rs_rules,
            &rs_keys,
            Err(UnknownKid),
        ),
        (
            "kid that is SQL",
            rs.token_with_kid(Some("k1' OR '1'='1"), &good()),
            &rs_rules,
            &rs_keys,
            Err(UnknownKid),
        ),
        (
            "kid of another key of the set",
            rs.token_with_kid(Some("k2"), &good()),
            &rs_rules,
            &rs_keys,
            Err(BadSignature),
        ),
        ("no kid, two keys", rs.token(&good()), &rs_rules, &rs_keys, Err(UnknownKid)),
        (
            "kid that is a number",
            rs.token_of(r#"{"alg":"RS256","kid":1}"#, &claims),
            &rs_rules,
            &rs_keys,
            Err(Malformed),
        ),
        (
            "kid of 300 bytes",
            rs.token_with_kid(Some(&"k".repeat(300)), &good()),
            &rs_rules,
            &rs_keys,
            Err(Malformed),
        ),
        (
            "kid with a secret",
            hs.token_with_kid(Some("x"), &good()),
            &hs_rules,
            &hs_keys,
            Ok("user:42"),
        ),
        (
            "own key in the token: jwk",
            hs_of(&format!(
                r#"{{"alg":"HS256","jwk":{}}}"#,
                Signer::of_other_key(Signing::HS256).jwk
            )),
            &hs_rules,
            &hs_keys,
            Ok("user:42"),
        ),
        (
            "own key in the token, and signed with it",
            Signer::of_other_key(Signing::HS256).token_of(
                &format!(r#"{{"alg":"HS256","jwk":{}}}"#, Signer::of_other_key(Signing::HS256).jwk),
                &claims,
            ),
            &hs_rules,
            &hs_keys,
            Err(BadSignature),
        ),
        (
            "crit that must be understood",
            hs_of(r#"{"alg":"HS256","crit":["exp"],"exp":1}"#),
            &hs_rules,
            &hs_keys,
            Err(Unacceptable),
        ),
        (
            "unencoded payload (RFC 7797)",
            hs_of(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#),
            &hs_rules,
            &hs_keys,
            Err(Unacceptable),
        ),
        ("expired within the leeway", with_exp(json!(NOW - 29)), &hs_rules, &hs_keys, Ok("user:1")),
        ("expired", with_exp(json!(NOW - 30)), &hs_rules, &hs_keys, Err(Expired)),
        ("expired long ago", with_exp(json!(0)), &hs_rules, &hs_keys, Err(Expired)),
        ("expired before the epoch", with_exp(json!(-1)), &hs_rules, &hs_keys, Err(Expired)),
        (
            "exp with a fraction",
            with_exp(json!(NOW as f64 + 0.5)),
            &hs_rules,
            &hs_keys,
            Ok("user:1"),
        ),
        ("exp that is text", with_exp(json!("9999999999")), &hs_rules, &hs_keys, Err(Malformed)),
        ("exp beyond all time", with_exp(json!(1e300)), &hs_rules, &hs_keys, Ok("user:1")),
        ("exp of 2^64", with_exp(json!(u64::MAX)), &hs_rules, &hs_keys, Ok("user:1")),
        ("no exp", of(json!({"sub": "1"})), &hs_rules, &hs_keys, Ok("user:1")),
        (
            "not yet valid",
            of(json!({"sub": "1", "nbf": NOW + 31})),
            &hs_rules,
            &hs_keys,
            Err(NotYetValid),
        ),
        (
            "nbf within the leeway",
            of(json!({"sub": "1", "nbf": NOW + 30})),
            &hs_rules,
            &hs_keys,
            Ok("user:1"),
        ),
        (
            "right issuer and audience",
            issued("https://id.example", json!("api")),
            &strict,
            &hs_keys,
            Ok("user:1"),
        ),
        (
            "one audience of several",
            issued("https://id.example", json!(["x", "api"])),
            &strict,
            &hs_keys,
            Ok("user:1"),
        ),
        (
            "wrong audience",
            issued("https://id.example", json!("other")),
            &strict,
            &hs_keys,
            Err(Unacceptable),
        ),
        (
            "audience with the right one in it",
            issued("https://id.example", json!("api2")),
            &strict,
            &hs_keys,
            Err(Unacceptable),
        ),
        (
            "audience of another type",
            issued("https://id.example", json!({"api": 1})),
            &strict,
            &hs_keys,
            Err(Unacceptable),
        ),
        (
            "wrong issuer",
            issued("https://id.example.evil", json!("api")),
            &strict,
            &hs_keys,
            Err(Unacceptable),
        ),
        ("no issuer, no audience", of(json!({"sub": "1"})), &strict, &hs_keys, Err(Unacceptable)),
        (
            "huge token",
            of(json!({"sub": "1", "x": "x".repeat(10_000)})),
            &hs_rules,
            &hs_keys,
            Err(Malformed),
        ),
        ("two users", said(r#"{"sub":"1","sub":"2"}"#), &hs_rules, &hs_keys, Err(Malformed)),
        (
            "two users, one escaped",
            said(r#"{"sub":"1","s\u0075b":"2"}"#),
            &hs_rules,
            &hs_keys,
            Err(Malformed),
        ),
        ("two alg", hs_of(r#"{"alg":"none","alg":"HS256"}"#), &hs_rules, &hs_keys, Err(Malformed)),
        ("claims that are a list", said(r#"["1"]"#), &hs_rules, &hs_keys, Err(Malformed)),
        ("claims that are not JSON", said("sub=1"), &hs_rules, &hs_keys, Err(Malformed)),
        (
            "claims nested without end",
            said(&format!(r#"{{"a":{}1{}}}"#, "[".repeat(2000), "]".repeat(2000))),
            &hs_rules,
            &hs_keys,
            Err(Malformed),
        ),
        ("no user", of(json!({"name": "x"})), &hs_rules, &hs_keys, Err(NoUser)),
        (
            "user is null, then sub",
            of(json!({"user_id": null, "sub": "1"})),
            &hs_rules,
            &hs_keys,
            Ok("user:1"),
        ),
        ("user is empty", of(json!({"sub": ""})), &hs_rules, &hs_keys, Err(NoUser)),
        (
            "user of 300 bytes",
            of(json!({"sub": "u".repeat(300)})),
            &hs_rules,
            &hs_keys,
            Err(NoUser),
        ),
        ("user with a line feed", of(json!({"sub": "1\n2"})), &hs_rules, &hs_keys, Err(NoUser)),
        (
            "user is a number",
            of(json!({"user_id": 42, "sub": "x"})),
            &hs_rules,
            &hs_keys,
            Ok("user:42"),
        ),
        (
            "user is a large number",
            of(json!({"user_id": u64::MAX})),
            &hs_rules,
            &hs_keys,
            Ok("user:18446744073709551615"),
        ),
        (
            "user is a number that was rounded",
            said(r#"{"user_id":18446744073709551616}"#),
            &hs_rules,
            &hs_keys,
            Err(NoUser),
        ),
        ("user is a fraction", of(json!({"user_id": 1.5})), &hs_rules, &hs_keys, Err(NoUser)),
        ("user is an object", of(json!({"user_id": {"a": 1}})), &hs_rules, &hs_keys, Err(NoUser)),
        ("tier", of(json!({"sub": "1", "tier": "Pro"})), &hs_rules, &hs_keys, Ok("user:1 Pro")),
        (
            "tier in a nested claim",
            of(json!({"sub": "1", "app": {"plan": "pro"}})),
            &hs_rules,
            &hs_keys,
            Ok("user:1 pro"),
        ),
        (
            "tier of another type",
            of(json!({"sub": "1", "tier": ["pro"]})),
            &hs_rules,
            &hs_keys,
            Ok("user:1"),
        ),
        ("nothing", String::new(), &hs_rules, &hs_keys, Err(Malformed)),
        ("dots", "..".to_owned(), &hs_rules, &hs_keys, Err(Malformed)),
        ("one part", "abc".to_owned(), &hs_rules, &hs_keys, Err(Malformed)),
        ("two parts", "abc.def".to_owned(), &hs_rules, &hs_keys, Err(Malformed)),
        ("five parts: encrypted", "a.b.c.d.e".to_owned(), &hs_rules, &hs_keys, Err(Malformed)),
        ("a fourth part", format!("{}.x", of(good())), &hs_rules, &hs_keys, Err(Malformed)),
        ("padding", format!("{}=", of(good())), &hs_rules, &hs_keys, Err(Malformed)),
        ("blanks", format!(" {}", of(good())), &hs_rules, &hs_keys, Err(Malformed)),
    ];
    let count = cases.len();
    for (name, token, rules, keys, expected) in cases {
        let expected = expected.map(str::to_owned);
        assert_eq!(verdict(&token, rules, keys), expected, "{name}");
        println!(
            "{name:45} {}",
            match expected {
                Ok(who) => format!("believed: {who}"),
                Err(fault) => format!("{fault:?}"),
            }
        );
    }
    println!("{count} tokens");
}

#[test]
fn only_public_keys_of_a_fit_kind_are_taken() {
    let parse = |text: &str, algorithms: &[Algorithm]| {
        KeySet::parse(text.as_bytes(), algorithms).map(|set| (set.len(), set.skipped()))
    };
    let (es, rs) = (Signer::new(Signing::ES256), Signer::new(Signing::RS256));
    let both = [Algorithm::Rs256, Algorithm::Es256];
    let set = |keys: Vec<Value>| json!({ "keys": keys }).to_string();
    assert_eq!(parse(&set(vec![es.jwk("a"), rs.jwk("b")]), &both), Ok((2, 0)));
    assert_eq!(parse(&set(vec![es.jwk("a"), rs.jwk("b")]), &[Algorithm::Es256]), Ok((1, 1)));
    let with = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    for (name, value) in [
        ("use", json!("enc")),
        ("key_ops", json!(["encrypt"])),
        ("alg", json!("RSA-OAEP")),
        ("alg", json!("RS512")),
        ("kid", json!(7)),
        ("kty", json!("XX")),
        ("n", json!("AQAB")),
        ("n", json!("!")),
        ("e", json!("")),
    ] {
        let odd = with(rs.jwk("b"), name, value.clone());
        assert_eq!(
            parse(&set(vec![es.jwk("a"), odd.clone()]), &both),
            Ok((1, 1)),
            "{name} {value}"
        );
        let none = KeyError::NoneFits("RS256, ES256".into());
        assert_eq!(parse(&set(vec![odd]), &both), Err(none), "{name} {value}");
    }
    for (name, value) in
        [("x", json!("AQAB")), ("crv", json!("P-384")), ("crv", json!("secp256k1"))]
    {
        assert_eq!(
            parse(&set(vec![with(es.jwk("a"), name, value), rs.jwk("b")]), &both),
            Ok((1, 1))
        );
    }
    // A secret in a published set is nobody's secret.
    let oct = Signer::new(Signing::HS256).jwk("h");
    assert_eq!(parse(&set(vec![oct.clone(), rs.jwk("b")]), &both), Ok((1, 1)));
    let short = json!({"kty": "oct", "k": "c2hvcnQ"});
    assert!(parse(&short.to_string(), &[Algorithm::Hs256]).is_err());

    assert_eq!(parse(&pem("PRIVATE KEY", &rs.der), &both), Err(KeyError::Private));
    assert_eq!(parse(&pem("EC PRIVATE KEY", &rs.der), &both), Err(KeyError::Private));
    assert_eq!(parse(&pem("CERTIFICATE", &rs.der), &both), Err(KeyError::Certificate));
    assert_eq!(parse(&rs.pem(), &[Algorithm::Es256]), Err(KeyError::NoneFits("ES256".into())));
    // What is written before the block is a comment.
    assert_eq!(parse(&format!("# ours\n{}", rs.pem()), &both), Ok((1, 0)));
    for text in
        ["", "{}", "hello", "-----BEGIN PUBLIC KEY-----", "{\"keys\":1}", "{\"keys\":{}}", "["]
    {
        assert!(parse(text, &both).is_err(), "{text}");
    }
    let many = set((0..300).map(|n| es.jwk(&n.to_string())).collect());
    assert_eq!(parse(&many, &both), Err(KeyError::TooMany(300)));
    let shown = format!("{:?}", KeySet::of_secret(SECRET.as_bytes(), &[Algorithm::Hs256]));
    assert!(!shown.contains("horse"), "{shown}");
}

/// RSA of 1024 bits, made by `openssl genrsa 1024`.
#[test]
fn short_rsa_keys_are_refused() {
    let text = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDNtR0/67SZxSodES86en4FBlEk
UZFGLwg3nnBWO6coNTCDjDqRPbqI0WpQxdPsnahQ5Yr6tXXq1famR3WFRpxmMTg9
SWluild+RldyhvarBtILOPa6ITz52u7taJ26MATAUXxUcc/5TYqWDO9YUxLHQo/e
gQIUZsrpITzwsUF00QIDAQAB
-----END PUBLIC KEY-----
";
    assert_eq!(KeySet::parse(text.as_bytes(), &[Algorithm::Rs256]).unwrap_err(), KeyError::Short);
}

proptest! {
    /// Whatever is done to a good token: it is believed only if another implementation believes it,
    /// and then of the same user.
    #[test]
    fn nothing_is_believed_that_another_implementation_refuses(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..4),
        exp in NOW - 100..NOW + 100,
    ) {
        let signer = Signer::new(Signing::HS256);
        let mut token = signer.token(&json!({"sub": "42", "exp": exp})).into_bytes();
        for (place, byte, how) in changes {
            let place = place.index(token.len().max(1));
            match how {
                0 if !token.is_empty() => token[place] = byte,
                1 => token.insert(place, byte),
                2 if !token.is_empty() => { token.remove(place); }
                _ => token.truncate(place),
            }
        }
        let token = String::from_utf8_lossy(&token).into_owned();
        let keys = KeySet::of_secret(SECRET.as_bytes(), &[Algorithm::Hs256]);
        let ours = verdict(&token, &rules(&[Algorithm::Hs256]), &keys);
        let mut validation = jsonwebtoken::Validation::new(Signing::HS256);
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let key = jsonwebtoken::DecodingKey::from_secret(SECRET.as_bytes());
        let theirs = jsonwebtoken::decode::<Value>(&token, &key, &validation);
        match (ours, theirs) {
            (Ok(user), Ok(data)) => {
                prop_assert_eq!(user, format!("user:{}", data.claims["sub"].as_str().unwrap()));
                prop_assert!(exp + 30 > NOW);
            }
            (Ok(user), Err(error)) => prop_assert!(false, "{} against {}", user, error),
            (Err(TokenFault::Expired), Ok(_)) => prop_assert!(exp + 30 <= NOW),
            (Err(_), _) => {}
        }
    }
}
