/**
 * The records of operations under way, the slots they are known by in the engine, and the FIFO of
 * those that wait. Pure bookkeeping: nothing here is staged or settled.
 */
import { OP_CLOSE } from './backend.js'
import type { Batch } from './batch.js'
import type { FileState } from './file-state.js'
import type { Watch } from './limits.js'
import type { ManyPart } from './many.js'
import type { OperationMessage } from './observer.js'
import type { Unfinished } from './order.js'
import type { Sync } from './syncs.js'

/** How an operation goes on when its completion comes. */
export const KIND_NOP = 0
/** Moves bytes between a file and a buffer, in as many pieces as it takes. */
export const KIND_TRANSFER = 1
/** One system call; its result is what it resolves with. */
export const KIND_CALL = 2
/** The fdatasync linked behind the last piece of a write; `behind` is that write. */
export const KIND_BEHIND = 3
/** A part of many operations that are staged by one call. */
export const KIND_MANY = 4
/**
 * Waits in the order for the call of several operations that it is of, `partOf`: it has no slot and is never
 * staged. It is over when that begins. What cancels one of them cancels both.
 */
export const KIND_TURN = 5
/** Shares in something that others began: it has no slot and is never staged. */
export const KIND_SHARE = 6
/**
 * Stands for work that is done elsewhere, or in several operations: it has no slot and is never staged.
 * It is over when the work is; that it is cancelled is noted, for the work to look at.
 */
export const KIND_OUTSIDE = 7

/** What became of trying to stage: it is, it has to wait, it is settled already. */
export const STAGED = 0
export const WAITS_FOR_SLOT = 1
export const WAITS_FOR_MEMORY = 2
export const OVER = 3
export const WAITS_FOR_ORDER = 4

/** Slots that a queue has at most: operations staged or in flight. More wait, in order. */
export const SLOTS_MAX = 1 << 16
/** Slots past those, for closes of files alone: what is to end must not wait for what may never end. */
export const CLOSE_SLOTS_MAX = 1 << 16

/**
 * One operation, from its call to its settling. Reused: there is no object for each operation but
 * its promise. All fields are set by the life of the operation in `operations.ts`.
 */
export class Operation implements Unfinished {
  kind = KIND_NOP
  opcode = 0
  /** How often the record had been used: tells an operation from the next one in its record. */
  number = 0
  /** Its name in the engine; -1 while it waits for one. */
  slot = -1
  /** Whether the engine has it now. */
  staged = false
  /** Whether it is under way: called for and not settled. */
  busy = false
  /** Whether it is to be cancelled, and whether that is because its time was up. */
  cancelled = false
  late = false
  resolve: ((value: unknown) => void) | undefined = undefined
  /** In place of a promise: the batch that it belongs to, and its place there. */
  batch: Batch | undefined = undefined
  index = 0
  /** Of the first member of a chain: all members. Of every member: the first. */
  chain: readonly Operation[] | undefined = undefined
  first: Operation | undefined = undefined
  /** Of a member of a chain whose end what follows waits for: that, not staged yet. */
  rest: readonly Operation[] | undefined = undefined
  /** Flags and modifiers beside the opcode. */
  flags = 0
  /** While somebody watches: when it began, by performance.now(), else 0; and what subscribers get. */
  begun = 0
  message: OperationMessage | undefined = undefined
  /** Whether a signal or a deadline watches over it; then those, and its places with them. */
  limited = false
  watch: Watch | undefined = undefined
  watchNext: Operation | undefined = undefined
  watchPrevious: Operation | undefined = undefined
  /** When its time is up, by performance.now(); what was given; its place in the heap. */
  deadline = 0
  timeoutMs = 0
  heapIndex = -1
  file: FileState | undefined = undefined
  /** Of a splice: the file that it reads from. */
  other: FileState | undefined = undefined
  /** Transfers: the caller's memory, as bytes when it is to be copied. */
  view: ArrayBufferView | undefined = undefined
  /** Of what stands for several operations: the memory that they use, or will. */
  buffers: readonly ArrayBufferView[] | undefined = undefined
  /** Transfers: the chunk under `view`, or the bounce chunk of the piece under way. */
  chunk = 0
  /** Transfers: whether bytes are copied through a bounce chunk. */
  bounced = false
  /** Transfers: where the bytes begin in the chunk, in place. */
  base = 0
  /** Transfers: bytes asked for, done, and in the piece under way. Calls: the length argument. */
  length = 0
  done = 0
  piece = 0
  /** Transfers of direct files: bytes of the piece before the first one that was asked for. */
  lead = 0
  position: number | bigint = 0
  /** Calls: the offset argument, and the path. */
  offset = 0
  bytes: Uint8Array | undefined = undefined
  /** Calls: paths for the error. */
  path: string | undefined = undefined
  dest: string | undefined = undefined
  /** Many: which, and where their results go. */
  many: ManyPart | undefined = undefined
  /** Whether an fdatasync goes behind the last piece, and the record that carries it. */
  datasync = false
  companion: Operation | undefined = undefined
  /** Of a companion: the write it is behind. */
  behind: Operation | undefined = undefined
  /** What is known of it while it is a sync, and the sync that begins when it is over. */
  sync: Sync | undefined = undefined
  follower: Sync | undefined = undefined
  isUnfinished = false
  /** The call of several operations that it is one of: where that may go on, so may it. */
  partOf: Unfinished | undefined = undefined
  /** What it is a step of, if it is one; of that, the step under way. They are cancelled together. */
  whole: Operation | undefined = undefined
  step: Operation | undefined = undefined
  /** Completions of a chain that are still to come, and what came of this member of it. */
  expected = 0
  outcome = 0
  /** The FIFO that it waits in, and its neighbours there. */
  line: Line | undefined = undefined
  next: Operation | undefined = undefined
  previous: Operation | undefined = undefined
}

