// More than there is room for: operations than slots, than the rings have entries, than there is
// memory for copies. It waits its turn, nothing is lost or swapped, and nothing waits for ever.

import { constants } from 'node:buffer'
import fs from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { type File, Queue, type QueueOptions } from 'node-uring'
import { FUSE, fuse } from './helpers/fuse.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const KIB = 1024
const MIB = 1024 * KIB
/** Slots of a queue. `src/slots.ts`. */
const SLOTS = 65_536

test.serial('30,000 writes of 8 bytes at once leave exactly their bytes', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  const count = 30_000
  const expected = Buffer.alloc(count * 8)
  for (let i = 0; i < count; i++) expected.writeDoubleLE(i + 0.5, i * 8)
  const arena = queue.alloc(expected.length)
  arena.set(expected)
  // Each write has its place, and the places come in no order.
  const writes = Array.from({ length: count }, (_, n) => {
    const i = (n * 7919) % count
    const source = i % 2 === 0 ? arena : expected
    return file.writeAt(source.subarray(i * 8, i * 8 + 8), i * 8)
  })
  const counts = await Promise.all(writes)
  t.true(counts.every((written) => written === 8))
  t.is(fs.readFileSync(at).compare(expected), 0)
  assertIdle(t, queue)
})

test.serial('100,000 reads at once each bring their own bytes', async (t) => {
  const queue = ring(t)
  const count = 100_000
  const content = Buffer.alloc(count * 8)
  for (let i = 0; i < count; i++) content.writeDoubleLE(i + 0.25, i * 8)
  const file = await queue.open(scratch(t, content))
  const arena = queue.alloc(count * 8)
  const plain = Buffer.alloc(count * 8)
  const reads = Array.from({ length: count }, (_, i) => {
    const target = i % 2 === 0 ? arena : plain
    return file.readAt(target.subarray(i * 8, i * 8 + 8), i * 8)
  })
  t.true(queue.stats().waiting > 0, 'there are more than slots')
  const counts = await Promise.all(reads)
  t.true(counts.every((got) => got === 8))
  const bad = counts.findIndex(
    (_, i) => (i % 2 === 0 ? arena : plain).readDoubleLE(i * 8) !== i + 0.25,
  )
  t.is(bad, -1, 'the first read that brought what is not its own')
  assertIdle(t, queue)
})

/** Thousands of operations of every kind, all begun at once; each is checked. */
async function crowd(queue: Queue, name: string, count: number, seed: number): Promise<string[]> {
  const [half, length] = [count * 64, 64]
  const content = pattern(half, seed)
  fs.writeFileSync(name, Buffer.concat([content, Buffer.alloc(half)]))
  const file = await queue.open(name, 'r+')
  const r = random(seed)
  const wrong: string[] = []
  const check = (good: boolean, what: string): void => {
    if (!good) wrong.push(what)
  }
  const one = async (i: number): Promise<void> => {
    const from = i * length
    const slice = content.subarray(from, from + length)
    const buffer = r.below(2) === 0 ? Buffer.alloc(length) : queue.alloc(length)
    switch (r.below(8)) {
      case 0:
        return queue.nop()
      case 1:
        return queue.sleep(r.below(3))
      case 2:
        return check((await file.stat()).size === 2 * half, `stat ${i}`)
      case 3:
        return check((await file.bytesAt(from, length)).equals(slice), `bytesAt ${i}`)
      case 4: {
        const other = await queue.open(name)
        return other.close()
      }
      case 5:
        buffer.set(slice)
        return check((await file.writeAt(buffer, half + from)) === length, `write ${i}`)
      default:
        check((await file.readAt(buffer, from)) === length, `read ${i}`)
        return check(buffer.equals(slice), `bytes of read ${i}`)
    }
  }
  await Promise.all(Array.from({ length: count }, (_, i) => one(i)))
  await file.close()
  return wrong
}

const TINY: Readonly<Record<string, QueueOptions>> = {
  'of 1 entry': { entries: 1, cqEntries: 1 },
  'of 2 entries': { entries: 2, cqEntries: 2 },
  'of 8 entries': { entries: 8, cqEntries: 8 },
  'of 8 entries that completes them all at once': { entries: 8, cqEntries: 65_536 },
  'of 1024 entries': { entries: 1024, cqEntries: 1024 },
  'with cooperative task running': { entries: 8, cqEntries: 8, setup: { taskRun: 'cooperative' } },
  'with neither task running': { entries: 8, cqEntries: 8, setup: { taskRun: 'interrupt' } },
  'without registration': { entries: 8, cqEntries: 8, register: false },
}

