// The end of queues and files: what close waits for, and what it cancels.

import fs from 'node:fs'
import { op, Queue } from 'node-uring'
import { isPending, rejection, ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

// Those that look at the clock are serial: tests beside them hold the thread up.
const MIB = 1 << 20
const after = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

/** The code that a promise rejects with; `kept` when it resolves. */
const outcome = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'kept',
    (error: { code?: unknown }) => error.code,
  )

test('close() of a queue is idempotent: the same promise, and no error', async (t) => {
  const queue = ring(t)
  await queue.nop()
  const closing = queue.close()
  t.is(queue.close(), closing)
  t.is(queue.close({ timeoutMs: 0 }), closing)
  t.is(await closing, undefined)
  t.is(queue.close(), closing)
  await queue[Symbol.asyncDispose]()
})

test('close() of a file is idempotent', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const closing = file.close()
  t.is(file.close(), closing)
  await closing
  t.is(file.close({ timeoutMs: 0 }), closing)
  await file[Symbol.asyncDispose]()
})

test('a queue can be closed before it has done anything', async (t) => {
  await t.notThrowsAsync(ring(t).close())
})

for (const memory of ['plain', 'alloc'] as const) {
  test(`close() waits for reads and writes in flight, which get their results (${memory} memory)`, async (t) => {
    const queue = ring(t)
    const written = scratch(t)
    const file = await queue.open(written, 'w+')
    const readable = await queue.open(scratch(t, Buffer.alloc(4 * MIB, 5)))
    const make = (fill: number) =>
      (memory === 'alloc' ? queue.alloc(MIB) : Buffer.alloc(MIB)).fill(fill)
    const buffers = Array.from({ length: 4 }, () => make(0))
    const operations = [
      ...Array.from({ length: 16 }, (_, i) =>
        file.writeAt(make(i), i * MIB, { datasync: i === 3 }),
      ),
      ...buffers.map((buffer, i) => readable.readAt(buffer, i * MIB)),
    ]
    let settled = 0
    for (const operation of operations) void operation.then(() => settled++)
    await queue.close()
    t.is(settled, operations.length)
    t.deepEqual(await Promise.all(operations), Array(20).fill(MIB))
    t.true(buffers.every((buffer) => buffer.every((byte) => byte === 5)))
    const content = fs.readFileSync(written)
    t.is(content.length, 16 * MIB)
    t.true(Array.from({ length: 16 }, (_, i) => i).every((i) => content[i * MIB + 7] === i))
  })
}

test.serial(
  'close() without a time waits for a read of a FIFO until it has its bytes',
  async (t) => {
    const queue = ring(t)
    const pipe = fifo(t)
    const file = await queue.open(pipe, 'r+')
    const buffer = Buffer.alloc(100)
    const read = file.readAt(buffer, 0)
    const closing = queue.close()
    t.true(await isPending(closing, 100))
    fs.writeFileSync(pipe, 'at last')
    t.is(await read, 7)
    await closing
    t.is(buffer.toString('latin1', 0, 7), 'at last')
  },
)

test.serial(
  'close({ timeoutMs: 0 }) cancels reads of a FIFO and sleeps with an AbortError, at once',
  async (t) => {
    // The quickest of some: the machine may hold up one of them, a time of grace all.
    let quickestMs = Infinity
    for (let round = 0; round < 5; round++) {
      const queue = ring(t)
      const file = await queue.open(fifo(t), 'r+')
      const pending = [
        file.readAt(Buffer.alloc(10), 0),
        file.readAt(queue.alloc(10), 0),
        file.bytesAt(0, 10),
        file.bytesAt(0, 2 * MIB),
        queue.sleep(600_000),
      ]
      t.true(await isPending(Promise.race(pending)))
      const errors = pending.map(rejection)
      const started = performance.now()
      await queue.close({ timeoutMs: 0 })
      quickestMs = Math.min(quickestMs, performance.now() - started)
      for (const error of await Promise.all(errors)) {
        t.is(error.name, 'AbortError')
        t.is(error['code'], 'ABORT_ERR')
      }
    }
    t.true(quickestMs < 900, `the kernel needed no time of grace: ${quickestMs} ms`)
  },
)

