//! What an operation costs: time on the wall and on the CPU, and what it brought the disk to read.

#![allow(unsafe_code)] // getrusage(2)

use std::mem::MaybeUninit;
use std::time::Instant;

/// One round; everything per operation.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub wall_ns: f64,
    /// User and system time of the whole process, kernel workers included.
    pub cpu_ns: f64,
    pub enters: f64,
    /// Read from a disk for this process. Well above 0, a round on a cached file was not one: some
    /// systems (DAMON) take idle pages out of the cache within a minute, with memory free.
    pub disk_read_bytes: f64,
}

/// Times `round`, which runs `operations` and returns how often it entered the kernel.
pub fn measure<E>(operations: u64, round: impl FnOnce() -> Result<u64, E>) -> Result<Sample, E> {
    let before = Usage::of_process();
    let start = Instant::now();
    let enters = round()?;
    let wall_ns = start.elapsed().as_nanos();
    let after = Usage::of_process();
    let operations = operations as f64;
    Ok(Sample {
        wall_ns: wall_ns as f64 / operations,
        cpu_ns: (after.cpu_us - before.cpu_us) as f64 * 1e3 / operations,
        enters: enters as f64 / operations,
        disk_read_bytes: (after.disk_read_bytes - before.disk_read_bytes) as f64 / operations,
    })
}

struct Usage {
    cpu_us: i64,
    disk_read_bytes: i64,
}

impl Usage {
    /// Not `CLOCK_PROCESS_CPUTIME_ID`: getrusage(2) is what `process.cpuUsage()` of Node reads.
    fn of_process() -> Self {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: the kernel fills `usage`, which is ours; with RUSAGE_SELF and a valid address the
        // call cannot fail (asserted), so it is initialised.
        let usage = unsafe {
            assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
            usage.assume_init()
        };
        let us = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
        // The kernel counts in units of 512 bytes, whatever the device.
        Self {
            cpu_us: us(usage.ru_utime) + us(usage.ru_stime),
            disk_read_bytes: usage.ru_inblock * 512,
        }
    }
}

/// The middle value, or the mean of the two in the middle. `values` holds at least one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_busy_round_costs_cpu_time_and_a_sleeping_one_does_not() {
        let sleeping = measure(1, || -> Result<u64, ()> {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok(1)
        });
        let sleeping = sleeping.unwrap();
        // Other tests of this process may run meanwhile, so the CPU time has no upper bound here.
        assert!(sleeping.wall_ns >= 20e6, "{sleeping:?}");

        let start = Instant::now();
        let busy = measure(2, || -> Result<u64, ()> {
            while start.elapsed().as_millis() < 20 {
                std::hint::spin_loop();
            }
            Ok(4)
        });
        let busy = busy.unwrap();
        assert!(busy.cpu_ns > 0.0 && (busy.enters - 2.0).abs() < f64::EPSILON, "{busy:?}");
    }
}
