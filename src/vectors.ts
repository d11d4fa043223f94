/**
 * Vectored reads and writes: several buffers, one promise, in order. Buffers from `queue.alloc` are used
 * in place, up to 1024 of them by one operation (readv(2), IOV_MAX); a list with any other goes through
 * one buffer that it is gathered in or scattered from, at most 1 MiB at a time.
 */
import { remainder } from './alignment.js'
import { OP_READ, OP_READV, OP_WRITE, OP_WRITEV, syscallOf, TRANSFER_BYTES_MAX } from './backend.js'
import { ERRNO } from './errno.js'
import {
  closedError,
  invalidArgType,
  invalidArgValue,
  rejected,
  systemError,
  uringError,
  writtenBy,
} from './errors.js'
import type { FileState } from './file-state.js'
import { type Limits, overBefore } from './limits.js'
import { checkMemory, hasBytes } from './memory.js'
import { NOWAIT, refusedModifier } from './modifiers.js'
import type { Operation } from './slots.js'
import { moved } from './transfers.js'

const { EAGAIN, EIO } = ERRNO
/** Most vectors of one operation: the kernel's UIO_MAXIOV. */
const VECTORS_MAX = 1024
/** Most bytes that are gathered or scattered at once. */
const PIECE_BYTES = 1 << 20

/** A range of a chunk. */
interface Vector {
  readonly chunk: number
  readonly offset: number
  readonly length: number
}

/** Checks a list of buffers, and adds their lengths. Throws ERR_INVALID_ARG_TYPE, ERR_URING_BUFFER_DETACHED. */
export function checkBuffers(buffers: unknown, syscall: 'readv' | 'writev'): number {
  if (!Array.isArray(buffers)) throw invalidArgType('buffers', 'an instance of Array', buffers)
  let length = 0
  for (let index = 0; index < buffers.length; index++) {
    checkMemory(buffers[index], syscall, `buffers[${index}]`)
    length += buffers[index].byteLength
  }
  return length
}

/** Where the buffers are in the arena; undefined when one is not, or not as a direct file wants it. */
function placesOf(file: FileState, buffers: readonly ArrayBufferView[]): Vector[] | undefined {
  const { memory } = file.operations
  const vectors: Vector[] = []
  for (const buffer of buffers) {
    const { byteLength: length, byteOffset: offset } = buffer
    if (length === 0) continue
    const chunk = memory.chunkOf(buffer)
    const fits =
      file.blockBytes === 0 || (offset % file.memoryBytes === 0 && length % file.blockBytes === 0)
    if (chunk === 0 || !fits) return undefined
    vectors.push({ chunk, offset, length })
  }
  return vectors
}

/** What one operation takes: the vectors from here on, as many and as long as it may have. */
function stagedFrom(vectors: readonly Vector[], at: number, skip: number): [Uint8Array, number] {
  const numbers: number[] = []
  let bytes = 0
  for (let index = at; index < vectors.length && index < at + VECTORS_MAX; index++) {
    const { chunk, offset, length } = vectors[index] as Vector
    const before = index === at ? skip : 0
    const taken = Math.min(length - before, TRANSFER_BYTES_MAX - bytes)
    if (taken === 0) break
    numbers.push(chunk, offset + before, taken)
    bytes += taken
  }
  return [new Uint8Array(Float64Array.from(numbers).buffer), bytes]
}

/** The vectors of an operation that stands for itself. Throws ERR_INVALID_ARG_VALUE for others. */
export function vectorsInPlace(file: FileState, buffers: readonly ArrayBufferView[]): Uint8Array {
  const vectors = placesOf(file, buffers)
  if (vectors === undefined || vectors.length === 0 || vectors.length > VECTORS_MAX) {
    const words = `must be 1 to ${VECTORS_MAX} buffers from alloc() of the file's queue`
    throw invalidArgValue('buffers', buffers, words)
  }
  const [bytes] = stagedFrom(vectors, 0, 0)
  return bytes
}

/** A vectored read or write whose arguments have been checked. */
export interface Vectored {
  readonly file: FileState
  readonly opcode: typeof OP_READV | typeof OP_WRITEV
  readonly buffers: readonly ArrayBufferView[]
  /** Bytes of all buffers. */
  readonly length: number
  readonly position: number | bigint
  readonly limits: Limits | undefined
  /** Modifiers beside the opcode. */
  readonly flags: number
}

/** See {@link File.readvAt} and {@link File.writevAt}. */
export function vectored(what: Vectored): Promise<number> {
  const { file, opcode, buffers, position, limits } = what
  const { operations } = file
  if (file.closed) return rejected(closedError(file, syscallOf(opcode)))
  if (operations.ended !== undefined) return rejected(operations.ended())
  const over = overBefore(limits, opcode, opcode === OP_WRITEV ? 0 : undefined)
  if (over !== undefined) return rejected(over)
  if (what.length === 0) return Promise.resolve(0)
  const aligned = file.blockBytes === 0 || remainder(position, file.blockBytes) === 0
  const vectors = aligned && !operations.kernel.lacks(opcode) ? placesOf(file, buffers) : undefined
  return operations.outside(file, opcode, (check, whole) => {
    // A copy: the list is the caller's. Not all of it is with the engine at once.
    const list = [...buffers]
    const lengths = list.map(({ byteLength }) => byteLength)
    whole.buffers = list
    const begin = () =>
      vectors === undefined
        ? copied(what, list, lengths, check, whole)
        : inPlace(what, vectors, check, whole)
    const turn = operations.waiting.turnOf(whole, opcode, limits)
    return turn === undefined ? begin() : turn.then(begin)
  })
}

