use proptest::prelude::*;

use super::*;

fn vault(keys: &[(&str, i64, [u8; 32])]) -> Inner {
    let (wanted, _) = mpsc::channel(1);
    let known = Cache::new(100);
    for (person, number, key) in keys {
        let key = Some(Arc::new(Key::new(*number, key)));
        known.insert((*person).into(), Known { key, up_to: *number });
    }
    Inner { known, wanted, seals: AtomicBool::new(true), erasures: AtomicU64::new(0) }
}

fn clara() -> Arc<str> {
    "clara".into()
}

fn place() -> EncryptionContext {
    EncryptionContext::new("device", "dev_1")
}

fn sealed() -> (Inner, String) {
    let vault = vault(&[("clara", 7, [1; 32]), ("dora", 8, [2; 32])]);
    let sealed = vault.seal(&clara(), &place(), "push_token", b"a token").unwrap();
    (vault, sealed)
}

#[track_caller]
fn is_broken(opened: Result<Option<Vec<u8>>, Trouble>) {
    assert!(matches!(opened, Err(Trouble::Broken(_))), "{opened:?}");
}

#[test]
fn what_is_sealed_opens_and_shows_nothing() {
    let (vault, sealed) = sealed();
    assert_eq!(vault.open(&sealed, &place(), "push_token").unwrap().unwrap(), b"a token");
    assert!(!sealed.contains("token") && !sealed.contains(&BASE64.encode("a token")), "{sealed}");
    let again = vault.seal(&clara(), &place(), "push_token", b"a token").unwrap();
    assert_ne!(again, sealed, "the same value twice does not look the same");
}

#[test]
fn a_changed_ciphertext_is_refused() {
    let (vault, sealed) = sealed();
    let (number, bytes) = parts(&sealed).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let changed = format!("{SEALED}{number}:{}:clara", BASE64.encode(changed));
        is_broken(vault.open(&changed, &place(), "push_token"));
    }
    let short = format!("{SEALED}7:{}:clara", BASE64.encode(&bytes[..10]));
    for malformed in [&*short, "sealed:1:", "sealed:1:7:clara", "sealed:1:x:AA:clara", "a token"] {
        is_broken(vault.open(malformed, &place(), "push_token"));
    }
}

#[test]
fn it_belongs_to_its_person_entity_and_field() {
    let (vault, sealed) = sealed();
    is_broken(vault.open(&sealed, &EncryptionContext::new("device", "dev_2"), "push_token"));
    is_broken(vault.open(&sealed, &EncryptionContext::new("devic", "edev_1"), "push_token"));
    is_broken(vault.open(&sealed, &EncryptionContext::new("session", "dev_1"), "push_token"));
    is_broken(vault.open(&sealed, &place(), "name"));
    let another = sealed.replace("clara", "dora").replace(":7:", ":8:");
    is_broken(vault.open(&another, &place(), "push_token"));
    // Also where two people have the same key, which they never do.
    let twins = self::vault(&[("clara", 7, [1; 32]), ("dora", 7, [1; 32])]);
    is_broken(twins.open(&sealed.replace("clara", "dora"), &place(), "push_token"));
}

#[test]
fn a_key_that_is_not_in_memory_is_asked_for() {
    let (_, sealed) = sealed();
    let empty = vault(&[]);
    let needs = |key| Err(Trouble::Needs(Need { person: clara(), key }));
    assert_eq!(empty.open(&sealed, &place(), "push_token"), needs(Some(7)));
    assert_eq!(empty.seal(&clara(), &place(), "x", b"").map(|_| None), needs(None));
    // The key in memory is older than the one it was sealed under: another node has made that.
    let behind = vault(&[("clara", 6, [1; 32])]);
    assert_eq!(behind.open(&sealed, &place(), "push_token"), needs(Some(7)));
}

#[test]
fn what_an_erased_key_sealed_is_erased_and_no_error() {
    let (_, sealed) = sealed();
    let after = vault(&[("clara", 9, [3; 32])]);
    assert_eq!(after.open(&sealed, &place(), "push_token"), Ok(None));
    let gone = vault(&[]);
    gone.known.insert(clara(), Known { key: None, up_to: 7 });
    assert_eq!(gone.open(&sealed, &place(), "push_token"), Ok(None));
}

#[test]
fn a_key_is_unwrapped_by_its_master_and_for_its_person_only() {
    let master = Master::parse(&"0a".repeat(32)).unwrap();
    let wrapped = master.wrap("clara", &[5; 32]);
    assert_eq!(master.unwrap("clara", wrapped.clone()).unwrap().reveal(), &[5; 32]);
    assert!(master.unwrap("dora", wrapped.clone()).is_none());
    let other = Master::derived_from("a cookie");
    assert!(other.unwrap("clara", wrapped).is_none());
    assert_ne!(other.id(), master.id());
    assert_eq!(other, Master::derived_from("a cookie"));
    assert!(!format!("{master:?}").contains("0a0a") && !format!("{master:?}").contains("10, 10"));
}

#[test]
fn a_master_key_is_64_digits_and_its_file_is_the_owners() {
    use std::os::unix::fs::PermissionsExt;
    for wrong in ["", "0a", &"0g".repeat(32), &"0a".repeat(33)] {
        assert!(Master::parse(wrong).is_err(), "{wrong}");
    }
    let folder = std::env::temp_dir().join(format!("proxie-vault-{}", std::process::id()));
    let path = folder.join("deep/vault.key");
    Master::create(&path).unwrap();
    let master = Master::read(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    Master::create(&path).unwrap();
    assert_eq!(Master::read(&path).unwrap(), master, "a key that is there stays");
    std::fs::remove_dir_all(folder).unwrap();
}

proptest! {
    #[test]
    fn whatever_is_sealed_comes_back(
        plain in proptest::collection::vec(any::<u8>(), 0..2_000),
        person in "[A-Za-z0-9_:-]{1,64}",
        kind in "\\PC{0,20}", key in "\\PC{0,40}", field in "\\PC{0,20}",
    ) {
        let vault = vault(&[(&person, 3, [9; 32])]);
        let place = EncryptionContext::new(&kind, &key);
        let sealed = vault.seal(&person.as_str().into(), &place, &field, &plain).unwrap();
        prop_assert_eq!(vault.open(&sealed, &place, &field).unwrap().unwrap(), plain);
    }
}
