// Gathering for longer than a turn (flushDelayUs): operations of several turns are submitted together,
// a timer bounds how long they wait, and nothing hangs.

import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { childJson } from './helpers/child.js'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'

test('operations of several turns of the event loop are submitted together', async (t) => {
  const gathers = ring(t, { flushDelayUs: 1_000_000, entries: 64 })
  const waits = ring(t)
  for (const queue of [gathers, waits]) {
    const from = performance.now()
    const nops = []
    for (let turn = 0; turn < 10; turn++) {
      nops.push(queue.nop())
      await setImmediate()
    }
    const { enters, submitted } = queue.stats()
    const ms = performance.now() - from
    queue.flush()
    await Promise.all(nops)
    // A machine may stand still for the whole delay.
    if (ms > 900) return void t.pass('too slow a machine to see it')
    if (queue === gathers) t.deepEqual({ enters, submitted }, { enters: 0, submitted: 0 })
    else t.true(enters >= 5)
  }
  t.deepEqual([gathers.stats().enters, gathers.stats().meanBatch], [1, 10])
})

for (const flushDelayUs of [1, 50, 1500, 20_000]) {
  for (const reap of ['eventfd', 'thread', 'poll'] as const) {
    test(`a delay of ${flushDelayUs} µs ends by itself with reap: '${reap}'`, async (t) => {
      const queue = ring(t, { flushDelayUs, reap })
      const from = performance.now()
      await queue.nop()
      t.true(performance.now() - from >= flushDelayUs / 1000)
      await queue.nop().then(() => queue.nop())
      const file = await queue.open(scratch(t, Buffer.from('gathered')), 'r+')
      t.is((await file.bytesAt(0, 100)).toString(), 'gathered')
      t.is(await file.writeAt(Buffer.from('written!'), 0, { datasync: true }), 8)
      await file.close()
      assertIdle(t, queue)
    })
  }
}

/**
 * How often a timer of 10 ms runs during some work, 100 times in a second: a clock that stands still
 * when the machine does.
 */
async function ticksDuring(work: () => Promise<unknown>): Promise<number> {
  let ticks = 0
  const timer = setInterval(() => ticks++, 10)
  await work()
  clearInterval(timer)
  return ticks
}

test('a queue that is full submits without waiting for the delay', async (t) => {
  const queue = ring(t, { flushDelayUs: 1_000_000, entries: 32 })
  const nops = () => Promise.all(Array.from({ length: 32 }, () => queue.nop()))
  t.true((await ticksDuring(nops)) < 50)
})

test('closing a queue that cancels does not wait for the delay', async (t) => {
  const queue = ring(t, { flushDelayUs: 1_000_000 })
  const ticks = await ticksDuring(async () => {
    const sleep = t.throwsAsync(queue.sleep(60_000), { code: 'ABORT_ERR' })
    await queue.close({ timeoutMs: 0 })
    await sleep
  })
  t.true(ticks < 50)
})

test('what waits keeps the process alive until it is done, and then the process ends', async (t) => {
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue({ flushDelayUs: 30_000 })
    queue.nop().then(() => console.log('1'))`
  t.is(await childJson<number>(program, { timeoutMs: 20_000 }), 1)
})

test('what is gathered behind a drain is submitted, also when nothing else wakes the event loop', async (t) => {
  const program = `
    import { op, Queue } from 'node-uring'
    const queue = new Queue({ flushDelayUs: 200 })
    for (let round = 0; round < 500; round++) {
      await Promise.all([
        queue.submit([op.timeout(1)], { drain: true }),
        queue.nop(),
        queue.submit([op.nop()], { drain: true }),
      ])
    }
    await queue.close()
    console.log(JSON.stringify('done'))`
  t.is(await childJson(program, { timeoutMs: 60_000 }), 'done')
})