/** Whether a read that was not cut off by its end goes on, as `readAt` does. */
async function goesOn({ file, opcode }: Vectored, check: () => void): Promise<boolean> {
  // What was read counts, whoever gives up meanwhile.
  if (file.fills === undefined) await file.learn(opcode, undefined)
  // A question that was cancelled has no answer.
  if (file.fills === undefined) check()
  return file.fills === true
}

async function inPlace(
  what: Vectored,
  vectors: readonly Vector[],
  check: () => void,
  partOf: Operation,
): Promise<number> {
  const { file, opcode, position, limits, flags } = what
  const { operations } = file
  let [done, at, skip] = [0, 0, 0]
  while (at < vectors.length) {
    const [bytes, asked] = stagedFrom(vectors, at, skip)
    const options = { bytes, limits, flags, internal: true, partOf }
    const from = moved(position, done)
    checkBetween(opcode, done, check)
    const result = Number(
      await operations.call(opcode, file, 0, 0, from, options).catch((error: Error) => {
        throw withWritten(opcode, error, done + writtenBy(error))
      }),
    )
    if (result === -EAGAIN && opcode === OP_READV && done > 0) return done
    if (result < 0) return failed(what, result, done)
    done += result
    if (result < asked) {
      if (opcode === OP_WRITEV && result === 0) return failed(what, -EIO, done)
      const block = file.blockBytes
      const ends = (flags & NOWAIT) !== 0 || (block !== 0 && result % block !== 0)
      if (opcode === OP_READV && (result === 0 || ends || !(await goesOn(what, check)))) return done
    }
    for (skip += result; at < vectors.length; at++) {
      const { length } = vectors[at] as Vector
      if (skip < length) break
      skip -= length
    }
  }
  return done
}

function failed({ file, opcode, flags }: Vectored, result: number, done: number): Promise<never> {
  const { path } = file
  const failure = systemError(result, syscallOf(opcode), { file: path })
  const error = withWritten(opcode, failure, done)
  return rejected(refusedModifier(flags, error))
}

/** Whether it is to end between two pieces; what it throws then says how much was written. */
function checkBetween(opcode: number, done: number, check: () => void): void {
  try {
    check()
  } catch (error) {
    throw withWritten(opcode, error as Error, done)
  }
}

function withWritten<E extends Error>(opcode: number, error: E, done: number): E {
  return opcode === OP_WRITEV ? Object.assign(error, { bytesWritten: done }) : error
}

/**
 * Through one buffer: gathered before it is written, scattered when it was read. `lengths` are those that the
 * buffers had at the call.
 */
async function copied(
  what: Vectored,
  buffers: readonly ArrayBufferView[],
  lengths: readonly number[],
  check: () => void,
  partOf: Operation,
): Promise<number> {
  const { file, opcode, length, position, limits, flags } = what
  const { transfers } = file.operations
  const reads = opcode === OP_READV
  const one = reads ? OP_READ : OP_WRITE
  let done = 0
  while (done < length) {
    const piece = Buffer.allocUnsafeSlow(Math.min(length - done, PIECE_BYTES))
    if (
      !reads &&
      !each(buffers, lengths, done, piece.length, (bytes, at) => piece.set(bytes, at))
    ) {
      throw withWritten(opcode, gone(opcode), done)
    }
    const from = moved(position, done)
    checkBetween(opcode, done, check)
    let count: number
    try {
      const { length } = piece
      const more = [limits, true, flags, partOf] as const
      count = await transfers.transfer(one, file, piece, length, from, false, ...more)
    } catch (error) {
      const { errno, bytesWritten = 0 } = error as { errno?: number; bytesWritten?: number }
      if (errno === -EAGAIN && reads && done > 0) return done
      throw withWritten(opcode, error as Error, done + bytesWritten)
    }
    const scatter = (bytes: Uint8Array, at: number) =>
      bytes.set(piece.subarray(at, at + bytes.length))
    if (reads && !each(buffers, lengths, done, count, scatter)) throw gone(opcode)
    done += count
    if (count < piece.length || (reads && done < length && !(await goesOn(what, check)))) break
  }
  return done
}

function gone(opcode: number): Error {
  return uringError('ERR_URING_BUFFER_DETACHED', { syscall: syscallOf(opcode) })
}

/**
 * Calls with each buffer's part of `length` bytes from `start` of all, and where that is in them. False when
 * it comes to one that has gone elsewhere or was shrunk.
 */
function each(
  buffers: readonly ArrayBufferView[],
  lengths: readonly number[],
  start: number,
  length: number,
  visit: (bytes: Uint8Array, at: number) => void,
): boolean {
  let begins = 0
  for (const [index, view] of buffers.entries()) {
    const own = lengths[index] as number
    const from = Math.max(start, begins)
    const to = Math.min(start + length, begins + own)
    if (from < to) {
      if (!hasBytes(view, own)) return false
      visit(new Uint8Array(view.buffer, view.byteOffset + from - begins, to - from), from - start)
    }
    begins += own
  }
  return true
}
