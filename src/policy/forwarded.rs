//! The caller's address: the socket's peer, or whom trusted proxies name in `X-Forwarded-For` or
//! `Forwarded` (RFC 7239).
//!
//! A chain is walked from the right, where trusted proxies append, and the walk ends at the first
//! address that is none of theirs. What stands left of it came from the caller and is not even
//! read: nothing that a caller writes there can change who it is. Nothing here allocates, and no
//! byte is looked at more than a few times.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{FORWARDED, GetAll, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Elements of a chain that are looked at, empty ones too. No honest request passes so many
/// proxies.
const ELEMENTS_MAX: usize = 64;
/// Longest element of `X-Forwarded-For`, or value of `for=`, that is taken for an address. The
/// longest address with its brackets and port has 53 bytes.
const NODE_BYTES_MAX: usize = 128;

/// Where a request comes from, and what was wrong with what its fields say of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The caller's address, IPv4 mapped into IPv6 already folded.
    pub address: IpAddr,
    /// What forwarding fields said in vain, if they did.
    pub fault: Option<ForwardedFault>,
}

/// Why forwarding fields, or one of them, were not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedFault {
    /// They came from a peer that is not trusted: the address is the peer's.
    Untrusted,
    /// They came from a trusted peer and name nobody: what the walk met is no address (RFC 7239's
    /// `unknown` and obfuscated names included), or there was no end to it. The address is the
    /// peer's.
    Malformed,
    /// `X-Forwarded-For` was believed, and `Forwarded` names somebody else.
    Conflict,
}

/// Whether one of the networks holds the address.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// The address of the caller that reached tollgate through `peer`.
///
/// Where both fields name somebody, `X-Forwarded-For` is believed. A proxy writes one of them and
/// mostly passes the other on as the caller sent it, and nearly every proxy writes that one (nginx,
/// Envoy and Caddy do not know the other). To fall back to the peer on a conflict would let any
/// caller behind such a proxy, by adding a `Forwarded`, take on the proxy's address: its quota, its
/// network's tier, and no place on the deny list. Behind a proxy that writes `Forwarded` alone a
/// caller can do worse with `X-Forwarded-For`, so that such a proxy has to take that out.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> ClientAddress {
    let peer = peer.to_canonical();
    let x_forwarded_for = headers.get_all(X_FORWARDED_FOR);
    let forwarded = headers.get_all(FORWARDED);
    if !is_trusted(peer, trusted) {
        let is_there = |lines: &GetAll<'_, HeaderValue>| lines.iter().next().is_some();
        let is_silent = !is_there(&x_forwarded_for) && !is_there(&forwarded);
        let fault = (!is_silent).then_some(ForwardedFault::Untrusted);
        return ClientAddress { address: peer, fault };
    }
    let by_list = x_forwarded_for.iter().rev().flat_map(|line| list_from_right(line.as_bytes()));
    let by_list = walk(by_list.map(|element| (element, parse_node(element))), trusted);
    let elements = forwarded.iter().rev().flat_map(|line| Elements { rest: Some(line.as_bytes()) });
    let by_elements = walk(elements.map(|element| (element, parse_element(element))), trusted);
    let (address, fault) = match (by_list, by_elements) {
        (Walked::Nobody, Walked::Nobody) => (peer, None),
        (Walked::Nobody, Walked::To(address)) => (address, None),
        (Walked::Unreadable, _) | (Walked::Nobody, Walked::Unreadable) => {
            (peer, Some(ForwardedFault::Malformed))
        }
        (Walked::To(address), Walked::Nobody) => (address, None),
        (Walked::To(address), other) => {
            let agrees = other == Walked::To(address);
            (address, (!agrees).then_some(ForwardedFault::Conflict))
        }
    };
    ClientAddress { address, fault }
}

/// What a walk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walked {
    /// The chain is empty.
    Nobody,
    /// The first address that is not trusted, or the last of those that all are.
    To(IpAddr),
    /// It met what is no address before one that is not trusted.
    Unreadable,
}

