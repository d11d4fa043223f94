// Who watches operations: latency histograms, subscribers of node:diagnostics_channel, and a nop's way
// in stages. All of it is told of what happened, and changes nothing of it.

import { subscribe, tracingChannel, unsubscribe } from 'node:diagnostics_channel'
import fs from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { type OperationMessage, op, Queue } from 'node-uring'
import { assertEnded, runChild } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import test, { BACKEND, type ExecutionContext } from './helpers/test.js'

const NAME = 'node-uring:operation'

type Event = [event: string, message: OperationMessage]

/** Subscribes until the test is over, to what is about this path. */
function listen(t: ExecutionContext, about: string): { events: Event[]; stop: () => void } {
  const events: Event[] = []
  const channels = tracingChannel<unknown, OperationMessage>(NAME)
  const on = (event: string) => (message: OperationMessage) => {
    // Before its first short read a file is asked what it is.
    if (message.path === about && message.operation !== 'fstat') events.push([event, message])
  }
  const names = ['start', 'end', 'asyncStart', 'asyncEnd', 'error'] as const
  const subscribers = Object.fromEntries(names.map((name) => [name, on(name)])) as never
  channels.subscribe(subscribers)
  const stop = () => channels.unsubscribe(subscribers)
  t.teardown(stop)
  return { events, stop }
}

const told = (events: readonly Event[]) =>
  events.map(([event, { operation }]) => `${event} ${operation}`)
const MADE = ['start', 'end', 'asyncStart', 'asyncEnd']
const all = (operation: string) => MADE.map((event) => `${event} ${operation}`)

test('a subscriber is told of an operation when it starts and when it settles, with what it came to', async (t) => {
  const queue = ring(t)
  const path = scratch(t, pattern(10_000))
  const { events } = listen(t, path)
  const file = await queue.open(path)
  const { fd } = file
  await file.readAt(Buffer.alloc(4096), 8192)
  await file.close()
  t.deepEqual(told(events), [...all('open'), ...all('read'), ...all('close')])
  const [, read] = events[4] as Event
  t.like(read, { path, fd, length: 4096, position: 8192, result: 10_000 - 8192 })
  // One message goes through all of them, so that a subscriber can keep things beside it.
  t.true(events.slice(4, 8).every(([, message]) => message === read))
  t.is(read.error, undefined)
})

test('a failure is told as error, before the settling, and says what is thrown', async (t) => {
  const queue = ring(t)
  const path = `${scratch(t)}-is-not-there`
  const { events } = listen(t, path)
  const thrown = await rejection(queue.open(path))
  t.deepEqual(told(events), [
    'start open',
    'end open',
    'error open',
    'asyncStart open',
    'asyncEnd open',
  ])
  const [, message] = events[0] as Event
  t.is(message.error?.message, (thrown as Error).message)
  t.is(message.result, undefined)
})

test('every member of a chain and of a batch is told of, each with its own result', async (t) => {
  const queue = ring(t)
  const path = scratch(t, pattern(100))
  const file = await queue.open(path, 'r+')
  const { events, stop } = listen(t, path)
  await queue.submit([op.write(file, Buffer.alloc(7), 0), op.fsync(file)], { link: 'soft' })
  await queue.submit([op.read(file, Buffer.alloc(5), 0), op.read(file, Buffer.alloc(6), 0)])
  stop()
  const settled = events.filter(([event]) => event === 'asyncEnd')
  t.deepEqual(settled.map(([, { operation, result }]) => `${operation} ${result}`).sort(), [
    'fsync 0',
    'read 5',
    'read 6',
    'write 7',
  ])
  await file.close()
})

test('a long read in pieces and a write with its fdatasync are told of once', async (t) => {
  const queue = ring(t)
  const bytes = 5 << 20
  const path = scratch(t, pattern(bytes))
  const file = await queue.open(path, 'r+')
  const { events, stop } = listen(t, path)
  await file.readAt(Buffer.alloc(bytes), 0)
  await file.writeAt(Buffer.alloc(3 << 20), 0, { datasync: true })
  stop()
  const settled = events.filter(([event]) => event === 'asyncEnd')
  t.deepEqual(
    settled.map(([, { operation, result }]) => [operation, result]),
    [
      ['read', bytes],
      ['write', 3 << 20],
    ],
  )
  await file.close()
})

