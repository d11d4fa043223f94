// `signal` and `timeoutMs`: what ends an operation before its time, on every operation there is. It is
// that operation and no other, it settles when the kernel has let go, and what was faster wins.

import { getEventListeners } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { type File, type LimitOptions, op, type Queue } from 'node-uring'
import { assertEnded, runChild } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, type Caught, isPending, rejection, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

/** Every method that takes limits, by name, called with these. */
function everything(
  queue: Queue,
  file: File,
  appending: File,
  at: string,
): Record<string, (limits: LimitOptions) => Promise<unknown>> {
  const [buffer, mine] = [Buffer.alloc(64), queue.alloc(64)]
  const positions = Float64Array.of(0, 16, 32)
  return {
    readAt: (limits) => file.readAt(buffer, 0, limits),
    'readAt in place': (limits) => file.readAt(mine, 0, limits),
    bytesAt: (limits) => file.bytesAt(0, 64, limits),
    'bytesAt of 1 MiB': (limits) => file.bytesAt(0, MIB, limits),
    writeAt: (limits) => file.writeAt(buffer, 0, limits),
    'writeAt with datasync': (limits) => file.writeAt(mine, 0, { ...limits, datasync: true }),
    'writeAt of nothing with datasync': (limits) =>
      file.writeAt(Buffer.alloc(0), 0, { ...limits, datasync: true }),
    append: (limits) => appending.append(buffer, limits),
    sync: (limits) => file.sync(limits),
    datasync: (limits) => file.datasync(limits),
    truncate: (limits) => file.truncate(1000, limits),
    stat: (limits) => file.stat(limits),
    open: (limits) => queue.open(path.join(at, 'opened'), 'w', limits),
    'open direct': (limits) =>
      queue.open(path.join(at, 'direct'), 'w', { ...limits, direct: true }),
    nop: (limits) => queue.nop(limits),
    nops: (limits) => queue.nops(40_000, limits),
    'nops of one part': (limits) => queue.nops(2, limits),
    sleep: (limits) => queue.sleep(1, limits),
    submit: (limits) => queue.submit([op.nop(), op.nop()], { ...limits, throwOnError: true }),
    'submit of a chain': (limits) =>
      queue.submit([op.nop(), op.fsync(file)], { ...limits, link: 'soft', throwOnError: true }),
    readMany: (limits) => file.readMany(positions, 16, buffer, limits),
    'readMany in place': (limits) => file.readMany(positions, 16, mine, limits),
    writeMany: (limits) => file.writeMany(positions, 16, buffer, limits),
    commit: (limits) => queue.commit(file, limits),
    replaceFile: (limits) => queue.replaceFile(path.join(at, 'replaced'), 'content', limits),
  }
}

async function prepared(t: ExecutionContext, queue: Queue) {
  const at = folder(t)
  fs.writeFileSync(path.join(at, 'file'), pattern(MIB))
  fs.writeFileSync(path.join(at, 'appending'), '')
  const file = await queue.open(path.join(at, 'file'), 'r+')
  const appending = await queue.open(path.join(at, 'appending'), 'a')
  return everything(queue, file, appending, at)
}

const WRITES = /^(write|append|replace)/

test('every operation with a signal that was aborted before, or no time at all, stages nothing', async (t) => {
  const queue = ring(t)
  const calls = await prepared(t, queue)
  const reason = new Error('the reason')
  const signal = AbortSignal.abort(reason)
  const { submitted } = queue.stats()
  for (const [name, call] of Object.entries(calls)) {
    const aborted = await rejection(call({ signal }))
    t.like(aborted, { name: 'AbortError', code: 'ABORT_ERR', cause: reason } as never, name)
    t.is(aborted.message, 'The operation was aborted')
    const late = await rejection(call({ timeoutMs: 0 }))
    t.is(late.code, 'ERR_URING_TIMEOUT', name)
    t.regex(late.message, /not done within 0 ms/, name)
    const both = await rejection(call({ signal, timeoutMs: 0 }))
    t.is(both.code, 'ABORT_ERR', name)
    if (/nothing/.test(name)) continue
    const bytesWritten = WRITES.test(name) ? 0 : undefined
    t.is(aborted.bytesWritten, bytesWritten, name)
    t.is(late.bytesWritten, bytesWritten, name)
  }
  t.is(queue.stats().submitted, submitted)
  t.is(getEventListeners(signal, 'abort').length, 0)
  assertIdle(t, queue)
})

