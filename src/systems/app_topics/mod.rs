//! Application topics: what clients publish to each other, where configuration grants it.

pub mod domain;
