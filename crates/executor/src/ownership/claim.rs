//! Whose a Backup is. Pure.

/// How a replica stands, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its Lease changed lately, or we have not watched it long enough to say otherwise.
    Fresh,
    /// Its Lease did not change for its whole duration, on our own clock.
    Silent,
}

/// What a replica may do with a Backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has it: it may be claimed.
    Take,
    /// It is ours.
    Ours,
    /// Its owner fell silent: it may be taken over.
    TakeOver {
        /// The owner.
        from: String,
    },
    /// It is another replica's.
    Theirs {
        /// The owner.
        executor: String,
    },
}

impl Claim {
    /// Whether work may begin here.
    pub const fn allowed(&self) -> bool {
        match self {
            Self::Take | Self::Ours | Self::TakeOver { .. } => true,
            Self::Theirs { .. } => false,
        }
    }
}

/// What `us` may do with a Backup whose status names `executor`.
pub fn decide(executor: Option<&str>, us: &str, standing: impl FnOnce(&str) -> Standing) -> Claim {
    match executor {
        None | Some("") => Claim::Take,
        Some(executor) if executor == us => Claim::Ours,
        Some(executor) => match standing(executor) {
            Standing::Fresh => Claim::Theirs { executor: executor.to_owned() },
            Standing::Silent => Claim::TakeOver { from: executor.to_owned() },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_its_owners_until_the_owner_fell_silent() {
        let with = |executor, standing| decide(executor, "us", |_| standing);
        assert_eq!(with(None, Standing::Silent), Claim::Take);
        assert_eq!(with(Some(""), Standing::Fresh), Claim::Take);
        assert_eq!(with(Some("them"), Standing::Fresh), Claim::Theirs { executor: "them".into() });
        assert_eq!(with(Some("them"), Standing::Silent), Claim::TakeOver { from: "them".into() });
    }

    #[test]
    fn our_own_lease_does_not_make_a_backup_less_ours() {
        // Whether we may act on it is the fence's business, not the claim's.
        assert_eq!(decide(Some("us"), "us", |_| Standing::Silent), Claim::Ours);
    }

    #[test]
    fn a_restarted_process_is_another_owner() {
        let earlier = decide(Some("pod-a_1111"), "pod-a_2222", |_| Standing::Fresh);
        assert!(!earlier.allowed());
    }
}
