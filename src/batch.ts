/**
 * Batches: many operations for one promise, with results in order; chains, which start one after the
 * other and end with what fails. Each operation is a record like any other and travels as they do;
 * here is where its result goes, and how a chain gets all that it needs before any of it is staged.
 */
import { setImmediate } from 'node:timers'
import { bytesAround } from './alignment.js'
import {
  FLAG_DRAIN,
  FLAG_HARDLINK,
  FLAG_LINK,
  isOutgoing,
  OP_CLOSE,
  OP_LINK_TIMEOUT,
  OP_NOP,
  OP_READ,
  syscallOf,
  syscallOfCall,
} from './backend.js'
import { BatchOperation, type Result } from './batch-operation.js'
import { decider } from './chain.js'
import { ERRNO } from './errno.js'
import {
  abortError,
  closedError,
  invalidArgType,
  invalidArgValue,
  rejected,
  systemError,
  uringError,
} from './errors.js'
import { type FileState, isEndless, isFile } from './file-state.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import { hasBytes } from './memory.js'
import { checkModifiers } from './modifiers.js'
import type { Operations } from './operations.js'
import type { Unfinished } from './order.js'
import { problemOfPaths } from './refusals.js'
import { KIND_CALL, KIND_TRANSFER, type Operation } from './slots.js'
import { checkBoolean, checkNames, checkOptions } from './validate.js'

const { ECANCELED } = ERRNO
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
  link?: 'none' | 'soft' | 'hard' | undefined
  /**
   * The first starts when the operations begun before are complete, and those begun later start when the
   * first is (of a chain: all of it). Of `copyTo`, `replaceFile` and batches of more than 1024 that has
   * begun which they have got to. Default false.
   */
  drain?: boolean | undefined
  /**
   * Reject with the first failed one's error when all are over; the files that the others opened are
   * closed before. Default false.
   */
  throwOnError?: boolean | undefined
}

/** All of them: a chain whose `link` has another name would be none. */
const NAMES = Object.keys({
  link: 0,
  drain: 0,
  signal: 0,
  timeoutMs: 0,
  throwOnError: 0,
} satisfies Record<keyof SubmitOptions, 0>)
const LINKS = new Map([
  ['none', 0],
  ['soft', FLAG_LINK],
  ['hard', FLAG_HARDLINK],
])

/** What one operation of a batch came to: what its constructor says, or its error. */
export type BatchResult<T = number> = T | Error

/** See {@link Queue.submit}. Throws what is wrong with the arguments before anything is staged. */
export function submit(
  operations: Operations,
  list: readonly BatchOperation<Result>[],
  options: SubmitOptions = {},
): Promise<BatchResult<Result>[]> {
  if (!Array.isArray(list)) throw invalidArgType('operations', 'an instance of Array', list)
  checkOptions(options)
  checkNames(options, NAMES)
  const { link = 'none', drain = false, throwOnError = false } = options
  const linkFlag = LINKS.get(link)
  if (linkFlag === undefined) {
    throw invalidArgValue('options.link', link, `must be one of ${[...LINKS.keys()].join(', ')}`)
  }
  checkBoolean(drain, 'options.drain')
  checkBoolean(throwOnError, 'options.throwOnError')
  const limits = checkLimits(options)
  // Read once, by index: what is checked is what is begun, whatever the array has for accessors.
  const ours: BatchOperation<Result>[] = []
  for (let index = 0; index < list.length; index++) {
    ours.push(list[index] as BatchOperation<Result>)
    checkOperation(operations, ours, index, linkFlag !== 0)
  }
  if (linkFlag !== 0) checkChain(operations, ours)
  if (operations.ended !== undefined) return rejected(operations.ended())
  if (ours.length === 0) return Promise.resolve([])
  if (drain) {
    operations.sendGathered()
    operations.waiting.drains++
  }
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
  for (const file of [made.file, made.other]) {
    if (file !== undefined && file.operations !== operations) {
      throw invalidArgValue(name, made, 'is on a file of another queue')
    }
  }
  operations.kernel.require(made.opcode)
  checkModifiers(operations, made.flags)
  made.check?.(operations)
  if (linked && made.opcode === OP_CLOSE) {
    throw invalidArgValue(name, made, 'cannot be in a chain: it waits for what uses the file')
  }
  if (made.opcode !== OP_LINK_TIMEOUT) return
  const before = list[index - 1] as BatchOperation | undefined
  if (!linked || before === undefined || before.opcode === OP_LINK_TIMEOUT) {
    throw invalidArgValue(name, made, 'must follow what it bounds, in a chain')
  }
}

