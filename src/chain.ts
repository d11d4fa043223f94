/**
 * Chains: how one gets all that it needs before any of it is staged, which part of it waits for what,
 * and how its members end. `batch.ts` makes the members and takes their results.
 */
import {
  FLAG_HARDLINK,
  FLAG_LINK,
  isOutgoing,
  OP_FALLOCATE,
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_LINK_TIMEOUT,
  OP_LINKAT,
  OP_MKDIRAT,
  OP_RENAMEAT,
  OP_STATX,
  OP_SYMLINKAT,
  OP_SYNC_FILE_RANGE,
  OP_UNLINKAT,
} from './backend.js'
import type { Batch, BatchResult } from './batch.js'
import { ERRNO } from './errno.js'
import { uringError } from './errors.js'
import type { Operations } from './operations.js'
import {
  KIND_TRANSFER,
  type Operation,
  OVER,
  STAGED,
  WAITS_FOR_MEMORY,
  WAITS_FOR_SLOT,
} from './slots.js'

const { ECANCELED } = ERRNO

/**
 * The kernel does not end a chain when one of these fails: they do not call `req_set_fail`
 * (io_uring/sync.c, truncate.c, fs.c, statx.c). So what follows is staged when they have succeeded.
 */
function failsUnnoticed(op: Operation | undefined): boolean {
  switch (op?.opcode) {
    case OP_FALLOCATE:
    case OP_FSYNC:
    case OP_FTRUNCATE:
    case OP_LINKAT:
    case OP_MKDIRAT:
    case OP_RENAMEAT:
    case OP_STATX:
    case OP_SYMLINKAT:
    case OP_SYNC_FILE_RANGE:
    case OP_UNLINKAT:
      return true
    default:
      return false
  }
}

/**
 * Whether a later member of the chain uses the memory that this read is copied to. The copy is made when
 * the read is over, by this thread: whatever the kernel began by itself then would be faster. (Another
 * that is copied to it is so in its turn.)
 */
function comesBefore(members: readonly Operation[], index: number): boolean {
  const read = members[index] as Operation
  if (read.kind !== KIND_TRANSFER || isOutgoing(read.opcode) || !read.bounced) return false
  return members.slice(index + 1).some((later) => {
    const { kind, opcode, bounced } = later
    if (kind === KIND_TRANSFER && bounced && !isOutgoing(opcode)) return false
    return memoryOf(later).some((view) => overlap(read.view, view))
  })
}

/** The caller's memory that a member of a batch reads to or writes from. */
function memoryOf({ batch, index }: Operation): readonly ArrayBufferView[] {
  const { view, buffers } = batch?.made(index) ?? {}
  return buffers ?? (view === undefined ? [] : [view])
}

function overlap(one?: ArrayBufferView, other?: ArrayBufferView): boolean {
  if (one === undefined || other === undefined || one.buffer !== other.buffer) return false
  return (
    one.byteOffset < other.byteOffset + other.byteLength &&
    other.byteOffset < one.byteOffset + one.byteLength
  )
}

/** Whose end what comes after `index` waits for, if it is not the kernel that sees to that. */
export function decider(
  members: readonly Operation[],
  index: number,
  soft: boolean,
): Operation | undefined {
  const decides = (at: number): boolean =>
    (soft && failsUnnoticed(members[at])) || (at >= 0 && comesBefore(members, at))
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
  stageChain(operations, members, batch)
  return STAGED
}

function stageChain(operations: Operations, members: readonly Operation[], batch: Batch): void {
  for (const [index, op] of members.entries()) {
    const refusal =
      op.kind === KIND_TRANSFER
        ? operations.transfers.stage(op, op.opcode | op.flags)
        : operations.stageCall(op)
    if (refusal === undefined) {
      operations.took(op, members[index - 1])
      if ((op.flags & (FLAG_LINK | FLAG_HARDLINK)) === 0) return
      continue
    }
    // The engine cancels what of the chain it has; the rest will not begin.
    const rest = members.slice(index + 1)
    for (const other of [op, ...rest]) {
      if (other.kind === KIND_TRANSFER) operations.transfers.letGo(other)
    }
    operations.refused(op, refusal)
    endChain(operations, rest, batch)
    return
  }
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
      stageChain(operations, members, batch)
      return
    }
  }
  endHeld(operations, members, batch)
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
