// Who owns a buffer: what alloc gives, what free takes back, and what becomes of an operation whose
// buffer goes away under it. All the ways to move one: moves.test.ts. The garbage collector:
// collector.test.ts.

import fs from 'node:fs'
import type { File, Queue } from 'node-uring'
import { Resizable } from './helpers/guards.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

/** Moves the memory of an ArrayBuffer that V8 made to another. */
function moved(buffer: ArrayBufferLike): ArrayBuffer {
  return structuredClone(buffer as ArrayBuffer, { transfer: [buffer as ArrayBuffer] })
}

/** A FIFO that the queue has open in both directions. */
function stream(t: ExecutionContext, queue: Queue): Promise<File> {
  return queue.open(fifo(t), 'r+')
}

// ---- alloc --------------------------------------------------------------------------------------

test('alloc gives zeroed Buffers of exactly the length, each with an ArrayBuffer of its own', (t) => {
  const queue = ring(t)
  for (const length of [0, 1, 100, 4095, 4096, 4097, 65_536, 100_000, MIB, 5 * MIB + 1]) {
    for (let round = 0; round < 3; round++) {
      const [one, other] = [queue.alloc(length), queue.alloc(length)]
      for (const buffer of [one, other]) {
        t.true(Buffer.isBuffer(buffer))
        t.is(buffer.length, length)
        t.is(buffer.byteOffset, 0)
        t.is(buffer.buffer.byteLength, length)
        t.true(
          buffer.every((byte) => byte === 0),
          `${length} bytes, the ${round + 1}. time`,
        )
      }
      t.not(one.buffer, other.buffer)
      one.fill(1)
      t.true(
        other.every((byte) => byte === 0),
        'what is written to one is not in another',
      )
      other.fill(2)
      t.true(one.every((byte) => byte === 1))
      if (length > 0) {
        queue.free(one)
        queue.free(other)
      }
    }
  }
  t.is(queue.stats().memory.alloc.usedBytes, 0)
})

test('memory that was read into is zeroed before somebody else gets it', async (t) => {
  const queue = ring(t, { arena: { maxBytes: 2 * MIB } })
  const file = await queue.open(scratch(t, pattern(2 * MIB)))
  for (const length of [2 * MIB, 4096, 100_000, 2 * MIB]) {
    const first = queue.alloc(length)
    t.true(
      first.every((byte) => byte === 0),
      `${length}`,
    )
    await file.readAt(first, 0)
    t.false(first.every((byte) => byte === 0))
    queue.free(first)
  }
})

test('alloc memory is aligned to a page: direct I/O takes it in place', async (t) => {
  const queue = ring(t)
  const name = scratch(t, pattern(8192))
  const file = await queue.open(name, 'r', { direct: true }).catch(() => undefined)
  if (file === undefined) return void t.pass('no direct I/O here')
  for (let i = 0; i < 50; i++) t.is(await file.readAt(queue.alloc(4096), 0), 4096)
  t.is(queue.stats().bouncedBytes, 0)
  await file.close()
})

test('a buffer from another queue is used as any other', async (t) => {
  const [queue, other] = [ring(t), ring(t)]
  const file = await queue.open(scratch(t, pattern(5000)), 'r+')
  const foreign = other.alloc(5000)
  t.is(await file.readAt(foreign, 0), 5000)
  t.true(foreign.equals(pattern(5000)))
  t.is(queue.stats().bouncedBytes, 5000)
  t.is(await file.writeAt(foreign, 5000), 5000)
})

// ---- free ---------------------------------------------------------------------------------------

test('free detaches the buffer and all its views, by whichever of them it is called', (t) => {
  const queue = ring(t)
  const ways: ((buffer: Buffer) => NodeJS.ArrayBufferView | ArrayBuffer)[] = [
    (buffer) => buffer,
    (buffer) => buffer.subarray(10, 20),
    (buffer) => buffer.subarray(10, 10),
    (buffer) => new DataView(buffer.buffer, 4, 8),
    (buffer) => new Float64Array(buffer.buffer, 8, 2),
    (buffer) => buffer.buffer as ArrayBuffer,
  ]
  for (const way of ways) {
    const buffer = queue.alloc(4096)
    const view = buffer.subarray(5, 10)
    queue.free(way(buffer))
    t.is(buffer.length, 0)
    t.is(view.length, 0)
    t.is(buffer.buffer.byteLength, 0)
    t.is(queue.stats().memory.alloc.usedBytes, 0)
  }
})

