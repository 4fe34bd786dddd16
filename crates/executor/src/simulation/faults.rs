//! What may go wrong in one world, and when: all of it drawn from the seed.
//!
//! A seed enables some kinds of faults and not others, so that rare combinations come up. Every kind draws from a
//! stream of its own: leaving one kind out (shrinking does) does not change what the others draw.

use super::{MS, Micros, S};

/// A small generator (SplitMix64): good enough to scatter faults, the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator of its own for a purpose.
    pub const fn new(seed: u64, purpose: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 for 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.bits() % limit }
    }

    /// A number from `low` up to and without `high`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// True in about `per_mille` of a thousand draws.
    pub const fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Kinds of faults.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault { $($(#[doc = $doc])* $name,)* }

        impl Fault {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

faults! {
    /// A line is late in the exec path.
    SlowLine,
    /// Nothing passes any more, in either direction, and nobody is told.
    Partition,
    /// The stream ends; the process sees the end of its input.
    StreamReset,
    /// The stream ends; the process sees nothing (the runtime was killed).
    RuntimeCrash,
    /// The exec is refused.
    ExecRefused,
    /// The exec never opens.
    OpenHangs,
    /// The closing text arrives in two pieces.
    SplitWrite,
    /// The container restarts.
    ContainerRestart,
    /// The pod is replaced by another of the same name.
    PodReplaced,
    /// The server restarts and the client reconnects by itself.
    Reconnect,
    /// An operator lets the application go.
    ForeignUnlock,
    /// A long statement is in the way of the lock.
    LongStatement,
    /// The holder is killed in the pod.
    HolderKilled,
    /// The thaw command fails, several times.
    ThawFails,
    /// The freeze command hangs.
    FreezeHangs,
    /// Somebody else froze it before.
    ForeignFreeze,
    /// The server does not take the lease.
    LeaseIgnored,
    /// Acknowledged commits are not durable.
    Undurable,
    /// The server becomes a standby.
    RoleChange,
    /// The server writes elsewhere.
    PathElsewhere,
    /// The session reaches another server.
    NotLocal,
    /// A cut takes long.
    SlowCut,
    /// Ready long after the cut.
    ReadyLate,
    /// Cut, and never ready.
    NeverReady,
    /// The driver answers before it cuts.
    OkBeforeCut,
    /// No cut time, or 1970.
    NoCutTime,
    /// The driver gives an older snapshot for ours.
    OldCut,
    /// The handle is another one later.
    StaleHandle,
    /// The driver refuses.
    FinalError,
    /// The driver fails and cuts later all the same.
    LateCut,
    /// The driver cuts one volume after the other.
    Serialised,
    /// The driver copies files.
    CopyMode,
    /// Another volume is cut.
    WrongVolume,
    /// A group is cut one after the other.
    SequentialGroup,
    /// A group has other members than asked for.
    GroupNotExact,
    /// Another object has the name.
    NameTaken,
    /// The snapshot controller is down.
    StackSilent,
    /// The driver is in no table.
    Unlisted,
    /// A request is lost.
    LostRequest,
    /// An answer is lost; the write happened.
    LostAnswer,
    /// Requests and answers take long.
    SlowApi,
    /// Somebody else writes to the Backup.
    Conflict,
    /// The watch breaks and is opened again.
    WatchGap,
    /// The API server is away.
    ApiDown,
    /// A replica is killed.
    Crash,
    /// A replica is stopped and resumed.
    Stop,
    /// The machine of a replica hangs while its streams live.
    Hang,
    /// A replica cannot renew its claim.
    ClaimStarved,
    /// The wall clock jumps.
    ClockJump,
    /// The Backup is deleted while it runs.
    Cancel,
    /// A replica is told to stop.
    Shutdown,
    /// Another Backup of the same workload.
    RivalRun,
    /// The machine itself has a defect: it asks for a snapshot when it sends FREEZE.
    SlipPostsEarly,
    /// The machine itself has a defect: it thaws when it asks for a snapshot.
    SlipThawsEarly,
}

impl Fault {
    /// Its bit in a set.
    pub const fn bit(self) -> u64 {
        1 << (self as u64)
    }

    /// Whether it strikes at an instant, and is not a property of something.
    pub const fn strikes(self) -> bool {
        matches!(
            self,
            Self::Partition
                | Self::StreamReset
                | Self::RuntimeCrash
                | Self::ContainerRestart
                | Self::PodReplaced
                | Self::Reconnect
                | Self::ForeignUnlock
                | Self::HolderKilled
                | Self::RoleChange
                | Self::ApiDown
                | Self::Conflict
                | Self::WatchGap
                | Self::Crash
                | Self::Stop
                | Self::Hang
                | Self::ClaimStarved
                | Self::ClockJump
                | Self::Cancel
                | Self::Shutdown
        )
    }
}

/// An instant in the life of a run, near which faults like to strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// An attempt was claimed.
    Claimed,
    /// A stream is being opened.
    Opening,
    /// `Freezing` is being written.
    Journalling,
    /// FREEZE was written.
    FreezeSent,
    /// A server locked.
    Frozen,
    /// A snapshot was asked for.
    Posted,
    /// A volume was cut.
    Cut,
    /// A thaw was written.
    ThawSent,
    /// A server let go after a thaw.
    Thawed,
    /// The last entry is being written.
    Recording,
}

const MILESTONES: [Milestone; 10] = [
    Milestone::Claimed,
    Milestone::Opening,
    Milestone::Journalling,
    Milestone::FreezeSent,
    Milestone::Frozen,
    Milestone::Posted,
    Milestone::Cut,
    Milestone::ThawSent,
    Milestone::Thawed,
    Milestone::Recording,
];

/// A strike that waits for its milestone.
#[derive(Clone, Debug)]
pub struct Strike {
    /// What strikes.
    pub fault: Fault,
    /// Near what.
    pub near: Milestone,
    /// How many of those milestones pass before.
    pub skip: u64,
    /// How long after.
    pub after: Micros,
    /// How long it lasts, where it lasts.
    pub lasts: Micros,
}

/// The faults of one world.
#[derive(Clone, Debug)]
pub struct Faults {
    enabled: u64,
    rngs: Vec<Rng>,
    /// No fault begins after this.
    pub calm_at: Micros,
}

impl Faults {
    /// The faults of a seed, without those that are masked out.
    pub fn of(seed: u64, mask: u64) -> Self {
        let mut rng = Rng::new(seed, 11);
        // Some worlds are healthy, most have a handful of kinds, some nearly all.
        let density = match rng.below(16) {
            0 => 0,
            1..=5 => 60,
            6..=11 => 120,
            12..=14 => 250,
            _ => 500,
        };
        let mut enabled = 0;
        for fault in Fault::ALL {
            // Slips are defects of ours, not of the world: rare, so that they do not drown the rest.
            let per_mille = match fault {
                Fault::SlipPostsEarly | Fault::SlipThawsEarly => density / 6,
                _ => density,
            };
            if rng.chance(per_mille) {
                enabled |= fault.bit();
            }
        }
        let rngs = (0..Fault::ALL.len()).map(|index| Rng::new(seed, 100 + index as u64)).collect();
        Self { enabled: enabled & mask, rngs, calm_at: 90 * S }
    }

    /// The kinds that this world has.
    pub const fn enabled(&self) -> u64 {
        self.enabled
    }

    /// Whether this world has the kind.
    pub const fn has(&self, fault: Fault) -> bool {
        self.enabled & fault.bit() != 0
    }

    /// Whether it happens here, in `per_mille` of a thousand cases of a world that has it.
    pub fn happens(&mut self, fault: Fault, per_mille: u64, now: Micros) -> bool {
        let drawn = self.rngs[fault as usize].chance(per_mille);
        drawn && self.has(fault) && now < self.calm_at
    }

    /// The generator of a kind.
    pub fn rng(&mut self, fault: Fault) -> &mut Rng {
        &mut self.rngs[fault as usize]
    }

    /// The strikes of this world.
    pub fn strikes(&mut self) -> Vec<Strike> {
        let mut strikes = Vec::new();
        for fault in Fault::ALL.iter().copied().filter(|fault| fault.strikes()) {
            let rng = &mut self.rngs[fault as usize];
            for _ in 0..1 + rng.below(2) {
                let near = match fault {
                    // What concerns a lock comes while there is one.
                    Fault::ForeignUnlock | Fault::Reconnect | Fault::HolderKilled => {
                        rng.pick(&[Milestone::Frozen, Milestone::Posted, Milestone::Cut])
                    }
                    // A thaw on its way is where a process that stops sees least.
                    Fault::Stop if rng.chance(300) => Milestone::ThawSent,
                    _ => rng.pick(&MILESTONES),
                };
                let after = match rng.below(8) {
                    0..=3 => rng.below(4 * MS),
                    4..=5 => rng.below(200 * MS),
                    6 => rng.below(5 * S),
                    _ => rng.below(25 * S),
                };
                let lasts = match rng.below(4) {
                    0 => rng.below(2 * S),
                    1 => rng.below(12 * S),
                    _ => rng.between(5 * S, 70 * S),
                };
                // Stopped with the thaw on its way until the promise has passed: what rule 5 alone finds.
                let (after, lasts) = if fault == Fault::Stop && near == Milestone::ThawSent {
                    (after % (4 * MS), lasts.max(12 * S))
                } else {
                    (after, lasts)
                };
                let skip = if rng.chance(700) { 0 } else { rng.below(6) };
                if self.enabled & fault.bit() != 0 {
                    strikes.push(Strike { fault, near, skip, after, lasts });
                }
            }
        }
        strikes
    }
}
