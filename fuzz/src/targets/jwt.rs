//! Tokens and keys beside another implementation.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey, Validation};
use serde_json::Value;

use tollgate::identity::algorithm::Algorithm;
use tollgate::identity::keys::KeySet;
use tollgate::identity::token::{TokenRules, judge, unverified};
use tollgate::limiter::time::Micros;

const SECRET: &[u8] = b"correct horse battery staple, and then some more of it for sixty-four";
/// The public keys of RFC 7515 appendix A.2 and A.3, and of RFC 8037 appendix A.
const JWKS: &str = r#"{"keys":[
{"kid":"es","kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
{"kid":"ed","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

static TOKEN_RULES: LazyLock<TokenRules> = LazyLock::new(|| TokenRules {
    algorithms: [Algorithm::Hs256, Algorithm::Es256, Algorithm::EdDsa].into(),
    user_claims: ["user_id".into(), "sub".into(), "iss".into()].into(),
    tier_claims: ["tier".into(), "/app/plan".into()].into(),
    issuer: None,
    audience: None,
    leeway: Micros::from_micros(0),
    bytes_max: 8192,
});
static HS: LazyLock<KeySet> = LazyLock::new(|| KeySet::of_secret(SECRET, &[Algorithm::Hs256]));
static SET: LazyLock<KeySet> = LazyLock::new(|| {
    KeySet::parse(JWKS.as_bytes(), &[Algorithm::Es256, Algorithm::EdDsa]).expect("a set of keys")
});

/// Tokens and keys beside another implementation.
///
/// The input is a token; or, behind an `s`, the header and the claims of one, parted by a line feed,
/// which is signed here; or, behind a `k`, a set of keys.
pub fn jwt(data: &[u8]) {
    match data.split_first() {
        Some((b's', parts)) => {
            let parts: Vec<&[u8]> = parts.splitn(2, |it| *it == b'\n').collect();
            let [header, claims] = parts[..] else { return };
            let [header, claims] = [header, claims].map(|it| URL_SAFE_NO_PAD.encode(it));
            let message = format!("{header}.{claims}");
            let key = EncodingKey::from_secret(SECRET);
            let signed = jsonwebtoken::crypto::sign(
                message.as_bytes(),
                &key,
                jsonwebtoken::Algorithm::HS256,
            );
            believed_by_both(&format!("{message}.{}", signed.expect("a signature")));
        }
        Some((b'k', keys)) => {
            let _ = KeySet::parse(keys, &Algorithm::ALL);
        }
        _ => {
            if let Ok(token) = std::str::from_utf8(data) {
                believed_by_both(token);
            }
        }
    }
}

/// Whatever tollgate believes, the other implementation believes, of the same user.
fn believed_by_both(token: &str) {
    let _ = unverified(token);
    let secret = DecodingKey::from_secret(SECRET);
    let keys: Value = serde_json::from_str(JWKS).expect("JSON");
    let public = |index: usize| {
        let jwk = serde_json::from_value(keys["keys"][index].clone()).expect("a JWK");
        DecodingKey::from_jwk(&jwk).expect("a key")
    };
    let theirs = [
        (&*HS, jsonwebtoken::Algorithm::HS256, secret),
        (&*SET, jsonwebtoken::Algorithm::ES256, public(0)),
        (&*SET, jsonwebtoken::Algorithm::EdDSA, public(1)),
    ];
    for keys in [&*HS, &*SET] {
        let Ok(ours) = judge(token, &TOKEN_RULES, keys) else { continue };
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        let fits =
            theirs.iter().filter(|(set, ..)| std::ptr::eq(*set, keys)).any(|(_, alg, key)| {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, *alg)
                    .is_ok_and(|it| it)
            });
        assert!(fits, "{token} is believed, and its signature does not fit");
        assert!(ours.from <= ours.until || ours.until.as_micros() < ours.from.as_micros());
        // The other implementation has types for fields of the header that nobody here looks at.
        let Ok(header) = jsonwebtoken::decode_header(token) else { continue };
        let mut validation = Validation::new(header.alg);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let (_, _, key) = theirs
            .iter()
            .find(|(_, alg, _)| *alg == header.alg)
            .expect("one of the algorithms that are accepted");
        let data = jsonwebtoken::decode::<Value>(token, key, &validation);
        let claims = data.unwrap_or_else(|error| panic!("{token} is believed: {error}")).claims;
        let user = ["user_id", "sub", "iss"].iter().map(|it| &claims[it]).find(|it| !it.is_null());
        let user = match user {
            Some(Value::String(text)) => text.clone(),
            Some(number) => number.to_string(),
            None => panic!("{token} is believed, and names nobody"),
        };
        assert_eq!(ours.credential.identity.to_string(), format!("user:{user}"), "{token}");
    }
}