test('every operation whose limits are not reached does what it does without, and leaves no listener', async (t) => {
  const queue = ring(t)
  const calls = await prepared(t, queue)
  const { signal } = new AbortController()
  for (const [name, call] of Object.entries(calls)) {
    await t.notThrowsAsync(call({ signal }), name)
    await t.notThrowsAsync(call({ timeoutMs: 100_000 }), name)
    await t.notThrowsAsync(call({ signal, timeoutMs: 2 ** 31 - 1 }), name)
    await t.notThrowsAsync(call({ signal: undefined, timeoutMs: undefined }), name)
  }
  t.is(getEventListeners(signal, 'abort').length, 0)
  assertIdle(t, queue)
})

test('every operation that is aborted in the turn of its call settles, by the abort or with its result', async (t) => {
  const queue = ring(t)
  const calls = await prepared(t, queue)
  for (const [name, call] of Object.entries(calls)) {
    for (const submitFirst of [false, true]) {
      const controller = new AbortController()
      const outcome = call({ signal: controller.signal }).then(
        () => 'done',
        (error: Caught) => error.code,
      )
      if (submitFirst) queue.flush()
      controller.abort()
      const code = await outcome
      t.true(code === 'ABORT_ERR' || (submitFirst && code === 'done'), `${name}: ${code}`)
    }
  }
  // The fdatasync that several may share goes on without the one that was aborted.
  while (queue.stats().pending > 0) await setTimeout(5)
  assertIdle(t, queue)
})

test('what is wrong with the limits of an operation throws, and stages nothing', async (t) => {
  const queue = ring(t)
  const calls = await prepared(t, queue)
  const { submitted } = queue.stats()
  const bad: [unknown, string][] = [
    [{ signal: {} }, 'ERR_INVALID_ARG_TYPE'],
    [{ signal: 'abort' }, 'ERR_INVALID_ARG_TYPE'],
    [{ signal: null }, 'ERR_INVALID_ARG_TYPE'],
    [{ timeoutMs: '5' }, 'ERR_INVALID_ARG_TYPE'],
    [{ timeoutMs: -1 }, 'ERR_OUT_OF_RANGE'],
    [{ timeoutMs: 1.5 }, 'ERR_OUT_OF_RANGE'],
    [{ timeoutMs: Number.NaN }, 'ERR_OUT_OF_RANGE'],
    [{ timeoutMs: Infinity }, 'ERR_OUT_OF_RANGE'],
    [{ timeoutMs: 2 ** 31 }, 'ERR_OUT_OF_RANGE'],
  ]
  for (const [name, call] of Object.entries(calls)) {
    for (const [limits, code] of bad) {
      // A few methods are async, and reject.
      const error = await rejection((async () => call(limits as LimitOptions))())
      t.is(error.code, code, `${name} ${JSON.stringify(limits)}`)
    }
  }
  t.is(queue.stats().submitted, submitted)
  assertIdle(t, queue)
})

// ---- signals ----------------------------------------------------------------------------------------

test('thousands of operations on one signal add one listener, which goes with the last', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const controller = new AbortController()
  const { signal } = controller
  const mine = queue.alloc(3000)
  const reads = Array.from({ length: 3000 }, (_, i) =>
    stream.readAt(mine.subarray(i, i + 1), 0, { signal }),
  )
  const nops = Array.from({ length: 3000 }, () => queue.nop({ signal }))
  t.is(getEventListeners(signal, 'abort').length, 1)
  await Promise.all(nops)
  t.is(getEventListeners(signal, 'abort').length, 1)
  controller.abort('why')
  const errors = await Promise.all(reads.map(rejection))
  t.true(errors.every((error) => error.code === 'ABORT_ERR' && error.cause === 'why'))
  t.is(getEventListeners(signal, 'abort').length, 0)
  // Another queue has a listener of its own.
  const other = ring(t)
  const [one, two] = [
    queue.sleep(60_000, { signal: AbortSignal.timeout(5) }),
    other.nop({ signal: new AbortController().signal }),
  ]
  await two
  t.like(await rejection(one), { code: 'ABORT_ERR' } as never)
  assertIdle(t, queue)
})

