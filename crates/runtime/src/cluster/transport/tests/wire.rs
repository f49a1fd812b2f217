//! A TCP proxy between two nodes, which the test cuts.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub struct Wire {
    pub address: String,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    half_open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: JoinHandle<()>,
    cut: tokio::sync::watch::Sender<u32>,
}

impl Wire {
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = target.to_owned();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let half_open = Arc::new(Mutex::new(Vec::new()));
        let cut = tokio::sync::watch::Sender::new(0);
        let accepting = tokio::spawn({
            let (connections, half_open, cut) =
                (connections.clone(), half_open.clone(), cut.clone());
            async move {
                while let Ok((mut left, _)) = listener.accept().await {
                    let Ok(mut right) = TcpStream::connect(&target).await else { continue };
                    let (half_open, mut cut) = (half_open.clone(), cut.subscribe());
                    let carried = tokio::spawn(async move {
                        tokio::select! {
                            _ = copy_bidirectional(&mut left, &mut right) => {}
                            // The dialling side sees the end, the other one sees nothing.
                            _ = cut.changed() => half_open.lock().unwrap().push(right),
                        }
                    });
                    connections.lock().unwrap().push(carried);
                }
            }
        });
        Self { address, connections, half_open, accepting, cut }
    }

    /// Both sides see the end of every connection.
    pub fn cut(&self) {
        self.connections.lock().unwrap().drain(..).for_each(|c| c.abort());
    }

    /// Only the dialling side sees it.
    pub fn cut_half(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    pub fn half_open(&self) -> usize {
        self.half_open.lock().unwrap().len()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Sends bytes to a listener as nobody in particular, and waits until it hangs up.
pub async fn shout(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let read = timeout(super::PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "it did not hang up");
}
