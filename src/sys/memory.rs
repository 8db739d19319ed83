//! How much memory the process uses, and how much it may use.

use std::fs;
use std::path::Path;

/// Where the kernel shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set: pages in memory.
    pub resident: u64,
    /// Address space.
    pub virtual_size: u64,
    /// What of it was written out to swap.
    pub swapped: u64,
}

/// The memory of this process; `None` where there is no `/proc`.
pub fn read() -> Option<ProcessMemory> {
    // In one file, and without the size of a page.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(ProcessMemory {
        resident: kibibytes(&status, "VmRSS:")?,
        virtual_size: kibibytes(&status, "VmSize:")?,
        // Kernels without swap do not say.
        swapped: kibibytes(&status, "VmSwap:").unwrap_or(0),
    })
}

/// The bytes that this process may use: the lowest limit of its control groups and of those above
/// them (version 1 and 2 alike), or else the machine's memory. `None` where neither can be read.
pub fn limit_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = kibibytes(&meminfo, "MemTotal:");
    // "max", or a number beyond all machines, is no limit.
    limits(Path::new(CGROUPS), &groups).into_iter().chain(machine).min()
}

/// The limits that the groups of `/proc/self/cgroup` and those above them set.
fn limits(root: &Path, groups: &str) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path; version 2 has hierarchy 0 and no controllers.
        let mut parts = line.splitn(3, ':');
        let (_, controllers, Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (folder, file) = match controllers {
            Some("") => (root.to_owned(), "memory.max"),
            Some(list) if list.split(',').any(|it| it == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Inside of a container the path may be the host's; the walk ends at the root either way.
        let above = Path::new(path).ancestors().filter_map(|path| path.strip_prefix("/").ok());
        let texts = above.filter_map(|path| fs::read_to_string(folder.join(path).join(file)).ok());
        limits.extend(texts.filter_map(|text| text.trim().parse::<u64>().ok()));
    }
    limits
}

/// The bytes of a line such as `MemTotal: 1 kB`.
fn kibibytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(kibibytes("MemTotal:       100 kB\nMemFree: 1 kB", "MemTotal:"), Some(102_400));
        assert_eq!(kibibytes("MemTotal: many kB", "MemTotal:"), None);
        assert_eq!(kibibytes("VmRSS:\t 8 kB\nVmSwap:\t 4 kB\n", "VmSwap:"), Some(4096));
        let status = "VmSize:\t 9185 kB\nVmRSS:\t 1320 kB\n";
        assert_eq!(kibibytes(status, "VmSize:"), Some(9185 << 10));
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1320 << 10));
        assert_eq!(kibibytes("VmRSS:", "VmRSS:"), None);
        assert_eq!(kibibytes("VmRSS: a kB", "VmRSS:"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_limit() {
        let memory = read().unwrap();
        assert!(memory.resident > 1 << 20 && memory.virtual_size > memory.resident, "{memory:?}");
        assert!(limit_bytes().is_some_and(|limit| limit > memory.resident));
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_holds() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limits = |groups: &str| {
            let mut found = limits(root.path(), groups);
            found.sort_unstable();
            found
        };
        write("a/memory.max", "5000\n");
        write("a/b/memory.max", "max\n");
        write("memory/c/d/memory.limit_in_bytes", "700\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limits("0::/a/b\n"), [5000]);
        assert_eq!(limits("0::/\n"), [0; 0]);
        let with_both = "5:cpu,memory:/c/d\n1:name=systemd:/c\n0::/\n";
        assert_eq!(limits(with_both), [700, 9_223_372_036_854_771_712]);
        assert_eq!(limits("4:memory:/of/the/host"), [9_223_372_036_854_771_712]);
        assert_eq!(limits("7:cpuset:/c/d\nnonsense\n"), [0; 0]);
    }
}
