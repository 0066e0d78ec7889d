//! What goes wrong, when and for how long: a function of the seed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::support::proxy::Mode;
use crate::support::tap::Flow;

pub(crate) const SERVER: &str = "serve";
pub(crate) const PUBLISHERS: [&str; 2] = ["publisher-1", "publisher-2"];
pub(crate) const CONSUMERS: [&str; 3] = ["consumer-1", "consumer-2", "consumer-3"];
/// Comes only to join and leave.
pub(crate) const GUEST: &str = "consumer-4";

/// What `--nemesis` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Kill,
    Stop,
    Broker,
    Database,
    Cut,
    Rebalance,
}

/// Who reaches the broker through a proxy of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Publishers,
    Consumers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a new start at the end.
    Kill(&'static str),
    /// SIGSTOP, and SIGCONT at the end.
    Freeze(&'static str),
    FreezeBroker,
    FreezeDatabase,
    KillBroker,
    /// An immediate stop, and recovery at the end.
    CrashDatabase,
    /// Between some roles and the broker.
    Cut(Wire, Mode),
    /// Between one role and the database.
    Sever(&'static str, Flow),
    /// SIGTERM, and a new start at the end.
    Leave(&'static str),
    /// Another consumer, and SIGTERM for it at the end.
    Join,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Since the load began.
    pub(crate) at: Duration,
    pub(crate) lasting: Duration,
    pub(crate) fault: Fault,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Kill, Self::Stop, Self::Broker, Self::Database, Self::Cut, Self::Rebalance];

    /// A fault of this kind and how many milliseconds it lasts.
    fn fault(self, rng: &mut fastrand::Rng) -> (Fault, u64) {
        let workers = [&PUBLISHERS[..], &CONSUMERS].concat();
        let worker = workers[rng.usize(..workers.len())];
        let role = if rng.u8(..6) == 0 { SERVER } else { worker };
        match self {
            Self::Kill => (Fault::Kill(role), rng.u64(0..2_000)),
            Self::Stop => match rng.u8(..8) {
                0 => (Fault::FreezeBroker, 5_000),
                1 | 2 => (Fault::FreezeDatabase, 5_000),
                // Longer than a session may idle in a transaction.
                3 => (Fault::Freeze(worker), 12_000),
                _ => (Fault::Freeze(role), 5_000),
            },
            Self::Broker => (Fault::KillBroker, rng.u64(0..3_000)),
            Self::Database => (Fault::CrashDatabase, rng.u64(0..3_000)),
            Self::Cut if rng.bool() => {
                let flow = if rng.bool() { Flow::Stalled } else { Flow::Broken };
                (Fault::Sever(role, flow), rng.u64(200..6_000))
            }
            Self::Cut => {
                let wire = if rng.bool() { Wire::Publishers } else { Wire::Consumers };
                let mode = match rng.u8(..6) {
                    0 => Mode::Refuse,
                    1 => Mode::Blackhole,
                    2 => Mode::LoseAnswers,
                    3 => Mode::Reset,
                    4 => Mode::CutAfter(rng.usize(1_000..50_000)),
                    _ => Mode::Delay(Duration::from_millis(rng.u64(50..400))),
                };
                (Fault::Cut(wire, mode), rng.u64(500..6_000))
            }
            Self::Rebalance if rng.bool() => (Fault::Join, rng.u64(1_000..6_000)),
            Self::Rebalance => (Fault::Leave(CONSUMERS[rng.usize(..CONSUMERS.len())]), rng.u64(0..4_000)),
        }
    }
}

/// The schedule of a seed: the kinds in turn, in an order of chance, each a while after the one before; what lasts longer
/// than that overlaps.
pub(crate) fn schedule(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Planned> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut planned, mut turn) = (Vec::new(), Vec::new());
    let mut at = Duration::from_secs(2);
    while at < length && !kinds.is_empty() {
        if turn.is_empty() {
            turn = kinds.to_vec();
            rng.shuffle(&mut turn);
        }
        let kind = turn.pop().expect("it was filled");
        let (fault, lasting) = kind.fault(&mut rng);
        planned.push(Planned { at, lasting: Duration::from_millis(lasting), fault });
        at += Duration::from_millis(rng.u64(500..4_500));
    }
    planned
}

impl Fault {
    /// The role that it is about; empty if it is about none.
    pub(crate) fn victim(&self) -> &'static str {
        match self {
            Self::Kill(role) | Self::Freeze(role) | Self::Leave(role) | Self::Sever(role, _) => role,
            _ => "",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |kind: &Self| format!("{kind:?}").to_lowercase();
        let known = || Self::ALL.iter().map(name).collect::<Vec<_>>().join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| name(kind) == text)
            .ok_or_else(|| format!("{text:?} is none of {}", known()))
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasting) = (self.at.as_secs_f64(), self.lasting.as_secs_f64());
        write!(f, "{at:8.3} s  for {lasting:6.3} s  {:?}", self.fault)
    }
}

#[test]
fn a_schedule_follows_from_its_seed() {
    let of = |seed| schedule(seed, Duration::from_secs(60), &Kind::ALL);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
    for kind in Kind::ALL {
        assert_eq!(format!("{kind:?}").to_lowercase().parse(), Ok(kind));
        assert!(!schedule(1, Duration::from_secs(60), &[kind]).is_empty());
    }
    assert!("flood".parse::<Kind>().is_err());
}
