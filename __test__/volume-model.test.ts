// readMany, writeMany and nops: against a model, with reads and writes that are short and fail, and a million
// of them.

import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import type { QueueOptions } from 'node-uring'
import { childJson } from './helpers/child.js'
import { FUSE, fuse } from './helpers/fuse.js'
import { checkMany, GUARD, MEMORIES, type Memory, slice } from './helpers/guards.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const MIB = 1 << 20
const [EIO, ENOSPC] = [5, 28]
const fuseTest = needs(test, FUSE)

fuseTest(
  'short reads and writes are gone on with, and what had come counts when the rest fails',
  async (t) => {
    const content = pattern(20_000)
    const files = {
      short: { content, maxBytes: 300 },
      broken: { content, maxBytes: 300, failFrom: 10_000 },
      late: { content, maxBytes: 700, delayMs: 2 },
    }
    // Asynchronous direct writes may not be short, says FUSE (EIO); and of a synchronous read that is
    // short at the end of the file Linux 6.18 reads the last bytes twice, by io_uring alone.
    const [mounted, writable] = [await fuse(t, 'async', files), await fuse(t, 'sync', files)]
    const queue = ring(t)
    for (const memory of Object.values(MEMORIES)) {
      for (const name of ['short', 'late']) {
        const file = await queue.open(mounted.at(name), 'r+')
        const positions = [0, 5000, 19_500, 12_345, 30_000]
        const target = memory(queue, 5100)
        const counts = await file.readMany(Float64Array.from(positions), 1000, target)
        checkMany(
          t,
          content,
          positions,
          positions.map(() => 1000),
          counts,
          target,
        )
        await file.close()
        const other = await queue.open(writable.at(name), 'r+')
        const source = memory(queue, 4000).fill(3)
        const places = Float64Array.of(0, 2000)
        t.deepEqual([...(await other.writeMany(places, 2000, source))], [2000, 2000])
        const behind = fs.readFileSync(writable.behind(name))
        t.true(behind.subarray(0, 4000).every((byte) => byte === 3))
        await other.close()
      }
      const broken = await queue.open(mounted.at('broken'), 'r+')
      const target = memory(queue, 4000)
      const counts = await broken.readMany(Float64Array.of(9500, 10_000, 0, 9000), 1000, target)
      t.deepEqual([...counts], [500, -EIO, 1000, 1000])
      t.true(target.subarray(0, 500).equals(content.subarray(9500, 10_000)))
      t.true(target.subarray(500, 2000).every((byte) => byte === GUARD))
      const other = await queue.open(writable.at('broken'), 'r+')
      const written = await other.writeMany(Float64Array.of(9500, 15_000), 1000, target)
      t.deepEqual([...written], [500, -EIO])
      await other.close()
      await broken.close()
    }
    assertIdle(t, queue)
  },
)

needs(test, { root: true })(
  'a file system that fills up in the middle is told of one by one',
  async (t) => {
    const queue = ring(t)
    const at = path.join(tmpfs(t, MIB), 'file')
    const file = await queue.open(at, 'w')
    for (const memory of Object.values(MEMORIES)) {
      await file.truncate()
      const positions = Float64Array.from({ length: 512 }, (_, i) => i * 8192)
      const counts = await file.writeMany(positions, 8192, memory(queue, 512 * 8192))
      const total = counts.reduce((sum, count) => sum + Math.max(0, count), 0)
      t.is(total, fs.statSync(at).blocks * 512)
      t.true(counts.every((count) => count > 0 || count === -ENOSPC))
      t.true(total > 0 && counts.includes(-ENOSPC))
    }
    assertIdle(t, queue)
  },
)

// ---- against a model --------------------------------------------------------------------------------

const RINGS: Record<string, QueueOptions> = {
  'of the usual size': {},
  'of 2 entries': { entries: 2, cqEntries: 2, bounceBytes: 2 * MIB },
}