test('what was freed once is not freed again, and an operation on it is refused', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)), 'r+')
  const buffer = queue.alloc(100)
  const view = buffer.subarray(1, 5)
  const memory = buffer.buffer as ArrayBuffer
  queue.free(buffer)
  for (const each of [buffer, view, memory]) {
    t.is(thrown(() => queue.free(each)).code, 'ERR_URING_FREED')
  }
  const other = queue.alloc(100)
  t.is(thrown(() => file.readAt(buffer, 0)).code, 'ERR_URING_BUFFER_DETACHED')
  t.is(thrown(() => file.writeAt(view, 0)).code, 'ERR_URING_BUFFER_DETACHED')
  t.true(
    other.every((byte) => byte === 0),
    'its memory may be somebody else’s by now',
  )
})

test('memory is freed at the end of a block that uses it', async (t) => {
  const queue = ring(t)
  const used = () => queue.stats().memory.alloc.usedBytes
  let kept: Buffer | undefined
  {
    using buffer = queue.alloc(4096)
    t.is(used(), 4096)
    kept = buffer
  }
  t.is(kept.length, 0)
  t.is(used(), 0)
  // Again, or after free, there is nothing to do.
  const again = queue.alloc(1)
  queue.free(again)
  again[Symbol.dispose]()
  queue.alloc(0)[Symbol.dispose]()
  // In flight it does nothing.
  const file = await queue.open(fifo(t), 'r+')
  const busy = queue.alloc(8)
  const reading = file.readAt(busy, 0)
  busy[Symbol.dispose]()
  t.is(busy.length, 8, 'in use: it is left to the collector')
  await file.writeAt(Buffer.alloc(8), 0)
  await reading
  busy[Symbol.dispose]()
  t.is(used(), 0)
})

test('free takes nothing that is not from alloc of this queue', (t) => {
  const queue = ring(t)
  const others = [
    Buffer.alloc(100),
    Buffer.allocUnsafe(100),
    new Uint8Array(10),
    new ArrayBuffer(10),
    new Uint8Array(new SharedArrayBuffer(10)),
    new DataView(new ArrayBuffer(0)),
    ring(t).alloc(100),
  ]
  for (const each of others) {
    t.is(thrown(() => queue.free(each)).code, 'ERR_URING_NOT_ALLOCATED')
    t.true(each.byteLength === 0 || each.byteLength >= 10, 'and leaves it as it is')
  }
})

test('what alloc gives free takes, also when it is empty', (t) => {
  const queue = ring(t)
  const nothing = queue.alloc(0)
  t.is(nothing.length, 0)
  t.notThrows(() => queue.free(nothing))
})

test('a buffer in flight is not freed, and is afterwards', async (t) => {
  const queue = ring(t)
  const file = await stream(t, queue)
  const buffer = queue.alloc(100)
  const reading = file.readAt(buffer.subarray(10, 20), 0)
  t.true(await isPending(reading, 20))
  for (const each of [buffer, buffer.subarray(50), buffer.buffer as ArrayBuffer]) {
    t.is(thrown(() => queue.free(each)).code, 'ERR_URING_IN_FLIGHT')
  }
  fs.writeSync(file.fd, '0123456789')
  t.is(await reading, 10)
  t.is(buffer.subarray(10, 20).toString(), '0123456789')
  queue.free(buffer)
  t.is(buffer.length, 0)
  assertIdle(t, queue)
})

test('a buffer that is staged and not yet submitted is not freed', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)))
  const buffer = queue.alloc(100)
  const reading = file.readAt(buffer, 0)
  t.is(thrown(() => queue.free(buffer)).code, 'ERR_URING_IN_FLIGHT')
  t.is(await reading, 100)
  t.true(buffer.equals(pattern(100)))
  queue.free(buffer)
})

