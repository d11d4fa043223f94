/**
 * Measures sides against each other: each is calibrated and warmed up, then they take turns, round
 * by round, and what is compared are the ratios within a round. It measures and never judges: what a
 * row asks for is printed beside what was found.
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { moveTo, ownCpus } from './cpus.js'
import type { Progress } from './progress.js'

/** What one operation cost, in nanoseconds. CPU is that of all threads, kernel workers included. */
export interface Cost {
  wallNs: number
  cpuNs: number
}

/** One way to do an operation. */
export interface Side {
  /** Whether it is to run in a process of its own: `apart.ts`. */
  apart?: boolean
  /** The process that it runs in, where that is not this one or a child for each round. */
  pid?: number | undefined
  /** How the tables name it. */
  name: string
  /** Does so many operations and says what one of them cost. */
  run(operations: number): Promise<Cost>
}

/** What a row compares: `time` and `cpu` as ours / theirs, `rate` as theirs / ours of the times. */
export type Measure = 'time' | 'rate' | 'cpu'

/** A cell of the table: one side against another, and what was asked for. */
export interface Row<Name extends string = string> {
  cell: string
  measure: Measure
  ours: Name
  theirs: Name
  target: Target
}

export type Target = { atMost: number } | { atLeast: number }

/** Sides that take turns, and the rows that compare them. */
export interface Contest<Name extends string = string> {
  name: string
  sides: Record<Name, Side>
  rows: Row<Name>[]
  /** Called before each round of each side, off the clock. */
  before?: () => void
  /** Whether all sides of a round run on the same CPU, each CPU in its turn: `cpus.ts`. */
  onOneCpu?: boolean
}

/** What a side did in a contest, one entry a round. */
export interface Measured {
  name: string
  operations: number
  rounds: Cost[]
}

/** Median, least and most of the rounds. */
export interface Spread {
  median: number
  min: number
  max: number
}

/** A row of the table with what was found. */
export interface Finding {
  cell: string
  measure: Measure | 'value'
  ours: string
  theirs: string
  /** Costs in nanoseconds, or the value in its `unit`. */
  oursCost: number
  theirsCost?: number
  unit?: string
  rounds: number[]
  spread: Spread
  target: Target
  met: boolean
}

export interface Settings {
  rounds: number
  /** How long a side's round should take. */
  roundMs: number
}

/** Calibrates all sides, lets them take turns, and compares. */
export async function compete(
  contest: Contest,
  settings: Settings,
  progress: Progress,
): Promise<{ measured: Measured[]; findings: Finding[] }> {
  const sides = Object.entries(contest.sides)
  const cpus = contest.onOneCpu ? ownCpus() : []
  const processes = [process.pid, ...sides.flatMap(([, { pid }]) => pid ?? [])]
  const taken = new Map<string, Measured>()
  for (const [key, side] of sides) {
    progress.show(`${contest.name}: warming up ${side.name}`)
    contest.before?.()
    const operations = await calibrate(side, settings.roundMs)
    taken.set(key, { name: side.name, operations, rounds: [] })
  }
  // Round 0 is a last warm-up, in company.
  const rounds = wholeTurns(settings.rounds, cpus.length)
  try {
    for (let round = 0; round <= rounds; round++) {
      const cpu = cpus[round % cpus.length]
      if (cpu !== undefined) moveTo(cpu, processes)
      for (const [key, side] of sides) {
        progress.show(`${contest.name}: round ${round} of ${rounds}, ${side.name}`)
        const measured = taken.get(key) as Measured
        contest.before?.()
        const cost = await side.run(measured.operations)
        if (round > 0) measured.rounds.push(cost)
      }
    }
  } finally {
    if (cpus.length > 0) moveTo(cpus.join(), [process.pid])
  }
  return { measured: [...taken.values()], findings: contest.rows.map((row) => compare(row, taken)) }
}

/** As many rounds, or the few more that give each CPU as many as any other. */
function wholeTurns(rounds: number, cpus: number): number {
  return cpus > rounds || cpus === 0 ? rounds : Math.ceil(rounds / cpus) * cpus
}

/**
 * Runs the side until it is warm; returns how many operations fill a round. Two runs in a row have to
 * say so: on a busy machine a first one that was held up for half a round would leave the side with
 * rounds of one cold batch.
 */
async function calibrate(side: Side, roundMs: number): Promise<number> {
  let [operations, agreed] = [256, 0]
  for (;;) {
    const { wallNs } = await side.run(operations)
    const elapsedMs = (wallNs * operations) / 1e6
    const wanted = Math.ceil((operations * roundMs) / Math.max(elapsedMs, 1e-3))
    agreed = elapsedMs >= roundMs / 2 ? agreed + 1 : 0
    if (agreed === 2) return wanted
    operations = Math.min(wanted, operations * 8)
  }
}

function compare(row: Row, taken: Map<string, Measured>): Finding {
  const ours = taken.get(row.ours) as Measured
  const theirs = taken.get(row.theirs) as Measured
  const cost = row.measure === 'cpu' ? 'cpuNs' : 'wallNs'
  const rounds = ours.rounds.map((mine, i) => {
    const other = theirs.rounds[i] as Cost
    return row.measure === 'rate' ? other[cost] / mine[cost] : mine[cost] / other[cost]
  })
  const spread = spreadOf(rounds)
  return {
    cell: row.cell,
    measure: row.measure,
    ours: ours.name,
    theirs: theirs.name,
    oursCost: spreadOf(ours.rounds.map((round) => round[cost])).median,
    theirsCost: spreadOf(theirs.rounds.map((round) => round[cost])).median,
    rounds,
    spread,
    target: row.target,
    met: isMet(spread.median, row.target),
  }
}

/** A row that compares nothing: a number with a limit. */
export function valueFinding(
  cell: string,
  name: string,
  unit: string,
  rounds: number[],
  target: Target,
): Finding {
  const spread = spreadOf(rounds)
  return {
    cell,
    measure: 'value',
    ours: name,
    theirs: '',
    oursCost: spread.median,
    unit,
    rounds,
    spread,
    target,
    met: isMet(spread.median, target),
  }
}

function isMet(median: number, target: Target): boolean {
  return 'atMost' in target ? median <= target.atMost : median >= target.atLeast
}

export function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  const [low, high] = [sorted[sorted.length % 2 === 0 ? half - 1 : half], sorted[half]]
  return {
    median: ((low ?? Number.NaN) + (high ?? Number.NaN)) / 2,
    min: sorted[0] ?? Number.NaN,
    max: sorted.at(-1) ?? Number.NaN,
  }
}

/** A side in JavaScript: `work` does so many operations. */
export function inProcess(name: string, work: (operations: number) => unknown): Side {
  return {
    name,
    apart: true,
    async run(operations) {
      collectYoung()
      const cpu = process.cpuUsage()
      const from = process.hrtime.bigint()
      await work(operations)
      const wallNs = Number(process.hrtime.bigint() - from)
      const { user, system } = process.cpuUsage(cpu)
      return { wallNs: wallNs / operations, cpuNs: ((user + system) * 1000) / operations }
    },
  }
}

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as (options?: { type: 'minor' }) => void

/** Lets every round begin with an empty nursery: a side's garbage is its own affair. */
function collectYoung(): void {
  gc({ type: 'minor' })
}