test('parts of many are told of with how many they are', async (t) => {
  const queue = ring(t)
  const path = scratch(t, pattern(10_000))
  const file = await queue.open(path)
  await file.stat()
  const { events, stop } = listen(t, path)
  const positions = Float64Array.from({ length: 100 }, (_, i) => i * 100)
  await file.readMany(positions, 100, Buffer.alloc(10_000))
  stop()
  const many = events.filter(
    ([event, { operation }]) => event === 'start' && operation === 'readMany',
  )
  t.true(many.length > 0)
  t.is(
    many.reduce((sum, [, { count = 0 }]) => sum + count, 0),
    100,
  )
  await file.close()
})

// Serial: the subscribers of other tests are subscribers, too.
test.serial(
  'what began before somebody subscribed is not told of, and nothing after the end of it',
  async (t) => {
    const queue = ring(t)
    const path = scratch(t, pattern(100))
    const file = await queue.open(path)
    const before = file.readAt(Buffer.alloc(10), 0)
    const { events, stop } = listen(t, path)
    await before
    const during = file.readAt(Buffer.alloc(20), 0)
    await during
    stop()
    await file.readAt(Buffer.alloc(30), 0)
    t.deepEqual(
      events
        .filter(([, { operation }]) => operation === 'read')
        .map(([event, { length }]) => `${event} ${length}`),
      MADE.map((event) => `${event} 20`),
    )
    await file.close()
    assertIdle(t, queue)
  },
)

for (const event of ['start', 'end', 'asyncStart', 'asyncEnd', 'error']) {
  test(`one channel alone can be subscribed to: ${event}`, async (t) => {
    const queue = ring(t)
    const path = `${scratch(t)}-none`
    let times = 0
    const on = (message: unknown) => {
      if ((message as OperationMessage).path === path) times++
    }
    subscribe(`tracing:${NAME}:${event}`, on)
    t.teardown(() => unsubscribe(`tracing:${NAME}:${event}`, on))
    await rejection(queue.open(path))
    t.is(times, 1)
  })
}

test('a subscriber that throws is reported as uncaught, and the operation settles as if there were none', async (t) => {
  t.timeout(30_000)
  const program = `
    import { subscribe } from 'node:diagnostics_channel'
    import { Queue } from 'node-uring'
    const caught = []
    process.on('uncaughtException', (error) => caught.push(error.message))
    for (const event of ['start', 'end', 'asyncStart', 'asyncEnd']) {
      subscribe('tracing:${NAME}:' + event, () => { throw new Error(event) })
    }
    const queue = new Queue({ backend: '${BACKEND}' })
    await queue.nop()
    await queue.close()
    console.log(caught.join())`
  assertEnded(t, await runChild(program), { stdout: 'start,end,asyncStart,asyncEnd\n' })
})

test('a transfer in pieces that began before is told of neither then nor later', async (t) => {
  const queue = ring(t)
  const path = scratch(t, pattern(4 << 20))
  const file = await queue.open(path)
  await file.stat()
  const before = file.readAt(Buffer.alloc(4 << 20), 0)
  const { events, stop } = listen(t, path)
  await before
  stop()
  // But for what other tests subscribe to at the same time, which is then told of whole.
  t.false(told(events)[0]?.startsWith('start') ?? false, told(events).join())
  await file.close()
})

test('a write in a chain that was short is told of as a failure', async (t) => {
  const queue = ring(t)
  const path = fifo(t)
  const { O_RDWR, O_NONBLOCK } = fs.constants
  const pipe = await queue.open(path, O_RDWR | O_NONBLOCK)
  const { events, stop } = listen(t, path)
  const [end] = await queue.submit([op.write(pipe, Buffer.alloc(1 << 20), 0), op.nop()], {
    link: 'soft',
  })
  stop()
  t.is((end as { code?: string }).code, 'ERR_URING_SHORT_WRITE')
  const [, message] = events.find(([event]) => event === 'error') ?? []
  t.is(message?.error?.message, (end as unknown as Error).message)
})