/**
 * Whether a call that a signal, or a stop of the process, interrupted begins again, as with node:fs. The
 * links behind a member of a chain are over by then, and of a close the descriptor is gone.
 */
export function canBeginAgain(op: Operation): boolean {
  return op.first === undefined && op.opcode !== OP_CLOSE
}

/** Records that wait, first come first served. Each can leave in between. */
export class Line {
  head: Operation | undefined = undefined
  length = 0
  #tail: Operation | undefined = undefined

  /** Puts a record at the end. */
  push(op: Operation): void {
    this.length++
    op.line = this
    op.previous = this.#tail
    if (this.#tail === undefined) this.head = op
    else this.#tail.next = op
    this.#tail = op
  }

  /** Puts a record before all others. */
  unshift(op: Operation): void {
    this.length++
    op.line = this
    op.next = this.head
    if (this.head === undefined) this.#tail = op
    else this.head.previous = op
    this.head = op
  }

  /** Takes the first. */
  shift(): Operation | undefined {
    const op = this.head
    if (op !== undefined) this.remove(op)
    return op
  }

  /** Takes one that is in it. */
  remove(op: Operation): void {
    const { next, previous } = op
    if (previous === undefined) this.head = next
    else previous.next = next
    if (next === undefined) this.#tail = previous
    else next.previous = previous
    this.length--
    op.line = undefined
    op.next = undefined
    op.previous = undefined
  }
}

/** Records by slot, spare ones, and those that wait. */
export class Slots {
  /** The record that has each slot, spare ones included. */
  readonly bySlot: Operation[] = []
  /** How many are under way, waiting ones included. */
  pending = 0
  /** Those that wait for a slot, and those that wait for bounce memory, which have no slot either. */
  readonly forSlot: Line = new Line()
  readonly forMemory: Line = new Line()
  readonly forOrder: Line = new Line()
  /** Spare records with a slot, which is the usual case, and without. */
  readonly #spare: Operation[] = []
  readonly #bare: Operation[] = []
  /** Spare records with a slot for closes. */
  readonly #reserve: Operation[] = []
  readonly #max: number

  constructor(max: number) {
    this.#max = max
  }

  /** Records without a slot: {@link KIND_SHARE} and {@link KIND_OUTSIDE}. */
  readonly #shares = new Set<Operation>()

  /** A record with every field as it is made. It has a slot unless it will have to wait for one. */
  take(): Operation {
    this.pending++
    const op =
      this.#spare.length > 0 && this.forSlot.head === undefined
        ? (this.#spare.pop() as Operation)
        : this.#takeOther()
    op.busy = true
    return op
  }

  #takeOther(): Operation {
    const bare = this.#bare.pop() ?? new Operation()
    if (this.forSlot.head === undefined && this.bySlot.length < this.#max) {
      bare.slot = this.bySlot.length
      this.bySlot.push(bare)
    }
    return bare
  }