test('cancelling what was not submitted costs no enter, and nothing is asked of the kernel', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(1000)), 'r+')
  await queue.nop()
  const { submitted, cancels, enters } = queue.stats()
  const controller = new AbortController()
  const { signal } = controller
  const works = [
    ...Array.from({ length: 500 }, () => queue.nop({ signal })),
    ...Array.from({ length: 500 }, () => file.readAt(Buffer.alloc(9), 0, { signal })),
    queue.sleep(10_000, { signal }),
    file.writeAt(Buffer.alloc(9), 0, { signal, datasync: true }),
    queue.nops(20_000, { signal }),
  ]
  controller.abort()
  for (const error of await Promise.all(works.map(rejection))) t.is(error.code, 'ABORT_ERR')
  const after = queue.stats()
  t.deepEqual([after.submitted, after.cancels, after.enters], [submitted, cancels, enters])
  assertIdle(t, queue)
})

test('a cancel is of one operation among 10,000 that are the same', async (t) => {
  const queue = ring(t, {}, 120_000)
  const stream = await queue.open(fifo(t), 'r+')
  const mine = queue.alloc(10_000)
  const controllers = Array.from({ length: 10_000 }, () => new AbortController())
  const settled: number[] = []
  const reads = controllers.map(({ signal }, i) =>
    stream.readAt(mine.subarray(i, i + 1), 0, { signal }).then(
      (count) => {
        settled.push(i)
        return count
      },
      (error: Caught) => {
        settled.push(i)
        return error.code
      },
    ),
  )
  await queue.sleep(1)
  const chosen = [0, 1, 4999, 7777, 9999]
  for (const i of chosen) {
    controllers[i]?.abort()
    t.is(await reads[i], 'ABORT_ERR')
  }
  await queue.sleep(20)
  t.deepEqual(settled, chosen)
  fs.writeSync(stream.fd, Buffer.alloc(9995, 1))
  const results = await Promise.all(reads)
  t.is(results.filter((result) => result === 1).length, 9995)
  t.is(
    mine.reduce((sum, byte) => sum + byte, 0),
    9995,
  )
  assertIdle(t, queue)
})

test('an abort reaches all that wait, each of which settles while the others are looked for', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  const holding = new AbortController()
  const read = (signal: AbortSignal) => rejection(stream.readAt(Buffer.alloc(MIB), 0, { signal }))
  const holds = [read(holding.signal), read(holding.signal)]
  const controller = new AbortController()
  const waiting = Array.from({ length: 5 }, () => read(controller.signal))
  await queue.nop()
  controller.abort()
  for (const error of await Promise.all(waiting)) t.is(error.code, 'ABORT_ERR')
  holding.abort()
  await Promise.all(holds)
  assertIdle(t, queue)
})

test('what waited behind what is aborted begins, though nothing else completes', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  const file = await queue.open(scratch(t, pattern(100)))
  const holding = new AbortController()
  const held = rejection(stream.readAt(Buffer.alloc(MIB), 0, { signal: holding.signal }))
  const controller = new AbortController()
  const list = [op.read(file, Buffer.alloc(MIB), 0), op.read(file, Buffer.alloc(MIB), 0)]
  const chain = queue.submit(list, { link: 'soft', signal: controller.signal })
  // For this there is room, but it waits its turn.
  const behind = file.readAt(Buffer.alloc(MIB), 0)
  t.true(await isPending(behind, 20))
  controller.abort()
  t.is(await behind, 100)
  for (const result of await chain) t.is((result as Caught).code, 'ABORT_ERR')
  holding.abort()
  await held
  assertIdle(t, queue)
})

