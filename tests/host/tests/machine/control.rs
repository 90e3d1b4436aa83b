//! A control plane outside the machines, and the operator's command line.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, HolderView, HostSummary, PendingVersion, VersionPhase};
use serde::de::DeserializeOwned;
use tests_host::Package;

use crate::{until, until_or};

/// The one credential.
pub(crate) const CREDENTIAL: &str = "orders-db";
/// Its first version.
pub(crate) const FIRST: Version = Version::new(1, 1);
/// Its second.
pub(crate) const SECOND: Version = Version::new(1, 2);

const RESOURCES: &str = "\
apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: { name: orders }
spec: { length: 24 }
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: { name: orders-db }
spec:
  generator: { kind: Password, name: orders }
  targets: { hosts: { matchLabels: { app: orders } } }
  files: { password: 'PASSWORD={{ .password }}' }
  policy: { flipIn: 1s, grace: 0s, barrier: 10s, evidence: kernel }
";

pub(crate) struct ControlPlane {
    serving: Option<Child>,
    program: PathBuf,
    esoctl: PathBuf,
    directory: PathBuf,
    url: String,
    /// Everything that `esoctl` printed, to be searched for what must not be there.
    printed: RefCell<Vec<u8>>,
}

impl ControlPlane {
    pub(crate) fn start(package: &Package, directory: &Path) -> Self {
        let program = package.program("eso-control-plane");
        let resources = directory.join("resources");
        fs::create_dir(&resources).unwrap();
        fs::write(resources.join("orders.yaml"), RESOURCES).unwrap();
        let init = Command::new(&program).arg("init").arg("--data").arg(directory.join("data")).output();
        let init = init.unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let esoctl = package.program("esoctl");
        let mut control = Self {
            serving: None,
            program,
            esoctl,
            directory: directory.to_owned(),
            url: String::new(),
            printed: RefCell::default(),
        };
        control.start_again();
        control
    }

    /// Starts it, where it was before if it ran before.
    pub(crate) fn start_again(&mut self) {
        let out = self.directory.join("out");
        let log = File::create(self.directory.join("control-plane.log")).unwrap();
        let listen = self.url.strip_prefix("https://").unwrap_or("127.0.0.1:0").to_owned();
        let mut serve = Command::new(&self.program);
        serve.arg("serve").arg("--data").arg(self.directory.join("data"));
        serve.arg("--resources").arg(self.directory.join("resources")).args(["--listen", &listen]);
        serve.stdin(Stdio::null()).stdout(File::create(&out).unwrap()).stderr(log);
        self.serving = Some(serve.spawn().unwrap());
        self.url = until("the control plane is ready", || {
            let text = fs::read_to_string(&out).ok()?;
            text.split_whitespace().find_map(|word| word.strip_prefix("url=").map(ToOwned::to_owned))
        });
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.kill().unwrap();
            serving.wait().unwrap();
        }
    }

    pub(crate) fn esoctl(&self, words: &[&str]) -> String {
        let mut esoctl = Command::new(&self.esoctl);
        esoctl.arg("--config").arg(self.directory.join("data/admin/esoctl.toml"));
        let output = esoctl.args(["--server", &self.url]).args(words).output().unwrap();
        self.printed.borrow_mut().extend([&*output.stdout, &*output.stderr].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything that `esoctl` printed so far.
    pub(crate) fn printed(&self) -> Vec<u8> {
        self.printed.borrow().clone()
    }

    fn ask<T: DeserializeOwned>(&self, words: &[&str]) -> T {
        serde_json::from_str(&self.esoctl(&[words, &["-o", "json"]].concat())).unwrap()
    }

    pub(crate) fn rotate(&self) {
        self.esoctl(&["credential", "rotate", CREDENTIAL]);
    }

    pub(crate) fn credential(&self) -> CredentialDetail {
        self.ask(&["credential", "show", CREDENTIAL])
    }

    /// Where the version is on the one host.
    pub(crate) fn delivery(&self, version: Version) -> Option<DeliveryPhase> {
        let detail = self.credential();
        let known = detail.versions.iter().find(|known| known.version == version)?;
        known.deliveries.first().map(|delivery| delivery.phase)
    }

    pub(crate) fn pending(&self, version: Version) -> Option<PendingVersion> {
        let pending: Vec<PendingVersion> = self.ask(&["pending"]);
        pending.into_iter().find(|pending| pending.why.version == version)
    }

    pub(crate) fn holders(&self, version: Version) -> Vec<HolderView> {
        let holders: Vec<HolderView> = self.ask(&["holders", "list", "--credential", CREDENTIAL]);
        holders.into_iter().filter(|holder| holder.version == version).collect()
    }

    pub(crate) fn until_delivered(&self, version: Version, phase: DeliveryPhase) {
        let so_far = || format!("version {version} is {phase:?}: {:#?}", self.credential());
        until_or(so_far, || (self.delivery(version) == Some(phase)).then_some(()));
    }

    /// Nothing is left of the version, anywhere.
    pub(crate) fn until_dead(&self, version: Version) {
        until_or(
            || format!("version {version} is erased: {:#?}", self.pending(version)),
            || {
                let detail = self.credential();
                let known = detail.versions.iter().find(|known| known.version == version);
                let dead = known
                    .is_none_or(|known| matches!(known.phase, VersionPhase::Erased | VersionPhase::Retired));
                dead.then_some(())
            },
        );
    }

    /// Waits for reports that the host made after this was called.
    pub(crate) fn until_reported_anew(&self) {
        let reported = || {
            let hosts: Vec<HostSummary> = self.ask(&["host", "list"]);
            hosts[0].reported_at
        };
        // The next one may have been on its way already.
        for _ in 0..2 {
            let before = reported();
            until("the host reports again", || (reported() > before).then_some(()));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            let _ = serving.kill();
            let _ = serving.wait();
        }
    }
}
