/**
 * A part of many operations that are staged by one call: how it gets the memory that it is copied
 * through, how it is staged, and what becomes of its results. `volume.ts` decides on the parts.
 */
import {
  OP_READ,
  OP_WRITE,
  POOL_BOUNCE,
  TAKE_BUFFER_GONE,
  TAKE_ERRNO,
  TAKE_LIMIT,
} from './backend.js'
import { ERRNO } from './errno.js'
import { internalError } from './errors.js'
import type { Operations } from './operations.js'
import { type Operation, OVER, WAITS_FOR_MEMORY } from './slots.js'
import { MAY_BE_REPORTS } from './syncs.js'
import type { ManyLengths } from './volume.js'

const { EIO } = ERRNO

/** Positions as the engine takes them. */
export type Numbers = Float64Array | BigInt64Array | BigUint64Array

/** A part of many operations: which, between what, and where their results go. */
export interface ManyPart {
  readonly positions: Numbers | number
  readonly lengths: ManyLengths
  /** Bytes of all of them, and where they begin in the caller's memory. */
  readonly bytes: number
  readonly start: number
  /** The results of the call, and where this part's begin. */
  readonly counts: Int32Array | undefined
  readonly from: number
  /** What its promise resolves with. */
  readonly result: Int32Array | undefined
}

/** Stages a part; the memory that it is copied through is taken first. */
export function startMany(operations: Operations, op: Operation): number {
  const part = op.many as ManyPart
  const { backend } = operations
  if (op.bounced) {
    // A chunk of no bytes is a chunk all the same.
    const bytes = Math.max(part.bytes, 1)
    const chunk =
      op.opcode === OP_WRITE && part.bytes > 0
        ? backend.take(POOL_BOUNCE, part.bytes, op.view as Uint8Array, part.start)
        : backend.take(POOL_BOUNCE, bytes)
    if (chunk === TAKE_LIMIT) return WAITS_FOR_MEMORY
    if (chunk < TAKE_LIMIT) {
      if (chunk === TAKE_BUFFER_GONE) operations.fail(op, operations.transfers.bufferGone(op))
      else if (chunk < TAKE_ERRNO) operations.finish(op, chunk - TAKE_ERRNO)
      else operations.fail(op, internalError(`no bounce memory (${chunk})`))
      return OVER
    }
    op.chunk = chunk
    operations.transfers.bouncedBytes += part.bytes
  }
  const { opcode, slot, file, chunk } = op
  const offset = op.bounced ? 0 : op.base + part.start
  const fill = file?.fills ? 1 : 0
  const handle = file?.handle ?? 0
  const refusal = backend.stageMany(
    opcode,
    slot,
    handle,
    chunk,
    offset,
    part.lengths,
    part.positions,
    fill,
  )
  if (refusal !== undefined) {
    operations.transfers.letGo(op)
    return operations.refused(op, refusal)
  }
  return operations.took(op)
}

/** Takes the counts of a part that is complete; false when there are none, and it has settled. */
export function takeCounts(operations: Operations, op: Operation): boolean {
  const { counts, from } = op.many as ManyPart
  if (counts === undefined) return true
  const refusal = operations.backend.takeCounts(op.slot, counts, from)
  if (refusal === undefined) return true
  operations.transfers.letGo(op)
  operations.fail(op, internalError(`no counts of many (${refusal})`))
  return false
}

/**
 * What the writes of a part tell of the file that they sync: what one failed with, where a short one does not say
 * with what. Then none of them is a success: they run side by side, and the first that looks is told of what
 * another lost.
 */
export function outcomeOfMany(op: Operation, result: number): number {
  const part = op.many as ManyPart
  const counts = countsOf(part)
  if (counts === undefined) return result
  const { lengths } = part
  const isShort = (count: number, index: number) =>
    count > 0 && count < (typeof lengths === 'number' ? lengths : (lengths[index] as number))
  const cut = op.file?.fills === true && !op.cancelled && counts.some(isShort)
  const failure = counts.find((count) => MAY_BE_REPORTS.has(count)) ?? (cut ? -EIO : undefined)
  if (failure === undefined) return result
  for (const [index, count] of counts.entries()) if (count > 0) counts[index] = failure
  return failure
}

/** A part is over, its counts are there: copies what was read, and settles. */
export function arriveMany(operations: Operations, op: Operation, result: number): void {
  const part = op.many as ManyPart
  const gone = op.bounced && op.opcode === OP_READ && !copyMany(operations, op, part)
  // What was written from is still to be given back.
  operations.transfers.letGo(op)
  if (gone) operations.fail(op, operations.transfers.bufferGone(op))
  else if (result < 0) operations.finish(op, result)
  else operations.settle(op, part.result)
}

/**
 * Copies what each of many reads brought, and nothing of what was in the chunk before: neighbours that
 * are full are copied at a stroke. Gives the chunk back. False when the target is gone.
 */
function copyMany(operations: Operations, op: Operation, part: ManyPart): boolean {
  const { backend } = operations
  const counts = part.counts as Int32Array
  const { lengths, from } = part
  const many = (part.positions as Numbers).length
  const target = op.view as Uint8Array
  const runs: number[] = [] // offset, length
  let [at, runStart, runBytes] = [0, 0, 0]
  for (let index = 0; index < many; index++) {
    const count = Math.max(0, counts[from + index] as number)
    const length = typeof lengths === 'number' ? lengths : (lengths[index] as number)
    runBytes += count
    at += length
    if (count < length) {
      if (runBytes > 0) runs.push(runStart, runBytes)
      runStart = at
      runBytes = 0
    }
  }
  runs.push(runStart, runBytes)
  const chunk = op.chunk
  op.chunk = 0
  return backend.copyRuns(chunk, Float64Array.from(runs), target, part.start) === undefined
}

/** The bytes that counts tell of. */
export function bytesOf(counts: Int32Array): number {
  return counts.reduce((bytes, count) => bytes + Math.max(0, count), 0)
}

/** The counts of a part; none of nops. */
function countsOf({ counts, from, positions }: ManyPart): Int32Array | undefined {
  return typeof positions === 'number' ? undefined : counts?.subarray(from, from + positions.length)
}

/** Bytes that a part has written, as far as its counts say. */
export function bytesOfMany(part: ManyPart): number {
  const counts = countsOf(part)
  return counts === undefined ? 0 : bytesOf(counts)
}
