//! A person's answers of models, where all nodes find them.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::ai::SharedAnswers;
use crate::persistence::shared::SealedCache;

const SORT: &str = "answer";

pub struct PersonsAnswers<'a>(pub &'a SealedCache);

impl SharedAnswers for PersonsAnswers<'_> {
    fn erasures(&self) -> u64 {
        self.0.erasures()
    }

    fn get<'a>(&'a self, person: &'a str, hash: &'a [u8; 32]) -> BoxFuture<'a, Option<Vec<u8>>> {
        self.0.get(SORT, person, hash).boxed()
    }

    fn put<'a>(
        &'a self,
        person: &'a str,
        hash: &'a [u8; 32],
        answer: Vec<u8>,
        keep: Duration,
    ) -> BoxFuture<'a, ()> {
        async move { self.0.put(SORT, person, hash, &answer, keep).await }.boxed()
    }
}
