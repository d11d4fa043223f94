// A queue belongs to the thread that made it. Worker threads each have their own, do not disturb one
// another, and may end at any time.

import test from 'ava'
import { assertEnded, childJson, fixture, runChild } from './helpers/child.js'
import { ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'

interface End {
  readonly code: number
  /** Operations that it did. */
  readonly done: number
}

interface Told {
  /** Workers that were left alone, and those that were terminated. */
  readonly finished: End[]
  readonly terminated: End[]
  /** Results that were not what they should be. */
  readonly wrong: number
  /** Operations that the main thread did meanwhile. */
  readonly main: number
}

function numbered(): Buffer {
  return Buffer.from(new Uint32Array(1 << 18).map((_, i) => i).buffer)
}

test('four workers and the main thread each have a queue, and every read is right', async (t) => {
  t.timeout(60_000)
  const args = ['finish', scratch(t, numbered())]
  const told = await childJson<Told>(fixture('readers.mjs'), { args, timeoutMs: 50_000 })
  t.deepEqual(told.finished, Array(4).fill({ code: 0, done: 20_000 }))
  t.is(told.wrong, 0)
  t.true(told.main > 0)
})

test('workers that are terminated at work do not disturb those that go on', async (t) => {
  t.timeout(60_000)
  const args = ['terminate', scratch(t, numbered())]
  const told = await childJson<Told>(fixture('readers.mjs'), { args, timeoutMs: 50_000 })
  t.deepEqual(told.finished, Array(2).fill({ code: 0, done: 20_000 }))
  t.deepEqual(told.terminated, Array(6).fill({ code: 1, done: 0 }))
  t.is(told.wrong, 0)
})

test.serial('1,000 queues made and closed by workers leave nothing in the process', async (t) => {
  t.timeout(100_000)
  const told = await childJson<Record<'before' | 'now', Record<string, number>>>(
    fixture('worker-queues.mjs'),
    {
      args: [scratch(t, numbered())],
      node: ['--expose-gc'],
      // malloc(3) maps 64 MiB for a thread that finds another at it, whenever that happens.
      env: { MALLOC_ARENA_MAX: '1' },
      timeoutMs: 90_000,
    },
  )
  const { before, now } = told
  for (const what of ['descriptors', 'threads', 'lockedKiB', 'pinnedKiB']) {
    t.is(now[what], before[what], `${what}: ${JSON.stringify(told)}`)
  }
  // One for each queue would be 1,000, and a slab each 2,000 MiB.
  t.true(now['mappings']! < before['mappings']! + 200, JSON.stringify(told))
  t.true(now['mappedMiB']! < before['mappedMiB']! + 200, JSON.stringify(told))
})

test('a queue cannot be sent to another thread', async (t) => {
  const queue = ring(t)
  // What arrives of the object itself has no methods.
  t.is((structuredClone(queue) as { nop?: unknown }).nop, undefined)
})

test('memory from alloc that is sent to a worker leaves this thread, and nothing breaks', async (t) => {
  t.timeout(30_000)
  const program = `
    const { Worker } = require('node:worker_threads')
    const { Queue } = require('node-uring')
    const main = async () => {
      const queue = new Queue()
      const worker = new Worker(\`
        const { parentPort } = require('node:worker_threads')
        parentPort.on('message', (bytes) => {
          bytes.fill(7)
          parentPort.postMessage(bytes.length)
          parentPort.close()
        })\`, { eval: true })
      // Node may tell of both in one turn of the loop: whoever waits for the end waits from the start.
      const ended = new Promise((resolve) => worker.once('exit', resolve))
      const buffer = queue.alloc(100_000)
      try {
        // Node 20 copies memory that is not its own, later ones refuse.
        worker.postMessage(buffer, [buffer.buffer])
      } catch (error) {
        worker.postMessage(Buffer.alloc(100_000))
      }
      const length = await new Promise((resolve) => worker.once('message', resolve))
      await ended
      await queue.nop()
      await queue.close()
      console.log(length)
    }
    main()`
  assertEnded(t, await runChild(program, { commonjs: true }), { stdout: '100000\n' })
})

test('a worker may make and close many queues while the main thread does', async (t) => {
  t.timeout(60_000)
  const cycles = `
    const { Queue } = require('node-uring')
    const cycles = async () => {
      for (let i = 0; i < 60; i++) {
        const queue = new Queue({ entries: 64 })
        const slept = queue.sleep(10_000).catch((error) => error.code)
        for (let j = 0; j < 20; j++) await queue.nop()
        await queue.close({ timeoutMs: 0 })
        if (await slept !== 'ABORT_ERR') throw new Error(await slept)
      }
    }
    const cycled = cycles()`
  const program = `
    ${cycles}
    const { Worker } = require('node:worker_threads')
    const workers = [1, 2].map(() => new Worker(${JSON.stringify(cycles)}, { eval: true }))
    const exits = workers.map((worker) => new Promise((resolve) => worker.once('exit', resolve)))
    Promise.all([...exits, cycled]).then(console.log)`
  const ended = await runChild(program, { commonjs: true, timeoutMs: 50_000 })
  assertEnded(t, ended, { stdout: '[ 0, 0, undefined ]\n' })
})

test('two threads that end at once while both queues are at work end well', async (t) => {
  t.timeout(60_000)
  const program = `
    const { Worker } = require('node:worker_threads')
    const source = \`
      const { Queue } = require('node-uring')
      const { parentPort } = require('node:worker_threads')
      const queue = new Queue()
      const forever = async () => { for (;;) await queue.nop() }
      for (let i = 0; i < 100; i++) forever().catch(() => {})
      queue.sleep(50_000).catch(() => {})
      setTimeout(() => parentPort.postMessage(''), 5)\`
    const main = async () => {
      for (let i = 0; i < 6; i++) {
        const workers = [1, 2, 3].map(() => new Worker(source, { eval: true }))
        await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))))
        await Promise.all(workers.map((worker) => worker.terminate()))
      }
      console.log('done')
    }
    main()`
  assertEnded(t, await runChild(program, { commonjs: true }), { stdout: 'done\n' })
})
