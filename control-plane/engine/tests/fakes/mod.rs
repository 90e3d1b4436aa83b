//! Hosts that run the real machine of `lifecycle::host` behind a road without sockets, a server that mints and
//! revokes, and applications that are checked against it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backends::{
    Answer, Failure, Generator, Mark, Marked, SecretValue, Source, SpecError, StoreTarget, Stored,
};
use engine::{Engine, Handle, Makers, PushFailure, Road, Settings};
use futures_util::future::BoxFuture;
use lifecycle::credential::{Authority, Overlap};
use lifecycle::host::{self, By, Digest, HostEffect, HostEvent, HostInput, Life, Rules, SetState};
use lifecycle::report::Holder;
use lifecycle::{
    BootId, ConsumerName, CredentialName, EffectId, Evidence, Flipped, HolderId, Millis, SetName, SetReport,
    Version,
};
use protocol::order::{self, Body};
use protocol::report::{Notice, Outcome, Receipt, Report};
use protocol::{
    Frame, HostId, InstallationId, OpeningKey, SigningKey, TrustAnchor, UnixMillis, VerifyingKey,
};
use store::{Audit, KeyEncryptionKey, NewHost, NewToken, Steps, Store, Value};
use tokio::sync::mpsc;

/// The server that roles live on.
#[derive(Default)]
pub struct Server {
    pub roles: BTreeMap<EffectId, Role>,
    pub violations: Vec<String>,
    pub minted: u32,
    pub revoked: u32,
    /// Operations that were refused once already, when every one is to fail once.
    failed: BTreeSet<(&'static str, EffectId)>,
    pub fail_once: bool,
    /// What its preflight says, as long as it fails.
    pub unfit: Option<&'static str>,
    /// The store was reverted, so it may ask for what it no longer knows that it has.
    pub reverted: bool,
    /// It holds one version only.
    pub holds_one: bool,
    /// The password of a role that was there before us.
    pub existing: Option<String>,
    /// Where each version was asked about: the server's name, and the effect that minted it.
    pub asked: BTreeSet<(String, EffectId)>,
    /// Passwords that applications have loaded right now, by host.
    pub loaded: HashMap<HostId, String>,
}

pub struct Role {
    pub password: String,
    /// Which server it lives on.
    pub at: String,
    pub alive: bool,
    pub mark: Mark,
}

/// Mints on the server that its spec names; on another one its roles are unknown.
#[derive(Clone, Default)]
pub struct FakeGenerator(pub Arc<Mutex<Server>>, pub String);

impl FakeGenerator {
    fn once(&self, what: &'static str, effect: EffectId) -> Result<(), Failure> {
        let mut server = self.0.lock().unwrap();
        if server.fail_once && server.failed.insert((what, effect)) {
            return Err(Failure::retry("not this time"));
        }
        Ok(())
    }
}

impl Generator for FakeGenerator {
    fn overlap(&self) -> Overlap {
        if self.0.lock().unwrap().holds_one { Overlap::None } else { Overlap::Versions }
    }

    fn authority(&self) -> Authority {
        Authority::Revokes
    }

    fn preflight<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        Box::pin(async move {
            let unfit = self.0.lock().unwrap().unfit;
            unfit.map_or(Ok(()), |why| Err(Failure::retry(why)))?;
            self.once("preflight", mark.effect)
        })
    }

    fn new_value(&self, effect: EffectId) -> Result<SecretValue, Failure> {
        let password = format!("canary-{}-{effect}", uuid());
        let user = format!("u{effect}");
        Ok(SecretValue::new().with("username", user.as_bytes()).with("password", password.as_bytes()))
    }

