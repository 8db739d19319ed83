//! Memory, from the outside: what the real process says of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use support::{Backend, Start, Tollgate, wait_until};

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Answers upgrades with a tunnel that echoes, and anything else with 200.
fn backend() -> Backend {
    Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            if seen.field("upgrade").is_none() {
                connection.ok("ok");
                continue;
            }
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\n\r\n",
            );
            while !connection.read_some(4096).is_empty() {}
            return;
        }
    })
}

fn health(tollgate: &Tollgate) -> serde_json::Value {
    serde_json::from_str(&tollgate.admin("/health").text()).unwrap()
}

#[test]
fn the_process_tells_of_its_memory() {
    let backend = backend();
    let tollgate = Tollgate::generous(&backend);
    let allocator = |kind: &str| {
        let value = tollgate.metric(&format!("memory_allocator_bytes{{kind=\"{kind}\"}}"));
        assert!(value > 0.0, "{kind}: the binary's allocator is jemalloc");
        value
    };
    let (allocated, active) = (allocator("allocated"), allocator("active"));
    assert!(allocated < active && active < allocator("mapped"));
    assert!(allocator("metadata") < allocator("resident"));
    let resident = tollgate.metric("memory_rss_bytes");
    let real = tollgate.resident() as f64;
    assert!((resident / real - 1.0).abs() < 0.2, "{resident} against {real}");
    assert!(tollgate.metric("memory_vms_bytes") > resident);
    assert!(tollgate.metric("memory_limit_bytes") > resident, "a container's, or the machine's");
    let page = tollgate.admin("/metrics").text();
    assert!(page.contains("\nmemory_growth_rate_bytes_per_second 0\n"), "no hour is over");

    let memory = &health(&tollgate)["memory"];
    let number = |key: &str| memory[key].as_f64().unwrap_or_else(|| panic!("{key}: {memory}"));
    assert!(number("rss_mb") > 1.0 && number("allocated_mb") > 0.1, "{memory}");
    assert!(number("percent") > 0.0 && number("percent") < 100.0, "{memory}");
    assert_eq!(number("growth_rate_mb_per_sec"), 0.0);
    assert_eq!(memory["verdict"], "insufficient_data");
}

#[test]
fn live_objects_are_counted_while_they_live() {
    let backend = backend();
    let tollgate = Tollgate::generous(&backend);
    let objects = |kind: &str| tollgate.metric(&format!("memory_objects_count{{type=\"{kind}\"}}"));
    for kind in ["connections", "requests", "buffers", "local_cache_entries", "websocket_tunnels"] {
        assert_eq!(objects(kind), 0.0, "{kind}");
    }
    let mut plain = tollgate.connect();
    assert_eq!(plain.get("/").status, 200);
    let mut tunnel = tollgate.connect();
    assert_eq!(tunnel.send(UPGRADE).head().status, 101);
    wait_until("the tunnel counts", || objects("buffers") == 2.0);
    assert_eq!(objects("websocket_tunnels"), 1.0);
    assert_eq!(objects("connections"), 2.0);
    assert_eq!(objects("local_cache_entries"), 1.0, "one address");
    assert_eq!(objects("metric_series"), tollgate.metric("tollgate_metric_series"));
    assert!(objects("metric_series") > 100.0);
    let page = tollgate.admin("/metrics").text();
    for kind in ["leases", "jwks_keys"] {
        let line = format!("memory_objects_count{{type=\"{kind}\"}} 0\n");
        assert!(page.contains(&line), "there, and none of them: {kind}");
    }
    drop((plain, tunnel));
    wait_until("all are gone", || objects("connections") == 0.0 && objects("buffers") == 0.0);
    assert_eq!(objects("websocket_tunnels"), 0.0);
}

#[test]
fn what_is_reclaimed_is_counted() {
    let backend = backend();
    // A second's limits are forgotten after a second, and a small store is swept once a second.
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("store: { memory: { max_identities: 1000 } }")
        .tiers("default_tier: free\ntiers: { free: { per_second: 5, burst: 5 } }")
        .run();
    let reclaimed = |what: &str, generation: u8| {
        tollgate.metric(&format!("memory_gc_{what}_total{{generation=\"{generation}\"}}"))
    };
    assert_eq!(tollgate.get("/").status, 200);
    wait_until("a round of the sweep", || reclaimed("collections", 0) >= 1.0);
    wait_until("an entry that was swept", || reclaimed("collected", 0) >= 1.0);
    // Heads are megabytes in all, and given back when their connections end.
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Fill: {}\r\n", "x".repeat(30_000));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let mut client = tollgate.connect();
            client.send(&big);
            client
        })
        .collect();
    drop(clients);
    wait_until("the allocator gives pages back", || {
        reclaimed("collections", 1) >= 1.0 && reclaimed("collected", 1) >= 1.0
    });
    let page = tollgate.admin("/metrics").text();
    assert!(page.contains("memory_gc_collections_total{generation=\"2\"} "), "muzzy ones as well");
}