/// Walks over the elements of a chain, the last one first, and what address each holds.
fn walk<'a>(
    elements: impl Iterator<Item = (&'a [u8], Option<IpAddr>)>,
    trusted: &[IpNet],
) -> Walked {
    let mut walked = Walked::Nobody;
    for (count, (element, address)) in elements.enumerate() {
        if count == ELEMENTS_MAX {
            return Walked::Unreadable;
        }
        // RFC 9110 §5.6.1: empty elements of a list count for nothing.
        if element.trim_ascii().is_empty() {
            continue;
        }
        let Some(address) = address.map(|address| address.to_canonical()) else {
            return Walked::Unreadable;
        };
        walked = Walked::To(address);
        if !is_trusted(address, trusted) {
            break;
        }
    }
    walked
}

fn list_from_right(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.rsplit(|byte| *byte == b',')
}

/// The elements of a line of `Forwarded`, the last one first.
///
/// Commas in quoted strings divide nothing, so quotes are paired, and from the right as well: a
/// quote that the caller has left open would otherwise swallow what the proxy appended.
struct Elements<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.rest.take()?;
        let mut before = line;
        let mut is_quoted = false;
        while let Some((byte, rest)) = before.split_last() {
            match byte {
                b',' if !is_quoted => {
                    self.rest = Some(rest);
                    return line.get(before.len()..);
                }
                b'"' if !is_quoted => is_quoted = true,
                b'"' => is_quoted = is_escaped(rest),
                _ => {}
            }
            before = rest;
        }
        Some(line)
    }
}

/// Whether what follows these bytes of a quoted string has lost its meaning to a backslash.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The address of an element's `for` parameter. `None` where there is none, or two, or the element
/// cannot be read.
fn parse_element(element: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    let mut rest = element.trim_ascii();
    while let Some((first, after)) = rest.split_first() {
        if matches!(first, b';' | b' ' | b'\t') {
            rest = after;
            continue;
        }
        let (name, value) = rest.split_at(rest.iter().position(|byte| *byte == b'=')?);
        let value = Value::parse(value.strip_prefix(b"=")?)?;
        if !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            // RFC 7239 §4: each parameter once. Who repeats it wants to be read in two ways.
            if address.is_some() {
                return None;
            }
            address = Some(value.node()?);
        }
        rest = value.rest.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b";") {
            return None;
        }
    }
    address
}

/// A parameter's value, and what stands behind it.
struct Value<'a> {
    /// Without its quotes; escapes are still in it.
    text: &'a [u8],
    is_quoted: bool,
    rest: &'a [u8],
}

impl<'a> Value<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let Some(quoted) = text.strip_prefix(b"\"") else {
            // More than a token: brackets and colons want quotes, which senders forget.
            let is_end = |byte: &u8| matches!(byte, b';' | b' ' | b'\t');
            let (text, rest) = text.split_at(text.iter().position(is_end).unwrap_or(text.len()));
            return (!text.contains(&b'"')).then_some(Value { text, is_quoted: false, rest });
        };
        let mut is_escaped = false;
        let end = quoted.iter().position(|byte| {
            let is_end = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            is_end
        })?;
        let (text, rest) = quoted.split_at(end);
        Some(Value { text, is_quoted: true, rest: rest.strip_prefix(b"\"")? })
    }

    /// The address that the value is.
    fn node(&self) -> Option<IpAddr> {
        if !self.is_quoted || !self.text.contains(&b'\\') {
            return parse_node(self.text);
        }
        let mut plain = [0; NODE_BYTES_MAX];
        let mut length = 0;
        let mut bytes = self.text.iter();
        while let Some(byte) = bytes.next() {
            let byte = if *byte == b'\\' { bytes.next()? } else { byte };
            *plain.get_mut(length)? = *byte;
            length += 1;
        }
        parse_node(plain.get(..length)?)
    }
}

/// An address as both fields write it: bare, in brackets, with or without a port, which may be an
/// obfuscated one (RFC 7239 §6). No zone: it means something to its own host alone.
fn parse_node(node: &[u8]) -> Option<IpAddr> {
    let node = node.trim_ascii();
    if node.len() > NODE_BYTES_MAX {
        return None;
    }
    let node = std::str::from_utf8(node).ok()?;
    if let Some(bracketed) = node.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        if !port.is_empty() && !is_port(port.strip_prefix(':')?) {
            return None;
        }
        return address.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    match node.split_once(':') {
        None => node.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some((address, port)) if is_port(port) && address.contains('.') => {
            address.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        Some(_) => node.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}

fn is_port(port: &str) -> bool {
    if let Some(obfuscated) = port.strip_prefix('_') {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        return !obfuscated.is_empty() && obfuscated.bytes().all(is_name);
    }
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
