/**
 * What ends an operation before its time: signals and deadlines. An operation that has either is
 * cancelled by it, wherever it is: waiting, staged, or with the kernel. It settles as it would
 * anyway: with what it came to if it was done first.
 *
 * Thousands of operations on one signal have one listener; however many deadlines there are, the
 * kernel has one timeout, for the earliest. That timeout keeps no event loop alive.
 */
import { FLAG_QUIET, OP_TIMEOUT, syscallOf, syscallOfCall, TIMEOUT_ABSOLUTE } from './backend.js'
import { abortError, uringError, withoutFrames } from './errors.js'
import type { Operations } from './operations.js'
import { CLOSE_SLOTS_MAX, type Operation, SLOTS_MAX } from './slots.js'
import { checkInteger, checkOptions, checkSignal } from './validate.js'

/** What every operation takes. */
export interface LimitOptions {
  /**
   * Cancels the operation: it rejects with an AbortError whose `cause` is the signal's reason, or
   * settles as usual when it was faster. A write's error says `bytesWritten`. Aborted before the
   * call, nothing is begun.
   */
  signal?: AbortSignal | undefined
  /**
   * Milliseconds from the call, waiting for room included, after which the operation is cancelled and
   * rejects with `ERR_URING_TIMEOUT`. By the kernel's clock. Default: none.
   */
  timeoutMs?: number | undefined
}

/** Limits that were checked. */
export interface Limits {
  signal: AbortSignal | undefined
  timeoutMs: number | undefined
  /** When the time is up, by performance.now(). */
  deadline: number
}

/** The longest time that can be given: as of Node's timers, 2^31-1 milliseconds. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1
/** The first slot that no operation has. */
const FIRST_SLOT = SLOTS_MAX + CLOSE_SLOTS_MAX

/** Checks an option bag with `signal` and `timeoutMs`; undefined when it has neither. */
export function checkLimits(options: LimitOptions | undefined): Limits | undefined {
  if (options === undefined) return undefined
  checkOptions(options)
  const { signal, timeoutMs } = options
  if (signal !== undefined) checkSignal(signal)
  if (timeoutMs !== undefined) checkInteger(timeoutMs, 'options.timeoutMs', 0, TIMEOUT_MS_MAX)
  if (signal === undefined && timeoutMs === undefined) return undefined
  return {
    signal,
    timeoutMs,
    deadline: timeoutMs === undefined ? 0 : performance.now() + timeoutMs,
  }
}

/** Why nothing may be begun under these limits, if that is so. Writes say that nothing was written. */
export function overBefore(
  limits: Limits | undefined,
  opcode: number,
  bytesWritten?: number,
  syscall: string = syscallOf(opcode),
): Error | undefined {
  if (limits?.signal?.aborted) return abortError(limits.signal, bytesWritten)
  if (limits?.timeoutMs === undefined || limits.deadline > performance.now()) return undefined
  return timeoutError(syscall, limits.timeoutMs, bytesWritten)
}

function timeoutError(syscall: string, timeoutMs: number, bytesWritten?: number): Error {
  return withoutFrames(() => uringError('ERR_URING_TIMEOUT', { syscall, timeoutMs, bytesWritten }))
}

/**
 * One signal, and the operations of one queue that it watches over: a list like `Line`, by other fields,
 * since an operation may be in both. A Set in its place made a cached 4 KiB read 1.12 times as long.
 */
export class Watch {
  /** From the oldest on, as the engine likes to be asked for cancels. */
  head: Operation | undefined = undefined
  #tail: Operation | undefined = undefined
  readonly signal: AbortSignal
  readonly #limits: WatchOver

  constructor(signal: AbortSignal, limits: WatchOver) {
    this.signal = signal
    this.#limits = limits
    signal.addEventListener('abort', this)
  }

  handleEvent(): void {
    this.#limits.abort(this)
  }

  add(op: Operation): void {
    op.watch = this
    op.watchPrevious = this.#tail
    if (this.#tail === undefined) this.head = op
    else this.#tail.watchNext = op
    this.#tail = op
  }

  remove(op: Operation): void {
    const { watchNext, watchPrevious } = op
    if (watchPrevious === undefined) this.head = watchNext
    else watchPrevious.watchNext = watchNext
    if (watchNext === undefined) this.#tail = watchPrevious
    else watchNext.watchPrevious = watchPrevious
    op.watch = undefined
    op.watchNext = undefined
    op.watchPrevious = undefined
  }
}

/** What a watch tells that its signal has aborted. */
interface WatchOver {
  abort(watch: Watch): void
}

/** The limits of one queue's operations. */
export class LimitKeeper implements WatchOver {
  readonly #operations: Operations
  readonly #watches = new Map<AbortSignal, Watch>()
  readonly #deadlines = new Deadlines()
  /** The timeout that is to wake us: its slot, past all operations', and when it ends. */
  #armed: { slot: number; at: number } | undefined
  readonly #spareSlots: number[] = []
  #slotsMade = 0

  constructor(operations: Operations) {
    this.#operations = operations
  }

