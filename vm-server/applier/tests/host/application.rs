//! An application of a test: a shell that reads its password at its start, and whoever starts it again when it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::control::PATIENCE;

/// Starts the application again whenever it ends, as a supervisor does.
pub(crate) struct Application {
    dir: PathBuf,
    ending: Arc<AtomicBool>,
    starts: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Application {
    /// The program that `/proc/PID/exe` shows.
    pub(crate) fn exe() -> String {
        std::fs::canonicalize("/bin/sh").unwrap().display().to_string()
    }

    /// It cannot use a value with `BAD` in it: it exits before it is of any use. On HUP it reads the file again. As long
    /// as its directory has a file `late`, it begins and does nothing.
    pub(crate) fn start(dir: &Path, password: &Path) -> Self {
        let script = r#"
            read_it() { IFS= read -r value < "$1" || [ -n "$value" ] || exit 1; }
            again() { read_it "$1"; echo "$value" > "$2/loaded.new"; mv "$2/loaded.new" "$2/loaded"; }
            while [ -e "$2/late" ]; do sleep 0.01; done
            read_it "$1"
            trap 'again "$1" "$2"' HUP
            trap 'exit 0' TERM
            echo $$ > "$2/app.pid.new"; mv "$2/app.pid.new" "$2/app.pid"
            case "$value" in *BAD*) sleep 0.1; exit 3;; esac
            again "$1" "$2"
            while :; do sleep 0.05; done
        "#;
        let (ending, starts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (over, count) = (Arc::clone(&ending), Arc::clone(&starts));
        let (dir, password) = (dir.to_owned(), password.to_owned());
        let at = dir.clone();
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                // A session of its own: where there are no cgroups, that is what tells readers apart.
                // And with the signal that it traps: what was ignored when a shell starts, as under nohup, stays so.
                let child = Command::new("env")
                    .args(["--default-signal=HUP", "setsid", Self::exe().as_str(), "-c", script, "app"])
                    .args([&password, &at])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                let mut child = child.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                while child.try_wait().unwrap().is_none() {
                    if over.load(Ordering::SeqCst) {
                        let _ = child.kill();
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { dir, ending, starts, thread: Some(thread) }
    }

    pub(crate) fn starts(&self) -> u32 {
        self.starts.load(Ordering::SeqCst)
    }

    #[track_caller]
    pub(crate) fn until_started(&self, starts: u32) {
        let deadline = Instant::now() + PATIENCE;
        while self.starts() < starts {
            assert!(Instant::now() < deadline, "the application began {} times, not {starts}", self.starts());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process, as its pid file says.
    pub(crate) fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.dir.join("app.pid")).ok()?.trim().parse().ok()
    }

    /// The value that it has in memory.
    pub(crate) fn loaded(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join("loaded")).ok().map(|text| text.trim().to_owned())
    }

    #[track_caller]
    pub(crate) fn until_loaded(&self, value: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.loaded().as_deref() != Some(value) {
            assert!(Instant::now() < deadline, "the application has {:?}, not {value:?}", self.loaded());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
