//! The vault: seals and opens personal data, under a key for each person.
//!
//! The cipher is AES-256-GCM. The ciphertext is bound to the person, the number of the key, the entity and the field,
//! so that it can be neither changed nor moved. Nonces are random: a key may seal 2^32 values before two nonces
//! coincide with a probability of 2^-33, which at 100 values a second takes more than a year without a pause.
//!
//! Keys in use are in memory, so that sealing needs no I/O. If a key is missing, the caller fetches it and tries again.

mod master;
mod sealing;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use moka::sync::Cache;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use sqlx::postgres::PgPool;
use tokio::sync::{mpsc, oneshot};

pub use self::master::{Master, Masters};
pub use self::sealing::{Sealing, seal_now, sealing};
pub use self::store::{Erased, erase, master_of, rotate};
use crate::kernel::private::{
    Cipher, EncryptionContext, Need, SEALED, Trouble, person_of, sealed_text,
};

/// The number of keys in memory, about a kilobyte each. The least recently used ones are forgotten first.
const MAX_KEYS: u64 = 20_000;
/// The time after which a key is read again in any case.
const KEEP: Duration = Duration::from_secs(600);
/// The number of keys that are read together.
const BATCH: usize = 256;
/// The number of reads that may wait; more are refused.
const QUEUE: usize = 32_768;
/// The interval at which a node looks for erasures, and whether to seal. Within two seconds all nodes have forgotten a
/// key.
const LOOK: Duration = Duration::from_millis(700);

/// The field names of whole texts.
pub const PUBLICATION: &str = "@publication";
pub const TIMER: &str = "@timer";
/// The field name of bytes that are stored elsewhere.
const BYTES: &str = "@bytes";

/// The field of an outbox row, which only its receiver may read.
pub fn outbox_field(kind: &str, key: &str) -> String {
    ["@outbox ", kind, "/", key].concat()
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error(
        "the vault's master key is another one than that of this database ({found} and not {expected}): give this node \
         the key that others have, as vault.key_file or vault.key"
    )]
    OtherMaster { found: String, expected: String },
    #[error("{0}")]
    NoMaster(String),
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
}

/// The known keys of a person.
#[derive(Clone)]
struct Known {
    key: Option<Arc<Key>>,
    /// All keys up to this number are erased, except `key`.
    up_to: i64,
}

struct Key {
    number: i64,
    key: LessSafeKey,
    /// The key of names that reveal nothing, derived from the same secret.
    blinding: hmac::Key,
}

impl Key {
    fn new(number: i64, bytes: &[u8; 32]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let blinding = hmac::sign(&root, b"proxie blind 1");
        let blinding = hmac::Key::new(hmac::HMAC_SHA256, blinding.as_ref());
        Self { number, key: key_of(bytes), blinding }
    }
}

/// The vault of a node; cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    known: Cache<Arc<str>, Known>,
    wanted: mpsc::Sender<Wanted>,
    /// The state at the last look.
    seals: AtomicBool,
    /// The number of erasures that this node has learned of.
    erasures: AtomicU64,
}

struct Wanted {
    need: Need,
    done: oneshot::Sender<Result<(), String>>,
}

pub struct Options {
    /// The source of the master key. True: the database has one already, so none is made. `None`: none is configured,
    /// and the database keeps it.
    pub masters: Box<dyn FnOnce(bool) -> Result<Option<Masters>, String> + Send>,
    /// The time for which every node must have been able to read sealed values before sealing begins. `None`: this node
    /// seals nothing.
    pub seal_after: Option<Duration>,
}

impl Options {
    /// Options with a master key that is derived from a secret.
    pub fn derived_from(secret: &str) -> Self {
        let masters = Masters::only(Master::derived_from(secret));
        Self { masters: Box::new(|_| Ok(Some(masters))), seal_after: Some(Duration::ZERO) }
    }
}

