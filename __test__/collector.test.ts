// What the garbage collector may and may not take: programs in a Node of their own, with --expose-gc.

import { childJson, fixture, type KeptResults, runChild } from './helpers/child.js'
import { fifo, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

/** Begins every program: a collection that has run its finalizers, and a way to fail. */
const PROLOGUE = `
import assert from 'node:assert'
import fs from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import { op, Queue } from 'node-uring'
const queue = new Queue()
const used = () => queue.stats().memory.alloc.usedBytes
async function collect() {
  for (let i = 0; i < 100; i++) { gc(); await after(5) }
}
async function collected(until) {
  for (const end = performance.now() + 20_000; !until() && performance.now() < end; ) { gc(); await after(5) }
}
`

/** Programs that must end well, by what they show. */
const PROGRAMS: Readonly<Record<string, string>> = {
  'memory from alloc that nobody refers to goes back': `
    for (let i = 0; i < 1000; i++) queue.alloc(65536).fill(1)
    assert(used() > 0)
    await collected(() => used() === 0)
    assert.equal(used(), 0)
    assert(queue.alloc(65536).every((byte) => byte === 0))`,
  'an operation that is kept keeps its files open': `
    const name = process.argv[1]
    const target = Buffer.alloc(1)
    const make = async () => op.read(await queue.open(name, 'r+'), target, 0)
    const made = await make()
    await collect()
    fs.writeFileSync(name, 'x')
    assert.deepEqual(await queue.submit([made]), [1])
    assert.equal(target.toString(), 'x')`,
  'a subarray alone keeps its memory, and only its own': `
    const kept = []
    const make = (i) => {
      const buffer = queue.alloc(4096).fill(i)
      if (i % 20 === 0) kept.push(i % 40 === 0 ? buffer.subarray(100, 200) : new DataView(buffer.buffer, 8, 8))
    }
    for (let i = 0; i < 200; i++) make(i)
    await collected(() => used() === 10 * 4096)
    assert.equal(used(), 10 * 4096)
    for (let i = 0; i < 400; i++) queue.alloc(4096).fill(255)
    for (const [n, view] of kept.entries()) {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
      assert(bytes.every((byte) => byte === n * 20))
    }`,
  'a read in flight keeps the memory that nobody else refers to': `
    const name = process.argv[1]
    const file = await queue.open(name, 'r+')
    const other = await queue.open('/dev/zero')
    let reading = file.readAt(queue.alloc(4096), 0)
    await collect()
    assert.equal(used(), 4096)
    // Whoever got the memory by mistake would be written to.
    const others = Array.from({ length: 100 }, () => queue.alloc(4096))
    fs.writeSync(file.fd, 'data')
    assert.equal(await reading, 4)
    assert(others.every((buffer) => buffer.every((byte) => byte === 0)))
    reading = undefined
    await collected(() => used() === 100 * 4096)
    assert.equal(used(), 100 * 4096)
    assert(others.length === 100)`,
  'reads in flight whose memory nobody refers to write into nobody else’s, round after round': `
    const file = await queue.open(process.argv[1], 'r+')
    for (let round = 0; round < 60; round++) {
      // What each brings is seen by its length alone: nobody keeps the buffers.
      const reads = []
      for (let i = 0; i < 8; i++) {
        reads.push(file.readAt(queue.alloc(4096).subarray(i, i + 4), 0))
        reads.push(file.readAt(new DataView(queue.alloc(8).buffer, 4), 0))
        reads.push(file.readAt(Buffer.allocUnsafeSlow(4), 0))
        reads.push(file.bytesAt(0, 4).then((bytes) => bytes.length))
      }
      if (round % 2 === 0) await queue.nop()
      gc()
      // Finalizers run when the event loop comes round.
      await after(0)
      const others = Array.from({ length: 40 }, () => queue.alloc(round % 3 === 0 ? 8 : 4096).fill(0xee))
      if (round % 4 === 0) gc()
      fs.writeSync(file.fd, Buffer.alloc(4 * reads.length, 1))
      assert((await Promise.all(reads)).every((count) => count === 4))
      assert(others.every((buffer) => buffer.every((byte) => byte === 0xee)), 'round ' + round)
      for (const buffer of others) queue.free(buffer)
    }
    await collected(() => used() === 0)
    assert.equal(used(), 0)`,
  'memory that is moved in flight and dropped is nobody else’s before the read is done': `
    const file = await queue.open(process.argv[1], 'r+')
    const { port1, port2 } = new MessageChannel()
    const ways = [
      (memory) => structuredClone(memory, { transfer: [memory] }),
      (memory) => port1.postMessage(memory, [memory]),
      (memory) => memory.transfer(),
      (memory) => memory.transfer(50),
      (memory) => queue.free(memory),
    ]
    const start = (way) => {
      const buffer = queue.alloc(4096)
      const reading = file.readAt(buffer, 0)
      queue.flush()
      // Not every Node can, and a buffer in flight is not freed.
      try { way(buffer.buffer) } catch {}
      return reading
    }
    for (let round = 0; round < 50; round++) {
      const reading = start(ways[round % ways.length])
      await after(0)
      gc()
      await after(0)
      const others = Array.from({ length: 20 }, () => queue.alloc(4096).fill(0xee))
      fs.writeSync(file.fd, 'data')
      assert.equal(await reading, 4)
      assert(others.every((buffer) => buffer.every((byte) => byte === 0xee)), 'round ' + round)
      for (const buffer of others) queue.free(buffer)
    }
    port1.close()
    await collected(() => used() === 0)
    assert.equal(used(), 0)`,
  'memory that is freed and then collected goes back once': `
    for (let i = 0; i < 500; i++) queue.free(queue.alloc(4096))
    const held = Array.from({ length: 500 }, () => queue.alloc(4096))
    await collect()
    assert.equal(used(), 500 * 4096)
    assert(held.every((buffer) => buffer.length === 4096))`,
  'results of bytesAt that nobody refers to go back': `
    const file = await queue.open('/dev/zero')
    for (let i = 0; i < 50; i++) await file.bytesAt(0, 1 << 20)
    await collected(() => queue.stats().memory.result.usedBytes === 0)
    assert.equal(queue.stats().memory.result.usedBytes, 0)`,
  'memory outlives its queue, and goes back when it is collected': `
    let other = new Queue()
    const kept = other.alloc(1 << 20).fill(3)
    const lost = new WeakRef(other)
    await other.close()
    other = undefined
    await collected(() => lost.deref() === undefined)
    assert(kept.every((byte) => byte === 3))
    kept.fill(4)`,
  'a million operations leave the heap as it was': `
    const file = await queue.open('/dev/zero')
    const run = async (count) => {
      let left = count
      await Promise.all(Array.from({ length: 64 }, async (_, i) => {
        const mine = i % 2 === 0 ? queue.alloc(64) : Buffer.alloc(64)
        while (left-- > 0) await (left % 4 === 0 ? file.readAt(mine, 0) : queue.nop())
      }))
    }
    const heap = async () => {
      await collect()
      return process.memoryUsage().heapUsed
    }
    await run(100000)
    // What V8 compiles, or throws away, it does when it has the time; what is lost is lost in each round.
    const grown = []
    for (let last = await heap(); grown.length < 5; ) {
      await run(200000)
      const now = await heap()
      grown.push(now - last)
      last = now
    }
    assert(grown.sort((a, b) => a - b)[2] < 16384, grown + ' bytes more')`,
  'a File that nobody closed is closed when it is collected, with a warning': `
    let warned = 0
    process.on('warning', (warning) => { if (warning.code === 'URING_FILE_NOT_CLOSED') warned++ })
    await queue.open('/dev/zero')
    await collected(() => queue.stats().files === 0)
    assert.equal(queue.stats().files, 0)
    assert.equal(warned, 1)`,
}

for (const [title, program] of Object.entries(PROGRAMS)) {
  test.serial(title, async (t) => {
    t.timeout(100_000)
    const { code, signal, stderr } = await runChild(
      `${PROLOGUE}{${program}}\nawait queue.close()`,
      {
        node: ['--expose-gc'],
        args: [fifo(t)],
        timeoutMs: 90_000,
      },
    )
    t.deepEqual({ code, signal }, { code: 0, signal: null }, stderr)
  })
}

test.serial(
  '1,000 results of 1 MiB, kept in parts, take nothing that other operations need',
  async (t) => {
    t.timeout(100_000)
    const args = ['2', scratch(t)]
    const options = { node: ['--expose-gc'], args, timeoutMs: 90_000 }
    const told = await childJson<KeptResults>(fixture('kept-results.mjs'), options)
    t.is(told.results, 1000)
    t.true(told.givenBytes > 0 && told.copiedBytes > 0, JSON.stringify(told))
  },
)