test('close({ timeoutMs: 0 }) in the turn that staged the operations cancels them, too', async (t) => {
  const queue = ring(t)
  const file = await queue.open(fifo(t), 'r+')
  const outcomes = [
    outcome(file.readAt(Buffer.alloc(10), 0)),
    outcome(file.readAt(queue.alloc(10), 0)),
    outcome(queue.sleep(60_000)),
  ]
  await queue.close({ timeoutMs: 0 })
  t.deepEqual(await Promise.all(outcomes), ['ABORT_ERR', 'ABORT_ERR', 'ABORT_ERR'])
})

test.serial(
  'close({ timeoutMs }) cancels nothing before its time, and all that is left then',
  async (t) => {
    const queue = ring(t)
    const pipe = fifo(t)
    const [one, other] = [await queue.open(pipe, 'r+'), await queue.open(fifo(t), 'r+')]
    const first = one.readAt(Buffer.alloc(3), 0)
    const second = outcome(other.readAt(Buffer.alloc(3), 0))
    const slept = outcome(queue.sleep(20))
    const started = performance.now()
    // So long that what is to come before it does, also where this thread is held up.
    const closing = queue.close({ timeoutMs: 5000 })
    await after(100)
    fs.writeFileSync(pipe, 'abc')
    t.is(await first, 3)
    t.is(await slept, 'kept')
    t.true(await isPending(closing, 20))
    t.is(await second, 'ABORT_ERR')
    await closing
    const ms = performance.now() - started
    t.true(ms >= 4999 && ms < 30_000, `${ms} ms`)
  },
)

test.serial(
  'close({ timeoutMs }) does not wait for its time when nothing is in flight any more',
  async (t) => {
    const queue = ring(t)
    void queue.sleep(20)
    const started = performance.now()
    await queue.close({ timeoutMs: 50_000 })
    t.true(performance.now() - started < 30_000)
  },
)

test.serial(
  'close({ timeoutMs: 0 }) cancels what waits for a slot, for entries and for bounce memory',
  async (t) => {
    const queue = ring(t, { entries: 8, bounceBytes: 2 * MIB })
    const file = await queue.open(fifo(t), 'r+')
    const buffer = queue.alloc(8)
    const reads = [
      ...Array.from({ length: 10 }, () => file.readAt(Buffer.alloc(MIB), 0)),
      ...Array.from({ length: 70_000 }, () => file.readAt(buffer, 0)),
      ...Array.from({ length: 10 }, () => file.readAt(Buffer.alloc(MIB), 0)),
    ]
    const outcomes = reads.map(outcome)
    await after(50)
    t.true(queue.stats().waiting > 0)
    await queue.close({ timeoutMs: 0 })
    t.deepEqual([...new Set(await Promise.all(outcomes))], ['ABORT_ERR'])
  },
)

test('files are closed while every slot is taken, and more operations wait for one', async (t) => {
  const queue = ring(t)
  const pipe = fifo(t)
  const files = await Promise.all(Array.from({ length: 50 }, () => queue.open(pipe, 'r+')))
  const sleeps = Array.from({ length: 66_000 }, () => outcome(queue.sleep(1e6)))
  const reads = files.map((file) => outcome(file.readAt(Buffer.alloc(1), 0)))
  while (queue.stats().inFlight < 65_536) await after(5)
  t.true(queue.stats().waiting > 0)
  await Promise.all(
    files.map((file, i) => file.close(i % 2 === 0 ? { timeoutMs: 0 } : { timeoutMs: 5 })),
  )
  t.deepEqual([...new Set(await Promise.all(reads))], ['ABORT_ERR'])
  t.deepEqual(descriptorsOf(pipe), [])
  t.is(queue.stats().inFlight, 65_536)
  await queue.close({ timeoutMs: 0 })
  t.deepEqual([...new Set(await Promise.all(sleeps))], ['ABORT_ERR'])
})

test('close({ timeoutMs: 0 }) cancels as many sleeps as there are slots', async (t) => {
  const queue = ring(t)
  const sleeps = Array.from({ length: 65_536 }, () => outcome(queue.sleep(1e6)))
  while (queue.stats().inFlight < 65_536) await after(5)
  t.is(queue.stats().inFlight, 65_536)
  await queue.close({ timeoutMs: 0 })
  t.deepEqual([...new Set(await Promise.all(sleeps))], ['ABORT_ERR'])
})

