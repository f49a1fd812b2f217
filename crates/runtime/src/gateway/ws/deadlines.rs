//! The deadlines of a connection.

use std::time::Duration;

use tokio::time::Instant;

/// The times at which the connection has to act by itself.
#[derive(Debug)]
pub struct Deadlines {
    /// By this time there must be an authenticated user.
    pub auth: Option<Instant>,
    /// A silent connection that was authenticated by its header listens to its user from this time on.
    pub listen: Option<Instant>,
    pub token_warning: Option<Instant>,
    pub token_end: Option<Instant>,
    pub ping: Instant,
    pub pong: Option<Instant>,
    pub leave: Option<Instant>,
    /// Limit for the outcomes that are awaited before the close.
    pub end: Option<Instant>,
    /// The first end of the connection's time-limited holds.
    pub holds: Option<Instant>,
}

/// How long a connection that is closing waits for the outcomes of its commands.
pub const LAST_REPLIES: Duration = Duration::from_secs(3);

impl Deadlines {
    /// The earliest deadline.
    pub fn next(&self) -> Instant {
        // Leaving has two deadlines: when it stops reading, and when it no longer waits for replies.
        let leave = self.leave.map(|at| if at <= Instant::now() { at + LAST_REPLIES } else { at });
        let token = [self.token_warning, self.token_end];
        [self.auth, self.listen, self.pong, self.holds, self.end, leave]
            .into_iter()
            .chain(token)
            .flatten()
            .fold(self.ping, Instant::min)
    }
}
