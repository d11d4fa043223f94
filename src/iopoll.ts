/**
 * Why a file cannot be polled: the kernel says no more than EOPNOTSUPP, and only when a read or write
 * comes back. Looks the file's device up in sysfs; called where an operation has failed.
 */
import { fstatSync, readFileSync } from 'node:fs'
import { systemError, uringError } from './errors.js'

/** The error of a read or write that came back with EOPNOTSUPP from a ring that polls. */
export function cannotPoll(fd: number, errno: number, syscall: string): Error {
  return uringError('ERR_URING_UNSUPPORTED', {
    feature: 'options.iopoll',
    needs: missing(fd),
    cause: systemError(errno, syscall),
  })
}

function missing(fd: number): string {
  let dev: bigint
  try {
    const stat = fstatSync(fd, { bigint: true })
    dev = stat.isBlockDevice() ? stat.rdev : stat.dev
  } catch {
    return 'a file on a device that polls'
  }
  // makedev(3).
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn)
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn)
  const device = `/sys/dev/block/${major}:${minor}`
  // The queue of a partition is its disk's.
  for (const path of [`${device}/queue/io_poll`, `${device}/../queue/io_poll`]) {
    let polls: string
    try {
      polls = readFileSync(path, 'latin1').trim()
    } catch {
      continue
    }
    return polls === '0'
      ? `a device with poll queues, and this one has none: ${path} is 0 (for NVMe see nvme.poll_queues)`
      : `a file system that polls: the device does (${path} is ${polls}), the file does not`
  }
  return `a file on a block device that polls, and this one is on none (device ${major}:${minor})`
}