  /** Puts an operation under limits. It is not staged yet. */
  add(op: Operation, limits: Limits): void {
    op.limited = true
    const { signal, timeoutMs, deadline } = limits
    if (signal !== undefined) {
      let watch = this.#watches.get(signal)
      if (watch === undefined) {
        watch = new Watch(signal, this)
        this.#watches.set(signal, watch)
      }
      watch.add(op)
    }
    if (timeoutMs !== undefined) {
      op.timeoutMs = timeoutMs
      op.deadline = deadline
      this.#deadlines.add(op)
      this.#arm()
    }
  }

  /** The operation settles. */
  release(op: Operation): void {
    op.limited = false
    op.late = false
    const { watch } = op
    if (watch !== undefined) {
      watch.remove(op)
      if (watch.head === undefined) {
        watch.signal.removeEventListener('abort', watch)
        this.#watches.delete(watch.signal)
      }
    }
    if (op.heapIndex >= 0) this.#deadlines.remove(op)
  }

  /** What a cancelled operation rejects with. */
  reason(op: Operation, bytesWritten: number | undefined): Error {
    if (op.late) return timeoutError(syscallOfCall(op), op.timeoutMs, bytesWritten)
    return abortError(op.watch?.signal, bytesWritten)
  }

  /** Called by a watch whose signal has aborted. */
  abort(watch: Watch): void {
    // One that settles now leaves the list, and with it those of its chain; one that the kernel has
    // stays, and the list goes on behind it.
    let last: Operation | undefined
    for (;;) {
      const op: Operation | undefined = last === undefined ? watch.head : last.watchNext
      if (op === undefined) break
      this.#operations.cancelOne(op)
      if (op.watch === watch) last = op
    }
    this.#operations.waiting.admit()
  }

  /** Has the kernel wake us when the earliest deadline comes. */
  #arm(): void {
    const first = this.#deadlines.first
    // Also while the queue closes: what is under way may need its deadline to end.
    if (first === undefined) return
    const { backend } = this.#operations
    if (this.#armed !== undefined) {
      if (this.#armed.at <= first.deadline) return
      // Its slot is spare when this has arrived.
      backend.cancel(this.#armed.slot)
    }
    const slot = this.#spareSlots.pop() ?? FIRST_SLOT + this.#slotsMade++
    const nanoseconds = monotonic(first.deadline)
    const opcode = OP_TIMEOUT | FLAG_QUIET
    const refusal = backend.stage(opcode, slot, 0, 0, TIMEOUT_ABSOLUTE, 0, nanoseconds)
    // It refuses only when it takes nothing any more, and then there is nothing to end.
    this.#armed = refusal === undefined ? { slot, at: first.deadline } : undefined
  }

  /** A timeout's completion: its time has come, or an earlier one has taken its place. */
  arrive(slot: number): void {
    this.#spareSlots.push(slot)
    if (this.#armed?.slot !== slot) return
    this.#armed = undefined
    const now = performance.now()
    let some = false
    for (let op = this.#deadlines.first; op !== undefined; op = this.#deadlines.first) {
      if (op.deadline > now) break
      this.#deadlines.remove(op)
      op.late = !op.cancelled
      this.#operations.cancelOne(op)
      some = true
    }
    if (some) this.#operations.waiting.admit()
    this.#arm()
  }
}

/** performance.now() is CLOCK_MONOTONIC, counted from the start of the thread. */
const startNs = process.hrtime.bigint() - BigInt(Math.round(performance.now() * 1e6))

/** A time of performance.now() as nanoseconds of CLOCK_MONOTONIC, rounded up. */
export function monotonic(ms: number): bigint {
  return startNs + BigInt(Math.ceil(ms * 1e6))
}

/** Operations by deadline, the earliest first: a binary heap. Each knows its place in it. */
class Deadlines {
  readonly #heap: Operation[] = []

  get first(): Operation | undefined {
    return this.#heap[0]
  }

  add(op: Operation): void {
    this.#heap.push(op)
    this.#rise(op, this.#heap.length - 1)
  }

  remove(op: Operation): void {
    const index = op.heapIndex
    op.heapIndex = -1
    const last = this.#heap.pop()
    if (last === undefined || last === op) return
    this.#rise(last, index)
    if (last.heapIndex === index) this.#sink(last, index)
  }

  #rise(op: Operation, from: number): void {
    let index = from
    while (index > 0) {
      const parent = (index - 1) >> 1
      const above = this.#heap[parent] as Operation
      if (above.deadline <= op.deadline) break
      this.#put(above, index)
      index = parent
    }
    this.#put(op, index)
  }

  #sink(op: Operation, from: number): void {
    let index = from
    for (;;) {
      let child = 2 * index + 1
      const right = this.#heap[child + 1]
      let below = this.#heap[child]
      if (below === undefined) break
      if (right !== undefined && right.deadline < below.deadline) {
        below = right
        child++
      }
      if (below.deadline >= op.deadline) break
      this.#put(below, index)
      index = child
    }
    this.#put(op, index)
  }

  #put(op: Operation, index: number): void {
    this.#heap[index] = op
    op.heapIndex = index
  }
}
