/**
 * When operations of the fallback begin, and when they are delivered. They begin at the end of a turn
 * of the event loop, or by `flush`; what is complete is delivered together in the next, from one
 * callback and never from within a call. Chains, drains and time limits keep the order that
 * `crates/core/src/operation.rs` gives them.
 */
import { clearImmediate, clearTimeout, setImmediate, setTimeout } from 'node:timers'
import {
  type Deliver,
  FLAG_DRAIN,
  FLAG_HARDLINK,
  FLAG_LINK,
  FLAG_QUIET,
  OP_CLOSE,
  OP_LINK_TIMEOUT,
  OP_READ,
  OP_TIMEOUT,
  OP_WRITE,
  TIMEOUT_SUCCEEDS,
} from '../backend.js'
import { ERRNO } from '../errno.js'
import { perform, type Request, timeLeftMs } from './calls.js'
import { Timers } from './timers.js'

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
  /** Members of chains that have begun and are not over; quiet ones are not counted. */
  #active = 0
  /** They are those of a drain: nothing begins before they are over. */
  #draining = false
  /** How many are over, of many each, and the timeouts that end with the how manieth. */
  #counted = 0
  readonly #counting = new Map<number, Set<Request>>()
  /** What is to be delivered. */
  #done: { request: Request; result: number }[] = []
  /** What has the next turn come, and what does so without keeping the process alive. */
  #immediate: NodeJS.Immediate | undefined
  #idle: NodeJS.Timeout | undefined
  #wanted = true
  #closed = false
  /** Requests that node:fs or a timer has. */
  running = 0
  /** Requests that are not delivered yet, quiet ones aside. */
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
    const quiet = isQuiet(request)
    if (!quiet) this.inFlight++
    if (this.#open !== undefined && !quiet) this.#open.next = request
    // Quiet ones go before everything, and a chain that is not whole stays the last.
    else if (quiet) this.#staged.unshift(request)
    else this.#staged.push(request)
    if (!quiet) this.#open = (request.flags & LINKS) === 0 ? undefined : request
    this.#arm(!quiet)
  }

  /** Cancels a chain that cannot go on, whole. */
  cancelOpenChain(): void {
    const head = this.#open === undefined ? undefined : this.#staged[this.#staged.length - 1]
    if (head !== undefined) this.#doom(head)
    this.#open = undefined
  }

  /** It ends in the next turn, whatever it stands behind. */
  #doom(request: Request): void {
    request.doomed = true
    this.#arm()
  }

  /**
   * Cancels what has not begun, and what waits for a timer or a stream. What node:fs has goes on and
   * completes with its true result: Node has no call to take it back.
   */
  cancel(request: Request): void {
    if (!request.begun) this.#doom(request)
    else this.#withdraw(request, -ERRNO.ECANCELED)
  }

  /** Takes back what is under way, where that is possible. */
  #withdraw(request: Request, result: number): void {
    if (request.over) return
    request.unwanted = true
    if (request.withdraw?.() !== true) return
    this.running--
    this.#advance(request, result)
  }

  // ---- turns of the event loop ------------------------------------------------------------------

  /**
   * Has the next turn come; the loop does not end before it, unless nobody wants it. Then it is a
   * timer: the loop would sleep over an immediate that keeps nobody awake.
   */
  #arm(loud = true): void {
    if (this.#immediate !== undefined) return
    if (loud && this.#wanted) this.#immediate = setImmediate(this.#turn)
    else this.#idle ??= setTimeout(this.#turn, 0).unref()
  }

  #disarm(): void {
    if (this.#immediate !== undefined) clearImmediate(this.#immediate)
    clearTimeout(this.#idle)
    this.#immediate = undefined
    this.#idle = undefined
  }

  readonly #turn = (): void => {
    this.#disarm()
    this.begin()
    try {
      this.#deliverDone()
    } finally {
      // What completions went on with begins now. What awaits them has not run yet: it arms anew.
      this.begin()
      if (this.#done.length > 0 && !this.#closed) this.#arm()
    }
  }

  /** Begins what is staged, but for a chain that is not whole and what waits for a drain. */
  begin(): void {
    if (this.#staged.length === 0 || this.#closed) return
    const heads = this.#staged
    this.#staged = []
    const incomplete = this.#open === undefined ? undefined : heads.pop()
    const kept: Request[] = []
    let blocked = false
    for (const head of heads) {
      // What is cancelled ends, whatever it stands behind. A chain ends whole.
      if (!isDoomed(head)) {
        // A close waits for nothing but what uses its file: no drain keeps it.
        const isFree = isQuiet(head) || head.opcode === OP_CLOSE
        blocked ||= !isFree && this.#mustWait(head)
        if (blocked && !isFree) {
          kept.push(head)
          continue
        }
        if (!isFree) this.#draining = (head.flags & FLAG_DRAIN) !== 0
      }
      if (!isQuiet(head)) this.#active += lengthOf(head)
      this.#run(head)
    }
    if (incomplete !== undefined) kept.push(incomplete)
    this.#staged = kept.concat(this.#staged)
  }

  #mustWait(head: Request): boolean {
    return this.#active > 0 && (this.#draining || (head.flags & FLAG_DRAIN) !== 0)
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
    if (request.opcode === OP_TIMEOUT && request.length > 0) {
      request.due = this.#counted + request.length
      const others = this.#counting.get(request.due)
      if (others === undefined) this.#counting.set(request.due, new Set([request]))
      else others.add(request)
    }
    if (request.next?.opcode === OP_LINK_TIMEOUT) this.#limit(request, request.next)
    const answer = perform(request, this.#timers, (result) => {
      this.running--
      if (this.#closed) this.#late(request, result)
      else this.#advance(request, result)
    })
    if (answer === undefined) this.running++
    return answer
  }

  /** Bounds a request by the time limit behind it, which is over when the request is. */
  #limit(request: Request, limit: Request): void {
    request.limit = limit
    request.next = limit.next
    limit.next = undefined
    limit.begun = true
    this.submitted++
    this.running++
    limit.withdraw = this.#timers.after(timeLeftMs(limit), () => {
      this.running--
      limit.withdraw = undefined
      this.#withdraw(request, -ERRNO.ECANCELED)
    })
  }

  /** The request that it bounds is over. Its time had come before, or it was not needed. */
  #endLimit(limit: Request, result: number): void {
    if (limit.over) return
    if (limit.withdraw === undefined) {
      // As the kernel, which cannot stop everything either.
      const stopped = result === -ERRNO.ECANCELED
      this.#complete(limit, stopped ? -ERRNO.ETIME : -ERRNO.EALREADY)
    } else {
      this.#withdraw(limit, -ERRNO.ECANCELED)
    }
  }

  #advance(request: Request, result: number): void {
    const next = this.#over(request, result)
    if (next !== undefined) this.#run(next)
  }

  /** A request is over. Gives the next in its chain if that may begin. */
  #over(request: Request, result: number): Request | undefined {
    this.#complete(request, result)
    const { flags, limit } = request
    let { next } = request
    if (limit !== undefined) this.#endLimit(limit, result)
    // What never began needs no bound.
    if (!request.begun && next?.opcode === OP_LINK_TIMEOUT) {
      this.#complete(next, -ERRNO.ECANCELED)
      next = next.next
    }
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
    this.#counting.get(request.due)?.delete(request)
    if (isQuiet(request)) return
    this.#active--
    if (request.opcode === OP_TIMEOUT) return
    for (let left = request.many?.results.length ?? 1; left > 0; left--) {
      const due = this.#counting.get(++this.#counted)
      if (due === undefined) continue
      this.#counting.delete(this.#counted)
      for (const timeout of due) this.#withdraw(timeout, 0)
    }
  }

  #deliverDone(): void {
    const most = this.#pairs.length / 2
    // What comes meanwhile waits for the next turn, so that the loop goes round.
    for (let left = this.#done.length; left > 0 && !this.#closed; ) {
      const batch = this.#done.splice(0, Math.min(left, most))
      left -= batch.length
      for (const [i, { request, result }] of batch.entries()) {
        this.#bySlot[request.slot] = undefined
        if (!isQuiet(request)) this.inFlight--
        this.#pairs[2 * i] = request.slot
        this.#pairs[2 * i + 1] = result
      }
      this.completed += batch.length
      const [first] = batch
      if (batch.length > 1 || first === undefined) this.#deliver(batch.length, 0, 0)
      else this.#deliver(1, first.request.slot, first.result)
    }
  }

  /** Whether the process stays alive for what is staged, and for timers. */
  setWanted(wanted: boolean): void {
    this.#wanted = wanted
    if (this.#immediate !== undefined || this.#idle !== undefined) {
      this.#disarm()
      this.#arm()
    }
    this.#timers.setWanted(wanted)
  }

  /** Nothing begins and nothing is delivered any more. */
  close(): void {
    this.#closed = true
    this.#disarm()
    for (const request of this.#bySlot) {
      if (request === undefined || request.over) continue
      if (request.begun && request.withdraw?.() !== true) continue
      if (request.begun) this.running--
      this.#letGo(request, -ERRNO.ECANCELED)
    }
    this.#timers.end()
  }
}

/** Whether it keeps no program alive, and waits for nothing. */
function isQuiet(request: Request): boolean {
  return (request.flags & FLAG_QUIET) !== 0
}

/** Whether a member of a chain was cancelled before it began; then all are. */
function isDoomed(head: Request): boolean {
  let doomed = false
  for (let member: Request | undefined = head; member !== undefined; member = member.next) {
    doomed ||= member.doomed
  }
  if (!doomed) return false
  for (let member: Request | undefined = head; member !== undefined; member = member.next) {
    member.doomed = true
  }
  return true
}

function lengthOf(head: Request): number {
  let length = 0
  for (let member: Request | undefined = head; member !== undefined; member = member.next) length++
  return length
}

/** Whether a link holds: a read or write that is short breaks it. */
function succeeded(request: Request, result: number): boolean {
  const { opcode, offset, length } = request
  if (opcode === OP_TIMEOUT && result === -ERRNO.ETIME) return (offset & TIMEOUT_SUCCEEDS) !== 0
  if (result < 0) return false
  return (opcode !== OP_READ && opcode !== OP_WRITE) || result === length
}