for (const [i, [what, options]] of Object.entries(TINY).entries()) {
  test.serial(`5,000 operations at once go through a ring ${what}`, async (t) => {
    const queue = ring(t, options)
    t.deepEqual(await crowd(queue, scratch(t), 5000, 1000 + i), [])
    assertIdle(t, queue)
  })
}

for (const taskRun of ['defer', 'cooperative', 'interrupt'] as const) {
  test.serial(`a completion queue that overflows loses nothing (${taskRun})`, async (t) => {
    const queue = ring(t, { entries: 64, cqEntries: 64, setup: { taskRun } })
    const file = await queue.open(scratch(t, pattern(8000)))
    const arena = queue.alloc(8000)
    const nops: Promise<void>[] = []
    const reads = Array.from({ length: 8000 }, (_, i) => {
      nops.push(queue.nop())
      const reading = file.readAt(arena.subarray(i, i + 1), i)
      // Submitted, but not collected: the completions have to stay with the kernel.
      if (i % 32 === 31) queue.flush()
      return reading
    })
    const sleeps = Array.from({ length: 8000 }, () => queue.sleep(20))
    const counts = await Promise.all(reads)
    t.true(counts.every((got) => got === 1))
    t.true(arena.equals(pattern(8000)))
    await Promise.all([...nops, ...sleeps])
    t.true(queue.stats().overflows > 0, 'it did overflow')
    assertIdle(t, queue)
  })
}

/** Reads of one byte each of an empty FIFO, and how to end them. */
async function endlessReads(
  t: ExecutionContext,
  queue: Queue,
  count: number,
): Promise<{ end: () => Promise<void> }> {
  const file = await queue.open(fifo(t), 'r+')
  const arena = queue.alloc(count)
  const reads = Array.from({ length: count }, (_, i) => file.readAt(arena.subarray(i, i + 1), 0))
  return {
    end: async () => {
      const { completed } = queue.stats()
      for (let sent = 0; sent < count; ) {
        // A FIFO holds 64 KiB: write as much again when it was read.
        sent += fs.writeSync(file.fd, Buffer.alloc(Math.min(60_000, count - sent), 0x77))
        while (queue.stats().completed < completed + sent) await setTimeout(1)
      }
      t.true((await Promise.all(reads)).every((got) => got === 1))
      t.true(arena.every((byte) => byte === 0x77))
    },
  }
}

test.serial('operations past the slots wait, and start in their order', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const beyond = 2000
  const { end } = await endlessReads(t, queue, SLOTS - 2)
  // One slot is free before the other, and the chain needs two. What comes behind it must not
  // take the first, nor overtake the chain while it waits.
  const sleeps = [queue.sleep(10), queue.sleep(40)]
  const order: string[] = []
  const chain = file
    .writeAt(Buffer.from('chain'), 0, { datasync: true })
    .then(() => order.push('chain'))
  const nops = Array.from({ length: beyond }, () => queue.nop().then(() => order.push('nop')))
  t.is(queue.stats().waiting, beyond + 1)
  await Promise.all([...sleeps, chain, ...nops])
  t.is(order.indexOf('chain'), 0, 'nops that came before it')
  t.is(order.length, beyond + 1)
  t.is(queue.stats().waiting, 0)
  await end()
  assertIdle(t, queue)
})

test.serial('70,000 operations that all wait for something end when it comes', async (t) => {
  const queue = ring(t)
  const { end } = await endlessReads(t, queue, 70_000)
  t.is(queue.stats().pending, 70_000)
  t.is(queue.stats().waiting, 70_000 - SLOTS)
  await end()
  assertIdle(t, queue)
})

