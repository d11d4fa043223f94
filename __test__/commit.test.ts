// queue.commit: callers share an fdatasync, and none is told that it is durable by one that had begun
// before its data was written.

import { tracingChannel } from 'node:diagnostics_channel'
import fs from 'node:fs'
import { setImmediate, setTimeout } from 'node:timers/promises'
import { type File, type OperationMessage, op, Queue } from 'node-uring'
import { FUSE, fuse } from './helpers/fuse.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, type Caught, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const fuseTest = needs(test, FUSE)

/** What each promise came to: 'done', or the error's code. */
function codes(promises: readonly Promise<unknown>[]): Promise<unknown[]> {
  return Promise.all(
    promises.map((promise) =>
      promise.then(
        () => 'done',
        (error: Caught) => error.code,
      ),
    ),
  )
}

test('all that commit a file in one turn share one fdatasync, and each file has its own', async (t) => {
  const queue = ring(t)
  const [one, other] = [await queue.open(scratch(t), 'w'), await queue.open(scratch(t), 'w')]
  await one.writeAt(pattern(100), 0)
  const { submitted } = queue.stats()
  const commits = Array.from({ length: 500 }, (_, i) => queue.commit(i % 5 === 0 ? other : one))
  t.deepEqual(new Set(await Promise.all(commits)), new Set([undefined]))
  t.is(queue.stats().submitted - submitted, 2)
  for (let i = 0; i < 3; i++) await queue.commit(one)
  t.is(queue.stats().submitted - submitted, 5)
  assertIdle(t, queue)
})

// Alone: it is told of all operations of this process.
test.serial('a commit brings the data to stable storage, and is named by that', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const begun: string[] = []
  const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
  const subscribers = { start: ({ operation }: OperationMessage) => void begun.push(operation) }
  channels.subscribe(subscribers as never)
  t.teardown(() => channels.unsubscribe(subscribers as never))
  const { signal } = new AbortController()
  await Promise.all([queue.commit(file), queue.commit(file, { signal })])
  t.deepEqual(begun, ['fdatasync'])
  assertIdle(t, queue)
})

test('who comes when it has been submitted shares the next one, which begins when it is over', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const { submitted } = queue.stats()
  const order: string[] = []
  const commit = (name: string) => queue.commit(file).then(() => void order.push(name))
  const first = [commit('first'), commit('first')]
  queue.flush()
  const second = [commit('second'), commit('second')]
  queue.flush()
  const third = commit('second')
  await Promise.all([...first, ...second, third])
  t.deepEqual(order, ['first', 'first', 'second', 'second', 'second'])
  t.is(queue.stats().submitted - submitted, 2)
  // A callback of the first is no caller of before.
  await commit('a').then(() => commit('b'))
  t.is(queue.stats().submitted - submitted, 4)
  assertIdle(t, queue)
})

test('who comes when it is over, and its record is another operation’s, has an fdatasync that began later', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  for (let i = 0; i < 20; i++) {
    const { submitted } = queue.stats()
    const beside = queue.nop()
    const first = queue.commit(file)
    let second: Promise<unknown> | undefined
    const next = beside.then(() => {
      const nops = [queue.nop(), queue.nop()]
      second = queue.commit(file)
      return Promise.all(nops)
    })
    queue.flush()
    // Both are delivered together, as a rule, and who waits for the first is told first.
    for (const since = performance.now(); performance.now() - since < 2; );
    await Promise.all([first, next])
    await second
    t.is(queue.stats().submitted - submitted, 5)
  }
  assertIdle(t, queue)
})

test('what cannot be synced, is closed or is no file of the queue is refused', async (t) => {
  const queue = ring(t)
  const other = ring(t)
  const file = await queue.open(scratch(t), 'w')
  t.is(thrown(() => other.commit(file)).code, 'ERR_INVALID_ARG_VALUE')
  for (const none of [undefined, {}, Object.create(Object.getPrototypeOf(file))]) {
    t.is(thrown(() => queue.commit(none as File)).code, 'ERR_INVALID_ARG_TYPE')
  }
  const stream = await queue.open(fifo(t), 'r+')
  const [error, same] = await Promise.all(
    [queue.commit(stream), queue.commit(stream)].map(rejection),
  )
  t.is(error?.message, 'EINVAL: invalid argument, fdatasync')
  t.deepEqual([error?.path, same?.path], [stream.path, stream.path])
  t.is(same?.message, error?.message)
  await file.close()
  t.is((await rejection(queue.commit(file))).message, 'EBADF: bad file descriptor, fdatasync')
  await queue.close()
  t.is((await rejection(queue.commit(stream))).code, 'ERR_URING_CLOSED')
  assertIdle(t, other)
})