test.serial(
  'a thread that was busy for long does not make close() report ERR_URING_BUSY',
  async (t) => {
    const queue = ring(t)
    const file = await queue.open(fifo(t), 'r+')
    const read = outcome(file.readAt(Buffer.alloc(1), 0))
    // From here timers come before the turn in which the kernel is asked.
    await after(10)
    await new Promise(setImmediate)
    const closing = outcome(queue.close({ timeoutMs: 0 }))
    const until = performance.now() + 1500
    while (performance.now() < until);
    t.is(await closing, 'kept')
    t.is(await read, 'ABORT_ERR')
  },
)

test('writes that close({ timeoutMs: 0 }) cancels say truly what reached the file', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const path = scratch(t)
  const file = await queue.open(path, 'w')
  const writes = Array.from({ length: 20 }, (_, i) =>
    file.writeAt(Buffer.alloc(3 * MIB, i + 1), i * 3 * MIB),
  )
  const told = writes.map((write) =>
    write.catch((error: { code?: string; bytesWritten?: number }) => {
      t.is(error.code, 'ABORT_ERR')
      return error.bytesWritten ?? -1
    }),
  )
  await queue.close({ timeoutMs: 0 })
  const content = fs.readFileSync(path)
  for (const [i, count] of (await Promise.all(told)).entries()) {
    const there = content.subarray(i * 3 * MIB, (i + 1) * 3 * MIB)
    t.true(count >= 0 && count <= 3 * MIB)
    t.true(there.subarray(0, count).equals(Buffer.alloc(count, i + 1)), `write ${i}: ${count}`)
    t.true(
      there.subarray(count).every((byte) => byte === 0),
      `write ${i} wrote past ${count}`,
    )
  }
})

test('Symbol.asyncDispose of a queue cancels reads and sleeps and waits for writes', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const path = scratch(t)
  const file = await queue.open(path, 'w')
  const endless = [pipe.readAt(Buffer.alloc(1), 0), pipe.bytesAt(0, MIB), queue.sleep(60_000)].map(
    outcome,
  )
  const writes = Array.from({ length: 8 }, (_, i) =>
    outcome(file.writeAt(Buffer.alloc(3 * MIB, 1), i * 3 * MIB, { datasync: i === 7 })),
  )
  await queue[Symbol.asyncDispose]()
  t.deepEqual(await Promise.all(endless), ['ABORT_ERR', 'ABORT_ERR', 'ABORT_ERR'])
  t.deepEqual(await Promise.all(writes), Array(8).fill('kept'))
  t.true(fs.readFileSync(path).equals(Buffer.alloc(24 * MIB, 1)))
  t.is(await outcome(queue.nop()), 'ERR_URING_CLOSED')
})

test('disposing of a queue ends an open of a FIFO and a copy from one, and no replaceFile', async (t) => {
  const queue = ring(t)
  const [from, to] = [
    await queue.open(fifo(t), 'r+'),
    await queue.open(scratch(t, Buffer.alloc(0)), 'r+'),
  ]
  const opens = [queue.open(fifo(t), 'r'), queue.open(fifo(t), 'w')]
  const copies = [from.copyTo(to), queue.submit([op.splice(from, to, 5, { to: 0 })])]
  const ends = [...opens, ...copies].map((promise) =>
    promise.then(
      (results) => String(results),
      ({ name }) => name,
    ),
  )
  // Copies have learned by then what they copy from.
  while (queue.stats().inFlight < 4) await after(5)
  const target = scratch(t, Buffer.from('before'))
  const replaced = queue.replaceFile(target, Buffer.from('after'))
  await queue[Symbol.asyncDispose]()
  const [, , , batch] = await Promise.all(ends)
  t.deepEqual((await Promise.all(ends)).slice(0, 3), ['AbortError', 'AbortError', 'AbortError'])
  t.regex(batch ?? '', /AbortError/)
  await replaced
  t.is(fs.readFileSync(target, 'utf8'), 'after')
})

