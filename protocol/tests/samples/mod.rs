//! One of each message, from fixed keys.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::report::{Consumer, ConsumerState, Gap, Holder, PlaceFault, Refused, RolledBack};
use lifecycle::{
    ConsumerName, EffectId, Epoch, Evidence, Flipped, GapId, Generation, HolderId, Millis, Order, OrderKind,
    SetName, SetReport, Version,
};
use protocol::ack::Ack;
use protocol::enrol::{Bundle, Registration, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::order::{Ask, Body, OrderPayload, Rekey, SetOrder, Stage};
use protocol::report::{Means, Notice, Outcome, Receipt, Report};
use protocol::seal::{SealContext, StagedSet, Value};
use protocol::{
    FileName, FrameDigest, HostId, InstallationId, OpeningKey, SigningKey, TrustAnchor, UnixMillis,
    VersionKey,
};

pub const NOW: u64 = 1_790_000_000_000;
pub const PASSWORD: &str = "correct horse battery staple";
pub const EPOCH: Epoch = Epoch { counter: 2, id: u64::MAX - 7 };

pub struct Samples {
    pub installation: InstallationId,
    pub order_key: SigningKey,
    pub root_key: SigningKey,
    pub report_key: SigningKey,
    pub opening_key: OpeningKey,
}

impl Samples {
    pub fn new() -> Self {
        Self {
            installation: "6f2f2c62-7c0b-4a3e-9d4e-2f7f7a1c9b11".parse().unwrap(),
            order_key: SigningKey::from_seed(&[1; 32]).unwrap(),
            root_key: SigningKey::from_seed(&[2; 32]).unwrap(),
            report_key: SigningKey::from_seed(&[3; 32]).unwrap(),
            opening_key: OpeningKey::from_bytes(&[4; 32]).unwrap(),
        }
    }

    pub fn host(&self) -> HostId {
        HostId::of(&self.report_key.public())
    }

    pub fn anchor(&self) -> TrustAnchor {
        self.bundle().trust_anchor()
    }

    pub fn bundle(&self) -> Bundle {
        Bundle {
            installation: self.installation,
            control_plane: "https://eso.example.org:8443".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            order_key: self.order_key.public(),
            root_key: Some(self.root_key.public()),
            rekeys: 3,
            token: TokenId("11111111-2222-4333-8444-555555555555".parse().unwrap()),
            expires_at: UnixMillis(NOW + 1000),
            network_secret: EnrolmentSecret::from_bytes([5; 32]),
            applier_secret: EnrolmentSecret::from_bytes([6; 32]),
        }
    }

    pub fn registration(&self) -> Registration {
        Registration::new(&self.bundle(), &self.report_key, self.opening_key.public()).unwrap()
    }

    pub fn set() -> StagedSet {
        let files = [("password", PASSWORD), ("dsn", "postgres://orders@db/orders")];
        let files =
            files.map(|(name, text)| (FileName::new(name).unwrap(), Value::new(text.as_bytes().to_vec())));
        StagedSet::new(VersionKey::from_bytes([7; 32]), files.into(), Some("orders_8".to_owned())).unwrap()
    }

    pub fn stage() -> Stage {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed-stage.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub fn stage_context(&self) -> SealContext {
        SealContext {
            installation: self.installation,
            host: self.host(),
            set: set_name(),
            version: version(8),
            effect: EffectId(9),
        }
    }

    pub fn payload(&self, body: Body) -> OrderPayload {
        OrderPayload {
            installation: self.installation,
            epoch: EPOCH,
            host: self.host(),
            sent_at: UnixMillis(NOW - 500),
            expires_at: UnixMillis(NOW + 60_000),
            body,
        }
    }

    pub fn set_order(&self, kind: OrderKind, stage: Option<Stage>) -> OrderPayload {
        let generation = Generation::new(2, 5);
        let order = Order { epoch: EPOCH, generation, kind, dead: BTreeSet::from([version(6)]) };
        self.payload(Body::Set(SetOrder { set: set_name(), order, stage }))
    }

    /// Every kind of order.
    pub fn orders(&self) -> Vec<(&'static str, OrderPayload)> {
        let version = version(8);
        let questions = BTreeMap::from([(set_name(), 4)]);
        let rekey = Rekey { number: 4, order_key: self.root_key.public(), root_key: None };
        vec![
            ("stage", self.set_order(OrderKind::Stage { version, effect: EffectId(9) }, Some(Self::stage()))),
            ("arm", self.set_order(OrderKind::Arm { version, in_ms: Millis(750), answers: None }, None)),
            (
                "activate",
                self.set_order(OrderKind::Activate { version, answers: Some(Generation::new(2, 4)) }, None),
            ),
            ("adopt", self.set_order(OrderKind::Adopt { version }, None)),
            ("disarm", self.set_order(OrderKind::Disarm { version }, None)),
            ("roll-back", self.set_order(OrderKind::RollBack { to: version }, None)),
            (
                "seal",
                self.set_order(
                    OrderKind::Seal {
                        version,
                        cleared: BTreeSet::from([HolderId::new("proc:4711:889123").unwrap()]),
                        cleared_gaps: BTreeSet::from([GapId::new("gap:1").unwrap()]),
                        withdraw: true,
                    },
                    None,
                ),
            ),
            ("discard", self.set_order(OrderKind::Discard { version }, None)),
            ("ask", self.payload(Body::Ask(Ask { questions }))),
            ("rekey", self.payload(Body::Rekey(rekey))),
        ]
    }

    pub fn ack(&self) -> Ack {
        Ack {
            installation: self.installation,
            epoch: EPOCH,
            host: self.host(),
            sequence: 40,
            report: FrameDigest([8; 32]),
            acknowledged_at: UnixMillis(NOW - 1000),
            dead: BTreeMap::from([(set_name(), BTreeSet::from([version(6)]))]),
        }
    }

    pub fn report(&self) -> Report {
        let order = self.orders().remove(1).1;
        Report {
            installation: self.installation,
            host: self.host(),
            epoch: Some(EPOCH),
            sequence: 41,
            boot_id: "9c6a".to_owned(),
            taken_at: UnixMillis(NOW),
            up_ms: 123_456,
            acknowledged: Some(self.ack().sign(&self.order_key).unwrap()),
            sets: BTreeMap::from([(set_name(), set_report())]),
            digests: BTreeMap::from([(set_name(), BTreeMap::from([(version(8), Self::set().digests())]))]),
            receipts: vec![
                Receipt {
                    frame: FrameDigest([9; 32]),
                    order: Some(order.identity()),
                    outcome: Outcome::Accepted { again: true },
                },
                Receipt {
                    frame: FrameDigest([10; 32]),
                    order: None,
                    outcome: Outcome::Refused { code: "expired".to_owned(), message: "too late".to_owned() },
                },
            ],
            means: vec![Means {
                name: "fanotify".to_owned(),
                in_use: false,
                detail: "no privilege".to_owned(),
            }],
            notices: vec![Notice { code: "policy_refused".to_owned(), message: "line 3".to_owned() }],
        }
    }
}

pub fn set_name() -> SetName {
    SetName::new("orders-db").unwrap()
}

pub fn version(number: u32) -> Version {
    Version::new(2, number)
}

fn set_report() -> SetReport {
    let orders = ConsumerName::new("orders.service").unwrap();
    let gap = GapId::new("gap:1").unwrap();
    SetReport {
        epoch: Some(EPOCH),
        sequence: 41,
        answers: 4,
        generation: Some(Generation::new(2, 5)),
        present: BTreeMap::from([(version(8), EffectId(9))]),
        known: BTreeMap::from([(version(7), EffectId(6)), (version(8), EffectId(9))]),
        in_policy: true,
        armed: Some(version(8)),
        may_flip: BTreeSet::from([version(8)]),
        disarmed: Some(Generation::new(2, 3)),
        current: Some(version(7)),
        permitted: Some(version(7)),
        adopted: Some(version(7)),
        consumers: BTreeMap::from([(
            orders.clone(),
            Consumer { state: ConsumerState::Settled, healthy_on: Some(version(7)) },
        )]),
        rolled_back: Some(RolledBack {
            generation: Generation::new(2, 4),
            from: version(8),
            to: Some(version(7)),
            consumer: orders.clone(),
            reason: "exited 1".to_owned(),
        }),
        may_return_to: BTreeSet::from([version(7)]),
        flipped: Some(Flipped { version: version(7), unix_ms: NOW - 5_000, ahead_ms_max: Some(-3) }),
        gone: [version(5)].into_iter().collect(),
        not_gone: BTreeMap::from([(version(6), "held".to_owned())]),
        refused: Some(Refused {
            generation: Generation::new(2, 3),
            version: version(8),
            code: "clock_off".to_owned(),
            message: "compare the clocks".to_owned(),
        }),
        evidence: Evidence::Reported,
        holders: vec![Holder {
            id: HolderId::new("proc:4711:889123").unwrap(),
            version: version(7),
            consumer: Some(orders),
            evidence: Evidence::Declared,
            description: "orders".to_owned(),
        }],
        gaps: vec![Gap {
            id: gap.clone(),
            versions: BTreeSet::from([version(7)]),
            description: "overflow".to_owned(),
        }],
        places: vec![PlaceFault {
            id: gap,
            versions: BTreeSet::from([version(7)]),
            description: "EIO".to_owned(),
        }],
    }
}