    fn mint<'a>(&'a self, mark: &'a Mark, chosen: &'a SecretValue) -> Answer<'a, Option<SecretValue>> {
        Box::pin(async move {
            self.once("mint", mark.effect)?;
            let password = chosen.expose_text("password").unwrap().to_owned();
            let mut server = self.0.lock().unwrap();
            match server.roles.get(&mark.effect) {
                Some(role) if role.password != password && server.reverted => {
                    return Err(Failure::refused("the name is taken"));
                }
                Some(role) if role.password != password => {
                    server.violations.push(format!("{} was minted twice with two values", mark.effect));
                }
                Some(_) => {}
                None => {
                    server.minted += 1;
                    let at = self.1.clone();
                    server.roles.insert(mark.effect, Role { password, at, alive: true, mark: mark.clone() });
                }
            }
            drop(server);
            Ok(None)
        })
    }

    fn verify<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()> {
        Box::pin(async move {
            self.once("verify", effect)?;
            let server = self.0.lock().unwrap();
            let password = value.expose_text("password").unwrap_or_default();
            match server.roles.get(&effect) {
                Some(role) if role.alive && role.at == self.1 && role.password == password => Ok(()),
                None if server.existing.as_deref() == Some(password) => Ok(()),
                _ => Err(Failure::refused("the server refuses the login")),
            }
        })
    }

    fn sessions<'a>(&'a self, effect: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            self.once("sessions", effect)?;
            self.0.lock().unwrap().asked.insert((self.1.clone(), effect));
            Ok(Some(0))
        })
    }

    fn end_sessions<'a>(&'a self, effect: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, ()> {
        Box::pin(async move { self.once("end_sessions", effect) })
    }

    fn revoke<'a>(&'a self, effect: EffectId, _: Option<&'a SecretValue>) -> Answer<'a, ()> {
        Box::pin(async move {
            self.once("revoke", effect)?;
            let mut server = self.0.lock().unwrap();
            let loaded: Vec<String> = server.loaded.values().cloned().collect();
            let used = server
                .roles
                .get(&effect)
                .is_some_and(|role| role.at == self.1 && loaded.contains(&role.password));
            if used {
                server.violations.push(format!("{effect} was revoked while an application had it"));
            }
            if let Some(role) = server.roles.get_mut(&effect)
                && role.at == self.1
                && role.alive
            {
                role.alive = false;
                server.revoked += 1;
            }
            drop(server);
            Ok(())
        })
    }

    fn orphans<'a>(&'a self, _: &'a str) -> Answer<'a, Vec<Marked>> {
        Box::pin(async move {
            let server = self.0.lock().unwrap();
            let alive = server.roles.values().filter(|role| role.alive && role.at == self.1);
            Ok(alive.map(|role| Marked { mark: role.mark.clone(), name: "role".into() }).collect())
        })
    }
}

fn uuid() -> String {
    hex::encode(VersionKeyBytes::draw())
}

struct VersionKeyBytes;

impl VersionKeyBytes {
    fn draw() -> [u8; 8] {
        let mut bytes = [0; 8];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        bytes
    }
}

/// Makes the fake generator whatever is asked for.
pub struct FakeMakers(pub FakeGenerator, pub Shelf, pub Shelf);

/// A store path that keeps versions.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Vec<Revision>>>, Arc<AtomicBool>, Arc<AtomicU32>);

/// None once it was destroyed.
type Revision = Option<(SecretValue, Mark)>;

impl Shelf {
    pub fn current_password(&self) -> Option<String> {
        let kept = self.0.lock().unwrap();
        kept.last()?.as_ref().map(|(value, _)| value.expose_text("password").unwrap().to_owned())
    }

    /// It answers nothing any more.
    pub fn take_away(&self) {
        self.1.store(true, Ordering::SeqCst);
    }

    /// How often it was asked in vain.
    pub fn asked_in_vain(&self) -> u32 {
        self.2.load(Ordering::SeqCst)
    }

    fn answers(&self) -> Result<(), Failure> {
        if !self.1.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.2.fetch_add(1, Ordering::SeqCst);
        Err(Failure::retry("it does not answer"))
    }

    /// The passwords of all revisions that can still be read.
    pub fn readable(&self) -> Vec<String> {
        let kept = self.0.lock().unwrap();
        kept.iter().flatten().map(|(value, _)| value.expose_text("password").unwrap().to_owned()).collect()
    }

    fn remove(&self, revision: u64) {
        let at = usize::try_from(revision).unwrap() - 1;
        self.0.lock().unwrap()[at] = None;
    }
}

impl StoreTarget for Shelf {
    fn write<'a>(&'a self, mark: &'a Mark, value: &'a SecretValue, after: u64) -> Answer<'a, u64> {
        Box::pin(async move {
            let mut kept = self.0.lock().unwrap();
            let revision = kept.len() as u64;
            if kept.last().is_some_and(|last| last.as_ref().is_some_and(|(known, _)| known.same_as(value))) {
                return Ok(revision);
            }
            if revision != after {
                return Err(Failure::refused("somebody else wrote"));
            }
            kept.push(Some((value.clone(), mark.clone())));
            Ok(revision + 1)
        })
    }

    fn read_back(&self) -> Answer<'_, Option<Stored>> {
        Box::pin(async move {
            self.answers()?;
            let kept = self.0.lock().unwrap();
            let revision = kept.len() as u64;
            Ok(kept.last().cloned().flatten().map(|(value, mark)| Stored {
                value,
                revision,
                mark: Some(mark),
            }))
        })
    }

    fn destroy(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            assert_ne!(revision, self.0.lock().unwrap().len() as u64, "the current one is never destroyed");
            self.remove(revision);
            Ok(())
        })
    }

    fn withdraw(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            self.remove(revision);
            Ok(())
        })
    }
}

