//! Every number that tollgate publishes about itself, and the text that Prometheus reads.
//!
//! Three layers. [`names`] declares each metric once: name, type, labels, help, unit. What a
//! request touches counts in cells that belong to the thread ([`cells`], [`histogram`], [`window`])
//! and are reached by index, never by label ([`policy`]). What happens rarely goes through cached
//! handles of the exporter's recorder ([`registry`]). A scrape adds the cells up, writes the families
//! of the policy and all histograms itself, and takes the rest from the exporter. [`page`] makes the
//! documentation.
//!
//! Label values come from closed enums ([`labels`]) or from configuration, never from a request.
//! Nothing here reads a clock: the time is an argument.

pub mod admin;
pub mod cells;
pub mod checks;
pub mod edge_labels;
pub mod histogram;
pub mod identity;
pub mod labels;
pub mod logs;
pub mod memory;
mod named;
pub mod names;
pub mod page;
pub mod policy;
pub mod pulse;
pub mod registry;
pub mod runtime;
pub mod series;
pub mod tls;
pub mod tunnels;
pub mod window;

mod exposition;
mod handles;
mod scrape;
mod scrape_policy;
