/**
 * Commits: an fdatasync that callers share, begun after all that they have seen complete. It is an
 * ordinary operation; what each caller has is a share in it, with limits of its own.
 */
import { OP_FSYNC } from './backend.js'
import { closedError, rejected, systemError } from './errors.js'
import type { FileState } from './file-state.js'
import { type Limits, overBefore } from './limits.js'
import type { Operations } from './operations.js'
import type { Unfinished } from './order.js'
import type { Operation } from './slots.js'

/** Callers that wait for one fdatasync. */
class Group implements Unfinished {
  /** Whether a drain waits for it though its fdatasync is still to be staged. */
  isUnfinished = false
  readonly #operations: Operations
  readonly #file: FileState
  readonly #shares: { op: Operation; number: number }[] = []
  readonly #drains: number
  #sync: Operation | undefined
  #number = 0

  constructor(operations: Operations, file: FileState) {
    this.#operations = operations
    this.#file = file
    this.#drains = operations.waiting.drains
  }

  /**
   * Whether the fdatasync has not been submitted: only then does it come after everything that a
   * caller has seen complete. It comes before a drain that was called for since.
   */
  get isOpen(): boolean {
    const sync = this.#sync
    if (sync === undefined) return true
    if (this.#drains !== this.#operations.waiting.drains) return false
    if (sync.number !== this.#number) return false
    return sync.line !== undefined || this.#operations.backend.isStaged(sync.slot)
  }

  join(op: Operation): void {
    this.#shares.push({ op, number: op.number })
  }

  /** Whether any caller still waits: none does when all have reached their limits. */
  get isWanted(): boolean {
    return this.#shares.some(({ op, number }) => op.number === number)
  }

  /** Stages the fdatasync; `over` is called when it is. */
  begin(over: () => void): void {
    const operations = this.#operations
    const [op, promise] = operations.record(OP_FSYNC, this.#file, 0, 1, 0)
    this.#sync = op
    this.#number = op.number
    op.partOf = this
    operations.begin(op)
    operations.waiting.order.delete(this)
    void promise.then(
      (result) => {
        over()
        this.#settle(typeof result === 'number' && result < 0 ? result : 0)
      },
      // It was cancelled with the file or the queue, and so were all that share in it.
      (error: Error) => {
        over()
        this.#settle(0, error)
      },
    )
  }

  #settle(result: number, error?: Error): void {
    for (const { op, number } of this.#shares) {
      if (op.number !== number) continue
      if (error !== undefined) this.#operations.fail(op, error)
      else if (result < 0)
        this.#operations.fail(op, systemError(result, 'fdatasync', { file: this.#file.path }))
      else this.#operations.settle(op, undefined)
    }
  }
}

/** The commits of one file: at most one fdatasync runs, and one more gathers callers meanwhile. */
export class Commits {
  readonly #operations: Operations
  readonly #file: FileState
  #running: Group | undefined
  #next: Group | undefined

  constructor(operations: Operations, file: FileState) {
    this.#operations = operations
    this.#file = file
  }

  /** See {@link Queue.commit}. */
  commit(limits: Limits | undefined): Promise<void> {
    const operations = this.#operations
    // A queue's call, though its files are closed before it is.
    if (operations.ended !== undefined) return rejected(operations.ended())
    if (this.#file.closed) return rejected(closedError(this.#file, 'fdatasync'))
    const over = overBefore(limits, OP_FSYNC, undefined, 'fdatasync')
    if (over !== undefined) return rejected(over)
    const [share, promise] = operations.share(OP_FSYNC, this.#file, limits)
    // Of an fdatasync, as errors name it.
    share.length = 1
    if (this.#running === undefined) {
      this.#running = new Group(operations, this.#file)
      this.#running.join(share)
      this.#begin(this.#running)
    } else if (this.#running.isOpen) {
      this.#running.join(share)
    } else {
      if (this.#next === undefined) {
        this.#next = new Group(operations, this.#file)
        operations.waiting.join(this.#next)
      }
      this.#next.join(share)
    }
    return promise
  }

  #begin(group: Group): void {
    group.begin(() => {
      const next = this.#next
      this.#next = undefined
      this.#running = next?.isWanted ? next : undefined
      if (this.#running !== undefined) this.#begin(this.#running)
      else if (next !== undefined) this.#operations.waiting.order.delete(next)
    })
  }
}
