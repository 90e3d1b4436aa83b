//! Enrolment, renewal, stopping and starting of the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod world;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};

use nix::sys::signal::Signal;
use tests_canary::Canaries;
use world::{Applier, ControlPlane, HostDirs, Keys, Server, World, exists, soon};

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let control_plane = ControlPlane::start().await;
    control_plane.desk.enrolment_faults.lock().unwrap().extend([500, 200, 503]);
    let mut world = World::start_with(control_plane).await;
    {
        let enrolments = world.control_plane.desk.enrolments.lock().unwrap();
        assert_eq!(enrolments.len(), 4);
        let keys: std::collections::BTreeSet<_> =
            enrolments.iter().map(|request| public_key(&request.csr_pem)).collect();
        assert_eq!(keys.len(), 1, "each attempt asked for another key");
    }
    world.whole_road(1).await;
}

fn public_key(csr_pem: &str) -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap().public_key.der_bytes().to_vec()
}

#[tokio::test]
async fn killed_while_enrolling_it_asks_for_the_same_key_after_the_restart() {
    let mut control_plane = ControlPlane::start().await;
    control_plane.desk.enrolment_faults.lock().unwrap().extend([200]);
    let dirs = HostDirs::new();
    let keys = Keys::enrol(&control_plane.bundle(), &dirs);
    let mut server = Server::start(&dirs);
    server.line_with("failed to enrol").await;
    server.kill();
    assert!(exists(&dirs.server_state().join("enrolment.json")));
    let mut server = Server::start(&dirs);
    server.url().await;
    let enrolments = control_plane.desk.enrolments.lock().unwrap().clone();
    assert_eq!(public_key(&enrolments[0].csr_pem), public_key(&enrolments.last().unwrap().csr_pem));
    let applier = Applier::connect(&dirs, Some(keys.host())).await;
    drop((applier, control_plane.stop().await));
}

#[tokio::test]
async fn a_host_waits_until_root_enrols_it_and_its_applier_can_connect_meanwhile() {
    let control_plane = ControlPlane::start().await;
    let dirs = HostDirs::new();
    let mut server = Server::start(&dirs);
    server.line_with("eso-vm-applier enroll").await;
    Applier::connect(&dirs, None).await;
    Keys::enrol(&control_plane.bundle(), &dirs);
    server.url().await;
}

#[tokio::test]
async fn where_a_host_is_reached_now_is_told_at_its_start() {
    let mut world = World::start().await;
    world.server.signal(Signal::SIGTERM);
    let again = Server::start_with(&mut std::process::Command::new("true"));
    std::mem::replace(&mut world.server, again).exit().await;
    world.dirs.write_config("advertise = \"vm1.example.org:1400\"\n");
    world.server = Server::start(&world.dirs);
    world.server.line_with("the new certificate is in use").await;
    let renewals = world.control_plane.desk.renewals.lock().unwrap().clone();
    assert_eq!(renewals.last().unwrap().0.address, "vm1.example.org:1400");
    // It is told once.
    world.server.signal(Signal::SIGKILL);
    let again = Server::start_with(&mut std::process::Command::new("true"));
    std::mem::replace(&mut world.server, again).exit().await;
    world.server = Server::start(&world.dirs);
    world.url = world.server.url().await;
    world.applier = Applier::connect(&world.dirs, Some(world.keys.host())).await;
    world.whole_road(1).await;
    assert_eq!(world.control_plane.desk.renewals.lock().unwrap().len(), renewals.len());
}

