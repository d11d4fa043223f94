// Bytes through what has no positions: FIFOs, terminals, character devices. Each byte once, and one read is
// one read.

import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { File, Queue } from 'node-uring'
import { fixture } from './helpers/child.js'
import { assertBytes, GUARD, SOURCES } from './helpers/guards.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring } from './helpers/ring.js'
import { fifo, scratch, takenOut } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

/** A FIFO that a queue has open in both directions, and a descriptor to write to it. */
async function stream(t: ExecutionContext, queue: Queue): Promise<{ file: File; writer: number }> {
  const path = fifo(t)
  const file = await queue.open(path, 'r+')
  const writer = fs.openSync(path, 'w')
  t.teardown(() => fs.closeSync(writer))
  return { file, writer }
}

for (const [name, source] of Object.entries(SOURCES)) {
  test(`one read of a FIFO into ${name} memory is one read, and its position is ignored`, async (t) => {
    const queue = ring(t)
    const { file, writer } = await stream(t, queue)
    fs.writeSync(writer, 'hello')
    const target = source(queue, 4096)
    t.is(await file.readAt(target.view, 12_345), 5)
    t.is(Buffer.from(target.bytes.subarray(0, 5)).toString(), 'hello')
    t.true(target.bytes.subarray(5).every((byte) => byte === GUARD))
    fs.writeSync(writer, 'abcdef')
    const small = source(queue, 4)
    t.is(await file.readAt(small.view, 2n ** 60n), 4)
    t.is(await file.readAt(small.view, 0), 2)
    t.is(Buffer.from(small.bytes).toString(), 'efcd')
    assertIdle(t, queue)
  })

  test(`a read of an empty FIFO into ${name} memory settles when data comes`, async (t) => {
    const queue = ring(t)
    const { file, writer } = await stream(t, queue)
    const target = source(queue, 100)
    const reading = file.readAt(target.view, 0)
    t.true(await isPending(reading), 'there is nothing to read yet')
    fs.writeSync(writer, 'late')
    t.is(await reading, 4)
    t.is(Buffer.from(target.bytes.subarray(0, 4)).toString(), 'late')
    assertIdle(t, queue)
  })
}

test('reads of a FIFO that wait get each byte once, in whatever order', async (t) => {
  const queue = ring(t)
  const { file, writer } = await stream(t, queue)
  const reads = Array.from({ length: 50 }, () => {
    const target = Buffer.alloc(1)
    return file.readAt(target, 0).then(() => target[0] as number)
  })
  t.true(await isPending(Promise.race(reads), 20))
  const sent = Array.from({ length: 50 }, (_, i) => i)
  for (const byte of sent) fs.writeSync(writer, Buffer.of(byte))
  t.deepEqual(
    (await Promise.all(reads)).sort((a, b) => a - b),
    sent,
  )
  assertIdle(t, queue)
})

test('bytesAt of a FIFO is one read, and its writer going away is the end', async (t) => {
  const queue = ring(t)
  const path = fifo(t)
  // Neither open can end without the other: this hangs if `open` blocks the thread.
  const [reader, writer] = await Promise.all([queue.open(path, 'r'), queue.open(path, 'w')])
  t.is(await writer.writeAt(Buffer.from('some'), 0), 4)
  t.is((await reader.bytesAt(0, 1000)).toString(), 'some')
  const waiting = reader.bytesAt(0, 200_000)
  t.true(await isPending(waiting, 20))
  await writer.close()
  t.is((await waiting).length, 0)
  t.is(await reader.readAt(Buffer.alloc(10), 0), 0)
  assertIdle(t, queue)
})

test('a write to a FIFO writes all, however little the FIFO holds', async (t) => {
  const queue = ring(t)
  const path = fifo(t)
  const [reader, writer] = await Promise.all([queue.open(path, 'r'), queue.open(path, 'w')])
  const content = pattern(MIB + 12_345)
  const writing = writer.writeAt(content, 0)
  t.true(await isPending(writing), 'a pipe holds 64 KiB')
  const came = await takenOut(reader, content.length)
  t.is(await writing, content.length)
  assertBytes(t, came, content, 'what came out')
  assertIdle(t, queue)
})

