//! Tables of chains, and chains made at random beside an oracle that never reads text.

use super::*;
use proptest::prelude::*;

const PEER: &str = "10.0.0.1";

fn networks() -> Vec<IpNet> {
    ["10.0.0.0/8", "2001:db8:f::/48"].iter().map(|network| network.parse().unwrap()).collect()
}

/// The address of a caller, and the fault, with these fields from this peer.
fn of(peer: &str, fields: &[(&'static str, &[u8])]) -> (String, Option<ForwardedFault>) {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let ClientAddress { address, fault } =
        client_address(peer.parse().unwrap(), &headers, &networks());
    (address.to_string(), fault)
}

/// Checks what a chain names; `expected` is an address, or `None` for one that cannot be read.
fn check(name: &'static str, chain: &[u8], expected: Option<&str>) {
    let fault = expected.is_none().then_some(ForwardedFault::Malformed);
    let address = expected.unwrap_or(PEER).to_owned();
    let shown = String::from_utf8_lossy(chain).into_owned();
    assert_eq!(of(PEER, &[(name, chain)]), (address, fault), "{name}: {shown}");
}

#[test]
fn x_forwarded_for_is_walked_from_the_right() {
    let table: &[(&str, Option<&str>)] = &[
        ("203.0.113.7", Some("203.0.113.7")),
        ("203.0.113.7:5678", Some("203.0.113.7")),
        ("2001:db8::1", Some("2001:db8::1")),
        ("[2001:db8::1]", Some("2001:db8::1")),
        ("[2001:db8::1]:443", Some("2001:db8::1")),
        ("::ffff:203.0.113.7", Some("203.0.113.7")),
        ("[::ffff:203.0.113.7]:1", Some("203.0.113.7")),
        (" \t203.0.113.7\t ", Some("203.0.113.7")),
        // What the caller sent before a proxy of ours appended it.
        ("198.51.100.1, 203.0.113.7", Some("203.0.113.7")),
        ("198.51.100.1, 203.0.113.7, 10.0.0.2,10.3.2.1", Some("203.0.113.7")),
        ("203.0.113.7, ::ffff:10.0.0.2, [2001:db8:f::2]:80", Some("203.0.113.7")),
        ("junk, 203.0.113.7", Some("203.0.113.7")),
        ("\"\\, 203.0.113.7", Some("203.0.113.7")),
        // Everybody is ours: the first of them is who asks.
        ("10.9.9.9, 10.0.0.2", Some("10.9.9.9")),
        ("10.9.9.9", Some("10.9.9.9")),
        // Empty elements count for nothing.
        ("", Some(PEER)),
        (" , ,", Some(PEER)),
        (", 203.0.113.7, , 10.0.0.2,", Some("203.0.113.7")),
        // Junk where trusted proxies write.
        ("203.0.113.7, junk", None),
        ("203.0.113.7, junk, 10.0.0.2", None),
        ("junk, 10.9.9.9, 10.0.0.2", None),
        ("unknown", None),
        ("_hidden", None),
        ("203.0.113.07", None),
        ("203.0.113", None),
        ("203.0.113.7:", None),
        ("203.0.113.7:+5", None),
        ("203.0.113.7:65536", None),
        ("203.0.113.7/32", None),
        ("[203.0.113.7]", None),
        ("[2001:db8::1", None),
        ("2001:db8::1]", None),
        ("[2001:db8::1]443", None),
        ("[2001:db8::1]:", None),
        ("fe80::1%eth0", None),
        ("[fe80::1%1]:80", None),
        ("[fe80::1%1]", None),
        ("203.0.113.7 198.51.100.1", None),
        ("203.0.113.7;198.51.100.1", None),
        ("0xcb007107", None),
        ("3405803783", None),
        ("for=203.0.113.7", None),
    ];
    for (chain, expected) in table {
        check("x-forwarded-for", chain.as_bytes(), *expected);
    }
    check("x-forwarded-for", b"\xff\xfe, 203.0.113.7", Some("203.0.113.7"));
    check("x-forwarded-for", b"203.0.113.7, \xff\xfe", None);
    let long = [b"203.0.113.7".as_slice(), &[b' '; 500]].concat();
    check("x-forwarded-for", &long, Some("203.0.113.7"));
}

#[test]
fn forwarded_is_walked_likewise() {
    let table: &[(&str, Option<&str>)] = &[
        ("for=203.0.113.7", Some("203.0.113.7")),
        ("For=203.0.113.7", Some("203.0.113.7")),
        ("for=\"203.0.113.7:5678\"", Some("203.0.113.7")),
        ("for=\"[2001:db8::1]\"", Some("2001:db8::1")),
        ("FOR=\"[2001:db8::1]:443\"", Some("2001:db8::1")),
        ("for=\"[2001:db8::1]:_a.B-9\"", Some("2001:db8::1")),
        ("for=\"[::ffff:203.0.113.7]\"", Some("203.0.113.7")),
        // What the grammar wants in quotes, and senders forget.
        ("for=203.0.113.7:80", Some("203.0.113.7")),
        ("for=[2001:db8::1]:443;proto=https", Some("2001:db8::1")),
        ("for=\"2001:db8::1\"", Some("2001:db8::1")),
        // Among other parameters.
        ("by=10.0.0.1;for=203.0.113.7;host=\"a;b,c\";proto=https", Some("203.0.113.7")),
        ("proto=https ; for=203.0.113.7 ;", Some("203.0.113.7")),
        (";;for=203.0.113.7", Some("203.0.113.7")),
        ("for=203.0.113.7;secret=\"a\\\"b\\\\\"", Some("203.0.113.7")),
        ("for=\"203\\.0.113.7\"", Some("203.0.113.7")),
        // Chains.
        ("for=198.51.100.1, for=203.0.113.7", Some("203.0.113.7")),
        ("for=203.0.113.7, for=10.0.0.2;by=10.0.0.3,for=\"[2001:db8:f::1]\"", Some("203.0.113.7")),
        ("for=203.0.113.7, for=10.0.0.2;ext=\"a,\\\"b\\\\\"", Some("203.0.113.7")),
        ("for=10.9.9.9, for=10.0.0.2", Some("10.9.9.9")),
        ("", Some(PEER)),
        (", ,", Some(PEER)),
        (",for=203.0.113.7,, for=10.0.0.2 ,", Some("203.0.113.7")),
        // What a caller sent cannot swallow what a proxy appended.
        ("junk, for=203.0.113.7", Some("203.0.113.7")),
        ("for=\"open, for=203.0.113.7", Some("203.0.113.7")),
        ("for=\"open\\, for=\"203.0.113.7\"", Some("203.0.113.7")),
        ("a=\"b\\\", for=\"[2001:db8::1]\";host=\"x,y\"", Some("2001:db8::1")),
        // Nobody is named, though legitimately: the walk cannot go on.
        ("for=unknown", None),
        ("for=_hidden", None),
        ("for=\"_hidden:80\"", None),
        ("for=198.51.100.1, for=unknown, for=10.0.0.2", None),
        ("proto=https", None),
        ("for=203.0.113.7, proto=https", None),
        (";", None),
        // Not the grammar.
        ("203.0.113.7", None),
        ("for", None),
        ("for=", None),
        ("for=\"\"", None),
        ("for = 203.0.113.7", None),
        ("for=203.0.113.7 proto=https", None),
        ("for=203.0.113.7;for=203.0.113.7", None),
        ("for=203.0.113.7;by", None),
        ("for=203.0.113.7;b y=a", None),
        ("for=\"203.0.113.7\"x", None),
        ("for=\"203.0.113.7", None),
        ("for=203.0.113.7\"", None),
        ("for=203.0.113.7;by=a\"b\"", None),
        ("for=\"203.0.113.7:_\"", None),
        ("for=\"203.0.113.7:_a b\"", None),
        ("for=\"[fe80::1%1]:80\"", None),
        ("for=203.0.113.007", None),
    ];
    for (chain, expected) in table {
        check("forwarded", chain.as_bytes(), *expected);
    }
    check("forwarded", b"for=\"\xff\", for=203.0.113.7;ext=\"\xfc\"", Some("203.0.113.7"));
    let escaped = format!("for=\"{}\"", "\\1".repeat(NODE_BYTES_MAX + 1));
    check("forwarded", escaped.as_bytes(), None);
}

#[test]
fn all_lines_are_one_chain() {
    for (name, before) in [("x-forwarded-for", ""), ("forwarded", "for=")] {
        let line = |address: &str| format!("{before}{address}");
        let lines = [
            line("198.51.100.1"),
            format!("{}, {}", line("203.0.113.7"), line("10.0.0.3")),
            "  ".to_owned(),
            line("10.0.0.2"),
        ];
        let fields: Vec<_> = lines.iter().map(|line| (name, line.as_bytes())).collect();
        assert_eq!(of(PEER, &fields), ("203.0.113.7".to_owned(), None), "{name}");
    }
    // An open quote ends with its line.
    let open: [(&str, &[u8]); 2] = [("forwarded", b"for=\"a"), ("forwarded", b"for=203.0.113.7")];
    assert_eq!(of(PEER, &open), ("203.0.113.7".to_owned(), None));
}

#[test]
fn of_two_fields_x_forwarded_for_is_believed() {
    let both = |list: &str, elements: &str| {
        of(PEER, &[("forwarded", elements.as_bytes()), ("x-forwarded-for", list.as_bytes())])
    };
    let caller = || "203.0.113.7".to_owned();
    assert_eq!(both("203.0.113.7", "for=203.0.113.7"), (caller(), None));
    assert_eq!(both("203.0.113.7, 10.0.0.2", "for=\"203.0.113.7:80\""), (caller(), None));
    let conflict = Some(ForwardedFault::Conflict);
    assert_eq!(both("203.0.113.7", "for=198.51.100.1"), (caller(), conflict));
    assert_eq!(both("203.0.113.7", "for=unknown"), (caller(), conflict));
    assert_eq!(both("203.0.113.7", ""), (caller(), None));
    // An empty field is none at all.
    assert_eq!(both(" ,", "for=203.0.113.7"), (caller(), None));
    // But one that cannot be read is no leave to believe the other.
    let malformed = Some(ForwardedFault::Malformed);
    assert_eq!(both("junk", "for=203.0.113.7"), (PEER.to_owned(), malformed));
}

#[test]
fn an_untrusted_peer_is_who_it_is() {
    let spoof: &[u8] = b"203.0.113.7";
    let untrusted = Some(ForwardedFault::Untrusted);
    for peer in ["192.0.2.1", "2001:db8::5"] {
        assert_eq!(of(peer, &[]), (peer.to_owned(), None));
        assert_eq!(of(peer, &[("x-real-ip", spoof)]), (peer.to_owned(), None));
        assert_eq!(of(peer, &[("x-forwarded-for", spoof)]), (peer.to_owned(), untrusted));
        assert_eq!(of(peer, &[("forwarded", b"for=203.0.113.7")]), (peer.to_owned(), untrusted));
        assert_eq!(of(peer, &[("x-forwarded-for", b"")]), (peer.to_owned(), untrusted));
    }
    // As a socket for both families sees IPv4.
    assert_eq!(of("::ffff:192.0.2.1", &[]), ("192.0.2.1".to_owned(), None));
    let mapped = of("::ffff:10.0.0.1", &[("x-forwarded-for", spoof)]);
    assert_eq!(mapped, ("203.0.113.7".to_owned(), None));
    let nobody = client_address("10.0.0.1".parse().unwrap(), &HeaderMap::new(), &[]);
    assert_eq!((nobody.address.to_string(), nobody.fault), (PEER.to_owned(), None));
}

#[test]
fn a_chain_has_a_bound() {
    let hops = |count: usize| vec!["10.0.0.2"; count].join(",");
    let chain = format!("203.0.113.7,{}", hops(ELEMENTS_MAX - 1));
    check("x-forwarded-for", chain.as_bytes(), Some("203.0.113.7"));
    let chain = format!("203.0.113.7,{}", hops(ELEMENTS_MAX));
    check("x-forwarded-for", chain.as_bytes(), None);
    let chain = ",".repeat(ELEMENTS_MAX);
    check("x-forwarded-for", chain.as_bytes(), None);
    let chain = format!("for=203.0.113.7{}", ",for=10.0.0.2".repeat(ELEMENTS_MAX));
    check("forwarded", chain.as_bytes(), None);
    // Beyond the caller there may be any number.
    let chain = format!("{},203.0.113.7,10.0.0.2", "1.1.1.1,".repeat(5_000));
    check("x-forwarded-for", chain.as_bytes(), Some("203.0.113.7"));
}

/// One element of a chain, before it is written down.
#[derive(Clone, Debug)]
enum Hop {
    Ours(IpAddr),
    Stranger(IpAddr),
    Junk(&'static str),
    Empty,
}

fn hop() -> impl Strategy<Value = Hop> {
    let ours = prop_oneof![
        any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c])),
        any::<u64>().prop_map(|host| {
            IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8_000f << 80 | u128::from(host)))
        }),
    ];
    let stranger = prop_oneof![
        any::<[u8; 4]>().prop_filter("ours", |it| it[0] != 10).prop_map(IpAddr::from),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits | 1 << 127))),
    ];
    let junk = ["junk", "unknown", "_x", "1.2.3", "1.2.3.4.5", "::1::", "[", "]:", "%", "1.2.3.04"];
    prop_oneof![
        4 => ours.prop_map(Hop::Ours),
        3 => stranger.prop_map(Hop::Stranger),
        1 => prop::sample::select(junk.to_vec()).prop_map(Hop::Junk),
        1 => Just(Hop::Empty),
    ]
}