impl Makers for FakeMakers {
    fn generator(&self, _: &str, spec: &serde_json::Value) -> Result<Arc<dyn Generator>, SpecError> {
        let at = spec.get("host").and_then(|host| host.as_str()).unwrap_or_default();
        Ok(Arc::new(FakeGenerator(self.0.0.clone(), at.to_owned())))
    }

    fn source(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn Source>, SpecError> {
        let secrets = Arc::new(backends::SecretsDirectory::new("/nonexistent"));
        backends::build_source(kind, spec, secrets)
    }

    fn store_target(&self, _: &str, spec: &serde_json::Value) -> Result<Arc<dyn StoreTarget>, SpecError> {
        let other = spec.get("path").is_some_and(|path| path == "other");
        Ok(Arc::new(if other { self.2.clone() } else { self.1.clone() }))
    }
}

/// One host: the real machine of each set, one application.
pub struct FakeHost {
    pub id: HostId,
    pub name: String,
    /// What an operator should know of it.
    pub notices: Vec<Notice>,
    report_key: SigningKey,
    opening_key: OpeningKey,
    anchor: TrustAnchor,
    began: Instant,
    sets: BTreeMap<SetName, SetState>,
    links: BTreeMap<SetName, Version>,
    flipped: Option<Flipped>,
    at_instant: bool,
    files: BTreeMap<(SetName, Version), String>,
    /// What the application loaded at the start of its life.
    loaded: Option<(Version, String)>,
    life: u32,
    pub restarts: u32,
    /// Versions' passwords that the application cannot use.
    pub bad: BTreeSet<String>,
    /// The application cannot use any version but the one that it has.
    pub refuses_anything_new: bool,
    /// Its policy names no set.
    pub names_no_set: bool,
    good: Option<String>,
    sequence: u64,
    acknowledged: Option<Frame>,
    reported: Option<BTreeMap<SetName, SetReport>>,
    /// Sent again until it is acknowledged, also when it was the answer to a push.
    unacknowledged: Option<Frame>,
    /// While set, nothing reaches it and nothing comes from it.
    pub frozen: bool,
    /// While set, nothing reaches it, and it reports all the same.
    pub deaf: bool,
    /// While set, pushes to it are lost although it can be reached.
    pub loses_pushes: bool,
    server: Arc<Mutex<Server>>,
}

fn app() -> ConsumerName {
    ConsumerName::new("orders.service").unwrap()
}

impl FakeHost {
    fn new(name: &str, anchor: TrustAnchor, server: Arc<Mutex<Server>>) -> Self {
        let report_key = SigningKey::generate().unwrap();
        Self {
            id: HostId::of(&report_key.public()),
            name: name.to_owned(),
            notices: Vec::new(),
            report_key,
            opening_key: OpeningKey::generate().unwrap(),
            anchor,
            began: Instant::now(),
            sets: BTreeMap::new(),
            links: BTreeMap::new(),
            flipped: None,
            at_instant: false,
            files: BTreeMap::new(),
            loaded: None,
            life: 1,
            restarts: 0,
            bad: BTreeSet::new(),
            refuses_anything_new: false,
            names_no_set: false,
            good: None,
            sequence: 0,
            acknowledged: None,
            reported: None,
            unacknowledged: None,
            frozen: false,
            deaf: false,
            loses_pushes: false,
            server,
        }
    }

    fn input(&self) -> HostInput {
        HostInput { boot: Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap()) }
    }

    fn know(&mut self, set: &SetName) {
        if !self.sets.contains_key(set) {
            self.sets.insert(set.clone(), SetState::default());
            self.give(
                set,
                HostEvent::Started { boot: BootId::default(), link: None, files: BTreeSet::new() },
            );
            let consumers = BTreeMap::from([(app(), By::Permit)]);
            let rules = (!self.names_no_set).then_some(Rules { consumers });
            self.give(set, HostEvent::Policy(rules));
        }
    }

    fn give(&mut self, set: &SetName, event: HostEvent) -> Option<host::Answer> {
        let mut events = vec![event];
        let mut answered = None;
        let due = self.sets.get(set).and_then(SetState::next_due);
        self.at_instant = due.is_some_and(|due| due <= self.input().boot);
        while let Some(event) = events.pop() {
            let state = self.sets.get(set).cloned().unwrap_or_default();
            let (state, effects) = host::step(state, self.input(), event);
            self.sets.insert(set.clone(), state);
            let mut outcomes = Vec::new();
            for effect in effects {
                match effect {
                    HostEffect::Answer(answer) => answered = Some(answer),
                    other => outcomes.extend(self.carry_out(set, other)),
                }
            }
            events.extend(outcomes.into_iter().rev());
        }
        answered
    }

