//! What `/proc` says of one process, unread. The parser is in `holders`; it treats every byte as hostile.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// No file that we read of a process is longer, unless somebody plays with us.
const TEXT_BYTES_MAX: u64 = 16 * 1024;

/// The texts of one process, all read while the same process had the number, if the caller proves that it did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessText {
    /// The number by which it was read.
    pub pid: i32,
    /// `/proc/PID/stat`
    pub stat: Vec<u8>,
    /// `/proc/PID/status`
    pub status: Vec<u8>,
    /// `/proc/PID/cgroup`
    pub cgroup: Vec<u8>,
    /// The target of `/proc/PID/exe`; empty where there is none, or we may not know.
    pub exe: Vec<u8>,
    /// The target of `/proc/PID/ns/mnt`; empty where we may not know.
    pub mount_namespace: Vec<u8>,
}

impl ProcessText {
    /// Reads a process below `proc`, which is a mounted procfs.
    pub fn read(proc: &Path, pid: i32) -> io::Result<Self> {
        let directory = proc.join(pid.to_string());
        // First what goes away first: the cgroup and the parent of a process that is about to be reaped.
        let stat = read_capped(&directory.join("stat"))?;
        let cgroup = read_capped(&directory.join("cgroup"))?;
        let status = read_capped(&directory.join("status"))?;
        let target = |name: &str| {
            let target = std::fs::read_link(directory.join(name));
            target.map(|path| path.into_os_string().into_vec()).unwrap_or_default()
        };
        Ok(Self { pid, stat, status, cgroup, exe: target("exe"), mount_namespace: target("ns/mnt") })
    }

    /// Whether it belongs to no cgroup but the root one, or there is no cgroup v2 here.
    pub fn is_in_root_cgroup(&self) -> bool {
        let mut lines = self.cgroup.split(|byte| *byte == b'\n');
        !lines.any(|line| line.starts_with(b"0::/") && line.len() > b"0::/".len())
    }

    /// The parent's number, as `stat` says: the second field after the last parenthesis.
    pub fn parent(&self) -> Option<i32> {
        let end_of_name = self.stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&self.stat[end_of_name + 1..]).ok()?;
        rest.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}

fn read_capped(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1024);
    File::open(path)?.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let text = ProcessText { stat: b"41 (a) R 1 (b)\n) S 17 41 41 0".to_vec(), ..ProcessText::default() };
        assert_eq!(text.parent(), Some(17));
        assert_eq!(ProcessText::default().parent(), None);
    }

    #[test]
    fn only_a_cgroup_of_its_own_on_v2_counts() {
        let of = |cgroup: &[u8]| ProcessText { cgroup: cgroup.to_vec(), ..ProcessText::default() };
        assert!(of(b"0::/\n").is_in_root_cgroup());
        assert!(of(b"9:name=systemd:/user.slice\n0::/\n").is_in_root_cgroup());
        assert!(of(b"").is_in_root_cgroup());
        assert!(!of(b"0::/system.slice/a.service\n").is_in_root_cgroup());
    }
}
