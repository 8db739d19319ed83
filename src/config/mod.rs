//! What the operator wrote, and its compilation.
//!
//! Text becomes a tree that knows where each value stands ([`tree`]), the tree becomes the mirror
//! of the file ([`decode`] into [`schema`] and [`schema_tiers`]), and the mirror becomes values
//! that cannot be wrong ([`compile`] and its siblings). [`load`] is the one way in, [`reload`]
//! knows when it is worth going again.
//! Nothing of this is touched while a request is served.

pub mod blot;
pub mod compile;
pub mod compile_identity;
pub mod compile_keys;
pub mod compile_limits;
pub mod compile_listeners;
pub mod compile_lookup;
pub mod compile_redis;
pub mod compile_rules;
pub mod compile_secret;
pub mod compile_signals;
pub mod compile_tests;
pub mod compile_tiers;
pub mod compile_tls;
pub mod compile_upstream;
pub mod compile_usage;
pub mod decode;
pub mod json_schema;
pub mod keys_file;
pub mod load;
pub mod page;
pub mod postgres_url;
pub mod reload;
pub mod report;
pub mod schema;
pub mod schema_tiers;
pub mod swapped;
pub mod tree;
pub mod unsupported;
pub mod url;
pub mod value;
pub mod warnings;
