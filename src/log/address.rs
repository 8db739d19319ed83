//! Addresses as text. Those of IPv4 are written by hand: the standard library's formatting was a
//! third of what a line of the access log cost.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::policy::identity::IpPrefix;

/// Writes an address as `Display` does.
pub fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let mut number = itoa::Buffer::new();
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(number.format(octet).as_bytes());
            }
        }
        // To memory it never fails.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Writes an address and its port as `Display` does.
pub fn push_socket(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            push_address(out, IpAddr::V4(*v4.ip()));
            out.push(b':');
            out.extend_from_slice(itoa::Buffer::new().format(v4.port()).as_bytes());
        }
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Writes a prefix as `Display` does.
pub fn push_prefix(out: &mut Vec<u8>, prefix: &IpPrefix) {
    push_address(out, prefix.address());
    if let Some(length) = prefix.partial() {
        out.push(b'/');
        out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::policy::identity::PrefixLengths;

    use super::*;

    fn text(push: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        push(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn they_are_what_the_standard_library_writes(
            address: IpAddr, port: u16, ipv4 in 0_u8..=32, ipv6 in 0_u8..=128,
        ) {
            prop_assert_eq!(text(|out| push_address(out, address)), address.to_string());
            let socket = SocketAddr::new(address, port);
            prop_assert_eq!(text(|out| push_socket(out, socket)), socket.to_string());
            let prefix = IpPrefix::new(address, PrefixLengths { ipv4, ipv6 });
            prop_assert_eq!(text(|out| push_prefix(out, &prefix)), prefix.to_string());
        }
    }
}
