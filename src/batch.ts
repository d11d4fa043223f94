/**
 * Batches: many operations for one promise, with results in order; chains, which start one after the
 * other and end with what fails. Each operation is a record like any other and travels as they do;
 * here is where its result goes, and how a chain gets all that it needs before any of it is staged.
 */
import {
  FLAG_DRAIN,
  FLAG_HARDLINK,
  FLAG_LINK,
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_LINK_TIMEOUT,
  OP_NOP,
  OP_RENAMEAT,
  OP_UNLINKAT,
  OP_WRITE,
  syscallOf,
} from './backend.js'
import { ERRNO } from './errno.js'
import {
  abortError,
  invalidArgType,
  invalidArgValue,
  rejected,
  systemError,
  uringError,
} from './errors.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import { hasBytes } from './memory.js'
import { BatchOperation } from './op.js'
import type { Operations } from './operations.js'
import {
  KIND_CALL,
  KIND_TRANSFER,
  type Operation,
  OVER,
  STAGED,
  WAITS_FOR_MEMORY,
  WAITS_FOR_SLOT,
} from './slots.js'
import { checkBoolean, checkOptions } from './validate.js'

const { EBADF, ECANCELED } = ERRNO
/**
 * Operations of one batch that are under way at once: the rest has no records yet. As many as settle in
 * one go are what a timer waits for.
 */
const WINDOW = 1024

/** Options of {@link Queue.submit}. */
export interface SubmitOptions extends LimitOptions {
  /**
   * 'none': in any order, at once. 'soft': each starts when the one before it has done all that it
   * was asked; the first that does not gives `ECANCELED` to the rest. 'hard': each starts when the
   * one before it is over. IOSQE_IO_LINK, IOSQE_IO_HARDLINK; Linux 5.3, 5.5. Default 'none'.
   */
  link?: 'none' | 'soft' | 'hard'
  /**
   * The first starts when all that the queue has staged before is complete, and what is staged later
   * starts when the first is (of a chain: when all of it is, or the first fsync, truncate, rename or
   * unlink in a soft one). Not staged yet is what waits for room, and what is still to come of a plain
   * buffer over 1 MiB, of `readMany` or of another batch: await those that must come first. Default
   * false.
   */
  drain?: boolean
  /** Reject with the first failed one's error when all are over. Default false. */
  throwOnError?: boolean
}

const LINKS = new Map([
  ['none', 0],
  ['soft', FLAG_LINK],
  ['hard', FLAG_HARDLINK],
])

/** What one operation of a batch came to: a count, 0 where there is nothing to count, or its error. */
export type BatchResult = number | Error

/** See {@link Queue.submit}. Throws what is wrong with the arguments before anything is staged. */
export function submit(
  operations: Operations,
  list: readonly BatchOperation[],
  options: SubmitOptions = {},
): Promise<BatchResult[]> {
  if (!Array.isArray(list)) throw invalidArgType('operations', 'an instance of Array', list)
  checkOptions(options)
  const { link = 'none', drain = false, throwOnError = false } = options
  const linkFlag = LINKS.get(link)
  if (linkFlag === undefined) {
    throw invalidArgValue('options.link', link, `must be one of ${[...LINKS.keys()].join(', ')}`)
  }
  checkBoolean(drain, 'options.drain')
  checkBoolean(throwOnError, 'options.throwOnError')
  const limits = checkLimits(options)
  // Read once, by index: what is checked is what is begun, whatever the array has for accessors.
  const ours: BatchOperation[] = []
  for (let index = 0; index < list.length; index++) {
    ours.push(list[index] as BatchOperation)
    checkOperation(operations, ours, index, linkFlag !== 0)
  }
  if (linkFlag !== 0) checkChain(operations, ours)
  if (operations.ended !== undefined) return rejected(operations.ended())
  if (ours.length === 0) return Promise.resolve([])
  const batch = new Batch(operations, ours, linkFlag, drain, limits)
  return batch.start(throwOnError)
}

