//! What can be asked of `io_uring_setup(2)`, and what is given up where a kernel does not know it.
//!
//! Decides nothing about when: `ring` tries what is listed here, from the best to the plainest.

use std::io;
use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use crate::operation::KERNEL_OPCODES;

/// How completion work reaches this thread, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskRun {
    /// `SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG` (6.1): only when we enter with GETEVENTS.
    Defer,
    /// `COOP_TASKRUN | TASKRUN_FLAG` (5.19): at our next system call, without an interrupt.
    Cooperative,
    /// No flag: the kernel interrupts the thread.
    Interrupt,
}

/// A kernel thread that takes entries from the submission queue by itself (`IORING_SETUP_SQPOLL`).
/// Before 5.11 it takes registered files only, and is refused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqPoll {
    /// Milliseconds without work after which it sleeps; 0 is the kernel's own second.
    pub idle_ms: u32,
    /// The CPU that it stays on (`IORING_SETUP_SQ_AFF`).
    pub cpu: Option<u32>,
}

/// Operations that a ring is restricted to, as the kernel numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationSet(u128);

impl OperationSet {
    /// What the library itself cannot do without: it cancels, closes what it has opened, and bounds
    /// operations by timeouts; a nop touches nothing.
    const OWN: [u8; 5] = [
        opcode::Nop::CODE,
        opcode::Close::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Timeout::CODE,
        opcode::LinkTimeout::CODE,
    ];

    /// The operations of these names ([`KERNEL_OPCODES`]) and those that the library needs itself.
    /// `read` and `write` have their fixed variants with them: which is used is the library's choice.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn named<'a>(names: &[&'a str]) -> Result<Self, &'a str> {
        let mut set = Self::default();
        for code in Self::OWN {
            set.insert(code);
        }
        for &name in names {
            let known = KERNEL_OPCODES.iter().find(|(known, _)| *known == name);
            set.insert(known.ok_or(name)?.1);
            match name {
                "read" => set.insert(opcode::ReadFixed::CODE),
                "write" => set.insert(opcode::WriteFixed::CODE),
                _ => {}
            }
        }
        Ok(set)
    }

    fn insert(&mut self, code: u8) {
        self.0 |= 1 << code;
    }

    /// Whether it has the operation of this number.
    #[must_use]
    pub const fn contains(self, code: u8) -> bool {
        code < 128 && self.0 & 1 << code != 0
    }

    /// The same in the words of `IORING_REGISTER_RESTRICTIONS` (5.10), with the flags and the
    /// registrations that the library uses when the ring is at work.
    pub(crate) fn restrictions(self) -> Vec<Restriction> {
        const REGISTER_FILES_UPDATE: u8 = 6;
        const REGISTER_PROBE: u8 = 8;
        const REGISTER_BUFFERS2: u8 = 15;
        const REGISTER_BUFFERS_UPDATE: u8 = 16;
        const REGISTER_IOWQ_MAX_WORKERS: u8 = 19;
        const UNREGISTER_RING_FDS: u8 = 21;
        let registrations = [
            REGISTER_FILES_UPDATE,
            REGISTER_PROBE,
            REGISTER_BUFFERS2,
            REGISTER_BUFFERS_UPDATE,
            REGISTER_IOWQ_MAX_WORKERS,
            UNREGISTER_RING_FDS,
        ];
        let flags = squeue::Flags::FIXED_FILE
            | squeue::Flags::ASYNC
            | squeue::Flags::IO_LINK
            | squeue::Flags::IO_HARDLINK;
        (0..128)
            .filter(|&code| self.contains(code))
            .map(Restriction::sqe_op)
            .chain(registrations.map(Restriction::register_op))
            .chain([Restriction::sqe_flags_allowed(flags.bits())])
            .collect()
    }
}

/// What to ask of `io_uring_setup(2)`. What a program asks for by name (a polling thread, an
/// attachment, a restriction) is granted or the set-up fails. Each other wish that a kernel refuses
/// with EINVAL is given up, newest first, until it accepts; [`crate::Capabilities`] says what was
/// granted.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag of the kernel's.
pub struct Setup {
    /// Entries of the submission queue; the kernel rounds up to a power of two.
    pub entries: u32,
    /// Entries of the completion queue; must not be smaller than `entries`.
    pub cq_entries: u32,
    /// The best kind of task running to try.
    pub task_run: TaskRun,
    /// Try `IORING_SETUP_NO_SQARRAY` (6.6): one indirection less for each SQE.
    pub no_sq_array: bool,
    /// Try `IORING_SETUP_SUBMIT_ALL` (5.18): one bad SQE does not end the submission.
    pub submit_all: bool,
    /// Try `IORING_REGISTER_RING_FDS` (5.18): no descriptor look-up at each enter.
    pub registered_descriptor: bool,
    /// A kernel thread submits. It goes with no [`TaskRun`] but [`TaskRun::Interrupt`].
    pub sqpoll: Option<SqPoll>,
    /// The descriptor of a ring to share the polling thread with (`IORING_SETUP_ATTACH_WQ`, 5.6).
    /// Without [`SqPoll`] it changes nothing: kernel workers belong to the thread since 5.12.
    pub attach: Option<RawFd>,
    /// Find completions by polling the device (`IORING_SETUP_IOPOLL`): reads and writes of direct files,
    /// and nops, are all that such a ring takes.
    pub iopoll: bool,
    /// Allow these operations and no others, for good (`IORING_REGISTER_RESTRICTIONS`, 5.10).
    pub restrict: Option<OperationSet>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            entries: 1024,
            cq_entries: 4096,
            task_run: TaskRun::Defer,
            no_sq_array: true,
            submit_all: true,
            registered_descriptor: true,
            sqpoll: None,
            attach: None,
            iopoll: false,
            restrict: None,
        }
    }
}

