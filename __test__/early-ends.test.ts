// What ends early, or while others are closing: nothing is lost, ends as somebody else's, waits for
// itself, or goes on where it must not.

import fs from 'node:fs'
import path from 'node:path'
import { op } from 'node-uring'
import { assertEnded, runChild } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { BACKEND } from './helpers/test.js'

const MIB = 1 << 20
const SLOTS = 65_536

test('deadlines hold while the queue closes, also those after the first', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const reads = [50, 150].map((timeoutMs) =>
    rejection(pipe.readAt(Buffer.alloc(8), 0, { timeoutMs })),
  )
  const closed = queue.close()
  for (const { code } of await Promise.all(reads)) t.is(code, 'ERR_URING_TIMEOUT')
  // A FIFO that a thread of node:fs reads is let go by its other side.
  if (BACKEND === 'node:fs') fs.writeSync(pipe.fd, '12')
  await closed
})

for (const which of ['target', 'queue'] as const) {
  test(`a copy whose ${which} is closed before it knows its files copies nothing to a wrong place`, async (t) => {
    const queue = ring(t)
    const at = folder(t)
    const [from, to] = [path.join(at, 'from'), path.join(at, 'to')]
    fs.writeFileSync(from, Buffer.concat([Buffer.alloc(100_000, 'x'), Buffer.alloc(100_000, 's')]))
    fs.writeFileSync(to, Buffer.alloc(300_000, 'd'))
    const source = await queue.open(from)
    const target = await queue.open(to, 'r+')
    // A short read tells what the source is: the target is asked alone.
    if (which === 'target') await source.readAt(Buffer.alloc(400_000), 0)
    const places = { position: 100_000, toPosition: 200_000 }
    const copied = source.copyTo(target, places).catch(() => 0)
    if (which === 'target') for (let i = 0; i < 3; i++) await null
    const closed = (which === 'queue' ? queue : target).close({ timeoutMs: 0 })
    await Promise.allSettled([copied, closed])
    const bytes = fs.readFileSync(to)
    t.is(bytes.indexOf('x'), -1)
    t.true([-1, 200_000].includes(bytes.indexOf('s')), String(bytes.indexOf('s')))
  })
}

test('a close that cancels ends a copy between its steps', async (t) => {
  const at = folder(t)
  const from = path.join(at, 'from')
  fs.writeFileSync(from, '')
  fs.truncateSync(from, 64 * MIB)
  for (const which of ['queue', 'file'] as const) {
    for (let turns = 0; turns < 6; turns++) {
      const queue = ring(t)
      const source = await queue.open(from)
      const target = await queue.open(path.join(at, 'to'), 'w+')
      const copied = rejection(source.copyTo(target))
      for (let i = 0; i < 10 + turns; i++) await queue.nop()
      await (which === 'queue' ? queue : source).close({ timeoutMs: 0 })
      t.is((await copied).code, 'ABORT_ERR')
      await queue.close()
    }
  }
})

test('a vectored read that a close cancels never resolves as if the file ended there', async (t) => {
  const name = scratch(t, pattern(4 * MIB))
  for (let turns = 0; turns < 20; turns++) {
    const queue = ring(t)
    const file = await queue.open(name)
    const read = file.readvAt([Buffer.alloc(2 * MIB), Buffer.alloc(2 * MIB)], 0).then(
      (count) => count,
      (error: { code?: string }) => error.code,
    )
    for (let i = 0; i < turns; i++) await new Promise(setImmediate)
    await file.close({ timeoutMs: 0 })
    t.true([4 * MIB, 'ABORT_ERR'].includes((await read) as number), String(await read))
    await queue.close()
  }
})

test('as many short reads as there are slots find out together what kind of file it is', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.from('xy')))
  const bytes = queue.alloc(4096).subarray(0, 2)
  const counts = await Promise.all(Array.from({ length: SLOTS }, () => file.readAt(bytes, 1)))
  t.true(counts.every((count) => count === 1))
  assertIdle(t, queue)
})

test('work of node:fs in place of an operation takes no slot from others', async (t) => {
  const queue = ring(t, { without: ['unlinkat'] })
  const name = path.join(folder(t), 'none')
  const unlinks = Array.from({ length: SLOTS }, () => rejection(queue.unlink(name)))
  await queue.nop()
  for (const { code } of await Promise.all(unlinks)) t.true(code === 'ENOENT')
  await queue.nop()
  assertIdle(t, queue)
})

test('a batch of a thousand closes and a read behind them does not wait for itself', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.from('xy')))
  const closes = Array.from({ length: 1500 }, () => op.close(file))
  const results = await queue.submit([...closes, op.read(file, Buffer.alloc(2), 0)])
  t.is(results.at(-1), 2)
  t.true(results.slice(0, -1).every((result) => result === 0))
})

