//! A voucher: issued once, redeemed once.

use proxie::kernel::clock::Timestamp;
use proxie::kernel::entity::{self, Announcement, DecideCx, Decided, Decision, Effect, Entity};
use proxie::kernel::error::ErrorCode;
use proxie::kernel::view::{Listed, View, ViewRow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Voucher;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Issue { gift: String },
    Redeem,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Issued { owner_id: String, gift: String, at: Timestamp },
    Redeemed { at: Timestamp },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub owner_id: Option<String>,
    pub gift: String,
    pub issued_at: Option<Timestamp>,
    pub redeemed_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such voucher")]
    NotFound,
    #[error("the voucher was redeemed before")]
    AlreadyRedeemed,
}

impl entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::AlreadyRedeemed => ErrorCode::Conflict,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "voucher_not_found",
            Self::AlreadyRedeemed => "already_redeemed",
        }
    }
}

/// A voucher as everybody sees it: the reply, the publication and the row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Voucher")]
pub struct VoucherView {
    pub id: String,
    pub owner_id: String,
    pub gift: String,
    pub issued_at: Timestamp,
    pub redeemed_at: Option<Timestamp>,
}

impl VoucherView {
    /// `None`: nobody has issued it.
    fn of(id: &str, state: &State) -> Option<Self> {
        Some(Self {
            id: id.into(),
            owner_id: state.owner_id.clone()?,
            gift: state.gift.clone(),
            issued_at: state.issued_at?,
            redeemed_at: state.redeemed_at,
        })
    }
}

impl View for VoucherView {
    const NAME: &'static str = "vouchers";
    const LISTED: Option<Listed> = Listed::by("owner_id", "issued_at");
}

impl Announcement for VoucherView {
    const EVENT: &'static str = "voucher:redeemed";
    const SUMMARY: &'static str = "A voucher was redeemed";
    const TOPICS: &'static [&'static str] = &["voucher"];
}

impl Entity for Voucher {
    const KIND: &'static str = "voucher";
    const GOLDEN: &'static str = include_str!("golden/voucher.jsonl");
    const HAS_TOPIC: bool = true;
    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = VoucherView;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let event = match (&state.owner_id, command) {
            (None, Command::Issue { gift }) => {
                let owner_id = cx.caller.user_id().ok_or(Rejection::NotFound)?.into();
                Event::Issued { owner_id, gift, at: cx.now }
            }
            (None, _) => return Err(Rejection::NotFound),
            (Some(owner), _) if !cx.caller.may_act_for(owner, "voucher") => {
                return Err(Rejection::NotFound);
            }
            (Some(_), Command::Redeem) if state.redeemed_at.is_some() => {
                return Err(Rejection::AlreadyRedeemed);
            }
            (Some(_), Command::Redeem) => Event::Redeemed { at: cx.now },
            (Some(_), Command::Issue { .. }) => {
                let shown = VoucherView::of(cx.key, state).ok_or(Rejection::NotFound)?;
                return Ok(Decision::reply(shown));
            }
        };
        let mut next = state.clone();
        Self::evolve(&mut next, &event);
        let shown = VoucherView::of(cx.key, &next).ok_or(Rejection::NotFound)?;
        let announced = next.redeemed_at.map(|_| Effect::announce(&shown));
        Ok(Decision::reply(shown).event(event).effects(announced))
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Issued { owner_id, gift, at } => {
                state.owner_id = Some(owner_id.clone());
                state.gift.clone_from(gift);
                state.issued_at = Some(*at);
            }
            Event::Redeemed { at } => state.redeemed_at = Some(*at),
        }
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let shown = VoucherView::of(key, state).filter(|_| !events.is_empty());
        shown.iter().map(ViewRow::of).collect()
    }
}
