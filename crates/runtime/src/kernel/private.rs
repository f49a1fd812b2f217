//! Private values: data about a person, which is only ever written encrypted under that person's own key.
//!
//! `decide` and `evolve` see a [`Private`] in the plain. What it becomes when it is serialised depends on where: the
//! store's side enters [`sealed`], where it becomes ciphertext, and whatever leaves this process's memory by another
//! way of ours enters [`plain`]. Anywhere else it refuses, so a forgotten path is an error and not a leak.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The kind of entity whose keys are people: all that is sent to it, or published by it, is private to that person.
pub const INBOX: &str = "user";

/// The name of a private field. Its ciphertext is bound to the name, so the name never changes.
pub trait Field {
    const NAME: &'static str;
}

/// A value that concerns a person.
pub struct Private<T, F> {
    /// `None`: it was read where it had not been sealed, and nobody has said yet whose it is.
    of: Option<Arc<str>>,
    /// `None`: the person's key is gone, and the value with it.
    value: Option<T>,
    field: PhantomData<fn() -> F>,
}

impl<T, F> Private<T, F> {
    pub fn new(person: &str, value: T) -> Self {
        Self { of: Some(person.into()), value: Some(value), field: PhantomData }
    }

    /// What was read in the plain, from a journal of before or in a command, belongs to this person from now on.
    pub fn belonging_to(mut self, person: &str) -> Self {
        self.of.get_or_insert_with(|| person.into());
        self
    }

    /// The value. `None`: it was erased.
    pub fn reveal(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// The converted value, of the same person.
    pub fn map(self, to: impl FnOnce(T) -> T) -> Self {
        Self { of: self.of, value: self.value.map(to), field: PhantomData }
    }

    pub fn is_erased(&self) -> bool {
        self.value.is_none()
    }

    fn unowned(value: T) -> Self {
        Self { of: None, value: Some(value), field: PhantomData }
    }

    fn erased(person: &str) -> Self {
        Self { of: Some(person.into()), value: None, field: PhantomData }
    }
}

impl<T: Clone, F> Clone for Private<T, F> {
    fn clone(&self) -> Self {
        Self { of: self.of.clone(), value: self.value.clone(), field: PhantomData }
    }
}

impl<T: PartialEq, F> PartialEq for Private<T, F> {
    fn eq(&self, other: &Self) -> bool {
        self.of == other.of && self.value == other.value
    }
}

impl<T: Eq, F> Eq for Private<T, F> {}

/// Omits the value, since debug output ends up in logs.
impl<T, F> Debug for Private<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.value.is_some() { "(private)" } else { "(erased)" })
    }
}

/// The entity that wrote a ciphertext, to which the ciphertext is bound besides the person and the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionContext {
    pub kind: Arc<str>,
    pub key: Arc<str>,
}

impl EncryptionContext {
    pub fn new(kind: &str, key: &str) -> Self {
        Self { kind: kind.into(), key: key.into() }
    }
}

/// A person's key that is not in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub person: Arc<str>,
    /// The number of the key that something was sealed under; `None`: the one to seal with, which may have to be made.
    pub key: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Once the key has been fetched, the same may be tried again.
    #[error("the key of {} is not in memory", .0.person)]
    Needs(Need),
    /// Nobody knows what it was, or somebody has changed or moved it.
    #[error("{0}")]
    Broken(String),
}

/// Seals and opens under the keys that are in memory.
pub trait Cipher: Send + Sync {
    /// The text begins with [`SEALED`].
    fn seal(
        &self,
        person: &Arc<str>,
        place: &EncryptionContext,
        field: &str,
        plain: &[u8],
    ) -> Result<String, Trouble>;

    /// `None`: the person's key is gone.
    fn open(
        &self,
        sealed: &str,
        place: &EncryptionContext,
        field: &str,
    ) -> Result<Option<Vec<u8>>, Trouble>;

    /// False: what is written is not sealed yet, since a release that could not read it may still be there.
    fn seals(&self) -> bool;
}

/// The name of the type in the shape of a snapshot.
const NAME: &str = "Private";
const MARK: &str = "sealed:";
/// Begins a sealed text: `sealed:1:KEY:CIPHERTEXT:PERSON`.
pub const SEALED: &str = "sealed:1:";
/// Begins what is left of a value: `sealed:2:PERSON`.
const ERASED: &str = "sealed:2:";
/// Begins a value in the plain, whose it is and what, as JSON: where its own form cannot be told from a sealed one.
const PLAIN: &str = "sealed:3:";

