//! How much memory the process may use.

use std::fs;
use std::path::Path;

/// Where the kernel shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The bytes that this process may use: the lowest limit of its control group and those above it,
/// or else the machine's memory. `None` where neither can be read.
pub fn limit_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // Inside of a container the path may be the host's; the walk ends at the root either way.
    let groups = Path::new(group).ancestors().filter_map(|path| path.strip_prefix("/").ok());
    groups
        .map(|path| Path::new(CGROUPS).join(path).join("memory.max"))
        .chain([Path::new(CGROUPS).join("memory/memory.limit_in_bytes")])
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .chain(machine)
        .min()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total("MemTotal:       100 kB\nMemFree: 1 kB"), Some(102_400));
        assert_eq!(total("MemTotal: many kB"), None);
        assert!(limit_bytes().is_some_and(|bytes| bytes > 0));
    }
}
