//! The replay position of one connection in one topic: which publications it gets, in which order, and when history is
//! read.
//!
//! Durable publications that arrive while history is read are dropped; only their offset is kept. A publication is sent
//! after its commit, so the next page of history contains it. That is why a replay needs no buffer.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Registered with the topic; the starting offset is not known yet.
    Starting,
    /// A page of history is being read.
    Reading,
    Live,
}

/// The next step of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayStep {
    Send,
    Skip,
    /// Read history after this offset.
    Read {
        after: i64,
    },
    /// The publication that the client needs next is no longer kept.
    Lost,
}

#[derive(Debug)]
pub struct Track {
    phase: Phase,
    /// The offset that the client needs next.
    next: i64,
    /// The newest offset known to exist.
    newest: i64,
    /// The newest offset known when the current page was requested: the page reaches at least that far.
    known: i64,
    /// A publication may have been lost that the current page does not contain, so read once more.
    again: bool,
}

impl Track {
    pub fn starting() -> Self {
        Self { phase: Phase::Starting, next: 0, newest: 0, known: 0, again: false }
    }

    /// Starts after `after`, up to which the client has everything. Lossy topics start at 0 and have no history.
    pub fn start(&mut self, after: i64) -> ReplayStep {
        self.next = after + 1;
        self.go_on()
    }

    /// Handles a live publication.
    pub fn publication(&mut self, offset: Option<i64>) -> ReplayStep {
        let Some(offset) = offset else {
            return if self.phase == Phase::Live { ReplayStep::Send } else { ReplayStep::Skip };
        };
        self.newest = self.newest.max(offset);
        if self.phase != Phase::Live || offset < self.next {
            ReplayStep::Skip
        } else if offset == self.next {
            self.next += 1;
            ReplayStep::Send
        } else {
            self.go_on()
        }
    }

    /// Handles an item of a page of history. False: the client already has it.
    pub fn replayed(&mut self, offset: i64) -> bool {
        let wanted = offset == self.next;
        self.next += i64::from(wanted);
        wanted
    }

    /// Handles the end of a page: `after` is the offset it was read from, `head` the topic's newest offset.
    pub fn page_ended(&mut self, after: i64, head: i64, complete: bool) -> ReplayStep {
        self.newest = self.newest.max(head);
        let stuck = self.next == after + 1 && self.next <= self.known.max(head);
        if !complete || stuck { ReplayStep::Lost } else { self.go_on() }
    }

    /// Reads history again, since publications may have been lost. Live ones go on meanwhile, and the replay skips
    /// those that were already sent.
    pub fn resync(&mut self) -> ReplayStep {
        if self.phase == Phase::Live {
            return self.read();
        }
        self.again = true;
        ReplayStep::Skip
    }

    fn go_on(&mut self) -> ReplayStep {
        if std::mem::take(&mut self.again) || self.next <= self.newest {
            self.phase = Phase::Reading;
            self.read()
        } else {
            self.phase = Phase::Live;
            ReplayStep::Skip
        }
    }

    fn read(&mut self) -> ReplayStep {
        self.known = self.newest;
        ReplayStep::Read { after: self.next - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_publications_come_once_and_in_order() {
        let mut track = Track::starting();
        assert_eq!(track.start(2), ReplayStep::Skip);
        assert_eq!(track.publication(Some(2)), ReplayStep::Skip, "the client has it");
        assert_eq!(track.publication(Some(3)), ReplayStep::Send);
        assert_eq!(track.publication(Some(3)), ReplayStep::Skip, "twice");
        assert_eq!(track.publication(None), ReplayStep::Send);
    }

    #[test]
    fn a_hole_is_filled_from_history() {
        let mut track = Track::starting();
        track.start(0);
        assert_eq!(track.publication(Some(3)), ReplayStep::Read { after: 0 });
        assert_eq!(
            track.publication(None),
            ReplayStep::Skip,
            "lossy events do not wait for a replay"
        );
        assert_eq!(track.publication(Some(4)), ReplayStep::Skip, "history will have it");
        assert!((1..=3).all(|offset| track.replayed(offset)));
        assert_eq!(track.page_ended(0, 3, true), ReplayStep::Read { after: 3 });
        assert!(track.replayed(4));
        assert_eq!(track.page_ended(3, 4, true), ReplayStep::Skip);
        assert_eq!(track.publication(Some(5)), ReplayStep::Send);
    }

    #[test]
    fn nothing_falls_between_registration_and_start() {
        let mut track = Track::starting();
        assert_eq!(track.publication(Some(8)), ReplayStep::Skip);
        assert_eq!(track.start(7), ReplayStep::Read { after: 7 });
        assert!(track.replayed(8));
        assert!(!track.replayed(8));
        assert_eq!(track.page_ended(7, 8, true), ReplayStep::Skip);
    }

    #[test]
    fn what_was_missed_between_nodes_is_found_in_history() {
        let mut track = Track::starting();
        track.start(0);
        assert_eq!(track.resync(), ReplayStep::Read { after: 0 });
        assert_eq!(track.publication(None), ReplayStep::Send, "lossy events go on");
        assert_eq!(track.publication(Some(1)), ReplayStep::Send);
        assert!(!track.replayed(1), "it was live");
        assert!(track.replayed(2), "it was missed");
        assert_eq!(track.page_ended(0, 2, true), ReplayStep::Skip);
        assert_eq!(track.publication(Some(3)), ReplayStep::Send);
        // While a page is being read: it may be older than what was missed.
        assert_eq!(track.publication(Some(5)), ReplayStep::Read { after: 3 });
        assert_eq!(track.resync(), ReplayStep::Skip);
        assert!(track.replayed(4) && track.replayed(5));
        assert_eq!(track.page_ended(3, 5, true), ReplayStep::Read { after: 5 });
        assert_eq!(track.page_ended(5, 5, true), ReplayStep::Skip);
        // Before it has started, too.
        let mut track = Track::starting();
        track.resync();
        assert_eq!(track.start(7), ReplayStep::Read { after: 7 });
    }

    #[test]
    fn what_is_published_while_a_page_is_read_is_in_the_next_one() {
        let mut track = Track::starting();
        assert_eq!(track.resync(), ReplayStep::Skip);
        assert_eq!(track.start(4), ReplayStep::Read { after: 4 });
        assert_eq!(track.publication(Some(5)), ReplayStep::Skip, "after the page had been read");
        assert_eq!(track.page_ended(4, 4, true), ReplayStep::Read { after: 4 });
        assert!(track.replayed(5));
        assert_eq!(track.page_ended(4, 5, true), ReplayStep::Skip);
        assert_eq!(track.publication(Some(6)), ReplayStep::Send);
    }

    #[test]
    fn what_is_gone_is_said_to_be_lost() {
        let mut track = Track::starting();
        track.publication(Some(9));
        assert_eq!(track.start(2), ReplayStep::Read { after: 2 });
        assert_eq!(track.page_ended(2, 9, false), ReplayStep::Lost);
        let mut track = Track::starting();
        track.publication(Some(9));
        track.start(8);
        assert_eq!(
            track.page_ended(8, 8, true),
            ReplayStep::Lost,
            "a history that never gets there"
        );
    }
}