for (const [what, options] of Object.entries(RINGS)) {
  test(`any writes and any reads, a ring ${what}, are as an array of bytes has them`, async (t) => {
    t.timeout(180_000)
    const queue = ring(t, options, 180_000)
    const file = await queue.open(scratch(t), 'w+')
    const SIZE = 60_000
    const one = fc.record({ gap: fc.nat(300), length: fc.nat(900) })
    const plan = fc.record({
      writes: fc.array(one, { minLength: 1, maxLength: 60, size: 'max' }),
      reads: fc.array(fc.record({ at: fc.nat(SIZE + 500), length: fc.nat(3000) }), {
        maxLength: 60,
        size: 'max',
      }),
      inPlace: fc.boolean(),
      shuffle: fc.nat(),
      same: fc.boolean(),
    })
    await fc.assert(
      fc.asyncProperty(plan, async ({ writes, reads, inPlace, shuffle, same }) => {
        const memory = (inPlace ? MEMORIES['in place'] : MEMORIES['plain']) as Memory
        await file.truncate()
        const model = Buffer.alloc(SIZE * 2)
        // Places that do not overlap, in any order.
        let end = 0
        const places = writes.map(({ gap, length }) => {
          const place = { at: end + gap, length: same ? 500 : length }
          end = place.at + place.length
          return place
        })
        const r = random(shuffle)
        places.sort(() => r.below(3) - 1)
        const source = memory(
          queue,
          places.reduce((sum, { length }) => sum + length, 0),
        )
        r.bytes(source.length).copy(source)
        let from = 0
        let size = 0
        for (const { at, length } of places) {
          source.copy(model, at, from, from + length)
          from += length
          if (length > 0) size = Math.max(size, at + length)
        }
        const lengths = same ? 500 : Uint32Array.from(places, ({ length }) => length)
        const written = await file.writeMany(
          Float64Array.from(places, ({ at }) => at),
          lengths,
          source,
        )
        if (!places.every(({ length }, i) => written[i] === length))
          throw new Error('written counts')
        const target = memory(queue, reads.reduce((sum, { length }) => sum + length, 0) + 16)
        const counts = await file.readMany(
          Float64Array.from(reads, ({ at }) => at),
          Uint32Array.from(reads, ({ length }) => length),
          target,
        )
        const content = model.subarray(0, size)
        const expected = Buffer.alloc(target.length, GUARD)
        let at = 0
        for (const [i, read] of reads.entries()) {
          const bytes = slice(content, read.at, read.length)
          bytes.copy(expected, at)
          at += read.length
          if (counts[i] !== bytes.length)
            throw new Error(`read ${i}: ${counts[i]} of ${bytes.length}`)
        }
        if (!target.equals(expected)) throw new Error('the target')
      }),
      { numRuns: 150, seed: 11 },
    )
    assertIdle(t, queue)
  })
}

// ---- very many --------------------------------------------------------------------------------------

test('a million nops are one call', async (t) => {
  const queue = ring(t, {}, 120_000)
  const { completed, submitted } = queue.stats()
  t.is(await queue.nops(1_000_000), undefined)
  const after = queue.stats()
  t.is(after.submitted - submitted, 1_000_000)
  t.true(after.completed - completed < 1000, 'completions of parts, not of each')
  t.is(await queue.nops(0), undefined)
  assertIdle(t, queue)
})

test.serial(
  'readMany allocates less than a byte of heap for each operation beside its result',
  async (t) => {
    t.timeout(180_000)
    const told = await childJson<{ perOperation: number; external: number; good: boolean }>(
      `import { Queue } from 'node-uring'
     const queue = new Queue()
     const file = await queue.open(process.argv[1])
     const count = 16_384
     const positions = Float64Array.from({ length: count }, (_, i) => (i * 64) % 60_000)
     const target = queue.alloc(count * 64)
     const rounds = 61
     const read = async () => {
       const counts = await file.readMany(positions, 64, target)
       return counts.every((got) => got === 64)
     }
     let good = await read() && await read()
     // No collection in between (the young generation is large): what is used more was allocated.
     gc()
     const before = process.memoryUsage()
     for (let round = 0; round < rounds; round++) good &&= await read()
     const after = process.memoryUsage()
     await queue.close()
     const perOperation = (after.heapUsed - before.heapUsed) / (rounds * count)
     console.log(JSON.stringify({ perOperation, good }))`,
      {
        node: ['--expose-gc', '--max-semi-space-size=128', '--min-semi-space-size=128'],
        args: [scratch(t, pattern(1 << 16))],
        timeoutMs: 150_000,
      },
    )
    t.true(told.good)
    t.true(told.perOperation < 1 && told.perOperation > -1, `${told.perOperation} bytes`)
  },
)

test('a writeMany that ends before it begins says that nothing was written', async (t) => {
  const queue = ring(t)
  for (const known of [false, true]) {
    const file = await queue.open(scratch(t), 'w+')
    if (known) await file.readMany(Float64Array.of(0), 1, new Uint8Array(1))
    const controller = new AbortController()
    const { signal } = controller
    const write = file.writeMany(Float64Array.of(0, 10), 10, new Uint8Array(20), { signal })
    controller.abort()
    const { name, bytesWritten } = await rejection(write)
    t.deepEqual({ name, bytesWritten }, { name: 'AbortError', bytesWritten: 0 }, `known: ${known}`)
  }
  // Until it is known, nothing is copied.
  const file = await queue.open(scratch(t), 'w+')
  const buffer = new ArrayBuffer(20)
  const write = file.writeMany(Float64Array.of(0, 10), 10, new Uint8Array(buffer))
  structuredClone(buffer, { transfer: [buffer] })
  const { code, bytesWritten } = await rejection(write)
  t.deepEqual({ code, bytesWritten }, { code: 'ERR_URING_BUFFER_DETACHED', bytesWritten: 0 })
})
