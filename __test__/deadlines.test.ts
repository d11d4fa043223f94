// `timeoutMs`: what ends an operation when its time is up, wherever it is by then; no other, and not before.

import fc from 'fast-check'
import type { File, Queue } from 'node-uring'
import { assertEnded, runChild } from './helpers/child.js'
import { assertIdle, type Caught, rejection, ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const SLOTS = 65_536
const MIB = 1 << 20

test('a deadline ends what is with the kernel, waits for a slot, or waits for memory', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB }, 180_000)
  const stream = await queue.open(fifo(t), 'r+')
  const started = performance.now()
  const error = await rejection(stream.readAt(queue.alloc(1), 0, { timeoutMs: 30 }))
  t.like(error, { code: 'ERR_URING_TIMEOUT', timeoutMs: 30, syscall: 'read' } as never)
  t.is(error.message, 'The read was not done within 30 ms')
  t.true(performance.now() - started >= 29.9)
  // All memory for copies is taken.
  const holds = [0, 1].map(() => stream.readAt(Buffer.alloc(MIB), 0))
  const outcome = Promise.allSettled(holds)
  const waits = rejection(stream.readAt(Buffer.alloc(10), 0, { timeoutMs: 25 }))
  t.is(queue.stats().waiting, 1)
  t.is((await waits).code, 'ERR_URING_TIMEOUT')
  // All slots are taken, by what needs no memory.
  const mine = queue.alloc(5)
  const controller = new AbortController()
  const { signal } = controller
  const sleeps = Array.from({ length: SLOTS }, () => queue.sleep(600_000, { signal }))
  const all = Promise.allSettled(sleeps)
  const before = queue.stats().waiting
  t.true(before > 0)
  const nop = queue.nop({ timeoutMs: 40 })
  const write = file(queue, t).then((it) => it.writeAt(mine, 0, { timeoutMs: 40 }))
  write.catch(() => {})
  t.is((await rejection(nop)).code, 'ERR_URING_TIMEOUT')
  t.true(queue.stats().waiting >= before)
  controller.abort()
  await stream.close({ timeoutMs: 0 })
  await Promise.all([outcome, all])
  await write.catch(() => {})
  assertIdle(t, queue)
})

function file(queue: Queue, t: ExecutionContext): Promise<File> {
  return queue.open(scratch(t), 'w', { timeoutMs: 40 })
}

test('a write to a stream that is full is cancelled with the bytes that it had written', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  const [reader, writer] = await Promise.all([queue.open(name, 'r'), queue.open(name, 'w')])
  for (const memory of [Buffer.alloc(3 * MIB, 3), queue.alloc(3 * MIB).fill(3)]) {
    for (const kind of ['timeoutMs', 'signal'] as const) {
      const controller = new AbortController()
      // Long enough for a busy machine to have written something.
      const limits = kind === 'signal' ? { signal: controller.signal } : { timeoutMs: 5000 }
      const failing = rejection(writer.writeAt(memory, 0, limits))
      // Something has been written when there is something to read.
      let read = (await reader.bytesAt(0, 1, { timeoutMs: 30_000 })).length
      if (kind === 'signal') controller.abort()
      const error = await failing
      t.is(error.code, kind === 'timeoutMs' ? 'ERR_URING_TIMEOUT' : 'ABORT_ERR')
      const written = error.bytesWritten as number
      t.true(written > 0 && written < memory.length, `${written} bytes, ${kind}`)
      while (read < written) {
        read += (await reader.bytesAt(0, written - read, { timeoutMs: 30_000 })).length
      }
      // Not a byte more is in it.
      t.is((await rejection(reader.bytesAt(0, 1, { timeoutMs: 20 }))).code, 'ERR_URING_TIMEOUT')
    }
  }
  assertIdle(t, queue)
})

