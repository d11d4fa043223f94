/**
 * The life of an operation: staged, waiting for room where there is none, gone on with after each
 * completion until it is done, settled. Everything that a queue does travels this one way.
 *
 * Arguments have been checked by the callers. Nothing here blocks, and no operation has an object or
 * a closure of its own besides its promise. It is long because it is one way: whoever changes a step of it
 * has to see the others.
 */
import { setImmediate } from 'node:timers'
import type { Appends } from './appends.js'
import {
  type Backend,
  type Deliver,
  FLAG_DRAIN,
  isOutgoing,
  MESSAGE_SLOT,
  OP_LINK_TIMEOUT,
  OP_NOP,
  OP_OPENAT,
  OP_STATX,
  OP_TIMEOUT,
  OP_WRITEV,
  syscallOf,
  syscallOfCall,
} from './backend.js'
import type { Batch } from './batch.js'
import { goOnWithChain, isWhole, startChain } from './chain.js'
import { ERRNO } from './errno.js'
import {
  abortError,
  internalError,
  rejected,
  type SystemErrorExtra,
  systemError,
  uringError,
} from './errors.js'
import type { File } from './file.js'
import type { FileState } from './file-state.js'
import { cannotPoll } from './iopoll.js'
import { Kernel } from './kernel.js'
import { LimitKeeper, type Limits, overBefore } from './limits.js'
import { arriveMany, bytesOfMany, outcomeOfMany, startMany, takeCounts } from './many.js'
import { Memory } from './memory.js'
import { Messages } from './messages.js'
import { refusedModifier } from './modifiers.js'
import type { EngineOptions, Opened } from './native.js'
import { Observer } from './observer.js'
import type { BackendChoice } from './options.js'
import { Pipes } from './pipes.js'
import { refusalError } from './refusals.js'
import {
  canBeginAgain,
  KIND_BEHIND,
  KIND_CALL,
  KIND_MANY,
  KIND_NOP,
  KIND_OUTSIDE,
  KIND_SHARE,
  KIND_TRANSFER,
  KIND_TURN,
  type Operation,
  OVER,
  SLOTS_MAX,
  Slots,
  STAGED,
  WAITS_FOR_SLOT,
} from './slots.js'
import { startBackend } from './start.js'
import { noteFailed, noteSync } from './syncs.js'
import { Transfers } from './transfers.js'
import { Volume } from './volume.js'
import { Waiting } from './waiting.js'

const { EALREADY, ECANCELED, EINTR, ENOENT, ENOTSUP, ETIME } = ERRNO

/** The operation whose promise is being made. */
let launching: Operation | undefined

/**
 * The executor of every promise: one function, so that there is no closure for each operation, and a
 * constant of the module, so that V8 can inline the making of the promise (15 ns).
 */
const keepResolve = (resolve: (value: never) => void): void => {
  if (launching !== undefined) launching.resolve = resolve as (value: unknown) => void
}

/** What a call has beside its numbers. */
export interface CallOptions {
  bytes?: Uint8Array | undefined
  /** Modifiers beside the opcode. */
  flags?: number | undefined
  /** Of a splice: the file that it reads from. */
  other?: FileState | undefined
  /** Paths for the error of a refusal. */
  path?: string | undefined
  dest?: string | undefined
  /** It may also start while the queue closes. */
  internal?: boolean | undefined
  /** What it is a step of, or a part of. */
  whole?: Operation | undefined
  partOf?: Operation | undefined
  limits?: Limits | undefined
}