function checkOperation(
  operations: Operations,
  list: readonly unknown[],
  index: number,
  linked: boolean,
): void {
  const made = list[index]
  const name = `operations[${index}]`
  if (!BatchOperation.isMade(made)) throw invalidArgType(name, 'made by op', made)
  if (made.file !== undefined && made.file.operations !== operations) {
    throw invalidArgValue(name, made, 'is on a file of another queue')
  }
  if (made.opcode !== OP_LINK_TIMEOUT) return
  const before = list[index - 1] as BatchOperation | undefined
  if (!linked || before === undefined || before.opcode === OP_LINK_TIMEOUT) {
    throw invalidArgValue(name, made, 'must follow what it bounds, in a chain')
  }
}

/** A chain goes to the kernel whole: one that can never fit would wait for ever. */
function checkChain(operations: Operations, list: readonly BatchOperation[]): void {
  const { entries } = operations
  if (list.length > entries) {
    const feature = `A chain of ${list.length} operations`
    const needs = `a queue with as many entries (this one has ${entries})`
    throw uringError('ERR_URING_UNSUPPORTED', { feature, needs })
  }
  const copied: number[] = []
  for (const { view, length, file } of list) {
    if (view === undefined || file === undefined) continue
    // A direct read may need the blocks around it; one that is aligned and in place does not.
    const around = file.blockBytes * 2
    if (around !== 0 || operations.memory.chunkOf(view) === 0) copied.push(length + around)
  }
  operations.transfers.checkChain(copied)
}

/** The operations of one call of `submit`, and what they came to. */
export class Batch {
  readonly #operations: Operations
  readonly #list: readonly BatchOperation[]
  readonly #link: number
  /** Whether the next one that is begun drains: the first that can be. */
  #drain: boolean
  readonly #limits: Limits | undefined
  /** What each came to. What could not be begun has its error from the start. */
  readonly #results: BatchResult[]
  /** Keeps the queue from closing between the operations of a long batch. */
  #whole: Operation | undefined
  readonly #wholeNumber: number
  #settle: (() => void) | undefined
  #next = 0
  #underWay = 0
  #settled = 0
  #feeding = false

  constructor(
    operations: Operations,
    list: readonly BatchOperation[],
    link: number,
    drain: boolean,
    limits: Limits | undefined,
  ) {
    this.#operations = operations
    this.#list = list
    this.#link = link
    this.#drain = drain
    this.#limits = limits
    this.#results = new Array<BatchResult>(list.length).fill(0)
    for (const [index, { file, opcode }] of list.entries()) {
      if (file === undefined) continue
      if (file.closed) this.#results[index] = systemError(EBADF, syscallOf(opcode))
      // A file that is closed later waits for all of them, begun or not.
      else file.pending++
    }
    this.#whole = list.length > WINDOW && link === 0 ? operations.hold() : undefined
    this.#wholeNumber = this.#whole?.number ?? 0
  }

  start(throwOnError: boolean): Promise<BatchResult[]> {
    return new Promise((resolve) => {
      this.#settle = () => {
        const failed = throwOnError ? this.#firstFailure() : undefined
        resolve(failed === undefined ? this.#results : rejected(failed))
      }
      const over = overBefore(this.#limits, this.#list[0]?.opcode ?? OP_NOP)
      if (over !== undefined) this.#endRest(over)
      else if (this.#link !== 0) this.#startChain()
      else this.#feed()
    })
  }

  #firstFailure(): Error | undefined {
    const failed = (result: BatchResult, index: number) =>
      result instanceof Error &&
      // That a bound was not needed is no failure.
      !(
        this.#list[index]?.opcode === OP_LINK_TIMEOUT &&
        (result as { code?: string }).code === 'ECANCELED'
      )
    return this.#results.find(failed) as Error | undefined
  }

  /** Begins operations up to the window. Each that settles makes room for another. */
  #feed(): void {
    if (this.#feeding) return
    this.#feeding = true
    while (this.#next < this.#list.length && this.#underWay < WINDOW) {
      const over = this.#cancelled() ?? overBefore(this.#limits, OP_NOP)
      if (over !== undefined) {
        this.#endRest(over)
        break
      }
      const problem = this.#problem(this.#next)
      if (problem !== undefined) this.#skip(problem)
      else this.#operations.begin(this.#record(this.#next++))
    }
    this.#feeding = false
    this.#endIfOver()
  }

  /** Why no more are to be begun: the queue has failed, or cancels what it has. */
  #cancelled(): Error | undefined {
    if (this.#whole === undefined || this.#whole.number === this.#wholeNumber) return undefined
    return this.#operations.ended?.() ?? abortError()
  }

  /** Why one of them cannot be begun. */
  #problem(index: number): Error | undefined {
    const before = this.#results[index] as BatchResult
    if (before instanceof Error) return before
    const { file, opcode, view, length } = this.#list[index] as BatchOperation
    if (file?.cancelled) return abortError(undefined, opcode === OP_WRITE ? 0 : undefined)
    if (view === undefined || hasBytes(view, length)) return undefined
    const bytesWritten = opcode === OP_WRITE ? 0 : undefined
    return uringError('ERR_URING_BUFFER_DETACHED', { syscall: syscallOf(opcode), bytesWritten })
  }