test.serial('a transfer that has its slot, and a close, wait for no slot', async (t) => {
  const queue = ring(t)
  const [file, other] = [await queue.open(scratch(t), 'w'), await queue.open(scratch(t), 'w')]
  const { end } = await endlessReads(t, queue, SLOTS - 1)
  // It has the last, and pieces that are still to be staged when others wait for a slot.
  const written = file.writeAt(pattern(3 * MIB), 0)
  const nop = queue.nop()
  t.is(queue.stats().waiting, 1)
  t.is(await written, 3 * MIB)
  await nop
  const abort = new AbortController()
  const sleep = rejection(queue.sleep(120_000, { signal: abort.signal }))
  const waiting = queue.nop()
  t.is(queue.stats().waiting, 1)
  // Nothing gives a slot back before it is over.
  await other.close()
  t.is(queue.stats().waiting, 1)
  await end()
  await waiting
  abort.abort()
  await sleep
  assertIdle(t, queue)
})

// ---- memory for copies --------------------------------------------------------------------------

/** Transfers of plain memory, of two sizes, with all else between them. */
async function copies(queue: Queue, file: File, content: Buffer, seed: number): Promise<string[]> {
  const r = random(seed)
  const wrong: string[] = []
  const half = content.length
  const one = async (i: number): Promise<void> => {
    const length = i % 5 === 0 ? MIB : 64 * KIB
    const from = r.below(half - length)
    const kind = i % 4
    if (kind === 3) {
      const mine = queue.alloc(4096)
      const got = await file.readAt(mine, from)
      await queue.nop()
      if (got !== 4096 || !mine.equals(content.subarray(from, from + 4096))) wrong.push(`${i}`)
    } else if (kind === 2) {
      // Every writer has a place of its own behind what is read.
      const place = half + i * MIB
      const source = content.subarray(from, from + length)
      const written = await file.writeAt(source, place, { datasync: i % 8 === 2 })
      const back = Buffer.alloc(length)
      const got = await file.readAt(back, place)
      if (written !== length || got !== length || !back.equals(source)) wrong.push(`${i}`)
    } else {
      const target = Buffer.alloc(length)
      const got = await file.readAt(target, from)
      if (got !== length || !target.equals(content.subarray(from, from + length)))
        wrong.push(`${i}`)
    }
  }
  await Promise.all(Array.from({ length: 200 }, (_, i) => one(i)))
  return wrong
}

for (const [what, options] of Object.entries<QueueOptions>({
  'in 2 MiB': { bounceBytes: 2 * MIB },
  'in 2 MiB, with slabs of 64 KiB': { bounceBytes: 2 * MIB, arena: { slabBytes: 64 * KIB } },
  'in 3 MiB and a ring of 2 entries': { bounceBytes: 3 * MIB, entries: 2, cqEntries: 2 },
})) {
  test.serial(
    `hundreds of copied transfers of 64 KiB and 1 MiB share memory ${what}`,
    async (t) => {
      const queue = ring(t, options, 120_000)
      const content = pattern(4 * MIB)
      const file = await queue.open(scratch(t, content), 'r+')
      let mappedBytes = 0
      const watch = setInterval(() => {
        mappedBytes = Math.max(mappedBytes, queue.stats().memory.bounce.mappedBytes)
      }, 1)
      const wrong = await copies(queue, file, content, 77)
      clearInterval(watch)
      t.deepEqual(wrong, [])
      t.true(mappedBytes <= (options.bounceBytes as number), `${mappedBytes} bytes were mapped`)
      assertIdle(t, queue)
    },
  )
}

test.serial(
  'a copied transfer longer than all memory for copies goes through it in pieces',
  async (t) => {
    const queue = ring(t, { bounceBytes: 2 * MIB })
    const at = scratch(t)
    const file = await queue.open(at, 'w+')
    const content = pattern(9 * MIB + 1)
    t.is(await file.writeAt(content, 0), content.length)
    const targets = [Buffer.alloc(content.length), Buffer.alloc(content.length)]
    await Promise.all(targets.map((target) => file.readAt(target, 0)))
    t.true(targets.every((target) => target.equals(content)))
    assertIdle(t, queue)
  },
)

/** Has each of the reads bring the bytes. One at a time: two writes that meet in the FIFO are one read. */
async function feed(
  stream: File,
  bytes: Uint8Array,
  reads: readonly Promise<number>[],
): Promise<void> {
  const left = new Set(reads)
  while (left.size > 0) {
    await stream.writeAt(bytes, 0)
    // In an array: a promise that resolves with a promise would resolve with what that resolves with.
    const [done] = await Promise.race([...left].map(async (read) => [read, await read] as const))
    left.delete(done)
  }
}

