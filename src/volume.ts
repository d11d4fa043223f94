/**
 * Thousands of reads or writes of one file for one promise: typed arrays in, one array of counts out,
 * nothing for each operation in between. They are staged in parts; a part is one record, one call into
 * the engine and one completion, and waits for room as any other operation does.
 */
import { remainder } from './alignment.js'
import { OP_NOP, OP_READ, OP_WRITE, syscallOf } from './backend.js'
import {
  abortError,
  invalidArgType,
  invalidArgValue,
  outOfRange,
  rejected,
  tellBytesWritten,
  uringError,
} from './errors.js'
import type { FileState } from './file-state.js'
import { type Limits, overBefore } from './limits.js'
import { bytesOf, type ManyPart, type Numbers } from './many.js'
import { hasBytes } from './memory.js'
import type { Operations } from './operations.js'
import { KIND_MANY, type Operation } from './slots.js'
import { checkPosition, nameOfOne } from './validate.js'

/** Positions in a file, in bytes. */
export type Positions = Float64Array | BigInt64Array | BigUint64Array | Uint32Array | Int32Array
/** One length for all, or one for each, in bytes. */
export type ManyLengths = number | Uint32Array

/** Operations of a part, and how many parts of one call are under way at once. */
const PART = 16_384
const PARTS_AT_ONCE = 2
/** Bytes of a part in place when somebody watches the progress: some milliseconds. */
const WATCHED_PART_BYTES = 8 << 20
/**
 * Bytes of a part that is copied. Short ones go in small parts, whose bounce memory is still in the
 * processor's cache when it is copied, and soon used again: cached 4 KiB reads cost 1.26 times those in
 * place, by parts of 1 MiB 1.30 times; the first after a pause 1.27, and 1.50. Of long ones a part has
 * some, since a part has its price: 64 KiB by parts of 128 KiB cost a quarter more.
 */
const COPIED_PART_BYTES_MIN = 128 << 10
const COPIED_PART_BYTES_MAX = 1 << 20
const COPIED_PART_OPERATIONS_MIN = 16
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
  /** The whole call, where that has begun already. */
  readonly whole?: Operation
}

