//! What clients send. Every field is optional to the parser, so that all wrong ones are told at once; what is needed
//! is checked by the command. Unknown fields are ignored.

#![allow(
    dead_code,
    reason = "the marketplace's types are only described here, for the OpenAPI document"
)]

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::contract::problem::{FieldError, Outcome, Problem};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::service::Service;

/// Either a sentence, or the fields.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct CreateRequest {
    /// What is needed, where, when and for how much, in one sentence. With it only `time_zone` counts.
    pub text: Option<String>,
    /// IANA name; what "tomorrow at 5 pm" means. Default: the place's, or UTC.
    pub time_zone: Option<String>,
    #[schema(value_type = Option<String>, example = "haircut")]
    pub service: Option<Service>,
    pub details: Option<String>,
    pub place: Option<PlaceBody>,
    /// An exact time; or else `earliest` and `latest`.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub starts_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub earliest: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub latest: Option<Timestamp>,
    #[schema(value_type = Option<super::http::schemas::Money>)]
    pub budget: Option<Money>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PlaceBody {
    /// A place that the gazetteer knows: "Alexanderplatz, Berlin".
    Name(String),
    Point(PointBody),
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct PointBody {
    pub latitude: f64,
    pub longitude: f64,
    pub name: Option<String>,
    pub city: Option<String>,
    pub country: Option<String>,
    pub time_zone: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Cancel {
    pub reason: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Review {
    /// 1 to 5 stars.
    pub rating: Option<u8>,
    pub comment: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct OpenSession {
    pub session_id: Option<String>,
    /// IANA name. Default: what the session had, or UTC.
    pub time_zone: Option<String>,
    /// BCP 47. Its region says which of day and month comes first in 3/12; a language alone leaves that to the place.
    pub locale: Option<String>,
    /// What amounts without a currency mean. Default: what the session had, or the currency of the place.
    pub currency: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct SendMessage {
    pub content: Option<String>,
    /// Addresses of pictures and the like.
    pub media: Option<Vec<String>>,
}

/// Parses a body, naming every field that has the wrong form. `T`'s fields are all optional.
pub fn parse<T: DeserializeOwned>(body: &Value) -> Outcome<T> {
    let fields = object(body)?;
    match T::deserialize(body) {
        Ok(parsed) => Ok(parsed),
        Err(whole) => {
            // Each field alone: whichever does not parse by itself is wrong.
            let errors: Vec<FieldError> = fields
                .iter()
                .filter_map(|(name, value)| {
                    let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
                    let error = T::deserialize(&alone).err()?;
                    Some(FieldError::new(pointer(name), error.to_string()))
                })
                .collect();
            Err(if errors.is_empty() {
                Problem::field("", whole.to_string())
            } else {
                Problem::fields(errors)
            })
        }
    }
}

pub fn object(body: &Value) -> Outcome<&Map<String, Value>> {
    body.as_object().ok_or_else(|| Problem::field("", "must be a JSON object"))
}

/// A required string.
pub fn text<'a>(body: &'a Value, name: &str) -> Outcome<&'a str> {
    match body.get(name) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(Problem::field(&pointer(name), "is required")),
        Some(_) => Err(Problem::field(&pointer(name), "must be a string")),
    }
}

pub fn optional_text<'a>(body: &'a Value, name: &str) -> Outcome<Option<&'a str>> {
    if body.get(name).is_none_or(Value::is_null) { Ok(None) } else { text(body, name).map(Some) }
}

/// RFC 6901.
pub fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Wrong ones that are named in one answer.
const MAX_ERRORS: usize = 16;

/// A list of a body; `check` says which field of one is wrong, and how.
pub fn list<T: DeserializeOwned>(
    body: &Value,
    field: &str,
    max: usize,
    check: impl Fn(&T) -> Result<(), (&'static str, &'static str)>,
) -> Outcome<Vec<T>> {
    let given = body.get(field).and_then(Value::as_array).filter(|given| given.len() <= max);
    let given = given.ok_or_else(|| {
        Problem::field(&format!("/{field}"), format!("must be a list of at most {max}"))
    })?;
    let (mut items, mut errors) = (Vec::with_capacity(given.len()), Vec::new());
    for (n, given) in given.iter().enumerate() {
        let at = format!("/{field}/{n}");
        match T::deserialize(given) {
            Err(error) => errors.push(FieldError::new(at, error.to_string())),
            Ok(item) => match check(&item) {
                Err((of, message)) => errors.push(FieldError::new(format!("{at}/{of}"), message)),
                Ok(()) => items.push(item),
            },
        }
        if errors.len() >= MAX_ERRORS {
            break;
        }
    }
    if errors.is_empty() { Ok(items) } else { Err(Problem::fields(errors)) }
}
