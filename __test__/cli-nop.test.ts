// `node-uring nop`: what it measures, what it tells, and what ctrl-C makes of it.

import test from 'ava'
import { assertEnded, story } from './helpers/child.js'
import { assertPlain, cli, inside } from './helpers/cli.js'

interface Told {
  samples: number
  concurrency: number
  opsPerSecond: number
  interrupted: boolean
  ns: Record<'min' | 'mean' | 'p50' | 'p90' | 'p99' | 'p999' | 'max', number>
  histogram: { fromNs: number; toNs: number | null; count: number }[]
  version: string
  node: string
  kernel: string
}

test('nop --json tells what nopRoundTrip tells, and a histogram that has every sample', async (t) => {
  const ended = await cli(['nop', '--count', '20000', '--concurrency', '7', '--json'])
  assertEnded(t, ended)
  const { samples, concurrency, opsPerSecond, interrupted, ns, histogram, node } = JSON.parse(
    ended.stdout,
  ) as Told
  t.deepEqual(
    { samples, concurrency, interrupted, node },
    { samples: 20_000, concurrency: 7, interrupted: false, node: process.version },
  )
  t.true(opsPerSecond > 0)
  const order = [ns.min, ns.p50, ns.p90, ns.p99, ns.p999, ns.max]
  t.deepEqual(
    order,
    [...order].sort((a, b) => a - b),
  )
  t.is(
    histogram.reduce((sum, row) => sum + row.count, 0),
    samples,
  )
  t.true(histogram[0]!.fromNs <= ns.min * 1.01 && histogram.length <= 17)
})

test('nop draws a histogram and the percentiles, without a control character in a pipe', async (t) => {
  const { stdout, ...ended } = await cli(['nop', '-n', '5000'])
  assertEnded(t, { ...ended, stdout })
  assertPlain(t, stdout)
  t.regex(stdout, /^5,000 nops, one at a time\n/)
  t.regex(stdout, /█/)
  t.regex(stdout, /^ *min +mean +p50 +p90 +p99 +p99\.9 +max$/m)
  t.regex(stdout, /\n[\d,]+ a second, each measured from the call to its promise\.\n/)
})

test('without --count and without a terminal nop ends by itself', async (t) => {
  t.timeout(100_000)
  const ended = await cli(['nop', '-c', '256', '--json'], { timeoutMs: 90_000 })
  assertEnded(t, ended)
  t.is((JSON.parse(ended.stdout) as Told).samples, 1_000_000)
})

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  test(`after ${signal} nop prints what was measured, and ends with ${code}`, async (t) => {
    // In the midst of what is measured: how long the nops before that take depends on the machine.
    const signalling = inside(`
      import { Queue } from '${new URL('../dist/index.js', import.meta.url)}'
      const { nop } = Queue.prototype
      let calls = 0
      Queue.prototype.nop = function () {
        if (++calls === 20_000) process.kill(process.pid, '${signal}')
        return nop.call(this)
      }`)
    const args = ['nop', '--count', '1000000000', '--json']
    const ended = await cli(args, { ...signalling, timeoutMs: 90_000 })
    assertEnded(t, ended, { code })
    const { samples, interrupted, ns } = JSON.parse(ended.stdout) as Told
    t.true(interrupted)
    t.true(samples > 0 && samples < 1_000_000_000 && ns.p50 > 0, story(ended))
  })
}

test('nop --stages tells where the time of a nop goes, and refuses many at once', async (t) => {
  const ended = await cli(['nop', '-n', '3000', '--stages', '--json'])
  assertEnded(t, ended)
  const { ns, stages } = JSON.parse(ended.stdout) as Told & { stages: Record<string, Told['ns']> }
  t.deepEqual(Object.keys(stages), ['stage', 'enter', 'complete', 'settle'])
  const sum = Object.values(stages).reduce((all, { mean }) => all + mean, 0)
  t.true(Math.abs(sum - ns.mean) <= ns.mean * 0.01 + 5, JSON.stringify({ ns, stages }))
  const drawn = await cli(['nop', '-n', '3000', '-s'])
  assertEnded(t, drawn)
  for (const row of ['call to staged', 'staged to enter', 'enter to completion', 'all']) {
    t.regex(drawn.stdout, new RegExp(`^ *${row}  `, 'm'))
  }
  const both = await cli(['nop', '-n', '10', '--stages', '-c', '2'])
  assertEnded(t, both, { code: 2, stdout: '', stderr: /--stages measures one nop at a time/ })
})
