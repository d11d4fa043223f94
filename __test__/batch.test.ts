// queue.submit without links: many operations, one promise, results in their order, each a count or
// an Error. Chains have a file of their own.

import fs from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { type BatchOperation, type File, op, Queue, type SubmitOptions } from 'node-uring'
import { childJson } from './helpers/child.js'
import { Resizable } from './helpers/guards.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown, told } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

/** The codes of failed results, and what the others came to. */
function outcomes(results: readonly (number | Error)[]): (number | string)[] {
  return results.map((result) =>
    typeof result === 'number' ? result : String((result as { code?: unknown }).code),
  )
}

/** Moves the memory of a view elsewhere. */
function transfer(view: ArrayBufferView): void {
  structuredClone(view.buffer, { transfer: [view.buffer as ArrayBuffer] })
}

/** How many descriptors of this process are open on a file. */
function descriptorsOf(path: string): number {
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`) === fs.realpathSync(path)
    } catch {
      // That of the folder itself.
      return false
    }
  }).length
}

/** Files that a test drops would be closed when they are collected: an operation nobody counts on. */
const kept: File[] = []

async function twoFiles(t: ExecutionContext, queue: Queue): Promise<[File, File]> {
  const one = await queue.open(scratch(t, pattern(100_000)), 'r+')
  const other = await queue.open(scratch(t), 'w+')
  kept.push(one, other)
  return [one, other]
}

test('results come in the order of the operations, each a count, 0 or an Error', async (t) => {
  const queue = ring(t)
  const [file, other] = await twoFiles(t, queue)
  const [readOnly, third] = [
    await queue.open(file.path as string),
    await queue.open(scratch(t), 'w'),
  ]
  const [target, mine] = [Buffer.alloc(300), queue.alloc(500)]
  mine.fill(7)
  const at = folder(t)
  fs.writeFileSync(`${at}/old`, 'x')
  const results = await queue.submit([
    op.timeout(30),
    op.read(file, target, 1000),
    op.write(readOnly, Buffer.alloc(10), 0),
    op.nop(),
    op.write(other, mine, 10),
    op.read(file, Buffer.alloc(100), 99_990),
    op.read(file, Buffer.alloc(100), 100_000n),
    op.fsync(file),
    op.datasync(file),
    op.truncate(third, 200_000),
    op.rename(`${at}/old`, `${at}/new`),
    op.rename(`${at}/missing`, `${at}/new`),
    op.unlink(`${at}/missing`),
    // By one of those before it, however slow they are.
    op.timeout(30_000, { count: 1 }),
  ])
  t.deepEqual(outcomes(results), [
    0,
    300,
    'EBADF',
    0,
    500,
    10,
    0,
    0,
    0,
    0,
    0,
    'ENOENT',
    'ENOENT',
    0,
  ])
  t.true(target.equals(pattern(100_000).subarray(1000, 1300)))
  t.is(
    fs
      .readFileSync(other.path as string)
      .subarray(10)
      .compare(mine),
    0,
  )
  t.is(fs.statSync(third.path as string).size, 200_000)
  t.deepEqual(fs.readdirSync(at), ['new'])
  t.like(told(results[2]), { message: 'EBADF: bad file descriptor, write', syscall: 'write' })
  t.is((results[2] as { bytesWritten?: number }).bytesWritten, 0)
  const [renamed, unlinked] = [results[11], results[12]] as (Error & { dest?: string })[]
  t.is(renamed?.message, `ENOENT: no such file or directory, rename '${at}/missing' -> '${at}/new'`)
  t.is(renamed?.dest, `${at}/new`)
  t.is(unlinked?.message, `ENOENT: no such file or directory, unlink '${at}/missing'`)
  assertIdle(t, queue)
})

test('a batch of nothing resolves with nothing, and stages nothing', async (t) => {
  const queue = ring(t)
  const { submitted } = queue.stats()
  for (const link of ['none', 'soft', 'hard'] as const) {
    t.deepEqual(await queue.submit([], { link, drain: true, throwOnError: true }), [])
  }
  t.is(queue.stats().submitted, submitted)
})

test('with throwOnError a batch rejects with the first failure in order, when all are over', async (t) => {
  const queue = ring(t)
  const [file] = await twoFiles(t, queue)
  const readOnly = await queue.open(file.path as string)
  const at = folder(t)
  let slow = true
  const error = await rejection(
    queue.submit(
      [
        op.timeout(200),
        // Fails late, by its time; what fails at once is behind it.
        op.timeout(100, { count: 1000 }),
        op.unlink(`${at}/missing`),
        op.write(readOnly, Buffer.alloc(1), 0),
      ],
      { throwOnError: true },
    ),
  ).finally(() => {
    slow = queue.stats().pending > 0
  })
  t.is(error.code, 'ETIME')
  t.false(slow, 'it rejected before all were over')
  const counts: number[] = await queue.submit([op.nop(), op.read(file, Buffer.alloc(5), 0)], {
    throwOnError: true,
  })
  t.deepEqual(counts, [0, 5])
  assertIdle(t, queue)
})

test('a bound that was not needed is no failure, and one that struck is', async (t) => {
  const queue = ring(t)
  const bounded = [op.nop(), op.linkTimeout(10_000)]
  for (const link of ['soft', 'hard'] as const) {
    const results = await queue.submit(bounded, { link })
    t.deepEqual(outcomes(results), [0, 'ECANCELED'])
    await t.notThrowsAsync(queue.submit(bounded, { link, throwOnError: true }))
  }
  const late = await rejection(
    queue.submit([op.timeout(10_000), op.linkTimeout(10)], { link: 'soft', throwOnError: true }),
  )
  t.is(late.code, 'ECANCELED')
  t.like(told(late), { syscall: 'timeout' })
  assertIdle(t, queue)
})

test('what is wrong with the arguments throws before anything is staged', async (t) => {
  const queue = ring(t)
  const other = ring(t)
  const [file] = await twoFiles(t, queue)
  const foreign = await other.open(file.path as string)
  const { submitted } = queue.stats()
  const nop = op.nop()
  const boom = new Error('from a getter')
  const throwing = (name: string) =>
    Object.defineProperty({}, name, {
      get() {
        throw boom
      },
    })
  const submit = (list: unknown, options?: unknown) => () =>
    queue.submit(list as BatchOperation[], options as SubmitOptions)
  const [TYPE, VALUE, RANGE] = ['ERR_INVALID_ARG_TYPE', 'ERR_INVALID_ARG_VALUE', 'ERR_OUT_OF_RANGE']
  const cases: [unknown, () => unknown][] = [
    [TYPE, submit(undefined)],
    [TYPE, submit(nop)],
    [TYPE, submit(new Set([nop]))],
    [TYPE, submit({ 0: nop, length: 1 })],
    [TYPE, submit([nop, undefined])],
    [TYPE, submit(new Array(2))],
    [TYPE, submit([nop, null])],
    [TYPE, submit([nop, { opcode: 0 }])],
    [TYPE, submit([nop, Object.create(Object.getPrototypeOf(nop))])],
    [TYPE, submit([new Proxy(nop, {})])],
    [VALUE, submit([nop, op.fsync(foreign)])],
    [VALUE, submit([nop, op.linkTimeout(1)])],
    [VALUE, submit([op.linkTimeout(1)], { link: 'soft' })],
    [VALUE, submit([nop, op.linkTimeout(1), op.linkTimeout(1)], { link: 'hard' })],
    [VALUE, submit([nop, op.linkTimeout(1)], { link: 'none' })],
    [VALUE, submit([nop], { link: 'weak' })],
    [VALUE, submit([nop], { link: null })],
    [VALUE, submit([nop], { link: true })],
    [VALUE, submit([nop], { linked: 'soft' })],
    [TYPE, submit([nop], { drain: 1 })],
    [TYPE, submit([nop], { throwOnError: 'yes' })],
    [TYPE, submit([nop], { signal: {} })],
    [TYPE, submit([nop], { timeoutMs: '1' })],
    [RANGE, submit([nop], { timeoutMs: -1 })],
    [RANGE, submit([nop], { timeoutMs: 2 ** 31 })],
    [TYPE, submit([nop], null)],
    [TYPE, submit([nop], [])],
    ...['link', 'drain', 'throwOnError', 'signal', 'timeoutMs'].map(
      (name): [unknown, () => unknown] => [undefined, submit([nop], throwing(name))],
    ),
    [TYPE, () => op.read({} as File, Buffer.alloc(1), 0)],
    [TYPE, () => op.read(file, 'text' as never, 0)],
    [TYPE, () => op.read(file, Buffer.alloc(1), '0' as never)],
    [RANGE, () => op.read(file, Buffer.alloc(1), -1)],
    [RANGE, () => op.write(file, Buffer.alloc(1), 0.5)],
    [RANGE, () => op.truncate(file, -1)],
    [TYPE, () => op.fsync(undefined as never)],
    [RANGE, () => op.timeout(-1)],
    [RANGE, () => op.timeout(0.5)],
    [RANGE, () => op.timeout(1, { count: -1 })],
    [TYPE, () => op.timeout(1, { absolute: 1 as never })],
    [TYPE, () => op.linkTimeout('1' as never)],
    [TYPE, () => op.rename(1 as never, 'x')],
    [VALUE, () => op.unlink('a\0b')],
  ]
  const list = [nop, nop]
  Object.defineProperty(list, 1, {
    get() {
      throw boom
    },
  })
  cases.push([undefined, submit(list)])
  for (const [code, call] of cases) {
    const error = thrown(call)
    t.is(error.code, code, error.stack)
    if (code === undefined) t.is(error, boom)
  }
  t.is(queue.stats().submitted, submitted)
  await file.close()
  assertIdle(t, queue)
})

test('what is checked is what is begun, though an element of the array changes when it is read', async (t) => {
  const queue = ring(t)
  const list = [op.nop(), op.nop()]
  let reads = 0
  Object.defineProperty(list, 1, {
    get: () => (reads++ === 0 ? op.nop() : { opcode: 1, length: 4 }),
  })
  t.deepEqual(await queue.submit(list), [0, 0])
  t.is(reads, 1)
})

test('an operation may be submitted again, also twice at once', async (t) => {
  const queue = ring(t)
  const [file] = await twoFiles(t, queue)
  const target = Buffer.alloc(10)
  const read = op.read(file, target, 50)
  t.deepEqual(await queue.submit([read, read]), [10, 10])
  t.deepEqual(await Promise.all([queue.submit([read]), queue.submit([read], { link: 'hard' })]), [
    [10],
    [10],
  ])
  t.true(target.equals(pattern(100_000).subarray(50, 60)))
  assertIdle(t, queue)
})

test('operations on a file that was closed give EBADF, and the others are done', async (t) => {
  const queue = ring(t)
  const [file, other] = await twoFiles(t, queue)
  const target = Buffer.alloc(10)
  const list = [
    op.read(file, Buffer.alloc(1), 0),
    op.read(other, Buffer.alloc(1), 0),
    op.nop(),
    op.fsync(file),
    op.write(file, Buffer.alloc(0), 0),
    op.write(other, pattern(10), 0),
  ]
  await file.close()
  t.deepEqual(outcomes(await queue.submit(list)), ['EBADF', 0, 0, 'EBADF', 'EBADF', 10])
  t.is(await other.readAt(target, 0), 10)
  t.true(target.equals(pattern(10)))
  await queue.close()
  t.is((await rejection(queue.submit(list))).code, 'ERR_URING_CLOSED')
  t.is((await rejection(queue.submit([]))).code, 'ERR_URING_CLOSED')
})

test('operations that come while their file closes give EBADF, and it waits for what came before', async (t) => {
  const queue = ring(t)
  const [stream, other] = [await queue.open(fifo(t), 'r+'), await queue.open(scratch(t), 'w')]
  for (const link of ['none', 'soft', 'hard'] as const) {
    const file = await queue.open(stream.path as string, 'r+')
    const reading = file.readAt(Buffer.alloc(1), 0)
    const closing = file.close()
    const list = [op.read(file, Buffer.alloc(1), 0), op.splice(file, other, 1), op.close(file)]
    const results = queue.submit(link === 'none' ? list : list.slice(0, 1), { link })
    t.true(await isPending(Promise.race([reading, closing]), 20), link)
    fs.writeSync(stream.fd, 'x')
    t.is(await reading, 1)
    await closing
    t.deepEqual(outcomes(await results), link === 'none' ? ['EBADF', 'EBADF', 0] : ['EBADF'])
  }
  await other.close()
  assertIdle(t, queue)
})

test('an operation whose buffer went away before the batch gives an error, and the others are done', async (t) => {
  const queue = ring(t)
  const [file] = await twoFiles(t, queue)
  const shrinking = new Resizable(64, { maxByteLength: 64 })
  const views = [
    new DataView(new ArrayBuffer(64)),
    new Uint16Array(8),
    Buffer.from(new ArrayBuffer(9)),
    new Uint8Array(shrinking, 32),
  ]
  const list = views.flatMap((view) => [op.read(file, view, 0), op.nop(), op.write(file, view, 0)])
  for (const view of views.slice(0, 3)) transfer(view)
  shrinking.resize(16)
  const freed = queue.alloc(100)
  list.push(op.read(file, freed, 0), op.nop())
  queue.free(freed)
  const gone = 'ERR_URING_BUFFER_DETACHED'
  t.deepEqual(outcomes(await queue.submit(list)), [
    ...views.flatMap(() => [gone, 0, gone]),
    gone,
    0,
  ])
  for (const link of ['soft', 'hard'] as const) {
    const results = await queue.submit([op.nop(), list[0] as BatchOperation, op.nop()], { link })
    t.deepEqual(outcomes(results), [0, gone, link === 'soft' ? 'ECANCELED' : 0])
  }
  t.is(fs.readFileSync(file.path as string).compare(pattern(100_000)), 0, 'nothing was written')
  assertIdle(t, queue)
})

test('without links plain reads are filled and plain writes complete, in pieces', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const content = pattern(5 * MIB + 3)
  const [from, to] = [scratch(t, content), scratch(t)]
  const [source, dest] = [await queue.open(from), await queue.open(to, 'w')]
  const targets = Array.from({ length: 3 }, () => Buffer.alloc(content.length + 10))
  const results = await queue.submit([
    ...targets.map((target) => op.read(source, target, 0)),
    op.write(dest, content, 0),
    op.write(dest, content.subarray(0, 100), content.length),
  ])
  t.deepEqual(results, [...targets.map(() => content.length), content.length, 100])
  for (const target of targets) t.true(target.subarray(0, content.length).equals(content))
  t.true(fs.readFileSync(to).equals(Buffer.concat([content, content.subarray(0, 100)])))
  assertIdle(t, queue)
})

test('a buffer that is transferred while its read is under way gets nothing, its neighbours all', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const [file] = await twoFiles(t, queue)
  const [gone, target] = [new Uint8Array(10), Buffer.alloc(20)]
  const batch = queue.submit([op.read(stream, gone, 0), op.read(file, target, 0), op.timeout(1)])
  t.true(await isPending(batch, 20))
  const moved = structuredClone(gone, { transfer: [gone.buffer] })
  fs.writeSync(stream.fd, 'abc')
  t.deepEqual(outcomes(await batch), ['ERR_URING_BUFFER_DETACHED', 20, 0])
  t.true(moved.every((byte) => byte === 0))
  t.true(target.equals(pattern(100_000).subarray(0, 20)))
  assertIdle(t, queue)
})

test('a batch on a direct file goes in place where it is aligned, and through whole blocks where not', async (t) => {
  const queue = ring(t)
  const content = pattern(1 << 16)
  const at = scratch(t, content, process.cwd())
  const file = await queue.open(at, 'r+', { direct: true })
  const block = file.alignment?.offsetBytes ?? 0
  t.true(block > 0)
  const mine = queue.alloc(block * 4)
  const odd = Buffer.alloc(1000)
  const { bouncedBytes } = queue.stats()
  t.deepEqual(
    await queue.submit([op.read(file, mine, block), op.write(file, mine.subarray(0, 0), 0)]),
    [block * 4, 0],
  )
  t.is(queue.stats().bouncedBytes, bouncedBytes)
  t.true(mine.equals(content.subarray(block, block * 5)))
  t.deepEqual(
    await queue.submit([op.read(file, odd, 777), op.read(file, mine.subarray(1, 9), 3)]),
    [1000, 8],
  )
  t.true(odd.equals(content.subarray(777, 1777)))
  t.true(mine.subarray(1, 9).equals(content.subarray(3, 11)))
  t.is(thrown(() => op.write(file, odd, 0)).code, 'ERR_URING_ALIGNMENT')
  const appending = await queue.open(at, 'a')
  t.is(thrown(() => op.write(appending, odd, 0)).code, 'ERR_URING_APPEND')
  assertIdle(t, queue)
})

test('a batch that was submitted before its queue or file is closed is done to its end', async (t) => {
  t.timeout(100_000)
  for (const what of ['queue', 'file'] as const) {
    const queue = new Queue()
    const file = await queue.open(scratch(t, pattern(1000)))
    const list = Array.from({ length: 10_000 }, (_, i) =>
      i % 2 === 0 ? op.nop() : op.read(file, Buffer.alloc(4), i % 900),
    )
    const batch = queue.submit(list)
    await (what === 'queue' ? queue : file).close()
    const results = await batch
    t.is(results.filter((result) => result === 4).length, 5000, `closing the ${what}`)
    await queue.close()
  }
})

test('a batch is over when its queue or file is closed with a time: all that was not done says so', async (t) => {
  t.timeout(100_000)
  for (const what of ['queue', 'file'] as const) {
    const queue = new Queue()
    const file = await queue.open(fifo(t), 'r+')
    const mine = queue.alloc(10_000)
    const list = Array.from({ length: 10_000 }, (_, i) => op.read(file, mine.subarray(i, i + 1), 0))
    const batch = queue.submit(list)
    t.true(await isPending(batch, 20))
    await (what === 'queue' ? queue : file).close({ timeoutMs: 0 })
    const codes = new Set(outcomes(await batch))
    codes.delete('ERR_URING_CLOSED')
    t.deepEqual([...codes], ['ABORT_ERR'], `closing the ${what}`)
    await queue.close()
  }
})

test('what a batch has not begun does not begin on a file that is closed with a time, on either side', async (t) => {
  const queue = ring(t)
  const [busy, ends] = [await queue.open(fifo(t), 'r+'), await queue.open(fifo(t), 'r+')]
  const other = await queue.open(scratch(t), 'w')
  // As many as go at once, and what waits behind them.
  const reads = Array.from({ length: 1024 }, () => op.read(busy, Buffer.alloc(1), 0))
  const batch = queue.submit([...reads, op.splice(ends, other, 10), op.splice(other, ends, 10)])
  await queue.nop()
  t.is((await rejection(ends.close({ timeoutMs: 0 }))).code, 'ERR_URING_BUSY')
  await busy.close({ timeoutMs: 0 })
  t.deepEqual([...new Set(outcomes(await batch))], ['ABORT_ERR'])
  // Nothing counts on it any more.
  await other.close()
  assertIdle(t, queue)
})

// ---- very many ------------------------------------------------------------------------------------

test.serial(
  'a million nops and 100,000 reads are one batch each, of which a window is under way',
  async (t) => {
    t.timeout(180_000)
    const told = await childJson<{
      pendingMax: number
      bouncedMax: number
      zero: number
      bytes: number
      wrong: number
      heapPerOperation: number
    }>(
      `import fs from 'node:fs'
     import { Queue, op } from 'node-uring'
     const queue = new Queue()
     let [pendingMax, bouncedMax] = [0, 0]
     const watch = setInterval(() => {
       const { pending, memory } = queue.stats()
       pendingMax = Math.max(pendingMax, pending)
       bouncedMax = Math.max(bouncedMax, memory.bounce.usedBytes)
     }, 1)
     const nop = op.nop()
     const million = new Array(1e6).fill(nop)
     gc()
     const before = process.memoryUsage().heapUsed
     let heapMax = 0
     // All garbage: what a minor collection leaves of it depends on when it comes.
     const heap = setInterval(() => { gc(); heapMax = Math.max(heapMax, process.memoryUsage().heapUsed) }, 50)
     const nops = await queue.submit(million)
     clearInterval(heap)
     const zero = nops.filter((result) => result === 0).length
     const content = fs.readFileSync(process.argv[1])
     const file = await queue.open(process.argv[1])
     const targets = Array.from({ length: 1e5 }, () => Buffer.alloc(16))
     const at = (i) => (i * 7919) % (content.length - 16)
     const counts = await queue.submit(targets.map((target, i) => op.read(file, target, at(i))))
     clearInterval(watch)
     const bytes = counts.reduce((sum, count) => sum + count, 0)
     const wrong = targets.filter((target, i) => target.compare(content, at(i), at(i) + 16) !== 0).length
     await queue.close()
     console.log(JSON.stringify({ pendingMax, bouncedMax, zero, bytes, wrong, heapPerOperation: (heapMax - before) / 1e6 }))`,
      { node: ['--expose-gc'], args: [scratch(t, pattern(1 << 16))], timeoutMs: 150_000 },
    )
    t.is(told.zero, 1_000_000)
    t.is(told.bytes, 1_600_000)
    t.is(told.wrong, 0)
    t.true(told.pendingMax > 0 && told.pendingMax <= 1025, `${told.pendingMax} were under way`)
    t.true(told.bouncedMax <= 1024 * 4096, `${told.bouncedMax} bytes of bounce memory`)
    // A pointer in the copy of the list and one in the results.
    t.true(told.heapPerOperation < 40, `${told.heapPerOperation} bytes of heap for each`)
  },
)

test('a batch that rejects closes the files that it opened', async (t) => {
  const queue = ring(t)
  const path = scratch(t, Buffer.of())
  const list = [op.open(path), op.open('/nowhere/at/all'), op.open(path, 'r+')]
  t.is((await rejection(queue.submit(list, { throwOnError: true }))).code, 'ENOENT')
  t.is(queue.stats().files, 0)
  t.is(descriptorsOf(path), 0, 'it rejects when they are closed')
  const [one, error, other] = await queue.submit(list)
  t.true(error instanceof Error)
  t.is(queue.stats().files, 2)
  await (one as File).close()
  await (other as File).close()
  assertIdle(t, queue)
})

test('each operation that its limits keep from beginning has an error of its own', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const list = () => [
    op.read(file, Buffer.alloc(8), 0),
    op.write(file, Buffer.alloc(8), 0),
    op.datasync(file),
  ]
  const late = await queue.submit(list(), { timeoutMs: 0 })
  const expected = ['read', 'write', 'fdatasync'].map((syscall) => ({
    code: 'ERR_URING_TIMEOUT',
    syscall,
    bytesWritten: syscall === 'write' ? 0 : undefined,
  }))
  const shown = (results: readonly unknown[]) =>
    results.map((result) => {
      const { code, syscall, bytesWritten } = result as Record<string, unknown>
      return { code, syscall, bytesWritten }
    })
  t.deepEqual(shown(late), expected)
  const aborted = await queue.submit(list(), { signal: AbortSignal.abort() })
  t.deepEqual(
    aborted.map((error) => (error as { bytesWritten?: number }).bytesWritten),
    [undefined, 0, undefined],
  )
  assertIdle(t, queue)
})

test('the event loop comes round while a long batch that was aborted ends', async (t) => {
  for (const limit of ['signal', 'timeoutMs'] as const) {
    const queue = ring(t)
    const controller = new AbortController()
    const list = new Array<BatchOperation>(50_000).fill(op.timeout(3_600_000))
    const options = limit === 'signal' ? { signal: controller.signal } : { timeoutMs: 20 }
    let isOver = false
    const batch = queue.submit(list, options).finally(() => {
      isOver = true
    })
    controller.abort()
    let rounds = 0
    for (; !isOver; rounds++) await setImmediate()
    const results = await batch
    t.is(new Set(results).size, results.length, 'each has an error of its own')
    t.true(rounds > 20, `${rounds} rounds`)
    assertIdle(t, queue)
  }
})

test('a timeout that counts others counts each of many', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(10)))
  await file.stat()
  for (const many of [
    () => queue.nops(5),
    () => file.readMany(Float64Array.of(0, 1, 2, 3, 4), 1, Buffer.alloc(5)),
  ]) {
    const counted = queue.submit([op.timeout(3_600_000, { count: 3 })])
    t.true(await isPending(counted))
    await many()
    t.deepEqual(await counted, [0])
  }
  assertIdle(t, queue)
})
