/**
 * The life of an operation: staged, waiting for room where there is none, gone on with after each
 * completion until it is done, settled. Everything that a queue does travels this one way.
 *
 * Arguments have been checked by the callers. Nothing here blocks, and no operation has an object or
 * a closure of its own besides its promise.
 */
import { constants } from 'node:os'
import {
  type Backend,
  type Deliver,
  OP_NOP,
  OP_OPENAT,
  OP_STATX,
  OP_WRITE,
  REFUSED_CLOSED,
  REFUSED_CREDENTIALS,
  REFUSED_FAILED,
  REFUSED_UNKNOWN_CHUNK,
  REFUSED_UNKNOWN_FILE,
  startBackend,
  syscallOf,
} from './backend.js'
import { abortError, internalError, rejected, systemError, uringError } from './errors.js'
import type { FileState } from './file.js'
import { Memory } from './memory.js'
import type { EngineCapabilities, EngineOptions } from './native.js'
import {
  KIND_BEHIND,
  KIND_CALL,
  KIND_NOP,
  KIND_TRANSFER,
  type Operation,
  OVER,
  SLOTS_MAX,
  Slots,
  STAGED,
  WAITS_FOR_MEMORY,
  WAITS_FOR_SLOT,
} from './slots.js'
import { Transfers } from './transfers.js'

const { EBADF, ECANCELED, EINTR } = constants.errno

/** The operation whose promise is being made. */
let launching: Operation | undefined

/**
 * The executor of every promise: one function, so that there is no closure for each operation, and a
 * constant of the module, so that V8 can inline the making of the promise (15 ns).
 */
const keepResolve = (resolve: (value: never) => void): void => {
  if (launching !== undefined) launching.resolve = resolve as (value: unknown) => void
}

/** The operations of one queue. */
export class Operations {
  readonly backend: Backend
  readonly memory: Memory
  readonly transfers: Transfers
  readonly slots: Slots = new Slots(SLOTS_MAX)
  /** Set once nothing new may start: what new operations reject with. */
  ended: (() => Error) | undefined = undefined
  /** Called when the last operation under way has settled. */
  onIdle: (() => void) | undefined = undefined
  #capabilities: EngineCapabilities | undefined
  readonly #pairs: Int32Array

  constructor(options: EngineOptions) {
    const deliver: Deliver = (count, slot, result) => this.#deliver(count, slot, result)
    const { backend, pairs } = startBackend(options, deliver)
    this.backend = backend
    this.#pairs = pairs
    this.memory = new Memory(backend, options.allocBytes)
    this.transfers = new Transfers(this, backend)
  }

  /** Operations under way. */
  get pending(): number {
    return this.slots.pending
  }

  // ---- beginnings ---------------------------------------------------------------------------

  /** There and back. */
  nop(): Promise<void> {
    if (this.ended !== undefined) return rejected(this.ended())
    const op = this.slots.take()
    op.opcode = OP_NOP
    return this.launch(op)
  }

  /**
   * One system call: resolves with its result, negative for an errno; an open's with what
   * `takeOpened` gives and a statx's with its 256 bytes. `file` counts it as pending.
   * `internal` ones may also start while the queue closes.
   */
  call(
    opcode: number,
    file: FileState | undefined,
    offset: number,
    length: number,
    position: number | bigint,
    bytes?: Uint8Array,
    internal = false,
  ): Promise<unknown> {
    if (!internal && this.ended !== undefined) return rejected(this.ended())
    const op = this.slots.take()
    op.kind = KIND_CALL
    op.opcode = opcode
    op.file = file
    op.offset = offset
    op.length = length
    op.position = position
    op.bytes = bytes
    if (file !== undefined) file.pending++
    return this.launch(op)
  }

  /** Counts work on a file that is done elsewhere as under way until it settles. */
  async outside<T>(file: FileState, work: Promise<T>): Promise<T> {
    const op = this.slots.take()
    op.kind = KIND_CALL
    op.file = file
    file.pending++
    try {
      return await work
    } finally {
      this.settle(op, undefined)
    }
  }

  /** Makes the promise of a record and stages it, or lets it wait. */
  launch<T>(op: Operation): Promise<T> {
    launching = op
    const promise = new Promise<T>(keepResolve)
    this.#startOrWait(op)
    return promise
  }

