// msg_ring: numbers that queues post to each other, in one thread and between threads. Each arrives once
// and as it was, also where the other sleeps, stands still or ends; a number that is no queue's reaches
// nobody; a listener keeps a program alive, and lets it end.

import fs from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { op, type Queue, type QueueOptions } from 'node-uring'
import { assertEnded, childJson, fixture, runChild } from './helpers/child.js'
import { assertIdle, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'

const [MIN, MAX] = [-(2 ** 31), 2 ** 31 - 1]
/** Some of which the kernel, or we, would take for an errno, for none, or for a slot. */
const VALUES = [0, 1, -1, MIN, MAX, -125, -4, -512, -516, 2 ** 30, 65_536]
/** Messages that are kept for a listener. */
const KEPT = 65_536

/** Ways to be woken and to have completion work done; whether libuv's functions are hidden. */
const KINDS: readonly (readonly [QueueOptions, hidden?: boolean])[] = [
  [{ setup: { taskRun: 'defer' } }],
  [{ setup: { taskRun: 'cooperative' } }],
  [{ setup: { taskRun: 'interrupt' } }],
  [{ sqpoll: { idleMs: 5 } }],
  [{ reap: 'thread' }],
  [{ reap: 'poll' }],
  [{}, true],
  [{ flushDelayUs: 500 }],
]

/** The messages that come to a queue from now on, up to `count`. */
function heard(queue: Queue, count: number): Promise<number[]> {
  const values: number[] = []
  return new Promise((resolve) => {
    queue.onmessage = (value) => {
      values.push(value)
      if (values.length === count) resolve(values)
    }
  })
}

const sorted = (values: readonly number[]): number[] => [...values].sort((a, b) => a - b)

const NONE = { received: 0, waiting: 0, dropped: 0 }

// ---- arriving -------------------------------------------------------------------------------------

for (const [options, hidden = false] of KINDS) {
  const kind = `${JSON.stringify(options)}${hidden ? ' without the functions of libuv' : ''}`
  const env = { NODE_URING_TEST_HIDE_LIBUV: hidden ? '1' : '0' }

  if (!hidden) {
    test(`msg_ring: a message is told once and as it was, to a queue with ${kind}`, async (t) => {
      const [from, to] = [ring(t), ring(t, options)]
      const values = heard(to, VALUES.length)
      await Promise.all(VALUES.map((value) => from.post(to.handle, value)))
      t.deepEqual(sorted(await values), sorted(VALUES))
      await to.sleep(5)
      t.deepEqual(to.stats().messages, { ...NONE, received: VALUES.length })
      t.is(to.stats().completed, 1, 'a message is no operation')
      // And the other way, and to itself.
      for (const other of [from, to]) {
        const one = heard(other, 1)
        t.is(await to.post(other.handle, 77), undefined)
        t.deepEqual(await one, [77])
        assertIdle(t, other)
      }
    })
  }

  const count = options.setup === undefined ? 20_000 : 100_000
  test(`msg_ring: ${count} messages each way between main thread and worker, with ${kind}`, async (t) => {
    t.timeout(120_000)
    const args = ['both', JSON.stringify(options), String(count)]
    const told = await childJson<Record<'main' | 'worker', object> & { exit: number }>(
      fixture('posting.mjs'),
      { args, env, timeoutMs: 100_000 },
    )
    const all = { posted: { posted: count }, wrong: 0, stale: 0, ...NONE, received: count }
    t.like(told.main, all)
    t.like(told.worker, all)
    t.is(told.exit, 0)
  })

  test(`msg_ring: a worker that waits for nothing else is woken by each message, with ${kind}`, async (t) => {
    t.timeout(60_000)
    const args = ['ping', JSON.stringify(options), '500']
    const told = await childJson(fixture('posting.mjs'), { args, env, timeoutMs: 50_000 })
    // It ends when it listens no more.
    t.like(told, { wrong: 0, exit: 0, stale: 0, received: 500 })
  })

  test(`msg_ring: workers that are terminated at work lose nobody's promise, with ${kind}`, async (t) => {
    t.timeout(60_000)
    const args = ['terminate', JSON.stringify(options), '0']
    const told = await childJson<{ outcomes: string[] }>(fixture('posting.mjs'), {
      args,
      env,
      timeoutMs: 50_000,
    })
    t.like(told, { stale: 0, pending: 0, inFlight: 0 })
    // Gone, or, for a moment, closed and not gone.
    const gone = told.outcomes.filter((outcome) => outcome !== 'posted')
    t.true(gone.length > 0 && gone.every((code) => ['EBADF', 'EBADFD'].includes(code)))
  })
}

for (const taskRun of ['defer', 'cooperative', 'interrupt']) {
  test(`msg_ring: what is posted past the completion queue of a thread that stands still arrives (${taskRun})`, async (t) => {
    t.timeout(60_000)
    const options = { entries: 2, cqEntries: 2, setup: { taskRun } }
    const args = ['blocked', JSON.stringify(options), '20000']
    const told = await childJson<{ worker: { overflown: boolean } }>(fixture('posting.mjs'), {
      args,
      timeoutMs: 50_000,
    })
    const worker = { wrong: 0, stale: 0, ...NONE, received: 20_000 }
    // The kernel keeps them, and says EOVERFLOW to none.
    t.like(told, { posted: { posted: 20_000 }, worker, exit: 0 })
    t.true(told.worker.overflown || taskRun === 'defer', 'it did overflow')
  })
}

// ---- listening ------------------------------------------------------------------------------------

test('msg_ring: messages wait for a listener, up to a bound, and those past it are counted', async (t) => {
  const [from, to] = [ring(t), ring(t)]
  const { handle } = to
  const count = KEPT + 1000
  const batch = Array.from({ length: count }, (_, i) => op.post(handle, i))
  t.true((await from.submit(batch)).every((result) => result === 0))
  await to.nop()
  while (to.stats().messages.received < count) await setImmediate()
  t.deepEqual(to.stats().messages, { received: count, waiting: KEPT, dropped: 1000 })
  t.is(to.stats().stale, 0)
  const values = await heard(to, KEPT)
  t.is(new Set(values).size, KEPT)
  t.deepEqual(to.stats().messages, { received: count, waiting: 0, dropped: 1000 })
  const next = heard(to, 1)
  await from.post(handle, -1)
  t.deepEqual(await next, [-1])
})

test('msg_ring: onmessage tells its listener; undefined and null take it away, anything else throws', async (t) => {
  const queue = ring(t)
  t.is(queue.onmessage, null)
  const listener = (): void => {}
  for (const nobody of [null, undefined]) {
    queue.onmessage = listener
    t.is(queue.onmessage, listener)
    queue.onmessage = nobody
    t.is(queue.onmessage, null)
  }
  queue.onmessage = listener
  for (const wrong of [0, 'x', {}, true, Symbol('x')]) {
    const error = thrown(() => {
      queue.onmessage = wrong as never
    })
    t.is(error.code, 'ERR_INVALID_ARG_TYPE')
    t.regex(error.message, /onmessage/)
  }
  t.is(queue.onmessage, listener, 'it stays')
})

test('msg_ring: a listener that takes itself away is told no more, and the rest waits for the next', async (t) => {
  const queue = ring(t)
  const first: number[] = []
  queue.onmessage = (value) => {
    first.push(value)
    if (first.length === 3) queue.onmessage = null
  }
  await queue.submit(Array.from({ length: 10 }, (_, i) => op.post(queue.handle, i)))
  while (queue.stats().messages.received < 10) await setImmediate()
  t.deepEqual([first.length, queue.stats().messages.waiting], [3, 7])
  const rest = heard(queue, 7)
  t.is(queue.stats().messages.waiting, 7, 'not from inside of the assignment')
  t.deepEqual(sorted([...first, ...(await rest)]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
})

test('msg_ring: an exception in a listener is uncaught, and no message and no operation is lost', async (t) => {
  const program = `
    import { op, Queue } from 'node-uring'
    const queue = new Queue()
    const [caught, told] = [[], []]
    process.on('uncaughtException', ({ message }) => caught.push(message))
    queue.onmessage = (value) => {
      if (value % 3 === 0) throw new Error(String(value))
      told.push(value)
    }
    const posts = Array.from({ length: 10 }, (_, i) => op.post(queue.handle, i))
    const results = await queue.submit([...posts, op.nop()])
    while (caught.length + told.length < 10) await queue.sleep(1)
    await queue.close()
    console.log(JSON.stringify({ caught, told, results }))`
  t.deepEqual(await childJson(program, { timeoutMs: 20_000 }), {
    caught: ['0', '3', '6', '9'],
    told: [1, 2, 4, 5, 7, 8],
    results: Array(11).fill(0),
  })
  const uncaught = `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    queue.onmessage = () => { throw new Error('mine') }
    queue.post(queue.handle, 1)`
  assertEnded(t, await runChild(uncaught), { code: 1, stderr: /Error: mine\n/ })
})

test('msg_ring: a queue is closed from inside of its listener, while others of its operations end', async (t) => {
  const [from, queue] = [ring(t), ring(t)]
  const late = rejection(queue.sleep(60_000))
  let count = 0
  const closed = new Promise<void>((resolve) => {
    queue.onmessage = () => {
      count++
      resolve(queue.close({ timeoutMs: 0 }))
    }
  })
  const nops = Array.from({ length: 20 }, () => queue.nop())
  await from.submit(Array.from({ length: 20 }, (_, i) => op.post(queue.handle, i)))
  await closed
  await Promise.allSettled(nops)
  t.is((await late).code, 'ABORT_ERR')
  t.true(count >= 1 && count <= 20)
  t.is(queue.stats().stale, 0)
  queue.onmessage = null
})

test('msg_ring: a listener keeps a program alive until it is taken away, unwanted or closed', async (t) => {
  t.timeout(60_000)
  // The timer keeps nothing alive: it fires only where something else does. Where nothing should, it is
  // so late that no busy machine comes to it before the end.
  const program = (first: string, then: string, ms: number): string => `
    import { Queue } from 'node-uring'
    const queue = new Queue({ reap: process.argv[1] })
    ${first}
    setTimeout(() => { console.log('alive'); ${then} }, ${ms}).unref()`
  const listen = 'queue.onmessage = () => {};'
  const cases = [
    [listen, 'queue.onmessage = null', 'alive\n'],
    [listen, 'queue.unref()', 'alive\n'],
    [listen, 'queue.close()', 'alive\n'],
    [`queue.unref(); ${listen} queue.ref()`, 'queue.onmessage = undefined', 'alive\n'],
    ['', '', ''],
    [`${listen} queue.onmessage = null`, '', ''],
    [`${listen} queue.unref()`, '', ''],
    [`queue.unref(); ${listen}`, '', ''],
    [`${listen} queue.close()`, '', ''],
    [`await queue.close(); ${listen}`, '', ''],
  ] as const
  for (const reap of ['eventfd', 'thread', 'poll']) {
    for (const [first, then, stdout] of reap === 'poll' ? cases.slice(0, 2) : cases) {
      const ms = stdout === '' ? 10_000 : 100
      const ended = await runChild(program(first, then, ms), { args: [reap], timeoutMs: 30_000 })
      assertEnded(t, ended, { stdout }, `${reap}: ${first} ${then}:`)
    }
  }
})

test('msg_ring: a queue that listens and hears nothing takes no CPU', async (t) => {
  t.timeout(30_000)
  const program = `
    import { setTimeout } from 'node:timers/promises'
    import { Queue } from 'node-uring'
    const queues = ['eventfd', 'thread', 'poll'].map((reap) => new Queue({ reap }))
    for (const queue of queues) queue.onmessage = () => {}
    await setTimeout(100)
    const from = process.cpuUsage()
    await setTimeout(1000)
    const { user, system } = process.cpuUsage(from)
    for (const queue of queues) await queue.close()
    console.log(String((user + system) / 1000))`
  const cpuMs = await childJson<number>(program, { timeoutMs: 20_000 })
  t.true(cpuMs < 200, `${cpuMs} of 1000 ms`)
})

// ---- to whom ----------------------------------------------------------------------------------------

test('msg_ring: a number that is no queue is refused in the words of the kernel', async (t) => {
  const queue = ring(t)
  const fd = fs.openSync('/dev/null', 'r')
  t.teardown(() => fs.closeSync(fd))
  t.like(await rejection(queue.post(fd, 1)), {
    code: 'EBADFD',
    errno: -77,
    syscall: 'msg_ring',
    message: 'EBADFD: file descriptor in bad state, msg_ring',
  })
  t.like(await rejection(queue.post(MAX, 1)), {
    code: 'EBADF',
    message: 'EBADF: bad file descriptor, msg_ring',
  })
  assertIdle(t, queue)
})

test('msg_ring: a queue that is closed is refused, and takes none with it', async (t) => {
  const told = await childJson<string[]>(`
    import { Queue } from 'node-uring'
    const [from, to] = [new Queue(), new Queue()]
    const { handle } = to
    const code = (promise) => promise.then(() => 'posted', ({ code }) => code)
    const outcomes = [await code(from.post(handle, 1))]
    await to.close()
    outcomes.push(await code(from.post(handle, 1)), await code(to.post(from.handle, 1)))
    console.log(JSON.stringify(outcomes))
    await from.close()`)
  t.deepEqual(told, ['posted', 'EBADF', 'ERR_URING_CLOSED'])
})

test("msg_ring: rings of this process that are not ours, libuv's, get nothing", async (t) => {
  t.timeout(30_000)
  // libuv takes what it finds in its rings for addresses.
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    await fs.promises.readFile('/dev/null')
    const queue = new Queue()
    const rings = fs.readdirSync('/proc/self/fd').map(Number).filter((fd) => {
      try { return fs.readlinkSync('/proc/self/fd/' + fd).includes('io_uring') } catch { return false }
    })
    const code = (promise) => promise.then(() => 'posted', ({ code }) => code)
    const outcomes = {}
    for (let fd = 0; fd < 100; fd++) {
      if (fd === queue.handle) continue
      const outcome = await code(queue.post(fd, 1))
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      await fs.promises.readFile('/dev/null')
    }
    await queue.close()
    console.log(JSON.stringify({ theirs: rings.length - 1, outcomes: Object.keys(outcomes).sort() }))`
  const env = { UV_USE_IO_URING: '1' }
  const told = await childJson<{ theirs: number; outcomes: string[] }>(program, { env })
  t.deepEqual(told.outcomes, ['EBADF', 'EBADFD'])
  t.log(`${told.theirs} rings of libuv`)
})

test('msg_ring: no message makes an operation of the other queue complete', async (t) => {
  const [from, to] = [ring(t), ring(t)]
  const sleeps = Array.from({ length: 300 }, () => rejection(to.sleep(60_000)))
  await to.nop()
  const values = Array.from({ length: 300 }, (_, slot) => [slot, -slot, slot << 16, ~slot]).flat()
  await Promise.all(values.map((value) => from.post(to.handle, value)))
  to.onmessage = () => {}
  while (to.stats().messages.received < values.length) await setImmediate()
  t.true(await isPending(Promise.race(sleeps)))
  const { inFlight, pending, stale, completed } = to.stats()
  t.deepEqual(
    { inFlight, pending, stale, completed },
    { inFlight: 300, pending: 300, stale: 0, completed: 1 },
  )
  to.onmessage = null
  await to.close({ timeoutMs: 0 })
  t.true((await Promise.all(sleeps)).every(({ code }) => code === 'ABORT_ERR'))
})

// ---- as an operation --------------------------------------------------------------------------------

test('msg_ring: what is no handle and no 32-bit integer throws, and nothing is staged', (t) => {
  const queue = ring(t)
  const { handle } = queue
  const wrong: [unknown, unknown, string, RegExp][] = [
    [-1, 0, 'ERR_OUT_OF_RANGE', /"handle"/],
    [1.5, 0, 'ERR_OUT_OF_RANGE', /"handle"/],
    [2 ** 31, 0, 'ERR_OUT_OF_RANGE', /"handle"/],
    [Number.NaN, 0, 'ERR_OUT_OF_RANGE', /"handle"/],
    [String(handle), 0, 'ERR_INVALID_ARG_TYPE', /"handle"/],
    [BigInt(handle), 0, 'ERR_INVALID_ARG_TYPE', /"handle"/],
    [queue, 0, 'ERR_INVALID_ARG_TYPE', /"handle"/],
    [undefined, 0, 'ERR_INVALID_ARG_TYPE', /"handle"/],
    [handle, MAX + 1, 'ERR_OUT_OF_RANGE', /"value"/],
    [handle, MIN - 1, 'ERR_OUT_OF_RANGE', /"value"/],
    [handle, 0.5, 'ERR_OUT_OF_RANGE', /"value"/],
    [handle, Number.NaN, 'ERR_OUT_OF_RANGE', /"value"/],
    [handle, Number.POSITIVE_INFINITY, 'ERR_OUT_OF_RANGE', /"value"/],
    [handle, '1', 'ERR_INVALID_ARG_TYPE', /"value"/],
    [handle, 1n, 'ERR_INVALID_ARG_TYPE', /"value"/],
    [handle, null, 'ERR_INVALID_ARG_TYPE', /"value"/],
    [handle, undefined, 'ERR_INVALID_ARG_TYPE', /"value"/],
  ]
  for (const [to, value, code, words] of wrong) {
    for (const call of [
      () => queue.post(to as never, value as never),
      () => op.post(to as never, value as never),
    ]) {
      const error = thrown(call, `${String(to)}, ${String(value)}`)
      t.is(error.code, code)
      t.regex(error.message, words)
    }
  }
  t.is(thrown(() => queue.post(handle, 1, { timeoutMs: -1 })).code, 'ERR_OUT_OF_RANGE')
  t.is(thrown(() => queue.post(handle, 1, { signal: {} as never })).code, 'ERR_INVALID_ARG_TYPE')
  const { pending, inFlight, submitted } = queue.stats()
  t.deepEqual({ pending, inFlight, submitted }, { pending: 0, inFlight: 0, submitted: 0 })
})

test('msg_ring: a message that is aborted or late before it is submitted is not posted', async (t) => {
  const [from, to] = [ring(t, { flushDelayUs: 100_000 }), ring(t)]
  const { handle } = to
  const aborted = await rejection(from.post(handle, 1, { signal: AbortSignal.abort() }))
  t.is(aborted.name, 'AbortError')
  t.is((await rejection(from.post(handle, 2, { timeoutMs: 0 }))).code, 'ERR_URING_TIMEOUT')
  const controller = new AbortController()
  const staged = rejection(from.post(handle, 3, { signal: controller.signal }))
  controller.abort(new Error('mine'))
  t.is(((await staged).cause as Error).message, 'mine')
  // Behind a drain nothing is submitted before what is ahead of it is over.
  const sleeping = new AbortController()
  const slept = rejection(from.sleep(60_000, { signal: sleeping.signal }))
  const drained = from.submit([op.nop()], { drain: true })
  t.is((await rejection(from.post(handle, 4, { timeoutMs: 5 }))).code, 'ERR_URING_TIMEOUT')
  sleeping.abort()
  t.deepEqual([(await slept).name, await drained], ['AbortError', [0]])
  const one = heard(to, 1)
  const limits = { signal: new AbortController().signal, timeoutMs: 60_000 }
  await from.post(handle, 5, limits)
  t.deepEqual(await one, [5])
  await to.sleep(5)
  t.is(to.stats().messages.received, 1)
  assertIdle(t, from)
})

test('msg_ring: in a chain it is posted when what is before it has succeeded, and not otherwise', async (t) => {
  const [queue, to] = [ring(t), ring(t)]
  const { handle } = to
  const path = scratch(t)
  const file = await queue.open(path, 'w')
  const first = new Promise<[number, string]>((resolve) => {
    to.onmessage = (value) => resolve([value, fs.readFileSync(path, 'utf8')])
  })
  const list = [op.write(file, Buffer.from('done'), 0), op.datasync(file), op.post(handle, 1)]
  t.deepEqual(await queue.submit(list, { link: 'soft' }), [4, 0, 0])
  t.deepEqual(await first, [1, 'done'])
  const readOnly = await queue.open(path)
  const codes = (results: unknown[]): unknown[] =>
    results.map((result) => (result as { code?: string }).code ?? result)
  const fails = op.write(readOnly, Buffer.from('x'), 0)
  const soft = await queue.submit([fails, op.post(handle, 2)], { link: 'soft' })
  t.deepEqual(codes(soft), ['EBADF', 'ECANCELED'])
  const broken = await queue.submit([op.post(MAX, 3), op.post(handle, 4)], { link: 'soft' })
  t.deepEqual(codes(broken), ['EBADF', 'ECANCELED'])
  const second = heard(to, 1)
  const hard = await queue.submit([op.post(MAX, 5), op.post(handle, 6)], { link: 'hard' })
  t.deepEqual(codes(hard), ['EBADF', 0])
  t.deepEqual(await second, [6])
  await to.sleep(5)
  t.is(to.stats().messages.received, 2)
})

test('msg_ring: a queue that is restricted hears, and posts where that is among its operations', async (t) => {
  const [deaf, free] = [ring(t, { restrict: { operations: ['read'] } }), ring(t)]
  const told = heard(deaf, 1)
  await free.post(deaf.handle, 3)
  t.deepEqual(await told, [3])
  t.like(await rejection(deaf.post(free.handle, 4)), { code: 'EACCES', syscall: 'msg_ring' })
  const may = ring(t, { restrict: { operations: ['msg_ring'] } })
  const back = heard(free, 1)
  await may.post(free.handle, 5)
  t.deepEqual(await back, [5])
})

test('msg_ring: where nobody can post it says so, and why', async (t) => {
  t.true(ring(t).capabilities.operations.msg_ring)
  for (const [queue, is] of [
    [ring(t, { without: ['msg_ring'] }), 'io_uring'],
    [ring(t, { backend: 'node:fs' }), 'node:fs'],
  ] as const) {
    t.is(queue.backend, is)
    t.not(queue.capabilities.operations.msg_ring, true)
    const listen = (): void => {
      queue.onmessage = () => {}
    }
    for (const call of [() => queue.post(5, 1), () => queue.submit([op.post(5, 1)]), listen]) {
      const error = thrown(call)
      t.is(error.code, 'ERR_URING_UNSUPPORTED')
      t.regex(error.message, /msg_ring.*Linux 5\.18/)
    }
    t.is(thrown(() => queue.post(5, 0.5)).code, 'ERR_OUT_OF_RANGE')
    queue.onmessage = null
    t.deepEqual(queue.stats().messages, NONE)
    await queue.nop()
  }
})
