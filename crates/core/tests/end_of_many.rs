//! The end of an engine with very many operations in flight keeps to its patience. Cancelling them with
//! one entry (IORING_ASYNC_CANCEL_ANY) did not: the kernel looks at all of them for each, and again at
//! each enter. 4,000 reads of a FIFO took 9 s, 65,000 held a CPU for three minutes in one system call.

mod common;

use std::time::{Duration, Instant};

use common::{Loop, TASK_RUNS, read, with_task_run};

/// What the end of an environment waits (TEARDOWN_PATIENCE of the binding).
const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn eight_thousand_reads_that_wait_are_cancelled_within_the_patience_of_an_environments_end() {
    for task_run in TASK_RUNS {
        let mut it = Loop::new(with_task_run(task_run));
        let (fifo, _writer) = it.fifo();
        let chunk = it.chunk(1);
        for slot in 0..8000 {
            it.stage(&read(slot, fifo, chunk, (0, 1), 0));
        }
        it.until_block();
        let started = Instant::now();
        assert!(it.engine.shutdown(PATIENCE), "{task_run:?} after {:?}", started.elapsed());
        assert_eq!(it.engine.in_flight(), 0);
    }
}
