//! The way from JavaScript into `node-uring-core`, and nothing else: typed set-up and cold calls
//! through napi-rs (`engine`, `options`, `capabilities`), raw N-API functions for what happens once an operation (`stage`), and
//! libuv's handles driven as the engine says (`event_loop`). No decision is made here.
//!
//! `unsafe` is allowed in `event_loop` and `stage` alone.

mod capabilities;
mod engine;
#[allow(unsafe_code)]
mod event_loop;
mod options;
#[allow(unsafe_code)]
mod stage;
