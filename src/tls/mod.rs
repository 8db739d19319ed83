//! TLS of both sides: what a listener shows, and whom tollgate trusts.
//!
//! Makes rustls configurations from bytes. It reads no file and opens no socket.

pub mod certificate;
pub mod client;
pub mod revocations;
pub mod roots;
pub mod server;