test('Symbol.asyncDispose of a file cancels its reads, waits for its writes, and leaves others alone', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  const [mine, other] = [await queue.open(name, 'r+'), await queue.open(fifo(t), 'r+')]
  const others = other.readAt(Buffer.alloc(1), 0)
  const slept = outcome(queue.sleep(100))
  const read = outcome(mine.readAt(Buffer.alloc(1), 0))
  await mine[Symbol.asyncDispose]()
  t.is(await read, 'ABORT_ERR')
  t.true(await isPending(others))
  t.is(await slept, 'kept')
  void others.catch(() => {})
})

test('file.close() waits for what is in flight on it and refuses what comes later with EBADF', async (t) => {
  const queue = ring(t)
  const pipe = fifo(t)
  const file = await queue.open(pipe, 'r+')
  const { fd } = file
  const read = file.readAt(Buffer.alloc(4), 0)
  const closing = file.close()
  t.true(await isPending(closing))
  for (const late of [
    file.readAt(Buffer.alloc(4), 0),
    file.bytesAt(0, 4),
    file.writeAt(Buffer.alloc(4), 0),
    file.sync(),
    file.datasync(),
    file.truncate(),
    file.stat(),
    file.readAt(Buffer.alloc(0), 0),
  ]) {
    t.is(await outcome(late), 'EBADF')
  }
  t.true(fs.existsSync(`/proc/self/fd/${fd}`))
  fs.writeFileSync(pipe, 'x')
  t.is(await read, 1)
  await closing
  // The number may be that of a file of another test by now.
  t.deepEqual(descriptorsOf(pipe), [])
})

test('file.close({ timeoutMs }) cancels the operations of that file alone', async (t) => {
  const queue = ring(t)
  const [mine, other] = [await queue.open(fifo(t), 'r+'), await queue.open(fifo(t), 'r+')]
  const buffer = queue.alloc(100)
  const reads = [mine.readAt(Buffer.alloc(4), 0), mine.readAt(buffer, 0)].map(outcome)
  const others = other.readAt(Buffer.alloc(4), 0)
  await mine.close({ timeoutMs: 50 })
  t.deepEqual(await Promise.all(reads), ['ABORT_ERR', 'ABORT_ERR'])
  t.true(await isPending(others))
  // The kernel has let go of it: nobody holds the memory any more.
  t.notThrows(() => queue.free(buffer))
  void others.catch(() => {})
})

test('operations called while a queue closes, and after that, are refused', async (t) => {
  const queue = ring(t)
  const pipe = fifo(t)
  const path = scratch(t, Buffer.alloc(100))
  const file = await queue.open(pipe, 'r+')
  const held = file.readAt(Buffer.alloc(1), 0)
  const closing = queue.close()
  const called = () => [
    queue.nop(),
    queue.sleep(1),
    queue.open(path),
    queue.adopt(0),
    queue.nopRoundTrip({ samples: 1 }),
  ]
  const onFile = () => [
    file.readAt(Buffer.alloc(1), 0),
    file.readAt(Buffer.alloc(0), 0),
    file.bytesAt(0, 1),
    file.writeAt(Buffer.alloc(1), 0),
    file.sync(),
    file.stat(),
  ]
  for (const call of [...called(), ...onFile()]) t.is(await outcome(call), 'ERR_URING_CLOSED')
  t.throws(() => queue.alloc(1), { code: 'ERR_URING_CLOSED' })
  fs.writeFileSync(pipe, 'x')
  t.is(await held, 1)
  await closing
  for (const call of called()) t.is(await outcome(call), 'ERR_URING_CLOSED')
  for (const call of onFile()) t.is(await outcome(call), 'EBADF')
  t.throws(() => queue.alloc(1), { code: 'ERR_URING_CLOSED' })
  t.notThrows(() => [queue.flush(), queue.ref(), queue.unref(), queue.stats(), queue.capabilities])
})

