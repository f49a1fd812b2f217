//! What a connection has to do at a certain time.

use std::time::Duration;

use tokio::time::Instant;

/// When something has to happen by itself.
#[derive(Debug)]
pub struct Deadlines {
    /// Until there is an authenticated user.
    pub auth: Option<Instant>,
    /// A connection that was authenticated by its header and says nothing listens to its user from here on.
    pub listen: Option<Instant>,
    pub token_warning: Option<Instant>,
    pub token_end: Option<Instant>,
    pub ping: Instant,
    pub pong: Option<Instant>,
    pub leave: Option<Instant>,
    /// For the outcomes that are waited for before the last words.
    pub end: Option<Instant>,
    /// For what the connection holds only for a while.
    pub holds: Option<Instant>,
}

/// A connection that ends waits so long for the outcomes of its commands.
pub const LAST_REPLIES: Duration = Duration::from_secs(3);

impl Deadlines {
    /// The earliest of them.
    pub fn next(&self) -> Instant {
        // Twice: when it stops reading, and when it no longer waits for replies.
        let leave = self.leave.map(|at| if at <= Instant::now() { at + LAST_REPLIES } else { at });
        let token = [self.token_warning, self.token_end];
        [self.auth, self.listen, self.pong, self.holds, self.end, leave]
            .into_iter()
            .chain(token)
            .flatten()
            .fold(self.ping, Instant::min)
    }
}