    fn carry_out(&mut self, set: &SetName, effect: HostEffect) -> Vec<HostEvent> {
        match effect {
            HostEffect::Answer(_) => vec![],
            HostEffect::Write { version } => vec![HostEvent::Written { version }],
            HostEffect::Flip { version } => {
                assert!(self.files.contains_key(&(set.clone(), version)), "a flip without files");
                self.links.insert(set.clone(), version);
                let ahead_ms_max = self.at_instant.then_some(0);
                self.flipped = Some(Flipped { version, unix_ms: UnixMillis::now().0, ahead_ms_max });
                vec![HostEvent::Flipped { version }]
            }
            HostEffect::Unlink { version } => {
                self.files.remove(&(set.clone(), version));
                vec![HostEvent::Unlinked { version }]
            }
            HostEffect::Seal { version, withdraw, .. } => {
                if self.loaded.as_ref().is_some_and(|(loaded, _)| *loaded == version) {
                    return vec![HostEvent::NotGone { version, reason: "held".to_owned() }];
                }
                if withdraw && self.links.get(set) == Some(&version) {
                    self.links.remove(set);
                }
                self.files.remove(&(set.clone(), version));
                vec![HostEvent::Unlinked { version }, HostEvent::Gone { version }]
            }
            HostEffect::Look { turn, consumer } => {
                vec![HostEvent::Looked {
                    turn,
                    consumer,
                    life: Some(self.life()),
                    healthy: self.is_healthy(),
                }]
            }
            HostEffect::Adopt { turn, consumer, was, .. } => {
                if was == Some(self.life()) {
                    self.restart(set);
                }
                vec![HostEvent::TookUp { turn, consumer, life: self.life() }]
            }
            HostEffect::Settle { turn, consumer, .. } => vec![if self.is_healthy() {
                HostEvent::Healthy { turn, consumer }
            } else {
                HostEvent::Unhealthy { turn, consumer, reason: "exited 1".to_owned() }
            }],
        }
    }

    fn life(&self) -> Life {
        Life(self.life.to_string())
    }

    fn is_healthy(&self) -> bool {
        self.loaded.as_ref().is_none_or(|(_, password)| {
            !self.bad.contains(password)
                && (!self.refuses_anything_new || self.good.as_ref() == Some(password))
        })
    }

    fn restart(&mut self, set: &SetName) {
        self.restarts += 1;
        self.life += 1;
        let link = self.links.get(set).copied();
        self.loaded = link.and_then(|version| {
            let password = self.files.get(&(set.clone(), version))?;
            Some((version, password.clone()))
        });
        if !self.refuses_anything_new {
            self.good = self.loaded.as_ref().map(|(_, password)| password.clone());
        }
        let mut server = self.server.lock().unwrap();
        match &self.loaded {
            Some((version, password)) => {
                let alive = server.roles.is_empty()
                    || server.existing.as_ref() == Some(password)
                    || server.roles.values().any(|role| role.alive && &role.password == password);
                if !alive {
                    let name = &self.name;
                    server.violations.push(format!("{name} started with the dead version {version}"));
                }
                server.loaded.insert(self.id, password.clone());
            }
            None => drop(server.loaded.remove(&self.id)),
        }
    }

    /// What the application has.
    pub fn password(&self) -> Option<String> {
        self.loaded.as_ref().map(|(_, password)| password.clone())
    }

    pub fn signed_report(&mut self) -> Frame {
        self.report(vec![])
    }

    /// A report of another host, signed by this one.
    pub fn report_in_the_name_of(&mut self, other: HostId) -> Frame {
        let own = std::mem::replace(&mut self.id, other);
        let frame = self.report(vec![]);
        self.id = own;
        frame
    }

    /// What a clone of this machine says under a number that this one used already.
    pub fn report_with_another_boot(&mut self) -> Frame {
        self.sequence -= 1;
        self.report(vec![Receipt {
            frame: protocol::FrameDigest::of(b"another boot"),
            order: None,
            outcome: Outcome::Accepted { again: false },
        }])
    }

    /// What this machine says after it was put back to a snapshot from `reports` reports ago.
    pub fn report_of_a_snapshot(&mut self, reports: u64) -> Frame {
        let (sequence, acknowledged) = (self.sequence, self.acknowledged.take());
        let (reported, unacknowledged) = (self.reported.clone(), self.unacknowledged.take());
        self.sequence -= reports;
        let frame = self.report_with_another_boot();
        (self.sequence, self.acknowledged) = (sequence, acknowledged);
        (self.reported, self.unacknowledged) = (reported, unacknowledged);
        frame
    }

