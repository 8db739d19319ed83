//! How a Redis is reached, in every form that it may have: one server, with TLS or without, on a
//! socket of this machine, found through sentinels, or a cluster of several.
//!
//! [`servers::Servers`] holds a connection to each server that has to be asked and knows which of
//! them to ask for a key. What is asked is not known here, nor what becomes of a request meanwhile.

pub mod node;
mod sentinels;
pub mod servers;
pub mod slots;
pub mod target;
