/**
 * Chains: how one gets all that it needs before any of it is staged, which part of it waits for what,
 * and how its members end. `batch.ts` makes the members and takes their results.
 */
import {
  FLAG_DRAIN,
  FLAG_HARDLINK,
  FLAG_LINK,
  isOutgoing,
  OP_FALLOCATE,
  OP_FTRUNCATE,
  OP_LINK_TIMEOUT,
  OP_LINKAT,
  OP_MKDIRAT,
  OP_READ,
  OP_READV,
  OP_RECV,
  OP_RENAMEAT,
  OP_SEND,
  OP_SPLICE,
  OP_STATX,
  OP_SYMLINKAT,
  OP_UNLINKAT,
  OP_WRITE,
  OP_WRITEV,
} from './backend.js'
import type { Batch, BatchResult } from './batch.js'
import { ERRNO } from './errno.js'
import { uringError } from './errors.js'
import { WAITS_FOR_ALL } from './modifiers.js'
import type { Operations } from './operations.js'
import {
  KIND_TRANSFER,
  type Operation,
  OVER,
  STAGED,
  WAITS_FOR_MEMORY,
  WAITS_FOR_SLOT,
} from './slots.js'
import { isSync } from './syncs.js'

const { ECANCELED } = ERRNO

/**
 * Whether it is not the kernel that knows whether it has succeeded, so that in a soft chain what follows is
 * staged when we do.
 */
function isJudgedHere(op: Operation | undefined): boolean {
  if (op === undefined) return false
  switch (op.opcode) {
    // These do not end a chain when they fail: no `req_set_fail` in io_uring/truncate.c, fs.c, statx.c.
    case OP_FALLOCATE:
    case OP_FTRUNCATE:
    case OP_LINKAT:
    case OP_MKDIRAT:
    case OP_RENAMEAT:
    case OP_STATX:
    case OP_SYMLINKAT:
    case OP_UNLINKAT:
      return true
    case OP_READ:
      // Whole blocks are read, of which the file may have less than that and all that was asked for.
      return op.bounced && op.file?.blockBytes !== 0
    default:
      // Nor does fsync (sync.c); and what syncs may have lost what others wrote.
      return isSync(op)
  }
}

function isIncoming(opcode: number): boolean {
  return opcode === OP_READ || opcode === OP_READV || opcode === OP_RECV
}

/**
 * Whether a later member of the chain uses the memory that this one reads to, and one of the two is copied.
 * A read is copied when it is over, by this thread: whatever the kernel began by itself then would be faster.
 * A write is copied when it is staged, with what is there by then. (Of two reads that are copied each is so
 * in its turn.)
 */
function comesBefore(members: readonly Operation[], index: number): boolean {
  const read = members[index] as Operation
  if (!isIncoming(read.opcode)) return false
  return members.slice(index + 1).some((later) => {
    if (isCopied(later) ? isIncoming(later.opcode) : !isCopied(read)) return false
    return memoryOf(read).some((one) => memoryOf(later).some((other) => overlap(one, other)))
  })
}

function isCopied({ kind, bounced }: Operation): boolean {
  return kind === KIND_TRANSFER && bounced
}

/** The caller's memory that a member of a batch reads to or writes from. */
function memoryOf({ batch, index }: Operation): readonly ArrayBufferView[] {
  const { view, buffers } = batch?.made(index) ?? {}
  return buffers ?? (view === undefined ? [] : [view])
}

function overlap(one: ArrayBufferView, other: ArrayBufferView): boolean {
  if (one.buffer !== other.buffer) {
    // Two of these may be of one memory, and nothing tells.
    return isShared(one) && isShared(other)
  }
  return (
    one.byteOffset < other.byteOffset + other.byteLength &&
    other.byteOffset < one.byteOffset + one.byteLength
  )
}

function isShared({ buffer }: ArrayBufferView): boolean {
  return buffer instanceof SharedArrayBuffer
}