    /// Takes an acknowledgement as it came for a report that a test sent itself.
    pub fn take_acknowledgement(&mut self, frame: Frame) {
        self.acknowledged(frame);
    }

    /// The application ends: nobody holds anything on this host any more.
    pub fn stop_application(&mut self) {
        self.loaded = None;
        self.life += 1;
        self.server.lock().unwrap().loaded.remove(&self.id);
    }

    /// Whether something changed by time alone.
    fn tick(&mut self) {
        let now = self.input().boot;
        let due: Vec<SetName> = self
            .sets
            .iter()
            .filter(|(_, state)| state.next_due().is_some_and(|due| due <= now) || state.has_open_seals())
            .map(|(set, _)| set.clone())
            .collect();
        for set in due {
            self.give(&set, HostEvent::Tick);
            self.give(&set, HostEvent::Recheck);
        }
    }

    fn take(&mut self, frames: &[Frame]) -> Frame {
        let mut receipts = Vec::new();
        for frame in frames {
            receipts.push(self.take_one(frame));
        }
        self.report(receipts)
    }

    fn take_one(&mut self, frame: &Frame) -> Receipt {
        let now = UnixMillis::now();
        let verified = match order::verify(frame, &self.anchor, self.id, now) {
            Ok(verified) => verified,
            Err(error) => {
                self.server.lock().unwrap().violations.push(format!("a host refuses our frame: {error}"));
                let outcome = Outcome::Refused { code: error.code().into(), message: error.to_string() };
                return Receipt { frame: frame.digest(), order: None, outcome };
            }
        };
        let identity = verified.identity();
        let answer = match &verified.payload().body {
            Body::Ask(ask) => {
                let mut last = None;
                for (set, question) in &ask.questions {
                    self.know(set);
                    let epoch = verified.payload().epoch;
                    last = self.give(set, HostEvent::Asked { epoch, question: *question });
                }
                last
            }
            Body::Set(set_order) => {
                self.know(&set_order.set);
                let digest = set_order.stage.as_ref().map(|stage| Digest(format!("{:?}", stage.digests)));
                if set_order.stage.is_some() {
                    let staged = verified.open_stage(&self.opening_key).unwrap();
                    let file = protocol::FileName::new("password").unwrap();
                    let password = String::from_utf8(staged.files()[&file].expose().to_vec()).unwrap();
                    let version = set_order.order.kind.version();
                    self.files.entry((set_order.set.clone(), version)).or_insert(password);
                }
                let age = Some(Millis(verified.age_ms(now)));
                self.give(&set_order.set, HostEvent::Order { order: set_order.order.clone(), digest, age })
            }
            Body::Rekey(_) => None,
        };
        let outcome = match answer {
            Some(host::Answer::Refused { code, message }) => {
                Outcome::Refused { code: code.word().to_owned(), message }
            }
            _ => Outcome::Accepted { again: false },
        };
        Receipt { frame: frame.digest(), order: Some(identity), outcome }
    }

    fn snapshots(&self) -> BTreeMap<SetName, SetReport> {
        let holders: Vec<Holder> = self
            .loaded
            .iter()
            .map(|(version, _)| Holder {
                id: HolderId::new(format!("proc:1:{}", self.life)).unwrap(),
                version: *version,
                consumer: Some(app()),
                evidence: Evidence::Declared,
                description: "the application".to_owned(),
            })
            .collect();
        let snapshot = |state: &SetState| SetReport {
            evidence: Evidence::Declared,
            holders: holders.clone(),
            flipped: self.flipped.filter(|flipped| Some(flipped.version) == state.current()),
            ..state.report()
        };
        self.sets.iter().map(|(set, state)| (set.clone(), snapshot(state))).collect()
    }

    /// The whole report, with receipts of what may never have been ordered.
    pub fn report(&mut self, receipts: Vec<Receipt>) -> Frame {
        self.sequence += 1;
        let snapshots = self.snapshots();
        self.reported = Some(snapshots.clone());
        let numbered = snapshots
            .into_iter()
            .map(|(set, report)| (set, SetReport { sequence: self.sequence, ..report }))
            .collect();
        let report = Report {
            installation: self.anchor.installation,
            host: self.id,
            epoch: None,
            sequence: self.sequence,
            boot_id: "boot".to_owned(),
            taken_at: UnixMillis::now(),
            up_ms: 0,
            acknowledged: self.acknowledged.clone(),
            sets: numbered,
            digests: BTreeMap::new(),
            receipts,
            means: Vec::new(),
            notices: self.notices.clone(),
        };
        let frame = report.sign(&self.report_key).unwrap();
        self.unacknowledged = Some(frame.clone());
        frame
    }

