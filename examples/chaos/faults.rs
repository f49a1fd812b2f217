//! What is done to the world, by a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use super::world::World;

const MOST_NODES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a new start.
    Kill,
    /// SIGSTOP, for less or for more than the lease.
    Freeze,
    /// One node from all others.
    CutOff,
    /// Two nodes from each other; both reach the store and the others.
    CutPair,
    CutStore,
    /// The connections of a node's writers, in the middle of what they do.
    EndBackends,
    RestartStore,
    /// The leases as they look after the database's clock has jumped.
    ClockJump,
    /// SIGTERM, and a new start.
    Restart,
    Join,
    Leave,
}

const ALL: [(Fault, u32); 11] = [
    (Fault::Kill, 5),
    (Fault::Freeze, 5),
    (Fault::CutOff, 3),
    (Fault::CutPair, 3),
    (Fault::CutStore, 3),
    (Fault::EndBackends, 4),
    (Fault::RestartStore, 1),
    (Fault::ClockJump, 2),
    (Fault::Restart, 3),
    (Fault::Join, 2),
    (Fault::Leave, 2),
];

pub struct Faults {
    random: StdRng,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.random_range(from..to))
    }

    fn pick(&mut self) -> Fault {
        let all: u32 = ALL.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.random_range(0..all);
        for (fault, weight) in ALL {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        Fault::Kill
    }

    /// One fault, from its beginning to its end. What it leads to goes on after that.
    pub async fn one(&mut self, world: &mut World) -> anyhow::Result<Fault> {
        let fault = self.pick();
        let running = world.running();
        let n = running[self.random.random_range(0..running.len())];
        let others: Vec<usize> = running.iter().copied().filter(|other| *other != n).collect();
        match fault {
            Fault::Join if running.len() >= MOST_NODES => return Ok(fault),
            Fault::Leave if running.len() <= 1 => return Ok(fault),
            Fault::CutPair | Fault::CutOff if others.is_empty() => return Ok(fault),
            _ => {}
        }
        match fault {
            Fault::Kill => {
                world.kill(n);
                tokio::time::sleep(self.ms(0, 3_000)).await;
                world.launch(n)?;
            }
            Fault::Freeze => {
                let time = self.ms(200, 8_000);
                world.process(n).signal(Signal::STOP);
                tokio::time::sleep(time).await;
                world.process(n).signal(Signal::CONT);
            }
            Fault::CutOff => {
                let time = self.ms(500, 6_000);
                others.iter().for_each(|other| world.cut(n, *other, true));
                tokio::time::sleep(time).await;
                others.iter().for_each(|other| world.cut(n, *other, false));
            }
            Fault::CutPair => {
                let other = others[self.random.random_range(0..others.len())];
                let time = self.ms(500, 10_000);
                world.cut(n, other, true);
                tokio::time::sleep(time).await;
                world.cut(n, other, false);
            }
            Fault::CutStore => {
                let time = self.ms(200, 8_000);
                world.cut_store(n, true);
                tokio::time::sleep(time).await;
                world.cut_store(n, false);
            }
            Fault::EndBackends => {
                let pool = world.store.pool().await?;
                for _ in 0..self.random.random_range(1..8) {
                    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'proxie lane%' and random() < 0.6")
                        .execute(&pool)
                        .await?;
                    tokio::time::sleep(self.ms(5, 200)).await;
                }
                pool.close().await;
            }
            Fault::RestartStore => {
                let time = self.ms(0, 2_000);
                world.store.restart(time).await?;
            }
            Fault::ClockJump => {
                let seconds = self.random.random_range(-12_i32..12);
                let pool = world.store.pool().await?;
                sqlx::query(
                    "update leases set lease_until = lease_until - $1 * interval '1 second'",
                )
                .bind(f64::from(seconds))
                .execute(&pool)
                .await?;
                pool.close().await;
            }
            Fault::Restart => {
                world.drain(n).await?;
                world.launch(n)?;
            }
            Fault::Join => {
                match (0..world.nodes.len()).find(|n| world.nodes[*n].process.is_none()) {
                    Some(n) => world.launch(n)?,
                    None => drop(world.add().await?),
                }
            }
            Fault::Leave => world.drain(n).await?,
        }
        Ok(fault)
    }

    /// Between two faults: seldom long enough for everything to be as it was.
    pub async fn pause(&mut self) {
        let time = self.ms(100, 2_500);
        tokio::time::sleep(time).await;
    }
}