fuseTest(
  'a commit is told of only by an fdatasync that began when what was written before was there',
  async (t) => {
    const log = scratch(t, Buffer.alloc(0))
    const mounted = await fuse(t, 'sync', { file: { syncMs: 15, log } })
    const queue = ring(t)
    const file = await queue.open(mounted.at('file'), 'r+')
    const r = random(3)
    const wrong: string[] = []
    const waiting: (() => void)[] = []
    const everybody = () =>
      new Promise<void>((resolve) => {
        if (waiting.push(resolve) === 12) for (const go of waiting.splice(0)) go()
      })
    const writer = async (index: number): Promise<void> => {
      for (let round = 0; round < 12; round++) {
        const place = (index * 12 + round) * 64
        await file.writeAt(pattern(64, place + 1), place)
        // In every third round they commit together, in the others as it comes.
        if (round % 3 === 2) await everybody()
        else {
          if (r.below(3) === 0) await setTimeout(r.below(20))
          if (r.below(3) === 0) queue.flush()
        }
        await queue.commit(file)
        // The server writes the log before it replies, so that all that counts is in it by now.
        const lines = fs.readFileSync(log, 'utf8').split('\n')
        const written = lines.indexOf(`w ${place}`)
        const begun = lines.indexOf('s', written)
        const ended = lines.indexOf('e', begun)
        if (written < 0 || begun < 0 || ended < 0) wrong.push(`${place}: ${lines.slice(-8)}`)
      }
    }
    await Promise.all(Array.from({ length: 12 }, (_, i) => writer(i)))
    t.deepEqual(wrong, [])
    const syncs = fs
      .readFileSync(log, 'utf8')
      .split('\n')
      .filter((line) => line === 's').length
    // One for each of 96, should none of them meet another, and one for each 12 together.
    t.true(syncs <= 96 + 4, `${syncs} fdatasyncs for 144 commits`)
    assertIdle(t, queue)
  },
)

fuseTest(
  'an fdatasync that fails rejects all who shared it, and all after it until the file is opened anew',
  async (t) => {
    const mounted = await fuse(t, 'sync', { file: { syncMs: 300, syncErrnos: [0, 5, 0, 28] } })
    const queue = ring(t)
    const file = await queue.open(mounted.at('file'), 'r+')
    const groups: Promise<unknown>[][] = []
    for (let i = 0; i < 4; i++) {
      // The one before runs now, so that these gather for the next.
      queue.flush()
      const group = Array.from({ length: 1 + i }, () => queue.commit(file))
      for (const promise of group) promise.catch(() => {})
      await groups.at(-1)?.[0]?.catch(() => {})
      groups.push(group)
    }
    t.deepEqual(await codes(groups.flat()), [
      'done',
      ...['EIO', 'EIO'],
      // The kernel tells of it once; it may be their data that was lost.
      ...['EIO', 'EIO', 'EIO'],
      ...['ENOSPC', 'ENOSPC', 'ENOSPC', 'ENOSPC'],
    ])
    const errors = await Promise.all((groups[1] ?? []).map(rejection))
    t.is(errors[0]?.message, 'EIO: i/o error, fdatasync')
    t.not(errors[0], errors[1], 'each caller has an error of its own')
    for (const sync of [
      file.sync(),
      file.datasync(),
      file.writeAt(pattern(9), 0, { datasync: true }),
    ]) {
      t.is((await rejection(sync)).code, 'EIO')
    }
    t.is(await file.writeAt(pattern(10), 0), 10, 'what asks for no durability goes on')
    const anew = await queue.open(mounted.at('file'), 'r+')
    await queue.commit(anew)
    await anew.sync()
    assertIdle(t, queue)
  },
)

