/**
 * What drains have to know beside the engine's own order (`order.rs` in the core): the engine knows what is
 * staged, and of some operations a part is still to be staged. A drain starts when they are over, and what
 * comes behind one when it is.
 */
export class Order {
  readonly #unfinished = new Set<object>()
  /** Whether one of them drains; there is no other then. */
  #drains = false
  readonly #freed: () => void

  /** `freed` is called when none is left that others may wait for. */
  constructor(freed: () => void) {
    this.#freed = freed
  }

  /** Whether what begins, and drains or does not, has to wait. */
  holdsBack(drains: boolean): boolean {
    return this.#unfinished.size > 0 && (drains || this.#drains)
  }

  get isBusy(): boolean {
    return this.#unfinished.size > 0
  }

  /** Whether it is one of which a part is still to be staged: that may always be. */
  has(operation: object): boolean {
    return this.#unfinished.has(operation)
  }

  /** Of one that has begun, and drains or does not, a part is still to be staged. */
  add(unfinished: object, drains: boolean): void {
    this.#unfinished.add(unfinished)
    if (drains) this.#drains = true
  }

  /** It is over, or all of it is staged. */
  delete(unfinished: object): void {
    if (this.#unfinished.size === 0 || !this.#unfinished.delete(unfinished)) return
    if (this.#unfinished.size > 0) return
    this.#drains = false
    this.#freed()
  }
}
