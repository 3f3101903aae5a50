//! Processes that the kernel has killed for want of memory: it says which in its log, before they
//! end. A count, as cgroups keep it, does not tell whether it was the machine's program or a child
//! of it long ago.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

const LOG: &str = "/dev/kmsg";
/// Each read gives a record, at most so long.
const RECORD: usize = 8192;
/// Victims are remembered until their end is seen, so many at most.
const REMEMBERED: usize = 1024;
/// Records that are read at once at most.
const FLOOD: usize = 4096;
/// What the kernel writes of each.
const KILLED: &str = "ut of memory: Killed process ";

/// One that was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Process id.
    pub pid: i32,
    /// Name.
    pub name: String,
}

/// What the kernel has said of them so far.
#[derive(Debug, Default)]
pub struct Victims {
    log: Option<File>,
    seen: VecDeque<i32>,
}

impl Victims {
    /// Those from here on.
    pub fn begin() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("can't read the kernel's log: {error}");
        let mut log = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(LOG)
            .map_err(failed)?;
        log.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { log: Some(log), seen: VecDeque::new() })
    }

    /// To be watched.
    pub fn file(&self) -> Option<&File> {
        self.log.as_ref()
    }

    /// Those since the last call.
    pub fn read(&mut self) -> Vec<Victim> {
        let Some(log) = &mut self.log else { return Vec::new() };
        let mut found = Vec::new();
        let mut buffer = [0; RECORD];
        for round in 0.. {
            if round == FLOOD {
                // Whoever writes that much is not the kernel, and nothing else is done meanwhile.
                let _ = log.seek(SeekFrom::End(0));
                break;
            }
            match log.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => found.extend(parse(&String::from_utf8_lossy(&buffer[..count]))),
                // The kernel has overwritten some that were not read yet.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.seen.extend(found.iter().map(|victim| victim.pid));
        self.seen.drain(..self.seen.len().saturating_sub(REMEMBERED));
        found
    }

    /// Whether a process that has ended now was one of them.
    pub fn take(&mut self, pid: i32) -> bool {
        let at = self.seen.iter().position(|seen| *seen == pid);
        at.and_then(|at| self.seen.remove(at)).is_some()
    }
}

/// Of a record, `PRIORITY,NUMBER,TIME,FLAGS;TEXT`. What programs write there has another facility
/// than the kernel's 0.
fn parse(record: &str) -> Option<Victim> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    if priority >> 3 != 0 {
        return None;
    }
    let (pid, rest) = text.lines().next()?.split_once(KILLED)?.1.split_once(" (")?;
    let name = rest.rsplit_once(") total-vm:").map_or(rest, |(name, _)| name);
    Some(Victim { pid: pid.parse().ok()?, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_are_read_as_the_kernel_writes_them() {
        let text = "Killed process 82 (a (b) c) total-vm:123kB, anon-rss:1kB, UID:0 pgtables:1kB \
                    oom_score_adj:0\n";
        let victim = |pid, name: &str| Some(Victim { pid, name: name.to_owned() });
        assert_eq!(parse(&format!("3,500,123456,-;Out of memory: {text}")), victim(82, "a (b) c"));
        let of_cgroup = format!("3,500,123456,-;Memory cgroup out of memory: {text} SUBSYSTEM=x\n");
        assert_eq!(parse(&of_cgroup), victim(82, "a (b) c"));
        // A program's own words.
        assert_eq!(parse(&format!("11,500,123456,-;Out of memory: {text}")), None);
        assert_eq!(parse("6,1,2,-;something else"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn a_victim_is_taken_once_and_not_for_another() {
        let mut victims = Victims { log: None, seen: VecDeque::from([7, 8]) };
        assert!(!victims.take(9) && victims.take(8) && !victims.take(8) && victims.take(7));
    }
}
