/**
 * Transfers: reads and writes, from a buffer of any kind to a file or back, in as many pieces as it
 * takes. In place over arena chunks, else copied through bounce chunks; direct files by whole blocks;
 * an fdatasync linked behind the last piece of a write: the steps of one loop, which stand together.
 * Staging, waiting and settling are those of `operations.ts`, for transfers as for all others.
 */
import { bytesAround, isAligned, remainder } from './alignment.js'
import {
  type Backend,
  FLAG_DRAIN,
  FLAG_LINK,
  isOutgoing,
  OP_FSYNC,
  OP_READ,
  OP_RECV,
  OP_WRITE,
  POOL_BOUNCE,
  POOL_RESULT,
  REFUSED_BUFFER_GONE,
  syscallOf,
  TAKE_BUFFER_GONE,
  TAKE_ERRNO,
  TAKE_LIMIT,
  TAKE_TOO_LONG,
  TRANSFER_BYTES_MAX,
} from './backend.js'
import { endOfMember } from './chain.js'
import { ERRNO } from './errno.js'
import { closedError, internalError, rejected, uringError } from './errors.js'
import type { FileState } from './file-state.js'
import { type Limits, overBefore } from './limits.js'
import { APPENDS, NOWAIT } from './modifiers.js'
import type { Operations } from './operations.js'
import type { Order } from './order.js'
import { refusalError } from './refusals.js'
import {
  canBeginAgain,
  KIND_BEHIND,
  KIND_TRANSFER,
  type Operation,
  OVER,
  STAGED,
  WAITS_FOR_MEMORY,
} from './slots.js'

const { EAGAIN, ECANCELED, EINTR, EIO } = ERRNO
/** Most bytes that are bounced at once: longer transfers go in pieces. */
const BOUNCE_PIECE_BYTES = 1 << 20
/** The smallest chunk, and the largest that is of a power of two. `crates/core/src/arena/slab.rs`. */
const PAGE_BYTES = 4096
const LARGEST_SLAB_BYTES = 4 << 20
/** Results of `bytesAt` from this length on are given away instead of copied. */
const RESULT_BYTES_MIN = 128 << 10

/** The transfers of one queue. */
export class Transfers {
  readonly #operations: Operations
  readonly #order: Order
  readonly #backend: Backend
  /** Bytes copied on their way to or from the kernel. */
  bouncedBytes = 0

  constructor(operations: Operations, backend: Backend) {
    this.#operations = operations
    this.#order = operations.waiting.order
    this.#backend = backend
  }

  /**
   * Moves `length` bytes between the file at `position` and the view; resolves with how many. One
   * `within` something may also start while the file or the queue closes, and ends with that where it
   * is named. `flags` are modifiers beside the opcode. It is `partOf` a call of several, or of none.
   */
  transfer(
    opcode: number,
    file: FileState,
    view: ArrayBufferView,
    length: number,
    position: number | bigint,
    datasync: boolean,
    limits?: Limits,
    within: Operation | boolean = false,
    flags = 0,
    partOf?: Operation,
  ): Promise<number> {
    const internal = within !== false
    if (file.closed && !internal) return rejected(closedError(file, syscallOf(opcode)))
    const operations = this.#operations
    if (operations.ended !== undefined && !internal) return rejected(operations.ended())
    if (limits !== undefined) {
      const over = overBefore(limits, opcode, isOutgoing(opcode) ? 0 : undefined)
      if (over !== undefined) return rejected(over)
    }
    const op = operations.slots.take()
    op.kind = KIND_TRANSFER
    op.opcode = opcode
    op.datasync = datasync
    op.flags = flags
    if (partOf !== undefined) op.partOf = partOf
    if (typeof within === 'object') {
      op.whole = within
      within.step = op
    }
    this.aim(op, file, view, length, position)
    file.pending++
    if (limits !== undefined) operations.limits.add(op, limits)
    return operations.launch(op)
  }

  /** Says what a record moves, and whether it does so in place. */
  aim(
    op: Operation,
    file: FileState,
    view: ArrayBufferView,
    length: number,
    position: number | bigint,
  ): void {
    op.file = file
    op.length = length
    op.position = position
    const chunk = this.chunkInPlace(file, view, length, position)
    if (chunk !== 0) {
      op.chunk = chunk
      op.base = view.byteOffset
      op.view = view
    } else {
      op.bounced = true
      op.view = asBytes(view)
    }
  }

