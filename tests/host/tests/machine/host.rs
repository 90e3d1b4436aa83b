//! One host of an installation: a machine with the package, enrolled, and one unit that reads its credential.

use std::cell::Cell;
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::api::DeliveryPhase;
use tests_canary::Canaries;
use tests_host::Machine;

use crate::control::{CREDENTIAL, ControlPlane, FIRST};
use crate::{Ready, until_or};

/// The unit.
pub(crate) const UNIT: &str = "orders.service";
/// Where it reads.
pub(crate) const PLACE: &str = "/etc/orders/password";

/// The port of a package that nobody has configured yet: all machines share one loopback, so one at a time has it.
static DEFAULT_PORT: Mutex<()> = Mutex::new(());

pub(crate) struct Host {
    // Before what it needs.
    pub(crate) machine: Machine,
    pub(crate) control: ControlPlane,
    pub(crate) directory: tempfile::TempDir,
    /// Until it has a port of its own.
    pub(crate) default_port: Cell<Option<MutexGuard<'static, ()>>>,
}

impl Host {
    /// Boots and installs it. `adopt` is how the unit adopts, `service` its section of that name.
    pub(crate) fn new(ready: &Ready, name: &str, adopt: &str, service: &str) -> Self {
        let host = Self::installed(ready, name);
        host.begin(adopt, service);
        host
    }

    /// A machine with the package and nothing else yet.
    pub(crate) fn installed(ready: &Ready, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = ControlPlane::start(&ready.package, directory.path());
        let machine = Machine::boot(&ready.base, directory.path(), name).unwrap();
        machine.copy_in(ready.package.deb(), "/root/eso.deb").unwrap();
        // Another test that failed has left nothing of it behind.
        let default_port = DEFAULT_PORT.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Self { machine, control, directory, default_port: Cell::new(Some(default_port)) };
        host.install();
        host
    }

    /// Writes its policy and its unit, enrols it, and starts the unit on the first version.
    pub(crate) fn begin(&self, adopt: &str, service: &str) {
        let policy = format!(
            "[set.{CREDENTIAL}]\n\
            places = [{{ path = \"{PLACE}\", file = \"password\" }}]\n\
            [[set.{CREDENTIAL}.consumers]]\nunit = \"{UNIT}\"\nadopt = \"{adopt}\"\nsettle_ms = 1_000\n"
        );
        self.machine.run(&["mkdir", "-p", "/etc/orders"]).unwrap();
        self.machine.write("/etc/eso-vm-server/conf.d/orders.toml", &policy).unwrap();
        let unit = format!("[Service]\n{service}\n[Install]\nWantedBy=multi-user.target\n");
        self.machine.write(&format!("/etc/systemd/system/{UNIT}"), &unit).unwrap();
        self.machine.run(&["systemctl", "daemon-reload"]).unwrap();
        self.enrol();
        self.control.until_delivered(FIRST, DeliveryPhase::Activated);
        self.machine.run(&["systemctl", "start", UNIT]).unwrap();
        self.control.until_delivered(FIRST, DeliveryPhase::Adopted);
    }

    /// Installs the package, or installs it again as an upgrade.
    pub(crate) fn install(&self) {
        self.machine.run(&["dpkg", "--install", "/root/eso.deb"]).unwrap();
    }