/** The operations of one queue. */
export class Operations {
  readonly options: EngineOptions
  readonly backend: Backend
  readonly memory: Memory
  readonly transfers: Transfers
  readonly volume: Volume
  readonly pipes: Pipes
  readonly limits: LimitKeeper
  readonly kernel: Kernel
  readonly observer: Observer
  readonly slots: Slots = new Slots(SLOTS_MAX)
  readonly waiting: Waiting = new Waiting(this)
  readonly messages: Messages = new Messages()
  /** Whether what may never end by itself, reads and timeouts, begins no more. */
  endsReads = false
  /** Whether a close has cancelled what was under way: what waits for others does not begin any more. */
  isCancelled = false
  /** Set once nothing new may start: what new operations reject with. */
  ended: (() => Error) | undefined = undefined
  /** Batches that have operations to begin, or the rest of a chain to stage, when others of them are over. */
  readonly feeding: Set<Batch> = new Set()
  /** Appends that are gathered, and staged when the event loop goes on. */
  readonly gathering: Set<Appends> = new Set()
  /** Called when the last operation under way has settled. */
  onIdle: (() => void) | undefined = undefined
  /** Makes a file of what an open gave; the queue's, which knows its files. */
  enter: (opened: Opened, path: string, flags: number, limits?: Limits) => Promise<File> = () =>
    rejected(internalError('a file for nobody'))
  readonly #pairs: Int32Array