/** What of it all parts have; nops have no file and no memory. */
type Whole = Pick<ManyTransfer, 'opcode' | 'limits' | 'whole'> &
  Partial<Pick<ManyTransfer, 'file' | 'view'>>

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
    checkLengthOfOne(lengths)
    total = lengths * numbers.length
  } else if (lengths instanceof Uint32Array) {
    if (lengths.length !== numbers.length) {
      const reason = `must have as many elements as positions (${numbers.length})`
      throw invalidArgValue('lengths', lengths, reason)
    }
    const copy = lengths.slice()
    for (let i = 0; i < copy.length; i++) {
      const length = copy[i] as number
      checkLengthOfOne(length, i)
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

function checkLengthOfOne(length: number, index?: number): void {
  if (!Number.isInteger(length) || length < 0 || length > LENGTH_MAX) {
    throw outOfRange(nameOfOne('lengths', index), `>= 0 && <= ${LENGTH_MAX}`, length)
  }
}

function copyPositions(positions: Positions): Numbers {
  if (positions instanceof BigInt64Array || positions instanceof BigUint64Array) {
    const copy = positions.slice()
    for (let i = 0; i < copy.length; i++) checkPosition(copy[i], 'positions', i)
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
  // Not Float64Array.from, which goes through an iterator: 20 ns for each.
  const copy = new Float64Array(positions)
  for (let i = 0; i < copy.length; i++) checkPosition(copy[i], 'positions', i)
  return copy
}

/**
 * Runs parts, a few at once, and reports how many operations are done. Rejects with the first failure
 * when all that began are over.
 */
async function runParts(
  parts: readonly Pick<Span, 'from' | 'to'>[],
  atOnce: number,
  begin: (index: number) => Promise<unknown>,
  onProgress: ManyTransfer['onProgress'],
): Promise<void> {
  const total = parts.at(-1)?.to ?? 0
  let [next, done] = [0, 0]
  let failure: { error: unknown } | undefined
  const worker = async (): Promise<void> => {
    while (next < parts.length && failure === undefined) {
      const index = next++
      const { from, to } = parts[index] as Span
      try {
        await begin(index)
        done += to - from
        onProgress?.(done, total)
      } catch (error) {
        failure ??= { error }
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, parts.length) }, worker))
  if (failure !== undefined) throw failure.error
}

/** The caller's memory, as it was at the call. */
interface ManyMemory {
  /** The chunk of the arena that it is in, or 0, and where it begins there. */
  readonly chunk: number
  readonly base: number
  readonly bytes: Uint8Array
}

/** Rejects when the call was cancelled between two of its parts. */
type Check = (bytesWritten?: number) => Promise<never> | undefined

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
    const most = lengths === 0 ? PART : Math.floor(bytesMax / lengths) // 0: one by one
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
  nops(count: number, limits: Limits | undefined): Promise<void> {
    const over = this.#over(limits, OP_NOP)
    if (over !== undefined) return rejected(over)
    if (count === 0) return Promise.resolve()
    if (count <= PART) return this.#launch(OP_NOP, undefined, undefined, nopsPart(count), limits)
    const parts = spansOf(count, 0, 0)
    const begin = (index: number, whole: Operation) => {
      const { from, to } = parts[index] as Span
      return this.#launch(OP_NOP, undefined, undefined, nopsPart(to - from), limits, whole)
    }
    return this.#whole({ opcode: OP_NOP, limits }, (check, whole) =>
      runParts(parts, PARTS_AT_ONCE, (index) => check() ?? begin(index, whole), undefined),
    )
  }

  /** See {@link File.readMany} and {@link File.writeMany}. */
  transfer(what: ManyTransfer): Promise<Int32Array> {
    const { file, opcode, positions, view, limits } = what
    const over = this.#over(limits, opcode)
    if (over !== undefined) return rejected(over)
    if (positions.length === 0) return Promise.resolve(new Int32Array(0))
    // Looked at once: a view whose memory has gone elsewhere says of its place what is not so.
    const chunk = this.#operations.memory.chunkOf(view)
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
    const memory = { chunk, base: chunk === 0 ? 0 : view.byteOffset, bytes }
    if (file.fills !== undefined) return this.#transfer(what, memory)
    return this.#whole(what, async (check, whole) => {
      // A file that cannot say what it is is read like a stream.
      await file.learn(opcode, limits)
      const cut = check(writtenAtFirst(opcode))
      if (cut !== undefined) return cut
      if (this.#readsEnd(what)) return rejected(abortError())
      return this.#transfer({ ...what, whole }, memory)
    })
  }

  #transfer(what: ManyTransfer, memory: ManyMemory): Promise<Int32Array> {
    const { file, opcode, positions, lengths, limits, onProgress, whole } = what
    const counts = new Int32Array(positions.length)
    const longest = longestOf(lengths)
    if (!canGoTogether(what, memory, longest)) return this.#oneByOne(what, memory, counts)
    const inPlace = memory.chunk !== 0
    const all = onProgress === undefined ? Number.MAX_SAFE_INTEGER : WATCHED_PART_BYTES
    const most = inPlace ? all : copiedPartBytes(longest)
    const spans = spansOf(positions.length, lengths, most)
    const begin = (index: number, partOf?: Operation): Promise<Int32Array | undefined> => {
      const { from, to, start, bytes } = spans[index] as Span
      // Between two parts its reads may have been cancelled.
      if (partOf !== undefined && this.#readsEnd(what)) return rejected(abortError())
      if (!hasBytes(memory.bytes, start + bytes)) return rejected(goneError(opcode))
      const isAll = to - from === counts.length
      const part: ManyPart = {
        positions: isAll ? positions : (positions.subarray(from, to) as Numbers),
        lengths: typeof lengths === 'number' || isAll ? lengths : lengths.subarray(from, to),
        bytes,
        start,
        counts,
        from,
        result: counts,
      }
      return this.#launch(opcode, file, memory, part, limits, partOf)
    }
    if (spans.length === 1 && onProgress === undefined) {
      return begin(0, whole) as Promise<Int32Array>
    }
    const atOnce = inPlace ? PARTS_AT_ONCE : COPIED_PARTS_AT_ONCE
    return this.#inParts(what, counts, (check, partOf) =>
      runParts(spans, atOnce, (index) => check() ?? begin(index, partOf), onProgress),
    )
  }

  async #inParts(
    what: ManyTransfer,
    counts: Int32Array,
    run: (check: Check, whole: Operation) => Promise<void>,
  ): Promise<Int32Array> {
    try {
      await this.#whole(what, run)
    } catch (error) {
      if (what.opcode === OP_WRITE) tellBytesWritten(error, bytesOf(counts))
      throw error
    }
    return counts
  }

  /**
   * Runs the parts of a call: file and queue, when they are closed meanwhile, wait for all of them.
   * `check` is asked before each, and rejects when everything was cancelled. Drains wait for all of them, or
   * for the `whole` that these are in; and all of them for a drain.
   */
  async #whole<T>(
    { file, opcode, view, limits, whole: outer }: Whole,
    run: (check: Check, whole: Operation) => Promise<T>,
  ): Promise<T> {
    const operations = this.#operations
    const held = operations.hold(file)
    const { number } = held
    // Not all of it is with the engine at once.
    if (view !== undefined) held.buffers = [view]
    const turn = outer === undefined && operations.waiting.turnOf(held, opcode, limits)
    const check: Check = (bytesWritten) =>
      held.number === number ? undefined : rejected(operations.cutOff(bytesWritten))
    try {
      if (turn) await turn
      return await run(check, outer ?? held)
    } finally {
      if (held.number === number) operations.settle(held, undefined)
    }
  }

  /** Those that cannot go together travel as `readAt` and `writeAt` do. */
  #oneByOne(what: ManyTransfer, memory: ManyMemory, counts: Int32Array): Promise<Int32Array> {
    const { positions, lengths, onProgress } = what
    const spans = spansOf(positions.length, lengths, 0)
    const begin = (index: number, partOf: Operation) =>
      this.#single(what, memory, spans[index] as Span, counts, partOf)
    return this.#inParts(what, counts, (check, partOf) =>
      runParts(spans, ONE_BY_ONE, (index) => check() ?? begin(index, partOf), onProgress),
    )
  }

  /** Whether what may never end by itself begins no more. */
  #readsEnd({ file, opcode }: Pick<ManyTransfer, 'file' | 'opcode'>): boolean {
    return opcode === OP_READ && (this.#operations.endsReads || file.readsCancelled)
  }

  #over(limits: Limits | undefined, opcode: number): Error | undefined {
    return this.#operations.ended?.() ?? overBefore(limits, opcode, writtenAtFirst(opcode))
  }

  async #single(
    { file, opcode, positions, limits }: ManyTransfer,
    memory: ManyMemory,
    { from: index, start, bytes }: Span,
    counts: Int32Array,
    partOf: Operation,
  ): Promise<void> {
    if (bytes === 0) return
    if (this.#readsEnd({ file, opcode })) return rejected(abortError())
    if (!hasBytes(memory.bytes, start + bytes)) return rejected(goneError(opcode))
    const part = memory.bytes.subarray(start, start + bytes)
    const at = positions[index] as number | bigint
    const { transfers } = this.#operations
    try {
      const more = [limits, true, 0, partOf] as const
      counts[index] = await transfers.transfer(opcode, file, part, bytes, at, false, ...more)
    } catch (error) {
      const { errno, bytesWritten = 0 } = error as { errno?: number; bytesWritten?: number }
      // As write(2): what was moved counts, and the error comes at the next call.
      if (bytesWritten > 0) counts[index] = bytesWritten
      else if (errno !== undefined) counts[index] = errno
      if (errno === undefined) throw error
    }
  }

  /** Stages a part, or lets it wait. */
  #launch<T>(
    opcode: number,
    file: FileState | undefined,
    memory: ManyMemory | undefined,
    part: ManyPart,
    limits: Limits | undefined,
    partOf?: Operation,
  ): Promise<T> {
    const operations = this.#operations
    const over = overBefore(limits, opcode, writtenAtFirst(opcode))
    if (over !== undefined) return rejected(over)
    const op = operations.slots.take()
    op.kind = KIND_MANY
    op.opcode = opcode
    op.file = file
    op.many = part
    op.partOf = partOf
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

function longestOf(lengths: ManyLengths): number {
  return typeof lengths === 'number' ? lengths : lengths.reduce((a, b) => Math.max(a, b), 0)
}

function copiedPartBytes(longest: number): number {
  const some = Math.max(COPIED_PART_BYTES_MIN, longest * COPIED_PART_OPERATIONS_MIN)
  return Math.min(some, COPIED_PART_BYTES_MAX)
}

/** Whether parts can be staged by one call: not when a direct file needs blocks around them. */
function canGoTogether(what: ManyTransfer, { chunk, base }: ManyMemory, longest: number): boolean {
  const { file, positions, lengths } = what
  const inPlace = chunk !== 0
  if (!inPlace && longest > COPIED_PART_BYTES_MAX) return false
  if (file.blockBytes === 0) return true
  const block = file.blockBytes
  // Bounce memory begins on a page, and each begins where the one before it ends.
  if (inPlace && base % file.memoryBytes !== 0) return false
  const aligned = (length: number) => length % block === 0 && length % file.memoryBytes === 0
  if (typeof lengths === 'number' ? !aligned(lengths) : !lengths.every(aligned)) return false
  // Not for-of, which goes through an iterator: 11 ns for each.
  for (let i = 0; i < positions.length; i++) {
    if (remainder(positions[i] as number | bigint, block) !== 0) return false
  }
  return true
}

function nopsPart(count: number): ManyPart {
  const result = undefined
  return { positions: count, lengths: 0, bytes: 0, start: 0, counts: undefined, from: 0, result }
}

/** Those that cannot go together, at once. */
const ONE_BY_ONE = 128

function goneError(opcode: number): Error {
  const bytesWritten = writtenAtFirst(opcode)
  return uringError('ERR_URING_BUFFER_DETACHED', { syscall: syscallOf(opcode), bytesWritten })
}

/** What the error of a write says that has not begun; reads say nothing of it. */
function writtenAtFirst(opcode: number): number | undefined {
  return opcode === OP_WRITE ? 0 : undefined
}