impl Setup {
    /// The set-ups to try in turn. The newest wish goes first, so that a kernel loses no more than
    /// it has to: NO_SQARRAY (6.6), DEFER_TASKRUN (6.1), COOP_TASKRUN (5.19), SUBMIT_ALL (5.18).
    pub(crate) fn ladder(self) -> Vec<Self> {
        let mut rungs = vec![self];
        let mut rung = self;
        if rung.no_sq_array {
            rung.no_sq_array = false;
            rungs.push(rung);
        }
        if rung.task_run == TaskRun::Defer {
            rung.task_run = TaskRun::Cooperative;
            rungs.push(rung);
        }
        if rung.task_run == TaskRun::Cooperative {
            rung.task_run = TaskRun::Interrupt;
            rungs.push(rung);
        }
        if rung.submit_all {
            rung.submit_all = false;
            rungs.push(rung);
        }
        rungs
    }

    pub(crate) fn build(self) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        // DONTFORK: a child made by fork(2) must not share the ring's memory with us.
        builder.dontfork().setup_clamp().setup_cqsize(self.cq_entries);
        match self.task_run {
            TaskRun::Defer => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            TaskRun::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            TaskRun::Interrupt => {}
        }
        if self.no_sq_array {
            builder.setup_no_sqarray();
        }
        if self.submit_all {
            builder.setup_submit_all();
        }
        if let Some(SqPoll { idle_ms, cpu }) = self.sqpoll {
            builder.setup_sqpoll(idle_ms);
            if let Some(cpu) = cpu {
                builder.setup_sqpoll_cpu(cpu);
            }
        }
        if let Some(descriptor) = self.attach {
            builder.setup_attach_wq(descriptor);
        }
        if self.iopoll {
            builder.setup_iopoll();
        }
        if self.restrict.is_some() {
            // Until `Ring::enable`.
            builder.setup_r_disabled();
        }
        builder.build(self.entries)
    }

    /// The flags by their names in `io_uring_setup(2)`, without `IORING_SETUP_`.
    #[must_use]
    pub fn flags(&self) -> Vec<&'static str> {
        let task_run: &[&str] = match self.task_run {
            TaskRun::Defer => &["SINGLE_ISSUER", "DEFER_TASKRUN", "TASKRUN_FLAG"],
            TaskRun::Cooperative => &["COOP_TASKRUN", "TASKRUN_FLAG"],
            TaskRun::Interrupt => &[],
        };
        let others = [
            ("NO_SQARRAY", self.no_sq_array),
            ("SUBMIT_ALL", self.submit_all),
            ("SQPOLL", self.sqpoll.is_some()),
            ("SQ_AFF", self.sqpoll.is_some_and(|sqpoll| sqpoll.cpu.is_some())),
            ("ATTACH_WQ", self.attach.is_some()),
            ("IOPOLL", self.iopoll),
            ("R_DISABLED", self.restrict.is_some()),
        ];
        let others = others.iter().filter(|(_, on)| *on).map(|(name, _)| name);
        ["CLAMP", "CQSIZE"].iter().chain(task_run).chain(others).copied().collect()
    }

    /// Flags of `wish` that are not in this set-up: the kernel refused them with EINVAL. One that
    /// has DEFER_TASKRUN is not asked for COOP_TASKRUN.
    pub(crate) fn lost(&self, wish: &Self) -> Vec<&'static str> {
        let mut lost = Vec::new();
        if wish.no_sq_array && !self.no_sq_array {
            lost.push("NO_SQARRAY");
        }
        if wish.task_run == TaskRun::Defer && self.task_run > TaskRun::Defer {
            lost.push("DEFER_TASKRUN");
        }
        if wish.task_run < TaskRun::Interrupt && self.task_run == TaskRun::Interrupt {
            lost.push("COOP_TASKRUN");
        }
        if wish.submit_all && !self.submit_all {
            lost.push("SUBMIT_ALL");
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_ends_at_a_plain_ring_and_gives_up_the_newest_wish_first() {
        let rungs = Setup::default().ladder();
        let kinds: Vec<_> =
            rungs.iter().map(|r| (r.no_sq_array, r.task_run, r.submit_all)).collect();
        assert_eq!(
            kinds,
            [
                (true, TaskRun::Defer, true),
                (false, TaskRun::Defer, true),
                (false, TaskRun::Cooperative, true),
                (false, TaskRun::Interrupt, true),
                (false, TaskRun::Interrupt, false),
            ]
        );
    }

    #[test]
    fn a_set_of_operations_has_those_named_and_those_the_library_needs() {
        let set = OperationSet::named(&["read", "fsync"]).expect("known names");
        for &(name, code) in KERNEL_OPCODES {
            let expected = [
                "read",
                "read_fixed",
                "fsync",
                "nop",
                "close",
                "timeout",
                "link_timeout",
                "async_cancel",
            ];
            assert_eq!(set.contains(code), expected.contains(&name), "{name}");
        }
        assert!(!set.contains(200));
        assert_eq!(OperationSet::named(&["read", "reed"]), Err("reed"));
    }

    #[test]
    fn each_rung_of_the_ladder_has_lost_one_flag_more() {
        let wish = Setup::default();
        let lost: Vec<_> = wish.ladder().iter().map(|rung| rung.lost(&wish)).collect();
        let all = ["NO_SQARRAY", "DEFER_TASKRUN", "COOP_TASKRUN", "SUBMIT_ALL"];
        assert_eq!(lost, (0..=4).map(|count| all[..count].to_vec()).collect::<Vec<_>>());
    }
}
