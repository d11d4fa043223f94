/**
 * How results are printed: the table of cells with what was asked for, and what each side cost.
 * Pure: text out of numbers.
 */
import { table } from '../src/cli/terminal.js'
import { duration } from '../src/cli/units.js'
import { type Finding, type Measured, type Spread, spreadOf, type Target } from './harness.js'

/** A table of cells: every row the same, those that miss their target like those that meet it. */
export function cellTable(findings: readonly Finding[]): string {
  const header = ['cell', 'cost', 'against', 'cost', 'ratio', '(min…max)', 'target', 'met']
  const rows = findings.map((finding) => {
    const { spread, unit } = finding
    const isValue = finding.measure === 'value'
    const cost = (ns: number | undefined) =>
      ns === undefined ? '' : `${duration(ns)}${finding.measure === 'cpu' ? ' CPU' : ''}`
    return [
      finding.cell,
      isValue ? `${number(finding.oursCost)} ${unit}` : cost(finding.oursCost),
      finding.theirs,
      cost(finding.theirsCost),
      isValue ? '' : ratio(spread.median),
      `(${isValue ? range(spread, number) : range(spread, ratio)})`,
      target(finding),
      finding.met ? 'yes' : 'no',
    ]
  })
  return table([header, ...rows], new Set([1, 3, 4]))
}

/** What every side cost, contest by contest. */
export function sideTable(contests: readonly { name: string; measured: Measured[] }[]): string {
  const rows = [['contest', 'side', 'wall', '(min…max)', 'CPU', 'per second', 'operations']]
  for (const { name, measured } of contests) {
    for (const side of measured) {
      const wall = spreadOf(side.rounds.map((round) => round.wallNs))
      const cpu = spreadOf(side.rounds.map((round) => round.cpuNs))
      rows.push([
        name,
        side.name,
        duration(wall.median),
        `(${range(wall, duration)})`,
        duration(cpu.median),
        Math.round(1e9 / wall.median).toLocaleString('en'),
        side.operations.toLocaleString('en'),
      ])
    }
  }
  return table(rows, new Set([2, 4, 5, 6]))
}

/** A ratio and its bound: of times and CPU at most, of rates at least. */
function target({ measure, target, unit }: Finding): string {
  const bound = bounds(target)
  if (measure === 'value') return `${bound} ${unit}`
  return `${measure} ${bound}`
}

function bounds(target: Target): string {
  return 'atMost' in target ? `≤ ${target.atMost}` : `≥ ${target.atLeast}`
}

function range({ min, max }: Spread, format: (value: number) => string): string {
  return `${format(min)}…${format(max)}`
}

function ratio(value: number): string {
  return value.toFixed(value < 0.1 ? 3 : 2)
}

function number(value: number): string {
  return value.toFixed(Math.abs(value) < 10 ? 2 : 0)
}