  /** A record without a slot. */
  takeShare(kind: typeof KIND_SHARE | typeof KIND_OUTSIDE): Operation {
    this.pending++
    const op = this.#bare.pop() ?? new Operation()
    op.busy = true
    op.kind = kind
    this.#shares.add(op)
    return op
  }

  /** Whether what stands for several operations has such memory for them. */
  someShared(isIt: (buffer: ArrayBufferView) => boolean): boolean {
    for (const { buffers } of this.#shares) if (buffers?.some(isIt)) return true
    return false
  }

  /** Gives a record and all it refers to back. It keeps its slot, for the next to take. */
  give(op: Operation): void {
    this.pending--
    op.number++
    op.busy = false
    op.staged = false
    op.cancelled = false
    op.resolve = undefined
    if (op.kind >= KIND_SHARE) this.#shares.delete(op)
    if (op.kind !== KIND_NOP) clear(op)
    if (op.batch !== undefined) clearBatch(op)
    if (op.slot >= 0) this.#keep(op)
    else this.#bare.push(op)
  }

  /** Gives the record a slot if it has none; false when there is none to give. */
  assign(op: Operation): boolean {
    if (op.slot >= 0) return true
    const closes = op.opcode === OP_CLOSE
    const other = this.#spare.pop() ?? (closes ? this.#reserve.pop() : undefined)
    if (other !== undefined) {
      op.slot = other.slot
      other.slot = -1
      this.#bare.push(other)
    } else if (this.bySlot.length < this.#max + (closes ? CLOSE_SLOTS_MAX : 0)) {
      op.slot = this.bySlot.length
    } else {
      return false
    }
    this.bySlot[op.slot] = op
    return true
  }

  /** Takes the record's slot away: one that waits for a second must not keep the first from others. */
  unassign(op: Operation): void {
    if (op.slot < 0) return
    const other = this.#bare.pop() ?? new Operation()
    other.slot = op.slot
    this.bySlot[op.slot] = other
    this.#keep(other)
    op.slot = -1
  }

  /** Keeps a spare record with its slot for the next of those that may have it. */
  #keep(op: Operation): void {
    if (op.slot < this.#max) this.#spare.push(op)
    else this.#reserve.push(op)
  }

  /** Whether an operation that came now would have to wait for a slot. */
  get isFull(): boolean {
    if (this.forSlot.head !== undefined) return true
    return this.#spare.length === 0 && this.bySlot.length >= this.#max
  }

  /** How many wait, for a slot, for memory or for their turn. */
  get waiting(): number {
    return this.forSlot.length + this.forMemory.length + this.forOrder.length
  }

  /** Every record under way, once; companions are not told of. */
  *all(): Generator<Operation> {
    // First: what they stand for begins no more when they are over.
    yield* this.#shares
    for (const op of this.bySlot) if (op.busy && op.kind !== KIND_BEHIND) yield op
    for (const line of [this.forSlot, this.forMemory, this.forOrder]) {
      for (let op = line.head; op !== undefined; op = op.next) {
        for (const member of op.chain ?? [op]) if (member.slot < 0) yield member
      }
    }
  }
}

function clear(op: Operation): void {
  op.kind = KIND_NOP
  op.file = undefined
  op.other = undefined
  op.flags = 0
  op.view = undefined
  op.buffers = undefined
  op.chunk = 0
  op.bounced = false
  op.base = 0
  op.length = 0
  op.done = 0
  op.piece = 0
  op.lead = 0
  op.position = 0
  op.offset = 0
  op.bytes = undefined
  op.path = undefined
  op.dest = undefined
  op.many = undefined
  op.datasync = false
  op.companion = undefined
  op.behind = undefined
  op.sync = undefined
  op.follower = undefined
  op.partOf = undefined
  op.whole = undefined
  op.step = undefined
  op.expected = 0
  op.outcome = 0
}

function clearBatch(op: Operation): void {
  op.batch = undefined
  op.index = 0
  op.chain = undefined
  op.first = undefined
  op.rest = undefined
  // Of a nop, which needs no clearing otherwise.
  op.flags = 0
}
