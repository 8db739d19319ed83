//! Asks sentinels where the primary is (Redis documentation, "Guidelines for Redis clients with
//! support for Redis Sentinel"). All of them at once: one that stands still must not be what the
//! others are waited for.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::Value;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::node::{custom, drive};
use super::target::{Form, RedisAddress, RedisTarget};

/// For the answers of all.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// The sentinels of a target.
pub struct Sentinels {
    clients: Vec<(RedisAddress, Client)>,
    service: String,
}

impl Sentinels {
    /// Connects to nothing yet; `None` where there are none.
    pub fn of(target: &RedisTarget) -> Option<Self> {
        let Form::Sentinel { sentinels, service, .. } = target.form() else { return None };
        let client = |at: &RedisAddress| (at.clone(), target.sentinel_client(at, ANSWER_MAX));
        let clients = sentinels.iter().map(client).collect();
        Some(Sentinels { clients, service: service.clone() })
    }

    /// Keeps the connections, for ever.
    pub async fn drive(&self) {
        join_all(self.clients.iter().map(|(_, client)| drive(client))).await;
    }

    /// Whom most of them name that answer. Of two that are named as often, `known` is it if it
    /// `is_up`, and is it not if it is away: who names it may not have heard yet.
    pub async fn named(&self, known: Option<&RedisAddress>, is_up: bool) -> Option<RedisAddress> {
        let answers = join_all(self.clients.iter().map(|(at, client)| self.ask(at, client))).await;
        most_named(answers.into_iter().flatten(), known, is_up)
    }

    async fn ask(&self, at: &RedisAddress, client: &Client) -> Option<RedisAddress> {
        if !client.is_connected() {
            return None;
        }
        let arguments = vec!["GET-MASTER-ADDR-BY-NAME".to_owned(), self.service.clone()];
        match timeout(ANSWER_MAX, client.custom::<Value, _>(custom("SENTINEL"), arguments)).await {
            Ok(Ok(reply)) => {
                let (host, port): (String, u16) = reply.convert().ok()?;
                Some(RedisAddress::Tcp { host, port })
            }
            Ok(Err(error)) => {
                tracing::debug!(sentinel = %at, error = error.details(), "a sentinel does not say");
                None
            }
            Err(_) => {
                // A connection over which nothing comes back is not noticed by the client.
                let _ = timeout(ANSWER_MAX, client.force_reconnection()).await;
                None
            }
        }
    }
}

fn most_named(
    answers: impl Iterator<Item = RedisAddress>,
    known: Option<&RedisAddress>,
    is_up: bool,
) -> Option<RedisAddress> {
    let mut votes: Vec<(usize, RedisAddress)> = Vec::new();
    for answer in answers {
        match votes.iter_mut().find(|(_, address)| *address == answer) {
            Some((count, _)) => *count = count.saturating_add(1),
            None => votes.push((1, answer)),
        }
    }
    let best = votes.into_iter().max_by_key(|(count, address)| {
        let is_known = Some(address) == known;
        (*count, is_known == is_up)
    });
    best.map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_are_believed() {
        let at = |port| RedisAddress::Tcp { host: "a".into(), port };
        let named = |ports: &[u16], is_up| {
            most_named(ports.iter().map(|port| at(*port)), Some(&at(1)), is_up)
        };
        for is_up in [true, false] {
            assert_eq!(named(&[1, 2, 2], is_up), Some(at(2)));
            assert_eq!(named(&[1, 2, 1], is_up), Some(at(1)));
            assert_eq!(named(&[1], is_up), Some(at(1)));
            assert_eq!(named(&[], is_up), None);
        }
        assert_eq!(named(&[1, 2], true), Some(at(1)));
        assert_eq!(named(&[2, 1], true), Some(at(1)));
        assert_eq!(named(&[1, 2], false), Some(at(2)));
        assert_eq!(named(&[2, 1], false), Some(at(2)));
    }
}
