/**
 * Thousands of reads or writes of one file for one promise: typed arrays in, one array of counts out,
 * nothing for each operation in between. They are staged in parts; a part is one record, one call into
 * the engine and one completion, and waits for room as any other operation does.
 */
import { OP_NOP, OP_WRITE, syscallOf } from './backend.js'
import {
  abortError,
  invalidArgType,
  invalidArgValue,
  outOfRange,
  rejected,
  uringError,
} from './errors.js'
import type { FileState } from './file-state.js'
import { type Limits, overBefore } from './limits.js'
import type { ManyPart, Numbers } from './many.js'
import { hasBytes } from './memory.js'
import type { Operations } from './operations.js'
import { KIND_MANY } from './slots.js'
import { checkPosition } from './validate.js'

/** Positions in a file, in bytes. */
export type Positions = Float64Array | BigInt64Array | BigUint64Array | Uint32Array | Int32Array
/** One length for all, or one for each, in bytes. */
export type ManyLengths = number | Uint32Array

/** Operations of a part, and how many parts of one call are under way at once. */
const PART = 16_384
const PARTS_AT_ONCE = 2
/** Bytes of a part that is copied. */
const COPIED_PART_BYTES = 1 << 20
const COPIED_PARTS_AT_ONCE = 4
/** The kernel's MAX_RW_COUNT. read(2). */
const LENGTH_MAX = 0x7ffff000

/** What {@link File.readMany} and {@link File.writeMany} were asked for, checked. */
export interface ManyTransfer {
  readonly file: FileState
  readonly opcode: number
  readonly positions: Numbers
  readonly lengths: ManyLengths
  readonly view: ArrayBufferView
  readonly limits: Limits | undefined
  readonly onProgress: ((done: number, total: number) => void) | undefined
}

/**
 * Checks positions and lengths against each other and the memory, and copies them: what a caller does
 * to its arrays later changes nothing. Throws Node's `ERR_` errors.
 */
export function checkMany(
  positions: Positions,
  lengths: ManyLengths,
  view: ArrayBufferView,
): { positions: Numbers; lengths: ManyLengths } {
  const numbers = copyPositions(positions)
  let [ours, total] = [lengths, 0]
  if (typeof lengths === 'number') {
    checkLengthOfOne(lengths, 'lengths')
    total = lengths * numbers.length
  } else if (lengths instanceof Uint32Array) {
    if (lengths.length !== numbers.length) {
      const reason = `must have as many elements as positions (${numbers.length})`
      throw invalidArgValue('lengths', lengths, reason)
    }
    const copy = lengths.slice()
    for (const length of copy) {
      checkLengthOfOne(length, 'lengths')
      total += length
    }
    ours = copy
  } else {
    throw invalidArgType('lengths', 'of type number or an instance of Uint32Array', lengths)
  }
  if (total > view.byteLength) {
    throw outOfRange('lengths', `in all <= ${view.byteLength}, the memory's length`, total)
  }
  return { positions: numbers, lengths: ours }
}

function checkLengthOfOne(length: number, name: string): void {
  if (!Number.isInteger(length) || length < 0 || length > LENGTH_MAX) {
    throw outOfRange(name, `>= 0 && <= ${LENGTH_MAX}`, length)
  }
}

function copyPositions(positions: Positions): Numbers {
  if (positions instanceof BigInt64Array || positions instanceof BigUint64Array) {
    const copy = positions.slice()
    for (const position of copy) checkPosition(position, 'positions')
    return copy
  }
  if (
    !(positions instanceof Float64Array) &&
    !(positions instanceof Uint32Array) &&
    !(positions instanceof Int32Array)
  ) {
    const expected =
      'an instance of Float64Array, BigInt64Array, BigUint64Array, Uint32Array, or Int32Array'
    throw invalidArgType('positions', expected, positions)
  }
  const copy = Float64Array.from(positions)
  for (let i = 0; i < copy.length; i++) checkPosition(copy[i], 'positions')
  return copy
}

