// Completions that are delivered together stand alone: what one of them throws does nothing to the
// next, each finds its own promise, and each continuation its own context.

import { AsyncLocalStorage } from 'node:async_hooks'
import fs from 'node:fs'
import test from 'ava'
import { childJson } from './helpers/child.js'
import { random } from './helpers/random.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'

const COUNT = 10_000

/** A file of 32-bit numbers, each telling its place. */
function numbered(count: number): Buffer {
  return Buffer.from(new Uint32Array(count).map((_, i) => i).buffer)
}

/**
 * A program in which one of many continuations does something bad; it prints how many of the others
 * ran, how many did in a second round, and what reached the process's handlers.
 */
const misbehaving = (bad: string, kind: string) => `
  import { Queue } from 'node-uring'
  import fs from 'node:fs'
  const caught = []
  process.on('uncaughtException', (error) => caught.push(error.message))
  process.on('unhandledRejection', (error) => caught.push(error.message))
  const queue = new Queue()
  const file = await queue.open(process.argv[1])
  let ran = 0
  const operations = {
    nop: () => queue.nop(),
    sleep: () => queue.sleep(5),
    readAt: (i) => {
      const word = new Uint32Array(1)
      return file.readAt(word, i * 4).then(() => { if (word[0] !== i) throw new Error('swapped') })
    },
  }
  const operation = operations[${JSON.stringify(kind)}]
  const round = (misbehave) => Promise.all(Array.from({ length: 1000 }, (_, i) => {
    const done = operation(i).then(() => { ran++ })
    if (misbehave && i % 100 === 50) done.then(() => { ${bad} })
    return done
  }))
  await round(true)
  await new Promise((resolve) => setTimeout(resolve, 20))
  const first = ran
  await round(false)
  await new Promise((resolve) => setTimeout(resolve, 20))
  const { pending, inFlight, stale } = queue.stats()
  await queue.close()
  console.log(JSON.stringify({ first, second: ran - first, caught, pending, inFlight, stale }))`

for (const [what, bad] of [
  ['an unhandled rejection', `throw new Error('bad')`],
  ['an exception in a microtask', `queueMicrotask(() => { throw new Error('bad') })`],
  ['an exception in a nextTick', `process.nextTick(() => { throw new Error('bad') })`],
] as const) {
  for (const kind of ['nop', 'sleep', 'readAt']) {
    test(`${what} in the continuation of a ${kind} leaves the other completions whole`, async (t) => {
      // All tests here are at work at once.
      t.timeout(100_000)
      const file = scratch(t, numbered(1000))
      const options = { args: [file], timeoutMs: 90_000 }
      const told = await childJson(misbehaving(bad, kind), options)
      const caught = Array(10).fill('bad')
      t.deepEqual(told, {
        first: 1000,
        second: 1000,
        caught,
        pending: 0,
        inFlight: 0,
        stale: 0,
      } as object)
    })
  }
}

test('an exception in onProgress ends the measurement with it and leaves other completions whole', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, numbered(1000)))
  const reads = Array.from({ length: 1000 }, async (_, i) => {
    const word = new Uint32Array(1)
    for (let times = 0; times < 5; times++) await file.readAt(word.fill(0), i * 4)
    return word[0]
  })
  const thrown = new Error('thrown by onProgress')
  const measured = queue.nopRoundTrip({
    samples: 10_000_000,
    concurrency: 100,
    onProgress: () => {
      throw thrown
    },
  })
  t.is(await rejection(measured), thrown)
  t.deepEqual(await Promise.all(reads), [...Array(1000).keys()])
  await queue.nop()
  assertIdle(t, queue)
})

test('a read whose buffer is gone leaves the completions delivered with it whole', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, numbered(1000)))
  const words = Array.from({ length: 1000 }, () => new Uint32Array(1))
  const reads = words.map((word, i) => file.readAt(word, i * 4))
  for (let i = 0; i < 1000; i += 3) structuredClone(words[i], { transfer: [words[i]!.buffer] })
  const settled = await Promise.allSettled(reads)
  for (const [i, { status }] of settled.entries()) {
    t.is(status, i % 3 === 0 ? 'rejected' : 'fulfilled')
    if (i % 3 !== 0) t.is(words[i]![0], i)
  }
  assertIdle(t, queue)
})