/// Whom a chain names, told from the front: each hop replaces what was known before it.
fn oracle(hops: &[Hop]) -> (Option<IpAddr>, bool) {
    hops.iter().fold((None, true), |(known, is_readable), hop| match hop {
        Hop::Empty => (known, is_readable),
        Hop::Junk(_) => (None, false),
        Hop::Stranger(address) => (Some(*address), true),
        // What stands before one of ours holds, if there is anything.
        Hop::Ours(address) if is_readable => (known.or(Some(*address)), true),
        Hop::Ours(_) => (None, false),
    })
}

/// One of the ways to write an address down, without what `Forwarded` puts around it.
fn written(address: IpAddr, way: u8) -> String {
    match (address, way % 4) {
        (IpAddr::V4(v4), 0) => format!("::ffff:{v4}"),
        (IpAddr::V4(v4), 1) => format!("{v4}:{}", u16::from(way) * 257),
        (IpAddr::V4(v4), 2) => format!("[::ffff:{v4}]:1"),
        (IpAddr::V4(v4), _) => v4.to_string(),
        (IpAddr::V6(v6), 0) => format!("[{v6}]"),
        (IpAddr::V6(v6), 1) => format!("[{v6}]:65535"),
        (IpAddr::V6(v6), _) => v6.to_string(),
    }
}

