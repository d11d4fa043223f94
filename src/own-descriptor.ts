/**
 * A descriptor for a call of node:fs that may take long: a number that is somebody else's by the time
 * the thread pool comes to it would hit another file.
 */
import { closeSync, constants, openSync } from 'node:fs'

/**
 * Runs `work` on a descriptor of its own for the file that `fd` is open on, opened with `flags`; on `fd`
 * itself where there can be none (no /proc, no right to open it once more).
 */
export async function onOwnDescriptor<T>(
  fd: number,
  flags: number,
  work: (fd: number) => Promise<T>,
): Promise<T> {
  let own: number | undefined
  try {
    // A FIFO must not keep us waiting for its other side.
    own = openSync(`/proc/self/fd/${fd}`, flags | constants.O_NONBLOCK)
  } catch {
    return work(fd)
  }
  try {
    return await work(own)
  } finally {
    closeSync(own)
  }
}