    fn enrol(&self) {
        // Both ends share one loopback.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let daemon = format!(
            "[daemon]\nlisten = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\nreport_ms = 1_000\n"
        );
        self.machine.write("/etc/eso-vm-server/config.toml", &daemon).unwrap();
        let bundle = self.control.esoctl(&["host", "enroll-token", "vm1", "--label", "app=orders"]);
        self.machine.write("/root/bundle.json", &bundle).unwrap();
        // The network half has run since the package was installed: it takes the new address with the enrolment.
        let said = self.machine.run(&["eso-vm-applier", "enroll", "--bundle", "/root/bundle.json"]).unwrap();
        assert!(said.contains("the control plane took it"), "{said}");
        self.machine.run(&["systemctl", "restart", "eso-vm-applier"]).unwrap();
        drop(self.default_port.take());
    }

    /// One property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.machine.run(&["systemctl", "show", "-p", name, "--value", unit]).unwrap().trim().to_owned()
    }

    /// Which life of the unit this is.
    pub(crate) fn invocation(&self) -> String {
        self.property(UNIT, "InvocationID")
    }

    /// The directory of the version that is current, or nothing.
    pub(crate) fn current(&self) -> String {
        let link = self.machine.path(&format!("/run/eso-vm-server/sets/{CREDENTIAL}/..data"));
        std::fs::read_link(link).map(|link| link.display().to_string()).unwrap_or_default()
    }

    /// The directories of versions that are there.
    pub(crate) fn has(&self, version: &str) -> bool {
        self.machine.path(&format!("/run/eso-vm-server/sets/{CREDENTIAL}/{version}")).exists()
    }

    /// What its units in one life of theirs are called as holders.
    pub(crate) fn life(invocation: &str) -> String {
        format!("unit:{UNIT}:{invocation}")
    }

    /// Waits until these lives of the unit, and nobody else, hold the version.
    pub(crate) fn until_held_by(&self, version: lifecycle::Version, lives: &[String]) {
        let so_far =
            || format!("{version} is held by {lives:?}, not by {:#?}", self.control.holders(version));
        until_or(so_far, || {
            let mut ids: Vec<_> = self.control.holders(version).into_iter().map(|holder| holder.id).collect();
            ids.sort_unstable();
            (ids == lives).then_some(())
        });
    }

    /// Looks for the values that are on the host now in everything that was written: by the control plane, by `esoctl`,
    /// and by the machine into its files, its journal, and arguments and environments of its processes. At the end of a
    /// test: whoever reads a set is a holder of it.
    pub(crate) fn no_value_is_where_it_does_not_belong(&self) {
        let set = format!("/run/eso-vm-server/sets/{CREDENTIAL}");
        let versions =
            std::fs::read_dir(self.machine.path(&set)).unwrap().map(|entry| entry.unwrap().file_name());
        let versions = versions.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with('v'));
        let value = |version: String| {
            let text =
                std::fs::read_to_string(self.machine.path(&format!("{set}/{version}/password"))).unwrap();
            (format!("the password of {version}"), text.strip_prefix("PASSWORD=").unwrap().to_owned())
        };
        let canaries = Canaries::new(versions.map(value)).unwrap();
        let mut leaks = canaries.in_tree(self.directory.path(), &[]).unwrap();
        leaks.extend(canaries.in_bytes("the output of esoctl", self.control.printed()));
        let journal = self.machine.run(&["journalctl", "--no-pager", "--all", "--output=json"]).unwrap();
        assert!(journal.contains("eso-vm-applier"), "the journal says nothing of us");
        leaks.extend(canaries.in_bytes("the journal", journal));
        let unit = self.property(UNIT, "MainPID");
        for process in std::fs::read_dir(self.machine.path("/proc")).unwrap() {
            let process = process.unwrap();
            let id = process.file_name().into_string().unwrap();
            // Into the unit's own environment it may have been put by policy of the unit.
            if id != unit && id.parse::<u32>().is_ok() {
                for what in ["cmdline", "environ"] {
                    // It may have ended meanwhile.
                    let bytes = std::fs::read(process.path().join(what)).unwrap_or_default();
                    leaks.extend(canaries.in_bytes(format!("{what} of {}", process.path().display()), bytes));
                }
            }
        }
        assert_eq!(leaks, []);
    }

    /// Restarts and upgrades our own programs, in the middle of whatever goes on: the unit must not notice, and what
    /// was known of it is still known.
    pub(crate) fn our_own_restart_and_upgrade_change_nothing(&self) {
        let before = (self.invocation(), self.property(UNIT, "NRestarts"), self.property(UNIT, "MainPID"));
        self.machine.run(&["systemctl", "restart", "eso-vm-applier", "eso-vm-server"]).unwrap();
        self.install();
        self.control.until_reported_anew();
        let after = (self.invocation(), self.property(UNIT, "NRestarts"), self.property(UNIT, "MainPID"));
        assert_eq!(before, after, "our own restart restarted something");
        // The group that sees who opens what is still kept.
        assert_eq!(self.property("eso-vm-applier", "NFileDescriptorStore"), "1");
    }
}
