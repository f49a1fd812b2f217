//! One durable topic is one entity.

pub mod app_topic;