test.serial(
  'who needs little memory for copies does not overtake who waits for much',
  async (t) => {
    const queue = ring(t, { bounceBytes: 2 * MIB, arena: { slabBytes: 64 * KIB } })
    const stream = await queue.open(fifo(t), 'r+')
    const file = await queue.open(scratch(t, pattern(1000)))
    const reads = [MIB, 512 * KIB, MIB].map((bytes) => stream.readAt(Buffer.alloc(bytes), 0))
    t.is(queue.stats().waiting, 1)
    // There is room for it, and there would always be for one more.
    const little = file.readAt(Buffer.alloc(1000), 0)
    t.is(queue.stats().waiting, 2)
    t.true(await isPending(little))
    await feed(stream, queue.alloc(10), reads)
    t.is(await little, 1000)
    t.deepEqual(await Promise.all(reads), [10, 10, 10])
    assertIdle(t, queue)
  },
)

needs(test.serial, FUSE)(
  'a transfer that is cancelled between two pieces waits for no memory',
  async (t) => {
    const mounted = await fuse(t, 'sync', { file: { held: true } })
    const queue = ring(t, { bounceBytes: 2 * MIB })
    const stream = await queue.open(fifo(t), 'r+')
    const file = await queue.open(mounted.at('file'), 'r+')
    const abort = new AbortController()
    const written = rejection(file.writeAt(pattern(2 * MIB), 0, { signal: abort.signal }))
    await mounted.held(1)
    const reads = [MIB, MIB, MIB].map((bytes) => stream.readAt(Buffer.alloc(bytes), 0))
    // One of two gets the memory of its first piece.
    t.is(queue.stats().waiting, 2)
    abort.abort()
    mounted.release()
    const { code, bytesWritten } = await written
    t.is(code, 'ABORT_ERR')
    t.is(bytesWritten, fs.statSync(mounted.behind('file')).size)
    t.is(queue.stats().waiting, 1)
    const ended = reads.map(rejection)
    await stream.close({ timeoutMs: 0 })
    await Promise.all(ended)
    assertIdle(t, queue)
  },
)

test.serial('what needs no memory for copies does not wait behind what waits for it', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  const content = pattern(1000)
  const file = await queue.open(scratch(t, content))
  // Two have all the memory there is, for as long as nobody writes; the third waits for it.
  const targets = Array.from({ length: 3 }, () => Buffer.alloc(MIB))
  const reads = targets.map((target) => stream.readAt(target, 0))
  const settled = Promise.allSettled(reads)
  t.is(queue.stats().waiting, 1)
  const mine = queue.alloc(1000)
  const others = Promise.all([queue.nop(), file.readAt(mine, 0), file.stat()]).then(() => true)
  // Nobody writes before they are over: waiting, they would never be.
  t.true(await Promise.race([others, setTimeout(60_000, false, { ref: false })]), 'they waited')
  t.is(queue.stats().waiting, 1)
  t.true(mine.equals(content))
  // Memory is free again once there is something to read.
  await feed(stream, mine, reads)
  await settled
  t.deepEqual(await Promise.all(reads), [1000, 1000, 1000])
  assertIdle(t, queue)
})

test.serial(
  'closing ends what waits for memory or for a slot, and everything settles',
  async (t) => {
    for (const options of [{ bounceBytes: 2 * MIB }, { entries: 1, cqEntries: 1 }]) {
      const queue = ring(t, options)
      const file = await queue.open(fifo(t), 'r+')
      // Reads that nothing will ever end.
      const reads = Array.from({ length: 100 }, () => file.readAt(Buffer.alloc(100_000), 0))
      const nops = Array.from({ length: 10 }, () => queue.nop())
      const outcomes = Promise.allSettled([...reads, ...nops])
      t.true(await isPending(Promise.race(reads), 20))
      await queue.close({ timeoutMs: 0 })
      for (const [i, outcome] of (await outcomes).slice(0, 100).entries()) {
        t.is(outcome.status, 'rejected', `read ${i}`)
      }
      t.is(queue.stats().pending, 0)
    }
  },
)

// ---- memory for users ---------------------------------------------------------------------------

