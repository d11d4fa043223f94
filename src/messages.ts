/**
 * Messages that other queues have posted: told to the listener, or kept until there is one. Pure
 * bookkeeping, but for the calls of the listener, which is the user's.
 */

import { standsAlone } from './errors.js'

/** Called with each message. */
export type MessageListener = (value: number) => void

/** What is told of messages by {@link Queue.stats}. */
export interface MessageStats {
  /** Messages that came. */
  received: number
  /** Those of them that wait for a listener. */
  waiting: number
  /** Those that came while there was none, and no room to keep them. */
  dropped: number
}

/** Messages that are kept for a listener to come. */
const WAITING_MAX = 1 << 16

/** The messages of one queue. */
export class Messages {
  #listener: MessageListener | null = null
  /** Those that are not told, from `#told` on. */
  readonly #values: number[] = []
  #told = 0
  #dropped = 0

  get listener(): MessageListener | null {
    return this.#listener
  }

  set listener(listener: MessageListener | null) {
    this.#listener = listener
    // Not from inside of an assignment.
    if (this.waiting > 0) void Promise.resolve().then(() => this.tell())
  }

  get waiting(): number {
    return this.#values.length - this.#told
  }

  get dropped(): number {
    return this.#dropped
  }

  /** The queue is closed: what was not told is lost. */
  end(): void {
    this.#values.length = 0
    this.#told = 0
  }

  /** Takes one in. */
  arrive(value: number): void {
    if (this.#listener === null && this.waiting >= WAITING_MAX) this.#dropped++
    else this.#values.push(value)
  }

  /**
   * Tells the listener of all that wait. Each stands alone: what the listener throws is the process's,
   * as what any callback throws, and the next is told all the same. It may take itself away.
   */
  tell(): void {
    if (this.#values.length === 0) return
    while (this.#listener !== null && this.#told < this.#values.length) {
      const listener = this.#listener
      const value = this.#values[this.#told++] as number
      standsAlone(() => listener(value))
    }
    if (this.#told > 0) this.#values.splice(0, this.#told)
    this.#told = 0
  }
}