enum Scope {
    /// Serialises in the plain, and records whose values there were.
    Plain {
        of: Option<Arc<str>>,
    },
    Sealed {
        cipher: Arc<dyn Cipher>,
        place: EncryptionContext,
        trouble: Option<Trouble>,
    },
    /// Leaves sealed values sealed, and reads them as erased.
    Shut,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// A guard that leaves the scope when dropped, also by a panic.
struct Entered(Option<Scope>);

fn enter(scope: Scope) -> Entered {
    Entered(SCOPE.replace(Some(scope)))
}

impl Entered {
    fn leave(mut self) -> Option<Scope> {
        let before = self.0.take();
        let scope = SCOPE.replace(before);
        std::mem::forget(self);
        scope
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        SCOPE.set(self.0.take());
    }
}

/// Serialises private values in the plain: for commands on their way, and what only stays in memory. Returns whose they
/// were, where there were any. Values of two people do not go into one body: the second refuses.
pub fn plain<R>(serialise: impl FnOnce() -> R) -> (R, Option<Arc<str>>) {
    let entered = enter(Scope::Plain { of: None });
    let result = serialise();
    match entered.leave() {
        Some(Scope::Plain { of }) => (result, of),
        _ => (result, None),
    }
}

/// Seals and opens private values at this place. Where that fails, `work` goes on with values that say they were erased,
/// so that nobody who cannot fail has to, and its result is dropped.
pub fn sealed<R, E: fmt::Display>(
    cipher: &Arc<dyn Cipher>,
    place: &EncryptionContext,
    work: impl FnOnce() -> Result<R, E>,
) -> Result<R, Trouble> {
    let scope = Scope::Sealed { cipher: cipher.clone(), place: place.clone(), trouble: None };
    let entered = enter(scope);
    let result = work();
    match entered.leave() {
        Some(Scope::Sealed { trouble: Some(trouble), .. }) => Err(trouble),
        _ => result.map_err(|error| Trouble::Broken(error.to_string())),
    }
}

/// Reads sealed values as if they were erased, and shows nothing: for code that has no keys, or must not use them.
pub fn shut<R>(work: impl FnOnce() -> R) -> R {
    let entered = enter(Scope::Shut);
    let result = work();
    entered.leave();
    result
}

/// A whole text that concerns a person, as the store holds it: JSON for releases of before, and with a space in front
/// that no JSON of ours has, so that nobody can write one.
pub fn seal_text(
    cipher: &dyn Cipher,
    person: &Arc<str>,
    place: &EncryptionContext,
    field: &str,
    text: &str,
) -> Result<String, Trouble> {
    if !cipher.seals() {
        return Ok(text.to_owned());
    }
    let sealed = cipher.seal(person, place, field, text.as_bytes())?;
    Ok([" \"", &sealed, "\""].concat())
}

/// What [`seal_text`] has made, or has not. `None`: the text is not sealed.
pub fn sealed_text(text: &str) -> Option<&str> {
    text.strip_prefix(" \"")?.strip_suffix('"').filter(|sealed| sealed.starts_with(SEALED))
}

const OUTSIDE: &str = "a private value is not written outside of the vault";

impl<T: Serialize, F: Field> Serialize for Private<T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// What to do once the scope is no longer borrowed.
        enum Way {
            Plain,
            Shut,
            Seal(Arc<dyn Cipher>, EncryptionContext, Arc<str>),
        }
        let way = SCOPE.with_borrow_mut(|scope| match (scope, &self.of) {
            (None, _) => Err(OUTSIDE),
            (Some(Scope::Shut), _) => Ok(Way::Shut),
            (Some(Scope::Plain { of }), Some(mine)) => match of {
                Some(other) if other != mine => Err("one body holds private values of two people"),
                _ => {
                    *of = Some(mine.clone());
                    Ok(Way::Plain)
                }
            },
            (Some(Scope::Plain { .. }), None) => Ok(Way::Plain),
            (Some(Scope::Sealed { .. }), None) => Err("nobody has said whose a private value is"),
            (Some(Scope::Sealed { cipher, place, .. }), Some(person)) => Ok(match cipher.seals() {
                true => Way::Seal(cipher.clone(), place.clone(), person.clone()),
                false => Way::Plain,
            }),
        });
        let way = way.map_err(S::Error::custom)?;
        if let Way::Shut = way {
            return serializer.serialize_str("(private)");
        }
        let Some(value) = &self.value else {
            let person = self.of.as_deref().unwrap_or_default();
            return write(serializer, &[ERASED, person].concat());
        };
        let json = serde_json::to_string(value).map_err(S::Error::custom)?;
        match way {
            Way::Seal(cipher, place, person) => {
                match cipher.seal(&person, &place, F::NAME, json.as_bytes()) {
                    Ok(sealed) => write(serializer, &sealed),
                    Err(trouble) => {
                        note(trouble);
                        write(serializer, &[ERASED, &*person].concat())
                    }
                }
            }
            Way::Plain if serializer.is_human_readable() && !json[1..].starts_with(MARK) => {
                value.serialize(serializer)
            }
            Way::Plain | Way::Shut => {
                let parts = serde_json::to_string(&(&self.of, value)).map_err(S::Error::custom)?;
                write(serializer, &[PLAIN, &parts].concat())
            }
        }
    }
}

