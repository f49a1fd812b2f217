//! The shape of a type as bincode sees it: the order, names and types of all fields, and every variant of every enum.
//!
//! The shape comes from the types alone. A deserializer without input answers each question of a type's `Deserialize`
//! with an invented value and records the question. An enum is read again until all its variants have occurred.

use std::collections::HashMap;
use std::fmt::{self, Write};

use serde::de::value::U32Deserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::kernel::ids::stable_hash;

/// The greatest depth; a deeper type counts as endless.
const MAX_DEPTH: usize = 96;
/// The greatest number of rounds, many times that of the largest state.
const MAX_ROUNDS: usize = 20_000;
/// Sample texts, one of which a type can read: an empty one, moments, a date, a time, ids of both sorts, a number, a
/// zone, a currency, an erased private value.
const TEXTS: [&str; 11] = [
    "",
    "2027-01-01T00:00:00Z",
    "2027-01-01T00:00:00",
    "2027-01-01",
    "12:00:00",
    "00000000-0000-0000-0000-000000000001",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "1",
    "UTC",
    "EUR",
    "sealed:2:",
];
const NUMBERS: [u8; 2] = [0, 1];

/// The words of the shape. An error: a type refuses every sample, or asks a question that bincode cannot answer either.
pub fn shape<'de, T: Deserialize<'de>>() -> Result<String, String> {
    let mut tracer = Tracer::default();
    for round in 0..MAX_ROUNDS {
        (tracer.words, tracer.round, tracer.asked, tracer.depth) = (String::new(), round, 0, 0);
        tracer.chosen.clear();
        tracer.inside.clear();
        match T::deserialize(&mut tracer) {
            Ok(_) => {
                let words = std::mem::take(&mut tracer.words);
                let known = tracer.shape.len();
                tracer.shape.push_str(&words);
                let new = tracer.chosen.iter().filter(|(of, n)| {
                    let seen = tracer.seen.get_mut(of).map(|seen| &mut seen[*n as usize]);
                    seen.is_some_and(|seen| !std::mem::replace(seen, true))
                });
                // A round that reveals nothing new is not a part of the shape.
                if new.count() == 0 && known > 0 {
                    tracer.shape.truncate(known);
                }
                if tracer.seen.values().flatten().all(|seen| *seen) {
                    return Ok(tracer.shape);
                }
            }
            // The last answer was refused: the next one is tried, if there is one.
            Err(Wrong(why)) => match tracer.last.and_then(|last| tracer.answers.get_mut(last)) {
                Some(answer) if *answer + 1 < TEXTS.len() => *answer += 1,
                _ => return Err(format!("{}: {why}", std::any::type_name::<T>())),
            },
        }
    }
    Err(format!("{} has no end", std::any::type_name::<T>()))
}

/// The names of an enum's variants; empty for other types.
pub fn variants<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
    let mut tracer = Tracer::default();
    // The result does not matter: an enum names its variants before anything can fail.
    let _ = T::deserialize(&mut tracer);
    let outermost = tracer.chosen.first().map(|((_, variants), _)| variants.to_vec());
    outermost.unwrap_or_default()
}

