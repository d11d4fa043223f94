/**
 * One line that says what is running and for how long, on a terminal only: on stderr, rewritten in
 * place, gone before anything else is printed and when the program ends.
 */
import { onExit } from './cleanup.js'

export class Progress {
  readonly #stream: NodeJS.WriteStream
  readonly #startedMs = Date.now()
  #shownMs = 0
  #shown = false

  constructor(stream: NodeJS.WriteStream = process.stderr) {
    this.#stream = stream
    onExit(() => this.clear())
  }

  /** Shows the text; too soon after the last one it does nothing. */
  show(text: string): void {
    const now = Date.now()
    if (!this.#stream.isTTY || now - this.#shownMs < 100) return
    this.#shownMs = now
    this.#shown = true
    const line = `${Math.round((now - this.#startedMs) / 1000)} s  ${text}`
    this.#stream.write(`\r\x1b[K${line.slice(0, (this.#stream.columns || 80) - 1)}`)
  }

  /** Takes the line away. */
  clear(): void {
    if (this.#shown) this.#stream.write('\r\x1b[K')
    this.#shown = false
    this.#shownMs = 0
  }
}