    fn changed(&self) -> bool {
        self.reported.as_ref() != Some(&self.snapshots())
    }

    fn acknowledged(&mut self, frame: Frame) {
        let ack = protocol::ack::verify(&frame, &self.anchor, self.id).unwrap();
        self.unacknowledged = self.unacknowledged.take().filter(|sent| sent.digest() != ack.report);
        for (set, dead) in ack.dead {
            self.give(&set, HostEvent::Acknowledged { epoch: ack.epoch, dead });
        }
        self.acknowledged = Some(frame);
    }
}

/// All hosts, and the road to them.
pub struct FakeRoad {
    pub hosts: BTreeMap<HostId, Arc<Mutex<FakeHost>>>,
    /// Each push arrives twice.
    pub twice: bool,
    /// Of each host every second push is lost, the answer of every third.
    pub lossy: bool,
    pushes: Mutex<BTreeMap<HostId, u32>>,
    told: Told,
}

impl Road for FakeRoad {
    fn keep(&self, _: &fleet::HostAddress) {}

    fn forget(&self, _: &HostId) {}

    /// The dial of a host that cannot be reached fails once more.
    fn nudge(&self, host: &HostId) {
        let deaf = self.hosts.get(host).is_some_and(|host| host.lock().unwrap().deaf);
        if let Some(tell) = self.told.lock().unwrap().as_ref().filter(|_| deaf) {
            // The channel is never full in a test; when the engine is gone there is nobody to tell.
            let _ = tell.try_send((*host, false));
        }
    }

    fn push<'a>(
        &'a self,
        address: &'a fleet::HostAddress,
        frames: Vec<Frame>,
    ) -> BoxFuture<'a, Result<Frame, PushFailure>> {
        Box::pin(async move {
            let lost = || PushFailure { code: "lost", message: "lost".to_owned() };
            let number = {
                let mut pushes = self.pushes.lock().unwrap();
                let count = pushes.entry(address.host).or_insert(0);
                *count += 1;
                *count
            };
            if self.lossy && number % 2 == 0 {
                return Err(lost());
            }
            let mut host = self.hosts[&address.host].lock().unwrap();
            if host.frozen || host.deaf || host.loses_pushes {
                return Err(lost());
            }
            let report = host.take(&frames);
            if self.twice {
                return Ok(host.take(&frames));
            }
            if self.lossy && number % 3 == 0 {
                return Err(lost());
            }
            Ok(report)
        })
    }
}

/// Where the present engine is told who can be reached.
type Told = Arc<Mutex<Option<mpsc::Sender<(HostId, bool)>>>>;

/// Everything but the engine: it survives the engine's death.
pub struct Stage {
    pub directory: tempfile::TempDir,
    pub server: Arc<Mutex<Server>>,
    pub road: Arc<FakeRoad>,
    pub shelf: Shelf,
    /// What stands at the path `other`.
    pub other_shelf: Shelf,
    pub anchor: TrustAnchor,
    order_seed: [u8; 32],
    handle: Arc<Mutex<Option<Handle>>>,
    /// Of the engine that runs, or ran last.
    store: Mutex<Option<Store>>,
    reachable: Told,
    pump: tokio::task::JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

pub fn name() -> CredentialName {
    CredentialName::new("orders-db").unwrap()
}

pub const CREDENTIAL: &str = "apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: {name: p}
spec: {}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {name: orders-db}
spec:
  generator: {kind: Password, name: p}
  targets:
    hosts:
      matchLabels: {app: orders}
  files:
    password: \"{{ .password }}\"
    url: \"db://{{ .username }}:{{ .password }}@host\"
  policy:
    barrier: 500ms
    flipIn: 60ms
    startWait: 500ms
    grace: 0s
    adoptWithin: 20s
    retryPauseMax: 40ms
    sampleEvery: 50ms
";

impl Stage {
    pub async fn new(hosts: usize) -> Self {
        Self::with(hosts, false, false).await
    }

