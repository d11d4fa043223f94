/** A queue in an array: what is taken from its front costs no copy of the rest. */

/** Taken this many from the front, and more than are left, the array is made anew. */
const SPENT_MIN = 1024

/** First in, first out, but for {@link pop}. */
export class Fifo<T> {
  #items: (T | undefined)[] = []
  #start = 0

  get first(): T | undefined {
    return this.#items[this.#start]
  }

  get last(): T | undefined {
    return this.#items.length > this.#start ? this.#items.at(-1) : undefined
  }

  push(item: T): void {
    this.#items.push(item)
  }

  /** Takes the first away. */
  shift(): void {
    if (this.#start === this.#items.length) return
    this.#items[this.#start++] = undefined
    if (this.#start < SPENT_MIN || this.#start * 2 < this.#items.length) return
    this.#items = this.#items.slice(this.#start)
    this.#start = 0
  }

  /** Takes the last away. */
  pop(): void {
    if (this.#items.length > this.#start) this.#items.pop()
  }
}
