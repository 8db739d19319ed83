//! Time of one lookup among 10, 1,000 and 10,000 rules, for paths as they usually come and for odd
//! spellings. `cargo bench --bench router`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, Method};

use tollgate::clock::monotonic;
use tollgate::policy::facts::RequestFacts;
use tollgate::policy::path::Readings;
use tollgate::policy::route::{Pattern, Router};

/// Short rounds and many, so that the best of them had the core for itself.
const LOOKUPS: usize = 4096;
const ROUNDS: usize = 500;

fn main() {
    println!(
        "{:<42} {:>8} {:>8} {:>8}",
        "ns per lookup, best of 500 rounds", "10", "1,000", "10,000"
    );
    let routers: Vec<(usize, Router)> =
        [10, 1_000, 10_000].into_iter().map(|count| (count, router(count))).collect();
    type Spelling = fn(usize) -> String;
    let spellings: [(&str, Spelling); 8] = [
        ("plain, literal", |at| format!("/svc{at}/items/list")),
        ("plain, {id} in the middle", |at| format!("/svc{at}/items/8412/export")),
        ("plain, below /**", |at| format!("/svc{at}/files/2025/07/report.pdf")),
        ("plain, no rule", |at| format!("/nothing/of/svc{at}/here")),
        ("letters in upper case", |at| format!("/Svc{at}/Items/list")),
        ("trailing slash", |at| format!("/svc{at}/items/list/")),
        ("escapes, both readings agree", |at| format!("/svc{at}/it%65ms/l%69st")),
        ("dots, parameters, escapes twice", |at| format!("/x/..//svc{at};v=1/it%2565ms/./list")),
    ];
    for (name, spelling) in spellings {
        print!("{name:<42}");
        for (count, router) in &routers {
            // In an order that no cache foresees.
            let groups = count / 4;
            let paths: Vec<String> =
                (0..LOOKUPS).map(|at| spelling(at * 7919 % groups.max(1))).collect();
            print!(" {:>8.0}", measure(router, &paths));
        }
        println!();
    }
    let path = b"/fo/history/2025/07/nifty50";
    let reading = best(|| {
        for _ in 0..LOOKUPS {
            let _ = black_box(Readings::of(black_box(path)));
        }
    });
    println!("reading a plain path of {} bytes alone: {reading:.0} ns", path.len());
}

/// Four rules a service.
fn router(count: usize) -> Router {
    let paths = ["items/list", "items/{id}", "items/{id}/export", "files/**"];
    let patterns: Vec<Pattern> = (0..count)
        .map(|at| {
            let path = paths.get(at % 4).copied().unwrap_or_default();
            let methods = if at % 8 == 0 { vec![Method::GET] } else { Vec::new() };
            Pattern { path: format!("/svc{}/{path}", at / 4), methods, ..Pattern::default() }
        })
        .collect();
    Router::new(&patterns).unwrap_or_else(|errors| unreachable!("{errors:?}"))
}

fn measure(router: &Router, paths: &[String]) -> f64 {
    let headers = HeaderMap::new();
    best(|| {
        for path in paths {
            let facts = RequestFacts {
                method: &Method::GET,
                path,
                query: None,
                host: Some("api.example.com"),
                peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
                headers: &headers,
                certificate: None,
            };
            let _ = black_box(router.find(black_box(&facts)));
        }
    })
}

/// Nanoseconds per lookup of the best round.
fn best(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = monotonic();
        run();
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64);
    }
    best
}