impl Vault {
    /// Starts to read keys and to look for erasures. A master key other than the database's is refused; a database
    /// without one adopts it.
    pub async fn start(pool: PgPool, options: Options) -> Result<Self, VaultError> {
        let Options { masters, seal_after } = options;
        let has_one = master_of(&pool).await?.is_some();
        let masters = match masters(has_one).map_err(VaultError::NoMaster)? {
            Some(masters) => {
                let masters = masters.or_before(store::kept_master(&pool).await?);
                store::adopt_master(&pool, &masters).await?;
                masters
            }
            None => {
                tracing::warn!(
                    "no vault.key is configured, so the database keeps the master key of the vault: a backup of it can be read"
                );
                Masters::only(store::keep_master(&pool).await?)
            }
        };
        let erased_before = store::last_erasure(&pool).await?;
        let (wanted, queue) = mpsc::channel(QUEUE);
        let known = Cache::builder().max_capacity(MAX_KEYS).time_to_live(KEEP).build();
        let seals = AtomicBool::new(false);
        let inner = Inner { known, wanted, seals, erasures: AtomicU64::new(0) };
        let vault = Self(Arc::new(inner));
        let weak = Arc::downgrade(&vault.0);
        tokio::spawn(store::read_all(pool.clone(), Arc::new(masters), weak.clone(), queue));
        let looks = store::Looks { pool, vault: weak, seal_after, erased: erased_before };
        looks.start(&vault.0).await?;
        Ok(vault)
    }

    /// The cipher for serialisation and deserialisation.
    pub fn cipher(&self) -> Arc<dyn Cipher> {
        self.0.clone()
    }

    /// Fetches a key into memory, and creates it if a value is to be sealed.
    pub async fn fetch(&self, need: Need) -> Result<(), String> {
        let (done, fetched) = oneshot::channel();
        self.0
            .wanted
            .try_send(Wanted { need, done })
            .map_err(|_| "too many keys are waited for".to_owned())?;
        fetched.await.unwrap_or_else(|_| Err("the vault has ended".into()))
    }

    /// A counter that grows with each erasure that this node learns of: holders of private values then read them again.
    pub fn erasures(&self) -> u64 {
        self.0.erasures.load(Ordering::Acquire)
    }

    /// Opens a whole text of the store, sealed or not. `None`: it was erased.
    pub async fn open_text(
        &self,
        text: &str,
        place: &EncryptionContext,
        field: &str,
    ) -> Result<Option<String>, Trouble> {
        let Some(sealed) = sealed_text(text) else { return Ok(Some(text.to_owned())) };
        let opened = self.open(sealed, place, field).await?;
        let text = opened.map(String::from_utf8).transpose();
        text.map_err(|_| Trouble::Broken("a sealed text is not UTF-8".into()))
    }

    /// Whether values are sealed now.
    pub fn seals(&self) -> bool {
        self.0.seals()
    }

    /// Seals a value, and fetches or makes the key if it is not in memory.
    pub async fn seal(
        &self,
        person: &Arc<str>,
        place: &EncryptionContext,
        field: &str,
        plain: &[u8],
    ) -> Result<String, Trouble> {
        self.with_key(|inner| inner.seal(person, place, field, plain)).await
    }

    /// A stable name for a thing of a person, which only a holder of the person's key can make.
    pub async fn blind(&self, person: &Arc<str>, name: &[u8]) -> Result<[u8; 32], Trouble> {
        self.with_key(|inner| {
            let key = inner.key(person)?;
            let mut blind = [0; 32];
            blind.copy_from_slice(hmac::sign(&key.blinding, name).as_ref());
            Ok(blind)
        })
        .await
    }

    /// Opens a value, and fetches the key if it is not in memory.
    pub async fn open(
        &self,
        sealed: &str,
        place: &EncryptionContext,
        field: &str,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        self.with_key(|inner| inner.open(sealed, place, field)).await
    }

    /// Seals bytes that are stored outside of the database. Also the number of the key.
    pub async fn seal_bytes(
        &self,
        person: &Arc<str>,
        place: &EncryptionContext,
        plain: &[u8],
    ) -> Result<(i64, Vec<u8>), Trouble> {
        self.with_key(|inner| {
            let key = inner.key(person)?;
            let aad = bound_to(person, key.number, place, BYTES);
            Ok((key.number, encrypt(&key.key, &aad, plain)))
        })
        .await
    }

    /// Opens what [`Self::seal_bytes`] has sealed under the key of this number. `None`: it was erased.
    pub async fn open_bytes(
        &self,
        person: &Arc<str>,
        number: i64,
        place: &EncryptionContext,
        sealed: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let key = self.with_key(|inner| inner.key_numbered(person, number)).await?;
        let Some(key) = key else { return Ok(None) };
        let aad = bound_to(person, number, place, BYTES);
        let opened = decrypt(&key.key, &aad, sealed);
        let broken = || Trouble::Broken(format!("{} {} was changed", place.kind, place.key));
        opened.map(Some).ok_or_else(broken)
    }

