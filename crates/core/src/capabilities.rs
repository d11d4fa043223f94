//! What the kernel granted, and what it refused: read once from the ring and the engine, decided
//! by nobody here.

use io_uring::{Parameters, Probe};

use crate::operation::KERNEL_OPCODES;
use crate::setup::Setup;

/// What the kernel granted.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The granted set-up; `entries` and `cq_entries` are the kernel's own numbers.
    pub setup: Setup,
    /// `IORING_FEAT_*` bits, by their name in `io_uring_setup(2)`.
    pub features: Vec<(&'static str, bool)>,
    /// For each operation of ours, by name, whether `IORING_REGISTER_PROBE` says that it exists.
    pub operations: Vec<(&'static str, bool)>,
    /// What was asked for and refused, by the kernel's name without its prefix (`DEFER_TASKRUN`,
    /// `REGISTER_RING_FDS`), with the errno.
    pub refused: Vec<(&'static str, i32)>,
}

/// Limits that hold now. They can change while an engine lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Operations of a chain of links, at most.
    pub chain: u32,
    /// Most kernel workers of this thread, (bounded, unbounded); `None` before 5.15.
    pub workers: Option<(u32, u32)>,
    /// RLIMIT_MEMLOCK in bytes; `None` is no limit. `getrlimit(2)`.
    pub memlock_bytes: Option<u64>,
    /// RLIMIT_NOFILE; `None` is no limit. `getrlimit(2)`.
    pub open_files: Option<u64>,
}

/// Every feature that this library's kernel interface knows.
pub(crate) fn features(p: &Parameters) -> Vec<(&'static str, bool)> {
    vec![
        ("single_mmap", p.is_feature_single_mmap()),
        ("nodrop", p.is_feature_nodrop()),
        ("submit_stable", p.is_feature_submit_stable()),
        ("rw_cur_pos", p.is_feature_rw_cur_pos()),
        ("cur_personality", p.is_feature_cur_personality()),
        ("fast_poll", p.is_feature_fast_poll()),
        ("poll_32bits", p.is_feature_poll_32bits()),
        ("sqpoll_nonfixed", p.is_feature_sqpoll_nonfixed()),
        ("ext_arg", p.is_feature_ext_arg()),
        ("native_workers", p.is_feature_native_workers()),
        ("rsrc_tags", p.is_feature_resource_tagging()),
        ("cqe_skip", p.is_feature_skip_cqe_on_success()),
        ("linked_file", p.is_feature_linked_file()),
        ("recvsend_bundle", p.is_feature_recvsend_bundle()),
        ("min_timeout", p.is_feature_min_timeout()),
        ("no_iowait", p.is_feature_no_iowait()),
    ]
}

/// What the probe says of each operation; none is there when the probe itself is not (5.6).
pub(crate) fn operations(probe: Option<&Probe>) -> Vec<(&'static str, bool)> {
    let has = |code| probe.is_some_and(|probe| probe.is_supported(code));
    KERNEL_OPCODES.iter().map(|&(name, code)| (name, has(code))).collect()
}
