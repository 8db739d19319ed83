//! What the servers of a cluster say of each other: who keeps which slot, and who to ask instead.
//!
//! A cluster has 16,384 slots (Redis Cluster Specification, "Key distribution model"). Reads
//! replies only; asks nobody.

use fred::types::Value;

use super::target::RedisAddress;

/// Slots of a cluster.
pub const SLOTS: usize = 16_384;

/// A part of the slots, and who keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first slot.
    pub first: u16,
    /// Its last one.
    pub last: u16,
    /// The primary.
    pub owner: RedisAddress,
}

/// Where a server says that a key is to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// There, from now on.
    Moved(RedisAddress),
    /// There, this once: the slot is on its way.
    Ask(RedisAddress),
    /// Here, soon: of several keys some are on their way.
    Later,
}

/// Reads an error; `None`: it is another one. What names no host means that of `asked`.
pub fn redirection(error: &str, asked: &RedisAddress) -> Option<Redirection> {
    let mut words = error.split_ascii_whitespace();
    let kind = words.next()?;
    if kind == "TRYAGAIN" {
        return Some(Redirection::Later);
    }
    if kind != "MOVED" && kind != "ASK" {
        return None;
    }
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    let address = address(host, port.parse().ok()?, asked)?;
    Some(if kind == "ASK" { Redirection::Ask(address) } else { Redirection::Moved(address) })
}

/// Reads what `asked` answers to `CLUSTER SLOTS`; `None`: that is no such answer.
pub fn ranges(reply: &Value, asked: &RedisAddress) -> Option<Vec<Range>> {
    let Value::Array(entries) = reply else { return None };
    entries.iter().map(|entry| range(entry, asked)).collect()
}

fn range(entry: &Value, asked: &RedisAddress) -> Option<Range> {
    let Value::Array(parts) = entry else { return None };
    let [first, last, primary, ..] = parts.as_slice() else { return None };
    let slot = |value: &Value| {
        let slot = u16::try_from(value.as_i64()?).ok()?;
        (usize::from(slot) < SLOTS).then_some(slot)
    };
    let Value::Array(primary) = primary else { return None };
    let [host, port, ..] = primary.as_slice() else { return None };
    let port = u16::try_from(port.as_i64()?).ok()?;
    let host = host.as_str().unwrap_or_default();
    Some(Range { first: slot(first)?, last: slot(last)?, owner: address(&host, port, asked)? })
}

/// A server that does not know its own host leaves it out, and means the one that it was asked at.
fn address(host: &str, port: u16, asked: &RedisAddress) -> Option<RedisAddress> {
    let host = match (host, asked) {
        ("" | "?", RedisAddress::Tcp { host, .. }) => host,
        ("" | "?", RedisAddress::Unix { .. }) => return None,
        (host, _) => host,
    };
    Some(RedisAddress::Tcp { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> RedisAddress {
        RedisAddress::Tcp { host: host.into(), port }
    }

    #[test]
    fn redirections_are_told_from_other_errors() {
        let asked = tcp("10.0.0.1", 7000);
        let read = |error| redirection(error, &asked);
        assert_eq!(
            read("MOVED 3999 10.0.0.2:7001"),
            Some(Redirection::Moved(tcp("10.0.0.2", 7001)))
        );
        assert_eq!(read("ASK 3999 ::1:7001"), Some(Redirection::Ask(tcp("::1", 7001))));
        assert_eq!(read("MOVED 1 :7001"), Some(Redirection::Moved(tcp("10.0.0.1", 7001))));
        assert_eq!(read("MOVED 1 ?:7001"), Some(Redirection::Moved(tcp("10.0.0.1", 7001))));
        let later = "TRYAGAIN Multiple keys request during rehashing of slot";
        assert_eq!(read(later), Some(Redirection::Later));
        for other in ["", "MOVED", "MOVED 1", "MOVED 1 a", "ASK 1 a:b", "ERR MOVED 1 a:1", "MOVEDX"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn the_map_names_the_primaries() {
        let asked = tcp("seed", 1);
        let server = |host: Value, port: i64| Value::Array(vec![host, port.into(), "id".into()]);
        let entry = |first: i64, last: i64, primary| {
            let replica = server("10.0.0.9".into(), 7);
            Value::Array(vec![first.into(), last.into(), primary, replica])
        };
        let reply = Value::Array(vec![
            entry(0, 8_191, server("10.0.0.2".into(), 7000)),
            entry(8_192, 16_383, server(Value::Null, 7001)),
        ]);
        let owner = |range: &Range| range.owner.clone();
        let read = ranges(&reply, &asked).unwrap();
        assert_eq!(
            read.iter().map(owner).collect::<Vec<_>>(),
            [tcp("10.0.0.2", 7000), tcp("seed", 7001)]
        );
        assert_eq!((read[1].first, read[1].last), (8_192, 16_383));
        let too_far = Value::Array(vec![entry(0, 16_384, server("a".into(), 1))]);
        assert_eq!(ranges(&too_far, &asked), None);
        assert_eq!(ranges(&Value::Null, &asked), None);
    }
}
