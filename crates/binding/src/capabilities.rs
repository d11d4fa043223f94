//! What the kernel granted, as JavaScript gets it. Converts, and calls the core.

use std::collections::HashMap;

use napi_derive::napi;
use node_uring_core::Engine as Core;

/// What the kernel granted.
#[napi(object)]
pub struct EngineCapabilities {
    /// Entries of the submission queue.
    pub entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// Set-up flags in use, by their names in `io_uring_setup(2)` without `IORING_SETUP_`.
    pub setup_flags: Vec<String>,
    /// Whether enter is called by the registered ring descriptor.
    pub registered_descriptor: bool,
    /// Features, by their names in `io_uring_setup(2)` without `IORING_FEAT_`, in lower case.
    pub features: HashMap<String, bool>,
    /// Operations, by their names in `io_uring_enter(2)` without `IORING_OP_`, in lower case.
    pub operations: HashMap<String, bool>,
    /// What was asked for and refused, by the kernel's name without its prefix, with the errno.
    pub refused: HashMap<String, i32>,
    /// Places in the registered file table; 0 when files are named by descriptor.
    pub registered_files: u32,
    /// Whether arena memory is registered: null before the first direct file, 0 for yes, else the
    /// errno that refused it.
    pub registered_memory: Option<i32>,
    /// Whether a thread of ours waits for completions, and not the event loop.
    pub own_thread: bool,
    /// Operations of a chain of links, at most.
    pub chain_max: u32,
    /// Most kernel workers of this thread for files; null before Linux 5.15.
    pub bounded_workers: Option<u32>,
    /// Most kernel workers of this thread for the rest; null before Linux 5.15.
    pub unbounded_workers: Option<u32>,
    /// RLIMIT_MEMLOCK; null where there is no limit.
    pub memlock_bytes: Option<f64>,
    /// RLIMIT_NOFILE; null where there is no limit.
    pub open_files: Option<f64>,
}

/// What the kernel grants an engine.
pub fn capabilities_of(core: &Core, own_thread: bool) -> EngineCapabilities {
    let (granted, limits) = (core.capabilities(), core.limits());
    let named =
        |pairs: &[(&str, bool)]| pairs.iter().map(|&(name, has)| (name.to_owned(), has)).collect();
    EngineCapabilities {
        entries: granted.setup.entries,
        cq_entries: granted.setup.cq_entries,
        setup_flags: granted.setup.flags().into_iter().map(str::to_owned).collect(),
        registered_descriptor: granted.setup.registered_descriptor,
        features: named(&granted.features),
        operations: named(&granted.operations),
        refused: granted.refused.iter().map(|&(name, errno)| (name.to_owned(), errno)).collect(),
        registered_files: core.registered_files(),
        registered_memory: core.buffer_table().map(|table| table.err().unwrap_or(0)),
        own_thread,
        chain_max: limits.chain,
        bounded_workers: limits.workers.map(|(bounded, _)| bounded),
        unbounded_workers: limits.workers.map(|(_, unbounded)| unbounded),
        memlock_bytes: limits.memlock_bytes.map(|bytes| bytes as f64),
        open_files: limits.open_files.map(|files| files as f64),
    }
}
