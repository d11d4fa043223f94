// Everything that a queue has is taken at once: its slots, its memory for copies, what alloc may have.
// Nothing stands still for ever, and everything gets its own result once something is let go.

import fs from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import test from 'ava'
import type { File } from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, ring, thrown } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'

const MIB = 1 << 20
/** Slots of a queue. `src/slots.ts`. */
const SLOTS = 65_536
/** Those of them that are set free one by one. */
const FEW = 1000

test.serial(
  'with all slots, all memory for copies and all of alloc taken nothing is lost, and all goes on when there is room',
  async (t) => {
    const queue = ring(
      t,
      { entries: 8, cqEntries: 16, bounceBytes: 2 * MIB, arena: { maxBytes: 2 * MIB } },
      120_000,
    )
    const pipes = [fifo(t), fifo(t), fifo(t)].map((name) => queue.open(name, 'r+'))
    const [wide, few, many] = (await Promise.all(pipes)) as [File, File, File]
    const content = pattern(4 * MIB)
    const source = await queue.open(scratch(t, content))
    const path = scratch(t)
    const target = await queue.open(path, 'w')
    const mine = queue.alloc(2 * MIB)

    // All of alloc; then two reads with all memory for copies; then all slots.
    t.is(thrown(() => queue.alloc(1)).code, 'ERR_URING_NO_MEMORY')
    const copies = Array.from({ length: 2 }, () => wide.readAt(Buffer.alloc(MIB), 0))
    // Each byte wakes all that wait on its FIFO: those that get theirs one by one are few.
    const reads = Array.from({ length: SLOTS }, (_, i) =>
      (i < FEW ? few : many).readAt(mine.subarray(i, i + 1), 0),
    )
    // More than slots come free one by one: those that wait for memory must not keep them.
    const first = Array.from({ length: 2 * FEW }, (_, i) => source.readAt(Buffer.alloc(1000), i))
    // Everything there is waits for one of them, or for two of them.
    const part = (i: number) => content.subarray(i * 100_000, (i + 1) * 100_000)
    const own = Buffer.alloc(4 * MIB)
    const waiting: Promise<unknown>[] = Array.from({ length: 20 }, (_, i) => [
      target.writeAt(part(i), i * 100_000, { datasync: i % 3 === 0 }),
      source.bytesAt(i * 100_000, 300_000).then((bytes) => {
        t.is(bytes.compare(content, i * 100_000, i * 100_000 + 300_000), 0)
      }),
      source.readAt(own.subarray(i * 100_000, (i + 1) * 100_000), i * 100_000),
      queue.open(path).then((file: File) => file.close()),
      queue.nop(),
      queue.sleep(1),
      source.stat(),
      target.datasync(),
    ]).flat()
    const late = Promise.allSettled(waiting)
    t.true(await isPending(late, 100))
    t.true(queue.stats().waiting >= waiting.length - 20, JSON.stringify(queue.stats()))
    t.is(queue.stats().memory.bounce.usedBytes, 2 * MIB)
    t.is(thrown(() => queue.alloc(1)).code, 'ERR_URING_NO_MEMORY')

    // A slot at a time: what needs no memory for copies, or has it in results, goes through.
    let [done, sent] = [0, 0]
    for (const promise of waiting) void promise.then(() => done++)
    for (; sent < FEW && done < 120; sent++) {
      fs.writeSync(few.fd, 'a')
      await after(1)
    }
    // There are slots enough by now; workers may need longer.
    for (const until = Date.now() + 60_000; done < 120 && Date.now() < until; ) await after(1)
    t.is(done, 120, 'six of each eight')
    t.true(await isPending(late), 'the copies still wait')
    // Memory for copies comes back in two parts.
    let ended = 0
    for (const copy of copies) void copy.then(() => ended++)
    for (const left of [1, 0]) {
      fs.writeSync(wide.fd, 'b')
      while (copies.length - ended > left) await after(1)
    }
    t.deepEqual(await Promise.all(copies), [1, 1])
    t.true((await Promise.all(first)).every((count) => count === 1000))
    for (const outcome of await late) {
      t.is(outcome.status, 'fulfilled', String((outcome as PromiseRejectedResult).reason))
    }
    fs.writeSync(few.fd, Buffer.alloc(FEW - sent, 'a'))
    for (let left = SLOTS - FEW; left > 0; ) {
      const { completed } = queue.stats()
      // A FIFO holds 64 KiB: more would wait for this very thread.
      const bytes = fs.writeSync(many.fd, Buffer.alloc(Math.min(60_000, left), 'a'))
      while (queue.stats().completed < completed + bytes) await after(1)
      left -= bytes
    }
    t.true((await Promise.all(reads)).every((count) => count === 1))
    t.true(mine.subarray(0, SLOTS).every((byte) => byte === 0x61))
    t.is(fs.readFileSync(path).compare(content.subarray(0, 2_000_000)), 0)
    t.is(own.compare(content, 0, 2_000_000, 0, 2_000_000), 0)
    queue.free(mine)
    t.is(queue.alloc(2 * MIB).length, 2 * MIB)
    assertIdle(t, queue)
  },
)