test('a subscriber may abort what begins, though it would have to wait', async (t) => {
  const queue = ring(t, { bounceBytes: 2 << 20 })
  const pipe = await queue.open(fifo(t), 'r+')
  const held = [1, 2, 3].map(() => pipe.readAt(Buffer.alloc(1 << 20), 0))
  const path = scratch(t, pattern(100))
  const file = await queue.open(path)
  const controller = new AbortController()
  const on = (message: unknown) => {
    const { path: of, operation } = message as OperationMessage
    if (of === path && operation === 'read') controller.abort()
  }
  subscribe(`tracing:${NAME}:start`, on)
  t.teardown(() => unsubscribe(`tracing:${NAME}:start`, on))
  const read = file.readAt(Buffer.alloc(10), 0, { signal: controller.signal })
  t.is((await rejection(read)).name, 'AbortError')
  // The next byte when a read has settled, or one could get both.
  let settled = 0
  for (const read of held) void read.then(() => settled++)
  for (let given = 1; given <= 3; given++) {
    fs.writeSync(pipe.fd, 'x')
    while (settled < given) await setTimeout(1)
  }
  t.deepEqual(await Promise.all(held), [1, 1, 1])
  assertIdle(t, queue)
})

test('a message that a subscriber has frozen is its own affair', async (t) => {
  t.timeout(30_000)
  const program = `
    import { subscribe } from 'node:diagnostics_channel'
    import { Queue } from 'node-uring'
    let caught = 0
    process.on('uncaughtException', () => caught++)
    subscribe('tracing:${NAME}:start', (message) => Object.freeze(message))
    const queue = new Queue({ backend: '${BACKEND}' })
    const folder = await queue.open('/')
    const ends = await Promise.allSettled([queue.nop(), folder.readAt(Buffer.alloc(3), 0), queue.nop()])
    const { pending } = queue.stats()
    await folder.close()
    await queue.close()
    console.log(ends.map(({ status, reason }) => reason?.code ?? status).join(), pending, caught > 0)`
  const stdout = 'fulfilled,EISDIR,fulfilled 0 true\n'
  assertEnded(t, await runChild(program), { stdout })
})

if (BACKEND === 'io_uring') {
  test('a subscriber may close a queue that has failed', async (t) => {
    t.timeout(30_000)
    const program = `
      import fs from 'node:fs'
      import { subscribe } from 'node:diagnostics_channel'
      import { Queue } from 'node-uring'
      const queue = new Queue({ setup: { registeredDescriptor: false } })
      subscribe('tracing:${NAME}:asyncStart', ({ error }) => error && queue.close())
      const all = [queue.sleep(5000), queue.sleep(5000), queue.sleep(5000)]
      await new Promise((resolve) => setTimeout(resolve, 20))
      all.push(queue.nop())
      // The ring's descriptor is gone: enter fails with EBADF.
      fs.closeSync(queue.handle)
      const ends = await Promise.allSettled(all)
      await queue.close()
      console.log(ends.map(({ reason }) => reason?.code).join(), queue.stats().pending)`
    const stdout = `${Array(4).fill('ERR_URING_FAILED').join()} 0\n`
    assertEnded(t, await runChild(program), { stdout })
  })

  test('stages are measured on a queue where nothing else is under way', async (t) => {
    const queue = ring(t)
    const one = queue.nopRoundTrip({ samples: 10, stages: true })
    t.throws(() => queue.nopRoundTrip({ stages: true }), { code: 'ERR_URING_UNSUPPORTED' })
    t.is((await one).samples, 10)
  })
}

