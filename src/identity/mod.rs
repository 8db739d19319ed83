//! From what a request presents to who sent it: tokens, API keys and certificates of clients.
//!
//! [`identifier::Identifier`] tries the configured ways in order. It finds a token or key in the
//! request ([`present`]), knows it already ([`cache`]) or verifies it ([`token`] over [`keys`], or
//! [`api_key`]), or is told by the connection ([`certificate`]), and says who it names. What it
//! names is a [`crate::policy::caller::Credential`]; which tier that means is the policy's business.
//! Key sets at a URL are kept fresh by [`jwks`] over [`fetch`], beside the requests.
//!
//! Nothing here trusts a token's own word for how it is to be verified, and no secret, token or key
//! is ever written out.

pub mod algorithm;
pub mod api_key;
pub mod cache;
pub mod certificate;
pub mod fetch;
pub mod identifier;
pub mod json;
pub mod jwks;
pub mod keys;
pub mod present;
pub mod throttle;
pub mod token;
