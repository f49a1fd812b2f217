//! An authority that signs what the tests want signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::super::tls::Tls;

/// That of the cluster.
pub static OURS: LazyLock<Authority> = LazyLock::new(Authority::new);
/// Some other one.
pub static OTHER: LazyLock<Authority> = LazyLock::new(Authority::new);

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// PEM, as in the files.
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| {})
    }

    pub fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap().pem();
        Issued { cert, key: key.serialize_pem() }
    }

    /// What a node of that name has in a cluster of this authority.
    pub fn tls(&self, name: &str) -> Tls {
        self.issue(name).trusting(&[self])
    }
}

impl Issued {
    pub fn trusting(&self, authorities: &[&Authority]) -> Tls {
        let all: String = authorities.iter().map(|authority| authority.pem()).collect();
        load(&self.cert, &self.key, &all).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// From files with these texts: `cert`, `key` and `ca`.
pub fn load(cert: &str, key: &str, ca: &str) -> std::io::Result<Tls> {
    let folder = Folder::new();
    let files = [("cert", cert), ("key", key), ("ca", ca)].map(|(file, text)| {
        let path = folder.0.join(file);
        fs::write(&path, text).unwrap();
        path
    });
    let [cert, key, ca] = files.each_ref().map(PathBuf::as_path);
    Tls::load(cert, key, ca)
}

/// Removed with its handle.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("proxie-tls-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