test('an abort that is too late changes nothing', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(1000)))
  const controller = new AbortController()
  t.is(await file.readAt(Buffer.alloc(10), 0, { signal: controller.signal }), 10)
  const other = file.readAt(Buffer.alloc(20), 0)
  controller.abort()
  t.is(await other, 20)
  // Complete, and not yet told of: the result is what counts.
  const second = new AbortController()
  const reading = file.readAt(queue.alloc(30), 0, { signal: second.signal })
  queue.flush()
  second.abort()
  t.is(await reading, 30)
  assertIdle(t, queue)
})

test('a signal that has watched over what is done watches over what comes later', async (t) => {
  const queue = ring(t)
  const controller = new AbortController()
  const { signal } = controller
  for (let i = 0; i < 3; i++) await queue.nop({ signal })
  t.is(getEventListeners(signal, 'abort').length, 0)
  const late = rejection(queue.sleep(600_000, { signal }))
  t.is(getEventListeners(signal, 'abort').length, 1)
  controller.abort()
  t.is((await late).code, 'ABORT_ERR')
  assertIdle(t, queue)
})

test('an operation says what ended it, whatever ended the one before it in its record', async (t) => {
  const queue = ring(t)
  for (let i = 0; i < 3; i++) {
    t.is((await rejection(queue.sleep(600_000, { timeoutMs: 5 }))).code, 'ERR_URING_TIMEOUT')
    const controller = new AbortController()
    const sleep = rejection(queue.sleep(600_000, { signal: controller.signal }))
    controller.abort('why')
    t.like(await sleep, { code: 'ABORT_ERR', cause: 'why' } as never)
  }
  assertIdle(t, queue)
})

test('an operation that was taken over by the next in its record is not reached by the first one’s signal', async (t) => {
  const queue = ring(t)
  for (let i = 0; i < 200; i++) {
    const controller = new AbortController()
    await queue.nop({ signal: controller.signal, timeoutMs: 10_000 })
    const next = queue.nop()
    controller.abort()
    await t.notThrowsAsync(next)
  }
})