    async fn with_key<T>(&self, work: impl Fn(&Inner) -> Result<T, Trouble>) -> Result<T, Trouble> {
        match work(&self.0) {
            Err(Trouble::Needs(need)) => {
                self.fetch(need.clone()).await.map_err(|_| Trouble::Needs(need))?;
                work(&self.0)
            }
            done => done,
        }
    }
}

impl Inner {
    fn forget(&self, person: &str) {
        self.known.invalidate(person);
    }

    /// The key to seal with.
    fn key(&self, person: &Arc<str>) -> Result<Arc<Key>, Trouble> {
        let key = self.known.get(person).and_then(|known| known.key);
        key.ok_or_else(|| Trouble::Needs(Need { person: person.clone(), key: None }))
    }

    /// The key that something was sealed under. `None`: it was erased.
    fn key_numbered(&self, person: &str, number: i64) -> Result<Option<Arc<Key>>, Trouble> {
        match self.known.get(person) {
            Some(Known { key: Some(key), .. }) if key.number == number => Ok(Some(key)),
            Some(known) if number <= known.up_to => Ok(None),
            _ => Err(Trouble::Needs(Need { person: person.into(), key: Some(number) })),
        }
    }
}

impl Cipher for Inner {
    fn seal(
        &self,
        person: &Arc<str>,
        place: &EncryptionContext,
        field: &str,
        plain: &[u8],
    ) -> Result<String, Trouble> {
        let key = self.key(person)?;
        let aad = bound_to(person, key.number, place, field);
        let sealed = BASE64.encode(encrypt(&key.key, &aad, plain));
        Ok(format!("{SEALED}{}:{sealed}:{person}", key.number))
    }

    fn open(
        &self,
        sealed: &str,
        place: &EncryptionContext,
        field: &str,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let broken =
            |what: &str| Trouble::Broken(format!("{field} of {} {} {what}", place.kind, place.key));
        let person = person_of(sealed).ok_or_else(|| broken("is not sealed as it should be"))?;
        let (number, ciphertext) =
            parts(sealed).ok_or_else(|| broken("is not sealed as it should be"))?;
        let Some(key) = self.key_numbered(person, number)? else { return Ok(None) };
        let aad = bound_to(person, number, place, field);
        let plain = decrypt(&key.key, &aad, ciphertext)
            .ok_or_else(|| broken("was changed, or belongs elsewhere"))?;
        Ok(Some(plain))
    }

    fn seals(&self) -> bool {
        self.seals.load(Ordering::Acquire)
    }
}

fn parts(sealed: &str) -> Option<(i64, Vec<u8>)> {
    let mut parts = sealed.strip_prefix(SEALED)?.splitn(3, ':');
    Some((parts.next()?.parse().ok()?, BASE64.decode(parts.next()?).ok()?))
}

/// The associated data of a ciphertext. Each part is preceded by its length, so that different lists of parts never
/// have the same bytes.
fn bound_to(person: &str, key: i64, place: &EncryptionContext, field: &str) -> Vec<u8> {
    let mut bytes = b"proxie 1".to_vec();
    bytes.extend(key.to_be_bytes());
    for part in [person, &place.kind, &place.key, field] {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes
}

fn key_of(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("an AES-256 key has 32 bytes"))
}

/// Encrypts a value: the nonce, then the ciphertext with its tag.
fn encrypt(key: &LessSafeKey, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut bytes = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
    bytes.extend(nonce);
    bytes.extend(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut bytes[NONCE_LEN..],
        )
        .expect("what fits into memory can be sealed");
    bytes.extend(tag.as_ref());
    bytes
}

fn decrypt(key: &LessSafeKey, aad: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = sealed.get(..NONCE_LEN)?.try_into().ok()?;
    let nonce = Nonce::assume_unique_for_key(nonce);
    let plain = key.open_within(nonce, Aad::from(aad), &mut sealed, NONCE_LEN..).ok()?.len();
    sealed.truncate(plain);
    Some(sealed)
}

#[cfg(test)]
mod tests;
