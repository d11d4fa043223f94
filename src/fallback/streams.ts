/**
 * Reads, or writes, of a file without positions: one after the other, in their order. A FIFO is tried
 * by a descriptor of our own that does not wait, again and again, so that waiting takes no thread of
 * the pool and can be cancelled. node:fs has no other way to wait for one.
 *
 * Linux alone lets a FIFO be opened by its descriptor. Elsewhere, and for terminals and sockets, the
 * first of them waits in a thread of the pool, and cannot be cancelled.
 */
import fs from 'node:fs'
import { ERRNO } from '../errno.js'
import type { Timers, Withdraw } from './timers.js'

/** How long to wait before the next try: at first, doubled each time, and at most. */
const RETRY_MS_MIN = 1
const RETRY_MS_MAX = 32

/** Tries a read or write on a descriptor. */
export type Attempt = (fd: number, done: (result: number) => void) => void

/** One that waits, between its neighbours: each can leave without looking at all others. */
interface Waiting {
  readonly attempt: Attempt
  readonly done: (result: number) => void
  before: Waiting | undefined
  behind: Waiting | undefined
  gone: boolean
  /** It was to be taken back while it was being tried. */
  doomed: boolean
}

/** The reads, or the writes, of one stream. */
export class StreamLine {
  readonly #fd: number
  /** A descriptor that does not wait, where there is one. */
  #own: number | undefined
  readonly #mode: number
  readonly #isFifo: boolean
  readonly #timers: Timers
  #first: Waiting | undefined
  #last: Waiting | undefined
  /** The first is with node:fs. */
  #trying = false
  /** Ends the time until the next try. */
  #withdrawTimer: Withdraw | undefined
  #retryMs = RETRY_MS_MIN
  #ended = false

  /** `mode` is O_RDONLY or O_WRONLY; `open` whether the descriptor was opened for that. */
  constructor(fd: number, mode: number, open: boolean, timers: Timers) {
    this.#fd = fd
    this.#mode = mode
    this.#isFifo = open && isFifo(fd)
    this.#timers = timers
  }

  /**
   * Puts one at the end. What it gives takes it back; one that is just being tried ends with ECANCELED
   * if nothing comes of that.
   */
  push(attempt: Attempt, done: (result: number) => void): Withdraw {
    const waiting: Waiting = {
      attempt,
      done,
      before: this.#last,
      behind: undefined,
      gone: false,
      doomed: false,
    }
    if (this.#last === undefined) this.#first = waiting
    else this.#last.behind = waiting
    this.#last = waiting
    if (this.#first === waiting) this.#try()
    return () => this.#withdraw(waiting)
  }

  #remove(waiting: Waiting): void {
    const { before, behind } = waiting
    if (before === undefined) this.#first = behind
    else before.behind = behind
    if (behind === undefined) this.#last = before
    else behind.before = before
    waiting.gone = true
  }

  #try(): void {
    const first = this.#first
    if (first === undefined || this.#ended || this.#trying) return
    this.#trying = true
    // A FIFO that nobody reads cannot be opened for writing (ENXIO): later perhaps it can.
    if (this.#isFifo) this.#own ??= openAgain(this.#fd, this.#mode)
    first.attempt(this.#own ?? this.#fd, (result) => {
      this.#trying = false
      if (this.#ended) this.#release()
      if (result !== -ERRNO.EAGAIN || this.#ended) this.#next(first, result)
      else if (first.doomed) this.#next(first, -ERRNO.ECANCELED)
      else this.#tryLater()
    })
  }

  #next(first: Waiting, result: number): void {
    this.#retryMs = RETRY_MS_MIN
    this.#remove(first)
    first.done(result)
    this.#try()
  }

  #tryLater(): void {
    const ms = this.#retryMs
    this.#retryMs = Math.min(ms * 2, RETRY_MS_MAX)
    this.#withdrawTimer = this.#timers.after(ms, () => {
      this.#withdrawTimer = undefined
      this.#try()
    })
  }

  #withdraw(waiting: Waiting): boolean {
    const isFirst = this.#first === waiting
    if (waiting.gone) return false
    if (isFirst && this.#trying) {
      waiting.doomed = true
      return false
    }
    this.#remove(waiting)
    if (!isFirst) return true
    this.#withdrawTimer?.()
    this.#withdrawTimer = undefined
    this.#try()
    return true
  }

  /** Nothing is tried any more. */
  end(): void {
    this.#ended = true
    if (!this.#trying) this.#release()
  }

  #release(): void {
    if (this.#own !== undefined) closeQuietly(this.#own)
    this.#own = undefined
  }
}

function isFifo(fd: number): boolean {
  try {
    return process.platform === 'linux' && fs.fstatSync(fd).isFIFO()
  } catch {
    return false
  }
}

/** Another descriptor of the same FIFO, that does not wait; proc_pid_fd(5). */
function openAgain(fd: number, mode: number): number | undefined {
  try {
    return fs.openSync(`/proc/self/fd/${fd}`, mode | fs.constants.O_NONBLOCK)
  } catch {
    return undefined
  }
}

/** Closes a descriptor that nobody waits for. */
export function closeQuietly(fd: number): void {
  try {
    fs.closeSync(fd)
  } catch {
    // Nobody is there to be told.
  }
}