test('after the queue was closed its memory stays, and free says that it is closed', async (t) => {
  const queue = ring(t)
  const buffer = queue.alloc(100_000).fill(9)
  await queue.close()
  t.true(buffer.every((byte) => byte === 9))
  buffer.fill(8)
  t.is(thrown(() => queue.free(buffer)).code, 'ERR_URING_CLOSED')
  t.true(buffer.every((byte) => byte === 8))
})

// ---- buffers that go away under an operation ----------------------------------------------------

test('a read whose buffer was transferred in flight is rejected, and nothing is written', async (t) => {
  const queue = ring(t)
  const file = await stream(t, queue)
  const buffer = new Uint8Array(100).fill(5)
  const reading = rejection(file.readAt(buffer, 0))
  t.true(await isPending(reading, 20))
  const elsewhere = new Uint8Array(moved(buffer.buffer))
  t.is(buffer.length, 0)
  fs.writeSync(file.fd, 'data')
  const error = await reading
  t.is(error.code, 'ERR_URING_BUFFER_DETACHED')
  t.regex(error.message, /before the read was done with it/)
  t.true(elsewhere.every((byte) => byte === 5))
  // The operation is over, and the queue as good as before.
  const next = Buffer.alloc(10)
  fs.writeSync(file.fd, 'more')
  t.is(await file.readAt(next, 0), 4)
  assertIdle(t, queue)
})

test('a read whose buffer was shrunk in flight is rejected, and nothing is written', async (t) => {
  const queue = ring(t)
  const file = await stream(t, queue)
  const makes: ((buffer: ArrayBuffer) => NodeJS.ArrayBufferView)[] = [
    (buffer) => new Uint8Array(buffer, 0, 100),
    (buffer) => new Uint8Array(buffer),
    (buffer) => new DataView(buffer, 50, 50),
    (buffer) => new Uint16Array(buffer, 2, 49),
  ]
  for (const make of makes) {
    for (const left of [0, 1, 2]) {
      const buffer = new Resizable(100, { maxByteLength: 200 })
      new Uint8Array(buffer).fill(5)
      const reading = rejection(file.readAt(make(buffer), 0))
      t.true(await isPending(reading, 5))
      buffer.resize(left)
      fs.writeSync(file.fd, 'data')
      t.is((await reading).code, 'ERR_URING_BUFFER_DETACHED', `${make}, ${left} left`)
      t.true(new Uint8Array(buffer).every((byte) => byte === 5))
      buffer.resize(100)
      t.true(
        new Uint8Array(buffer).subarray(left).every((byte) => byte === 0),
        'new bytes are 0',
      )
    }
  }
  assertIdle(t, queue)
})

test('a read whose buffer grew in flight, or kept room for what came, is as good as any', async (t) => {
  const queue = ring(t)
  const file = await stream(t, queue)
  for (const length of [50, 200]) {
    const buffer = new Resizable(100, { maxByteLength: 200 })
    const reading = file.readAt(new Uint8Array(buffer), 0)
    t.true(await isPending(reading, 5))
    buffer.resize(length)
    fs.writeSync(file.fd, 'data')
    t.is(await reading, 4)
    t.is(Buffer.from(buffer).subarray(0, 4).toString(), 'data')
  }
})

test('many reads in flight whose buffers are transferred in turn: each gets its own answer', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(64_000)))
  const buffers = Array.from({ length: 1000 }, () => new Uint8Array(64))
  const reads = buffers.map((buffer, i) => file.readAt(buffer, i * 64))
  const gone = new Map<number, Uint8Array>()
  // None is submitted before this turn of the event loop ends.
  for (let i = 0; i < 1000; i += 3)
    gone.set(i, new Uint8Array(moved(buffers[i]?.buffer as ArrayBuffer)))
  const outcomes = await Promise.allSettled(reads)
  for (const [i, outcome] of outcomes.entries()) {
    if (gone.has(i)) {
      t.is(outcome.status === 'rejected' && outcome.reason.code, 'ERR_URING_BUFFER_DETACHED')
      t.true(gone.get(i)?.every((byte) => byte === 0))
    } else {
      t.is(outcome.status === 'fulfilled' && outcome.value, 64)
      t.is(
        Buffer.compare(buffers[i] as Uint8Array, pattern(64_000).subarray(i * 64, i * 64 + 64)),
        0,
      )
    }
  }
  assertIdle(t, queue)
})