#[derive(Default)]
struct Tracer {
    /// The words of all rounds.
    shape: String,
    /// The words of this round.
    words: String,
    round: usize,
    asked: u64,
    depth: usize,
    /// Structs and enums that are being read, from the outermost.
    inside: Vec<&'static str>,
    /// The variants that have occurred, by the names of the enum and of its variants.
    seen: HashMap<(&'static str, &'static [&'static str]), Vec<bool>>,
    chosen: Vec<((&'static str, &'static [&'static str]), u32)>,
    /// The index of the answer for each asking type.
    answers: HashMap<&'static str, usize>,
    last: Option<&'static str>,
}

#[derive(Debug)]
struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self(why.to_string())
    }
}

impl Tracer {
    fn say(&mut self, word: impl fmt::Display) {
        let _ = write!(self.words, "{word} ");
    }

    /// The index of the answer that `V` gets.
    fn answer<V>(&mut self) -> usize {
        let who = std::any::type_name::<V>();
        self.last = Some(who);
        *self.answers.entry(who).or_default()
    }

    /// Whether the innermost type contains itself. Whatever may be empty inside it then is, so that the reading ends.
    fn holds_itself(&self) -> bool {
        self.inside.split_last().is_some_and(|(last, outer)| outer.contains(last))
    }

    fn deeper<T>(
        &mut self,
        name: Option<&'static str>,
        visit: impl FnOnce(&mut Self) -> Result<T, Wrong>,
    ) -> Result<T, Wrong> {
        if self.depth > MAX_DEPTH {
            self.last = None;
            return Err(Wrong("it holds itself without end".into()));
        }
        self.depth += 1;
        self.inside.extend(name);
        let visited = visit(self);
        if name.is_some() {
            self.inside.pop();
        }
        self.depth -= 1;
        self.say("end");
        visited
    }

    fn parts<T>(
        &mut self,
        name: Option<&'static str>,
        left: usize,
        visit: impl FnOnce(&mut Parts<'_>) -> Result<T, Wrong>,
    ) -> Result<T, Wrong> {
        self.deeper(name, |tracer| visit(&mut Parts { tracer, left }))
    }

    fn choose(&mut self, name: &'static str, variants: &'static [&'static str]) -> u32 {
        self.asked += 1;
        let of = (name, variants);
        let seen = self.seen.entry(of).or_insert_with(|| vec![false; variants.len()]);
        let here = |n: usize| self.chosen.contains(&(of, n as u32));
        let new = (0..variants.len()).find(|n| !seen[*n] && !here(*n));
        // Another variant follows: its content may have variants that have not occurred yet.
        let any = stable_hash(&[&self.round.to_le_bytes(), &self.asked.to_le_bytes()]);
        let any = any % variants.len().max(1) as u64;
        let chosen = new.map_or(any as u32, |n| n as u32);
        self.chosen.push((of, chosen));
        chosen
    }
}

macro_rules! numbers {
    ($($ask:ident $visit:ident $kind:ty;)*) => {$(
        fn $ask<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            self.say(stringify!($kind));
            let answer = self.answer::<V>() % NUMBERS.len();
            visitor.$visit(NUMBERS[answer].into())
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Tracer {
    type Error = Wrong;

    numbers! {
        deserialize_i8 visit_i16 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_i128 visit_i128 i128;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_u128 visit_u128 u128;
        deserialize_f32 visit_f32 f32;
        deserialize_f64 visit_f64 f64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Wrong> {
        self.last = None;
        Err(Wrong("bincode does not say what comes".into()))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("bool");
        visitor.visit_bool(false)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("char");
        visitor.visit_char('a')
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("str");
        visitor.visit_borrowed_str(TEXTS[self.answer::<V>()])
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("bytes");
        visitor.visit_borrowed_bytes(&[])
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("option");
        match self.holds_itself() {
            true => visitor.visit_none(),
            false => self.deeper(None, |tracer| visitor.visit_some(tracer)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("unit");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.say(name);
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.say(name);
        self.deeper(Some(name), |tracer| visitor.visit_newtype_struct(tracer))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("list");
        let left = usize::from(!self.holds_itself());
        self.parts(None, left, |parts| visitor.visit_seq(parts))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Wrong> {
        self.say(format_args!("tuple {len}"));
        self.parts(None, len, |parts| visitor.visit_seq(parts))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.say(name);
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.say("map");
        let left = usize::from(!self.holds_itself());
        self.parts(None, left, |parts| visitor.visit_map(parts))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.say(format_args!("struct {name} {fields:?}"));
        self.parts(Some(name), fields.len(), |parts| visitor.visit_seq(parts))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let chosen = self.choose(name, variants);
        self.say(format_args!("enum {name} {variants:?} {chosen}"));
        self.parts(Some(name), chosen as usize, |parts| visitor.visit_enum(parts))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_any(visitor)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The content of a value: a number of parts, or the variant of this number.
struct Parts<'a> {
    tracer: &'a mut Tracer,
    left: usize,
}

impl<'de> SeqAccess<'de> for &mut Parts<'_> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Wrong> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.tracer).map(Some)
    }
}

impl<'de> MapAccess<'de> for &mut Parts<'_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        seed.deserialize(&mut *self.tracer)
    }
}

impl<'de> EnumAccess<'de> for &mut Parts<'_> {
    type Error = Wrong;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Wrong> {
        let variant: U32Deserializer<Wrong> = (self.left as u32).into_deserializer();
        Ok((seed.deserialize(variant)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Parts<'_> {
    type Error = Wrong;

    fn unit_variant(self) -> Result<(), Wrong> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Wrong> {
        self.tracer.say("of");
        seed.deserialize(&mut *self.tracer)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Wrong> {
        self.tracer.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.tracer.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;

    use super::*;

    /// States of two releases with the same names.
    macro_rules! releases {
        ($($release:ident { $($item:item)* })*) => {$(
            #[allow(dead_code)]
            mod $release {
                use super::*;
                $(#[derive(serde::Deserialize)] $item)*
            }
        )*};
    }

    releases! {
        before {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Open, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
        same {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Open, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
        one_more {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Open, Paused, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
        variants_reordered {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Expired, Open, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
        deep_inside {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Open, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: Option<String> } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
        retyped {
            pub struct State { status: Status, at: Option<Timestamp>, items: BTreeMap<String, Item> }
            pub enum Status { Open, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u64, inside: Vec<Item> }
        }
        reordered {
            pub struct State { at: Option<Timestamp>, status: Status, items: BTreeMap<String, Item> }
            pub enum Status { Open, Expired, Closed(Reason) }
            pub enum Reason { Done, Gone { why: String } }
            pub struct Item { n: u32, inside: Vec<Item> }
        }
    }

    #[test]
    fn a_shape_is_that_of_all_fields_and_variants() {
        let before = shape::<before::State>().unwrap();
        assert_eq!(before, shape::<same::State>().unwrap());
        let others = [
            shape::<one_more::State>(),
            shape::<variants_reordered::State>(),
            shape::<deep_inside::State>(),
            shape::<retyped::State>(),
            shape::<reordered::State>(),
        ];
        let all: BTreeSet<_> = others.into_iter().map(Result::unwrap).chain([before]).collect();
        assert_eq!(all.len(), 6, "{all:#?}");
    }

    #[test]
    fn what_has_no_shape_is_an_error() {
        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        struct Never(Box<Self>);
        assert!(shape::<Never>().is_err());
        assert!(shape::<serde_json::Value>().is_err());
        assert!(shape::<std::net::IpAddr>().is_ok(), "by position where nobody reads it");
    }
}
