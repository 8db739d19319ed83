//! Spans of requests, for whoever collects traces by OTLP.
//!
//! Spans are plain records, made for the requests that are recorded and for no other, and sent in
//! batches as OTLP/HTTP with JSON. Spans of the `tracing` crate and the crates of OpenTelemetry
//! would cost every request, and bring some twenty crates for one message of one format.

pub mod context;
pub mod encode;
pub mod export;
pub mod span;
