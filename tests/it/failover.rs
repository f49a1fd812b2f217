//! A replica takes the primary's place: real streaming replication, with and without a loss.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proxie::app::node::ExitReason;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::embedded::{Embedded, Options, ensure_installed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::cluster::Nodes;
use crate::edges::outage::{insist, server};
use crate::edges::{TestNode, Ws, connect, id, text};
use crate::embedded::Folder;
use crate::support::{Cable, eventually};

/// A server that follows another one, until it is promoted. Killed at the end.
struct Replica {
    process: Child,
    options: PgConnectOptions,
}

impl Replica {
    async fn of(primary: &Embedded, folder: &Folder) -> Self {
        let bin = ensure_installed(&Options::new(folder.data())).unwrap().bin;
        let files = folder.data().parent().unwrap().join("replica");
        std::fs::create_dir(&files).unwrap();
        // PostgreSQL does not run as root.
        let owner = std::fs::metadata(folder.data().join("postgres")).unwrap();
        chown(&files, Some(owner.uid()), Some(owner.gid())).unwrap();
        let run = |program: &str| {
            let mut command = Command::new(bin.join(program));
            command.uid(owner.uid()).gid(owner.gid()).current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log(&files));
            command
        };
        let there = primary.connect_options();
        let socket = there.get_socket().unwrap().clone();
        let cluster = files.join("cluster");
        let copied = run("pg_basebackup")
            .arg("-h")
            .arg(&socket)
            .args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(&cluster)
            .status()
            .unwrap();
        assert!(copied.success(), "{}", said(&files));
        let process = run("postgres")
            .arg("-D")
            .arg(&cluster)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "checkpoint_timeout=1d"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", files.display()))
            .spawn()
            .unwrap();
        let replica = Self { process, options: there.socket(&files) };
        eventually("the replica follows", || async {
            PgConnection::connect_with(&replica.options).await.is_ok()
        })
        .await;
        replica
    }

    async fn ask<T>(&self, question: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut connection = PgConnection::connect_with(&self.options).await.unwrap();
        sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap()
    }

    /// Everything that the primary has written is here.
    async fn caught_up(&self, primary: &Embedded) {
        let mut connection = PgConnection::connect_with(&primary.connect_options()).await.unwrap();
        let written: String = sqlx::query_scalar("select pg_current_wal_lsn()::text")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        eventually("the replica has caught up", || async {
            let mut here = PgConnection::connect_with(&self.options).await.unwrap();
            sqlx::query_scalar("select pg_last_wal_replay_lsn() >= $1::pg_lsn")
                .bind(&written)
                .fetch_one(&mut here)
                .await
                .unwrap()
        })
        .await;
    }

    /// From now on it hears nothing.
    async fn cut_off(&self) {
        let mut connection = PgConnection::connect_with(&self.options).await.unwrap();
        for statement in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
            sqlx::query(statement).execute(&mut connection).await.unwrap();
        }
        eventually("it has stopped to follow", || async {
            self.ask::<i64>("select count(*) from pg_stat_wal_receiver").await == 0
        })
        .await;
    }

    async fn promote(&self) {
        assert!(self.ask::<bool>("select pg_promote()").await);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id() as i32).unwrap();
        let _ = kill_process(pid, Signal::QUIT);
        let _ = self.process.wait();
    }
}

fn log(files: &Path) -> std::fs::File {
    let path = files.join("log");
    std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
}

fn said(files: &Path) -> String {
    std::fs::read_to_string(files.join("log")).unwrap()
}

/// A busy machine may not prove its lease for a moment.
async fn ask(ws: &mut Ws, event: &str, data: Value) -> Value {
    insist(ws, &id(), event, &data).await
}

