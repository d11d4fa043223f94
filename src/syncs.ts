/**
 * What the fsyncs and fdatasyncs of a file come to, beside and after each other. The kernel tells of a
 * failed write-back once for each time that a file is opened: the first that looks is told, and those that
 * run beside it or come later find nothing wrong (`file_check_and_advance_wb_err` in Linux; fsync(2)), though
 * it was their data. Here a success counts when all that ran beside it have succeeded, and after a
 * failure there is none until the file is opened anew.
 */
import { OP_FSYNC } from './backend.js'
import { ERRNO } from './errno.js'
import type { Operation } from './slots.js'

const { EACCES, EAGAIN, EBADF, ECANCELED, EINTR, EINVAL, ENOMEM, ENOSYS, ENOTSUP, EPERM, EROFS } =
  ERRNO
/** What says that nothing was synced, and nothing of what became of the data. fsync(2). */
const HARMLESS = new Set(
  [EACCES, EAGAIN, EBADF, ECANCELED, EINTR, EINVAL, ENOMEM, ENOSYS, ENOTSUP, EPERM, EROFS].map(
    (errno) => -errno,
  ),
)

/** A success that waits for those that ran beside it. */
interface Held {
  readonly op: Operation
  readonly number: number
  /** Of those running when it came, the newest. */
  readonly newest: number
  readonly goOn: (op: Operation, result: number) => void
}

/** Whether an operation is the affair of {@link Syncs}. */
export function isSync(op: Operation): boolean {
  return op.opcode === OP_FSYNC && op.file !== undefined
}

/** The syncs of one file. */
export class Syncs {
  #begun = 0
  /** Those that the engine has, in the order in which they began. */
  readonly #running = new Map<Operation, number>()
  #held: Held[] = []
  /** What the first that failed came to. */
  #failure = 0

  /** One was staged. */
  began(op: Operation): void {
    this.#running.set(op, ++this.#begun)
  }

  /** One is complete; `goOn` is called with what it comes to, now or when that is known. */
  arrived(op: Operation, result: number, goOn: (op: Operation, result: number) => void): void {
    const began = this.#running.get(op) ?? 0
    this.#running.delete(op)
    const fails = result < 0 && !HARMLESS.has(result)
    if (fails && this.#failure === 0) this.#failure = result
    if (result >= 0 && this.#running.size > 0 && this.#failure === 0) {
      this.#held.push({ op, number: op.number, newest: this.#begun, goOn })
    } else {
      goOn(op, result >= 0 ? this.#failure : result)
    }
    if (this.#held.length > 0) this.#release(fails ? began : Infinity)
  }

  /** Ends one that is held with ECANCELED; false when it is not. */
  cancel(op: Operation): boolean {
    const held = this.#held.find((one) => one.op === op && one.number === op.number)
    if (held === undefined) return false
    this.#held = this.#held.filter((one) => one !== held)
    held.goOn(op, -ECANCELED)
    return true
  }

  /** Goes on with those beside which none runs any more, or ran the one that `failed`, by when it began. */
  #release(failed: number): void {
    const oldest = this.#running.values().next().value ?? Infinity
    const all = this.#held
    this.#held = all.filter(({ newest }) => newest < failed && newest >= oldest)
    for (const { op, number, newest, goOn } of all) {
      if (newest < failed && newest >= oldest) continue
      if (op.number === number) goOn(op, newest >= failed ? this.#failure : 0)
    }
  }
}