fn write<S: Serializer>(serializer: S, text: &str) -> Result<S::Ok, S::Error> {
    match serializer.is_human_readable() {
        true => serializer.serialize_str(text),
        false => serializer.serialize_newtype_struct(NAME, text),
    }
}

/// For [`sealed`]. The first counts.
fn note(trouble: Trouble) {
    SCOPE.with_borrow_mut(|scope| {
        if let Some(Scope::Sealed { trouble: noted, .. }) = scope {
            noted.get_or_insert(trouble);
        }
    });
}

impl<'de, T: DeserializeOwned, F: Field> Deserialize<'de> for Private<T, F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = if deserializer.is_human_readable() {
            match Value::deserialize(deserializer)? {
                Value::String(text) if text.starts_with(MARK) => text,
                value => {
                    return serde_json::from_value(value)
                        .map(Self::unowned)
                        .map_err(D::Error::custom);
                }
            }
        } else {
            return deserializer.deserialize_newtype_struct(NAME, Text(PhantomData));
        };
        Self::read(&text).map_err(D::Error::custom)
    }
}

/// Reads a value as snapshots have it: a text, under a name of its own.
struct Text<T, F>(PhantomData<fn() -> (T, F)>);

impl<'de, T: DeserializeOwned, F: Field> Visitor<'de> for Text<T, F> {
    type Value = Private<T, F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a private value")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        inner.deserialize_str(self)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Private::read(text).map_err(E::custom)
    }
}

/// In a table and in a document its schema is that of the value it holds.
impl<T: JsonSchema, F> JsonSchema for Private<T, F> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: DeserializeOwned, F: Field> Private<T, F> {
    fn read(text: &str) -> Result<Self, String> {
        let parsed = |json: &[u8]| serde_json::from_slice::<T>(json).map_err(|e| e.to_string());
        if let Some(parts) = text.strip_prefix(PLAIN) {
            let (of, value) = serde_json::from_str(parts).map_err(|e| e.to_string())?;
            return Ok(Self { of, value: Some(value), field: PhantomData });
        }
        if let Some(person) = text.strip_prefix(ERASED) {
            return Ok(Self::erased(person));
        }
        let person = person_of(text).ok_or("neither a sealed value nor a plain one")?;
        let way = SCOPE.with_borrow(|scope| match scope {
            None | Some(Scope::Plain { .. }) => Err(OUTSIDE),
            Some(Scope::Shut) => Ok(None),
            Some(Scope::Sealed { cipher, place, .. }) => Ok(Some((cipher.clone(), place.clone()))),
        });
        let Some((cipher, place)) = way? else { return Ok(Self::erased(person)) };
        match cipher.open(text, &place, F::NAME) {
            Ok(Some(json)) => Ok(Self::new(person, parsed(&json)?)),
            Ok(None) => Ok(Self::erased(person)),
            Err(trouble) => {
                note(trouble);
                Ok(Self::erased(person))
            }
        }
    }
}

