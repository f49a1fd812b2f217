//! The master key, which wraps the keys of people.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::{decrypt, encrypt, key_of};
use crate::kernel::secret::Secret;

/// 256 random bits, or what follows from a secret that is as good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    key: Secret<[u8; 32]>,
    id: String,
}

/// The key that a node wraps with, and the one before it, while a rotation is under way.
#[derive(Clone, Debug)]
pub struct Masters {
    pub current: Master,
    pub previous: Option<Master>,
}

impl Master {
    fn new(key: [u8; 32]) -> Self {
        let id = derived(&key, b"proxie: which master key is this");
        let id = id[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key: Secret::new(key), id }
    }

    /// 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong =
            || "a vault key is 64 hexadecimal digits, as `openssl rand -hex 32` prints them";
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong().into());
        }
        let mut key = [0; 32];
        for (n, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self::new(key))
    }

    /// A new one, and how it is written.
    pub(super) fn random() -> (Self, Secret<String>) {
        let key: [u8; 32] = rand::random();
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        (Self::new(key), Secret::new(text))
    }

    /// As good as the secret is.
    pub fn derived_from(secret: &str) -> Self {
        Self::new(derived(secret.as_bytes(), b"proxie: the master key of the vault"))
    }

    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Makes a file with a new key, which nobody else can read. One that is there stays as it is.
    pub fn create(path: &Path) -> io::Result<()> {
        let (_, text) = Self::random();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            opened => opened?,
        };
        writeln!(file, "{}", text.reveal())?;
        file.sync_all()
    }

    /// Tells this key from others, and nothing about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn wrap(&self, person: &str, key: &[u8; 32]) -> Vec<u8> {
        encrypt(&key_of(self.key.reveal()), wrapping(person).as_bytes(), key)
    }

    /// `None`: it was not wrapped with this one, or for somebody else.
    pub(super) fn unwrap(&self, person: &str, wrapped: Vec<u8>) -> Option<Secret<[u8; 32]>> {
        let master = key_of(self.key.reveal());
        let key = Secret::new(decrypt(&master, wrapping(person).as_bytes(), wrapped)?);
        key.reveal().as_slice().try_into().ok().map(Secret::new)
    }
}

fn wrapping(person: &str) -> String {
    format!("proxie: the key of {person}")
}

fn derived(secret: &[u8], what: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length will do");
    mac.update(what);
    mac.finalize().into_bytes().into()
}

impl Masters {
    pub fn only(current: Master) -> Self {
        Self { current, previous: None }
    }

    /// With this previous one, unless another one is named.
    pub(super) fn or_before(mut self, previous: Option<Master>) -> Self {
        self.previous = self.previous.or(previous);
        self
    }

    pub(super) fn of(&self, id: &str) -> Option<&Master> {
        [Some(&self.current), self.previous.as_ref()].into_iter().flatten().find(|m| m.id == id)
    }
}
