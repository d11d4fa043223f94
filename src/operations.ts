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
  FLAG_LINK,
  OP_FSYNC,
  OP_NOP,
  OP_OPENAT,
  OP_READ,
  OP_STATX,
  OP_WRITE,
  POOL_BOUNCE,
  POOL_RESULT,
  REFUSED_BUFFER_GONE,
  REFUSED_CLOSED,
  REFUSED_FAILED,
  REFUSED_UNKNOWN_CHUNK,
  REFUSED_UNKNOWN_FILE,
  startBackend,
  TAKE_BUFFER_GONE,
  TAKE_ERRNO,
  TAKE_LIMIT,
} from './backend.js'
import { abortError, rejected, systemError, uringError } from './errors.js'
import type { FileState } from './file.js'
import { Memory } from './memory.js'
import type { EngineCapabilities, EngineOptions } from './native.js'
import {
  KIND_BEHIND,
  KIND_CALL,
  KIND_NOP,
  KIND_TRANSFER,
  type Operation,
  SLOTS_MAX,
  Slots,
} from './slots.js'

const { EBADF, ECANCELED, EIO } = constants.errno
/** Most bytes of one read or write: the kernel's MAX_RW_COUNT, 2 GiB - 4 KiB. read(2). */
const IN_PLACE_PIECE_BYTES = 0x7ffff000
/** Most bytes that are bounced at once: longer transfers go in pieces. */
const BOUNCE_PIECE_BYTES = 1 << 20
/** Results of `bytesAt` from this length on are given away instead of copied. */
const RESULT_BYTES_MIN = 128 << 10

/** Names of operations in errors, as node:fs has them. */
const SYSCALLS: readonly string[] = [
  'nop',
  'read',
  'write',
  'fsync',
  'ftruncate',
  'open',
  'close',
  'fstat',
  'timeout',
]