for (const which of ['queue', 'file'] as const) {
  test(`disposing of a ${which} ends a batch of reads that may never end, begun or not`, async (t) => {
    const queue = ring(t)
    const file = await queue.open(fifo(t), 'r+')
    const reads = Array.from({ length: 1500 }, () => op.read(file, Buffer.alloc(2), 0))
    const results = queue.submit(reads)
    const disposed = (which === 'queue' ? queue : file)[Symbol.asyncDispose]()
    if (BACKEND === 'node:fs') fs.writeSync(file.fd, Buffer.alloc(20_000))
    await disposed
    t.is((await results).length, 1500)
  })
}

test('a queue that ends while node:fs works for it neither ends the process nor counts it twice', async (t) => {
  t.timeout(100_000)
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const [pipe] = process.argv.slice(1)
    const queue = new Queue({ backend: '${BACKEND}', without: ['unlinkat'] })
    // It has the only thread of the pool.
    fs.open(pipe, 'r', () => {})
    const unlinked = queue.unlink(pipe + '-none').catch(({ code }) => code)
    const closed = await queue.close({ timeoutMs: 0 }).catch(({ code }) => code)
    const before = queue.stats().pending
    fs.closeSync(fs.openSync(pipe, fs.constants.O_WRONLY))
    console.log(closed, before, await unlinked, queue.stats().pending)`
  const env = { UV_THREADPOOL_SIZE: '1' }
  const ended = await runChild(program, { args: [fifo(t)], env })
  assertEnded(t, ended, { stdout: 'ERR_URING_BUSY 0 ENOENT 0\n' })
})

test('a truncate by node:fs that comes late does not hit a file that has the number by then', async (t) => {
  t.timeout(100_000)
  const program = `
    import fs from 'node:fs'
    import path from 'node:path'
    import { Queue } from 'node-uring'
    const [pipe] = process.argv.slice(1)
    const at = (name) => path.join(path.dirname(pipe), name)
    for (const name of ['mine', 'victim']) fs.writeFileSync(at(name), 'x'.repeat(1000))
    const queue = new Queue({ without: ['ftruncate'] })
    const file = await queue.open(at('mine'), 'r+')
    const { fd } = file
    fs.open(pipe, 'r', () => {})
    const truncated = file.truncate(10).catch(({ code }) => code)
    await queue.close({ timeoutMs: 0 }).catch(() => {})
    let other = -1
    for (let i = 0; i < 50 && other !== fd; i++) other = fs.openSync(at('victim'), 'r+')
    fs.closeSync(fs.openSync(pipe, fs.constants.O_WRONLY))
    await truncated
    console.log(other === fd, fs.statSync(at('victim')).size, fs.statSync(at('mine')).size)
    process.exit()`
  if (BACKEND === 'node:fs') return t.pass('there it is an operation like others')
  const env = { UV_THREADPOOL_SIZE: '1' }
  const ended = await runChild(program, { args: [fifo(t)], env })
  return assertEnded(t, ended, { stdout: 'true 1000 10\n' })
})

test('a truncate by node:fs of a FIFO that nobody reads waits for no reader', async (t) => {
  t.timeout(60_000)
  const program = `
    import { Queue } from 'node-uring'
    const [name] = process.argv.slice(1)
    const queue = new Queue({ without: ['ftruncate'] })
    const [reader, writer] = await Promise.all([queue.open(name, 'r'), queue.open(name, 'w')])
    await reader.close()
    console.log(await writer.truncate(0).catch(({ message }) => message))
    await queue.close()`
  const ended = await runChild(program, { args: [fifo(t)], timeoutMs: 30_000 })
  assertEnded(t, ended, { stdout: 'EINVAL: invalid argument, ftruncate\n' })
})

for (const ends of ['signal', 'timeoutMs'] as const) {
  test(`a hard chain ends by its ${ends}, also what starts only when the first is cancelled`, async (t) => {
    const queue = ring(t)
    const pipe = await queue.open(fifo(t), 'r+')
    const controller = new AbortController()
    const limits = ends === 'signal' ? { signal: controller.signal } : { timeoutMs: 30 }
    const read = () => op.read(pipe, Buffer.alloc(8), 0)
    const chain = [op.timeout(50_000), read(), read(), op.nop(), read()]
    const ended = queue.submit(chain, { link: 'hard', ...limits })
    await queue.nop()
    controller.abort()
    if (BACKEND === 'node:fs') fs.writeSync(pipe.fd, Buffer.alloc(100))
    const codes = (await ended).map((result) => (result as { code?: string }).code ?? 'done')
    t.is(codes.length, 5)
    t.is(codes[0], ends === 'signal' ? 'ABORT_ERR' : 'ERR_URING_TIMEOUT')
    if (BACKEND === 'io_uring')
      t.deepEqual([...new Set([codes[0], ...codes.slice(1, 3)])].length, 1)
    assertIdle(t, queue)
  })
}
