/**
 * When operations of the fallback begin, and when they are delivered. They begin at the end of a turn
 * of the event loop, or by `flush`; what is complete is delivered together in the next, from one
 * callback and never from within a call. A member of a chain begins when the one before it is over.
 */
import { type Deliver, FLAG_LINK, OP_READ, OP_WRITE } from '../backend.js'
import { ERRNO } from '../errno.js'
import { perform, type Request } from './calls.js'
import { Timers } from './timers.js'

export const FLAG_HARDLINK = 1 << 9
/** Flags beside the opcode: a chain goes on with what is staged next. */
export const LINKS = FLAG_LINK | FLAG_HARDLINK

/** What a request held is let go of, when it is over. */
type LetGo = (request: Request, result: number) => void

/** The requests of one queue, from staging until they are delivered. */
export class Turns {
  readonly #deliver: Deliver
  readonly #pairs: Int32Array
  readonly #letGo: LetGo
  /** What comes from node:fs when nobody is there any more. */
  readonly #late: LetGo
  readonly #timers = new Timers()
  readonly #bySlot: (Request | undefined)[] = []
  /** What stands for a chain is its first member. */
  #staged: Request[] = []
  /** The last member of a chain that goes on with what is staged next. */
  #open: Request | undefined
  /** What is to be delivered. */
  #done: { request: Request; result: number }[] = []
  #immediate: NodeJS.Immediate | undefined
  #wanted = true
  #closed = false
  /** Requests that node:fs or a timer has. */
  running = 0
  /** Requests that are not delivered yet. */
  inFlight = 0
  submitted = 0
  completed = 0

  constructor(deliver: Deliver, pairs: Int32Array, letGo: LetGo, late: LetGo) {
    this.#deliver = deliver
    this.#pairs = pairs
    this.#letGo = letGo
    this.#late = late
  }

  // ---- taking in ------------------------------------------------------------------------------

  /** The request that has the slot. */
  at(slot: number): Request | undefined {
    return this.#bySlot[slot]
  }

  /** Takes a request in; its slot is free. */
  enter(request: Request): void {
    this.#bySlot[request.slot] = request
    this.inFlight++
    if (this.#open === undefined) this.#staged.push(request)
    else this.#open.next = request
    this.#open = (request.flags & LINKS) === 0 ? undefined : request
    this.#arm()
  }

  /** Cancels a chain that cannot go on, whole. */
  cancelOpenChain(): void {
    if (this.#open === undefined) return
    const head = this.#staged[this.#staged.length - 1]
    for (let member = head; member !== undefined; member = member.next) member.doomed = true
    this.#open = undefined
  }

  /**
   * Cancels what has not begun, and what waits for a timer or a stream. What node:fs has goes on and
   * completes with its true result: Node has no call to take it back.
   */
  cancel(request: Request): void {
    if (!request.begun) {
      request.doomed = true
    } else if (request.withdraw?.() === true) {
      this.running--
      this.#advance(request, -ERRNO.ECANCELED)
    }
  }

  // ---- turns of the event loop ------------------------------------------------------------------

  /** Has the next turn come; the loop does not end before it. */
  #arm(): void {
    if (this.#immediate !== undefined) return
    this.#immediate = setImmediate(this.#turn)
    if (!this.#wanted) this.#immediate.unref()
  }

  readonly #turn = (): void => {
    this.#immediate = undefined
    this.begin()
    try {
      this.#deliverDone()
    } finally {
      // What completions went on with begins now. What awaits them has not run yet: it arms anew.
      this.begin()
      if (this.#done.length > 0 && !this.#closed) this.#arm()
    }
  }

  /** Begins what is staged, but for a chain that is not whole. */
  begin(): void {
    if (this.#staged.length === 0 || this.#closed) return
    const heads = this.#staged
    this.#staged = this.#open === undefined ? [] : [heads.pop() as Request]
    for (const head of heads) this.#run(head)
  }

  /** Begins a request, and as long as they are over at once the next in its chain. */
  #run(first: Request): void {
    for (let request: Request | undefined = first; request !== undefined; ) {
      const result = request.doomed ? -ERRNO.ECANCELED : this.#start(request)
      if (result === undefined) return
      request = this.#over(request, result)
    }
  }

  /** The result, or undefined when it will come. */
  #start(request: Request): number | undefined {
    request.begun = true
    this.submitted++
    const answer = perform(request, this.#timers, (result) => {
      this.running--
      if (this.#closed) this.#late(request, result)
      else this.#advance(request, result)
    })
    if (answer === undefined) this.running++
    return answer
  }

  #advance(request: Request, result: number): void {
    const next = this.#over(request, result)
    if (next !== undefined) this.#run(next)
  }

  /** A request is over. Gives the next in its chain if that may begin. */
  #over(request: Request, result: number): Request | undefined {
    this.#complete(request, result)
    const { next, flags } = request
    if (next === undefined) return undefined
    if ((flags & FLAG_HARDLINK) !== 0 || succeeded(request, result)) return next
    // A broken link ends the chain, hard links behind it included. io_uring_enter(2).
    for (let rest: Request | undefined = next; rest !== undefined; rest = rest.next) {
      this.#complete(rest, -ERRNO.ECANCELED)
    }
    return undefined
  }

  #complete(request: Request, result: number): void {
    request.over = true
    this.#letGo(request, result)
    this.#done.push({ request, result })
    this.#arm()
  }

  #deliverDone(): void {
    const most = this.#pairs.length / 2
    // What comes meanwhile waits for the next turn, so that the loop goes round.
    for (let left = this.#done.length; left > 0 && !this.#closed; ) {
      const batch = this.#done.splice(0, Math.min(left, most))
      left -= batch.length
      for (const [i, { request, result }] of batch.entries()) {
        this.#bySlot[request.slot] = undefined
        this.#pairs[2 * i] = request.slot
        this.#pairs[2 * i + 1] = result
      }
      this.completed += batch.length
      this.inFlight -= batch.length
      const [first] = batch
      if (batch.length > 1 || first === undefined) this.#deliver(batch.length, 0, 0)
      else this.#deliver(1, first.request.slot, first.result)
    }
  }

  /** Whether the process stays alive for what is staged, and for timers. */
  setWanted(wanted: boolean): void {
    this.#wanted = wanted
    if (wanted) this.#immediate?.ref()
    else this.#immediate?.unref()
    this.#timers.setWanted(wanted)
  }

  /** Nothing begins and nothing is delivered any more. */
  close(): void {
    this.#closed = true
    if (this.#immediate !== undefined) clearImmediate(this.#immediate)
    for (const request of this.#bySlot) {
      if (request === undefined || request.over) continue
      if (request.begun && request.withdraw?.() !== true) continue
      if (request.begun) this.running--
      this.#letGo(request, -ERRNO.ECANCELED)
    }
    this.#timers.end()
  }
}

/** Whether a link holds: a read or write that is short breaks it. */
function succeeded(request: Request, result: number): boolean {
  if (result < 0) return false
  const transfers = request.opcode === OP_READ || request.opcode === OP_WRITE
  return !transfers || result === request.length
}