test('deadlines in any order: none is lost, none comes before its time, and what is faster wins', async (t) => {
  const queue = ring(t, {}, 180_000)
  const plan = fc.array(
    fc.record({
      timeoutMs: fc.integer({ min: 1, max: 60 }),
      sleepMs: fc.integer({ min: 0, max: 60 }),
      turn: fc.boolean(),
    }),
    { minLength: 1, maxLength: 120, size: 'max' },
  )
  await fc.assert(
    fc.asyncProperty(plan, async (steps) => {
      const works: Promise<void>[] = []
      for (const { timeoutMs, sleepMs, turn } of steps) {
        const started = performance.now()
        works.push(
          queue.sleep(sleepMs, { timeoutMs }).then(
            () => {
              const ms = performance.now() - started
              if (ms < sleepMs - 0.5) throw new Error(`slept ${ms} of ${sleepMs} ms`)
            },
            (error: Caught) => {
              const ms = performance.now() - started
              if (error.code !== 'ERR_URING_TIMEOUT') throw error
              if (ms < timeoutMs) throw new Error(`ended after ${ms} of ${timeoutMs} ms`)
              // On a busy machine both may be due; without one, the sleep is over first.
              if (sleepMs + 30 < timeoutMs && ms < sleepMs + 20) {
                throw new Error(`a sleep of ${sleepMs} ms was not over after ${ms} ms`)
              }
            },
          ),
        )
        if (turn) await queue.nop()
      }
      await Promise.all(works)
      if (queue.stats().pending !== 0) throw new Error('something is left')
    }),
    { numRuns: 25, seed: 5 },
  )
  assertIdle(t, queue)
})

test('the earliest deadline is kept, wherever it was among others when one was over', async (t) => {
  const queue = ring(t)
  const times = [40, 600_000, 600_001, 600_002, 600_003, 600_004, 600_005]
  for (let first = 0; first < times.length; first++) {
    for (const order of [times, [...times].reverse()]) {
      const controller = new AbortController()
      const { signal } = controller
      // Earlier than all others, and over before its time.
      const over = queue.nop({ timeoutMs: 30 })
      const all = [...order.slice(first), ...order.slice(0, first)].map((timeoutMs) => {
        const sleep = rejection(queue.sleep(700_000, { timeoutMs, signal }))
        return { timeoutMs, sleep }
      })
      await over.catch(() => {})
      const earliest = all.find(({ timeoutMs }) => timeoutMs === 40)
      t.is((await earliest?.sleep)?.code, 'ERR_URING_TIMEOUT')
      controller.abort()
      const others = all.filter((one) => one !== earliest)
      for (const { sleep } of others) t.is((await sleep).code, 'ABORT_ERR')
    }
  }
  assertIdle(t, queue)
})

test('50,000 deadlines, each earlier than the one before, take no longer than others', async (t) => {
  t.timeout(60_000)
  const queue = ring(t)
  await Promise.all(Array.from({ length: 50_000 }, (_, i) => queue.nop({ timeoutMs: 100_000 - i })))
  const stream = await queue.open(fifo(t), 'r+')
  const mine = queue.alloc(2000)
  const reads = Array.from({ length: 2000 }, (_, i) =>
    rejection(stream.readAt(mine.subarray(i, i + 1), 0, { timeoutMs: 300 - (i % 200) })),
  )
  for (const error of await Promise.all(reads)) t.is(error.code, 'ERR_URING_TIMEOUT')
  assertIdle(t, queue)
})

test('a deadline that nothing waits for any more keeps no process alive', async (t) => {
  const ended = await runChild(
    `import { Queue } from 'node-uring'
     const queue = new Queue()
     await queue.nop({ timeoutMs: 50_000 })
     await Promise.all([queue.nop({ timeoutMs: 40_000 }), queue.nop({ timeoutMs: 60_000 })])
     console.log('done')`,
    { timeoutMs: 30_000 },
  )
  assertEnded(t, ended, { stdout: 'done\n' })
  t.true(ended.ms < 30_000)
})
