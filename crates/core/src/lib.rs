//! Everything of node-uring that touches the kernel or raw memory, with no napi in it.
//!
//! The way of an operation: [`Engine::stage`] checks it and takes hold of what it points at,
//! [`Engine::turn`] submits all that is staged in one `io_uring_enter(2)` and collects what
//! completed. The kernel is only ever given addresses of arena memory ([`arena`]) and of paths,
//! `statx` buffers and timespecs that [`in_flight`] owns until the operation's last CQE.
//!
//! `unsafe` is denied for the whole crate and allowed, in the open, in `ring`, `arena` and nowhere
//! else.

#[allow(unsafe_code)]
pub mod arena;
pub mod capabilities;
mod credentials;
pub mod engine;
pub mod files;
pub mod in_flight;
pub mod operation;
pub mod reaper;
#[allow(unsafe_code)]
pub mod ring;
pub mod setup;
pub mod waiter;

pub use arena::{Arena, ArenaOptions, ChunkId, Mapping, Pool};
pub use capabilities::{Capabilities, Limits};
pub use engine::{Completion, Engine, EngineOptions, Reap, Stamps, Stats, Turn};
pub use files::FileHandle;
pub use operation::{Opcode, Refusal, Request};
pub use setup::{OperationSet, Setup, SqPoll, TaskRun};
pub use waiter::Waiter;
