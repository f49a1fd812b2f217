//! Notifications of a task's changes, which are sent to the addresses that its owner named.

use serde::{Deserialize, Serialize};

use super::Push;
use crate::kernel::private::Private;
use crate::kernel::task::{TaskPush, TaskRow};
use crate::kernel::work::Work;

/// The delivery of a task, as it is after a change, to one address.
pub struct NotifyAgent;

impl Work for NotifyAgent {
    const NAME: &'static str = "notify_agent";
    type Input = Notification;
    type Outcome = ();
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    pub task: TaskRow,
    pub push: Private<TaskPush, Push>,
}