/** A chain goes to the kernel whole: one that can never fit would wait for ever. */
function checkChain(operations: Operations, list: readonly BatchOperation<Result>[]): void {
  const { entries } = operations.kernel
  if (list.length > entries) {
    const feature = `A chain of ${list.length} operations`
    const needs = `a queue with as many entries (this one has ${entries})`
    throw uringError('ERR_URING_UNSUPPORTED', { feature, needs })
  }
  const copied: number[] = []
  const { transfers } = operations
  for (const { opcode, view, length, file, position } of list) {
    if (view === undefined || file === undefined) continue
    if (transfers.chunkInPlace(file, view, length, position) !== 0) continue
    copied.push(opcode === OP_READ ? bytesAround(file, position, length) : length)
  }
  transfers.checkChain(copied)
}

/** The operations of one call of `submit`, and what they came to. */
export class Batch implements Unfinished {
  /** Whether a part of a chain is still to be staged. */
  isUnfinished = false
  readonly #operations: Operations
  readonly #list: readonly BatchOperation<Result>[]
  readonly #link: number
  /** Whether the next one that is begun drains: the first that can be. */
  #drain: boolean
  readonly #limits: Limits | undefined
  /** What each came to. What could not be begun has its error from the start. */
  readonly #results: BatchResult<Result>[]
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
    list: readonly BatchOperation<Result>[],
    link: number,
    drain: boolean,
    limits: Limits | undefined,
  ) {
    this.#operations = operations
    this.#list = list
    this.#link = link
    this.#drain = drain
    this.#limits = limits
    this.#results = new Array<BatchResult<Result>>(list.length).fill(0)
    for (const [index, { file, other, opcode }] of list.entries()) {
      // A close would wait for itself.
      if (opcode === OP_CLOSE) continue
      const closed = [file, other].find((each) => each?.closed)
      if (closed !== undefined) {
        this.#results[index] = closedError(closed, syscallOf(opcode))
        continue
      }
      // A file that is closed later waits for all of them, begun or not.
      if (file !== undefined) file.pending++
      if (other !== undefined) other.pending++
    }
    this.#whole = list.length > WINDOW && link === 0 ? operations.hold() : undefined
    if (this.#whole !== undefined) operations.feeding.add(this)
    this.#wholeNumber = this.#whole?.number ?? 0
  }

  start(throwOnError: boolean): Promise<BatchResult<Result>[]> {
    return new Promise((resolve) => {
      this.#settle = () => {
        const failed = throwOnError ? this.#firstFailure() : undefined
        resolve(failed === undefined ? this.#results : this.#rejected(failed))
      }
      if (this.#link === 0 || this.#isOver()) this.#feed()
      else this.#startChain()
    })
  }

  /** How one of them was made. */
  made(index: number): BatchOperation<Result> | undefined {
    return this.#list[index]
  }

  /** Whether one that is still to be begun uses such memory. */
  willUse(chosen: (view: ArrayBufferView) => boolean): boolean {
    for (let index = this.#next; index < this.#list.length; index++) {
      const { view, buffers } = this.#list[index] as BatchOperation
      if ((view !== undefined && chosen(view)) || buffers?.some(chosen)) return true
    }
    return false
  }

  /** Whether what follows one that failed is done all the same. */
  get isHard(): boolean {
    return this.#link === FLAG_HARDLINK
  }

  #firstFailure(): Error | undefined {
    const failed = (result: BatchResult<Result>, index: number) =>
      result instanceof Error &&
      // That a bound was not needed is no failure.
      !(
        this.#list[index]?.opcode === OP_LINK_TIMEOUT &&
        (result as { code?: string }).code === 'ECANCELED'
      )
    return this.#results.find(failed) as Error | undefined
  }

  /** Rejects when the files that it opened are closed: nobody gets them. */
  async #rejected(error: Error): Promise<never> {
    const opened = this.#results.filter((result) => isFile(result))
    await Promise.allSettled(opened.map((file) => file.close()))
    return rejected(error)
  }

  /** Begins operations up to the window. Each that settles makes room for another. */
  #feed(): void {
    if (this.#feeding) return
    this.#feeding = true
    let skipped = 0
    while (this.#next < this.#list.length && this.#underWay < WINDOW) {
      if (skipped === WINDOW) {
        // An error takes some microseconds to make: of a million nobody is to wait for all.
        setImmediate(() => {
          this.#feeding = false
          this.#feed()
        })
        return
      }
      const { file, opcode } = this.#list[this.#next] as BatchOperation
      const end = this.#cancelled() ?? this.#over(this.#next)
      const problem = end ?? this.#problem(this.#next)
      if (opcode === OP_CLOSE && end === undefined) this.#close(file as FileState)
      else if (problem !== undefined) {
        skipped++
        this.#skip(problem)
      } else this.#operations.begin(this.#record(this.#next++))
    }
    this.#feeding = false
    this.#endIfOver()
  }

  /** Why no more are to be begun: the queue has failed, or cancels what it has. */
  #cancelled(): Error | undefined {
    if (this.#whole === undefined || this.#whole.number === this.#wholeNumber) return undefined
    return this.#operations.cutOff()
  }

  /** Why one of them cannot be begun. */
  #problem(index: number): Error | undefined {
    const before = this.#results[index]
    if (before instanceof Error) return before
    const made = this.#list[index] as BatchOperation
    const { file, other, opcode, view, length } = made
    const bytesWritten = isOutgoing(opcode) ? 0 : undefined
    if (file?.cancelled || other?.cancelled) return abortError(undefined, bytesWritten)
    const endsReads = this.#operations.endsReads || file?.readsCancelled === true
    if (endsReads && isEndless(made)) return abortError()
    if (view === undefined) return problemOfPaths(made)
    if (hasBytes(view, length)) return undefined
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
    if (made.view === undefined || made.length > 0) {
      op.opcode = made.opcode
      op.flags |= made.flags
    } else op.opcode = OP_NOP
    if (made.view !== undefined && made.file !== undefined && made.length > 0) {
      op.kind = KIND_TRANSFER
      operations.transfers.aim(op, made.file, made.view, made.length, made.position)
    } else {
      op.kind = KIND_CALL
      op.file = made.file
      op.other = made.other
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

  #isOver(): boolean {
    return overBefore(this.#limits, OP_NOP) !== undefined
  }

  /** What one of them ends with that the limits keep from beginning. */
  #over(index: number): Error | undefined {
    if (this.#limits === undefined) return undefined
    const made = this.#list[index] as BatchOperation
    const bytesWritten = isOutgoing(made.opcode) ? 0 : undefined
    return overBefore(this.#limits, made.opcode, bytesWritten, syscallOfCall(made))
  }

  /** A close is not only a call: it waits for what uses the file, and it is the queue's to know. */
  #close(file: FileState): void {
    const index = this.#next++
    // It has no place in the window: it may wait for operations that are still to get one.
    const keep = (result: BatchResult<Result>) => {
      this.#underWay++
      this.#keep(index, result)
    }
    void file.close().then(() => keep(0), keep)
  }

  /** Takes what one of them came to, and makes of it what is to be told. */
  put(index: number, value: unknown): void {
    const { finish } = this.#list[index] as BatchOperation<Result>
    if (finish === undefined || value instanceof Error) {
      this.#keep(index, (value as number | Error | undefined) ?? 0)
      return
    }
    void finish(this.#operations, value, this.#limits).then(
      (result) => this.#keep(index, result),
      (error: Error) => this.#keep(index, error),
    )
  }

  #keep(index: number, result: BatchResult<Result>): void {
    this.#results[index] = result
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
    this.#operations.feeding.delete(this)
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
    const drains = ((members[0]?.flags ?? 0) & FLAG_DRAIN) !== 0
    for (const [index, op] of members.entries()) {
      op.first = members[0]
      if (index === members.length - 1) continue
      const decides = decider(members, index, this.#link === FLAG_LINK)
      if (decides === undefined) op.flags |= this.#link
      else {
        decides.rest = members.slice(index + 1)
        // What drains does so with each of its parts.
        if (drains) (members[index + 1] as Operation).flags |= FLAG_DRAIN
      }
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
    const { file, other, opcode } = this.#list[this.#next] as BatchOperation
    const counted = opcode !== OP_CLOSE && !(this.#results[this.#next] instanceof Error)
    this.#underWay++
    this.put(this.#next++, error)
    if (!counted) return
    file?.leave()
    other?.leave()
  }
}
