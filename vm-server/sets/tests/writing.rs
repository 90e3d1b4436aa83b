//! What a set and its places look like, who may read them, and how they are put right.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod world;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use host_policy::{PlaceKind, Principal};
use sets::{Disk, Drift, Existing, PlaceState, Places, SetError, SetFile};
use world::{World, content, files, number_of, version};

fn disk() -> Disk {
    Disk::default()
}

#[test]
fn a_staged_version_is_invisible_and_a_flip_shows_it_whole() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    world.stage(&set, 1).unwrap();
    assert_eq!(set.current().unwrap(), None);
    let hidden = fs::metadata(world.path("sets/orders-db/v1.1")).unwrap();
    assert_eq!(hidden.mode() & 0o777, 0o700, "others may look into a staged version");
    set.flip(version(1)).unwrap();
    assert_eq!(set.current().unwrap(), Some(version(1)));
    let file = fs::metadata(world.path("sets/orders-db/..data/password")).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o440);
    world.stage(&set, 2).unwrap();
    assert_eq!(number_of(&fs::read(set.data_path("password")).unwrap()), Some(1));
    assert_eq!(set.present().unwrap().len(), 2);
}

#[test]
fn every_file_is_marked_before_anybody_may_open_it() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    let mut marked = Vec::new();
    let mut mark = |name: &str, fd: std::os::fd::BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(fd)?;
        assert_eq!(stat.st_mode & 0o777, 0, "{name} could be opened before it was marked");
        assert_eq!(stat.st_size, 0, "{name} had content before it was marked");
        marked.push((name.to_owned(), stat.st_ino));
        Ok(())
    };
    set.stage(version(1), &files(1), &world.policy, &mut mark).unwrap();
    set.flip(version(1)).unwrap();
    let places = Places::of(&set, disk());
    let copied = &world.policy.places[1];
    places.write(copied, &files(1), Existing::Replace, &mut mark).unwrap();
    let inode = |path: &str| fs::metadata(world.path(path)).unwrap().ino();
    let expected = vec![
        ("password".to_owned(), inode("sets/orders-db/..data/password")),
        ("pgpass".to_owned(), inode("sets/orders-db/..data/pgpass")),
        (copied.path.display().to_string(), inode("etc/orders/copied")),
    ];
    assert_eq!(marked, expected);
}

#[test]
fn what_cannot_be_marked_does_not_become_visible() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    let mut refuse = |_: &str, _: std::os::fd::BorrowedFd<'_>| Err(std::io::Error::other("no mark"));
    set.stage(version(1), &files(1), &world.policy, &mut refuse).unwrap_err();
    assert!(set.present().unwrap().is_empty());
    assert!(world.rubbish().is_empty());
}

#[test]
fn the_same_version_again_is_the_same_or_refused() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    world.stage(&set, 1).unwrap();
    let before = fs::metadata(world.path("sets/orders-db/v1.1/password")).unwrap().ino();
    world.stage(&set, 1).unwrap();
    let after = fs::metadata(world.path("sets/orders-db/v1.1/password")).unwrap().ino();
    assert_eq!(before, after, "a version that was there was written again");
    let other = set.stage(version(1), &files(2), &world.policy, &mut |_, _| Ok(()));
    assert!(matches!(other, Err(SetError::OtherContent(_))));
    let fewer = set.stage(version(1), &files(1)[..1], &world.policy, &mut |_, _| Ok(()));
    assert!(matches!(fewer, Err(SetError::OtherContent(_))));
}

#[test]
fn the_current_version_cannot_be_removed_but_withdrawn() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    assert!(matches!(set.unlink(version(1)), Err(SetError::Current(_))));
    set.withdraw(version(2)).unwrap();
    assert_eq!(set.current().unwrap(), Some(version(1)), "another version was withdrawn");
    set.withdraw(version(1)).unwrap();
    set.unlink(version(1)).unwrap();
    assert_eq!(set.current().unwrap(), None);
    assert!(set.present().unwrap().is_empty());
    assert!(matches!(set.flip(version(1)), Err(SetError::Missing(_))));
    set.unlink(version(1)).unwrap();
}

