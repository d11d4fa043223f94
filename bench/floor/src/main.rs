//! The floor: what NOPs, random reads and random writes cost through `io_uring` from plain Rust,
//! with the set-up flags that the library uses and no runtime above them.
//!
//! Each run prints one JSON object on stdout, with every setting that was in force; any failure, of
//! one operation too, is a line on stderr and exit code 1. It measures and never judges, and must
//! stay fast: whatever is wasted here flatters the library that is measured against it.

mod arguments;
mod clock;
mod json;
mod memory;
mod random;
mod report;
mod ring;
mod target;

use std::process::ExitCode;

use arguments::{Settings, USAGE};
use clock::Sample;
use json::Json;
use ring::{Failure, Ring, Sqe};
use target::Target;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.iter().any(|word| word == "--help") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match arguments::parse(&words).and_then(|settings| run(&settings)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("floor: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Sets up the ring and what it works on, runs the warm-up and all rounds, returns the report.
fn run(settings: &Settings) -> Result<Json, String> {
    let ring = &mut Ring::set_up(settings.batch)?;
    let Some(wanted) = &settings.file else {
        let samples = rounds(settings, ring, 0, Sqe::nop)?;
        return Ok(report::build(settings, None, ring, &samples));
    };

    let mut target = Target::open(wanted, settings.kind)?;
    target.register(ring)?;
    let mut offsets = target.offsets();
    let block_bytes = target.block_bytes();
    let sqe = |slot| target.sqe(slot, offsets.next());
    let samples = rounds(settings, ring, block_bytes, sqe)?;
    Ok(report::build(settings, Some(&target), ring, &samples))
}

/// Times each round; the warm-up runs first and is thrown away.
fn rounds(
    settings: &Settings,
    ring: &mut Ring,
    expected: u32,
    mut sqe: impl FnMut(u32) -> Sqe,
) -> Result<Vec<Sample>, String> {
    let mut session = ring.start()?;
    let mut round = |operations: u64| -> Result<Sample, Failure> {
        clock::measure(operations, || {
            session.drive(operations, settings.batch, settings.wait, expected, &mut sqe)
        })
    };
    let explain = |failure: Failure| failure.explain(settings.kind.name(), expected);

    if settings.warmup > 0 {
        round(settings.warmup).map_err(explain)?;
    }
    (0..settings.rounds).map(|_| round(settings.operations).map_err(explain)).collect()
}
