//! Somebody who swaps path components all the time, and readers that never stop reading.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod world;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sets::{Disk, Gate};
use world::{World, number_of, walk};

const ROTATIONS: u32 = 60;

/// Runs `beside` again and again in a thread of its own until `work` has ended. Both must have happened.
fn while_another(beside: impl Fn() + Send + Sync, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                beside();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while rounds.load(Ordering::Relaxed) < 10 {
            assert!(Instant::now() < deadline, "the other thread does nothing");
            std::thread::yield_now();
        }
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
    });
}

fn exchange(one: &Path, other: &Path) {
    // What is being removed by the other side cannot be exchanged just now.
    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
}

/// A directory that would be taken like the real one by whoever follows links: ours, for nobody else to write, and with
/// the same directories in it.
fn directory(path: &Path, inner: &[&str]) {
    for path in std::iter::once(path.to_owned()).chain(inner.iter().map(|inner| path.join(inner))) {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Files, as far down as it goes.
fn files_in(outside: &Path) -> Vec<PathBuf> {
    walk(outside).into_iter().filter(|path| !path.is_dir()).collect()
}

/// Swaps `victim` with a link to a directory that has the same directories in it, while the set is rotated. No file may
/// ever lie in that directory.
fn nothing_lands_outside(victim: &str, inner: &[&str]) {
    let world = World::new();
    world.rotate(&Disk::default(), 1).unwrap();
    let outside = world.path("outside");
    directory(&outside, inner);
    let (link, victim) = (world.path("link"), world.path(victim));
    symlink(&outside, &link).unwrap();
    let landed = AtomicUsize::new(0);
    while_another(
        || {
            exchange(&victim, &link);
            // Both states last long enough to be met, also on one processor.
            std::thread::yield_now();
            exchange(&victim, &link);
            landed.fetch_add(files_in(&outside).len(), Ordering::Relaxed);
        },
        || {
            let mut done = 0;
            let deadline = Instant::now() + Duration::from_secs(20);
            for number in (1..=2).cycle() {
                // It may fail as often as it likes, it just must not write elsewhere.
                done += u32::from(world.rotate(&Disk::default(), number).is_ok());
                if done >= ROTATIONS || Instant::now() >= deadline {
                    break;
                }
            }
            assert!(done > 0, "no rotation ever got through");
        },
    );
    assert_eq!(files_in(&outside), Vec::<PathBuf>::new(), "files landed outside");
    assert_eq!(landed.into_inner(), 0, "files were outside for a while");
}

#[test]
fn a_swapped_place_directory_gets_no_file_elsewhere() {
    nothing_lands_outside("etc/orders", &[]);
}

#[test]
fn a_swapped_directory_above_a_place_gets_no_file_elsewhere() {
    nothing_lands_outside("etc", &["orders"]);
}

#[test]
fn a_swapped_directory_of_all_sets_gets_no_file_elsewhere() {
    nothing_lands_outside("sets", &["orders-db"]);
}

/// Before one operation swaps the version in the making with a link.
struct Swap {
    making: Vec<PathBuf>,
    link: PathBuf,
    at: usize,
    seen: AtomicUsize,
    swapped: AtomicUsize,
}

impl Gate for Swap {
    fn before(&self, _: &'static str) -> Result<(), std::io::Error> {
        if self.seen.fetch_add(1, Ordering::SeqCst) == self.at {
            let there = self.making.iter().filter(|path| path.is_dir() && !path.is_symlink());
            for victim in there {
                exchange(victim, &self.link);
                self.swapped.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

/// Inside the set itself, where only its owner could: before each operation of a rotation in turn.
#[test]
fn a_swapped_version_in_the_making_gets_no_file_elsewhere() {
    let (mut swapped, mut done, mut operations) = (0, 0, 1);
    let mut at = 0;
    while at < operations {
        let world = World::new();
        world.rotate(&Disk::default(), 1).unwrap();
        let (outside, link) = (world.path("outside"), world.path("link"));
        directory(&outside, &[]);
        symlink(&outside, &link).unwrap();
        let making = ["..new-v1.2", "v1.2"].map(|name| world.path("sets/orders-db").join(name)).to_vec();
        let (seen, of_this) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let swap = Arc::new(Swap { making, link, at, seen, swapped: of_this });
        done += u32::from(world.rotate(&Disk::gated(swap.clone()), 2).is_ok());
        assert_eq!(
            files_in(&outside),
            Vec::<PathBuf>::new(),
            "files landed outside, swapped before operation {at}"
        );
        operations = operations.max(swap.seen.load(Ordering::SeqCst));
        swapped += swap.swapped.load(Ordering::SeqCst);
        at += 1;
    }
    assert!(operations > 40 && swapped > 10, "{swapped} swaps before {operations} operations");
    assert!(done > 0, "no rotation ever got through");
}

#[test]
fn a_reader_never_sees_a_short_mixed_or_world_readable_file() {
    let world = World::new();
    world.rotate(&Disk::default(), 1).unwrap();
    let ways = ["sets/orders-db/..data/password", "etc/orders/linked", "etc/orders/copied"]
        .map(|way| world.path(way));
    let data = world.path("sets/orders-db/..data");
    while_another(
        || {
            for way in &ways {
                let mut file = fs::File::open(way).expect("a reader found nothing");
                let metadata = file.metadata().unwrap();
                assert_eq!(metadata.mode() & 0o7777, 0o440, "{}", way.display());
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                assert!(number_of(&bytes).is_some(), "{} is short or mixed", way.display());
            }
            // Through one open directory both files are of one version, until that is removed.
            let dir = fs::File::open(&data).expect("a reader found nothing");
            let through = |name: &str| {
                let flags = rustix::fs::OFlags::RDONLY;
                let file = rustix::fs::openat(&dir, name, flags, rustix::fs::Mode::empty()).ok()?;
                let mut bytes = Vec::new();
                fs::File::from(file).read_to_end(&mut bytes).unwrap();
                Some(number_of(&bytes).expect("a file is short or mixed"))
            };
            if let (Some(one), Some(other)) = (through("password"), through("pgpass")) {
                assert_eq!(one, other, "one directory shows two versions");
            }
            assert_eq!(world.world_readable(), Vec::<PathBuf>::new());
        },
        || {
            for number in (1..=2).cycle().take(4 * ROTATIONS as usize) {
                world.rotate(&Disk::default(), number).unwrap();
            }
        },
    );
}
