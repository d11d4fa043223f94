// Operations that are aborted at random moments, and whose record it is that an abort reaches.

import fs from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { type File, type LimitOptions, op, type Queue } from 'node-uring'
import { pattern, random } from './helpers/random.js'
import { assertIdle, type Caught, rejection, ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

/** What a storm counts. */
interface Storm {
  begun: number
  done: number
  aborted: number
  late: number
}

test.serial(
  '100,000 operations aborted at random moments all settle, and every byte is accounted for',
  async (t) => {
    t.timeout(300_000)
    const queue = ring(t, { bounceBytes: 8 * MIB }, 300_000)
    const content = pattern(MIB)
    const source = await queue.open(scratch(t, content))
    const stream = await queue.open(fifo(t), 'r+')
    const at = scratch(t)
    const dest = await queue.open(at, 'w+')
    const r = random(2026)
    const count: Storm = { begun: 0, done: 0, aborted: 0, late: 0 }
    const wrong: string[] = []
    /** By place: how many bytes of it the write said it wrote. */
    const written: { place: number; length: number; bytes: number; whole: boolean }[] = []
    const controllers = new Set<AbortController>()
    const limits = (): LimitOptions => {
      const kind = r.below(10)
      if (kind === 0) return { timeoutMs: 1 + r.below(30) }
      const controller = new AbortController()
      controllers.add(controller)
      if (r.below(8) === 0) queueMicrotask(() => controller.abort())
      return kind < 4
        ? { signal: controller.signal, timeoutMs: 1 + r.below(60) }
        : { signal: controller.signal }
    }
    const track = async (what: string, promise: Promise<unknown>): Promise<void> => {
      try {
        await promise
        count.done++
      } catch (error) {
        const { code } = error as Caught
        if (code === 'ABORT_ERR') count.aborted++
        else if (code === 'ERR_URING_TIMEOUT') count.late++
        else wrong.push(`${what}: ${(error as Error).stack}`)
      }
    }
    const small = Buffer.alloc(4096)
    const one = (index: number): Promise<unknown> => {
      const from = r.below(MIB - 70_000)
      switch (index % 8) {
        case 0: {
          const target = r.below(2) === 0 ? Buffer.alloc(500) : queue.alloc(500)
          return source.readAt(target, from, limits()).then((bytes) => {
            if (bytes !== 500 || !target.equals(content.subarray(from, from + 500)))
              wrong.push(`read ${index}`)
          })
        }
        case 1:
          return stream.readAt(small.subarray(0, 8), 0, limits())
        case 2: {
          const large = index % 1600 === 2
          const length = 1 + r.below(large ? 300_000 : 3000)
          const place = large ? 40 * MIB + (index / 1600) * 300_001 : (index >> 3) * 3001
          const entry = { place: Math.floor(place), length, bytes: 0, whole: false }
          written.push(entry)
          const bytes = Buffer.alloc(length, 1 + (index % 250))
          return dest
            .writeAt(bytes, entry.place, { ...limits(), datasync: index % 800 === 2 })
            .then(
              (done) => {
                entry.bytes = done
                entry.whole = true
              },
              (error: Caught) => {
                entry.bytes = error.bytesWritten as number
                throw error
              },
            )
        }
        case 3:
          return queue.sleep(r.below(40), limits())
        case 4:
          return queue.nop(limits())
        case 5:
          return index % 40 === 5
            ? queue.submit(
                [
                  op.nop(),
                  op.timeout(r.below(20)),
                  op.read(source, Buffer.alloc(40), from),
                  op.nop(),
                ],
                {
                  link: (['none', 'soft', 'hard'] as const)[r.below(3)] as 'none',
                  throwOnError: true,
                  ...limits(),
                },
              )
            : queue.nop(limits())
        case 6:
          return index % 80 === 6
            ? source.readMany(
                Float64Array.from({ length: 50 }, () => r.below(MIB)),
                16,
                Buffer.alloc(800),
                limits(),
              )
            : source.bytesAt(from, 100, limits())
        default:
          return index % 200 === 7
            ? queue.commit(dest, limits())
            : queue.nops(1 + r.below(50), limits())
      }
    }
    const works: Promise<void>[] = []
    const allows = /ECANCELED/
    for (let index = 0; index < 100_000; index++) {
      count.begun++
      works.push(track(String(index), one(index)))
      if (index % 50 === 49) {
        for (const controller of controllers) {
          if (r.below(3) > 0) continue
          controller.abort()
          controllers.delete(controller)
        }
      }
      if (index % 500 === 499) {
        if (r.below(2) === 0) fs.writeSync(stream.fd, small.subarray(0, 8 * r.below(20)))
        if (r.below(4) === 0) queue.flush()
        if (r.below(3) === 0) await queue.nop()
        if (r.below(6) === 0) await setTimeout(1)
      }
    }
    for (const controller of controllers) controller.abort()
    await Promise.all(works)
    t.is(count.done + count.aborted + count.late, count.begun - wrong.length)
    // A chain that was cut short says ECANCELED behind what was aborted.
    t.deepEqual(wrong.filter((what) => !allows.test(what)).slice(0, 5), [])
    t.true(count.done > 10_000 && count.aborted > 10_000 && count.late > 100, JSON.stringify(count))
    const bytes = fs.readFileSync(at)
    const lost: string[] = []
    written.sort((a, b) => a.place - b.place)
    for (const [i, { place, length, bytes: told, whole }] of written.entries()) {
      if (whole && told !== length) lost.push(`${place}: ${told} of ${length}`)
      const end = Math.min(place + length, written[i + 1]?.place ?? Infinity)
      for (let byte = place; byte < end; byte++) {
        const there = (bytes[byte] ?? 0) !== 0
        if (there !== byte < place + told) {
          lost.push(`byte ${byte - place} of ${length} at ${place}, ${told} told`)
          break
        }
      }
    }
    t.deepEqual(lost.slice(0, 5), [])
    // The fdatasync of commits that nobody waits for any more may still run: a close waits for it.
    await dest.close()
    assertIdle(t, queue)
  },
)

// ---- whose record it is ------------------------------------------------------------------------------

/** A queue whose bounce memory two reads of a FIFO hold, and that FIFO. */
async function exhausted(t: ExecutionContext): Promise<{ queue: Queue; pipe: File }> {
  const queue = ring(t, { bounceBytes: 2 * MIB, inline: { smallBytes: 4 * MIB } })
  const pipe = await queue.open(fifo(t), 'r+')
  return { queue, pipe }
}

/** Gives a byte to each of the reads: the next when one has settled, or it could get both. */
async function oneByOne(pipe: File, reads: Promise<number>[]): Promise<number[]> {
  let settled = 0
  for (const read of reads) void read.then(() => settled++)
  for (let given = 1; given <= reads.length; given++) {
    fs.writeSync(pipe.fd, 'x')
    while (settled < given) await setTimeout(1)
  }
  return Promise.all(reads)
}

test('an abort of a chain whose first member is over reaches the rest of it, and nobody who waits', async (t) => {
  const { queue, pipe } = await exhausted(t)
  const held = [pipe.readAt(Buffer.alloc(MIB), 0), pipe.readAt(Buffer.alloc(MIB), 0)]
  const controller = new AbortController()
  const { signal } = controller
  const chain = queue.submit([op.nop(), op.timeout(50_000)], { link: 'soft', signal })
  // The nop of the chain is over then, and nobody else: the first that waits gets its record.
  while (queue.stats().pending === 4) await setTimeout(1)
  const waiting = [1, 2, 3].map(() => pipe.readAt(Buffer.alloc(MIB), 0))
  t.is(queue.stats().waiting, 3)
  controller.abort()
  t.is(queue.stats().waiting, 3)
  t.deepEqual(
    (await chain).map((result) => (result instanceof Error ? result.name : result)),
    [0, 'AbortError'],
  )
  t.deepEqual(await oneByOne(pipe, [...held, ...waiting]), [1, 1, 1, 1, 1])
  assertIdle(t, queue)
})

test('a transfer that is aborted between two pieces does not wait for memory any more', async (t) => {
  const { queue, pipe } = await exhausted(t)
  const file = await queue.open(scratch(t, pattern(2 * MIB)))
  // It knows from then on what kind of file this is.
  await file.readAt(Buffer.alloc(8192), 2 * MIB - 4096)
  const held = pipe.readAt(Buffer.alloc(MIB), 0)
  const controller = new AbortController()
  const { signal } = controller
  const aborted = rejection(file.readAt(Buffer.alloc(2 * MIB), 0, { signal }))
  const waiting = [1, 2].map(() => pipe.readAt(Buffer.alloc(MIB), 0))
  t.is(queue.stats().waiting, 2)
  // Its first piece is complete in the kernel, and not yet told of; an enter copies 1 MiB at most.
  for (let i = 0; i < 3; i++) queue.flush()
  controller.abort()
  // Nothing gives memory back before it has settled.
  t.is((await aborted).name, 'AbortError')
  t.deepEqual(await oneByOne(pipe, [held, ...waiting]), [1, 1, 1])
  assertIdle(t, queue)
})

for (const [kind, memory] of [
  ['plain memory', () => Buffer.alloc(100)],
  ['memory from alloc', (queue: Queue) => queue.alloc(100)],
] as const) {
  test(`what a read took from a FIFO is told of, also when it is aborted before that is known to be all: ${kind}`, async (t) => {
    const queue = ring(t)
    const name = fifo(t)
    for (let round = 0; round < 50; round++) {
      // Of each file the first short read asks what kind of file it is.
      const file = await queue.open(name, 'r+')
      await file.writeAt(Buffer.from('hello'), 0)
      const controller = new AbortController()
      const target = memory(queue)
      const read = file.readAt(target, 0, { signal: controller.signal }).catch(({ name }) => name)
      for (let turns = round % 5; turns > 0; turns--) await queue.nop()
      controller.abort()
      const came = await read
      if (came === 'AbortError') t.is(await file.readAt(target, 0), 5, 'they are still there')
      else t.is(came, 5)
      t.is(Buffer.from(target.subarray(0, 5)).toString(), 'hello')
      await file.close()
    }
  })
}
