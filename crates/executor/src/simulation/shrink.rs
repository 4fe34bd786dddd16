//! Makes a failing world small: without the faults, replicas, applications, pods and volumes that it does not need.

use super::faults::Fault;
use super::invariants::Violation;
use super::scenario::Size;
use super::{Options, run};

/// A failing world, as small as it gets.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Its seed.
    pub seed: u64,
    /// What it still needs.
    pub options: Options,
    /// The faults that it needs.
    pub faults: Vec<Fault>,
    /// What it breaks.
    pub violation: Violation,
    /// How many events it has.
    pub events: u64,
}

impl std::fmt::Display for Shrunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Size { replicas, apps, pods, volumes } = self.options.size;
        writeln!(f, "seed {} breaks: {}", self.seed, self.violation.invariant)?;
        writeln!(f, "  {} (at {:.3} s)", self.violation.detail, self.violation.at as f64 / 1e6)?;
        writeln!(f, "  at most {replicas} replicas, {apps} applications, {pods} pods, {volumes} volumes")?;
        writeln!(f, "  faults needed: {:?}; {} events", self.faults, self.events)?;
        write!(f, "  mask {:#x}", self.options.mask)
    }
}

/// Shrinks a failing seed; none when it does not fail.
pub fn shrink(seed: u64, options: &Options) -> Option<Shrunk> {
    let mut best = options.clone();
    best.mask = super::faults::Faults::of(seed, best.mask).enabled();
    let mut outcome = run(seed, &best);
    let invariant = outcome.violation.as_ref()?.invariant;
    let mut again = true;
    while again {
        again = false;
        for fault in Fault::ALL {
            if best.mask & fault.bit() == 0 {
                continue;
            }
            let without = Options { mask: best.mask & !fault.bit(), ..best.clone() };
            again |= accept(seed, &without, invariant, &mut best, &mut outcome);
        }
        let fields: [fn(&mut Size) -> &mut usize; 4] = [
            |size| &mut size.replicas,
            |size| &mut size.apps,
            |size| &mut size.pods,
            |size| &mut size.volumes,
        ];
        for field in fields {
            let mut size = best.size;
            let field = field(&mut size);
            if *field > 1 {
                *field -= 1;
                let smaller = Options { size, ..best.clone() };
                again |= accept(seed, &smaller, invariant, &mut best, &mut outcome);
            }
        }
    }
    let needed = super::faults::Faults::of(seed, best.mask).enabled();
    let faults = Fault::ALL.iter().copied().filter(|fault| needed & fault.bit() != 0).collect();
    let violation = outcome.violation.take()?;
    Some(Shrunk { seed, options: best, faults, violation, events: outcome.events })
}

fn accept(
    seed: u64,
    options: &Options,
    invariant: &str,
    best: &mut Options,
    outcome: &mut super::Outcome,
) -> bool {
    let tried = run(seed, options);
    let same = tried.violation.as_ref().is_some_and(|violation| violation.invariant == invariant);
    if same {
        let smaller = options.mask != best.mask || options.size != best.size;
        *best = options.clone();
        *outcome = tried;
        return smaller;
    }
    false
}
