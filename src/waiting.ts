/**
 * Operations that cannot be staged yet: for want of a slot, of memory to be copied through, or because a drain
 * comes before them. Nothing overtakes those that wait for the same as it. What needs no memory does not wait
 * behind what does: it may be what sets memory free (the write to a FIFO that reads wait on).
 */
import { FLAG_DRAIN, OP_CLOSE } from './backend.js'
import type { Limits } from './limits.js'
import type { Operations } from './operations.js'
import { Order, type Unfinished } from './order.js'
import {
  KIND_TURN,
  type Line,
  type Operation,
  STAGED,
  WAITS_FOR_MEMORY,
  WAITS_FOR_ORDER,
  WAITS_FOR_SLOT,
} from './slots.js'

export class Waiting {
  readonly #operations: Operations
  /** Whoever waits for it is let in once the event loop's work is done: this may be amidst it. */
  readonly order: Order = new Order(() => {
    // Not queueMicrotask, which test runners replace with the timers.
    if (this.#operations.slots.forOrder.head !== undefined) {
      void Promise.resolve().then(() => this.admit())
    }
  })

  /** Drains that were called for, ever. */
  drains = 0

  constructor(operations: Operations) {
    this.#operations = operations
  }

  /** Whether a call that begins now waits for others. */
  get isFull(): boolean {
    const { isFull, forOrder } = this.#operations.slots
    return isFull || forOrder.head !== undefined || this.order.holdsBack(false)
  }

  /** A call of several operations begins, which drains wait for; false where it has to wait for one itself. */
  join(whole: Unfinished): boolean {
    const { forOrder } = this.#operations.slots
    if (forOrder.head !== undefined || this.order.holdsBack(false)) return false
    this.order.add(whole, false)
    return true
  }

  /** The same; where it has to wait, a promise of its turn, which rejects when it is cancelled before that. */
  turnOf(
    whole: Operation,
    opcode: number,
    limits: Limits | undefined,
  ): Promise<unknown> | undefined {
    if (this.join(whole)) return undefined
    const options = { partOf: whole, limits }
    const [turn, promise] = this.#operations.record(opcode, whole.file, 0, 0, 0, options)
    turn.kind = KIND_TURN
    this.#wait(turn, WAITS_FOR_ORDER)
    return promise
  }

  /** Starts an operation unless it is not its turn. What drains is behind all that waits for room. */
  #start(op: Operation): number {
    const drains = (op.flags & FLAG_DRAIN) !== 0
    const waits = drains && this.#waitsForRoom()
    if ((waits || this.order.holdsBack(drains)) && isNew(op) && !isCancelled(op)) {
      return WAITS_FOR_ORDER
    }
    const outcome = this.#operations.start(op)
    const hasNoRoom = outcome === WAITS_FOR_SLOT || outcome === WAITS_FOR_MEMORY
    return drains && hasNoRoom ? WAITS_FOR_ORDER : outcome
  }

  #waitsForRoom(): boolean {
    const { forSlot, forMemory } = this.#operations.slots
    return forSlot.head !== undefined || forMemory.head !== undefined
  }

  /** Starts an operation, unless it has to wait. */
  begin(op: Operation): void {
    const operations = this.#operations
    const { forSlot, forMemory, forOrder } = operations.slots
    const isAlone = forOrder.head === undefined && !this.#waitsForRoom()
    if (isAlone && (op.flags & FLAG_DRAIN) === 0 && !this.order.drains) {
      const outcome = operations.start(op)
      if (outcome !== STAGED) this.#wait(op, outcome)
      return
    }
    // Cancelled between two pieces, or by whoever was told that it begins: it waits for nothing more.
    if (isCancelled(op)) operations.start(op)
    else if (forOrder.head !== undefined && isNew(op)) this.#wait(op, WAITS_FOR_ORDER)
    else if ((op.flags & FLAG_DRAIN) !== 0) this.#wait(op, this.#start(op))
    else if (forMemory.head !== undefined && needsMemory(op)) this.#wait(op, WAITS_FOR_MEMORY)
    else if (op.slot < 0 && forSlot.head !== undefined && op.opcode !== OP_CLOSE)
      this.#wait(op, WAITS_FOR_SLOT)
    else this.#wait(op, this.#start(op))
  }

  /** Puts an operation where it waits, if that is what became of it. */
  #wait(op: Operation, outcome: number): void {
    const { forSlot, forMemory, forOrder } = this.#operations.slots
    if (outcome === WAITS_FOR_SLOT) {
      if (op.chain !== undefined) this.#leaveSlots(op)
      forSlot.push(op)
    } else if (outcome === WAITS_FOR_MEMORY) {
      this.#leaveSlots(op)
      forMemory.push(op)
    } else if (outcome === WAITS_FOR_ORDER) {
      this.#leaveSlots(op)
      forOrder.push(op)
    }
  }

  /** What waits for something else must not keep slots from those that need nothing but them. */
  #leaveSlots(op: Operation): void {
    const { slots } = this.#operations
    for (const member of op.chain ?? [op]) slots.unassign(member)
    if (op.companion === undefined) return
    slots.give(op.companion)
    op.companion = undefined
  }

  /** Starts those that waited, in their order, as far as there is room. */
  admit(): void {
    const { forSlot, forMemory, forOrder, waiting } = this.#operations.slots
    if (waiting === 0) return
    this.#admitFrom(forMemory, WAITS_FOR_MEMORY)
    this.#admitFrom(forSlot, WAITS_FOR_SLOT)
    this.#admitFrom(forOrder, WAITS_FOR_ORDER)
  }

  #admitFrom(line: Line, still: number): void {
    for (let op = line.shift(); op !== undefined; op = line.shift()) {
      const outcome = this.#start(op)
      if (outcome === still) {
        if (still !== WAITS_FOR_SLOT) this.#leaveSlots(op)
        line.unshift(op)
        return
      }
      this.#wait(op, outcome)
    }
  }
}

/** Whether it has a place in the order: a close waits for what uses its file, and for nothing else. */
function isNew({ done, opcode, isUnfinished, partOf }: Operation): boolean {
  return done === 0 && opcode !== OP_CLOSE && !isUnfinished && partOf?.isUnfinished !== true
}

function isCancelled(op: Operation): boolean {
  return op.chain === undefined ? op.cancelled : op.chain.some((member) => member.cancelled)
}

/** Whether it cannot be staged without bounce memory. */
function needsMemory(op: Operation): boolean {
  return op.chain === undefined ? op.bounced : op.chain.some((member) => member.bounced)
}