  /** A record for one of the list. */
  #record(index: number): Operation {
    const made = this.#list[index] as BatchOperation
    const operations = this.#operations
    const op = operations.slots.take()
    this.#underWay++
    op.batch = this
    op.index = index
    if (this.#drain) op.flags = FLAG_DRAIN
    this.#drain = false
    // Nothing to move is a nop, so that a chain keeps its shape.
    if (made.view === undefined || made.length > 0) op.opcode = made.opcode
    else op.opcode = OP_NOP
    if (made.view !== undefined && made.file !== undefined && made.length > 0) {
      op.kind = KIND_TRANSFER
      operations.transfers.aim(op, made.file, made.view, made.length, made.position)
    } else {
      op.kind = KIND_CALL
      op.file = made.file
      op.offset = made.offset
      op.length = op.opcode === OP_NOP ? 0 : made.length
      op.position = made.position
      op.bytes = made.bytes
      op.path = made.path
      op.dest = made.dest
    }
    if (this.#limits !== undefined) operations.limits.add(op, this.#limits)
    return op
  }

  /** What is not begun ends with this. */
  #endRest(error: Error): void {
    while (this.#next < this.#list.length) this.#skip(error)
  }

  /** Takes what one of them came to. */
  put(index: number, value: unknown): void {
    this.#results[index] = (value as BatchResult | undefined) ?? 0
    this.#underWay--
    this.#settled++
    if (this.#next < this.#list.length) this.#feed()
    else this.#endIfOver()
  }

  #endIfOver(): void {
    if (this.#settled < this.#list.length || this.#feeding) return
    const settle = this.#settle
    this.#settle = undefined
    settle?.()
    if (this.#whole?.number === this.#wholeNumber) this.#operations.settle(this.#whole, undefined)
    this.#whole = undefined
  }

  // ---- chains -------------------------------------------------------------------------------

  /** A chain's records are made at once, for it takes all its slots at once. */
  #startChain(): void {
    const members: Operation[] = []
    this.#feeding = true
    let failed = false
    while (this.#next < this.#list.length) {
      const { opcode } = this.#list[this.#next] as BatchOperation
      // What has failed before it began ends a soft chain, and needs no bound.
      const ends: boolean = failed && (this.#link === FLAG_LINK || opcode === OP_LINK_TIMEOUT)
      const problem: Error | undefined = ends
        ? systemError(ECANCELED, syscallOf(opcode))
        : this.#problem(this.#next)
      failed = problem !== undefined
      if (problem !== undefined) this.#skip(problem)
      else members.push(this.#record(this.#next++))
    }
    this.#feeding = false
    for (const [index, op] of members.entries()) {
      op.first = members[0]
      if (index === members.length - 1) continue
      const decides = this.#link === FLAG_LINK ? decider(members, index) : undefined
      if (decides === undefined) op.flags |= this.#link
      else decides.rest = members.slice(index + 1)
    }
    const first = members[0]
    if (first === undefined) {
      this.#endIfOver()
      return
    }
    first.chain = members
    this.#operations.begin(first)
  }

  /** The next one ends without having begun. */
  #skip(error: Error): void {
    const { file } = this.#list[this.#next] as BatchOperation
    const counted = file !== undefined && !(this.#results[this.#next] instanceof Error)
    this.#underWay++
    this.put(this.#next++, error)
    if (counted) file.leave()
  }
}

/**
 * The kernel does not end a chain when one of these fails: they do not call `req_set_fail`
 * (io_uring/sync.c, truncate.c, fs.c). So what follows is staged when they have succeeded.
 */
function failsUnnoticed(op: Operation | undefined): boolean {
  switch (op?.opcode) {
    case OP_FSYNC:
    case OP_FTRUNCATE:
    case OP_RENAMEAT:
    case OP_UNLINKAT:
      return true
    default:
      return false
  }
}

/** Whose success what comes after `index` waits for, if it is not the kernel that sees to that. */
function decider(members: readonly Operation[], index: number): Operation | undefined {
  const [op, next] = [members[index] as Operation, members[index + 1]]
  // Its bound goes to the kernel together with it.
  if (failsUnnoticed(op)) return next?.opcode === OP_LINK_TIMEOUT ? undefined : op
  const before = members[index - 1]
  return op.opcode === OP_LINK_TIMEOUT && failsUnnoticed(before) ? before : undefined
}

/** Stages a chain whole, or says what it has to wait for; then it holds nothing. */
export function startChain(operations: Operations, first: Operation): number {
  const members = first.chain as readonly Operation[]
  const batch = first.batch as Batch
  const cancelled = members.find((op) => op.cancelled)
  if (cancelled !== undefined) {
    // None has begun, and a limit is one for all of them: each says so.
    const { late, watch } = cancelled
    if (late || watch?.signal.aborted === true) {
      for (const op of members) {
        op.late = late
        op.cancelled = true
      }
    }
    endChain(operations, members, batch)
    return OVER
  }
  for (const op of members) {
    if (operations.slots.assign(op)) continue
    for (const other of members) operations.slots.unassign(other)
    return WAITS_FOR_SLOT
  }
  const held: Operation[] = []
  for (const op of members) {
    if (op.kind !== KIND_TRANSFER) continue
    const outcome = operations.transfers.prepare(op)
    if (outcome === STAGED) {
      held.push(op)
      continue
    }
    for (const other of held) operations.transfers.letGo(other)
    if (outcome === WAITS_FOR_MEMORY) return WAITS_FOR_MEMORY
    // It has settled with what is wrong; the others cannot go without it.
    endChain(operations, members, batch)
    return OVER
  }
  stageChain(operations, members, batch)
  return STAGED
}

function stageChain(operations: Operations, members: readonly Operation[], batch: Batch): void {
  for (const [index, op] of members.entries()) {
    const refusal =
      op.kind === KIND_TRANSFER
        ? operations.transfers.stage(op, op.opcode | op.flags)
        : operations.stageCall(op)
    if (refusal === undefined) {
      op.staged = true
      if ((op.flags & (FLAG_LINK | FLAG_HARDLINK)) === 0) return
      continue
    }
    // The engine cancels what of the chain it has; the rest will not begin.
    const rest = members.slice(index + 1)
    for (const other of [op, ...rest]) {
      if (other.kind === KIND_TRANSFER) operations.transfers.letGo(other)
    }
    operations.refused(op, refusal)
    endChain(operations, rest, batch)
    return
  }
}

/** Goes on with a chain behind a member whose failure the kernel would not have noticed. */
export function goOnWithChain(
  operations: Operations,
  members: readonly Operation[],
  batch: Batch,
  succeeded: boolean,
): void {
  if (succeeded && !members.some((op) => op.cancelled)) {
    stageChain(operations, members, batch)
    return
  }
  for (const op of members) if (op.kind === KIND_TRANSFER) operations.transfers.letGo(op)
  endChain(operations, members, batch)
}

/** Ends those members that are still under way; none of them is staged. */
function endChain(operations: Operations, members: readonly Operation[], batch: Batch): void {
  for (const op of members) if (op.batch === batch) operations.finish(op, -ECANCELED)
}

/** How a member of a chain ends: it is not gone on with, and a short write is no success. */
export function endOfMember(op: Operation, count: number): BatchResult {
  if (op.opcode !== OP_WRITE || count === op.length) return count
  return uringError('ERR_URING_SHORT_WRITE', { bytesWritten: count, lengthBytes: op.length })
}
