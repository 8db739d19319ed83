//! `X-Forwarded-For` and `Forwarded` beside a simple oracle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use tollgate::policy::forwarded::{ClientAddress, ForwardedFault, client_address};

/// `X-Forwarded-For` and `Forwarded` beside a simple oracle.
///
/// The input is lines: one that begins with `f` is a line of `Forwarded`, any other one of
/// `X-Forwarded-For`, without that first byte. The peer is trusted.
pub fn forwarded(data: &[u8]) {
    let trusted: Vec<IpNet> =
        ["10.0.0.0/8", "2001:db8:f::/48"].map(|it| it.parse().expect("a network")).into();
    let peer = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let is_ours = |it: IpAddr| trusted.iter().any(|net| net.contains(&it));
    let (mut lists, mut elements) = (Vec::new(), Vec::new());
    let mut headers = HeaderMap::new();
    for line in data.split(|it| *it == b'\n') {
        let Some((kind, text)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(text) else { continue };
        let (name, lines) = match kind {
            b'f' => ("forwarded", &mut elements),
            _ => ("x-forwarded-for", &mut lists),
        };
        headers.append(name, value);
        lines.push(text.to_vec());
    }
    let found = client_address(peer, &headers, &trusted);
    assert!(found.fault != Some(ForwardedFault::Untrusted));

    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let untrusted = client_address(stranger, &headers, &trusted);
    let fault = (!headers.is_empty()).then_some(ForwardedFault::Untrusted);
    assert_eq!(untrusted, ClientAddress { address: stranger, fault }, "{headers:?}");

    // `None`: nobody; `Some(None)`: it cannot be read.
    let walk = |chain: Vec<Option<Option<IpAddr>>>| {
        let mut known = None;
        for (count, node) in chain.into_iter().rev().enumerate() {
            if count == 64 {
                return Some(None);
            }
            let Some(node) = node else { continue };
            known = Some(node);
            if node.is_none_or(|it| !is_ours(it)) {
                break;
            }
        }
        known
    };
    let split = |line: &Vec<u8>| -> Vec<Option<Option<IpAddr>>> {
        let text: Vec<&[u8]> = line.split(|it| *it == b',').map(<[u8]>::trim_ascii).collect();
        text.into_iter().map(|it| (!it.is_empty()).then(|| node(it))).collect()
    };
    let by_list = walk(lists.iter().flat_map(split).collect());
    let read: Option<Vec<_>> = elements.iter().map(|line| well_formed(line)).collect();
    if let Some(read) = read {
        let by_elements = walk(read.into_iter().flatten().collect());
        let expected = match (by_list, by_elements) {
            (None, None) => (peer, None),
            (None, Some(Some(it))) => (it, None),
            (Some(None), _) | (None, Some(None)) => (peer, Some(ForwardedFault::Malformed)),
            (Some(Some(it)), None) => (it, None),
            (Some(Some(it)), Some(other)) => {
                (it, (other != Some(it)).then_some(ForwardedFault::Conflict))
            }
        };
        assert_eq!((found.address, found.fault), expected, "{headers:?}");
    }
    // What a proxy of ours appends counts, whatever stands before it.
    let caller: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | 1));
    for (name, last) in [("x-forwarded-for", "2001:db8::1"), ("forwarded", "for=\"[2001:db8::1]\"")]
    {
        let mut headers = headers.clone();
        let other = if name == "forwarded" { "x-forwarded-for" } else { "forwarded" };
        headers.remove(other);
        let lines: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
        let before = lines.last().map_or(&b""[..], HeaderValue::as_bytes);
        let line = HeaderValue::from_bytes(&[before, b", ", last.as_bytes()].concat());
        headers.remove(name);
        let name = HeaderName::from_static(name);
        for line in lines.iter().rev().skip(1).rev() {
            headers.append(name.clone(), line.clone());
        }
        headers.append(name, line.expect("a line with text behind it"));
        let found = client_address(peer, &headers, &trusted);
        assert_eq!((found.address, found.fault), (caller, None), "{headers:?}");
    }
}

/// An address as a chain may hold it.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok().filter(|it| it.len() <= 128)?;
    let with_port = |port: &str| match port.strip_prefix('_') {
        Some(name) => {
            !name.is_empty()
                && name.chars().all(|it| it.is_ascii_alphanumeric() || "._-".contains(it))
        }
        None => port.bytes().all(|it| it.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    };
    let bare = text.parse::<IpAddr>().ok();
    let bracketed = || {
        let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
        let is_fine = rest.is_empty() || rest.strip_prefix(':').is_some_and(with_port);
        address.parse::<Ipv6Addr>().ok().filter(|_| is_fine).map(IpAddr::V6)
    };
    let v4_with_port = || {
        let (address, port) = text.split_once(':')?;
        address.parse::<Ipv4Addr>().ok().filter(|_| with_port(port)).map(IpAddr::V4)
    };
    bare.or_else(bracketed).or_else(v4_with_port).map(|it| it.to_canonical())
}

/// The elements of a line of `Forwarded` that keeps to the grammar of RFC 7239 §4, read from the
/// left: nothing for an empty one, `Some(None)` for one that names no address. `None`: it does not
/// keep to the grammar.
fn well_formed(line: &[u8]) -> Option<Vec<Option<Option<IpAddr>>>> {
    let is_token = |it: u8| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it);
    let mut elements = Vec::new();
    let mut at = 0;
    let skip = |mut at: usize| {
        while line.get(at).is_some_and(|it| matches!(it, b' ' | b'\t')) {
            at += 1;
        }
        at
    };
    loop {
        at = skip(at);
        let (mut pairs, mut named) = (0, Vec::new());
        while at < line.len() && line[at] != b',' {
            let start = at;
            while at < line.len() && is_token(line[at]) {
                at += 1;
            }
            let name = &line[start..at];
            if name.is_empty() || line.get(at) != Some(&b'=') {
                return None;
            }
            at += 1;
            let mut value = Vec::new();
            if line.get(at) == Some(&b'"') {
                at += 1;
                while *line.get(at)? != b'"' {
                    at += usize::from(line[at] == b'\\');
                    value.push(*line.get(at)?);
                    at += 1;
                }
                at += 1;
            } else {
                while at < line.len() && is_token(line[at]) {
                    value.push(line[at]);
                    at += 1;
                }
                if value.is_empty() {
                    return None;
                }
            }
            pairs += 1;
            if name.eq_ignore_ascii_case(b"for") {
                named.push(node(&value));
            }
            at = skip(at);
            match line.get(at) {
                Some(b';') => at = skip(at + 1),
                Some(b',') | None => {}
                Some(_) => return None,
            }
        }
        elements.push((pairs > 0).then_some(match named.as_slice() {
            [only] => *only,
            _ => None,
        }));
        if at >= line.len() {
            return Some(elements);
        }
        at += 1;
    }
}