test('close() closes the files of its queue, also those whose open is still under way', async (t) => {
  const queue = ring(t)
  const path = scratch(t, Buffer.alloc(8192))
  const files = await Promise.all([queue.open(path), queue.open(path, 'r', { direct: true })])
  const opening = [
    queue.open(path),
    queue.open(path, 'r', { direct: true }),
    queue.open('/no/such'),
  ]
  const outcomes = opening.map(outcome)
  await queue.close()
  t.deepEqual(await Promise.all(outcomes), ['ERR_URING_CLOSED', 'ERR_URING_CLOSED', 'ENOENT'])
  t.deepEqual(descriptorsOf(path), [])
  t.is(files.length, 2)
})

test('close() from a continuation leaves the completions beside it whole', async (t) => {
  const queue = ring(t)
  const numbers = new Uint32Array(8192).map((_, i) => i)
  const file = await queue.open(scratch(t, Buffer.from(numbers.buffer)))
  let closing: Promise<void> | undefined
  const reads = Array.from({ length: 8192 }, async (_, i) => {
    const word = i % 2 === 0 ? new Uint32Array(1) : await file.bytesAt(i * 4, 4)
    const count = word instanceof Uint32Array ? await file.readAt(word, i * 4) : word.length
    if (i === 11) closing = queue.close()
    return count === 4 && new Uint32Array(word.buffer, word.byteOffset, 1)[0] === i
  })
  t.true((await Promise.all(reads)).every((right) => right))
  await closing
  t.truthy(closing)
})

test('close({ timeoutMs: 0 }) from a continuation gives each its own result or cancels it', async (t) => {
  const queue = ring(t)
  const numbers = new Uint32Array(4096).map((_, i) => i)
  const file = await queue.open(scratch(t, Buffer.from(numbers.buffer)))
  const pipe = await queue.open(fifo(t), 'r+')
  const endless = Array.from({ length: 100 }, () => outcome(pipe.readAt(Buffer.alloc(1), 0)))
  let closing: Promise<void> | undefined
  const reads = Array.from({ length: 4096 }, async (_, i) => {
    const word = new Uint32Array(1)
    await file.readAt(word, i * 4)
    closing ??= queue.close({ timeoutMs: 0 })
    return word[0] === i ? 'kept' : 'wrong'
  })
  const outcomes = await Promise.all(
    reads.map((read) => read.catch((error) => error.code as string)),
  )
  t.true(outcomes.includes('kept'))
  t.true(
    outcomes.every((one) => one === 'kept' || one === 'ABORT_ERR'),
    String(new Set(outcomes)),
  )
  t.deepEqual([...new Set(await Promise.all(endless))], ['ABORT_ERR'])
  await closing
})

for (const timeoutMs of [undefined, 0]) {
  test(`close(${timeoutMs ?? ''}) from inside onProgress ends the measurement and the queue`, async (t) => {
    const queue = ring(t)
    let closing: Promise<void> | undefined
    const measured = queue.nopRoundTrip({
      samples: 10_000_000,
      concurrency: 64,
      onProgress: () => {
        closing ??= queue.close(timeoutMs === undefined ? undefined : { timeoutMs })
      },
    })
    const error = await rejection(measured)
    t.true(['ERR_URING_CLOSED', 'ABORT_ERR'].includes(String(error['code'])), String(error))
    await closing
    t.is(await outcome(queue.nop()), 'ERR_URING_CLOSED')
  })
}

test('one queue is closed while another one works, in both orders', async (t) => {
  t.timeout(100_000)
  const path = scratch(t, Buffer.alloc(4096, 3))
  for (const first of [0, 1]) {
    const queues = [new Queue(), new Queue()] as const
    const kept = queues[1 - first]!
    const file = await kept.open(path)
    let going = true
    const work = Array.from({ length: 32 }, async () => {
      for (let done = 0; ; done++) {
        if (!going) return done
        const bytes = await file.bytesAt(0, 4096)
        if (bytes[4095] !== 3) throw new Error('wrong bytes')
      }
    })
    await kept.sleep(5)
    await queues[first]!.close()
    await kept.sleep(20)
    going = false
    t.true((await Promise.all(work)).every((done) => done > 0))
    await kept.close()
  }
})

/** The descriptors of this process that are open on `path`. */
function descriptorsOf(path: string): string[] {
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`) === path
    } catch {
      return false // the one that read the folder
    }
  })
}
