/**
 * Many reads or writes between one chunk and one file, or nops, under one slot: each has its own
 * result, and they complete as one. node:fs gets some at a time, so that others have their turn.
 */
import { ERRNO } from '../errno.js'
import type { Withdraw } from './timers.js'

/** Those that node:fs has at once: more than its pool has threads. */
const WINDOW = 64
/** The result of one that is not over: no errno and no count of bytes. */
const PENDING = -(2 ** 31)

/**
 * Begins one read or write of them: `length` bytes of the memory from `start`, at `position` in the
 * file. Gives its result, if that is there at once, and what can be taken back while it is not.
 */
export type Begin = (
  start: number,
  length: number,
  position: number | bigint,
  done: (result: number) => void,
) => [move: Waiting, answer: number | undefined]

/** What can be taken back, or be told that it is not wanted any more. */
interface Waiting {
  readonly withdraw: Withdraw | undefined
  unwanted: boolean
}

/** How they are staged; see `stageMany`. */
export interface ManyOptions {
  readonly count: number
  /** The length of all, or of each. */
  readonly lengths: number | Uint32Array
  /** Empty for nops. */
  readonly positions: Float64Array | BigInt64Array | BigUint64Array | undefined
  /** Whether one that was short goes on with its rest. */
  readonly fill: boolean
}

/** One that is under way. */
interface Active {
  readonly index: number
  readonly length: number
  readonly position: number | bigint
  /** Bytes of it, so far. */
  done: number
  move: Waiting | undefined
}

/** Many, on their way. */
export class Many {
  readonly results: Int32Array
  /** Bytes of memory that they use together. */
  readonly bytes: number
  readonly #options: ManyOptions
  readonly #starts: Float64Array
  readonly #active = new Set<Active>()
  #next = 0
  #cancelled = false

  constructor(options: ManyOptions) {
    const { count } = options
    this.#options = options
    this.results = new Int32Array(count).fill(PENDING)
    this.#starts = new Float64Array(count)
    let bytes = 0
    for (let index = 0; index < count; index++) {
      this.#starts[index] = bytes
      bytes += this.#lengthOf(index)
    }
    this.bytes = bytes
  }

  #lengthOf(index: number): number {
    const { lengths } = this.#options
    return typeof lengths === 'number' ? lengths : (lengths[index] as number)
  }

  /** Begins them. Gives their number when they are over at once, else `done` is called with it. */
  begin(begin: Begin, done: (result: number) => void): number | undefined {
    if (this.#options.positions === undefined) {
      this.#next = this.results.fill(0).length
    }
    const over = (): void => {
      if (this.#pump(begin, over)) done(this.#outcome())
    }
    return this.#pump(begin, over) ? this.#outcome() : undefined
  }

  #outcome(): number {
    return this.#cancelled ? -ERRNO.ECANCELED : this.results.length
  }

  /** Begins as many as there is room for. True when all are over. */
  #pump(begin: Begin, over: () => void): boolean {
    const { results } = this
    while (this.#active.size < WINDOW && this.#next < results.length) {
      const index = this.#next++
      const position = this.#options.positions?.[index] ?? 0
      const one = { index, length: this.#lengthOf(index), position, done: 0, move: undefined }
      this.#active.add(one)
      this.#go(one, begin, over)
    }
    return this.#active.size === 0 && this.#next === results.length
  }

  /** Begins one, or its rest, until it has to be waited for or is over. */
  #go(one: Active, begin: Begin, over: () => void): void {
    for (let more = true; more; ) {
      const { index, length, position, done } = one
      const start = (this.#starts[index] as number) + done
      const at = typeof position === 'bigint' ? position + BigInt(done) : position + done
      const [move, answer] = begin(start, length - done, at, (result) => {
        if (this.#arrive(one, result)) this.#go(one, begin, over)
        if (!this.#active.has(one)) over()
      })
      one.move = move
      if (answer === undefined) return
      more = this.#arrive(one, answer)
    }
  }

  /** Takes a result. True when the rest is to be done. */
  #arrive(one: Active, result: number): boolean {
    one.done += Math.max(0, result)
    const more = this.#options.fill && result > 0 && one.done < one.length && !this.#cancelled
    if (!more) this.#end(one, result)
    return more
  }

  /** As read(2) and write(2): what was moved counts, and the error comes at the next call. */
  #end(one: Active, result: number): void {
    this.results[one.index] = one.done > 0 ? one.done : result
    this.#active.delete(one)
  }

  /** Ends all that has not begun or can be taken back; those that node:fs has end soon. True when there are none. */
  cancel(): boolean {
    this.#cancelled = true
    this.results.fill(-ERRNO.ECANCELED, this.#next)
    this.#next = this.results.length
    // The first in a stream's line may be taken back, and then the next would be tried.
    for (const one of [...this.#active].reverse()) {
      if (one.move === undefined) continue
      one.move.unwanted = true
      if (one.move.withdraw?.() === true) this.#end(one, -ERRNO.ECANCELED)
    }
    return this.#active.size === 0
  }
}