/// What was acknowledged and had not reached the replica is lost. Nobody's position says otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_is_another_history_at_once() {
    let folder = Folder::new("promoted");
    let primary = server(&folder).await;
    let database = primary.create_database("promoted", None).await.unwrap();
    let replica = Replica::of(&primary, &folder).await;
    let cable = Cable::to(&database).await;
    let node = TestNode::with(|config| {
        config.persistence.database_url = cable.options.to_url_lossy().to_string().into();
    })
    .await;
    let mut ws = connect(node.node.address, &node.token("alice", Role::Consumer, 3_600)).await;
    let opened = ask(&mut ws, "session:open", json!({})).await;
    let session = text(&opened["session_id"]);
    let epoch = opened["position"]["epoch"].clone();
    let say = |what: &str| json!({"session_id": session, "content": what});
    ask(&mut ws, "chat:message", say("before")).await;
    replica.caught_up(&primary).await;
    replica.cut_off().await;
    ask(&mut ws, "chat:message", say("lost")).await;
    let topic = format!("session:{session}");
    let heard = ws.durable(&topic, 4).await;
    let position = json!({"epoch": epoch, "offset": heard.last().unwrap()["offset"]});
    replica.promote().await;
    // Its control file does not say so before the next checkpoint.
    let control = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(replica.ask::<i32>(control).await, 1, "it has made a checkpoint already");
    let promoted = replica.options.clone().database("promoted");
    cable.switch(&promoted);
    let doom = tokio::time::timeout(Duration::from_secs(30), node.node.doomed());
    match doom.await.expect("it notices") {
        ExitReason::Other(reason) => {
            assert!(reason.contains("timeline 2 and was on 1"), "{reason}")
        }
        ExitReason::Evicted => panic!("nobody has taken over"),
    }
    // It starts again, and what clients hold is not taken for what is there.
    assert_eq!(replica.ask::<i32>(control).await, 1, "it has made a checkpoint meanwhile");
    let node = TestNode::of(node.config, Clock::System).await;
    let mut ws = connect(node.node.address, &node.token("alice", Role::Consumer, 3_600)).await;
    let resumed =
        ask(&mut ws, "session:resume", json!({"session_id": session, "position": position})).await;
    assert_eq!(resumed["recovered"], false, "{resumed}");
    assert_ne!(resumed["position"]["epoch"], epoch);
    assert_eq!(resumed["position"]["offset"], 2, "the loss is there to be seen: {resumed}");
    ask(&mut ws, "chat:message", say("after")).await;
    node.node.stop().await;
    drop(replica);
    primary.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_of_a_cluster_notice_a_promotion() {
    let folder = Folder::new("promoted-three");
    let primary = server(&folder).await;
    let database = primary.create_database("promoted", None).await.unwrap();
    let replica = Replica::of(&primary, &folder).await;
    let cable = Cable::to(&database).await;
    let url = cable.options.to_url_lossy().to_string();
    let mut nodes = Nodes::on("promoted-nodes", 3, url, false, &[]).await;
    nodes.settled(3).await;
    let alice = nodes.token("alice", "consumer");
    let mut ws = connect(nodes.address(0), &alice).await;
    let opened = ask(&mut ws, "session:open", json!({})).await;
    let (session, epoch) = (text(&opened["session_id"]), opened["position"]["epoch"].clone());
    replica.caught_up(&primary).await;
    replica.promote().await;
    cable.switch(&replica.options.clone().database("promoted"));
    for node in &mut nodes.nodes {
        let node = node.as_mut().unwrap();
        assert_eq!(node.ended(), Some(1), "{}", node.log());
        assert!(node.log().contains("timeline 2 and was on 1"), "{}", node.log());
    }
    // All at once, as supervisors do it.
    let again: Vec<_> = (0..3).map(|n| nodes.spawn(n, &[])).collect();
    nodes.nodes = again.into_iter().map(|node| Some(node.ready())).collect();
    nodes.settled(3).await;
    let mut ws = connect(nodes.address(1), &alice).await;
    let position = json!({"epoch": epoch, "offset": 0});
    let resumed =
        ask(&mut ws, "session:resume", json!({"session_id": session, "position": position})).await;
    assert_ne!(resumed["position"]["epoch"], epoch);
    drop(nodes);
    drop(replica);
    primary.stop().await.unwrap();
}
