//! Whether this replica leads, for everybody who must know before writing.

use std::sync::Arc;
use std::time::Duration;

use stillpoint_api::clock::{Mono, SharedClock};
use tokio::sync::watch;

/// What is known of the lead. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Leadership {
    lead: Arc<watch::Sender<Lead>>,
    clock: SharedClock,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lead {
    /// We lead until then, on our own clock.
    until: Option<Mono>,
    /// Counts the times this replica began to lead.
    term: u64,
    holder: Option<String>,
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership").field("lead", &*self.lead.borrow()).finish_non_exhaustive()
    }
}

impl Leadership {
    /// Nobody leads yet.
    pub fn none(clock: SharedClock) -> Self {
        Self { lead: Arc::new(watch::Sender::new(Lead::default())), clock }
    }

    /// The lead of a process that is alone, for ever.
    pub fn alone(clock: SharedClock) -> Self {
        let this = Self::none(clock);
        this.told(Some(Mono::from_origin(Duration::MAX)), None);
        this
    }

    /// The lead as the election knows it now.
    pub(super) fn told(&self, until: Option<Mono>, holder: Option<&str>) {
        let now = self.clock.mono();
        self.lead.send_if_modified(|lead| {
            let led = lead.until.is_some_and(|until| until > now);
            let leads = until.is_some_and(|until| until > now);
            let changed = lead.until != until || lead.holder.as_deref() != holder;
            lead.term += u64::from(leads && !led);
            lead.until = until;
            if lead.holder.as_deref() != holder {
                lead.holder = holder.map(str::to_owned);
            }
            changed
        });
    }

    /// Whether this replica leads now. Ask immediately before every write: the answer is true for this instant and needs
    /// neither the API server nor the task that renews.
    pub fn leads(&self) -> bool {
        self.term().is_some()
    }

    /// The number of this replica's present term of lead; two that differ had a time without lead between them.
    pub fn term(&self) -> Option<u64> {
        let now = self.clock.mono();
        let lead = self.lead.borrow();
        lead.until.is_some_and(|until| until > now).then_some(lead.term)
    }

    /// Who holds the Lease, as far as this replica knows.
    pub fn holder(&self) -> Option<String> {
        self.lead.borrow().holder.clone()
    }

    /// Follows it: a value is there whenever the election learned something. The end of a term by the clock alone is
    /// told when the election notices; [`Leadership::leads`] knows at once.
    pub fn follow(&self) -> Follow {
        Follow { lead: self.lead.subscribe(), _keep: Arc::clone(&self.lead) }
    }
}

/// See [`Leadership::follow`].
#[derive(Debug)]
pub struct Follow {
    lead: watch::Receiver<Lead>,
    /// With a sender of its own a receiver never ends.
    _keep: Arc<watch::Sender<Lead>>,
}

impl Follow {
    /// Waits for the next news. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        if self.lead.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use stillpoint_api::clock::ManualClock;

    use super::*;

    #[test]
    fn a_term_ends_by_our_own_clock_and_the_next_one_has_another_number() {
        let clock = Arc::new(ManualClock::at(jiff::Timestamp::UNIX_EPOCH));
        let leadership = Leadership::none(clock.clone());
        let at = |seconds| Some(Mono::from_origin(Duration::from_secs(seconds)));
        assert!(!leadership.leads());
        leadership.told(at(10), Some("a"));
        assert_eq!(leadership.term(), Some(1));
        clock.advance(Duration::from_secs(9));
        leadership.told(at(12), Some("a"));
        assert_eq!(leadership.term(), Some(1), "renewed in time");
        clock.advance(Duration::from_secs(3));
        assert!(!leadership.leads(), "nobody had to tell");
        leadership.told(at(22), Some("a"));
        assert_eq!(leadership.term(), Some(2));
        leadership.told(None, Some("b"));
        assert_eq!((leadership.leads(), leadership.holder().as_deref()), (false, Some("b")));
    }

    #[tokio::test]
    async fn a_process_that_is_alone_leads_for_ever() {
        let clock = Arc::new(ManualClock::at(jiff::Timestamp::UNIX_EPOCH));
        let leadership = Leadership::alone(clock.clone());
        clock.advance(Duration::from_secs(1_000_000_000));
        assert!(leadership.leads());
    }
}