#[test]
fn names_that_leave_the_set_are_refused() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    for name in ["../x", "a/b", "..", ".", "", "..data", "a\0b"] {
        let file = SetFile { name: name.into(), content: content(1).into() };
        let staged = set.stage(version(1), &[file], &world.policy, &mut |_, _| Ok(()));
        assert!(matches!(staged, Err(SetError::FileName(_))), "{name:?} was taken");
    }
    let twice = ["a", "a"].map(|name| SetFile { name: name.into(), content: content(1).into() });
    let staged = set.stage(version(1), &twice, &world.policy, &mut |_, _| Ok(()));
    assert!(matches!(staged, Err(SetError::FileName(_))));
}

#[test]
fn an_owner_that_does_not_exist_changes_nothing() {
    let mut world = World::new();
    world.rotate(&disk(), 1).unwrap();
    world.policy.access.owner = Some(Principal::Name("nobody-of-that-name".into()));
    let error = world.rotate(&disk(), 2).unwrap_err();
    assert_eq!(error.code(), "no_such_owner");
    assert!(world.readers_find().iter().all(|(_, found)| *found == Some(1)));
    assert!(world.rubbish().is_empty());
}

#[test]
fn drift_inside_a_set_is_found_and_repaired() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    let dir = world.path("sets/orders-db/v1.1");
    fs::set_permissions(dir.join("password"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("password"), "edited").unwrap();
    fs::remove_file(dir.join("pgpass")).unwrap();
    fs::write(dir.join("stray"), "x").unwrap();
    let found = set.repair(version(1), &files(1), &world.policy, &mut |_, _| Ok(())).unwrap();
    let expected = [
        ("password".to_owned(), Drift::Edited),
        ("pgpass".to_owned(), Drift::Missing),
        ("stray".to_owned(), Drift::Extra),
    ];
    assert_eq!(found, expected);
    assert_eq!(set.repair(version(1), &files(1), &world.policy, &mut |_, _| Ok(())).unwrap(), []);
    assert!(world.readers_find().iter().all(|(_, found)| *found == Some(1)));
    fs::set_permissions(dir.join("password"), fs::Permissions::from_mode(0o444)).unwrap();
    let found = set.repair(version(1), &files(1), &world.policy, &mut |_, _| Ok(())).unwrap();
    assert!(matches!(found[..], [(_, Drift::Access { mode: 0o444, .. })]), "{found:?}");
    assert!(world.world_readable().is_empty());
}

#[test]
fn drift_of_places_is_found_and_repaired() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    let places = Places::of(&set, disk());
    let (linked, copied) = (world.path("etc/orders/linked"), world.path("etc/orders/copied"));
    let repair = || {
        let repaired = places.repair(&world.policy.places, &files(1), &mut |_, _| Ok(()));
        repaired.into_iter().map(|repaired| repaired.unwrap().found).collect::<Vec<_>>()
    };
    assert_eq!(repair(), []);
    fs::remove_file(&linked).unwrap();
    fs::remove_file(&copied).unwrap();
    assert_eq!(repair(), [PlaceState::Missing, PlaceState::Missing]);
    fs::remove_file(&linked).unwrap();
    symlink("/dev/null", &linked).unwrap();
    fs::write(&copied, "edited").unwrap_or_else(|_| {
        fs::remove_file(&copied).unwrap();
        fs::write(&copied, "edited").unwrap();
    });
    assert_eq!(repair(), [PlaceState::OtherLink("/dev/null".into()), PlaceState::Drifted(Drift::Edited)]);
    fs::remove_file(&linked).unwrap();
    fs::write(&linked, "a file now").unwrap();
    fs::remove_file(&copied).unwrap();
    symlink("/etc/hostname", &copied).unwrap();
    assert_eq!(repair(), [PlaceState::OtherKind, PlaceState::OtherKind]);
    assert!(world.readers_find().iter().all(|(_, found)| *found == Some(1)));
}