/// The person for whom a text was sealed.
pub fn person_of(sealed: &str) -> Option<&str> {
    sealed.strip_prefix(SEALED)?.splitn(3, ':').nth(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::codec::{decode, encode};

    enum Note {}
    impl Field for Note {
        const NAME: &'static str = "note";
    }
    type Text = super::Private<String, Note>;

    /// "Seals" readably: what is tried here is where values go, not how they are hidden.
    struct Readable;

    impl Cipher for Readable {
        fn seal(
            &self,
            person: &Arc<str>,
            _: &EncryptionContext,
            _: &str,
            plain: &[u8],
        ) -> Result<String, Trouble> {
            match &**person {
                "nobody" => Err(Trouble::Needs(Need { person: person.clone(), key: None })),
                _ => Ok(format!(
                    "{SEALED}1:{}:{person}",
                    String::from_utf8_lossy(plain).replace(':', ".")
                )),
            }
        }

        fn open(
            &self,
            sealed: &str,
            _: &EncryptionContext,
            _: &str,
        ) -> Result<Option<Vec<u8>>, Trouble> {
            let plain = sealed.split(':').nth(3).unwrap();
            Ok((person_of(sealed) != Some("erased")).then(|| plain.as_bytes().to_vec()))
        }

        fn seals(&self) -> bool {
            true
        }
    }

    fn here<R>(work: impl FnOnce() -> Result<R, serde_json::Error>) -> Result<R, Trouble> {
        let cipher: Arc<dyn Cipher> = Arc::new(Readable);
        sealed(&cipher, &EncryptionContext::new("note", "n1"), work)
    }

    #[test]
    fn outside_of_the_vault_it_refuses() {
        let secret = Text::new("clara", "my diary".into());
        let refused = serde_json::to_string(&secret).unwrap_err().to_string();
        assert_eq!(refused, OUTSIDE);
        let sealed = here(|| serde_json::to_string(&secret)).unwrap();
        assert!(serde_json::from_str::<Text>(&sealed).is_err());
        // Whatever happened inside, outside is outside again.
        let panicked = std::panic::catch_unwind(|| plain(|| panic!("in the middle")));
        assert!(panicked.is_err());
        assert!(serde_json::to_string(&secret).is_err());
    }

    #[test]
    fn it_is_not_shown() {
        assert_eq!(format!("{:?}", Text::new("clara", "my diary".into())), "(private)");
    }

    #[test]
    fn a_value_comes_back_as_it_was_from_events_and_snapshots() {
        for text in ["", "my diary", "sealed:1:1:x:mallory", "sealed:2:mallory", "sealed:3:\"x\""] {
            let value = Text::new("clara", text.replace(':', "."));
            let event = here(|| serde_json::to_string(&value)).unwrap();
            assert!(event.starts_with("\"sealed:1:"), "{event}");
            assert_eq!(here(|| serde_json::from_str::<Text>(&event)).unwrap(), value);
            let snapshot = here(|| Ok(encode(&value))).unwrap();
            assert_eq!(here(|| Ok(decode::<Text>(&snapshot).unwrap())).unwrap(), value);
            // On its way, and from a journal of before, it is a text like others; nobody passes theirs off as a sealed one.
            let value = Text::new("clara", text.into());
            let (on_its_way, of) = plain(|| serde_json::to_string(&value).unwrap());
            assert_eq!(of.as_deref(), Some("clara"));
            let read: Text = serde_json::from_str(&on_its_way).unwrap();
            assert_eq!(read.reveal(), value.reveal());
            assert_eq!(read.belonging_to("clara"), value);
        }
    }

    #[test]
    fn what_was_erased_says_so_and_stays_so() {
        let erased = format!("\"{SEALED}1:x:erased\"");
        let read = here(|| serde_json::from_str::<Text>(&erased)).unwrap();
        assert!(read.is_erased());
        assert_eq!(read.reveal(), None);
        let again = here(|| Ok(encode(&read))).unwrap();
        assert_eq!(here(|| Ok(decode::<Text>(&again).unwrap())).unwrap(), read);
        assert!(
            shut(|| serde_json::from_str::<Text>(&format!("\"{SEALED}1:x:clara\"")))
                .unwrap()
                .is_erased()
        );
    }

    #[test]
    fn a_missing_key_is_told_and_nothing_is_written() {
        let value = Text::new("nobody", "my diary".into());
        let trouble = here(|| serde_json::to_string(&value)).unwrap_err();
        assert_eq!(trouble, Trouble::Needs(Need { person: "nobody".into(), key: None }));
    }

    #[test]
    fn a_value_of_nobody_is_not_written() {
        let read: Text = serde_json::from_str("\"of before\"").unwrap();
        assert!(matches!(here(|| serde_json::to_string(&read)), Err(Trouble::Broken(_))));
        assert!(here(|| serde_json::to_string(&read.belonging_to("clara"))).is_ok());
    }

    #[test]
    fn two_people_are_not_in_one_body() {
        let body = [Text::new("clara", "a".into()), Text::new("dora", "b".into())];
        assert!(plain(|| serde_json::to_string(&body)).0.is_err());
    }

    #[test]
    fn a_whole_text_is_json_that_nobody_can_send() {
        let place = EncryptionContext::new("user", "clara");
        let text = seal_text(&Readable, &"clara".into(), &place, "x", "{}").unwrap();
        assert!(sealed_text(&text).is_some_and(|sealed| person_of(sealed) == Some("clara")));
        let sent: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(sealed_text(&sent.to_string()), None);
    }
}
