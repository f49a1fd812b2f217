//! Vouchers: the system that `docs/adding-a-system.md` builds, whose code is here so that the page stays true.

mod operations;
mod tests;
mod voucher;

use proxie::contract::System;
use proxie::contract::declare::{announcement, entity, operation, topic, view};
use proxie::systems::{agents, app_topics, devices, marketplace};

pub const SYSTEM: System = System {
    entities: &[entity::<voucher::Voucher>()],
    operations: &[
        operation::<operations::Issue>(),
        operation::<operations::Redeem>(),
        operation::<operations::List>(),
    ],
    topics: &[topic::<operations::OneVoucher>()],
    announcements: &[announcement::<voucher::VoucherView>()],
    views: &[view::<voucher::VoucherView>()],
    ..System::new("vouchers")
};

/// Every system, with this one: in the program itself it is one more line of `systems::ALL`.
pub const ALL: &[&System] =
    &[&marketplace::SYSTEM, &devices::SYSTEM, &app_topics::SYSTEM, &agents::SYSTEM, &SYSTEM];