fuseTest(
  'a write of writeMany to an O_DSYNC file that is not durable fails all that sync after it',
  async (t) => {
    // Of three writes one fails, and the kernel tells of it nobody else: whose data it was, nobody knows.
    const mounted = await fuse(t, 'sync', { file: { failFrom: 20 } })
    const queue = ring(t)
    const flags = fs.constants.O_RDWR | fs.constants.O_DSYNC
    const file = await queue.open(mounted.at('file'), flags)
    const counts = await file.writeMany(Float64Array.of(0, 20, 10), 10, pattern(30))
    t.deepEqual([...counts], [-5, -5, -5])
    for (const sync of [queue.commit(file), file.sync(), file.datasync()]) {
      t.is((await rejection(sync)).code, 'EIO')
    }
    const cut = await queue.open(mounted.at('file'), flags)
    t.deepEqual([...(await cut.writeMany(Float64Array.of(10), 20, pattern(20)))], [-5], 'half')
    t.is((await rejection(cut.datasync())).code, 'EIO')
    const good = Float64Array.of(0, 10)
    t.deepEqual([...(await file.writeMany(good, 10, pattern(20)))], [10, 10])
    const anew = await queue.open(mounted.at('file'), flags)
    t.deepEqual([...(await anew.writeMany(good, 10, pattern(20)))], [10, 10])
    await queue.commit(anew)
    assertIdle(t, queue)
  },
)

fuseTest('writeMany to an O_DSYNC file is no success beside a sync that fails', async (t) => {
  const mounted = await fuse(t, 'async', { file: { syncHeld: true, syncErrnos: [5] } })
  const queue = ring(t)
  const flags = fs.constants.O_RDWR | fs.constants.O_DSYNC
  const file = await queue.open(mounted.at('file'), flags)
  // Asks what kind of file it is: the writes are staged at once then, and not behind that question,
  // which on node:fs may get its thread of the pool only when the sync is over.
  await file.readMany(Float64Array.of(0), 1, Buffer.alloc(1))
  const synced = rejection(file.sync())
  await mounted.held(1)
  const written = rejection(file.writeMany(Float64Array.of(0, 10), 10, pattern(20)))
  await setTimeout(50)
  mounted.release()
  t.is((await synced).code, 'EIO')
  const { code, bytesWritten } = await written
  t.deepEqual({ code, bytesWritten }, { code: 'EIO', bytesWritten: 20 })
  assertIdle(t, queue)
})

fuseTest('a write whose fdatasync is cancelled says by whom, and that it is written', async (t) => {
  const held = { file: { syncHeld: true, interruptible: true } }
  for (const make of ['append', 'writeAt'] as const) {
    for (const by of ['signal', 'timeoutMs', 'close'] as const) {
      const mounted = await fuse(t, 'sync', held)
      const queue = ring(t)
      const file = await queue.open(mounted.at('file'), 'r+')
      const controller = new AbortController()
      const limits = {
        signal: { signal: controller.signal },
        timeoutMs: { timeoutMs: 2500 },
        close: {},
      }[by]
      const options = { datasync: true, ...limits }
      const bytes = pattern(10)
      const write =
        make === 'append' ? file.append(bytes, options) : file.writeAt(bytes, 0, options)
      const rejected = rejection(write)
      await mounted.held(1)
      controller.abort()
      if (by === 'close') await file.close({ timeoutMs: 0 })
      const error = await rejected
      const { code, bytesWritten } = error
      const wanted = by === 'timeoutMs' ? 'ERR_URING_TIMEOUT' : 'ABORT_ERR'
      t.deepEqual({ code, bytesWritten }, { code: wanted, bytesWritten: 10 }, `${make}, ${by}`)
    }
  }
})