  /** The chunk that the kernel can move bytes from or to in place; 0 where they have to be copied. */
  chunkInPlace(
    file: FileState,
    view: ArrayBufferView,
    length: number,
    position: number | bigint,
  ): number {
    const chunk = this.#operations.memory.chunkOf(view)
    if (chunk === 0 || file.blockBytes === 0) return chunk
    return isAligned(file, view.byteOffset, length, position) ? chunk : 0
  }

  /** Reads into memory of its own; resolves with as many bytes as there were. */
  async bytes(
    file: FileState,
    length: number,
    position: number | bigint,
    limits?: Limits,
  ): Promise<Buffer> {
    const chunk =
      length < RESULT_BYTES_MIN || this.#operations.ended !== undefined || file.closed
        ? 0
        : this.#backend.take(POOL_RESULT, length)
    const buffer = chunk > 0 ? this.#operations.memory.wrap(chunk, length) : undefined
    const target = buffer ?? Buffer.allocUnsafeSlow(length)
    let count: number
    try {
      count = await this.transfer(OP_READ, file, target, length, position, false, limits)
    } catch (error) {
      if (buffer !== undefined) this.#operations.memory.letGo(buffer)
      throw error
    }
    if (count === length) return target
    // The file ended: the result must not keep the memory that was not needed.
    const short = Buffer.allocUnsafeSlow(count)
    target.copy(short)
    if (buffer !== undefined) this.#operations.memory.letGo(buffer)
    return short
  }

  /** A chain takes its slots at once, so that no chain holds one while it waits for another. */
  attachCompanion(op: Operation): boolean {
    const { slots } = this.#operations
    const companion = slots.take()
    companion.opcode = OP_FSYNC
    if (!slots.assign(companion)) {
      slots.give(companion)
      slots.unassign(op)
      return false
    }
    companion.kind = KIND_BEHIND
    companion.behind = op
    companion.file = op.file
    op.companion = companion
    return true
  }

  /** Stages the next piece, or says that there is no room for it now. */
  startPiece(op: Operation): number {
    const prepared = this.prepare(op)
    if (prepared !== STAGED) return prepared
    const chained = op.datasync && op.done + op.piece === op.length
    const refusal = this.stage(op, (chained ? op.opcode | FLAG_LINK : op.opcode) | op.flags)
    if (refusal !== undefined) {
      this.letGo(op)
      return this.#operations.refused(op, refusal)
    }
    // It may be short, or go in pieces: more of it is to come.
    if (!op.isUnfinished) this.#order.add(op, (op.flags & FLAG_DRAIN) !== 0)
    this.#operations.took(op)
    if (chained) {
      op.expected = 1
      // The engine ends a chain whose next member it refuses, and so this write.
      if (!this.#stageBehind(op, op)) (op.companion as Operation).outcome = -ECANCELED
    }
    return STAGED
  }

  /** Decides on the next piece and takes the memory that it is bounced through. */
  prepare(op: Operation): number {
    const remaining = op.length - op.done
    if (!op.bounced) {
      op.piece = Math.min(remaining, TRANSFER_BYTES_MAX)
      return STAGED
    }
    const file = op.file as FileState
    // A chain cannot go on after a piece; and between the pieces of an append others would append.
    const appends = (file.append || (op.flags & APPENDS) !== 0) && op.opcode === OP_WRITE
    const most = op.first !== undefined || appends ? TRANSFER_BYTES_MAX : BOUNCE_PIECE_BYTES
    let piece = Math.min(remaining, most)
    if (file.blockBytes !== 0 && op.opcode === OP_READ) {
      const from = moved(op.position, op.done)
      op.lead = remainder(from, file.blockBytes)
      piece = Math.min(bytesAround(file, from, piece), most)
    }
    let chunk = this.#takeChunk(op, piece)
    if (chunk === TAKE_TOO_LONG && op.first === undefined && piece > BOUNCE_PIECE_BYTES) {
      piece = BOUNCE_PIECE_BYTES
      chunk = this.#takeChunk(op, piece)
    }
    if (chunk <= 0) return this.#noChunk(op, chunk)
    op.chunk = chunk
    op.piece = piece
    this.bouncedBytes += piece
    return STAGED
  }

  #takeChunk(op: Operation, bytes: number): number {
    return isOutgoing(op.opcode)
      ? this.#backend.take(POOL_BOUNCE, bytes, op.view as Uint8Array, op.done)
      : this.#backend.take(POOL_BOUNCE, bytes)
  }