fn element(hop: &Hop, way: u8, is_forwarded: bool) -> String {
    let node = match hop {
        Hop::Ours(address) | Hop::Stranger(address) => written(*address, way),
        Hop::Junk(text) => (*text).to_owned(),
        Hop::Empty => return " ".repeat((way % 3).into()),
    };
    if !is_forwarded {
        return format!("{}{node}{}", " ".repeat((way % 3).into()), "\t".repeat((way % 2).into()));
    }
    let escaped: String = node.chars().flat_map(|it| ['\\', it]).collect();
    let value = if way & 64 > 0 { escaped } else { node };
    match (way >> 4) % 4 {
        0 => format!("for=\"{value}\""),
        1 => format!(" For=\"{value}\";by=\"a,\\\";for=b\""),
        2 => format!("proto=https ;host=\"x\\\\\";FOR=\"{value}\" "),
        _ => format!(";ext=\"\";for=\"{value}\";"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn chains_name_whom_the_oracle_names(
        hops in prop::collection::vec((hop(), any::<u8>(), prop::bool::weighted(0.2)), 0..12),
        is_forwarded in any::<bool>(),
        prefix in "[ -~]{0,30}",
    ) {
        let name = if is_forwarded { "forwarded" } else { "x-forwarded-for" };
        let mut headers = HeaderMap::new();
        let mut line = String::new();
        for (index, (hop, way, begins_line)) in hops.iter().enumerate() {
            if *begins_line {
                headers.append(name, line.parse().unwrap());
                line.clear();
            } else if index > 0 {
                line.push(',');
            }
            line.push_str(&element(hop, *way, is_forwarded));
        }
        headers.append(name, line.parse().unwrap());
        let peer: IpAddr = PEER.parse().unwrap();
        let found = client_address(peer, &headers, &networks());
        let shown = format!("{headers:?}");

        let bare: Vec<Hop> = hops.into_iter().map(|(hop, ..)| hop).collect();
        let (known, is_readable) = oracle(&bare);
        prop_assert_eq!(found.address, known.unwrap_or(peer).to_canonical(), "{}", &shown);
        prop_assert_eq!(found.fault.is_none(), is_readable, "{}", &shown);

        // Where a stranger was met, nothing that it sent before makes a difference.
        if bare.iter().any(|hop| matches!(hop, Hop::Stranger(_))) && known.is_some() {
            let mut lines: Vec<Vec<u8>> =
                headers.get_all(name).iter().map(|line| line.as_bytes().to_vec()).collect();
            lines[0] = [prefix.as_bytes(), b",", &lines[0]].concat();
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(name, HeaderValue::from_bytes(&line).unwrap());
            }
            let again = client_address(peer, &headers, &networks());
            prop_assert_eq!(again, found, "{:?}", headers);
        }
    }

    #[test]
    fn no_bytes_break_the_walk(
        list in prop::collection::vec(prop::sample::select(b"10.0.0.2,:[]\"\\;= \tfor=\xff".to_vec()), 0..80),
    ) {
        let Ok(value) = HeaderValue::from_bytes(&list) else { return Ok(()) };
        for name in ["x-forwarded-for", "forwarded"] {
            let mut headers = HeaderMap::new();
            headers.append(name, value.clone());
            let found = client_address(PEER.parse().unwrap(), &headers, &networks());
            prop_assert!(found.fault != Some(ForwardedFault::Untrusted));
            // And what a proxy of ours appends counts, whatever stands before it.
            let appended = if name == "forwarded" { "for=\"[2001:db8::1]\"" } else { "2001:db8::1" };
            let line = [value.as_bytes(), b", ", appended.as_bytes()].concat();
            headers.insert(name, HeaderValue::from_bytes(&line).unwrap());
            let found = client_address(PEER.parse().unwrap(), &headers, &networks());
            prop_assert_eq!(found.fault, None);
            prop_assert_eq!(found.address, "2001:db8::1".parse::<IpAddr>().unwrap());
        }
    }
}

/// `cargo test --release --lib address_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn address_costs() {
    let tables: [(&str, &str, &str); 6] = [
        ("no field", "accept", "*/*"),
        ("1 hop", "x-forwarded-for", "203.0.113.7"),
        ("3 hops", "x-forwarded-for", "203.0.113.7, 10.1.2.3, 10.0.0.2"),
        ("1 hop, Forwarded", "forwarded", "for=203.0.113.7;proto=https"),
        ("3 hops, Forwarded", "forwarded", "for=203.0.113.7, for=10.1.2.3, for=\"10.0.0.2:80\""),
        ("1 hop, IPv6", "x-forwarded-for", "2001:db8:1:2:3:4:5:6"),
    ];
    let hostile = [
        ("x-forwarded-for", ",".repeat(60_000)),
        ("x-forwarded-for", "1".repeat(60_000)),
        ("forwarded", "\"".repeat(60_000)),
        ("forwarded", "\\".repeat(60_000) + "\""),
        ("forwarded", "a=\"\\\"".repeat(12_000)),
        ("forwarded", "a=\"\";".repeat(12_000)),
    ];
    let hostile = hostile.iter().map(|(name, value)| ("hostile", *name, value.as_str()));
    let peer: IpAddr = PEER.parse().unwrap();
    let trusted = networks();
    for (what, name, value) in tables.into_iter().chain(hostile) {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("host", "a"), ("user-agent", "b"), ("accept-encoding", "gzip"), (name, value)]
        {
            headers.append(name, value.parse().unwrap());
        }
        let rounds = if what == "hostile" { 200 } else { 2_000_000 };
        let started = crate::clock::monotonic();
        for _ in 0..rounds {
            std::hint::black_box(client_address(
                std::hint::black_box(peer),
                std::hint::black_box(&headers),
                &trusted,
            ));
        }
        let took = crate::clock::monotonic().duration_since(started).as_nanos();
        let shown: String = value.chars().take(20).collect();
        println!("{what}, {name}: {shown}: {} ns", took / rounds);
    }
}