test('a character device is read and written', async (t) => {
  const queue = ring(t)
  const zero = await queue.open('/dev/zero')
  const target = Buffer.alloc(100_000, 1)
  // One read is one read: a signal to the thread cuts it short.
  for (let at = 0; at < target.length; ) at += await zero.readAt(target.subarray(at), 5)
  t.true(target.every((byte) => byte === 0))
  const none = await queue.open('/dev/null', 'r+')
  t.is(await none.readAt(target, 0), 0)
  t.is(await none.writeAt(target, 0), 100_000)
})

/** Makes the pipe of a FIFO that somebody has open hold 1 MiB, and fills it: F_SETPIPE_SZ. */
const FILLS = `
import fcntl, os, sys
pipe = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(pipe, 1031, 1 << 20)
os.write(pipe, b"x" * (1 << 20))`

needs(test, { commands: ['python3'] })(
  'a read of a FIFO is one read, also of as much as is copied at once',
  async (t) => {
    const queue = ring(t)
    const name = fifo(t)
    for (const plain of [true, false]) {
      const file = await queue.open(name, 'r+')
      for (let time = 0; time < 2; time++) {
        execFileSync('python3', ['-c', FILLS, name])
        const target = plain ? Buffer.alloc(2 << 20) : queue.alloc(2 << 20)
        t.is(await file.readAt(target, 0, { timeoutMs: 30_000 }), 1 << 20, `${plain}, ${time}`)
        t.true(target.subarray(0, 1 << 20).every((byte) => byte === 0x78))
      }
      await file.close()
    }
  },
)

needs(test, { commands: ['script'] })(
  'a write to a terminal that takes no more keeps the thread of nobody, and ends by its time limit',
  async (t) => {
    t.timeout(60_000)
    const at = scratch(t)
    const program = `${process.execPath} ${fileURLToPath(fixture('full-terminal.mjs'))} ${at}`
    // What it prints nobody reads.
    const child = spawn('script', ['-qec', program, '/dev/null'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    t.teardown(() => child.kill('SIGKILL'))
    for (let turn = 0; turn < 3000 && !fs.existsSync(at); turn++) await after(10)
    await after(20)
    const { outcomes, ticks } = JSON.parse(fs.readFileSync(at, 'utf8'))
    t.deepEqual(outcomes, ['ERR_URING_TIMEOUT', 'ERR_URING_TIMEOUT', 'ERR_URING_TIMEOUT'])
    t.true(ticks > 2, `${ticks} turns of a timer`)
  },
)

test('a FIFO that had no reader at the first write keeps nobody waiting at the next', async (t) => {
  const queue = ring(t)
  const { O_NONBLOCK, O_RDONLY } = fs.constants
  // As many as the pool has threads.
  const writes = Array.from({ length: 4 }, async () => {
    const at = fifo(t)
    const none = fs.openSync(at, O_RDONLY | O_NONBLOCK)
    const file = await queue.open(at, 'w')
    fs.closeSync(none)
    t.is((await rejection(file.writeAt(Buffer.alloc(1), 0))).code, 'EPIPE')
    const reader = fs.openSync(at, O_RDONLY | O_NONBLOCK)
    t.teardown(() => fs.closeSync(reader))
    return rejection(file.writeAt(Buffer.alloc(200_000), 0, { timeoutMs: 100 }))
  })
  for (const write of writes) t.is((await write).code, 'ERR_URING_TIMEOUT')
  assertIdle(t, queue)
})

test('a file that has positions for reads and none for writes is read at them, and written', async (t) => {
  const queue = ring(t)
  for (const first of ['read', 'write'] as const) {
    const file = await queue.open('/proc/self/comm', 'r+')
    const content = fs.readFileSync('/proc/self/comm')
    const read = async (position: number) => {
      const buffer = Buffer.alloc(32)
      return buffer.subarray(0, await file.readAt(buffer, position))
    }
    if (first === 'read') t.deepEqual(await read(0), content)
    t.is(await file.writeAt(content.subarray(0, -1), 0), content.length - 1)
    for (const position of [0, 0, 2]) t.deepEqual(await read(position), content.subarray(position))
    await file.close()
  }
  assertIdle(t, queue)
})