test('with the option latency, stats has how long operations took, by their names', async (t) => {
  const queue = ring(t, { latency: true })
  const path = scratch(t, pattern(10_000))
  t.deepEqual(queue.stats().latency, {})
  const file = await queue.open(path)
  for (let i = 0; i < 3000; i++) await file.readAt(Buffer.alloc(10), i)
  await Promise.all([
    queue.nop(),
    queue.nop(),
    queue.nops(10),
    rejection(queue.open(`${path}-none`)),
  ])
  await file.close()
  const { latency = {} } = queue.stats()
  const counts = Object.fromEntries(
    Object.entries(latency).map(([name, { count }]) => [name, count]),
  )
  t.deepEqual({ ...counts, fstat: 0 }, { open: 2, read: 3000, nop: 2, nops: 1, close: 1, fstat: 0 })
  for (const [name, { ns }] of Object.entries(latency)) {
    const order = [1, ns.min, ns.p50, ns.p90, ns.p99, ns.p999, ns.max, 60e9]
    t.deepEqual(
      order,
      [...order].sort((a, b) => a - b),
      name,
    )
  }
  await queue.close()
  t.is(queue.stats().latency?.['read']?.count, 3000)
})

test('the latency of an operation is that from its call to its settling, waiting included', async (t) => {
  const queue = ring(t, { latency: true })
  await Promise.all([queue.sleep(60), queue.sleep(30)])
  const { count, ns } = queue.stats().latency?.['timeout'] ?? t.fail()
  t.is(count, 2)
  t.true(ns.min >= 29e6 && ns.max >= 59e6, JSON.stringify(ns))
})

test('without the option latency there is none, and a wrong one throws', (t) => {
  const queue = ring(t)
  t.false('latency' in queue.stats())
  t.throws(() => new Queue({ latency: 1 as never }), { code: 'ERR_INVALID_ARG_TYPE' })
})

if (BACKEND === 'io_uring') {
  test('the stages of a nop add up to its round trip', async (t) => {
    const queue = ring(t)
    const { samples, ns, stages } = await queue.nopRoundTrip({ samples: 5000, stages: true })
    t.is(samples, 5000)
    const parts = [stages?.stage, stages?.enter, stages?.complete, stages?.settle]
    const means = parts.map((part) => part?.mean ?? Number.NaN)
    for (const part of parts) t.true((part?.min ?? 0) >= 1 && (part?.p50 ?? 0) > 1)
    const sum = means.reduce((a, b) => a + b, 0)
    // The histogram rounds each sample by up to 0.1%.
    t.true(Math.abs(sum - ns.mean) <= ns.mean * 0.01 + 5, `${means} ${ns.mean}`)
    assertIdle(t, queue)
  })

  test('stages are measured with a polling thread as well, and with a thread that waits', async (t) => {
    for (const options of [
      { sqpoll: { idleMs: 50 } },
      { reap: 'thread' },
      { reap: 'poll' },
    ] as const) {
      const queue = ring(t, options)
      const { samples, stages } = await queue.nopRoundTrip({ samples: 50, stages: true })
      t.is(samples, 50)
      t.true((stages?.complete.min ?? 0) >= 1)
    }
  })

  test('a measurement in stages ends with its signal, or with the queue', async (t) => {
    const queue = ring(t)
    const controller = new AbortController()
    const measured = queue.nopRoundTrip({
      samples: 1e9,
      stages: true,
      signal: controller.signal,
      onProgress: () => controller.abort(),
    })
    t.is((await rejection(measured)).name, 'AbortError')
    const other = queue.nopRoundTrip({ samples: 1e9, stages: true })
    void setTimeout(20).then(() => queue.close())
    t.is((await rejection(other)).code, 'ERR_URING_CLOSED')
  })
}

test('stages are of one nop at a time, and without them the summary has none', async (t) => {
  const queue = ring(t)
  t.throws(() => queue.nopRoundTrip({ stages: true, concurrency: 2 }), {
    code: 'ERR_INVALID_ARG_VALUE',
  })
  t.throws(() => queue.nopRoundTrip({ stages: 1 as never }), { code: 'ERR_INVALID_ARG_TYPE' })
  t.false('stages' in (await queue.nopRoundTrip({ samples: 10 })))
  if (BACKEND === 'node:fs') {
    t.throws(() => queue.nopRoundTrip({ stages: true }), { code: 'ERR_URING_UNSUPPORTED' })
  }
})