    pub async fn with(hosts: usize, twice: bool, lossy: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("resources")).unwrap();
        std::fs::write(directory.path().join("resources/orders.yaml"), CREDENTIAL).unwrap();
        KeyEncryptionKey::generate().unwrap().write_file(&directory.path().join("key")).unwrap();
        let store = open(directory.path(), Steps::default()).await;
        let order_key = SigningKey::generate().unwrap();
        let anchor = TrustAnchor {
            installation: InstallationId(store.installation()),
            rekeys: 0,
            order_key: order_key.public(),
            root_key: None,
        };
        let server = Arc::new(Mutex::new(Server::default()));
        let mut all = BTreeMap::new();
        for number in 0..hosts {
            let host = FakeHost::new(&format!("h{number}"), anchor.clone(), server.clone());
            enrol(&store, &host).await;
            all.insert(host.id, Arc::new(Mutex::new(host)));
        }
        let handle = Arc::new(Mutex::new(None));
        let reachable = Told::default();
        let told = reachable.clone();
        let road = Arc::new(FakeRoad { hosts: all, twice, lossy, pushes: Mutex::default(), told });
        let pump = tokio::spawn(pump(road.clone(), handle.clone(), reachable.clone()));
        let order_seed = *order_key.expose_seed().unwrap();
        Self {
            directory,
            server,
            road,
            shelf: Shelf::default(),
            other_shelf: Shelf::default(),
            anchor,
            order_seed,
            handle,
            store: Mutex::default(),
            reachable,
            pump,
        }
    }

    pub async fn start(&self, steps: Steps) -> Engine {
        self.try_start(steps).await.unwrap()
    }

    /// Fails when the store ends at a step of the start itself.
    pub async fn try_start(&self, steps: Steps) -> Option<Engine> {
        let (tell, reachable) = mpsc::channel(1024);
        // Of one that has ended by itself.
        *self.store.lock().unwrap() = None;
        let store = open(self.directory.path(), steps).await;
        let settings = Settings {
            store: store.clone(),
            order_key: Arc::new(SigningKey::from_seed(&self.order_seed).unwrap()),
            anchor: self.anchor.clone(),
            earlier_keys: Vec::<VerifyingKey>::new(),
            resources: self.resources(),
            makers: Arc::new(FakeMakers(
                FakeGenerator(self.server.clone(), String::new()),
                self.shelf.clone(),
                self.other_shelf.clone(),
            )),
            road: self.road.clone(),
            reachable,
        };
        let engine = Engine::start(settings).await.ok()?;
        *self.handle.lock().unwrap() = Some(engine.handle().clone());
        *self.store.lock().unwrap() = Some(store);
        *self.reachable.lock().unwrap() = Some(tell);
        Some(engine)
    }

    /// Ends an engine and lets go of its database.
    pub async fn kill(&self, engine: Engine) {
        *self.handle.lock().unwrap() = None;
        *self.store.lock().unwrap() = None;
        *self.reachable.lock().unwrap() = None;
        engine.stop().await;
    }

