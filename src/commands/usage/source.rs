//! Where records are read: an admin port, or a sink itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::admin::usage::{Shown, ShownPage};
use crate::commands::admin_client::{Question, read_token};
use crate::config::compile_lookup::read_file;
use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Overrides, load};
use crate::config::{postgres_url, url};
use crate::usage::record::{Query, written};
use crate::usage::sink::{Place, Sink};

use super::super::Failure;

/// Records of one page of an admin port.
const ADMIN_PAGE: usize = 1_000;

/// For a page: a sink may have much to read for it.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Where records are read.
pub(super) enum Source {
    Admin { url: String, token: Option<String> },
    Sink(Box<Sink>),
}

impl Source {
    /// What `--source` names, or else the configuration.
    pub(super) fn open(
        source: Option<&str>,
        config: Option<&Path>,
        token_file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let Some(source) = source else { return Self::of_config(config) };
        let scheme = source.split_once(':').map_or("", |(scheme, _)| scheme);
        let place = match scheme {
            "http" => return Ok(Self::admin(source, token_file)?),
            "redis+unix" | "unix" | "redis" | "redis-sentinel" | "redis-cluster" | "rediss"
            | "rediss-sentinel" | "rediss-cluster" => {
                let url = url::redis(source).map_err(|it| wrong(&it))?;
                Place::Redis(url.target(), "tg".into())
            }
            "postgres" | "postgresql" => {
                let target = postgres_url::postgres(source, &read_file);
                Place::Postgres(target.map_err(|it| wrong(&it))?)
            }
            "file" => {
                let path = source.strip_prefix("file:").unwrap_or(source);
                Place::File(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
            }
            _ if source.contains("://") => {
                return Err(Failure::Running(anyhow::anyhow!(
                    "--source: {scheme}://…, expected http://, redis://, postgres:// or a directory"
                )));
            }
            _ => Place::File(PathBuf::from(source)),
        };
        Ok(Self::sink(&place)?)
    }

    /// An admin port by its URL.
    pub(super) fn admin(url: &str, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let token = token_file.map(read_token).transpose()?;
        Ok(Source::Admin { url: url.to_owned(), token })
    }

    fn of_config(config: Option<&Path>) -> Result<Self, Failure> {
        let loaded = load(&LoadRequest {
            config,
            tiers: None,
            overrides: Overrides::default(),
            upstream: UpstreamNeed::Optional,
            env: &|name| std::env::var(name).ok(),
        })?;
        let Some(usage) = loaded.settings.usage else {
            return Err(Failure::Running(anyhow::anyhow!(
                "no --source, and the configuration's usage.sink is off"
            )));
        };
        Ok(Self::sink(&usage.place)?)
    }

    fn sink(place: &Place) -> anyhow::Result<Self> {
        if let Place::File(path) = place {
            ensure!(path.is_dir(), "{}: no such directory", path.display());
        }
        // Nothing is written: neither epoch nor retention matter.
        let sink = Sink::new(place, 0, Duration::ZERO)?;
        Ok(Source::Sink(Box::new(sink)))
    }

    /// Calls `each` with every record in order.
    pub(super) fn each(
        self,
        mut query: Query,
        each: &mut dyn FnMut(Shown) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let by = query.by;
        match self {
            Source::Sink(mut sink) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                loop {
                    let page = runtime.block_on(sink.page(&query))?;
                    for record in &page.records {
                        each(Shown::new(record, by))?;
                    }
                    query.after = page.next;
                    if query.after.is_none() {
                        return Ok(());
                    }
                }
            }
            Source::Admin { url, token } => {
                let mut path = format!("/api/v1/usage?limit={ADMIN_PAGE}&by={}", by.as_str());
                let (from, to) = (written(query.from), written(query.to));
                path.push_str(&format!("&from={from}&to={to}"));
                for (name, value) in [("identity", &query.identity), ("tier", &query.tier)] {
                    if let Some(value) = value {
                        path.push_str(&format!("&{name}={}", encoded(value)));
                    }
                }
                let mut next: Option<String> = None;
                loop {
                    let after = next.map_or_else(String::new, |it| format!("&after={it}"));
                    let body = get("--source", &url, &format!("{path}{after}"), token.clone())?;
                    let page: ShownPage =
                        serde_json::from_str(&body).context("the answer is no page of records")?;
                    page.records.into_iter().try_for_each(&mut *each)?;
                    next = page.next;
                    if next.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The body of a good answer. `option`: what the URL was given by.
pub(super) fn get(
    option: &str,
    url: &str,
    path: &str,
    token: Option<String>,
) -> anyhow::Result<String> {
    let question = Question { token, timeout: ANSWER_MAX, ..Question::get(path) };
    question.ask(option, url)?.good()
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn wrong(problem: &crate::config::report::Problem) -> anyhow::Error {
    anyhow::anyhow!("--source: {}", problem.message())
}
