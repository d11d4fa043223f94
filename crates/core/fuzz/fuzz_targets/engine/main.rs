//! Sequences of stage, stage_many, cancel, turn, take, give back, hold, adopt, close, flush and the end against a
//! real engine on a real ring. `world.rs` predicts what each call has to answer, `memory.rs` watches
//! every byte of the arena, `sandbox.rs` keeps the kernel away from everything but a folder of its own.
//!
//!     node scripts/fuzz.js --seconds 600       or: cargo +nightly fuzz run engine
//!
//! An input is the bytes of a [`Plan`] and of as many [`Step`]s as they last for.
#![no_main]

mod memory;
mod sandbox;
mod steps;
mod world;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};

use sandbox::Sandbox;
use steps::{Plan, Step};
use world::World;

/// Enough for a full queue, a cancel of each and the end; longer inputs are only slower.
const STEPS_MAX: usize = 300;

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut input = Unstructured::new(input);
    let Ok(plan) = Plan::arbitrary(&mut input) else { return Corpus::Reject };
    let sandbox = Sandbox::enter();
    let mut world = World::new(&plan, &sandbox);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        world.take(step);
    }
    world.end(plan.ending);
    sandbox.leave();
    Corpus::Keep
});
