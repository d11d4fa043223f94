// What queues and files leave behind when they are closed, or forgotten: nothing but memory that somebody has.

import { Queue } from 'node-uring'
import { assertEnded, childJson, runChild } from './helpers/child.js'
import { ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

const MIB = 1 << 20

test('memory from alloc stays valid after its queue is closed', async (t) => {
  const queue = ring(t)
  const buffers = Array.from({ length: 20 }, (_, i) => queue.alloc(1 + i * 50_000).fill(i + 1))
  await queue.close()
  const churn = Array.from({ length: 5 }, () => new Queue())
  for (const other of churn) other.alloc(MIB).fill(255)
  await Promise.all(churn.map((other) => other.close()))
  for (const [i, buffer] of buffers.entries()) {
    t.true(buffer.every((byte) => byte === i + 1))
    buffer.fill(0)
  }
})

test('memory from alloc of a closed queue is an ordinary buffer to another queue', async (t) => {
  const closed = ring(t)
  const buffer = closed.alloc(4096).fill(9)
  await closed.close()
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  t.is(await file.writeAt(buffer, 0), 4096)
  buffer.fill(0)
  t.is(await file.readAt(buffer, 0), 4096)
  t.true(buffer.every((byte) => byte === 9))
  t.throws(() => closed.free(buffer), { code: 'ERR_URING_CLOSED' })
})

test('a File that is collected without close() warns, and its descriptor is closed', async (t) => {
  t.timeout(100_000)
  const path = scratch(t, Buffer.alloc(10))
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const path = process.argv[1]
    const warnings = []
    process.on('warning', ({ code, message }) => warnings.push({ code, message }))
    const queue = new Queue()
    const open = () => fs.readdirSync('/proc/self/fd').filter((fd) => {
      try { return fs.readlinkSync('/proc/self/fd/' + fd) === path } catch { return false }
    }).length
    await (async () => {
      const closed = await queue.open(path)
      await closed.close()
      for (let i = 0; i < 3; i++) await (await queue.open(path)).readAt(Buffer.alloc(1), 0)
    })()
    const before = open()
    const deadline = Date.now() + 20_000
    while ((open() > 0 || warnings.length < 3) && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      globalThis.gc()
    }
    console.log(JSON.stringify({ before, now: open(), files: queue.stats().files, warnings }))
    await queue.close()`
  const { warnings, ...counts } = await childJson<{
    warnings: { code: string; message: string }[]
  }>(program, { node: ['--expose-gc', '--no-warnings'], args: [path] })
  t.deepEqual(counts, { before: 3, now: 0, files: 0 } as object)
  t.deepEqual(new Set(warnings.map(({ code }) => code)), new Set(['URING_FILE_NOT_CLOSED']))
  t.is(warnings.length, 3)
  t.true(warnings.every(({ message }) => message.includes(path)))
})

test('a File that is collected while its read is under way is closed after the read', async (t) => {
  t.timeout(100_000)
  const pipe = fifo(t)
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const queue = new Queue()
    const buffer = Buffer.alloc(10)
    const read = (await queue.open(process.argv[1], 'r+')).readAt(buffer, 0)
    for (let i = 0; i < 10; i++) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      globalThis.gc()
    }
    fs.writeFileSync(process.argv[1], 'hello')
    console.log(await read, buffer.toString('latin1', 0, 5))
    await queue.close()`
  const ended = await runChild(program, { node: ['--expose-gc', '--no-warnings'], args: [pipe] })
  assertEnded(t, ended, { stdout: '5 hello\n' })
})

test('300 queues made, used and closed leave no descriptor, mapping or thread behind', async (t) => {
  t.timeout(100_000)
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    import { threadNames } from './__test__/fixtures/proc.mjs'
    const cycle = async () => {
      const queue = new Queue({ entries: 256 })
      const file = await queue.open(process.argv[1], 'r+', { direct: true })
      await Promise.all([
        file.readAt(queue.alloc(4096), 0),
        file.readAt(Buffer.alloc(100), 10),
        file.bytesAt(0, 1 << 20),
        file.writeAt(Buffer.alloc(4096, 1), 4096),
        queue.sleep(0),
      ])
      await queue.close()
    }
    const holdings = async () => {
      for (let i = 0; i < 5; i++) {
        globalThis.gc()
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
      return {
        descriptors: fs.readdirSync('/proc/self/fd').length,
        mappings: fs.readFileSync('/proc/self/maps', 'utf8').split('\\n').length,
        // A kernel worker stays for a few seconds after its last work.
        threads: threadNames().filter((name) => !name.startsWith('iou-')).length,
      }
    }
    for (let i = 0; i < 20; i++) await cycle()
    const before = await holdings()
    for (let i = 0; i < 280; i++) await cycle()
    let now = await holdings()
    // A kernel worker that has not run yet has the name of the thread that it is for.
    const settled = () => now.descriptors === before.descriptors && now.threads === before.threads
    for (const until = Date.now() + 20_000; !settled() && Date.now() < until; ) now = await holdings()
    console.log(JSON.stringify({ before, now }))`
  const file = scratch(t, Buffer.alloc(2 * MIB))
  const { before, now } = await childJson<Record<'before' | 'now', Record<string, number>>>(
    program,
    {
      node: ['--expose-gc'],
      args: [file],
      timeoutMs: 90_000,
    },
  )
  t.is(now['descriptors'], before['descriptors'])
  t.is(now['threads'], before['threads'])
  t.true(now['mappings']! < before['mappings']! + 60, JSON.stringify({ before, now }))
})

test('queues are closed well while async_hooks watches', async (t) => {
  t.timeout(100_000)
  const program = `
    import async_hooks from 'node:async_hooks'
    import { Queue } from 'node-uring'
    const seen = { init: 0, destroy: 0 }
    const ids = new Set()
    async_hooks.createHook({
      init(id, type) { if (type === 'io_uring') { ids.add(id); seen.init++ } },
      destroy(id) { if (ids.has(id)) seen.destroy++ },
    }).enable()
    for (let i = 0; i < 10; i++) {
      const queue = new Queue()
      await queue.nop()
      await queue.close()
    }
    // Node tells of the end of a context later, when it has nothing else to do.
    for (let waits = 0; waits < 1000 && seen.destroy < 10; waits++) {
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    console.log(JSON.stringify(seen))`
  t.deepEqual(await childJson(program), { init: 10, destroy: 10 })
})

test('a closed queue does not keep its program', async (t) => {
  t.timeout(100_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    queue.sleep(120_000).catch((error) => console.log(error.code))
    await queue.close({ timeoutMs: 0 })
    queue.ref()
    console.log('closed')`
  const ended = await runChild(program)
  assertEnded(t, ended, { stdout: 'ABORT_ERR\nclosed\n' })
})

test('a queue that nobody refers to any more still does what was asked of it', async (t) => {
  t.timeout(100_000)
  const program = `
    import { Queue } from 'node-uring'
    const slept = Array.from({ length: 10 }, () => new Queue({ entries: 8 }).sleep(100))
    for (let i = 0; i < 10; i++) {
      await new Promise((resolve) => setTimeout(resolve, 2))
      globalThis.gc()
    }
    await Promise.all(slept)
    console.log('slept')`
  assertEnded(t, await runChild(program, { node: ['--expose-gc'] }), { stdout: 'slept\n' })
})
