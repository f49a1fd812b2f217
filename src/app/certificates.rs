//! Certificates for the links between nodes, from an authority created on the spot: for development, and for clusters
//! without an authority of their own. The holder of its key can pose as any node, so it is best kept away from all of
//! them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::cluster::transport::tls::{self, Tls};
use crate::kernel::clock::Clock;
use crate::kernel::ids::is_valid_id;

/// The name of every authority that this command creates: the key and this name are all that signing needs.
const AUTHORITY: &str = "proxie cluster CA";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIVES: Duration = Duration::from_secs(DAY.as_secs() * 365 * 10);
const NODE_LIVES: Duration = Duration::from_secs(DAY.as_secs() * 365);
/// How far certificates are backdated, because clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Makes `NAME.pem` and `NAME-key.pem` for each node in the folder, and first `ca.pem` and `ca-key.pem`, unless they
/// are there. Existing files stay unchanged, and are reported.
///
/// # Errors
/// Names that no node with TLS can have, half of a pair, and an authority that is not one of this command's.
pub fn create(folder: &Path, names: &[String]) -> anyhow::Result<()> {
    names.iter().try_for_each(|name| check(name))?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let authority = Pair::of(folder, "ca");
    if authority.exists()? {
        println!("{} is used as it is", authority.cert.display());
    } else {
        let key = KeyPair::generate()?;
        authority.write(&authority_params().self_signed(&key)?.pem(), &key)?;
    }
    let key = fs::read_to_string(&authority.key);
    let key = key.with_context(|| authority.key.display().to_string())?;
    let key = KeyPair::from_pem(&key).with_context(|| authority.key.display().to_string())?;
    let issuer = Issuer::new(authority_params(), key);
    for name in names {
        let node = Pair::of(folder, name);
        if node.exists()? {
            let path = node.cert.display();
            println!("{path} is kept: remove it and its key to make a new one");
            continue;
        }
        let key = KeyPair::generate()?;
        node.write(&node_params(name)?.signed_by(&key, &issuer)?.pem(), &key)?;
        if let Err(error) = Tls::load(&node.cert, &node.key, &authority.cert) {
            node.remove();
            bail!(
                "{} and its key are not a pair, have expired or were not made by this command: {error}",
                authority.cert.display()
            );
        }
    }
    Ok(())
}

fn check(name: &str) -> anyhow::Result<()> {
    ensure!(
        is_valid_id(name) && tls::is_possible_name(name),
        "with TLS a node cannot be called {name:?}: {}",
        tls::POSSIBLE_NAMES
    );
    ensure!(
        name != "ca" && !name.ends_with("-key"),
        "{name:?}: its files would be those of another name"
    );
    Ok(())
}

fn params(name: &str, lives: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = u64::try_from(Clock::System.now().as_second()).unwrap_or(0);
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now);
    params.not_before = now - BACKDATED;
    params.not_after = now + lives;
    params
}

fn authority_params() -> CertificateParams {
    let mut params = params(AUTHORITY, AUTHORITY_LIVES);
    // It may sign nodes, but no other authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn node_params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = params(name, NODE_LIVES);
    params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Either of two nodes may dial the other.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A certificate and its key.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn of(folder: &Path, name: &str) -> Self {
        Self {
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}-key.pem")),
        }
    }

    fn exists(&self) -> anyhow::Result<bool> {
        let there = |path: &Path| path.try_exists().with_context(|| path.display().to_string());
        match (there(&self.cert)?, there(&self.key)?) {
            (true, false) => bail!("{} is there without its key", self.cert.display()),
            (false, true) => bail!("{} is there without its certificate", self.key.display()),
            (both, _) => Ok(both),
        }
    }

    fn write(&self, certificate: &str, key: &KeyPair) -> anyhow::Result<()> {
        write(&self.key, &key.serialize_pem(), SECRET)?;
        write(&self.cert, certificate, PUBLIC)?;
        println!("made {} and {}", self.cert.display(), self.key.display());
        Ok(())
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.cert);
        let _ = fs::remove_file(&self.key);
    }
}