    /// Waits until nobody has the database open any more.
    pub async fn close(&self) {
        *self.store.lock().unwrap() = None;
        drop(open(self.directory.path(), Steps::default()).await);
        let end = Instant::now() + Duration::from_secs(10);
        // The last handle closes the file a moment later.
        while self.directory.path().join("state.db-wal").exists() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Gives a host another address, as its enrolment anew does while the engine runs.
    pub async fn move_host(&self, engine: &Handle, host: HostId, address: &str) {
        let store = self.store.lock().unwrap().clone().unwrap();
        let moved = store.set_host_address(&host.to_string(), address.to_owned(), None).await;
        moved.unwrap();
        engine.host_changed(host).await.unwrap();
    }

    /// The effects under which the database keeps values, also while the engine runs.
    pub fn kept_values(&self) -> BTreeSet<String> {
        let database = rusqlite::Connection::open(self.directory.path().join("state.db")).unwrap();
        let mut rows = database.prepare("SELECT effect FROM secret_values").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Copies the database, also while the engine runs.
    pub fn backup(&self, to: &Path) {
        let source = rusqlite::Connection::open(self.directory.path().join("state.db")).unwrap();
        source.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
    }

    /// Restores a backup as an operator would.
    pub async fn restore(&self, from: &Path) {
        drop(open(self.directory.path(), Steps::default()).await);
        let state = self.directory.path().join("state.db");
        std::fs::rename(&state, self.directory.path().join("before.db")).unwrap();
        for leftover in ["state.db-wal", "state.db-shm"] {
            drop(std::fs::remove_file(self.directory.path().join(leftover)));
        }
        let key = KeyEncryptionKey::from_file(&self.directory.path().join("key")).unwrap();
        store::restore(from, &state, key).await.unwrap();
    }

    /// A role that somebody made before us, as a value to import.
    pub fn existing_role(&self, user: &str, password: &str) -> SecretValue {
        self.server.lock().unwrap().existing = Some(password.to_owned());
        SecretValue::new().with("username", user.as_bytes()).with("password", password.as_bytes())
    }

    /// Puts an older copy of the database in place, as somebody would behind our back.
    pub async fn revert(&self, from: &Path) {
        self.close().await;
        self.server.lock().unwrap().reverted = true;
        std::fs::copy(from, self.directory.path().join("state.db")).unwrap();
    }

    pub fn resources(&self) -> PathBuf {
        self.directory.path().join("resources")
    }

    pub fn host(&self, number: usize) -> Arc<Mutex<FakeHost>> {
        let named = format!("h{number}");
        let found = self.road.hosts.values().find(|host| host.lock().unwrap().name == named);
        found.unwrap().clone()
    }

    pub fn assert_sound(&self) {
        let server = self.server.lock().unwrap();
        assert_eq!(server.violations, Vec::<String>::new());
    }

    /// Roles that are alive at the server.
    pub fn alive(&self) -> usize {
        self.server.lock().unwrap().roles.values().filter(|role| role.alive).count()
    }
}

/// The applications' daemons: time passes on the hosts, and what changed is reported.
async fn pump(road: Arc<FakeRoad>, handle: Arc<Mutex<Option<Handle>>>, reachable: Told) {
    let mut told: HashMap<HostId, bool> = HashMap::new();
    let mut last = None;
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let tell = reachable.lock().unwrap().clone();
        if let Some(tell) = &tell {
            // A new engine knows nobody.
            if last.as_ref().is_none_or(|last: &mpsc::Sender<_>| !last.same_channel(tell)) {
                told.clear();
                last = Some(tell.clone());
            }
        }
        for (id, host) in &road.hosts {
            let (away, frame) = {
                let mut host = host.lock().unwrap();
                if !host.frozen {
                    host.tick();
                }
                if !host.frozen && host.changed() && host.sequence > 0 {
                    host.report(vec![]);
                }
                let frame = host.unacknowledged.clone().filter(|_| !host.frozen);
                (host.frozen || host.deaf, frame)
            };
            if let Some(tell) = &tell
                && told.insert(*id, !away) != Some(!away)
            {
                let _ = tell.send((*id, !away)).await;
            }
            let engine = handle.lock().unwrap().clone();
            let (Some(frame), Some(engine)) = (frame, engine) else { continue };
            if let Ok(ack) = engine.report(frame, *id).await {
                host.lock().unwrap().acknowledged(ack);
            }
        }
    }
}

pub async fn open(directory: &Path, steps: Steps) -> Store {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let key = KeyEncryptionKey::from_file(&directory.join("key")).unwrap();
        match Store::open_with(directory.join("state.db"), key, steps.clone()).await {
            Ok(store) => return store,
            Err(store::OpenError::Locked { .. }) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn enrol(store: &Store, host: &FakeHost) {
    let token = NewToken {
        id: host.name.clone(),
        secret: Value::new(vec![]),
        host_name: host.name.clone(),
        created_ms: 0,
        expires_ms: u64::MAX / 4,
    };
    store.issue_token(token, Audit::default()).await.unwrap();
    let mut labels = BTreeMap::from([("app".to_owned(), "orders".to_owned())]);
    labels.insert("host".to_owned(), host.name.clone());
    let row = NewHost {
        id: host.id.to_string(),
        name: host.name.clone(),
        labels,
        address: "127.0.0.1:1".to_owned(),
        verify_key: host.report_key.public().0.to_vec(),
        seal_key: host.opening_key.public().0.to_vec(),
        spki: "00".repeat(32),
    };
    assert!(store.enrol(&host.name, row, 1, Audit::default()).await.unwrap());
}

/// Waits until `is` holds, looking again after every commit; says what was there at the deadline.
pub async fn until(handle: &Handle, seconds: u64, what: &str, is: impl AsyncFn(&Handle) -> bool) {
    let mut changes = handle.changes();
    let end = Instant::now() + Duration::from_secs(seconds);
    while !is(handle).await {
        if Instant::now() > end {
            let detail = handle.credential(&name()).await;
            let pending = handle.pending().await;
            panic!("not within {seconds} s: {what}\n{detail:#?}\n{pending:#?}");
        }
        let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
    }
}

/// Whether `version` is the active one, adopted everywhere, and every older one is retired.
pub async fn settled(handle: &Handle, number: u32) -> bool {
    use protocol::api::view::VersionPhase::{Active, Retired};
    let Ok(detail) = handle.credential(&name()).await else { return false };
    let wanted = Version::new(1, number);
    detail.rollout.is_none()
        && detail.summary.current == Some(wanted)
        && detail
            .versions
            .iter()
            .all(|view| if view.version == wanted { view.phase == Active } else { view.phase == Retired })
}
