/**
 * What drains have to know beside the engine's own order (`order.rs` in the core): the engine knows what is
 * staged, and of some operations a part may still be to be staged. A drain starts when they are over, and what
 * comes behind one when it is.
 */

/** An operation, or several in one call. */
export interface Unfinished {
  /** Whether it has begun, and more of it may be to be staged: the order's to say. */
  isUnfinished: boolean
}

export class Order {
  #count = 0
  /** Whether one of them drains; there is no other then. */
  #drains = false
  readonly #freed: () => void

  /** `freed` is called when none is left that others may wait for. */
  constructor(freed: () => void) {
    this.#freed = freed
  }

  /** Whether all that begins has to wait. */
  get drains(): boolean {
    return this.#drains
  }

  /** Whether what begins, and drains or does not, has to wait. */
  holdsBack(drains: boolean): boolean {
    return this.#count > 0 && (drains || this.#drains)
  }

  /** One has begun, and drains or does not. */
  add(one: Unfinished, drains: boolean): void {
    if (!one.isUnfinished) {
      one.isUnfinished = true
      this.#count++
    }
    if (drains) this.#drains = true
  }

  /** It is over, or all of it is staged. */
  delete(one: Unfinished): void {
    if (!one.isUnfinished) return
    one.isUnfinished = false
    if (--this.#count > 0) return
    this.#drains = false
    this.#freed()
  }
}