/// Writes a new file. It never has another mode, not even for a moment.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::cluster::transport::{
        Credit, Envelope, Inbox, Options, Peer, StartedTransport, TransportLimits, bind, framed,
    };

    /// Removed with its handle.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = format!("proxie-certificates-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(path);
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn create(&self, names: &[&str]) -> anyhow::Result<()> {
            create(&self.0, &names.iter().map(ToString::to_string).collect::<Vec<_>>())
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap()
        }

        fn tls(&self, name: &str) -> Tls {
            let node = Pair::of(&self.0, name);
            let tls = Tls::load(&node.cert, &node.key, &self.0.join("ca.pem")).unwrap();
            tls.check_name(name).unwrap();
            tls
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    struct Nothing;

    impl Inbox for Nothing {
        fn receive(&self, _: i64, _: Envelope, _: Credit) {}
    }

    async fn start(folder: &Folder, name: &str, incarnation: i64) -> StartedTransport {
        let options = Options {
            incarnation,
            name: name.into(),
            listener: bind("127.0.0.1:0").await.unwrap(),
            cookie: "c".into(),
            tls: Some(folder.tls(name)),
            limits: TransportLimits::default(),
        };
        framed::start(options, Arc::new(Nothing)).await.unwrap()
    }

    #[tokio::test]
    async fn nodes_that_were_added_at_different_times_link() {
        let folder = Folder::new("link");
        folder.create(&["node-1"]).unwrap();
        let first = ["ca.pem", "ca-key.pem", "node-1.pem", "node-1-key.pem"];
        let before = first.map(|file| folder.read(file));
        folder.create(&["node-1", "Node_2"]).unwrap();
        assert_eq!(first.map(|file| folder.read(file)), before, "what is there is kept");

        let (a, b) = (start(&folder, "node-1", 1).await, start(&folder, "Node_2", 2).await);
        let peer = |incarnation, name: &str, started: &StartedTransport| {
            let address = started.address.clone();
            Peer { incarnation, name: name.into(), address }
        };
        a.transport.link(peer(2, "Node_2", &b));
        b.transport.link(peer(1, "node-1", &a));
        let linked = async {
            while !(a.transport.is_up(2) && b.transport.is_up(1)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), linked).await.expect("a link");
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let folder = Folder::new("mode");
        folder.create(&["a"]).unwrap();
        for (file, secret) in
            [("ca.pem", false), ("a.pem", false), ("ca-key.pem", true), ("a-key.pem", true)]
        {
            let mode = fs::metadata(folder.0.join(file)).unwrap().permissions().mode();
            assert!(!secret || mode & 0o777 == 0o600, "{file}: {mode:o}");
            assert_eq!(folder.read(file).contains("PRIVATE KEY"), secret, "{file}");
        }
    }

    #[test]
    fn half_a_pair_is_not_completed() {
        let folder = Folder::new("half");
        folder.create(&["a"]).unwrap();
        fs::remove_file(folder.0.join("a-key.pem")).unwrap();
        let error = folder.create(&["a"]).unwrap_err().to_string();
        assert!(error.contains("a.pem is there without its key"), "{error}");
        fs::remove_file(folder.0.join("ca.pem")).unwrap();
        let error = folder.create(&["b"]).unwrap_err().to_string();
        assert!(error.contains("ca-key.pem is there without its certificate"), "{error}");
    }

    #[test]
    fn nothing_is_signed_with_a_key_that_is_not_the_authoritys() {
        let (folder, other) = (Folder::new("mine"), Folder::new("other"));
        folder.create(&[]).unwrap();
        other.create(&[]).unwrap();
        fs::copy(other.0.join("ca-key.pem"), folder.0.join("ca-key.pem")).unwrap();
        let error = folder.create(&["a"]).unwrap_err().to_string();
        assert!(error.contains("ca.pem and its key are not a pair"), "{error}");
        assert!(!folder.0.join("a.pem").exists() && !folder.0.join("a-key.pem").exists());
    }

    #[test]
    fn names_that_no_node_can_have_are_refused_before_anything_is_made() {
        let folder = Folder::new("names");
        let long = "a".repeat(64);
        for name in
            ["", "..", "a/b", "a.b", "-a", "a-", "1", "127", "ü", "ca", "ca-key", "a-key", &long]
        {
            assert!(folder.create(&["good", name]).is_err(), "{name}");
        }
        assert!(!folder.0.exists());
        folder.create(&["_", "1a", "A_1", &long[1..]]).unwrap();
        for name in ["_", "1a", "A_1", &long[1..]] {
            folder.tls(name);
        }
    }
}
