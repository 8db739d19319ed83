//! Lines that a replay takes in a second on one core, by format, with the policy of `config/`: CPU time
//! of this process, of which one thread does all. `cargo bench --bench simulate`.

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};

use rustix::time::{ClockId, clock_gettime};

use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::policy::compiled::Policy;
use tollgate::sim::line::Wanted;
use tollgate::sim::lines::Lines;
use tollgate::sim::logs::{Log, Merged};
use tollgate::sim::simulation::Simulation;

/// Two hours of one service.
const LINES: u64 = 2_000_000;
const CALLERS: u64 = 20_000;
const ROUNDS: usize = 5;

fn main() {
    let policy = policy();
    println!("{LINES} lines of {CALLERS} callers, the best of {ROUNDS} rounds\n");
    println!("| log | bytes a line | million lines a second of a core | blocked |");
    println!("|---|---:|---:|---:|");
    let combined = log(combined);
    row("combined", &combined, &policy);
    row("tollgate's own", &log(own), &policy);
    row("JSON, as nginx is told to write it", &log(json), &policy);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&combined).expect("memory");
    row("combined, packed by gzip", &encoder.finish().expect("memory"), &policy);
}

fn policy() -> Policy {
    let tiers = std::path::Path::new("config/tiers.yaml");
    let loaded = load(&LoadRequest {
        config: None,
        tiers: Some(tiers),
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    });
    loaded.expect("config/tiers.yaml is valid").policy
}

fn row(name: &str, log: &[u8], policy: &Policy) {
    let mut best = f64::MAX;
    let mut blocked = 0.0;
    for _ in 0..ROUNDS {
        let lines = Lines::new(Box::new(Cursor::new(log.to_vec()))).expect("memory");
        let mut logs = Merged::new(vec![Log::new(name.to_owned(), lines, None)]);
        let mut simulation = Simulation::new(policy, None, Wanted::default());
        let begun = cpu();
        simulation.run(&mut logs, &mut |_| {}).expect("memory");
        best = best.min(cpu() - begun);
        let all = simulation.tally.all;
        assert_eq!(all.requests, LINES);
        blocked = all.blocked as f64 / all.requests as f64;
    }
    println!(
        "| {name} | {} | {:.2} | {:.1} % |",
        log.len() as u64 / LINES,
        LINES as f64 / best / 1e6,
        blocked * 100.0
    );
}

fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// One request: when, whose, for what.
struct Made {
    millis: u64,
    caller: u64,
    path: String,
}

fn log(line: fn(&mut String, &Made)) -> Vec<u8> {
    let mut random = 88_172_645_463_325_252_u64;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut text = String::new();
    for number in 0..LINES {
        // A few ask much.
        let caller = below(CALLERS).min(below(CALLERS)).min(below(CALLERS));
        let path = match below(8) {
            0 => format!("/fo/history/2025/{}", below(12)),
            1 => format!("/reports/{}/export", below(10_000)),
            2 => "/healthz".to_owned(),
            3 => format!("/items/{}?page={}", below(50_000), below(9)),
            _ => format!("/fo/strike-distribution?symbol=S{}", below(500)),
        };
        line(&mut text, &Made { millis: number * 7_200_000 / LINES, caller, path });
    }
    text.into_bytes()
}

fn address(caller: u64) -> String {
    format!("10.{}.{}.{}", caller >> 16, (caller >> 8) & 255, caller & 255)
}

fn time(millis: u64) -> (u64, u64, u64) {
    (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60)
}

fn combined(out: &mut String, made: &Made) {
    let (hour, minute, second) = time(made.millis);
    let _ = writeln!(
        out,
        "{} - - [05/Jan/2026:{hour:02}:{minute:02}:{second:02} +0000] \"GET {} HTTP/1.1\" 200 5316 \
         \"https://example.com/\" \"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 \
         Firefox/128.0\"",
        address(made.caller),
        made.path
    );
}

fn own(out: &mut String, made: &Made) {
    let (hour, minute, second) = time(made.millis);
    let millis = made.millis % 1_000;
    let address = address(made.caller);
    let path = made.path.split('?').next().unwrap_or_default();
    let _ = writeln!(
        out,
        "{{\"ts\":\"2026-01-05T{hour:02}:{minute:02}:{second:02}.{millis:03}000Z\",\"method\":\"GET\",\
         \"path\":\"{path}\",\"status\":200,\"identity\":\"ip:{address}\",\"tier\":\"free\",\
         \"endpoint\":\"other\",\"decision\":\"allow\",\"limited_by\":null,\"remaining\":99,\
         \"retry_after\":null,\"duration_us\":1812,\"upstream_us\":1640,\"limiter_us\":4,\
         \"bytes_in\":0,\"bytes_out\":5316,\"peer\":\"{address}:41342\",\"trace_id\":null}}"
    );
}

fn json(out: &mut String, made: &Made) {
    let (hour, minute, second) = time(made.millis);
    let _ = writeln!(
        out,
        "{{\"time\":\"2026-01-05T{hour:02}:{minute:02}:{second:02}+00:00\",\"remote_addr\":\"{}\",\
         \"request\":\"GET {} HTTP/1.1\",\"status\":200,\"body_bytes_sent\":5316,\
         \"request_time\":0.002,\"http_user_agent\":\"Mozilla/5.0 (X11; Linux x86_64; rv:128.0)\"}}",
        address(made.caller),
        made.path
    );
}
