//! What was agreed upon is given up: nobody goes on with it, and nobody is disturbed for it.

use lifecycle::OrderKind;
use lifecycle::report::ConsumerState;
use protocol::UnixMillis;
use protocol::reported::Reply;

use crate::adopting::{itself, say};
use crate::application::Application;
use crate::control::{Host, activate, seal, secret, stage, v};

fn flip(host: &mut Host, generation: u32, number: u32) {
    host.order(generation, stage(number));
    host.order(generation, activate(number));
    host.order(generation, OrderKind::Adopt { version: v(number) });
}

#[test]
fn an_application_that_never_says_it_is_on_the_new_version_does_not_block_the_way_back() {
    let (policy, pid) = itself("reopen", r#", evidence = "reported""#);
    let mut host = Host::new(&policy);
    std::fs::write(host.app_dir().join("app.pid"), pid).unwrap();
    host.up();
    flip(&mut host, 1, 1);
    assert_eq!(say(&host, 1, &[]), Reply::Noted {});
    host.until("adopted", |report| report.adopted == Some(v(1)));
    flip(&mut host, 2, 2);
    host.ask(1);
    assert_eq!(host.db().adopted, None, "it has not said so");
    host.order(3, OrderKind::RollBack { to: v(1) });
    host.until("back on the version that it never left", |report| report.adopted == Some(v(1)));
    assert_eq!(say(&host, 1, &[2]), Reply::Noted {});
    host.order(4, seal(2));
    host.until("the version that nobody took up is gone", |report| report.gone.contains(v(2)));
}

#[test]
fn an_application_that_does_nothing_when_told_to_reload_does_not_block_the_way_back() {
    if !crate::kernel::is_able() {
        return;
    }
    // What a shell does on WINCH is nothing.
    let mut host = Host::with(&crate::kernel::policy(r#"adopt = "signal", signal = "WINCH""#), "");
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    flip(&mut host, 2, 2);
    host.ask(1);
    assert_eq!(host.db().adopted, None, "nobody was seen on it");
    host.order(3, OrderKind::RollBack { to: v(1) });
    host.until("back on the version that it never left", |report| report.adopted == Some(v(1)));
    host.order(4, seal(2));
    host.until("the version that nobody took up is gone", |report| report.gone.contains(v(2)));
    assert_eq!(app.starts(), 1);
}

/// A window that opens in two hours and closes an hour later, or one that is open all day but for a minute long past.
fn window(open: bool) -> String {
    let minute = UnixMillis::now().0 / 60_000 % 1_440;
    let at = |ahead: u64| format!("{:02}:{:02}", (minute + ahead) % 1_440 / 60, (minute + ahead) % 60);
    let (from, to) = if open { (at(1_320), at(1_260)) } else { (at(120), at(180)) };
    let window = format!(r#"window = {{ from = "{from}", to = "{to}", then = "restart" }}"#);
    crate::rotating::policy(&format!(r#"adopt = "window", {window}"#), "")
}

fn on_one_in_its_window() -> (Host, Application) {
    let mut host = Host::new(&window(true));
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    (host, app)
}

fn close(host: &mut Host) {
    host.write_policy(&window(false));
    // So that it is known to be in force.
    host.restart();
    host.ask(1);
}

fn is_postponed(report: &lifecycle::SetReport) -> bool {
    report.consumers.values().all(|consumer| consumer.state == ConsumerState::Postponed)
}

#[test]
fn an_application_is_restarted_in_its_window_and_not_before() {
    let (mut host, app) = on_one_in_its_window();
    let starts = app.starts();
    close(&mut host);
    flip(&mut host, 2, 2);
    host.until("postponed", is_postponed);
    host.restart();
    host.ask(2);
    host.until("still postponed after our restart", is_postponed);
    assert_eq!((host.db().adopted, app.starts()), (None, starts));
    host.write_policy(&window(true));
    host.until("adopted in its window", |report| report.adopted == Some(v(2)));
    assert_eq!((app.loaded(), app.starts()), (Some(secret(2)), starts + 1));
}

#[test]
fn an_application_that_restarts_by_itself_before_its_window_has_adopted() {
    let (mut host, app) = on_one_in_its_window();
    close(&mut host);
    flip(&mut host, 2, 2);
    host.until("postponed", is_postponed);
    let pid = rustix::process::Pid::from_raw(app.pid().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    host.until("adopted by its own new life", |report| report.adopted == Some(v(2)));
}

#[test]
fn a_rollback_before_its_window_restarts_nobody_then_or_later() {
    let (mut host, app) = on_one_in_its_window();
    let starts = app.starts();
    close(&mut host);
    flip(&mut host, 2, 2);
    host.until("postponed", is_postponed);
    host.order(3, OrderKind::RollBack { to: v(1) });
    host.until("back on the version that it never left", |report| report.adopted == Some(v(1)));
    host.write_policy(&window(true));
    flip(&mut host, 4, 3);
    host.until("the next rollout", |report| report.adopted == Some(v(3)));
    assert_eq!((app.loaded(), app.starts()), (Some(secret(3)), starts + 1), "one restart, for version 3");
}
