//! Photos: stored, shown to those who may see them, and seen by models.

mod buckets;
mod shown;
mod storing;
mod vision;

use std::collections::HashMap;
use std::path::PathBuf;

use proxie::config::Config;
use serde_json::Value;

use crate::edges::{Http, TestNode, text};
use crate::process::Folder;

/// Bytes that begin as a PNG of this size.
pub fn png(width: u32, height: u32, bytes: usize) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(width.to_be_bytes());
    png.extend(height.to_be_bytes());
    png.extend(b"\x08\x06\0\0\0");
    // Every byte there is, so that nothing on the way changes one.
    png.extend((png.len()..bytes).map(|n| (n * 7 + n / 251) as u8));
    png
}

pub fn jpeg() -> Vec<u8> {
    let mut jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\0\x10\0\x20\x03".to_vec();
    jpeg.extend((0..5_000).map(|n: usize| (n * 3) as u8));
    jpeg
}

/// A node with its photos in a folder of the test.
pub struct Photographed {
    pub node: TestNode,
    pub folder: Folder,
}

impl Photographed {
    pub async fn new(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let folder = Folder::new(name);
        let url = format!("file://{}", folder.0.display());
        let node = TestNode::with(|config| {
            config.objects.url = url;
            change(config);
        });
        Self { node: node.await, folder }
    }

    /// The files of all objects.
    pub fn files(&self) -> Vec<PathBuf> {
        let photos = self.folder.0.join("photos");
        let files = std::fs::read_dir(photos).into_iter().flatten();
        files.map(|file| file.unwrap().path()).collect()
    }
}

/// An answer with a body of any bytes.
pub struct Raw {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Raw {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request with any bytes.
pub async fn send(
    http: &Http,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Raw {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}{path}", http.address);
    let mut request = client.request(method.parse().unwrap(), url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(token) = &http.token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    let headers = answer.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
    Raw {
        status: answer.status().as_u16(),
        headers: headers.collect(),
        body: answer.bytes().await.unwrap().to_vec(),
    }
}

/// The id of a photo that was just sent.
pub async fn upload(http: &Http, photo: &[u8]) -> String {
    let sent = send(http, "POST", "/v1/photos", &[], photo.to_vec()).await;
    assert_eq!(sent.status, 201, "{}", String::from_utf8_lossy(&sent.body));
    text(&sent.json()["id"])
}

pub async fn content(http: &Http, id: &str) -> Raw {
    send(http, "GET", &format!("/v1/photos/{id}/content"), &[], "").await
}