#[tokio::test]
async fn a_restart_enrols_nothing_and_leaves_nothing_behind() {
    let mut world = World::start().await;
    for how in [Signal::SIGKILL, Signal::SIGTERM] {
        world.server.signal(how);
        let again = Server::start_with(&mut std::process::Command::new("true"));
        let status = std::mem::replace(&mut world.server, again).exit().await;
        assert_eq!(status.success(), how == Signal::SIGTERM, "{status:?}");
        assert_eq!(exists(&world.dirs.socket()), how == Signal::SIGKILL, "a clean stop removes the socket");
        world.server = Server::start(&world.dirs);
        world.url = world.server.url().await;
        world.applier = Applier::connect(&world.dirs, Some(world.keys.host())).await;
        world.whole_road(1).await;
    }
    assert_eq!(world.control_plane.desk.enrolments.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_crash_left_of_an_enrolment_is_removed_and_not_repeated() {
    let mut world = World::start().await;
    let (pending, key) = (
        world.dirs.server_state().join("enrolment.json"),
        world.dirs.server_state().join("enrolment-key.pem"),
    );
    world.server.signal(Signal::SIGKILL);
    let again = Server::start_with(&mut std::process::Command::new("true"));
    std::mem::replace(&mut world.server, again).exit().await;
    // As if it had been killed between the new identity and the end of the enrolment.
    let registration = protocol::enrol::Registration::new(
        &world.control_plane.bundle(),
        &world.keys.report_key,
        world.keys.opening_key.public(),
    );
    let left = world.control_plane.bundle().pending(registration.unwrap()).to_json().unwrap();
    std::fs::write(&pending, &*left).unwrap();
    std::fs::write(&key, "a key").unwrap();
    world.server = Server::start(&world.dirs);
    world.url = world.server.url().await;
    world.applier = Applier::connect(&world.dirs, Some(world.keys.host())).await;
    world.whole_road(1).await;
    assert!(!exists(&pending) && !exists(&key));
    assert_eq!(world.control_plane.desk.enrolments.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn another_user_is_not_spoken_to_on_the_private_socket() {
    let root = nix::unistd::geteuid().is_root();
    if !tests_needs::is_there(root, "another user on the private socket: becoming another user needs root") {
        return;
    }
    let world = World::start().await;
    // The directory alone keeps others out already; here it is opened to them.
    for (path, mode) in [
        (world.dirs.root.path().to_owned(), 0o755),
        (world.dirs.root.path().join("run"), 0o755),
        (world.dirs.socket().parent().unwrap().to_owned(), 0o755),
        (world.dirs.socket(), 0o666),
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = world.dirs.root.path().join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let heard = |uid| {
        let mut command = std::process::Command::new(&program);
        command.args(["--exact", "stranger", "--ignored", "--nocapture"]);
        let output = command.env("ESO_SOCKET", world.dirs.socket()).uid(uid).gid(uid).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("heard "), "{said}");
        !said.contains("heard 0 bytes")
    };
    assert!(!heard(65_534), "a stranger was spoken to");
    assert!(heard(0), "root is spoken to");
}

/// Not a test of its own: what the test above runs as another user.
#[test]
#[ignore = "run by another_user_is_not_spoken_to_on_the_private_socket"]
fn stranger() {
    use std::io::Read as _;
    let mut stream =
        std::os::unix::net::UnixStream::connect(std::env::var_os("ESO_SOCKET").unwrap()).unwrap();
    let mut buffer = [0; 16];
    println!("heard {} bytes", stream.read(&mut buffer).unwrap_or(0));
}

#[tokio::test]
async fn a_push_under_way_is_answered_before_a_stop() {
    let mut world = World::start().await;
    let order = world.control_plane.ask(world.keys.host());
    let (pusher, url, body) = (world.pusher.clone(), world.url.clone(), order.to_bytes());
    let pushing = tokio::spawn(async move { world::push(&pusher, &url, body).await.status() });
    let (push, frames) = world.applier.receive_orders().await;
    world.server.signal(Signal::SIGTERM);
    world.server.line_with("stopping").await;
    let report = world.keys.answer(1, &frames);
    world.applier.send(&protocol::local::FromApplier::Answer { push, report }).await;
    assert_eq!(pushing.await.unwrap(), 200);
    assert!(world.server.exit().await.success());
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_and_served_without_a_restart() {
    let control_plane = ControlPlane::start().await;
    // The first certificate is due at once; the first attempt to renew fails.
    control_plane.desk.renew_after_ms.lock().unwrap().extend([0]);
    control_plane.desk.renewal_faults.lock().unwrap().extend([503]);
    let mut world = World::start_with(control_plane).await;
    world.server.line_with("failed to renew").await;
    world.whole_road(1).await;
    world.server.line_with("the new certificate is in use").await;
    world.whole_road(2).await;
    let (renewals, enrolments) = {
        let desk = &world.control_plane.desk;
        (desk.renewals.lock().unwrap().clone(), desk.enrolments.lock().unwrap().clone())
    };
    assert_eq!(renewals.len(), 2);
    assert_eq!(public_key(&renewals[1].0.csr_pem), public_key(&enrolments[0].csr_pem));
    // A new connection is answered with the new certificate, of the same key.
    world.pusher = world.control_plane.pusher(world.keys.host());
    world.whole_road(3).await;
    world
        .applier
        .send(&protocol::local::FromApplier::Report { report: world.keys.report(4, Vec::new()) })
        .await;
    soon("a report with the new certificate", world.control_plane.reports.recv()).await.unwrap();
}

#[tokio::test]
async fn a_renewal_brings_no_other_authority() {
    let control_plane = ControlPlane::start().await;
    // Somebody with a stolen key of the control plane answers the first two renewals.
    control_plane.desk.renew_after_ms.lock().unwrap().extend([0]);
    let impostors = [true, false].map(|says_so| (world::Authority::new(), says_so));
    control_plane.desk.impostors.lock().unwrap().extend(impostors);
    let mut world = World::start_with(control_plane).await;
    world.server.line_with("another authority").await;
    world.server.line_with("our authority did not sign it").await;
    world.server.line_with("the new certificate is in use").await;
    let kept = std::fs::read_to_string(world.dirs.server_state().join("identity.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["ca_pem"], world.control_plane.desk.authority.pem.as_str());
    world.whole_road(1).await;
}

#[tokio::test]
async fn a_host_that_root_enrols_anew_becomes_the_new_host_when_its_applier_connects() {
    let mut world = World::start().await;
    let before = world.keys.host();
    world.keys = Keys::enrol(&world.control_plane.bundle(), &world.dirs);
    assert_ne!(before, world.keys.host());
    world.applier = Applier::connect(&world.dirs, Some(world.keys.host())).await;
    world.server.line_with("the new certificate is in use").await;
    world.pusher = world.control_plane.pusher(world.keys.host());
    world.whole_road(1).await;
}

#[tokio::test]
async fn files_are_for_its_user_alone_and_secrets_stay_out_of_the_log() {
    let mut world = World::start().await;
    world.whole_road(1).await;
    for (path, mode) in [
        (world.dirs.server_state().join("identity.json"), 0o600),
        (world.dirs.socket(), 0o600),
        (world.dirs.socket().parent().unwrap().to_owned(), 0o700),
    ] {
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
    let keeps = world.dirs.server_state().join("identity.json");
    let identity = std::fs::read_to_string(&keeps).unwrap();
    let key = identity.split("PRIVATE KEY-----").nth(1).unwrap();
    let key_line = key.split("\\n").find(|line| line.len() > 20).unwrap().to_owned();
    let desk = &world.control_plane.desk;
    let canaries = Canaries::new([
        ("the network secret", desk.network_secret.expose().as_slice()),
        ("the applier's secret", desk.applier_secret.expose().as_slice()),
        ("the TLS key", key_line.as_bytes()),
    ])
    .unwrap();
    assert!(
        !canaries.in_tree(&keeps, &[]).unwrap().is_empty(),
        "what is looked for is found where it belongs"
    );
    // A crash leaves no core file behind, here or elsewhere.
    world.server.signal(Signal::SIGABRT);
    let again = Server::start_with(&mut std::process::Command::new("true"));
    let crashed = std::mem::replace(&mut world.server, again);
    let output = crashed.output();
    let status = crashed.exit().await;
    assert!(!status.core_dumped(), "{status}");
    assert!(output.contains("taking orders"));
    assert_eq!(canaries.in_bytes("the log", output), []);
    canaries.none_in([world.dirs.root.path()], &[&keeps]).unwrap_or_else(|leaks| panic!("{leaks}"));
}

/// Also where the system collects core dumps by itself, and for a debugger of the same user.
#[tokio::test]
async fn nobody_of_the_same_user_may_look_into_its_memory() {
    let root = nix::unistd::geteuid().is_root();
    if !tests_needs::is_there(
        root,
        "another process that looks into the memory of the network half: becoming another user needs root",
    ) {
        return;
    }
    let dirs = HostDirs::new();
    let owner = |uid: u32| {
        let own = |path: &std::path::Path| std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        own(dirs.root.path());
        own(&dirs.config());
        own(&dirs.config().join("config.toml"));
    };
    owner(65_534);
    let program = dirs.root.path().join("eso-vm-server");
    std::fs::copy(env!("CARGO_BIN_EXE_eso-vm-server"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(&program);
    command.arg("--config").arg(dirs.config()).env_remove("NOTIFY_SOCKET").uid(65_534).gid(65_534);
    let mut server = Server::start_with(&mut command);
    server.line_with("eso-vm-applier enroll").await;
    // What is not dumpable belongs to root in /proc, whoever runs it.
    let found = std::fs::metadata(format!("/proc/{}/mem", server.id())).unwrap();
    assert_eq!((found.uid(), found.gid()), (0, 0));
    server.kill();
}

#[tokio::test]
async fn the_supervisor_hears_when_it_is_ready_that_it_lives_and_that_it_stops() {
    let control_plane = ControlPlane::start().await;
    let dirs = HostDirs::new();
    Keys::enrol(&control_plane.bundle(), &dirs);
    let path = dirs.root.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(world::SOON)).unwrap();
    let mut command = Server::command(&dirs);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").env_remove("WATCHDOG_PID");
    let mut server = Server::start_with(&mut command);
    server.url().await;
    let words = |expected: &str| {
        let mut buffer = [0; 1024];
        for _ in 0..1000 {
            let length = socket.recv(&mut buffer).expect("a word to the supervisor");
            if String::from_utf8_lossy(&buffer[..length]).contains(expected) {
                return;
            }
        }
        panic!("never said {expected}");
    };
    words("taking orders on 127.0.0.1:");
    words("WATCHDOG=1");
    words("WATCHDOG=1");
    server.signal(Signal::SIGTERM);
    words("STOPPING=1");
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn a_wrong_start_says_what_to_do() {
    let dirs = HostDirs::new();
    let run = |dirs: &HostDirs, flags: &[&str]| {
        let output = Server::command(dirs).args(flags).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&dirs, &["-cert-file", "x.pem"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("remove the flag"), "{said}");
    assert_eq!(run(&dirs, &["--check"]).0, Some(0));
    dirs.write_config("lissten = \"127.0.0.1:1\"\n");
    let (code, said) = run(&dirs, &["--check"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("lissten") && said.contains("listen"), "{said}");
    // The port is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    dirs.write_config("");
    let (code, said) = run(&dirs, &["-port", &taken.local_addr().unwrap().port().to_string()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is another eso-vm-server running"), "{said}");
}

#[tokio::test]
async fn memory_stays_small() {
    let mut world = World::start().await;
    for sequence in 1..=200 {
        world.whole_road(sequence).await;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.server.id())).unwrap();
    let anonymous = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    let kib: u64 = anonymous.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 8 * 1024, "{anonymous}");
}
