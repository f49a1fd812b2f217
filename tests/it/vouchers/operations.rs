//! What can be asked of vouchers.

use proxie::contract::call::known_id;
use proxie::contract::list::{Page, Paging};
use proxie::contract::topic::Topic;
use proxie::contract::{Call, FieldError, Meta, Operation, Outcome, Problem};
use schemars::JsonSchema;
use serde::Deserialize;

use super::voucher::{Command, Voucher, VoucherView};

#[derive(Debug, Deserialize, JsonSchema)]
pub struct IssueVoucher {
    /// What it is good for
    #[schemars(length(min = 1, max = 100))]
    gift: String,
}

/// Makes a voucher of the caller.
pub struct Issue;

impl Operation for Issue {
    const META: Meta = Meta::command("voucher.issue", "Issue a voucher")
        .post("/v1/vouchers")
        .creates("/v1/vouchers/");
    type Input = IssueVoucher;
    type Answer = VoucherView;

    async fn run(call: &Call, IssueVoucher { gift }: IssueVoucher) -> Outcome<VoucherView> {
        if gift.is_empty() || gift.chars().count() > 100 {
            let wrong = FieldError::new("/gift", "must have 1 to 100 characters");
            return Err(Problem::fields(vec![wrong]));
        }
        let id = call.new_id("vch");
        call.ask::<Voucher>(&id, Command::Issue { gift }, call.meta()).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct VoucherId {
    voucher_id: String,
}

/// Redeems a voucher of the caller, once.
pub struct Redeem;

impl Operation for Redeem {
    const META: Meta = Meta::command("voucher.redeem", "Redeem a voucher")
        .post("/v1/vouchers/{voucher_id}/redeem");
    type Input = VoucherId;
    type Answer = VoucherView;

    async fn run(call: &Call, VoucherId { voucher_id }: VoucherId) -> Outcome<VoucherView> {
        let id = known_id(&voucher_id, "voucher")?;
        call.ask::<Voucher>(id, Command::Redeem, call.meta()).await
    }
}

/// The caller's vouchers.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("voucher.list", "Your vouchers, newest first").get("/v1/vouchers");
    type Input = Paging;
    type Answer = Page<VoucherView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<VoucherView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

/// One voucher, for its owner.
pub struct OneVoucher;

impl Topic for OneVoucher {
    const KIND: &'static str = "voucher";
    const SUMMARY: &'static str = "What happens to a voucher";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        call.own::<VoucherView>(key, "voucher").await.map(drop)
    }
}
