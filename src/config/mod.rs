//! What the operator wrote, and its compilation.
//!
//! Text becomes a tree that knows where each value stands ([`tree`]), the tree becomes the mirror
//! of the file ([`decode`] into [`schema`] and [`schema_tiers`]), and the mirror becomes values
//! that cannot be wrong ([`compile`] and its siblings). [`load::load`] is the one way in.
//! Nothing of this is touched while a request is served.

pub mod blot;
pub mod compile;
pub mod compile_limits;
pub mod compile_rules;
pub mod compile_tests;
pub mod compile_tiers;
pub mod decode;
pub mod json_schema;
pub mod load;
pub mod report;
pub mod schema;
pub mod schema_tiers;
pub mod tree;
pub mod unsupported;
pub mod url;
pub mod value;
pub mod warnings;