/** Whose end what comes after `index` waits for, if it is not the kernel that sees to that. */
export function decider(
  members: readonly Operation[],
  index: number,
  soft: boolean,
): Operation | undefined {
  const decides = (at: number): boolean =>
    (soft && isJudgedHere(members[at])) || (at >= 0 && comesBefore(members, at))
  // A bound goes to the kernel together with what it bounds.
  if (members[index]?.opcode === OP_LINK_TIMEOUT) {
    return decides(index - 1) ? members[index - 1] : undefined
  }
  if (members[index + 1]?.opcode === OP_LINK_TIMEOUT) return undefined
  return decides(index) ? members[index] : undefined
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
  const drains = (first.flags & FLAG_DRAIN) !== 0
  if (stageChain(operations, members, batch)) holdRest(operations, batch, drains)
  return STAGED
}

/** Stages members up to the first that others wait for; whether they do. */
function stageChain(operations: Operations, members: readonly Operation[], batch: Batch): boolean {
  for (const [index, op] of members.entries()) {
    const refusal =
      op.kind === KIND_TRANSFER
        ? operations.transfers.stage(op, op.opcode | op.flags)
        : operations.stageCall(op)
    if (refusal === undefined) {
      operations.took(op, members[index - 1])
      if ((op.flags & (FLAG_LINK | FLAG_HARDLINK)) === 0) return index < members.length - 1
      continue
    }
    // The engine cancels what of the chain it has; the rest will not begin.
    const rest = members.slice(index + 1)
    for (const other of [op, ...rest]) {
      if (other.kind === KIND_TRANSFER) operations.transfers.letGo(other)
    }
    operations.refused(op, refusal)
    endChain(operations, rest, batch)
    break
  }
  return false
}

/** A part of the chain is still to be staged. */
function holdRest({ waiting, feeding }: Operations, batch: Batch, drains: boolean): void {
  waiting.order.add(batch, drains)
  feeding.add(batch)
}

/** None is any more. */
function letRestGo({ waiting, feeding }: Operations, batch: Batch): void {
  waiting.order.delete(batch)
  feeding.delete(batch)
}

/** Goes on with a chain behind a member whose end what follows had to wait for. */
export function goOnWithChain(
  operations: Operations,
  members: readonly Operation[],
  batch: Batch,
  succeeded: boolean,
): void {
  // A record that has settled meanwhile is somebody else's.
  const whole = members.every((op) => op.batch === batch)
  if (whole && (succeeded || batch.isHard) && !members.some((op) => op.cancelled)) {
    if (members.every((op) => copyAnew(operations, op))) {
      if (!stageChain(operations, members, batch)) letRestGo(operations, batch)
      return
    }
  }
  letRestGo(operations, batch)
  endHeld(operations, members, batch)
}

/** Whether a member did all that it was asked for, by the result of its call. */
export function isWhole({ opcode, flags, length, lead, batch, index }: Operation, result: number) {
  switch (opcode) {
    case OP_READ:
      return result - lead >= length
    case OP_RECV:
      return (flags & WAITS_FOR_ALL) === 0 ? result >= 0 : result >= length
    case OP_SEND:
    case OP_SPLICE:
    case OP_WRITE:
      return result >= length
    case OP_READV:
    case OP_WRITEV: {
      const buffers = batch?.made(index)?.buffers ?? []
      return result >= buffers.reduce((bytes, { byteLength }) => bytes + byteLength, 0)
    }
    default:
      return result >= 0
  }
}

/** Copies what a write writes again: reads before it may have brought it. */
function copyAnew(operations: Operations, op: Operation): boolean {
  if (op.kind !== KIND_TRANSFER || !isOutgoing(op.opcode) || !op.bounced) return true
  // As much memory as is given back is there to be taken.
  operations.transfers.letGo(op)
  return operations.transfers.prepare(op) === STAGED
}

/** Ends members that hold their memory and are not staged. */
function endHeld(operations: Operations, members: readonly Operation[], batch: Batch): void {
  for (const op of members) {
    if (op.batch === batch && op.kind === KIND_TRANSFER) operations.transfers.letGo(op)
  }
  endChain(operations, members, batch)
}

/** Ends those members that are still under way; none of them is staged. */
function endChain(operations: Operations, members: readonly Operation[], batch: Batch): void {
  for (const op of members) if (op.batch === batch) operations.finish(op, -ECANCELED)
}

/** How a member of a chain ends: it is not gone on with, and a short write is no success. */
export function endOfMember(op: Operation, count: number): BatchResult {
  if (!isOutgoing(op.opcode) || count === op.length) return count
  return uringError('ERR_URING_SHORT_WRITE', { bytesWritten: count, lengthBytes: op.length })
}