/// A pipe, and a directory, in the stead of a place block nothing and are named.
#[test]
fn one_place_that_cannot_be_repaired_keeps_no_other_from_it() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    let places = Places::of(&set, disk());
    fs::remove_file(world.path("etc/orders/linked")).unwrap();
    fs::create_dir(world.path("etc/orders/linked")).unwrap();
    fs::remove_file(world.path("etc/orders/copied")).unwrap();
    let pipe = world.path("etc/orders/copied");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(places.read_back(&pipe).is_err(), "a pipe was said to hold no version");
    let repaired = places.repair(&world.policy.places, &files(1), &mut |_, _| Ok(()));
    assert!(repaired[0].is_err() && repaired[1].is_ok(), "{repaired:?}");
    assert_eq!(number_of(&fs::read(&pipe).unwrap()), Some(1));
    assert!(world.rubbish().is_empty());
}

#[test]
fn an_existing_file_is_kept_aside_at_import() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    world.stage(&set, 1).unwrap();
    set.flip(version(1)).unwrap();
    let places = Places::of(&set, disk());
    for place in &world.policy.places {
        fs::write(&place.path, "by hand").unwrap();
        let written = places.write(place, &files(1), Existing::KeepAside, &mut |_, _| Ok(())).unwrap();
        let kept = written.kept.expect("nothing was kept");
        assert_eq!(fs::read(&kept).unwrap(), b"by hand");
        assert!(kept.file_name().unwrap().to_string_lossy().ends_with(".before-eso-1"));
        let again = places.write(place, &files(1), Existing::KeepAside, &mut |_, _| Ok(())).unwrap();
        assert_eq!((again.found, again.kept), (PlaceState::Good, None));
    }
    // A second import does not overwrite what the first one kept.
    let copied = &world.policy.places[1];
    fs::remove_file(&copied.path).unwrap();
    fs::write(&copied.path, "by hand again").unwrap();
    let written = places.write(copied, &files(1), Existing::KeepAside, &mut |_, _| Ok(())).unwrap();
    assert!(written.kept.unwrap().to_string_lossy().ends_with(".before-eso-2"));
}

#[test]
fn a_place_is_read_back_also_when_policy_forgot_it() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    let places = Places::of(&set, disk());
    let (linked, copied) = (world.path("etc/orders/linked"), world.path("etc/orders/copied"));
    assert_eq!(places.read_back(&copied).unwrap().unwrap().as_slice(), content(1));
    assert!(places.read_back(&linked).unwrap().is_none());
    assert!(places.read_back(&world.path("etc/orders/none")).unwrap().is_none());
    assert!(places.read_back(&world.path("etc/nowhere/none")).unwrap().is_none());
    assert!(!places.remove(&copied, Some(&content(2))).unwrap(), "a file that is not ours was removed");
    assert!(places.remove(&copied, Some(&content(1))).unwrap());
    assert!(places.remove(&linked, None).unwrap());
    assert!(!linked.exists() && !copied.exists());
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let world = World::new();
    world.rotate(&disk(), 1).unwrap();
    for (dir, mode) in [("etc/orders", 0o777), ("etc/orders", 0o1777), ("etc/orders", 0o775), ("etc", 0o777)]
    {
        fs::set_permissions(world.path(dir), fs::Permissions::from_mode(mode)).unwrap();
        let error = world.rotate(&disk(), 2).unwrap_err();
        assert_eq!(error.code(), "untrusted_directory", "{dir} {mode:o}: {error}");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
        fs::set_permissions(world.path(dir), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(number_of(&fs::read(world.path("etc/orders/copied")).unwrap()), Some(1));
    }
    world.rotate(&disk(), 2).unwrap();
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let root = rustix::process::geteuid().is_root();
    if !tests_needs::is_there(root, "a place in a directory of somebody else: giving it away needs root") {
        return;
    }
    let world = World::new();
    std::os::unix::fs::chown(world.path("etc/orders"), Some(65_534), None).unwrap();
    let error = world.rotate(&disk(), 1).unwrap_err();
    assert_eq!(error.code(), "untrusted_directory");
    assert!(error.to_string().contains("belongs to user 65534"), "{error}");
    assert!(fs::read_dir(world.path("etc/orders")).unwrap().next().is_none());
}

