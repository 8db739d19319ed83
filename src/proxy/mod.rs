//! The data path: from an accepted connection to the end of an answer.
//!
//! `listener` accepts (`per_address`), `worker` takes over, `connection` finds out who is there
//! (`announced`) and what is spoken and
//! serves it (`handshake`, `transport`, `io`, `http2`), `service::handle` holds the branches of a
//! request, `forward` talks to the upstream
//! (`extended_connect` makes of a WebSocket over HTTP/2 what it can be told), `reply` makes what tollgate answers itself, and
//! `exchange` tells of it once, however it ended. It must not know the operator's files, nor
//! decide a limit.

pub mod address;
pub mod announced;
pub mod attempt;
pub mod body;
pub mod caller;
pub mod circuit;
pub mod connect;
pub mod connection;
pub mod exchange;
pub mod extended_connect;
pub mod forward;
pub mod frames;
pub mod gate;
pub mod handshake;
pub mod headers;
pub mod health_check;
pub mod http2;
pub mod http2_message;
pub mod io;
pub mod listener;
pub mod multiplex;
pub mod per_address;
pub mod pool;
pub mod record;
pub mod reply;
pub mod resolve;
pub mod retry;
pub mod self_service;
pub mod service;
pub mod timer;
pub mod transport;
pub mod tunnel;
pub mod upstreams;
pub mod worker;