  constructor(
    choice: BackendChoice,
    options: EngineOptions,
    without: readonly string[] = [],
    observer: Observer = new Observer(false),
  ) {
    const deliver: Deliver = (count, slot, result) => this.#deliver(count, slot, result)
    const { backend, pairs } = startBackend(choice, options, deliver)
    this.options = options
    this.backend = backend
    this.observer = observer
    this.kernel = new Kernel(() => backend.capabilities(), without)
    this.#pairs = pairs
    this.memory = new Memory(backend, options.allocBytes, (...what) => this.#uses(...what))
    this.transfers = new Transfers(this, backend)
    this.volume = new Volume(this)
    this.pipes = new Pipes(this)
    this.limits = new LimitKeeper(this)
  }

  /** Operations under way. */
  get pending(): number {
    return this.slots.pending
  }

  // ---- beginnings ---------------------------------------------------------------------------

  /** There and back. */
  nop(limits?: Limits): Promise<void> {
    if (this.ended !== undefined) return rejected(this.ended())
    if (limits !== undefined) {
      const over = overBefore(limits, OP_NOP)
      if (over !== undefined) return rejected(over)
    }
    const op = this.slots.take()
    op.opcode = OP_NOP
    if (limits !== undefined) this.limits.add(op, limits)
    return this.launch(op)
  }

  /**
   * One system call: resolves with its result, negative for an errno; an open's with what
   * `takeOpened` gives and a statx's with its 256 bytes. Rejects when it was cancelled. `file` counts
   * it as pending.
   */
  call(
    opcode: number,
    file: FileState | undefined,
    offset: number,
    length: number,
    position: number | bigint,
    options: CallOptions = {},
  ): Promise<unknown> {
    const { internal = false, limits } = options
    if (!internal && this.ended !== undefined) return rejected(this.ended())
    if (limits !== undefined) {
      const what = { opcode, offset, length, bytes: options.bytes }
      const over = overBefore(limits, opcode, undefined, syscallOfCall(what))
      if (over !== undefined) return rejected(over)
    }
    const [op, promise] = this.record(opcode, file, offset, length, position, options)
    this.begin(op)
    return promise
  }

  /** The record of a call with its promise, not begun. */
  record(
    opcode: number,
    file: FileState | undefined,
    offset: number,
    length: number,
    position: number | bigint,
    { bytes, flags = 0, other, path, dest, limits, whole, partOf }: CallOptions = {},
  ): [Operation, Promise<unknown>] {
    const op = this.slots.take()
    op.kind = KIND_CALL
    op.opcode = opcode
    op.file = file
    op.offset = offset
    op.length = length
    op.position = position
    op.bytes = bytes
    op.flags = flags
    op.other = other
    op.path = path
    op.dest = dest
    op.partOf = partOf
    op.whole = whole
    if (whole !== undefined) whole.step = op
    if (file !== undefined) file.pending++
    if (other !== undefined) other.pending++
    if (limits !== undefined) this.limits.add(op, limits)
    launching = op
    return [op, new Promise<unknown>(keepResolve)]
  }

  /**
   * A share in what others began: its promise settles when the record does, which whoever made it
   * sees to; or earlier, by its limits, unless it is a {@link KIND_OUTSIDE}.
   */
  share<T = void>(
    opcode: number,
    file: FileState | undefined,
    limits: Limits | undefined,
    kind: typeof KIND_SHARE | typeof KIND_OUTSIDE = KIND_SHARE,
  ): [Operation, Promise<T>] {
    const op = this.slots.takeShare(kind)
    op.opcode = opcode
    op.file = file
    if (file !== undefined) file.pending++
    if (limits !== undefined) this.limits.add(op, limits)
    launching = op
    return [op, new Promise<T>(keepResolve)]
  }

  /**
   * Waits for what others may wait for as well, for as long as `limits` allow, and `whole` is not cancelled. It
   * does not reject by itself.
   */
  waitFor(
    others: Promise<void>,
    opcode: number,
    file: FileState,
    limits: Limits,
    whole: Operation | undefined,
  ): Promise<void> {
    const over = overBefore(limits, opcode, isOutgoing(opcode) ? 0 : undefined)
    if (over !== undefined) return rejected(over)
    const [share, promise] = this.share(opcode, file, limits)
    const { number } = share
    share.whole = whole
    if (whole !== undefined) whole.step = share
    void others.then(() => {
      if (share.number === number) this.settle(share, undefined)
    })
    return promise
  }

  /** Counts something of many operations as under way, also between them, until it is settled. */
  hold(file?: FileState): Operation {
    const [op, promise] = this.share(OP_NOP, file, undefined)
    promise.catch(() => {})
    return op
  }

  /**
   * Counts work that is done elsewhere, or in several operations, as one under way until it settles. The
   * work is given a function that throws when it is to end early, to be called between its steps, and
   * the record, for steps that end with it. `other` is a file that it reads from beside.
   */
  async outside<T>(
    file: FileState | undefined,
    opcode: number,
    work: (check: () => void, whole: Operation) => Promise<T>,
    other?: FileState,
  ): Promise<T> {
    const op = this.slots.takeShare(KIND_OUTSIDE)
    op.opcode = opcode
    op.file = file
    op.other = other
    if (file !== undefined) file.pending++
    if (other !== undefined) other.pending++
    const { number } = op
    const check = () => {
      // Settled by the end of the engine, and the record somebody else's.
      if (op.number !== number) throw this.cutOff()
      if (op.cancelled) throw abortError()
    }
    try {
      return await work(check, op)
    } finally {
      if (op.number === number) this.settle(op, undefined)
    }
  }

  /** Stages what is gathered now: something is to come behind it, or it is to be submitted. */
  sendGathered(): void {
    for (const appends of this.gathering) appends.send()
  }

  /** Makes the promise of a record and stages it, or lets it wait. */
  launch<T>(op: Operation): Promise<T> {
    launching = op
    const promise = new Promise<T>(keepResolve)
    this.begin(op)
    return promise
  }

  // ---- staging ------------------------------------------------------------------------------

  /** Stages the operation's next piece, or says that there is no room for it now. */
  start(op: Operation): number {
    if (op.chain !== undefined) return startChain(this, op)
    if (op.cancelled) {
      this.finish(op, -ECANCELED)
      return OVER
    }
    if (op.kind === KIND_TURN) {
      this.waiting.order.add(op.partOf as Operation, false)
      this.settle(op, undefined)
      return OVER
    }
    if (op.slot < 0 && !this.slots.assign(op)) return WAITS_FOR_SLOT
    if (op.datasync && op.companion === undefined && !this.transfers.attachCompanion(op)) {
      return WAITS_FOR_SLOT
    }
    let refusal: number | undefined
    if (op.kind === KIND_NOP) {
      refusal = this.backend.stageBare(OP_NOP, op.slot)
    } else if (op.kind === KIND_TRANSFER) {
      return this.transfers.startPiece(op)
    } else if (op.kind === KIND_MANY) {
      return startMany(this, op)
    } else {
      refusal = this.stageCall(op)
    }
    return refusal === undefined ? this.took(op) : this.refused(op, refusal)
  }

  /** The engine has it, behind another of its chain or not. What goes on with it drains no more. */
  took(op: Operation, before?: Operation): number {
    op.staged = true
    noteSync(op, before)
    op.flags &= ~FLAG_DRAIN
    return STAGED
  }

  /** Stages what moves no bytes; undefined, or the number of a refusal. */
  stageCall(op: Operation): number | undefined {
    const { opcode, flags, slot, offset, length, position, bytes } = op
    const handle = op.file === undefined ? 0 : op.file.handle
    const from = op.other === undefined ? 0 : op.other.handle
    return this.backend.stage(opcode | flags, slot, handle, from, offset, length, position, bytes)
  }

  /** The engine took it not. */
  refused(op: Operation, refusal: number): number {
    this.fail(op, refusalError(this, op, refusal))
    return OVER
  }

  // ---- completions --------------------------------------------------------------------------

  /** Called by the engine. Each completion stands alone: what one throws is its own affair. */
  #deliver(count: number, slot: number, result: number): void {
    if (count === 1) {
      this.#arrive(slot, result)
    } else if (count > 1) {
      const pairs = this.#pairs
      for (let i = 0; i < count * 2; i += 2) {
        this.#arrive(pairs[i] as number, pairs[i + 1] as number)
      }
    } else if (count < 0) {
      this.#failAll(-count)
    } else {
      setImmediate(() => this.backend.cameRound())
      return
    }
    this.waiting.admit()
    this.messages.tell()
  }

