/**
 * A thread that looks whether the main thread still comes round. When it has not for minutes nothing
 * there can print or clean up: this kills the process, and says so.
 */
import { readFileSync, writeSync } from 'node:fs'
import { workerData } from 'node:worker_threads'

/** The end of a worker waits for what the kernel holds of it, and the main thread for that end. */
const STILL_MS_MAX = 300_000

const beats = new Int32Array(workerData as SharedArrayBuffer)
let seen = -1
let sinceMs = Date.now()
let lookedMs = Date.now()
for (;;) {
  Atomics.wait(beats, 1, 0, 1000)
  // Late ourselves: the whole machine stood still, which is no fault of the main thread.
  if (Date.now() - lookedMs > 5000) sinceMs = Date.now()
  lookedMs = Date.now()
  if (Atomics.load(beats, 1) !== 0) break
  const now = Atomics.load(beats, 0)
  if (now !== seen) [seen, sinceMs] = [now, Date.now()]
  if (Date.now() - sinceMs > STILL_MS_MAX) {
    writeSync(
      2,
      `\nsoak: the main thread has not come round for ${STILL_MS_MAX / 1000} s; killed\n`,
    )
    for (const file of ['wchan', 'syscall', 'stack', 'stat']) {
      try {
        const text = readFileSync(`/proc/self/task/${process.pid}/${file}`, 'utf8')
        writeSync(2, `${file}: ${text.trim()}\n`)
      } catch {
        // Root alone may look at some.
      }
    }
    process.kill(process.pid, 'SIGKILL')
  }
}
