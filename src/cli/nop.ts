/**
 * `node-uring nop`: ping for io_uring. Sends nops to the kernel and back, shows how long they take
 * while they run, and sums up at the end or at ctrl-C.
 */
import { release } from 'node:os'
import type { Durations } from '../histogram.js'
import { backendOf, Queue } from '../queue.js'
import { type RoundTripStages, type RoundTripSummary, RoundTrips } from '../round-trip.js'
import { type Command, integer, manifest, parse, UsageError } from './command.js'
import { Distribution, draw } from './distribution.js'
import { onInterrupt } from './ending.js'
import { Progress, painter, table, widthOf } from './terminal.js'
import { about, count, duration } from './units.js'

const COUNT_MAX = 1e12
/** Where nobody sees how it goes, and nobody may be there to end it. */
const COUNT_UNSEEN = 1_000_000
/** Run before the clock does: V8 compiles what runs often. */
const WARM_UP = 10_000

const USAGE = `\
node-uring nop: how long a nop takes to the kernel and back

Usage: npx node-uring nop [--count N] [--concurrency N | --stages] [--json]

  --count N, -n        how many; if not given until ctrl-C, and ${count(COUNT_UNSEEN)}
                       where the output is not a terminal
  --concurrency N, -c  how many are under way at once, 1 to 65,536 (1)
  --stages, -s         where the time of each goes, one nop at a time
  --json               the result as one JSON object, durations in nanoseconds

A nop is measured from the call to its promise; ${count(WARM_UP)} run before that begins.
ctrl-C ends it and prints what was measured.
`

export const nop: Command = {
  name: 'nop',
  summary: 'how long a nop takes to the kernel and back: ping for io_uring',
  usage: USAGE,
  async run(args) {
    const { values } = parse(args, {
      count: { type: 'string', short: 'n' },
      concurrency: { type: 'string', short: 'c', default: '1' },
      stages: { type: 'boolean', short: 's', default: false },
      json: { type: 'boolean', default: false },
    })
    const concurrency = integer(values.concurrency, '--concurrency', 1, 65_536)
    const unlimited = process.stdout.isTTY ? Infinity : COUNT_UNSEEN
    const samples =
      values.count === undefined ? unlimited : integer(values.count, '--count', 1, COUNT_MAX)
    if (values.stages && concurrency !== 1) {
      throw new UsageError('--stages measures one nop at a time: leave --concurrency out')
    }
    const queue = new Queue({ backend: 'io_uring' })
    try {
      const { summary, distribution, interrupted } = await measure(
        queue,
        samples,
        concurrency,
        values.stages,
      )
      const rows = distribution.rows()
      if (values.json)
        print(JSON.stringify({ ...where(), ...summary, interrupted, histogram: rows }, null, 2))
      else print(report(summary, rows, interrupted))
    } finally {
      await queue.close()
    }
  },
}

interface Result {
  summary: RoundTripSummary
  distribution: Distribution
  interrupted: boolean
}

/** Sends `samples` nops round, `concurrency` at once. */
async function measure(
  queue: Queue,
  samples: number,
  concurrency: number,
  stages: boolean,
): Promise<Result> {
  const progress = new Progress()
  const distribution = new Distribution()
  const trips = new RoundTrips(samples, (ns) => distribution.add(ns))
  let interrupted = false
  const uninterruptible = onInterrupt(() => {
    interrupted = true
  })
  await queue.nopRoundTrip({ samples: Math.min(WARM_UP, samples), concurrency, stages })
  const plan = {
    samples,
    concurrency,
    isOver: () => interrupted,
    onBlock: () => {
      if (progress.isSeen) progress.show(() => live(trips.summary(concurrency), samples))
    },
  }
  const nop = () => queue.nop()
  if (stages) await trips.runInStages(nop, plan, backendOf(queue))
  else await trips.run(nop, plan)
  progress.clear()
  uninterruptible()
  return { summary: trips.summary(concurrency), distribution, interrupted }
}

/** The line that is seen while it runs. */
function live({ samples, opsPerSecond, ns }: RoundTripSummary, wanted: number): string {
  const of = wanted === Infinity ? '' : ` of ${about(wanted)}`
  const times = [`p50 ${duration(ns.p50)}`, `p99 ${duration(ns.p99)}`, `p99.9 ${duration(ns.p999)}`]
  return [`${about(samples)}${of} nops`, `${about(opsPerSecond)}/s`, ...times].join('   ')
}

const STAGES: readonly [keyof RoundTripStages, string][] = [
  ['stage', 'call to staged'],
  ['enter', 'staged to enter'],
  ['complete', 'enter to completion'],
  ['settle', 'completion to promise'],
]

/** A table of durations, a name before each row. */
function durationsTable(rows: readonly [string, Durations][]): string[] {
  const heads = ['', 'min', 'mean', 'p50', 'p90', 'p99', 'p99.9', 'max']
  const cells = rows.map(([name, ns]) => [
    name,
    ...[ns.min, ns.mean, ns.p50, ns.p90, ns.p99, ns.p999, ns.max].map(duration),
  ])
  return table([heads, ...cells], new Set(heads.keys())).split('\n')
}

function report(
  { samples, concurrency, opsPerSecond, ns, stages }: RoundTripSummary,
  rows: Parameters<typeof draw>[0],
  interrupted: boolean,
): string {
  const paint = painter(process.stdout)
  const how = concurrency === 1 ? 'one at a time' : `${count(concurrency)} at once`
  const heading = `${count(samples)} nops, ${how}${interrupted ? ' (interrupted)' : ''}`
  if (samples === 0) return heading
  const parts: [string, Durations][] =
    stages === undefined ? [] : STAGES.map(([key, name]) => [name, stages[key]])
  const [header = '', ...cells] = durationsTable([...parts, [parts.length > 0 ? 'all' : '', ns]])
  return [
    paint('bold', heading),
    draw(rows, Math.min(widthOf(process.stdout), 100), paint),
    '',
    paint('dim', header),
    ...cells,
    '',
    `${count(opsPerSecond)} a second, each measured from the call to its promise.`,
    `Linux ${release()}, Node.js ${process.version}, node-uring ${manifest.version}.`,
  ].join('\n')
}

function where() {
  return { version: manifest.version, node: process.version, kernel: release() }
}

function print(text: string): void {
  process.stdout.write(`${text}\n`)
}