  #arrive(slot: number, result: number): void {
    if (slot === MESSAGE_SLOT) {
      this.messages.arrive(result)
      return
    }
    const op = this.slots.bySlot[slot]
    if (op === undefined) this.limits.arrive(slot)
    else if (op.staged) this.#arriveStaged(op, result)
  }

  #arriveStaged(op: Operation, result: number): void {
    const { kind, sync, follower } = op
    if (kind === KIND_MANY && !takeCounts(this, op)) return
    if (follower !== undefined) {
      op.follower = undefined
      follower.op.file?.syncs.begins(follower)
    }
    if (sync === undefined) {
      if (result < 0) noteFailed(op, result)
      this.#take(op, result)
      return
    }
    const outcome = kind === KIND_MANY ? outcomeOfMany(op, result) : result
    op.file?.syncs.arrived(sync, result, outcome)
  }

  /** What a sync came to is known: {@link Syncs}. */
  readonly goOnWith = (op: Operation, result: number): void => {
    op.sync = undefined
    this.#take(op, result)
  }

  #take(op: Operation, result: number): void {
    if (op.rest === undefined) {
      this.#takeOne(op, result)
      return
    }
    const { rest, batch } = op
    // Its record may be another operation's when it has settled.
    const whole = isWhole(op, result)
    this.#takeOne(op, result)
    goOnWithChain(this, rest, batch as Batch, whole)
  }

  #takeOne(op: Operation, result: number): void {
    op.staged = false
    // A worker that a cancel takes out of a call says so with EINTR.
    if (result === -EINTR && (op.behind ?? op).cancelled) result = -ECANCELED
    try {
      if (op.kind === KIND_NOP && result >= 0) this.settle(op, undefined)
      else if (op.kind === KIND_NOP) this.finish(op, result)
      else if (op.kind === KIND_CALL) this.#arriveCall(op, result)
      else if (op.kind === KIND_MANY) arriveMany(this, op, result)
      else if (op.kind === KIND_BEHIND || op.expected > 0) this.transfers.arriveChained(op, result)
      else this.transfers.advance(op, result)
    } catch (error) {
      this.fail(op.behind ?? op, error as Error)
    }
  }

  #arriveCall(op: Operation, result: number): void {
    // ETIME is how a timeout says that its time has come; one that counts waits for something else.
    if (op.opcode === OP_TIMEOUT && result === -ETIME && op.length === 0) result = 0
    // A bound that came as what it bounds ended, or could not be stopped any more (`io_link_timeout_fn`).
    if (op.opcode === OP_LINK_TIMEOUT && (result === -ENOENT || result === -EALREADY)) {
      result = -ECANCELED
    }
    if (result >= 0 && op.opcode === OP_OPENAT) this.settle(op, this.backend.takeOpened(op.slot))
    else if (result >= 0 && op.opcode === OP_STATX) this.settle(op, this.backend.takeStat(op.slot))
    else if (result === -EINTR && canBeginAgain(op)) this.begin(op)
    else this.finish(op, result)
  }

  /** Stages an operation, or the next piece of one under way, or lets it wait. */
  begin(op: Operation): void {
    if (op.begun === 0 && op.done === 0 && this.observer.watches) {
      const traced = this.observer.begins(op)
      this.waiting.begin(op)
      if (traced !== undefined) this.observer.staged(traced)
    } else {
      this.waiting.begin(op)
    }
  }

  // ---- ends ---------------------------------------------------------------------------------

  /** Settles with what is done when `result` is not negative, else with that errno. */
  finish(op: Operation, result: number, syscall = syscallOfCall(op)): void {
    if (result === -ECANCELED && op.cancelled) {
      this.fail(op, this.limits.reason(op, bytesWrittenBy(op)))
    } else if (op.kind === KIND_CALL && (result >= 0 || op.batch === undefined)) {
      this.settle(op, result)
    } else if (result >= 0) {
      this.settle(op, op.kind === KIND_TRANSFER ? op.done : undefined)
    } else if (result === -ENOTSUP && this.options.iopoll && op.file?.blockBytes) {
      this.fail(op, cannotPoll(op.file.fd, result, syscall))
    } else {
      const { path, dest } = op
      const bytesWritten = bytesWrittenBy(op)
      const file = op.file?.path
      const error = systemError(result, syscall, { path, dest, file, bytesWritten })
      this.fail(op, op.flags === 0 ? error : refusedModifier(op.flags, error))
    }
  }

  /** Settles with an error. */
  fail(op: Operation, error: Error): void {
    if (op.begun !== 0) this.observer.fails(op, error)
    // A rejected promise that nobody gets would end the process.
    const toPromise = op.batch === undefined && op.resolve !== undefined
    this.settle(op, toPromise ? rejected(error) : error)
  }

  settle(op: Operation, value: unknown): void {
    const { resolve, file, other, companion, batch, index, whole } = op
    if (op.begun !== 0) this.observer.ends(op, value)
    if (op.limited) this.limits.release(op)
    if (op.isUnfinished) this.waiting.order.delete(op)
    if (companion !== undefined) this.slots.give(companion)
    if (whole?.step === op) whole.step = undefined
    this.slots.give(op)
    file?.leave()
    other?.leave()
    if (this.slots.pending === 0) this.onIdle?.()
    if (batch === undefined) resolve?.(value)
    else batch.put(index, value)
  }

  /** The engine is gone, and with it every operation. */
  #failAll(errno: number): void {
    const cause = systemError(errno, 'io_uring_enter')
    this.ended = () => uringError('ERR_URING_FAILED', { cause })
    this.#endAll(this.ended)
  }

  /** Whether an operation uses this buffer, or will; where the engine knows of what is staged, any other. */
  #uses(buffer: ArrayBufferLike, engineKnows: boolean): boolean {
    const { slots, feeding } = this
    const isOfIt = (view: ArrayBufferView) => view.buffer === buffer
    if (slots.someShared(isOfIt)) return true
    if (engineKnows && slots.waiting === 0 && feeding.size === 0) return false
    for (const { view, batch, index } of slots.all()) {
      if (view !== undefined && isOfIt(view)) return true
      if (batch?.made(index)?.buffers?.some(isOfIt)) return true
    }
    return [...feeding].some((batch) => batch.willUse(isOfIt))
  }

  /** Settles everything under way with an error; nothing will come for it any more. */
  #endAll(error: () => Error): void {
    const all = [...this.slots.all()]
    const { forSlot, forMemory, forOrder } = this.slots
    for (const line of [forSlot, forMemory, forOrder]) while (line.shift()) {}
    // What one settles may have settled another: the record is another operation's then.
    const numbers = all.map((op) => op.number)
    for (const [at, op] of all.entries()) if (op.number === numbers[at]) this.fail(op, error())
  }

  /** Asks for the cancelling of what `chosen` says; each settles when the kernel has let go. */
  cancel(chosen: (op: Operation) => boolean): void {
    const all = [...this.slots.all()].filter(chosen)
    const numbers = all.map((op) => op.number)
    for (const [at, op] of all.entries()) if (op.number === numbers[at]) this.cancelOne(op)
    this.waiting.admit()
  }

  /**
   * Cancels one operation, wherever it is. One that waits settles now, with the chain that it is in;
   * `admit` is to follow, for what waited behind it.
   */
  cancelOne(op: Operation): void {
    if (op.cancelled) return
    op.cancelled = true
    // The first of its chain, unless that is over and its record somebody else's.
    const first = op.first !== undefined && op.first.batch === op.batch ? op.first : op
    if (first.line !== undefined) {
      first.line.remove(first)
      // Cancelled: it ends instead of being staged.
      this.start(first)
    } else if (op.kind === KIND_SHARE) {
      this.finish(op, -ECANCELED)
    } else if (op.step !== undefined) {
      this.cancelOne(op.step)
    } else {
      this.#cancelStaged(op)
      if (op.companion !== undefined) this.#cancelStaged(op.companion)
    }
  }

  /** What is complete, and held for those beside it, has nothing in the engine. */
  #cancelStaged(op: Operation): void {
    if (!op.staged) return
    if (op.sync?.held !== undefined) op.file?.syncs.cancel(op.sync)
    else this.backend.cancel(op.slot)
  }

  /** What a call of several operations ends with that was settled between them. */
  cutOff(bytesWritten?: number): Error {
    const failure = this.isCancelled ? undefined : this.ended?.()
    return failure ?? abortError(undefined, bytesWritten)
  }

  /** The error of a call that came to `result`. */
  failure(result: number, syscall: string, extra?: SystemErrorExtra): Error {
    return result === -ECANCELED ? abortError() : systemError(result, syscall, extra)
  }

  /** What is under way, by kind: `3 reads`. */
  describe(chosen: (op: Operation) => boolean): string[] {
    const counts = new Map<string, number>()
    const all = [...this.slots.all()].filter(chosen)
    // Shares and what stands for several operations, only where there is nothing behind them.
    const real = all.filter(({ kind }) => kind < KIND_SHARE)
    for (const op of real.length > 0 ? real : all) {
      const name = syscallOf(op.opcode)
      counts.set(name, (counts.get(name) ?? 0) + 1)
    }
    return [...counts].map(([name, count]) => `${count} ${name}${count === 1 ? '' : 's'}`)
  }

  /** Ends the engine. What is still under way rejects; true when the kernel had let go of it. */
  close(patienceMs: number): boolean {
    const clean = this.backend.close(patienceMs)
    this.ended = () => uringError('ERR_URING_CLOSED')
    this.messages.end()
    this.#endAll(this.ended)
    return clean
  }
}

function bytesWrittenBy(op: Operation): number | undefined {
  if (!isOutgoing(op.opcode) && op.opcode !== OP_WRITEV) return undefined
  return op.many === undefined ? op.done : bytesOfMany(op.many)
}
