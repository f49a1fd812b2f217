//! Outward effects: what reaches beyond the store, and can therefore be begun without anybody knowing how it ended.

use serde::{Deserialize, Serialize};

/// The state of one outward effect: a call of a tool, a webhook, a post, a payment. An entity keeps it with the effect's key
/// and changes it by events; what calls for the effect is a runner, whose begin is noted before each attempt.
///
/// ```text
/// planned ─▶ dispatched ─▶ settled
///    │            │           ▲
///    ▼            ▼           │
/// abandoned    unknown ─▶ reconciled, or dispatched again
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutwardEffect {
    /// It waits, for a person or a time. Nothing has been sent.
    Planned,
    /// It is with its runner.
    Dispatched,
    /// Its outcome is known.
    Settled,
    /// It was begun, and nobody knows whether it happened. It is not repeated by itself.
    Unknown,
    /// Somebody has found out, or has decided to leave it.
    Reconciled,
    /// It was never sent, and will not be.
    Abandoned,
}

impl OutwardEffect {
    /// Whether it can become `next`.
    pub fn may_become(self, next: Self) -> bool {
        use OutwardEffect::{Abandoned, Dispatched, Planned, Reconciled, Settled, Unknown};
        matches!(
            (self, next),
            (Planned, Dispatched | Abandoned)
                | (Dispatched, Settled | Unknown)
                | (Unknown, Reconciled | Dispatched | Settled)
        )
    }

    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Settled | Self::Reconciled | Self::Abandoned)
    }
}

/// The promise that holds when an effect is called for again, since its first outcome was lost with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// It commits in this store together with its key, so that a repetition finds the first outcome.
    Transactional,
    /// The other side is sent a stable key, by which it recognises a repetition.
    Keyed,
    /// Nobody recognises a repetition. It is called for once; without an outcome a person decides.
    AtMostOnce,
}

#[cfg(test)]
mod tests {
    use super::OutwardEffect::{Abandoned, Dispatched, Planned, Reconciled, Settled, Unknown};

    #[test]
    fn what_is_over_stays_so_and_nothing_is_sent_twice_unasked() {
        let all = [Planned, Dispatched, Settled, Unknown, Reconciled, Abandoned];
        for from in all {
            let next: Vec<_> = all.into_iter().filter(|next| from.may_become(*next)).collect();
            assert_eq!(from.is_over(), next.is_empty(), "{from:?} {next:?}");
        }
        assert!(!Dispatched.may_become(Dispatched) && !Dispatched.may_become(Planned));
    }
}