test('a continuation runs in the AsyncLocalStorage context of the one who awaits', async (t) => {
  const queue = ring(t)
  const storage = new AsyncLocalStorage<number>()
  const pipe = fifo(t)
  const [data, stream] = [
    await queue.open(scratch(t, numbered(8)), 'r+'),
    await queue.open(pipe, 'r+'),
  ]
  fs.writeFileSync(pipe, Buffer.alloc(100))
  const operations = [
    () => queue.nop(),
    () => queue.sleep(1),
    () => queue.sleep(20),
    () => data.readAt(Buffer.alloc(4), 0),
    () => data.readAt(queue.alloc(4), 0),
    () => data.bytesAt(0, 1 << 20),
    () => data.writeAt(Buffer.alloc(4), 0, { datasync: true }),
    () => data.sync(),
    () => data.stat(),
    () => stream.readAt(Buffer.alloc(1), 0),
    () => queue.open('/no/such/file').catch(() => {}),
    () => queue.open('/').then((file) => file.close()),
  ]
  await Promise.all(
    Array.from({ length: 100 }, (_, context) =>
      storage.run(context, async () => {
        for (let i = 0; i < operations.length; i++) {
          // Each in another order, so that completions of different contexts come together.
          await operations[(i + context) % operations.length]!()
          t.is(storage.getStore(), context)
        }
      }),
    ),
  )
  t.is(storage.getStore(), undefined)
})

test(`${COUNT} concurrent operations of all kinds each settle with their own result`, async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, numbered(COUNT)))
  const arena = queue.alloc(COUNT * 4)
  const { below } = random(7)
  const word = (bytes: Buffer): number => bytes.readUInt32LE(0)
  const kinds: readonly ((i: number) => Promise<number>)[] = [
    async (i) => {
      const own = Buffer.alloc(4)
      return (await file.readAt(own, i * 4)) === 4 ? word(own) : -1
    },
    async (i) => {
      const place = arena.subarray(i * 4, i * 4 + 4)
      return (await file.readAt(place, i * 4)) === 4 ? word(place) : -1
    },
    async (i) => {
      // Not a copy, but a chunk that is given away.
      const bytes = i < 20 ? await file.bytesAt(i * 4, 1 << 17) : await file.bytesAt(i * 4, 4)
      return word(bytes)
    },
    async (i) => {
      // A read across the end: its count says how far from there it began.
      const count = await file.readAt(Buffer.alloc(8), COUNT * 4 - (i % 9))
      return count === Math.min(8, i % 9) ? i : -1
    },
    async (i) => {
      const { path } = await rejection(queue.open(`/no/such/file/${i}`))
      return Number(String(path).split('/').at(-1))
    },
    async (i) => {
      await queue.nop()
      return i
    },
    async (i) => {
      await queue.sleep(i % 5)
      return i
    },
  ]
  const wrong: string[] = []
  await Promise.all(
    Array.from({ length: COUNT }, async (_, i) => {
      const kind = below(kinds.length)
      if (below(4) === 0) await queue.nop()
      const result = await kinds[kind]!(i)
      if (result !== i) wrong.push(`kind ${kind}: ${result} in place of ${i}`)
    }),
  )
  t.deepEqual(wrong, [])
  assertIdle(t, queue)
})

test('completions that come late, out of order, each settle their own read', async (t) => {
  const queue = ring(t)
  const pipes = await Promise.all(
    Array.from({ length: 200 }, async () => {
      const path = fifo(t)
      return { path, file: await queue.open(path, 'r+') }
    }),
  )
  const { below } = random(3)
  for (let round = 0; round < 5; round++) {
    const reads = pipes.map(({ file }) => file.bytesAt(0, 4))
    const order = pipes.map((_, i) => i)
    for (let i = order.length - 1; i > 0; i--) {
      const j = below(i + 1)
      ;[order[i], order[j]] = [order[j]!, order[i]!]
    }
    for (const i of order) {
      const number = Buffer.alloc(4)
      number.writeUInt32LE(round * 1000 + i)
      fs.writeFileSync(pipes[i]!.path, number)
      if (i % 7 === 0) await queue.nop()
    }
    const numbers = (await Promise.all(reads)).map((bytes) => bytes.readUInt32LE(0))
    t.deepEqual(
      numbers,
      pipes.map((_, i) => round * 1000 + i),
    )
  }
})
