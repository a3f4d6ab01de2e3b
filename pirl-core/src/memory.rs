//! How much memory there is, and how much this process has taken. On Linux; elsewhere nothing is known.

use std::fs;

/// Bytes that are available without swapping.
pub fn free() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// Bytes that `work` takes beyond what the process has before it: the growth of its peak.
pub fn taken<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    const STATUS: &str = "/proc/self/status";
    // Sets the peak back to what is taken now.
    let set_back = fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = field(STATUS, "VmRSS:").filter(|_| set_back);
    let done = work();
    let peak = field(STATUS, "VmHWM:");
    let taken = before
        .zip(peak)
        .map(|(before, peak)| peak.saturating_sub(before));
    (done, taken)
}

/// The value of a line of a file of the kernel's, in bytes.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_seen_though_it_was_given_back() {
        const BYTES: usize = 64 << 20;
        assert!(free().is_some_and(|bytes| bytes > 1 << 20));
        let (sum, taken) = taken(|| {
            let block = vec![1u8; BYTES];
            block.iter().map(|&byte| u64::from(byte)).sum::<u64>()
        });
        assert_eq!(sum, BYTES as u64);
        // Other tests may take some at the same time, and give some back.
        if let Some(taken) = taken {
            assert!(taken > BYTES as u64 / 2, "{taken}");
        }
    }
}
