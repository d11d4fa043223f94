// Queues on node:fs: what they promise beyond what the suite shows that runs on both, and what they
// cannot do, as docs/platforms.md says it.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setImmediate, setTimeout } from 'node:timers/promises'
import fc from 'fast-check'
import { op } from 'node-uring'
import { errnoOf, packStatx } from '../src/fallback/statx.ts'
import { Stats } from '../src/stats.ts'
import { assertEnded, childJson, runChild } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { BACKEND, leftOut, matches } from './helpers/test.js'

const options = { backend: 'node:fs' } as const

test('the suite runs on what it says it runs on', (t) => {
  t.is(ring(t).backend, BACKEND)
})

test('what is left out on node:fs is there to be left out', (t) => {
  const { files, tests } = leftOut()
  const here = new URL('.', import.meta.url)
  for (const [name, reason] of Object.entries(files)) {
    t.true(fs.existsSync(new URL(name, here)), name)
    t.true(reason.length > 10, name)
  }
  for (const [name, titles] of Object.entries(tests)) {
    t.false(name in files, `${name} is left out whole`)
    const source = fs.readFileSync(new URL(name, here), 'utf8')
    // Titles as the source has them: what is put into one may be anything.
    const literals = [...source.matchAll(/(['"`])(.*?)\1/g)].map(([, , text = '']) =>
      text.replaceAll(/\$\{[^}]*\}/g, '*'),
    )
    for (const [title, reason] of Object.entries(titles)) {
      const isThere = literals.some((literal) => matches(literal, title.replaceAll('*', '…')))
      t.true(isThere, `${name}: ${title}`)
      t.true(reason.length > 10, title)
    }
  }
})

// ---- memory -------------------------------------------------------------------------------------

test('a plain buffer that is transferred in flight is not written to, and the read says so', async (t) => {
  const queue = ring(t, options)
  const file = await queue.open(fifo(t), 'r+')
  const target = new Uint8Array(64)
  const mine = queue.alloc(64)
  const reads = [rejection(file.readAt(target, 0)), rejection(file.readAt(mine, 0))]
  await setTimeout(10)
  structuredClone(target, { transfer: [target.buffer] })
  const theirs = mine.buffer as ArrayBuffer
  const moved = structuredClone(theirs, { transfer: [theirs] })
  // Whoever gets the memory that was theirs.
  const others = Array.from({ length: 200 }, () => new Uint8Array(64))
  for (const error of reads) {
    fs.writeSync(file.fd, 'attack')
    t.is((await error).code, 'ERR_URING_BUFFER_DETACHED')
  }
  for (const other of [...others, new Uint8Array(moved)]) t.true(other.every((byte) => byte === 0))
  assertIdle(t, queue)
})

test('memory from alloc is counted, copied and freed as on a ring', async (t) => {
  const queue = ring(t, { ...options, arena: { slabBytes: 65_536, maxBytes: 65_536 } })
  const file = await queue.open(scratch(t, Buffer.from('content')), 'r+')
  const buffers = Array.from({ length: 16 }, () => queue.alloc(4096))
  t.is(thrown(() => queue.alloc(1)).code, 'ERR_URING_NO_MEMORY')
  const mine = buffers[0]!
  const read = file.readAt(mine.subarray(0, 7), 0)
  t.is(thrown(() => queue.free(mine)).code, 'ERR_URING_IN_FLIGHT')
  t.is(await read, 7)
  t.is(mine.toString('latin1', 0, 7), 'content')
  t.is(queue.stats().bouncedBytes, 7, 'copied')
  for (const buffer of buffers) {
    queue.free(buffer)
    t.is(buffer.length, 0, 'detached')
  }
  t.is(thrown(() => queue.free(mine)).code, 'ERR_URING_FREED')
  t.is(thrown(() => queue.free(Buffer.alloc(1))).code, 'ERR_URING_NOT_ALLOCATED')
  t.is(queue.stats().memory.alloc.usedBytes, 0)
})

test('operations of all kinds leave the heap as it was', async (t) => {
  t.timeout(60_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    const file = await queue.open(process.argv[1], 'r+')
    const direct = await queue.open(process.argv[1], 'r+', { direct: true })
    const [plain, mine] = [Buffer.alloc(512), queue.alloc(512)]
    const kinds = [
      () => queue.nop(),
      () => file.readAt(plain, 0),
      () => file.readAt(mine, 0),
      () => file.writeAt(plain, 0, { datasync: false }),
      () => direct.bytesAt(3, 100),
      () => file.stat(),
      () => queue.sleep(0),
      () => file.bytesAt(0, 8),
    ]
    const run = async (count) => {
      for (let i = 0; i < count; i += 64) {
        await Promise.all(Array.from({ length: 64 }, (_, k) => kinds[k % kinds.length]()))
      }
    }
    const heap = async () => {
      for (let i = 0; i < 5; i++) { gc(); await new Promise((resolve) => setTimeout(resolve, 5)) }
      return process.memoryUsage().heapUsed
    }
    await run(20000)
    const before = await heap()
    await run(60000)
    console.log(await heap() - before)
    await queue.close()`
  const args = [scratch(t, Buffer.alloc(4096))]
  const grown = await childJson<number>(program, { args, node: ['--expose-gc'], timeoutMs: 50_000 })
  // A request that stayed would be a hundred bytes and more: 6 MB.
  t.true(grown < 1 << 20, `${grown} bytes more`)
})

// ---- files --------------------------------------------------------------------------------------

test('struct statx carries all that node:fs told, whatever it told', (t) => {
  const uint = (bits: number) => fc.bigInt({ min: 0n, max: 2n ** BigInt(bits) - 1n })
  const time = fc.bigInt({ min: -(2n ** 62n), max: 2n ** 62n })
  const stats = fc.record({
    dev: uint(52),
    rdev: uint(52),
    mode: uint(16),
    nlink: uint(32),
    uid: uint(32),
    gid: uint(32),
    blksize: uint(32),
    ino: uint(64),
    size: uint(63),
    blocks: uint(63),
    atimeNs: time,
    mtimeNs: time,
    ctimeNs: time,
    birthtimeNs: time,
  })
  const property = fc.property(stats, (given) => {
    const read = new Stats(packStatx(given as fs.BigIntStats))
    for (const name of ['dev', 'rdev', 'mode', 'nlink', 'uid', 'gid', 'blksize'] as const) {
      if (BigInt(read[name]) !== given[name]) return false
    }
    for (const name of ['ino', 'size', 'blocks'] as const) {
      if (read[name] !== Number(given[name])) return false
    }
    return (['atime', 'mtime', 'ctime', 'birthtime'] as const).every((name) => {
      const ns = given[`${name}Ns`]
      const ms = Number(ns / 1_000_000n) + Number(ns % 1_000_000n) / 1e6
      return Math.abs(read[`${name}Ms`] - ms) <= Math.abs(ms) * 2 ** -51 + 1e-6
    })
  })
  t.notThrows(() => fc.assert(property, { numRuns: 500 }))
})

test('writes past 2^53, which node:fs cannot name, reject with EFBIG and write nowhere', async (t) => {
  const queue = ring(t, options)
  const name = scratch(t, Buffer.from('kept'))
  const file = await queue.open(name, 'r+')
  for (const position of [2n ** 53n, 2n ** 60n]) {
    const error = await rejection(file.writeAt(Buffer.from('lost'), position))
    t.is(error.code, 'EFBIG')
    t.is(error.bytesWritten, 0)
    t.is((await rejection(file.truncate(position))).code, 'EFBIG')
  }
  t.is(fs.readFileSync(name, 'latin1'), 'kept')
  t.is(await file.readAt(Buffer.alloc(4), 2n ** 60n), 0, 'reads can')
})

test('what node:fs has no flag for is refused by its name, and not left out', async (t) => {
  const queue = ring(t, options)
  const name = scratch(t, Buffer.from('kept'))
  const [file, log] = [await queue.open(name, 'r+'), await queue.open(name, 'a')]
  const some = Buffer.from('lost')
  const calls: Record<string, (() => unknown)[]> = {
    nowait: [
      () => file.readAt(some, 0, { nowait: true }),
      () => file.readAt(Buffer.alloc(0), 0, { nowait: true }),
      () => file.readvAt([some], 0, { nowait: true }),
      () => queue.submit([op.read(file, some, 0, { nowait: true })]),
    ],
    dontcache: [
      () => file.readvAt([some], 0, { dontcache: true }),
      () => file.writevAt([some], 0, { dontcache: true }),
    ],
    dsync: [
      () => file.writeAt(some, 0, { dsync: true }),
      () => file.writevAt([some], 0, { dsync: true }),
      () => log.append(some, { dsync: true }),
      () => queue.submit([op.write(file, some, 0, { dsync: true })]),
    ],
    'append() on a file that is not open for it': [() => file.append(some)],
  }
  for (const [feature, wrong] of Object.entries(calls)) {
    for (const call of wrong) {
      const { code, message } = thrown(call, String(call))
      t.is(code, 'ERR_URING_UNSUPPORTED')
      t.is(message, `${feature} is not supported here: it needs io_uring`)
    }
  }
  t.is(fs.readFileSync(name, 'latin1'), 'kept')
  assertIdle(t, queue)
})

test('a file that is only written is not read through its descriptor, nor the other way round', async (t) => {
  const queue = ring(t, options)
  const pipe = fifo(t)
  const keep = await queue.open(pipe, 'r+')
  const [reads, writes] = await Promise.all([queue.open(pipe, 'r'), queue.open(pipe, 'w')])
  t.is((await rejection(writes.bytesAt(0, 1))).code, 'EBADF')
  t.is((await rejection(reads.writeAt(Buffer.alloc(1), 0))).code, 'EBADF')
  t.is(await writes.writeAt(Buffer.from('ab'), 0), 2)
  t.is((await reads.bytesAt(0, 2)).toString(), 'ab')
  await keep.close()
})

// ---- what waits -----------------------------------------------------------------------------------

test('reads of a FIFO that wait take no thread, come in their order and can be cancelled', async (t) => {
  const queue = ring(t, options)
  const file = await queue.open(fifo(t), 'r+')
  const order: number[] = []
  const reads = Array.from({ length: 100 }, async (_, index) => {
    const bytes = await file.bytesAt(0, 1)
    order.push(index)
    return bytes
  })
  const outcomes = Promise.allSettled(reads)
  await setTimeout(20)
  // The pool has four threads, and every one of these needs one.
  const name = scratch(t, Buffer.from('x'))
  await Promise.all(Array.from({ length: 20 }, () => fs.promises.readFile(name)))
  for (const byte of ['a', 'b', 'c']) fs.writeSync(file.fd, byte)
  while (order.length < 3) await setTimeout(1)
  t.deepEqual(order, [0, 1, 2])
  await file.close({ timeoutMs: 0 })
  const cancelled = (await outcomes).filter(
    (outcome) => outcome.status === 'rejected' && outcome.reason.code === 'ABORT_ERR',
  )
  t.is(cancelled.length, 97)
  assertIdle(t, queue)
})

test('the first read of a FIFO can be cancelled before it is known to be one', async (t) => {
  const queue = ring(t, options)
  for (let i = 0; i < 20; i++) {
    const file = await queue.open(fifo(t), 'r+')
    const controller = new AbortController()
    const read = rejection(file.readAt(Buffer.alloc(1), 0, { signal: controller.signal }))
    queue.flush()
    controller.abort()
    t.is((await read).code, 'ABORT_ERR')
    await file.close()
  }
})

test('a program whose read of a FIFO waits can be ended, and so can its worker', async (t) => {
  t.timeout(60_000)
  const program = `
    import { Worker, isMainThread } from 'node:worker_threads'
    import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    const file = await queue.open(process.argv[1], 'r+')
    for (let i = 0; i < 10; i++) file.bytesAt(0, 1).catch(() => {})
    setTimeout(() => process.exit(), 50)`
  assertEnded(t, await runChild(program, { args: [fifo(t)], timeoutMs: 20_000 }))
  const parent = `
    import { Worker } from 'node:worker_threads'
    const code = ${JSON.stringify(`
      import { workerData, parentPort } from 'node:worker_threads'
      import { Queue } from 'node-uring'
      const queue = new Queue({ backend: 'node:fs' })
      const file = await queue.open(workerData, 'r+')
      for (let i = 0; i < 10; i++) file.bytesAt(0, 1).catch(() => {})
      parentPort.postMessage('reading')`)}
    const worker = new Worker(code, { eval: true, workerData: process.argv[1] })
    worker.once('message', () => setTimeout(async () => {
      await worker.terminate()
      console.log('terminated')
    }, 50))`
  const ended = await runChild(parent, { args: [fifo(t)], timeoutMs: 20_000 })
  assertEnded(t, ended, { stdout: 'terminated\n' })
})

test('an open that node:fs does not give back is named by close, and its descriptor is not left open', async (t) => {
  t.timeout(60_000)
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    const told = []
    const { open } = fs
    let back
    // The descriptor is in the table somewhat after the writer's open is over.
    const begun = new Promise((begin) => {
      back = new Promise((resolve) => {
        fs.open = (...args) => {
          const done = args.pop()
          open(...args, (...result) => { done(...result); resolve() })
          begin()
        }
      })
    })
    const opening = queue.open(process.argv[1], 'r').catch(({ code }) => told.push(code))
    await begun
    const error = await queue.close({ timeoutMs: 0 }).catch((error) => error)
    const writer = fs.openSync(process.argv[1], 'w')
    const mine = () => fs.readdirSync('/proc/self/fd').filter((fd) => {
      try { return fs.readlinkSync('/proc/self/fd/' + fd) === process.argv[1] } catch { return false }
    }).length
    await opening
    await back
    console.log(JSON.stringify({ code: error.code, held: error.held, told, open: mine() }))`
  const told = await childJson<unknown>(program, { args: [fifo(t)], timeoutMs: 50_000 })
  t.deepEqual(told, {
    code: 'ERR_URING_BUSY',
    held: ['1 open'],
    told: ['ERR_URING_CLOSED'],
    open: 1,
  })
})

test('a cancel of what has begun does nothing: the read has its bytes', async (t) => {
  const queue = ring(t, options)
  const file = await queue.open(scratch(t, Buffer.alloc(100, 7)))
  const controller = new AbortController()
  const [begun, waiting] = [Buffer.alloc(100), Buffer.alloc(100)]
  const first = file.readAt(begun, 0, { signal: controller.signal })
  queue.flush()
  const second = rejection(file.readAt(waiting, 0, { signal: controller.signal }))
  controller.abort()
  t.is(await first, 100)
  t.true(begun.every((byte) => byte === 7))
  t.is((await second).code, 'ABORT_ERR', 'this one had not begun')
  t.true(waiting.every((byte) => byte === 0))
})

test('a sleep is never early, and unref() lets the program end over it', async (t) => {
  t.timeout(60_000)
  const queue = ring(t, options)
  for (const ms of [0, 1, 2, 5, 10]) {
    const from = performance.now()
    await queue.sleep(ms)
    const took = performance.now() - from
    t.true(took >= ms, `${took} of ${ms} ms`)
  }
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    queue.sleep(30_000).then(() => console.log('slept'))
    setTimeout(() => queue.unref(), 20)`
  assertEnded(t, await runChild(program, { timeoutMs: 20_000 }), { stdout: '' })
})

test('timers that a test has put in the place of the globals stop nothing', async (t) => {
  // In a process of its own: whoever else asks for a timer meanwhile would wait for ever.
  const program = `
    import { op, Queue } from 'node-uring'
    const queue = new Queue(${JSON.stringify(options)})
    const file = await queue.open(process.argv[1])
    for (const name of ['setTimeout', 'clearTimeout', 'setImmediate', 'clearImmediate', 'queueMicrotask'])
      globalThis[name] = () => ({ unref() {} })
    const told = [await file.readAt(Buffer.alloc(10), 0, { timeoutMs: 60_000 })]
    await queue.sleep(5)
    const read = file.readAt(Buffer.alloc(10), 0)
    told.push(...(await queue.submit([op.read(file, Buffer.alloc(5), 0)], { drain: true })), await read)
    await queue.close({ timeoutMs: 60_000 })
    console.log(JSON.stringify(told))`
  t.deepEqual(await childJson(program, { args: [scratch(t, pattern(10))] }), [10, 5, 10])
})

test("what Node's permission model refuses is refused as the kernel does", (t) => {
  t.is(errnoOf(Object.assign(new Error('no'), { code: 'ERR_ACCESS_DENIED' })), -13)
  t.is(errnoOf(Object.assign(new Error('no'), { code: 'ERR_INVALID_ARG_VALUE' })), -22)
  t.is(errnoOf(Object.assign(new Error('no'), { errno: -2, code: 'ENOENT' })), -2)
})

test('a direct file is read and written by whole blocks, in memory that begins on a page', async (t) => {
  const queue = ring(t, options)
  const name = path.join(folder(t, process.cwd()), 'file')
  fs.writeFileSync(name, Buffer.alloc(3 << 20, 5))
  // Chunks from before there was a direct file begin anywhere.
  const plain = await queue.open(name, 'r+')
  await Promise.all(Array.from({ length: 50 }, () => plain.readAt(Buffer.alloc(4096), 0)))
  const file = await queue.open(name, 'r+', { direct: true })
  t.deepEqual(file.alignment, { memoryBytes: 4096, offsetBytes: 4096 })
  const reads = Array.from({ length: 200 }, (_, i) => file.bytesAt(i * 5001, 10_000 + i))
  for (const bytes of await Promise.all(reads)) t.true(bytes.every((byte) => byte === 5))
  t.is(await file.writeAt(Buffer.alloc(2 << 20, 9), 4096), 2 << 20)
  t.true((await plain.bytesAt(4096, 2 << 20)).every((byte) => byte === 9))
  t.is(
    (await rejection(Promise.resolve().then(() => file.writeAt(Buffer.alloc(100), 0)))).code,
    'ERR_URING_ALIGNMENT',
  )
})

test('completions of one turn are delivered in one, and a queue leaves the loop to others', async (t) => {
  const queue = ring(t, options)
  let turns = 0
  let going = true
  const counting = (async () => {
    for (; going; turns++) await setImmediate()
  })()
  await Promise.all(Array.from({ length: 10_000 }, () => queue.nop()))
  t.true(turns < 100, `${turns} turns for 10,000 nops`)
  going = false
  await counting
  const never = queue.sleep(60_000)
  never.catch(() => {})
  t.true(await isPending(never, 20))
  t.is(queue.stats().enters, 0)
  t.is(os.platform() === 'linux', queue.capabilities.kernel === os.release())
})

// Serial: it takes the place of fs.write.
test.serial("an EIO of one of many writes to a file that syncs each is the file's", async (t) => {
  const queue = ring(t, options)
  const file = await queue.open(scratch(t, Buffer.of()), 'rs+')
  const { write } = fs
  const failing = (...args: unknown[]) => {
    const done = args.at(-1) as (error: Error, written: number) => void
    globalThis.setImmediate(done, Object.assign(new Error('EIO'), { errno: -5, code: 'EIO' }), 0)
  }
  Object.assign(fs, { write: failing })
  t.teardown(() => Object.assign(fs, { write }))
  t.deepEqual(
    [...(await file.writeMany(Float64Array.of(0, 4096), 4096, Buffer.alloc(8192)))],
    [-5, -5],
  )
  Object.assign(fs, { write })
  t.is((await rejection(file.datasync())).code, 'EIO')
  t.is((await rejection(queue.commit(file))).code, 'EIO')
  await file.close()
  assertIdle(t, queue)
})