#[test]
fn a_link_on_the_way_to_a_place_is_refused_by_name() {
    let mut world = World::new();
    symlink(world.path("etc/orders"), world.path("etc/alias")).unwrap();
    world.policy.places[1].path = world.path("etc/alias/copied");
    world.policy.places.retain(|place| place.kind == PlaceKind::Copy);
    let error = world.rotate(&disk(), 1).unwrap_err();
    assert!(error.to_string().contains("is a symbolic link"), "{error}");
}

#[test]
fn owner_and_group_are_as_policy_says() {
    let root = rustix::process::geteuid().is_root();
    if !tests_needs::is_there(root, "owner and group of files: changing them needs root") {
        return;
    }
    let mut world = World::new();
    let access = &mut world.policy.access;
    access.owner = Some(Principal::Id(65_534));
    access.group = Some(Principal::Name("daemon".into()));
    access.mode = 0o400;
    world.policy.places[1].access = world.policy.access.clone();
    world.rotate(&disk(), 1).unwrap();
    for path in ["sets/orders-db/..data/password", "etc/orders/copied"] {
        let metadata = fs::metadata(world.path(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (65_534, 1, 0o400), "{path}");
    }
}

/// On a tmpfs of its own, a version that somebody still holds is counted after it was removed.
#[test]
fn removed_files_that_somebody_holds_are_counted() {
    let root = rustix::process::geteuid().is_root();
    if !tests_needs::is_there(root, "removed files that somebody holds are counted: mounting needs root") {
        return;
    }
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (sets_dir, name) = (world.path("sets"), world::name());
    let prepare = || {
        let prepared = sets::mount::prepare(&sets_dir, &name, host_policy::MountMode::Auto, None);
        runtime.block_on(prepared).unwrap()
    };
    let first = prepare();
    let _unmount = Unmount(world.path("sets/orders-db"));
    assert_eq!(first.backing, sets::Backing::Mount, "{first:?}");
    assert_eq!(prepare(), first, "it was mounted a second time, or noswap was not found again");
    world.rotate(&disk(), 1).unwrap();
    let set = world.open(&disk()).unwrap();
    let counted = set.inodes().unwrap().unwrap();
    assert_eq!((counted.unaccounted(), counted.used), (0, 5), "root, link, version, two files");

    let held =
        rustix::fs::open(set.data_path("password"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
            .unwrap();
    world.rotate(&disk(), 2).unwrap();
    assert_eq!(
        set.inodes().unwrap().unwrap().unaccounted(),
        2,
        "file and directory behind an O_PATH descriptor"
    );
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    send(&ours, held);
    assert_eq!(set.inodes().unwrap().unwrap().unaccounted(), 2, "a descriptor in flight was not counted");
    drop(theirs);
    drop(ours);
    assert_eq!(set.inodes().unwrap().unwrap().unaccounted(), 0);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Sends a descriptor and closes ours: from then on it is in nobody's table.
fn send(socket: &std::os::unix::net::UnixStream, descriptor: std::os::fd::OwnedFd) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(beside.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(socket, &[std::io::IoSlice::new(b"x")], &mut beside, SendFlags::empty()).unwrap();
}

#[test]
fn a_set_on_a_plain_directory_has_no_count() {
    let world = World::new();
    let set = world.open(&disk()).unwrap();
    assert_eq!(set.inodes().unwrap(), None);
}
