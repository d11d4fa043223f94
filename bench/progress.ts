/**
 * One line that says what is running and for how long, on a terminal only: that of the command line,
 * with a clock.
 */
import { Progress as Line } from '../src/cli/terminal.js'
import './cleanup.js'

export class Progress {
  readonly #line = new Line()
  readonly #startedMs = Date.now()

  /** Shows the text; too soon after the last one it does nothing. */
  show(text: string): void {
    this.#line.show(() => `${Math.round((Date.now() - this.#startedMs) / 1000)} s  ${text}`)
  }

  /** Takes the line away. */
  clear(): void {
    this.#line.clear()
  }
}