  /** Stages the piece that was prepared; a refusal leaves it prepared. */
  stage(op: Operation, opcode: number): number | undefined {
    const { slot, file, chunk, done, lead, piece } = op
    const position = done === 0 ? op.position : moved(op.position, done)
    return this.#backend.stage(
      opcode,
      slot,
      (file as FileState).handle,
      chunk,
      op.bounced ? 0 : op.base + done,
      piece,
      lead === 0 ? position : moved(position, -lead),
    )
  }

  /** Gives back what was prepared and will not be staged. */
  letGo(op: Operation): void {
    if (op.bounced && op.chunk !== 0) this.#returnChunk(op)
  }

  /**
   * Refuses a chain whose members, copied all at once, need more bounce memory than there can ever
   * be. Chunks are of powers of two from a page on, those of one size in slabs of their own.
   */
  checkChain(lengths: readonly number[]): void {
    const { bounceBytes, slabBytes } = this.#operations.options
    const slab = 2 ** Math.floor(Math.log2(Math.min(slabBytes, bounceBytes)))
    const ofSize = new Map<number, number>()
    let needed = 0
    for (const length of lengths) {
      const pages = Math.ceil(length / PAGE_BYTES) * PAGE_BYTES
      const size =
        length > LARGEST_SLAB_BYTES
          ? pages
          : 2 ** Math.ceil(Math.log2(Math.max(length, PAGE_BYTES)))
      if (size > slab) needed += size
      else ofSize.set(size, (ofSize.get(size) ?? 0) + 1)
    }
    for (const [size, count] of ofSize) needed += Math.ceil((size * count) / slab) * slab
    if (needed <= bounceBytes) return
    const feature = 'A chain that copies so much at once'
    const needs = `bounceBytes of ${needed}, or buffers from alloc()`
    throw uringError('ERR_URING_UNSUPPORTED', { feature, needs })
  }

  /** Stages the fdatasync of a write; refused where the engine has ended. */
  #stageBehind(op: Operation, before?: Operation): boolean {
    const companion = op.companion as Operation
    const handle = (op.file as FileState).handle
    const refusal = this.#backend.stage(OP_FSYNC, companion.slot, handle, 0, 0, 1, 0)
    if (refusal !== undefined) return false
    this.#operations.took(companion, before)
    op.expected++
    op.staged = true
    return true
  }

  #noChunk(op: Operation, answer: number): number {
    if (answer === TAKE_LIMIT) return WAITS_FOR_MEMORY
    if (answer === TAKE_BUFFER_GONE) this.#operations.fail(op, this.bufferGone(op))
    else if (answer < TAKE_ERRNO) this.#operations.finish(op, answer - TAKE_ERRNO)
    else this.#operations.fail(op, internalError(`no bounce memory (${answer})`))
    return OVER
  }

  #returnChunk(op: Operation): void {
    this.#backend.disown(op.chunk)
    op.chunk = 0
  }

  /** A member of a chain write → fdatasync is over; the last of the two to arrive goes on. */
  arriveChained(member: Operation, result: number): void {
    member.outcome = result
    const op = member.behind ?? member
    if (--op.expected > 0) {
      // Still under way as far as a cancel is concerned.
      op.staged = true
      return
    }
    op.staged = false
    const synced = (op.companion as Operation).outcome
    this.letGo(op)
    if (op.outcome === -ECANCELED && !op.cancelled && synced < 0 && synced !== -ECANCELED) {
      // The kernel did not take the fdatasync (EACCES of a restricted ring), and so not the write.
      this.#operations.finish(op, synced, 'fdatasync')
    } else if (op.outcome < 0 || op.done + op.outcome < op.length) {
      // Failed, or short: that broke the link, and nothing was synced. A short write goes on.
      this.advance(op, op.outcome)
    } else if ((synced === -ECANCELED || synced === -EINTR) && !op.cancelled) {
      // The kernel took the chain in two parts, or a signal interrupted the fdatasync: the write is
      // done, the fdatasync does not count.
      if (this.#stageBehind(op)) return
      op.done = op.length
      this.#operations.finish(op, -ECANCELED, 'fdatasync')
    } else {
      op.done = op.length
      this.#operations.finish(op, synced, 'fdatasync')
    }
  }

  #endMember(op: Operation): void {
    const end = endOfMember(op, op.done)
    if (end instanceof Error) this.#operations.fail(op, end)
    else this.#operations.settle(op, end)
  }

  /** A piece is over with `result`: takes what it brought, and settles or goes on. */
  advance(op: Operation, result: number): void {
    const outgoing = isOutgoing(op.opcode)
    if (result < 0) {
      this.letGo(op)
      if (result === -EINTR && canBeginAgain(op)) {
        this.#operations.begin(op)
        return
      }
      // What was there without waiting is what such a read is for.
      const some = result === -EAGAIN && op.done > 0 && !outgoing
      this.#operations.finish(op, some ? 0 : result)
      return
    }
    const count = outgoing ? this.#takeWritten(op, result) : this.#takeRead(op, result)
    if (count < 0) return
    op.done += count
    if (op.first !== undefined) this.#endMember(op)
    else if (op.done === op.length) this.#operations.finish(op, 0)
    else if (count === 0 && outgoing) this.#operations.finish(op, -EIO)
    else if (!outgoing && this.#isEnd(op, result)) this.#operations.finish(op, 0)
    else this.#goOn(op)
  }

  /** Copies what a read brought; -1 when the target is gone and the operation settled. */
  #takeRead(op: Operation, result: number): number {
    if (!op.bounced) return result
    const count = Math.max(0, Math.min(result - op.lead, op.length - op.done))
    const chunk = op.chunk
    op.chunk = 0
    const view = op.view as Uint8Array
    const refusal = this.#backend.copyOut(chunk, op.lead, view, op.done, count)
    if (refusal === undefined) return count
    const error =
      refusal === REFUSED_BUFFER_GONE
        ? this.bufferGone(op)
        : refusalError(this.#operations, op, refusal)
    this.#operations.fail(op, error)
    return -1
  }

  #takeWritten(op: Operation, result: number): number {
    this.letGo(op)
    return result
  }

  /** Whether a read that brought less than was asked for is at the end of what there is. */
  #isEnd(op: Operation, result: number): boolean {
    const file = op.file as FileState
    // One recv is one recv.
    if (result === 0 || op.opcode === OP_RECV) return true
    // A read of a FIFO, terminal or socket is one read.
    if (file.fills === false && file.blockBytes === 0) return true
    if (result === op.piece) return false
    if ((op.flags & NOWAIT) !== 0) return true
    // The blocks of a direct file end within one only where the file ends.
    return file.blockBytes !== 0 && result % file.blockBytes !== 0
  }

  /** Stages the next piece. After the first short read of a file, finds out what kind it is. */
  #goOn(op: Operation): void {
    const file = op.file as FileState
    if (op.opcode === OP_READ && file.fills === undefined) {
      const { number } = op
      void file.learn(op.opcode, undefined).then(() => {
        // The queue may have failed meanwhile, and the record be somebody else's.
        if (op.number !== number) return
        // What a FIFO or socket gave is gone from there: it counts, whoever gives up meanwhile.
        if (file.fills === false) this.#operations.finish(op, 0)
        else if (op.cancelled) this.#operations.finish(op, -ECANCELED)
        else if (file.fills) this.#operations.begin(op)
        else this.#operations.finish(op, 0)
        this.#operations.waiting.admit()
      })
    } else {
      this.#operations.begin(op)
    }
  }

  /** The error of an operation whose buffer went away. */
  bufferGone(op: Operation): Error {
    const syscall = syscallOf(op.opcode)
    return uringError('ERR_URING_BUFFER_DETACHED', {
      syscall,
      bytesWritten: isOutgoing(op.opcode) ? op.done : undefined,
    })
  }
}

/** The bytes of any view, for copying. */
function asBytes(view: ArrayBufferView): Uint8Array {
  return view instanceof Uint8Array
    ? view
    : new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

/** `position + by`, exact also past 2^53. */
export function moved(position: number | bigint, by: number): number | bigint {
  if (typeof position === 'number') {
    const sum = position + by
    return sum <= Number.MAX_SAFE_INTEGER ? sum : BigInt(position) + BigInt(by)
  }
  return position + BigInt(by)
}
