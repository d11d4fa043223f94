/**
 * What is drawn: colours, bars, tables, and the one line that shows how far something is. Colours are
 * for terminals, unless NO_COLOR or FORCE_COLOR say otherwise; the progress line is for terminals
 * alone. The cursor is never hidden, so that nobody has to bring it back.
 */
import { stripVTControlCharacters } from 'node:util'
import { onExit } from './ending.js'

/** The SGR codes in use: on, off. */
const STYLES = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  cyan: [36, 39],
} as const

export type Style = keyof typeof STYLES
export type Paint = (style: Style, text: string) => string

/** What is asked of a stream: process.stdout and process.stderr have it. */
export interface Stream {
  write(text: string): unknown
  isTTY?: boolean
  columns?: number
}

type Environment = Readonly<Record<string, string | undefined>>

/** Whether to colour: FORCE_COLOR (0 or false: no), then NO_COLOR, then whether it is a terminal. */
export function hasColor(stream: Stream, env: Environment = process.env): boolean {
  const { FORCE_COLOR: force, NO_COLOR: no, TERM: term } = env
  if (force) return force !== '0' && force !== 'false'
  if (no) return false
  return stream.isTTY === true && term !== 'dumb'
}

/** Colours text for a stream, or leaves it as it is. */
export function painter(stream: Stream, env?: Environment): Paint {
  if (!hasColor(stream, env)) return (_, text) => text
  return (style, text) => `\x1b[${STYLES[style][0]}m${text}\x1b[${STYLES[style][1]}m`
}

/** Columns of a stream: 80 where it does not say, as in a pipe. */
export function widthOf(stream: Stream): number {
  return stream.columns || 80
}

/** How wide text is when it is drawn. Everything that is printed here is one column a character. */
export function widthIn(text: string): number {
  return [...stripVTControlCharacters(text)].length
}

/** A bar of at most `width` columns, to an eighth of one; what is not 0 is seen. */
export function bar(part: number, width: number): string {
  const eighths = Math.max(part > 0 ? 1 : 0, Math.round(Math.min(1, part) * width * 8))
  return '█'.repeat(eighths >> 3) + ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths & 7]
}

/** A bar of `width` columns whose rest is drawn too. */
export function gauge(part: number, width: number): string {
  const full = Math.round(Math.min(1, Math.max(0, part)) * width)
  return '█'.repeat(full) + '░'.repeat(width - full)
}

/** Columns as wide as their widest, two spaces apart; those in `right` end flush. */
export function table(rows: readonly (readonly string[])[], right: ReadonlySet<number>): string {
  const widths: number[] = []
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, widthIn(cell))
  }
  const padded = (cell: string, i: number): string => {
    const spaces = ' '.repeat((widths[i] ?? 0) - widthIn(cell))
    return right.has(i) ? spaces + cell : cell + spaces
  }
  return rows.map((row) => row.map(padded).join('  ').trimEnd()).join('\n')
}

/**
 * Breaks text between words, so that no line is longer than `width`; a longer word stays whole, and so
 * does a command in backticks, which somebody may want to copy.
 */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.match(/[^\s`]*`[^`]*`\S*|\S+/g) ?? []) {
    if (line !== '' && widthIn(line) + 1 + widthIn(word) > width) {
      lines.push(line)
      line = ''
    }
    line += line === '' ? word : ` ${word}`
  }
  return [...lines, line]
}

/**
 * One line on a terminal, rewritten in place: on stderr, gone before anything else is printed and
 * when the program ends. Elsewhere it is nothing.
 */
export class Progress {
  readonly #stream: Stream
  #shownMs = 0
  #shown = false

  constructor(stream: Stream = process.stderr) {
    this.#stream = stream
    onExit(() => this.clear())
  }

  /** Whether anybody sees it. */
  get isSeen(): boolean {
    return this.#stream.isTTY === true
  }

  /** Shows what `line` makes for so many columns; too soon after the last one it does nothing. */
  show(line: (width: number) => string): void {
    const now = performance.now()
    if (!this.isSeen || (this.#shown && now - this.#shownMs < 80)) return
    this.#shownMs = now
    this.#shown = true
    const width = widthOf(this.#stream) - 1
    const text = line(width)
    // Colours end with the line, so a line that is too long is cut without any.
    const fitting =
      widthIn(text) <= width ? text : stripVTControlCharacters(text).slice(0, Math.max(0, width))
    this.#stream.write(`\r\x1b[K${fitting}`)
  }

  /** Takes the line away. */
  clear(): void {
    if (this.#shown) this.#stream.write('\r\x1b[K')
    this.#shown = false
  }
}