test.serial('a cancelled open leaves no descriptor behind', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  // Of this FIFO alone: the process may open other things meanwhile.
  const open = (): number =>
    fs.readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`) === name
      } catch {
        return false
      }
    }).length
  for (let i = 0; i < 40; i++) {
    const controller = new AbortController()
    const opening = queue.open(name, i % 2 === 0 ? 'r' : 'w', { signal: controller.signal })
    const outcome = opening.then((file) => file.close()).catch((error: Caught) => error.code)
    if (i % 3 > 0) queue.flush()
    if (i % 3 > 1) await setTimeout(2)
    // Half of them meet the other side at the same moment.
    if (i % 4 > 1) fs.closeSync(fs.openSync(name, fs.constants.O_RDWR | fs.constants.O_NONBLOCK))
    controller.abort()
    const code = await outcome
    t.true(code === 'ABORT_ERR' || code === undefined, String(code))
  }
  const late = await rejection(queue.open(name, 'r', { timeoutMs: 20 }))
  t.is(late.code, 'ERR_URING_TIMEOUT')
  // What was opened all the same is closed a moment after its open has settled.
  for (const until = performance.now() + 20_000; open() > 0 && performance.now() < until; ) {
    await setTimeout(5)
  }
  t.is(open(), 0)
  t.is(queue.stats().files, 0)
  assertIdle(t, queue)
})

test('an abort inside a completion, and beside listeners that throw, reaches its operations', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const controller = new AbortController()
  const { signal } = controller
  const reads = Array.from({ length: 10 }, () => stream.readAt(Buffer.alloc(1), 0, { signal }))
  const outcomes = Promise.all(reads.map(rejection))
  void queue.nop().then(() => controller.abort())
  for (const error of await outcomes) t.is(error.code, 'ABORT_ERR')
  // Whatever a listener throws is reported by Node as uncaught; the operations end all the same.
  const ended = await runChild(
    `import { Queue } from 'node-uring'
     const uncaught = []
     process.on('uncaughtException', (error) => uncaught.push(error.message))
     const queue = new Queue()
     const controller = new AbortController()
     const { signal } = controller
     const boom = (what) => () => { throw new Error(what) }
     signal.addEventListener('abort', boom('before'))
     const sleeping = queue.sleep(60_000, { signal }).catch((error) => error.code)
     signal.addEventListener('abort', boom('after'))
     controller.abort()
     console.log(await sleeping, ...uncaught.sort())`,
  )
  assertEnded(t, ended, { stdout: 'ABORT_ERR after before\n' })
  assertIdle(t, queue)
})

test('an abort inside an abort listener of another operation settles both', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const [first, second] = [new AbortController(), new AbortController()]
  const reads = [first, second, first].map(({ signal }) =>
    rejection(stream.readAt(Buffer.alloc(1), 0, { signal })),
  )
  first.signal.addEventListener('abort', () => second.abort())
  first.abort()
  for (const error of await Promise.all(reads)) t.is(error.code, 'ABORT_ERR')
  assertIdle(t, queue)
})

// ---- batches and chains -------------------------------------------------------------------------------

test('a signal ends a batch: what was done has its count, the rest an AbortError, nothing more begins', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const controller = new AbortController()
  const list = [
    op.nop(),
    ...Array.from({ length: 5000 }, () => op.read(stream, Buffer.alloc(1), 0)),
  ]
  const batch = queue.submit(list, { signal: controller.signal })
  t.true(await isPending(batch, 20))
  const { submitted } = queue.stats()
  t.true(submitted < 3000)
  controller.abort('enough')
  const [nop, ...reads] = await batch
  t.is(nop, 0)
  t.true(reads.every((result) => (result as Caught).code === 'ABORT_ERR'))
  t.true(queue.stats().submitted < 6000, 'no read began after the abort')
  const error = await rejection(queue.submit(list, { timeoutMs: 20, throwOnError: true }))
  t.is(error.code, 'ERR_URING_TIMEOUT')
  assertIdle(t, queue)
})

test('a signal ends a chain at the member that runs, or before it began', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  for (const link of ['soft', 'hard'] as const) {
    const controller = new AbortController()
    const { signal } = controller
    const list = [op.nop(), op.read(stream, queue.alloc(1), 0), op.nop()]
    const chain = queue.submit(list, { link, signal })
    t.true(await isPending(chain, 20))
    controller.abort()
    const [first, second, third] = (await chain) as (number | Caught)[]
    t.is(first, 0)
    t.is((second as Caught).code, 'ABORT_ERR')
    t.true(third === 0 || (third as Caught).code === 'ABORT_ERR', link)

    // One that waits for memory never begins.
    const holding = new AbortController()
    const holds = rejection(stream.readAt(Buffer.alloc(MIB), 0, { signal: holding.signal }))
    const big = [op.read(stream, Buffer.alloc(MIB), 0), op.read(stream, Buffer.alloc(MIB), 0)]
    const waiting = new AbortController()
    const waits = queue.submit(big, { link, signal: waiting.signal })
    const behind = queue.submit(big, { link, timeoutMs: 20 })
    t.true(await isPending(waits, 20))
    waiting.abort()
    for (const result of await waits) t.is((result as Caught).code, 'ABORT_ERR')
    for (const result of await behind) t.is((result as Caught).code, 'ERR_URING_TIMEOUT')
    holding.abort()
    await holds
  }
  assertIdle(t, queue)
})

test('what comes behind an fsync in a chain can be cancelled while that runs', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  for (let i = 0; i < 50; i++) {
    const controller = new AbortController()
    const list = [op.write(file, Buffer.alloc(4096), 0), op.fsync(file), op.nop(), op.fsync(file)]
    const chain = queue.submit(list, { link: 'soft', signal: controller.signal })
    queue.flush()
    if (i % 2 === 0) await queue.nop()
    controller.abort()
    const results = await chain
    let failed = false
    for (const result of results) {
      if (failed) t.true(result instanceof Error, 'a chain went on behind what was cancelled')
      failed = result instanceof Error
    }
  }
  assertIdle(t, queue)
})