  // ---- staging ------------------------------------------------------------------------------

  /** Stages the operation's next piece, or says that there is no room for it now. */
  start(op: Operation): number {
    if (op.cancelled) {
      this.finish(op, -ECANCELED)
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
      const went = this.transfers.startPiece(op)
      if (went !== STAGED) return went
    } else {
      const handle = op.file === undefined ? 0 : op.file.handle
      const { opcode, slot, offset, length, position, bytes } = op
      refusal = this.backend.stage(opcode, slot, handle, 0, offset, length, position, bytes)
    }
    if (refusal !== undefined) return this.refused(op, refusal)
    op.staged = true
    return STAGED
  }

  refused(op: Operation, refusal: number): number {
    this.settle(op, rejected(this.refusalError(op, refusal)))
    return OVER
  }

  refusalError(op: Operation, refusal: number): Error {
    switch (refusal) {
      case REFUSED_CLOSED:
        return uringError('ERR_URING_CLOSED')
      case REFUSED_FAILED:
        return this.ended?.() ?? internalError('the engine has failed and did not say so')
      case REFUSED_UNKNOWN_FILE:
        return systemError(EBADF, syscallOf(op.opcode))
      case REFUSED_CREDENTIALS:
        return uringError('ERR_URING_CREDENTIALS')
      case REFUSED_UNKNOWN_CHUNK:
        return this.transfers.bufferGone(op)
      default:
        return internalError(`the engine refused a ${syscallOf(op.opcode)} (${refusal})`)
    }
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
    } else {
      this.#failAll(-count)
    }
    if (this.slots.waiting > 0) this.#admit()
  }

  #arrive(slot: number, result: number): void {
    const op = this.slots.bySlot[slot]
    if (op === undefined || !op.staged) return
    op.staged = false
    // A worker that a cancel takes out of a call says so with EINTR.
    if (result === -EINTR && op.cancelled) result = -ECANCELED
    try {
      if (op.kind === KIND_NOP && result >= 0) this.settle(op, undefined)
      else if (op.kind === KIND_NOP) this.finish(op, result)
      else if (op.kind === KIND_CALL) this.#arriveCall(op, result)
      else if (op.kind === KIND_BEHIND || op.expected > 0) this.transfers.arriveChained(op, result)
      else this.transfers.advance(op, result)
    } catch (error) {
      this.settle(op.behind ?? op, rejected(error as Error))
    }
  }

  #arriveCall(op: Operation, result: number): void {
    if (result >= 0 && op.opcode === OP_OPENAT) this.settle(op, this.backend.takeOpened(op.slot))
    else if (result >= 0 && op.opcode === OP_STATX) this.settle(op, this.backend.takeStat(op.slot))
    else this.settle(op, result)
  }

  /** Stages the next piece of an operation under way, or lets it wait. */
  restart(op: Operation): void {
    this.#startOrWait(op)
  }

  /**
   * Nothing overtakes those that wait for the same as it. What needs no memory does not wait behind
   * what does: it may be what sets memory free (the write to a FIFO that reads wait on).
   */
  #startOrWait(op: Operation): void {
    const { forSlot, forMemory } = this.slots
    if (op.bounced && forMemory.head !== undefined) this.#wait(op, WAITS_FOR_MEMORY)
    else if (op.slot < 0 && forSlot.head !== undefined) this.#wait(op, WAITS_FOR_SLOT)
    else this.#wait(op, this.start(op))
  }

  /** Puts an operation where it waits, if that is what became of it. */
  #wait(op: Operation, outcome: number): void {
    if (outcome === WAITS_FOR_SLOT) {
      this.slots.forSlot.push(op)
    } else if (outcome === WAITS_FOR_MEMORY) {
      this.#leaveSlots(op)
      this.slots.forMemory.push(op)
    }
  }

  /** What waits for memory must not keep slots from those that need no memory. */
  #leaveSlots(op: Operation): void {
    this.slots.unassign(op)
    if (op.companion === undefined) return
    this.slots.give(op.companion)
    op.companion = undefined
  }

  /** Stages those that waited, in their order, as far as there is room. */
  #admit(): void {
    const { forSlot, forMemory } = this.slots
    for (let op = forMemory.shift(); op !== undefined; op = forMemory.shift()) {
      const outcome = this.start(op)
      if (outcome === WAITS_FOR_MEMORY) {
        this.#leaveSlots(op)
        forMemory.unshift(op)
        break
      }
      this.#wait(op, outcome)
    }
    for (let op = forSlot.shift(); op !== undefined; op = forSlot.shift()) {
      const outcome = this.start(op)
      if (outcome === WAITS_FOR_SLOT) {
        forSlot.unshift(op)
        return
      }
      this.#wait(op, outcome)
    }
  }

  // ---- ends ---------------------------------------------------------------------------------

  /** Settles with what is done when `result` is not negative, else with that errno. */
  finish(op: Operation, result: number, syscall = syscallOf(op.opcode)): void {
    if (op.kind === KIND_CALL) {
      this.settle(op, result)
    } else if (result >= 0) {
      this.settle(op, op.kind === KIND_NOP ? undefined : op.done)
    } else {
      const bytesWritten = op.opcode === OP_WRITE ? op.done : undefined
      const error =
        result === -ECANCELED && op.cancelled
          ? abortError(undefined, bytesWritten)
          : systemError(result, syscall, { bytesWritten })
      this.settle(op, rejected(error))
    }
  }

  settle(op: Operation, value: unknown): void {
    const { resolve, file, companion } = op
    if (companion !== undefined) this.slots.give(companion)
    this.slots.give(op)
    if (file !== undefined && --file.pending === 0) file.onIdle?.()
    if (this.slots.pending === 0) this.onIdle?.()
    resolve?.(value)
  }

  /** The engine is gone, and with it every operation. */
  #failAll(errno: number): void {
    const cause = systemError(errno, 'io_uring_enter')
    this.ended = () => uringError('ERR_URING_FAILED', { cause })
    this.#endAll(this.ended)
  }

  /** Settles everything under way with an error; nothing will come for it any more. */
  #endAll(error: () => Error): void {
    const all = [...this.slots.all()].filter((op) => op.kind !== KIND_BEHIND)
    for (const line of [this.slots.forSlot, this.slots.forMemory]) while (line.shift()) {}
    for (const op of all) this.settle(op, rejected(error()))
  }

  /** Asks for the cancelling of what `chosen` says; each settles when the kernel has let go. */
  cancel(chosen: (op: Operation) => boolean): void {
    for (const op of this.slots.all()) {
      if (op.kind === KIND_BEHIND || !chosen(op)) continue
      op.cancelled = true
      if (op.staged) this.backend.cancel(op.slot)
      if (op.companion?.staged) this.backend.cancel(op.companion.slot)
    }
    this.#endWaiting()
  }

  /** Those that wait and are cancelled end now, and not behind what they wait for. */
  #endWaiting(): void {
    for (const line of [this.slots.forSlot, this.slots.forMemory]) {
      const kept: Operation[] = []
      const ended: Operation[] = []
      for (let op = line.shift(); op !== undefined; op = line.shift()) {
        if (op.cancelled) ended.push(op)
        else kept.push(op)
      }
      for (const op of kept) line.push(op)
      for (const op of ended) this.finish(op, -ECANCELED)
    }
    this.#admit()
  }

  /** Whether the kernel has an operation, by its name in `capabilities.operations`. */
  supports(operation: string): boolean {
    this.#capabilities ??= this.backend.capabilities() ?? undefined
    return this.#capabilities?.operations[operation] ?? false
  }

  /** The error of a call that came to `result`. */
  failure(result: number, syscall: string, path?: string): Error {
    return result === -ECANCELED ? abortError() : systemError(result, syscall, { path })
  }

  /** What is under way, by kind: `3 reads`. */
  describe(chosen: (op: Operation) => boolean): string[] {
    const counts = new Map<string, number>()
    for (const op of this.slots.all()) {
      if (op.kind === KIND_BEHIND || !chosen(op)) continue
      const name = syscallOf(op.opcode)
      counts.set(name, (counts.get(name) ?? 0) + 1)
    }
    return [...counts].map(([name, count]) => `${count} ${name}${count === 1 ? '' : 's'}`)
  }

  /** Ends the engine. What is still under way rejects; true when the kernel had let go of it. */
  close(patienceMs: number): boolean {
    const clean = this.backend.close(patienceMs)
    this.ended = () => uringError('ERR_URING_CLOSED')
    this.#endAll(this.ended)
    return clean
  }
}