test('alloc past the limit throws, and what is freed makes room again', (t) => {
  const queue = ring(t, { arena: { maxBytes: 4 * MIB } })
  for (const length of [4096, 64 * KIB, MIB, 4 * MIB]) {
    const held: Buffer[] = []
    let error: ReturnType<typeof thrown> | undefined
    while (error === undefined && held.length <= 1024) {
      try {
        held.push(queue.alloc(length))
      } catch (caught) {
        error = caught as ReturnType<typeof thrown>
      }
    }
    t.is(held.length, (4 * MIB) / length, `of ${length} bytes`)
    t.is(error?.code, 'ERR_URING_NO_MEMORY')
    t.like(error, { wantedBytes: length, limitBytes: 4 * MIB })
    queue.free(held.pop() as Buffer)
    held.push(queue.alloc(length))
    for (const buffer of held) queue.free(buffer)
    t.is(queue.stats().memory.alloc.usedBytes, 0)
  }
  t.is(thrown(() => queue.alloc(4 * MIB + 1)).code, 'ERR_URING_NO_MEMORY')
  t.is(thrown(() => queue.alloc(constants.MAX_LENGTH)).code, 'ERR_URING_NO_MEMORY')
})

test('memory that users hold takes none from copies and results', async (t) => {
  const queue = ring(t, { arena: { maxBytes: 2 * MIB } })
  const content = pattern(3 * MIB)
  const file = await queue.open(scratch(t, content))
  const mine = queue.alloc(2 * MIB)
  t.is(thrown(() => queue.alloc(1)).code, 'ERR_URING_NO_MEMORY')
  const plain = Buffer.alloc(3 * MIB)
  t.is(await file.readAt(plain, 0), 3 * MIB)
  t.true(plain.equals(content))
  t.true((await file.bytesAt(0, 3 * MIB)).equals(content))
  t.is(mine.length, 2 * MIB)
})

test('results of bytesAt past their limit are copied instead, and right', async (t) => {
  const queue = ring(t, { resultBytes: 2 * MIB })
  const content = pattern(4 * MIB)
  const file = await queue.open(scratch(t, content))
  const results = await Promise.all(
    Array.from({ length: 20 }, (_, i) => file.bytesAt(i * 1000, MIB)),
  )
  for (const [i, bytes] of results.entries()) {
    t.true(bytes.equals(content.subarray(i * 1000, i * 1000 + MIB)), `result ${i}`)
  }
  t.true(queue.stats().memory.result.usedBytes <= 2 * MIB)
  assertIdle(t, queue)
})

test('a length of bytesAt that no memory can hold is refused, and a long one at the end is not', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(1000)))
  t.is((await file.bytesAt(10, 3 * 2 ** 30)).length, 990)
  const error = await rejection((async () => file.bytesAt(0, Number.MAX_SAFE_INTEGER))())
  t.true(error instanceof RangeError || error.code === 'ERR_URING_NO_MEMORY', error.message)
  assertIdle(t, queue)
})

test.serial('two queues at once keep their operations apart', async (t) => {
  const [one, other] = [ring(t, { entries: 4 }), ring(t)]
  const wrong = await Promise.all([
    crowd(one, scratch(t), 3000, 5),
    crowd(other, scratch(t), 3000, 6),
  ])
  t.deepEqual(wrong, [[], []])
  assertIdle(t, one)
  assertIdle(t, other)
})

test.serial('a hundred queues are made, used and closed one after the other', async (t) => {
  t.timeout(100_000)
  const name = scratch(t, pattern(1000))
  for (let i = 0; i < 100; i++) {
    const queue = new Queue({ entries: 16 })
    const file = await queue.open(name)
    t.is((await file.bytesAt(i, 10)).compare(pattern(1000).subarray(i, i + 10)), 0)
    await queue.close()
  }
})

test.serial(
  'a slot that a first short read of a FIFO leaves goes to whoever waits for one',
  async (t) => {
    const queue = ring(t)
    const stream = await queue.open(fifo(t), 'r+')
    const memory = queue.alloc(4 * SLOTS)
    const signal = new AbortController()
    const reads = Array.from({ length: SLOTS }, (_, i) =>
      stream.readAt(memory.subarray(4 * i, 4 * i + 4), 0, { signal: signal.signal }),
    )
    const settled = Promise.allSettled(reads)
    const waits = queue.nop()
    t.true(await isPending(waits))
    fs.writeSync(stream.fd, 'x')
    await waits
    signal.abort()
    t.is((await settled).filter(({ status }) => status === 'fulfilled').length, 1)
    assertIdle(t, queue)
  },
)
