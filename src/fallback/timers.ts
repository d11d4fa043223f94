/**
 * Timers of the fallback: never early, and wanted as far as the queue is: while it is not, the process
 * may end before they are due. They are Node's own, whatever a test has put in the place of the globals.
 */
import { clearTimeout, setTimeout } from 'node:timers'

/** The longest that a timer of Node waits, in milliseconds. */
const TIMER_MS_MAX = 2 ** 31 - 1

/** Takes something under way back. False when that is not possible now: its result will come. */
export type Withdraw = () => boolean

/** A timer under way. */
interface Timer {
  /** No process stays alive for it. */
  readonly quiet: boolean
  handle: NodeJS.Timeout | undefined
}

/** The timers of one queue. */
export class Timers {
  readonly #timers = new Set<Timer>()
  #wanted = true

  /** Calls `then` once `ms` milliseconds are over, and never within this call. */
  after(ms: number, then: () => void, quiet = false): Withdraw {
    const due = performance.now() + ms
    const timer: Timer = { quiet, handle: undefined }
    const wait = (): void => {
      const leftMs = Math.max(0, Math.ceil(due - performance.now()))
      timer.handle = setTimeout(look, Math.min(leftMs, TIMER_MS_MAX))
      if (quiet || !this.#wanted) timer.handle.unref()
    }
    // Node counts from when the loop last came round, so a timer may be early.
    const look = (): void => {
      if (performance.now() < due) wait()
      else if (this.#timers.delete(timer)) then()
    }
    this.#timers.add(timer)
    wait()
    return () => {
      clearTimeout(timer.handle)
      return this.#timers.delete(timer)
    }
  }

  /** Whether the process stays alive for them. */
  setWanted(wanted: boolean): void {
    this.#wanted = wanted
    for (const { quiet, handle } of this.#timers) {
      if (wanted && !quiet) handle?.ref()
      else handle?.unref()
    }
  }

  /** Nothing is due any more. */
  end(): void {
    for (const { handle } of this.#timers) clearTimeout(handle)
    this.#timers.clear()
  }
}
