// However a program or a worker ends, and whatever its queues are doing then: it ends soon, with the
// code that it would have had without a queue, and by no signal but the one that was sent.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { assertEnded, childJson, type Expected, each, fixture, runChild } from './helpers/child.js'
import { folder } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const STATES = [
  'reads of an empty FIFO pending',
  'a long sleep pending',
  '10,000 direct reads in flight',
  'writes in flight',
  'work staged and not submitted',
  'more operations than completion entries',
  'an idle open queue',
  'a queue that was never used',
  'a queue in the middle of closing',
  'a closed queue',
  'two queues at work',
] as const
/** Below the long sleep, so that nothing can have waited for that. */
const DEADLINE_MS = 90_000

const thrown = /thrown on purpose/
const worker = (code: number, error = '') => ({
  stdout: `${error}worker ended with ${code}\nall is well\n`,
})
const ENDINGS: readonly (readonly [string, Expected])[] = [
  ['by itself', { code: 0, stdout: 'ready\n' }],
  ['by process.exit()', { code: 3, stdout: 'ready\n' }],
  ['by process.exit() in a completion', { code: 3, stdout: 'ready\n' }],
  ['by an uncaught throw', { code: 1, stdout: 'ready\n', stderr: thrown }],
  ['by an unhandled rejection', { code: 1, stdout: 'ready\n', stderr: /rejected on purpose/ }],
  ['by SIGTERM', { code: null, signal: 'SIGTERM', stdout: 'ready\n' }],
  ['as a worker that is terminated', worker(1)],
  ['as a worker that is done', worker(0)],
  ['as a worker that calls process.exit()', worker(3)],
  ['as a worker that throws', worker(1, 'thrown on purpose\n')],
]

for (const [ending, expected] of ENDINGS) {
  test.serial(`a program ends as it should ${ending}, whatever its queues are doing`, async (t) => {
    t.timeout(120_000)
    const place = workplace(t)
    await each(STATES, async (state) => {
      const args = [state, ending, place]
      const ended = await runChild(fixture('ending.mjs'), { args, timeoutMs: DEADLINE_MS })
      assertEnded(t, ended, expected, `with ${state} it`)
    })
  })
}

/** malloc(3) maps 64 MiB for a thread that finds another at it, whenever that happens. */
const ONE_HEAP = { MALLOC_ARENA_MAX: '1' }

interface Holdings {
  readonly descriptors: number
  readonly threads: number
  readonly kernelWorkers: number
  readonly mappings: number
  readonly mappedMiB: number
}

test.serial(
  '40 workers terminated at work leave no descriptor, thread or mapping behind',
  async (t) => {
    t.timeout(120_000)
    const place = workplace(t)
    const cycles = await childJson<Holdings[]>(fixture('worker-cycles.mjs'), {
      args: ['40', place],
      env: ONE_HEAP,
      timeoutMs: 100_000,
    })
    t.is(cycles.length, 41)
    const [warm, last] = [cycles[9]!, cycles[40]!]
    t.is(last.descriptors, warm.descriptors)
    // Node's own come and go. One for each worker would be 30 more.
    t.true(last.threads < warm.threads + 5, `${warm.threads}, then ${last.threads} threads`)
    t.true(last.kernelWorkers < 5, `${last.kernelWorkers} kernel workers`)
    // V8's own come and go, some 15 in all. One for each worker would be 30, and a slab each 120 MiB.
    t.true(last.mappings < warm.mappings + 25, `${warm.mappings}, then ${last.mappings}`)
    t.true(last.mappedMiB < warm.mappedMiB + 100, `${warm.mappedMiB}, then ${last.mappedMiB} MiB`)
  },
)

test.serial('memory that a worker still had is unmapped when it has ended', async (t) => {
  t.timeout(100_000)
  // Ended within the turn in which it took that, it would leave it mapped: crates/binding/src/stage/exposed.rs.
  const program = `
    const { readFileSync } = require('node:fs')
    const { Worker } = require('node:worker_threads')
    const mappedMiB = () =>
      Number(readFileSync('/proc/self/status', 'utf8').match(/VmSize:\\s*(\\d+)/)[1]) / 1024
    const cycle = (ends) => new Promise((resolve) => {
      const worker = new Worker(\`
        const { parentPort, workerData } = require('node:worker_threads')
        const { Queue } = require('node-uring')
        const queue = new Queue()
        globalThis.kept = [queue.alloc(1), queue.alloc(32 << 20)]
        queue.nop().then(() => setImmediate(() => parentPort.postMessage('has it')))
        if (workerData === 'terminated') setInterval(() => {}, 1000)\`, { eval: true, workerData: ends })
      worker.on('message', () => ends === 'terminated' && worker.terminate())
      worker.on('exit', resolve)
    })
    const main = async () => {
      const after = []
      for (let i = 0; i < 24; i++) {
        await cycle(i % 2 === 0 ? 'terminated' : 'by itself')
        after.push(mappedMiB())
      }
      console.log(JSON.stringify(after))
    }
    main()`
  const after = await childJson<number[]>(program, {
    commonjs: true,
    env: ONE_HEAP,
    timeoutMs: 90_000,
  })
  const [warm, last] = [after[7]!, after[23]!]
  // Those of the last 16 would be 512 MiB.
  t.true(last < warm + 100, `${warm}, then ${last} MiB`)
})

test.serial('what a worker wrote and synced before it was terminated is in the file', async (t) => {
  t.timeout(100_000)
  const file = path.join(folder(t), 'file')
  const program = `
    const { Worker } = require('node:worker_threads')
    const worker = new Worker(\`
      const { parentPort } = require('node:worker_threads')
      const { Queue } = require('node-uring')
      const main = async () => {
        const queue = new Queue()
        const file = await queue.open(${JSON.stringify(file)}, 'w')
        await file.writeAt(Buffer.alloc(100_000, 7), 0, { datasync: true })
        for (let i = 1; i < 50; i++) file.writeAt(Buffer.alloc(100_000, 7), i * 100_000)
        // Done with all of it, it would end by itself.
        setInterval(() => {}, 1000)
        parentPort.postMessage('written')
      }
      main()\`, { eval: true })
    worker.on('message', () => worker.terminate())
    worker.on('exit', (code) => console.log(code))`
  assertEnded(t, await runChild(program, { commonjs: true }), { stdout: '1\n' })
  const content = fs.readFileSync(file)
  t.true(content.length >= 100_000)
  t.true(content.subarray(0, 100_000).equals(Buffer.alloc(100_000, 7)))
})

function workplace(t: ExecutionContext): string {
  const place = folder(t)
  execFileSync('mkfifo', [path.join(place, 'fifo')])
  fs.writeFileSync(path.join(place, 'data'), Buffer.alloc(4 << 20, 1))
  return place
}
