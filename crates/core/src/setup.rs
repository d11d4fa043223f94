//! What can be asked of `io_uring_setup(2)`, and what is given up where a kernel does not know it.
//!
//! Decides nothing about when: `ring` tries what is listed here, from the best to the plainest.

use std::io;

use io_uring::IoUring;

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

/// What to ask of `io_uring_setup(2)`. Each wish that a kernel refuses with EINVAL is given up,
/// newest first, until it accepts; [`crate::Capabilities`] says what was granted.
#[derive(Clone, Copy, Debug)]
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
        let others = [("NO_SQARRAY", self.no_sq_array), ("SUBMIT_ALL", self.submit_all)];
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
    fn each_rung_of_the_ladder_has_lost_one_flag_more() {
        let wish = Setup::default();
        let lost: Vec<_> = wish.ladder().iter().map(|rung| rung.lost(&wish)).collect();
        let all = ["NO_SQARRAY", "DEFER_TASKRUN", "COOP_TASKRUN", "SUBMIT_ALL"];
        assert_eq!(lost, (0..=4).map(|count| all[..count].to_vec()).collect::<Vec<_>>());
    }
}
