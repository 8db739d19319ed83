//! Stands in for cAdvisor, which Debian does not have: what cAdvisor would say if each of these
//! processes were a container. Names, labels and types are cAdvisor's; CPU, memory and disk are the
//! processes' own, out of `/proc`. What a process has no share of by itself is put in its place: the
//! network is the machine's loopback, which they share, and limits are two cores and 512 MiB.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fmt::Write;
use std::fs;

/// Ticks a second in which the kernel counts the time of a process.
const TICKS: f64 = 100.0;
/// Microseconds of a period, and cores that may be used in it.
const PERIOD: f64 = 100_000.0;
const CORES: f64 = 2.0;
/// Bytes that each may use.
const MEMORY: f64 = 536_870_912.0;

/// One process, by the name of the container that it plays.
pub type Played = (&'static str, u32);

/// A page for Prometheus; processes that have ended are not in it.
pub fn page(played: &[Played]) -> String {
    let all: Vec<_> =
        played.iter().filter_map(|(name, pid)| Some((name, figures(*pid)?))).collect();
    let mut page = String::new();
    for (at, (metric, kind, help, more)) in METRICS.iter().enumerate() {
        writeln!(page, "# HELP {metric} {help}\n# TYPE {metric} {kind}").unwrap();
        for (name, figures) in &all {
            let id = format!("/docker/{name:0>64}");
            let labels = format!("{more}id=\"{id}\",image=\"{name}:latest\",name=\"{name}\"");
            writeln!(page, "{metric}{{{labels}}} {}", figures[at]).unwrap();
        }
    }
    // The whole machine and groups without a name, which no panel may take for a container.
    page + "container_cpu_usage_seconds_total{cpu=\"total\",id=\"/\",image=\"\",name=\"\"} 99999\n"
}

const METRICS: [(&str, &str, &str, &str); 16] = [
    ("container_cpu_usage_seconds_total", "counter", "CPU time consumed.", "cpu=\"total\","),
    ("container_cpu_cfs_periods_total", "counter", "Elapsed enforcement periods.", ""),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Throttled periods.", ""),
    ("container_spec_cpu_quota", "gauge", "CPU quota.", ""),
    ("container_spec_cpu_period", "gauge", "CPU period.", ""),
    ("container_memory_working_set_bytes", "gauge", "Working set.", ""),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit.", ""),
    ("container_network_receive_bytes_total", "counter", "Received.", "interface=\"lo\","),
    ("container_network_transmit_bytes_total", "counter", "Sent.", "interface=\"lo\","),
    ("container_network_receive_packets_dropped_total", "counter", "D.", "interface=\"lo\","),
    ("container_network_transmit_packets_dropped_total", "counter", "D.", "interface=\"lo\","),
    ("container_fs_reads_bytes_total", "counter", "Bytes read.", "device=\"/dev/vda\","),
    ("container_fs_writes_bytes_total", "counter", "Bytes written.", "device=\"/dev/vda\","),
    ("container_oom_events_total", "counter", "Out of memory.", ""),
    ("container_start_time_seconds", "gauge", "Start time.", ""),
    ("container_last_seen", "gauge", "Last seen.", ""),
];

/// The values, in the order of `METRICS`.
fn figures(pid: u32) -> Option<[f64; 16]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| -> f64 { fields[at].parse().unwrap_or(0.0) };
    let (cpu, started) = ((number(11) + number(12)) / TICKS, number(19) / TICKS);
    let pages: f64 =
        fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split(' ').nth(1)?.parse().ok()?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let bytes = |key: &str| -> f64 {
        let line = io.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        line.and_then(|it| it.parse().ok()).unwrap_or(0.0)
    };
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let loopback = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"))?;
    let loopback: Vec<f64> =
        loopback.split_whitespace().map(|it| it.parse().unwrap_or(0.0)).collect();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|it| it.strip_prefix("btime "))?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let periods = ((uptime - started) * 1e6 / PERIOD).floor();
    Some([
        cpu,
        periods,
        0.0,
        CORES * PERIOD,
        PERIOD,
        pages * 4096.0,
        MEMORY,
        loopback[0],
        loopback[8],
        loopback[3],
        loopback[11],
        bytes("read_bytes"),
        bytes("write_bytes"),
        0.0,
        boot + started,
        boot + uptime,
    ])
}
