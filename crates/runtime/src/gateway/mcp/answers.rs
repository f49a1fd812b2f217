//! Answers of clients to questions of this node, in the revision that asks in the middle of a call. The client sends its
//! answer as a request of its own, which a balancer takes to any node: the question's id says where it belongs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::cluster::topics::{Published, Subscriber, Subscription, Topics};
use crate::kernel::entity::to_value;

/// How long an answer is repeated until the node that waits for it has said that it has it. A message between nodes may be
/// lost, in particular where slots have just moved.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(250);
/// Most questions of this node that wait for their answers.
const MAX_WAITING: usize = 4_096;
/// The kind of the topics that answers travel on. No client can listen to it.
const KIND: &str = "mcp-answer";

/// The questions of this node that wait for their answers.
pub struct Answers {
    /// This process, by a name that no other one has.
    node: Arc<str>,
    topics: Topics,
    waiting: Mutex<HashMap<String, Waiting>>,
}

struct Waiting {
    user: Arc<str>,
    answer: oneshot::Sender<Value>,
}

/// An answer on its way to the node that waits for it.
#[derive(Serialize, Deserialize)]
struct Travelling {
    id: String,
    user: String,
    answer: Value,
    /// The id under which the node that has sent it waits to hear whether it has arrived.
    #[serde(default)]
    receipt: Option<String>,
}

/// A question whose answer is waited for. Dropping it ends the wait.
pub struct Question {
    pub id: String,
    pub answer: oneshot::Receiver<Value>,
    answers: Arc<Answers>,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.answers.waiting.lock().remove(&self.id);
    }
}

/// What has become of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    Yes,
    /// It answers no question of any node.
    NoQuestion,
    /// The node that has asked cannot be reached.
    Unreachable,
}

impl Answers {
    /// With the subscription by which answers come from other nodes.
    pub fn open(node: Arc<str>, topics: &Topics) -> (Arc<Self>, Subscription) {
        let topic = format!("{KIND}:{node}");
        let answers = Arc::new(Self { node, topics: topics.clone(), waiting: Mutex::default() });
        let subscription = topics.subscribe(&topic, 0, answers.clone());
        (answers, subscription)
    }

    /// A new question to this user; `None`: too many wait.
    pub fn question(self: &Arc<Self>, user: &Arc<str>) -> Option<Question> {
        let id = format!("{}.{:032x}", self.node, rand::random::<u128>());
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            return None;
        }
        waiting.insert(id.clone(), Waiting { user: user.clone(), answer: sender });
        Some(Question { id, answer, answers: self.clone() })
    }

    /// Takes the answer of this user to the question of that id, wherever it was asked, and learns what became of it.
    pub async fn deliver_answer(
        self: &Arc<Self>,
        user: &Arc<str>,
        id: &str,
        answer: Value,
    ) -> Arrival {
        let Some(node) = node_of(id) else { return Arrival::NoQuestion };
        if *node == *self.node {
            return self.arrived(user, id, answer);
        }
        let Some(mut receipt) = self.question(user) else { return Arrival::Unreachable };
        let repeated = async {
            loop {
                self.send(user, id, answer.clone(), Some(&receipt.id));
                if let Ok(Ok(arrived)) = tokio::time::timeout(AGAIN, &mut receipt.answer).await {
                    return if arrived == true { Arrival::Yes } else { Arrival::NoQuestion };
                }
            }
        };
        tokio::time::timeout(PATIENCE, repeated).await.unwrap_or(Arrival::Unreachable)
    }

    /// Sends an answer once. It may be lost: for whoever is asked again where none comes.
    pub fn send(&self, user: &str, id: &str, answer: Value, receipt: Option<&str>) {
        let Some(node) = node_of(id) else { return };
        if *node == *self.node {
            self.arrived(user, id, answer);
            return;
        }
        let receipt = receipt.map(str::to_owned);
        let travelling = Travelling { id: id.into(), user: user.into(), answer, receipt };
        let data = to_value(&travelling).to_string();
        self.topics.post(&Published::new(&format!("{KIND}:{node}"), None, "answer", &data));
    }

    fn arrived(&self, user: &str, id: &str, answer: Value) -> Arrival {
        let mut waiting = self.waiting.lock();
        // Only who was asked can answer.
        if waiting.get(id).is_none_or(|asked| *asked.user != *user) {
            return Arrival::NoQuestion;
        }
        if let Some(asked) = waiting.remove(id) {
            let _ = asked.answer.send(answer);
        }
        Arrival::Yes
    }
}

impl Subscriber for Answers {
    fn deliver(&self, _: u64, published: &Arc<Published>) {
        #[derive(Deserialize)]
        struct Frame {
            data: Travelling,
        }
        match serde_json::from_slice::<Frame>(&published.frame) {
            Ok(Frame { data: Travelling { id, user, answer, receipt } }) => {
                let arrived = self.arrived(&user, &id, answer) == Arrival::Yes;
                if let Some(receipt) = receipt {
                    self.send(&user, &receipt, arrived.into(), None);
                }
            }
            Err(error) => tracing::warn!(%error, "an answer cannot be read"),
        }
    }

    /// Nothing of it is stored: a question whose answer was lost ends with its time.
    fn resync(&self, _: u64) {}
}

/// The node that has asked the question of this id.
fn node_of(id: &str) -> Option<&str> {
    let (node, _) = id.split_once('.')?;
    let is_node = node.len() <= 32 && node.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_node && !node.is_empty()).then_some(node)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_answer_reaches_its_question_and_only_from_who_was_asked() {
        let topics = Topics::default();
        let (here, _here) = Answers::open("lo1".into(), &topics);
        let (there, _there) = Answers::open("lo2".into(), &topics);
        let (anna, mallory): (Arc<str>, Arc<str>) = ("anna".into(), "mallory".into());
        let mut question = here.question(&anna).unwrap();
        let id = question.id.clone();
        assert_eq!(here.deliver_answer(&mallory, &id, json!(1)).await, Arrival::NoQuestion);
        assert_eq!(there.deliver_answer(&mallory, &id, json!(1)).await, Arrival::NoQuestion);
        assert!(question.answer.try_recv().is_err());
        assert_eq!(there.deliver_answer(&anna, &id, json!(2)).await, Arrival::Yes);
        assert_eq!(question.answer.try_recv().unwrap(), 2);
        let again = here.deliver_answer(&anna, &id, json!(3)).await;
        assert_eq!(again, Arrival::NoQuestion, "it is answered");
        for id in ["", "1", "x y.z", ".", &"x".repeat(100)] {
            let nothing = here.deliver_answer(&anna, id, json!(1)).await;
            assert_eq!(nothing, Arrival::NoQuestion, "{id}");
        }
        let dropped = here.question(&anna).unwrap().id.clone();
        let ended = there.deliver_answer(&anna, &dropped, json!(1)).await;
        assert_eq!(ended, Arrival::NoQuestion);
        let many: Vec<_> = (0..MAX_WAITING).map_while(|_| here.question(&anna)).collect();
        assert!(many.len() == MAX_WAITING && here.question(&anna).is_none());
    }

    #[tokio::test]
    async fn an_answer_to_a_node_that_is_gone_is_not_taken() {
        let (here, _here) = Answers::open("lo1".into(), &Topics::default());
        let gone = here.deliver_answer(&"anna".into(), "lo9.1", json!(1)).await;
        assert_eq!(gone, Arrival::Unreachable);
    }
}