test('a write in pieces whose buffer goes away says how much of it is in the file', async (t) => {
  const queue = ring(t)
  const name = scratch(t)
  const file = await queue.open(name, 'w')
  const content = new Uint8Array(64 * MIB).fill(6)
  const writing = rejection(file.writeAt(content, 0))
  // The first piece was copied when it was staged; no later one has been.
  moved(content.buffer)
  const error = await writing
  t.is(error.code, 'ERR_URING_BUFFER_DETACHED')
  t.is(error.bytesWritten, MIB)
  t.is(fs.statSync(name).size, MIB)
  t.true(fs.readFileSync(name).every((byte) => byte === 6))
  assertIdle(t, queue)
})

test('an operation on a detached buffer is refused before anything is staged', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const { submitted } = queue.stats()
  const gone = [new Uint8Array(10), new Float64Array(10), Buffer.alloc(70_000)]
  for (const view of gone) {
    moved(view.buffer)
    t.is(thrown(() => file.readAt(view, 0)).code, 'ERR_URING_BUFFER_DETACHED')
    t.is(thrown(() => file.writeAt(view, 0)).code, 'ERR_URING_BUFFER_DETACHED')
  }
  const view = new DataView(new ArrayBuffer(10))
  moved(view.buffer)
  t.throws(() => file.readAt(view, 0))
  await queue.nop()
  t.is(queue.stats().submitted, submitted + 1)
})

test('a view that lies about its length is not believed', async (t) => {
  const queue = ring(t)
  const content = pattern(100_000)
  const file = await queue.open(scratch(t, content))
  class Liar extends Uint8Array {
    override get byteLength(): number {
      return 50_000
    }
    override get byteOffset(): number {
      return 0
    }
  }
  const neighbours = Array.from({ length: 100 }, () => queue.alloc(4096))
  const plain = await rejection((async () => file.readAt(new Liar(10), 0))())
  t.is(plain.code, 'ERR_URING_BUFFER_DETACHED')
  const arena = queue.alloc(4096)
  const inPlace = await rejection(
    (async () => file.readAt(new Liar(arena.buffer as ArrayBuffer), 0))(),
  )
  t.true(inPlace instanceof Error)
  t.true(neighbours.every((buffer) => buffer.every((byte) => byte === 0)))
  await queue.nop()
  assertIdle(t, queue)
})

test('a bytesAt that fails gives its memory back at once', async (t) => {
  const queue = ring(t)
  const directory = await queue.open('/')
  for (let i = 0; i < 10; i++) {
    t.is((await rejection(directory.bytesAt(0, MIB))).code, 'EISDIR')
    t.is(queue.stats().memory.result.usedBytes, 0)
  }
  await directory.close()
})

test('a buffer that is disposed of in use does not hide the error of its block', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const buffer = queue.alloc(4096)
  const read = pipe.readAt(buffer, 0)
  buffer[Symbol.dispose]()
  fs.writeSync(pipe.fd, 'late')
  t.is(await read, 4)
  t.is(buffer.toString('latin1', 0, 4), 'late')
  buffer[Symbol.dispose]()
  t.is(buffer.length, 0)
  buffer[Symbol.dispose]()
  assertIdle(t, queue)
})

test('a buffer that is disposed of after its queue was closed does not make its block fail', async (t) => {
  const queue = ring(t)
  const buffer = queue.alloc(4096)
  await queue.close()
  t.notThrows(() => buffer[Symbol.dispose]())
  t.is(thrown(() => queue.free(buffer)).code, 'ERR_URING_CLOSED')
  t.is(buffer.length, 4096)
})