/** What became of trying to stage. */
const STAGED = 0
const WAITS = 1
const OVER = 2

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
  readonly slots: Slots = new Slots(SLOTS_MAX)
  /** Bytes copied on their way to or from the kernel. */
  bouncedBytes = 0
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
    return this.#launch(op)
  }

  /** Moves `length` bytes between the file at `position` and the view; resolves with how many. */
  transfer(
    opcode: number,
    file: FileState,
    view: ArrayBufferView,
    length: number,
    position: number | bigint,
    datasync: boolean,
  ): Promise<number> {
    const refusal = this.#refusal(file, opcode)
    if (refusal !== undefined) return rejected(refusal)
    const op = this.slots.take()
    op.kind = KIND_TRANSFER
    op.opcode = opcode
    op.file = file
    op.length = length
    op.position = position
    op.datasync = datasync
    const chunk = this.memory.chunkOf(view)
    const base = chunk === 0 ? 0 : view.byteOffset
    if (chunk !== 0 && (file.blockBytes === 0 || isAligned(file, base, length, position))) {
      op.chunk = chunk
      op.base = base
      op.view = view
    } else {
      op.bounced = true
      op.view = asBytes(view)
    }
    file.pending++
    return this.#launch(op)
  }

  /** Reads into memory of its own; resolves with as many bytes as there were. */
  async bytes(file: FileState, length: number, position: number | bigint): Promise<Buffer> {
    const chunk =
      length < RESULT_BYTES_MIN || this.ended !== undefined || file.closed
        ? 0
        : this.backend.take(POOL_RESULT, length)
    const buffer = chunk > 0 ? this.memory.wrap(chunk, length) : undefined
    const target = buffer ?? Buffer.allocUnsafeSlow(length)
    const count = await this.transfer(OP_READ, file, target, length, position, false)
    if (count === length) return target
    // The file ended: the result must not keep the memory that was not needed.
    const short = Buffer.allocUnsafeSlow(count)
    target.copy(short)
    if (buffer !== undefined) this.memory.free(buffer)
    return short
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
    return this.#launch(op)
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
      this.#settle(op, undefined)
    }
  }

  /** Why an operation on this file cannot begin. */
  #refusal(file: FileState, opcode: number): Error | undefined {
    if (file.closed) return systemError(EBADF, SYSCALLS[opcode] ?? 'read')
    return this.ended?.()
  }

  #launch<T>(op: Operation): Promise<T> {
    launching = op
    const promise = new Promise<T>(keepResolve)
    if (this.slots.head !== undefined || this.#start(op) === WAITS) this.slots.enqueue(op)
    return promise
  }

  // ---- staging ------------------------------------------------------------------------------

  /** Stages the operation's next piece, or says that there is no room for it now. */
  #start(op: Operation): number {
    if (op.cancelled) {
      this.#finish(op, -ECANCELED)
      return OVER
    }
    if (op.slot < 0 && !this.slots.assign(op)) return WAITS
    if (op.datasync && op.companion === undefined && !this.#attachCompanion(op)) return WAITS
    let refusal: number | undefined
    if (op.kind === KIND_NOP) {
      refusal = this.backend.stageBare(OP_NOP, op.slot)
    } else if (op.kind === KIND_TRANSFER) {
      const went = this.#startPiece(op)
      if (went !== STAGED) return went
    } else {
      const handle = op.file === undefined ? 0 : op.file.handle
      const { opcode, slot, offset, length, position, bytes } = op
      refusal = this.backend.stage(opcode, slot, handle, 0, offset, length, position, bytes)
    }
    if (refusal !== undefined) return this.#refused(op, refusal)
    op.staged = true
    return STAGED
  }

  /** A chain takes its slots at once, so that no chain holds one while it waits for another. */
  #attachCompanion(op: Operation): boolean {
    const companion = this.slots.take()
    if (!this.slots.assign(companion)) {
      this.slots.give(companion)
      this.slots.unassign(op)
      return false
    }
    companion.kind = KIND_BEHIND
    companion.opcode = OP_FSYNC
    companion.behind = op
    companion.file = op.file
    op.companion = companion
    return true
  }

  #startPiece(op: Operation): number {
    const file = op.file as FileState
    const remaining = op.length - op.done
    let position = op.done === 0 ? op.position : advance(op.position, op.done)
    let piece: number
    let offset: number
    if (op.bounced) {
      piece = Math.min(remaining, BOUNCE_PIECE_BYTES)
      if (file.blockBytes !== 0 && op.opcode === OP_READ) {
        // A direct read has to begin and end on blocks: read those around what was asked for.
        const block = file.blockBytes
        op.lead = remainder(position, block)
        position = advance(position, -op.lead)
        piece = Math.min(Math.ceil((op.lead + piece) / block) * block, BOUNCE_PIECE_BYTES)
      }
      offset = 0
      const chunk =
        op.opcode === OP_WRITE
          ? this.backend.take(POOL_BOUNCE, piece, op.view as Uint8Array, op.done)
          : this.backend.take(POOL_BOUNCE, piece)
      if (chunk <= 0) return this.#noChunk(op, chunk)
      op.chunk = chunk
      this.bouncedBytes += piece
    } else {
      piece = Math.min(remaining, IN_PLACE_PIECE_BYTES)
      offset = op.base + op.done
    }
    op.piece = piece
    const chained = op.datasync && op.done + piece === op.length
    const opcode = chained ? op.opcode | FLAG_LINK : op.opcode
    const refusal = this.backend.stage(
      opcode,
      op.slot,
      file.handle,
      op.chunk,
      offset,
      piece,
      position,
    )
    if (refusal !== undefined) {
      if (op.bounced) this.#returnChunk(op)
      return this.#refused(op, refusal)
    }
    op.staged = true
    if (chained) {
      op.expected = 1
      this.#stageBehind(op)
    }
    return STAGED
  }

  /** Stages the fdatasync of a write; the file is open and the slot is free, so it is taken. */
  #stageBehind(op: Operation): void {
    const companion = op.companion as Operation
    const handle = (op.file as FileState).handle
    const refusal = this.backend.stage(OP_FSYNC, companion.slot, handle, 0, 0, 1, 0)
    if (refusal !== undefined) throw this.#refusalError(companion, refusal)
    op.expected++
    op.staged = true
    companion.staged = true
  }

  #noChunk(op: Operation, answer: number): number {
    if (answer === TAKE_LIMIT) return WAITS
    if (answer === TAKE_BUFFER_GONE) this.#settle(op, rejected(this.#bufferGone(op)))
    else if (answer < TAKE_ERRNO) this.#finish(op, answer - TAKE_ERRNO)
    else this.#settle(op, rejected(internal(`no bounce memory (${answer})`)))
    return OVER
  }

  #returnChunk(op: Operation): void {
    this.backend.disown(op.chunk)
    op.chunk = 0
  }

  #refused(op: Operation, refusal: number): number {
    this.#settle(op, rejected(this.#refusalError(op, refusal)))
    return OVER
  }

  #refusalError(op: Operation, refusal: number): Error {
    switch (refusal) {
      case REFUSED_CLOSED:
        return uringError('ERR_URING_CLOSED')
      case REFUSED_FAILED:
        return this.ended?.() ?? internal('the engine has failed and did not say so')
      case REFUSED_UNKNOWN_FILE:
        return systemError(EBADF, SYSCALLS[op.opcode] ?? 'read')
      case REFUSED_UNKNOWN_CHUNK:
        return this.#bufferGone(op)
      default:
        return internal(`the engine refused a ${SYSCALLS[op.opcode]} (${refusal})`)
    }
  }

  #bufferGone(op: Operation): Error {
    const syscall = SYSCALLS[op.opcode] ?? 'read'
    return uringError('ERR_URING_BUFFER_DETACHED', {
      syscall,
      bytesWritten: op.opcode === OP_WRITE ? op.done : undefined,
    })
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
    if (this.slots.head !== undefined) this.#admit()
  }

  #arrive(slot: number, result: number): void {
    const op = this.slots.bySlot[slot]
    if (op === undefined || !op.staged) return
    op.staged = false
    try {
      if (op.kind === KIND_NOP && result >= 0) this.#settle(op, undefined)
      else if (op.kind === KIND_NOP) this.#finish(op, result)
      else if (op.kind === KIND_CALL) this.#arriveCall(op, result)
      else if (op.kind === KIND_BEHIND || op.expected > 0) this.#arriveChained(op, result)
      else this.#advance(op, result)
    } catch (error) {
      this.#settle(op.behind ?? op, rejected(error as Error))
    }
  }

  #arriveCall(op: Operation, result: number): void {
    if (result >= 0 && op.opcode === OP_OPENAT) this.#settle(op, this.backend.takeOpened(op.slot))
    else if (result >= 0 && op.opcode === OP_STATX) this.#settle(op, this.backend.takeStat(op.slot))
    else this.#settle(op, result)
  }

  /** A member of a chain write → fdatasync is over; the last of the two to arrive goes on. */
  #arriveChained(member: Operation, result: number): void {
    member.outcome = result
    const op = member.behind ?? member
    if (--op.expected > 0) {
      // Still under way as far as a cancel is concerned.
      op.staged = true
      return
    }
    op.staged = false
    const synced = (op.companion as Operation).outcome
    if (op.bounced && op.chunk !== 0) this.#returnChunk(op)
    if (op.outcome < 0 || op.done + op.outcome < op.length) {
      // Failed, or short: that broke the link, and nothing was synced. A short write goes on.
      this.#advance(op, op.outcome)
    } else if (synced === -ECANCELED && !op.cancelled) {
      // The kernel took the chain in two parts: the write is done, the fdatasync does not count.
      this.#stageBehind(op)
    } else {
      op.done = op.length
      this.#finish(op, synced, 'fdatasync')
    }
  }

  /** A piece is over with `result`: takes what it brought, and settles or goes on. */
  #advance(op: Operation, result: number): void {
    if (result < 0) {
      if (op.bounced && op.chunk !== 0) this.#returnChunk(op)
      this.#finish(op, result)
      return
    }
    const count = op.opcode === OP_READ ? this.#takeRead(op, result) : this.#takeWritten(op, result)
    if (count < 0) return
    op.done += count
    if (op.done === op.length) this.#finish(op, 0)
    else if (count === 0 && op.opcode === OP_WRITE) this.#finish(op, -EIO)
    else if (op.opcode === OP_READ && this.#isEnd(op, result)) this.#finish(op, 0)
    else this.#goOn(op)
  }

  /** Copies what a read brought; -1 when the target is gone and the operation settled. */
  #takeRead(op: Operation, result: number): number {
    if (!op.bounced) return result
    const count = Math.max(0, Math.min(result - op.lead, op.length - op.done))
    const chunk = op.chunk
    op.chunk = 0
    const view = op.view as Uint8Array
    const refusal = this.backend.copyOut(chunk, op.lead, view, op.done, count)
    if (refusal === undefined) return count
    const error =
      refusal === REFUSED_BUFFER_GONE ? this.#bufferGone(op) : this.#refusalError(op, refusal)
    this.#settle(op, rejected(error))
    return -1
  }

  #takeWritten(op: Operation, result: number): number {
    if (op.bounced && op.chunk !== 0) this.#returnChunk(op)
    return result
  }

  /** Whether a read that brought less than was asked for is at the end of what there is. */
  #isEnd(op: Operation, result: number): boolean {
    const file = op.file as FileState
    if (result === 0) return true
    if (result === op.piece) return false
    // The blocks of a direct file end within one only where the file ends.
    if (file.blockBytes !== 0) return result % file.blockBytes !== 0
    // A read of a FIFO, terminal or socket is one read.
    return file.fills === false
  }

  /** Stages the next piece. After the first short read of a file, finds out what kind it is. */
  #goOn(op: Operation): void {
    const file = op.file as FileState
    if (op.opcode === OP_READ && file.fills === undefined) {
      void file.learn().then(() => {
        if (file.fills) this.#restart(op)
        else this.#finish(op, 0)
      })
    } else {
      this.#restart(op)
    }
  }

  #restart(op: Operation): void {
    if (this.#start(op) === WAITS) this.slots.enqueue(op)
  }

  /** Stages those that waited, in their order, as far as there is room. */
  #admit(): void {
    for (let op = this.slots.dequeue(); op !== undefined; op = this.slots.dequeue()) {
      if (this.#start(op) === WAITS) {
        this.slots.putBack(op)
        return
      }
    }
  }

  // ---- ends ---------------------------------------------------------------------------------

  /** Settles with what is done when `result` is not negative, else with that errno. */
  #finish(op: Operation, result: number, syscall = SYSCALLS[op.opcode] ?? 'read'): void {
    if (op.kind === KIND_CALL) {
      this.#settle(op, result)
    } else if (result >= 0) {
      this.#settle(op, op.kind === KIND_NOP ? undefined : op.done)
    } else {
      const bytesWritten = op.opcode === OP_WRITE ? op.done : undefined
      const error =
        result === -ECANCELED && op.cancelled
          ? abortError(undefined, bytesWritten)
          : systemError(result, syscall, { bytesWritten })
      this.#settle(op, rejected(error))
    }
  }

  #settle(op: Operation, value: unknown): void {
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
    while (this.slots.head !== undefined) this.slots.dequeue()
    for (const op of all) this.#settle(op, rejected(error()))
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
    const waiting: Operation[] = []
    for (let op = this.slots.dequeue(); op !== undefined; op = this.slots.dequeue())
      waiting.push(op)
    for (const op of waiting) {
      if (op.cancelled) this.#finish(op, -ECANCELED)
      else this.slots.enqueue(op)
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
      const name = SYSCALLS[op.opcode] ?? 'operation'
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

function internal(detail: string): Error {
  return uringError('ERR_URING_INTERNAL', { detail })
}

/** The bytes of any view, for copying. */
function asBytes(view: ArrayBufferView): Uint8Array {
  return view instanceof Uint8Array
    ? view
    : new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

/** Whether a direct transfer can go in place. */
function isAligned(
  file: FileState,
  base: number,
  length: number,
  position: number | bigint,
): boolean {
  return (
    base % file.memoryBytes === 0 &&
    length % file.blockBytes === 0 &&
    remainder(position, file.blockBytes) === 0
  )
}

function remainder(position: number | bigint, block: number): number {
  return typeof position === 'number' ? position % block : Number(position % BigInt(block))
}

/** `position + by`, exact also past 2^53. */
function advance(position: number | bigint, by: number): number | bigint {
  if (typeof position === 'number') {
    const sum = position + by
    return sum <= Number.MAX_SAFE_INTEGER ? sum : BigInt(position) + BigInt(by)
  }
  return position + BigInt(by)
}