/** Runs parts, a few at once, and reports what is done. Rejects with the first failure when all are over. */
async function runParts(
  count: number,
  atOnce: number,
  total: number,
  begin: (index: number) => Promise<number>,
  onProgress: ManyTransfer['onProgress'],
): Promise<void> {
  let [next, done] = [0, 0]
  let failure: { error: unknown } | undefined
  const worker = async (): Promise<void> => {
    while (next < count && failure === undefined) {
      try {
        const part = await begin(next++)
        done += part
        onProgress?.(done, total)
      } catch (error) {
        failure ??= { error }
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, worker))
  if (failure !== undefined) throw failure.error
}

/** The caller's memory, as it was at the call. */
interface ManyMemory {
  /** The chunk of the arena that it is in, or 0, and where it begins there. */
  readonly chunk: number
  readonly base: number
  readonly bytes: Uint8Array
}

/** Where each part of a call begins and ends. */
interface Span {
  from: number
  to: number
  start: number
  bytes: number
}

function spansOf(count: number, lengths: ManyLengths, bytesMax: number): Span[] {
  const spans: Span[] = []
  if (typeof lengths === 'number') {
    const most = lengths === 0 ? PART : Math.floor(bytesMax / lengths)
    const step = Math.max(1, Math.min(PART, most))
    for (let from = 0; from < count; from += step) {
      const to = Math.min(count, from + step)
      spans.push({ from, to, start: from * lengths, bytes: (to - from) * lengths })
    }
    return spans
  }
  let [from, start, bytes] = [0, 0, 0]
  for (let to = 0; to < count; to++) {
    const length = lengths[to] as number
    if (to > from && (to - from === PART || bytes + length > bytesMax)) {
      spans.push({ from, to, start, bytes })
      start += bytes
      from = to
      bytes = 0
    }
    bytes += length
  }
  if (from < count) spans.push({ from, to: count, start, bytes })
  return spans
}

/** The bulk operations of one queue. */
export class Volume {
  readonly #operations: Operations

  constructor(operations: Operations) {
    this.#operations = operations
  }

  /** See {@link Queue.nops}. */
  async nops(count: number, limits: Limits | undefined): Promise<void> {
    const over = this.#over(limits, OP_NOP)
    if (over !== undefined) return rejected(over)
    const parts = Math.ceil(count / PART)
    const begin = (index: number) => {
      const nops = Math.min(PART, count - index * PART)
      const part = { positions: nops, lengths: 0, bytes: 0, start: 0, counts: undefined, from: 0 }
      return this.#launch(OP_NOP, undefined, undefined, part, limits)
    }
    await this.#whole(undefined, (check) => {
      const checked = (index: number) => check() ?? begin(index)
      return runParts(parts, PARTS_AT_ONCE, count, checked, undefined)
    })
  }

  /** See {@link File.readMany} and {@link File.writeMany}. */
  async transfer(what: ManyTransfer): Promise<Int32Array> {
    const { file, opcode, positions, lengths, view, limits, onProgress } = what
    const over = this.#over(limits, opcode)
    if (over !== undefined) return rejected(over)
    const counts = new Int32Array(positions.length)
    // Looked at once: a view whose memory has gone elsewhere says of its place what is not so.
    const chunk = this.#operations.memory.chunkOf(view)
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
    const memory: ManyMemory = { chunk, base: chunk === 0 ? 0 : view.byteOffset, bytes }
    await this.#whole(file, async (check) => {
      if (file.fills === undefined) await file.learn()
      const inPlace = chunk !== 0
      const one = positions.length > 0 && !this.#canGoTogether(what, memory)
      const partBytes = one ? 0 : inPlace ? Number.MAX_SAFE_INTEGER : COPIED_PART_BYTES
      const spans = spansOf(positions.length, lengths, partBytes)
      const begin = (at: number): Promise<number> => {
        const refused = check()
        if (refused !== undefined) return refused
        const { from, to, start, bytes: length } = spans[at] as Span
        if (!hasBytes(bytes, start + length)) return rejected(goneError(opcode))
        if (one) return this.#single(what, bytes, from, start, length, counts)
        const part: ManyPart = {
          positions: positions.subarray(from, to) as Numbers,
          lengths: typeof lengths === 'number' ? lengths : lengths.subarray(from, to),
          bytes: length,
          start,
          counts,
          from,
        }
        return this.#launch(opcode, file, memory, part, limits)
      }
      const atOnce = one ? ONE_BY_ONE : inPlace ? PARTS_AT_ONCE : COPIED_PARTS_AT_ONCE
      await runParts(spans.length, atOnce, counts.length, begin, onProgress)
    }).catch((error) => {
      if (opcode === OP_WRITE) tellBytesWritten(error, counts)
      throw error
    })
    return counts
  }

  /**
   * Runs the parts of a call, which was made before the file or the queue was closed: they wait for
   * all of it. `check` says, before each part, whether everything was cancelled meanwhile.
   */
  async #whole(
    file: FileState | undefined,
    run: (check: () => Promise<never> | undefined) => Promise<void>,
  ): Promise<void> {
    const operations = this.#operations
    const held = operations.hold(file)
    const { number } = held
    try {
      await run(() => {
        if (held.number === number) return undefined
        return rejected(operations.ended?.() ?? abortError())
      })
    } finally {
      if (held.number === number) operations.settle(held, undefined)
    }
  }

  #over(limits: Limits | undefined, opcode: number): Error | undefined {
    const written = opcode === OP_WRITE ? 0 : undefined
    return this.#operations.ended?.() ?? overBefore(limits, opcode, written)
  }

  /** Whether parts can be staged by one call: not when a direct file needs blocks around them. */
  #canGoTogether(what: ManyTransfer, { chunk, base }: ManyMemory): boolean {
    const { file, positions, lengths } = what
    const inPlace = chunk !== 0
    const longest =
      typeof lengths === 'number' ? lengths : lengths.reduce((a, b) => Math.max(a, b), 0)
    if (!inPlace && longest > COPIED_PART_BYTES) return false
    if (file.blockBytes === 0) return true
    const block = file.blockBytes
    // Bounce memory begins on a page, and each begins where the one before it ends.
    if (inPlace && base % file.memoryBytes !== 0) return false
    const aligned = (length: number) => length % block === 0 && length % file.memoryBytes === 0
    if (typeof lengths === 'number' ? !aligned(lengths) : !lengths.every(aligned)) return false
    for (const position of positions) {
      const off = typeof position === 'bigint' ? Number(position % BigInt(block)) : position % block
      if (off !== 0) return false
    }
    return true
  }

  /** One that cannot go together with others travels as `readAt` does. */
  async #single(
    { file, opcode, positions, limits }: ManyTransfer,
    memory: Uint8Array,
    index: number,
    start: number,
    bytes: number,
    counts: Int32Array,
  ): Promise<number> {
    const bytesOf = memory.subarray(start, start + bytes)
    const { transfers } = this.#operations
    try {
      const position = positions[index] as number | bigint
      counts[index] =
        bytes === 0
          ? 0
          : await transfers.transfer(opcode, file, bytesOf, bytes, position, false, limits, true)
    } catch (error) {
      const { errno, bytesWritten = 0 } = error as { errno?: number; bytesWritten?: number }
      // As write(2): what was moved counts, and the error comes at the next call.
      if (bytesWritten > 0) counts[index] = bytesWritten
      else if (errno !== undefined) counts[index] = errno
      if (errno === undefined) throw error
    }
    return 1
  }

  /** Stages a part, or lets it wait; resolves with how many operations it was. */
  #launch(
    opcode: number,
    file: FileState | undefined,
    memory: ManyMemory | undefined,
    part: ManyPart,
    limits: Limits | undefined,
  ): Promise<number> {
    const operations = this.#operations
    const over = overBefore(limits, opcode)
    if (over !== undefined) return rejected(over)
    const op = operations.slots.take()
    op.kind = KIND_MANY
    op.opcode = opcode
    op.file = file
    op.many = part
    if (memory !== undefined) {
      op.chunk = memory.chunk
      op.base = memory.base
      op.bounced = memory.chunk === 0
      op.view = memory.bytes
    }
    if (file !== undefined) file.pending++
    if (limits !== undefined) operations.limits.add(op, limits)
    return operations.launch(op)
  }
}

/** Those that cannot go together, at once. */
const ONE_BY_ONE = 128

function goneError(opcode: number): Error {
  return uringError('ERR_URING_BUFFER_DETACHED', { syscall: syscallOf(opcode) })
}

function tellBytesWritten(error: unknown, counts: Int32Array): void {
  let bytesWritten = 0
  for (const count of counts) if (count > 0) bytesWritten += count
  Object.assign(error as Error, { bytesWritten })
}