fuseTest('a caller who gives up leaves the others their fdatasync', async (t) => {
  const log = scratch(t, Buffer.alloc(0))
  const held = { file: { syncHeld: true, log } }
  const [mounted, other] = [await fuse(t, 'sync', held), await fuse(t, 'sync', held)]
  const queue = ring(t)
  const file = await queue.open(mounted.at('file'), 'r+')
  const controller = new AbortController()
  const { signal } = controller
  const commits = [
    queue.commit(file),
    queue.commit(file, { signal }),
    queue.commit(file, { timeoutMs: 10 }),
  ]
  queue.flush()
  // Of the next group all but one give up; of a third, all.
  const next = [queue.commit(file, { signal }), queue.commit(file)]
  await setTimeout(30)
  controller.abort('enough')
  // All who give up have done so before the first fdatasync is over.
  await Promise.allSettled([commits[1], commits[2], next[0]])
  mounted.release()
  t.deepEqual(await codes([...commits, ...next]), [
    'done',
    'ABORT_ERR',
    'ERR_URING_TIMEOUT',
    'ABORT_ERR',
    'done',
  ])
  t.regex((await rejection(commits[2] as Promise<void>)).message, /fdatasync/)
  const another = await queue.open(other.at('file'), 'r+')
  const running = queue.commit(another)
  queue.flush()
  const given = [queue.commit(another, { timeoutMs: 1 }), queue.commit(another, { timeoutMs: 1 })]
  t.deepEqual(await codes(given), ['ERR_URING_TIMEOUT', 'ERR_URING_TIMEOUT'])
  other.release()
  t.deepEqual(await codes([running]), ['done'])
  await setImmediate()
  const syncs = fs
    .readFileSync(log, 'utf8')
    .split('\n')
    .filter((line) => line === 's').length
  t.is(syncs, 3, 'nobody waited for a fourth')
  assertIdle(t, queue)
})

for (const what of ['file', 'queue'] as const) {
  fuseTest(
    `closing the ${what} waits for commits that were called for before, the next group too`,
    async (t) => {
      const mounted = await fuse(t, 'sync', { file: { syncMs: 300 } })
      const queue = ring(t)
      const file = await queue.open(mounted.at('file'), 'r+')
      const commits = [queue.commit(file)]
      queue.flush()
      commits.push(queue.commit(file), queue.commit(file))
      const closed = (what === 'file' ? file : queue).close()
      const late = await rejection(queue.commit(file))
      t.is(late.code, what === 'file' ? 'EBADF' : 'ERR_URING_CLOSED')
      await closed
      t.deepEqual(await codes(commits), ['done', 'done', 'done'])
      t.is(queue.stats().pending, 0)
    },
  )

  fuseTest(
    `closing the ${what} with a time ends commits, and none is left without an answer`,
    async (t) => {
      t.timeout(100_000)
      const mounted = await fuse(t, 'sync', { file: { syncMs: 300 } })
      const queue = new Queue()
      const file = await queue.open(mounted.at('file'), 'r+')
      const commits = [queue.commit(file)]
      queue.flush()
      commits.push(queue.commit(file), queue.commit(file))
      const ends = codes(commits)
      await setTimeout(5)
      // The kernel cannot take an fdatasync back that runs; the close may say so.
      await (what === 'file' ? file : queue).close({ timeoutMs: 0 }).catch((error: Caught) => {
        t.is(error.code, 'ERR_URING_BUSY')
      })
      for (const code of await ends) {
        t.true(['done', 'ABORT_ERR', 'ERR_URING_CLOSED'].includes(String(code)), String(code))
      }
      await queue.close({ timeoutMs: 0 }).catch(() => {})
      t.is(queue.stats().pending, 0)
    },
  )
}

test('a sync that was not done says nothing of the data', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  await file.writeAt(Buffer.from('some'), 0)
  t.is((await rejection(file.syncRange(2n ** 63n - 1n, 1))).code, 'EINVAL')
  await file.datasync()
  await queue.commit(file)
  t.is(await file.writeAt(Buffer.from('more'), 4, { datasync: true }), 4)
  const locked = ring(t, { restrict: { operations: ['openat', 'write', 'fsync', 'statx'] } })
  const other = await locked.open(scratch(t), 'w+')
  t.is((await rejection(other.syncRange())).code, 'EACCES')
  await other.datasync()
  await locked.commit(other)
  assertIdle(t, queue)
})

test('syncs and writes of a file do not wait for a splice to it from a FIFO that has nothing', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const flags = fs.constants.O_RDWR | fs.constants.O_DSYNC
  const file = await queue.open(scratch(t, Buffer.alloc(0)), flags)
  const spliced = queue.submit([op.splice(stream, file, 4, { to: 0 })])
  await setTimeout(20)
  t.is(await file.writeAt(Buffer.from('x'), 10), 1)
  await Promise.all([file.datasync(), queue.commit(file)])
  fs.writeSync(stream.fd, 'data')
  t.deepEqual(await spliced, [4])
  assertIdle(t, queue)
})
