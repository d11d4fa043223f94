/**
 * Counts durations in logarithmic steps, and draws them: the shape that percentiles do not show.
 * Pure: no clock, no stream.
 */
import { bar, type Paint, widthIn } from './terminal.js'
import { count, duration } from './units.js'

/** Steps of a power of ten: neighbours differ by 5.9%. */
const STEPS = 40
const DECADES = 12
/** How many steps may become one row. Divisors of {@link STEPS}, so that rows begin at 1, 10, 100. */
const MERGES = [1, 2, 4, 8, 10, 20, 40]
const ROWS_MAX = 16
/** The rows end where this share lies below; what is above becomes one row. */
const TAIL = 0.999

/** How many durations lie in `[fromNs, toNs)`; the last row has no end. */
export interface Row {
  readonly fromNs: number
  readonly toNs: number | null
  readonly count: number
}

export class Distribution {
  readonly #counts = new Float64Array(STEPS * DECADES)
  #total = 0

  add(ns: number): void {
    const step = Math.floor(Math.log10(Math.max(1, ns)) * STEPS)
    const at = Math.min(step, this.#counts.length - 1)
    this.#counts[at] = (this.#counts[at] ?? 0) + 1
    this.#total++
  }

  /** As many rows as show the shape, at most {@link ROWS_MAX} and one for the tail. */
  rows(): Row[] {
    if (this.#total === 0) return []
    const counts = this.#counts
    const first = counts.findIndex((count) => count > 0)
    let [last, below] = [first, counts[first] ?? 0]
    while (below < this.#total * TAIL) below += counts[++last] ?? 0
    const merge =
      MERGES.find((m) => Math.floor(last / m) - Math.floor(first / m) < ROWS_MAX) ?? STEPS
    const rows: Row[] = []
    const end = (Math.floor(last / merge) + 1) * merge
    for (let from = Math.floor(first / merge) * merge; from < end; from += merge) {
      const count = counts.subarray(from, from + merge).reduce((sum, count) => sum + count, 0)
      rows.push({ fromNs: edge(from), toNs: edge(from + merge), count })
    }
    const rest = this.#total - rows.reduce((sum, row) => sum + row.count, 0)
    if (rest > 0) rows.push({ fromNs: edge(end), toNs: null, count: rest })
    return rows
  }
}

/** A row a line: `562 ns … 596 ns  ██████▏  51.2%  512,345`. */
export function draw(rows: readonly Row[], width: number, paint: Paint): string {
  const total = rows.reduce((sum, row) => sum + row.count, 0)
  const most = Math.max(...rows.map((row) => row.count))
  const labels = rows.map(({ fromNs, toNs }) => [
    toNs === null ? 'longer' : duration(fromNs),
    toNs === null ? '' : duration(toNs),
  ])
  const [left, right] = [0, 1].map((i) =>
    Math.max(...labels.map((label) => widthIn(label[i] ?? ''))),
  )
  const counts = rows.map((row) => count(row.count))
  const digits = Math.max(...counts.map(widthIn))
  const room = Math.max(10, width - (left ?? 0) - (right ?? 0) - digits - 18)
  const lines = rows.map(({ count }, i) => {
    const [from = '', to = ''] = labels[i] ?? []
    const between = to === '' ? ' ' : '…'
    const drawn = bar(count / most, room)
    return [
      paint('dim', `${from.padStart(left ?? 0)} ${between} ${to.padStart(right ?? 0)}`),
      paint('cyan', drawn) + ' '.repeat(room - widthIn(drawn)),
      `${((count / total) * 100).toFixed(count === total ? 0 : 2)}%`.padStart(6),
      paint('dim', (counts[i] ?? '').padStart(digits)),
    ].join('  ')
  })
  return lines.join('\n')
}

function edge(step: number): number {
  return 10 ** (step / STEPS)
}
