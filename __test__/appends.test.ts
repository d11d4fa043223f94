// Appends called for in one go share writes: fewer of them, in the order of the calls, and each caller
// learns what became of its own bytes, also when the write that they share fails midway.

import { tracingChannel } from 'node:diagnostics_channel'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { type File, type OperationMessage, op, type Queue } from 'node-uring'
import { childJson } from './helpers/child.js'
import { FUSE, fuse } from './helpers/fuse.js'
import { pattern } from './helpers/random.js'
import {
  accustom,
  assertIdle,
  type Caught,
  rejection,
  ring,
  submittedBy,
  thrown,
} from './helpers/ring.js'
import { fifo, folder, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const RECORD_BYTES = 100
const fuseTest = needs(test, FUSE)

/** Records that can be told apart, one after the other. */
function records(count: number, length = RECORD_BYTES): Buffer[] {
  const all = pattern(count * length)
  return Array.from({ length: count }, (_, i) => all.subarray(i * length, (i + 1) * length))
}

function lengths(of: readonly Uint8Array[]): number[] {
  return of.map(({ length }) => length)
}

/** A file that is appended to, of which it is known that appends may share writes, and its size. */
async function log(t: ExecutionContext<unknown>, queue: Queue) {
  const at = scratch(t)
  const file = await queue.open(at, 'a')
  return { at, file, before: await accustom(file) }
}

for (const flags of ['a', 'r+'] as const) {
  for (const options of [undefined, { datasync: true }]) {
    const which = `opened with '${flags}'${options === undefined ? '' : ' and synced'}`
    test(`a thousand appends at once to a file ${which} are one write, in their order`, async (t) => {
      const queue = ring(t)
      const at = scratch(t, Buffer.alloc(0))
      const file = await queue.open(at, flags)
      const before = await accustom(file)
      const all = records(1000)
      const submitted = await submittedBy(queue, async () => {
        const counts = await Promise.all(all.map((record) => file.append(record, options)))
        t.deepEqual(counts, lengths(all))
      })
      // With the fdatasync that is linked behind it.
      t.is(submitted, options === undefined ? 1 : 2)
      t.deepEqual(fs.readFileSync(at).subarray(before), Buffer.concat(all))
      assertIdle(t, queue)
    })
  }
}

test('appends that are to be synced share their writes with none that are not', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  const all = records(60)
  const submitted = await submittedBy(queue, async () => {
    // Twenty of each: plain, synced, plain.
    const counts = await Promise.all(
      all.map((record, i) => file.append(record, { datasync: i >= 20 && i < 40 })),
    )
    t.deepEqual(counts, lengths(all))
  })
  t.is(submitted, 4)
  const content = fs.readFileSync(at).subarray(before)
  t.is(content.length, 60 * RECORD_BYTES)
  for (const record of all) t.true(content.includes(record))
  assertIdle(t, queue)
})

test('an append alone is written when it is called for', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'a')
  for (const record of records(20)) t.is(await file.append(record), RECORD_BYTES)
  t.deepEqual(fs.readFileSync(at), Buffer.concat(records(20)))
  const one = file.append(Buffer.from('one'))
  queue.flush()
  t.is(await one, 3)
})

test('what is appended is copied when it is called for, from memory of any kind', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  const wanted: Buffer[] = []
  const shared = new Uint8Array(new SharedArrayBuffer(50))
  const words = new Float64Array(20)
  const mine = queue.alloc(300)
  const appended = [0, 1, 2].flatMap((round) =>
    [shared, words, mine, mine.subarray(7, 70)].map((view) => {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
      bytes.fill(round * 50 + wanted.length)
      wanted.push(Buffer.from(bytes))
      return file.append(view)
    }),
  )
  t.deepEqual(await Promise.all(appended), lengths(wanted))
  // Those that share no write come in any order. No two have the same bytes.
  const content = fs.readFileSync(at).subarray(before)
  const places = wanted.map((bytes) => content.indexOf(bytes))
  t.false(places.includes(-1))
  const inOrder = wanted.map((bytes, i) => ({ bytes, at: places[i] as number }))
  inOrder.sort((one, other) => one.at - other.at)
  t.deepEqual(content, Buffer.concat(inOrder.map(({ bytes }) => bytes)))
  queue.free(mine)
})

test('long appends and those with options keep their places among the others', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  const all = [
    ...records(10),
    pattern(100_000),
    ...records(3, 16 << 10),
    pattern(17_000),
    ...records(40, 16 << 10),
    ...records(2),
  ]
  const appended = all.map((bytes, i) =>
    file.append(bytes, i === 5 ? { datasync: true } : undefined),
  )
  t.deepEqual(await Promise.all(appended), lengths(all))
  t.is(fs.statSync(at).size, before + Buffer.concat(all).length)
  // The kernel may take writes that were submitted together in any order; each is whole.
  const content = fs.readFileSync(at)
  for (const bytes of all) t.true(content.includes(bytes))
  assertIdle(t, queue)
})

// Alone: it is told of all operations of this process.
test.serial(
  'what was gathered is submitted before an append that cannot share, and what comes after it behind',
  async (t) => {
    const queue = ring(t)
    const { file } = await log(t, queue)
    const begun: unknown[] = []
    const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
    const subscribers = { start: ({ length }: OperationMessage) => void begun.push(length) }
    channels.subscribe(subscribers as never)
    t.teardown(() => channels.unsubscribe(subscribers as never))
    const { signal } = new AbortController()
    for (const [length, options] of [
      [20_000, undefined],
      [7, { signal }],
    ] as const) {
      await Promise.all([file.append(pattern(1)), file.append(pattern(1))])
      begun.length = 0
      const one = () => file.append(pattern(1))
      await Promise.all([one(), one(), one(), file.append(pattern(length), options), one(), one()])
      t.deepEqual(begun, [3, length, 2])
    }
    assertIdle(t, queue)
  },
)

test('an append with limits keeps them among others', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  const controller = new AbortController()
  const [one, limited, late, other] = records(4) as [Buffer, Buffer, Buffer, Buffer]
  const appended = [
    file.append(one),
    rejection(file.append(limited, { signal: controller.signal })),
    rejection(file.append(late, { timeoutMs: 0 })),
    file.append(other),
  ]
  controller.abort()
  const [, aborted, timedOut] = (await Promise.all(appended)) as [number, Caught, Caught, number]
  t.deepEqual([aborted.code, timedOut.code], ['ABORT_ERR', 'ERR_URING_TIMEOUT'])
  const content = fs.readFileSync(at)
  t.is(content.length, before + 2 * RECORD_BYTES)
  t.true(content.includes(one) && content.includes(other))
  assertIdle(t, queue)
})

test('what is gathered goes with flush, and before a batch that drains', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  let size = before
  const appended = records(30).map((record) => file.append(record))
  queue.flush()
  size += 30 * RECORD_BYTES
  // Without a turn of the event loop: it was submitted.
  const until = Date.now() + 30_000
  while (fs.statSync(at).size < size && Date.now() < until) {}
  t.is(fs.statSync(at).size, size)
  await Promise.all(appended)
  for (let round = 0; round < 20; round++) {
    const more = records(30).map((record) => file.append(record))
    const [sync] = await queue.submit([op.fsync(file)], { drain: true })
    t.is(sync, 0)
    size += 30 * RECORD_BYTES
    // Ordinary files know their size when the write is complete, and the batch came behind it.
    t.is(fs.statSync(at).size, size)
    t.deepEqual(await Promise.all(more), lengths(records(30)))
  }
})

for (const options of [undefined, { datasync: true }]) {
  const append = options === undefined ? 'append' : 'synced append'
  needs(test, { root: true })(
    `a full disk ends the ${append} that it cuts off, and those behind it, and the file has what they say`,
    async (t) => {
      const queue = ring(t)
      const at = path.join(tmpfs(t, 64 << 10), 'file')
      const file = await queue.open(at, 'a')
      const before = await accustom(file)
      const all = records(100, 1000)
      const outcomes = await Promise.allSettled(all.map((record) => file.append(record, options)))
      const failed = outcomes.flatMap((outcome) =>
        outcome.status === 'rejected' ? [outcome.reason] : [],
      )
      t.true(failed.length >= 30, `${failed.length} of 100 KB have no room in 64 KiB`)
      for (const error of failed as Caught[]) {
        t.is(error.code, 'ENOSPC')
        t.is(error.syscall, 'write')
      }
      const written = (failed as (Caught & { bytesWritten: number })[]).map(
        (error) => error.bytesWritten,
      )
      t.true(written.filter((bytes) => bytes > 0).length <= 1, 'one at most was cut off')
      const whole = outcomes.findIndex(({ status }) => status === 'rejected')
      const part = written[0] as number
      const content = fs.readFileSync(at).subarray(before)
      t.deepEqual(
        content.subarray(0, whole * 1000 + part),
        Buffer.concat(all).subarray(0, whole * 1000 + part),
      )
      const sum = written.reduce((total, bytes) => total + bytes, 0)
      t.is(content.length, (100 - failed.length) * 1000 + sum)
      assertIdle(t, queue)
    },
  )
}

test('what an append says of its length changes nothing for the others', async (t) => {
  const queue = ring(t)
  const { at, file, before } = await log(t, queue)
  let inner: Promise<number> | undefined
  class Reentrant extends Uint8Array {
    override get byteOffset(): number {
      inner ??= file.append(Buffer.from('INNER'))
      return super.byteOffset
    }
  }
  const odd = ['3', 1000, 2.5, Number.NaN, undefined].map((byteLength) =>
    Object.defineProperty(Buffer.from('EEEEE'), 'byteLength', { value: byteLength }),
  )
  for (const strange of [...odd, new Reentrant(5).fill(82)]) {
    const from = fs.statSync(at).size
    const [first, , last] = await Promise.allSettled([
      file.append(Buffer.from('AAAAA')),
      file.append(strange),
      file.append(Buffer.from('ZZZZZ')),
    ])
    t.like(first, { status: 'fulfilled', value: 5 })
    t.like(last, { status: 'fulfilled', value: 5 })
    const content = fs.readFileSync(at, 'latin1').slice(from)
    t.regex(content, /AAAAA/)
    t.regex(content, /ZZZZZ/)
    t.regex(content, /^[AEZRINO]*$/, 'bytes of nobody')
  }
  if (inner !== undefined) {
    t.is(await inner, 5)
    t.regex(fs.readFileSync(at, 'latin1').slice(before), /INNER/)
  }
  assertIdle(t, queue)
})

needs(test, { root: true })(
  'writes to a file that takes each as a command are not joined',
  async (t) => {
    // It stays so for a process, so it is that of another.
    const program = `
    import { readFileSync } from 'node:fs'
    import { Queue } from 'node-uring'
    const queue = new Queue()
    const file = await queue.open('/proc/self/oom_score_adj', 'a')
    const read = []
    for (let round = 0; round < 4; round++) {
      await Promise.all(['3', '4'].map((value) => file.append(Buffer.from(value))))
      read.push(readFileSync('/proc/self/oom_score_adj', 'latin1'))
      await file.stat()
    }
    await queue.close()
    console.log(JSON.stringify(read))`
    // Which of the two is the last is not said.
    for (const value of await childJson<string[]>(program)) t.regex(value, /^[34]\n$/)
  },
)

test('where node:fs cannot append each append says so', async (t) => {
  const queue = ring(t, { backend: 'node:fs' })
  const file = await queue.open(scratch(t, pattern(100)), 'r+')
  for (let round = 0; round < 5; round++) {
    for (let i = 0; i < 3; i++) {
      const error = thrown(() => file.append(Buffer.from('x')))
      t.is(error.code, 'ERR_URING_UNSUPPORTED')
    }
    await file.stat()
  }
})

test('a burst of appends leaves those after it as small as they are', async (t) => {
  const queue = ring(t)
  const files = await Promise.all(Array.from({ length: 100 }, () => queue.open(scratch(t), 'a')))
  for (const file of files) {
    await accustom(file)
    await Promise.all(records(2000).map((record) => file.append(record)))
  }
  const pairs = async () => {
    await Promise.all(files.flatMap((file) => records(2).map((record) => file.append(record))))
  }
  // The first after the burst are taken for another.
  await pairs()
  // The most of ten rounds: the collector may take as much in one of them.
  let most = 0
  for (let round = 0; round < 10; round++) {
    const before = process.memoryUsage().arrayBuffers
    const under = pairs()
    most = Math.max(most, process.memoryUsage().arrayBuffers - before)
    await under
  }
  t.true(most < 10 << 20, `${most} bytes for 20,000`)
})

test('appends to a FIFO are writes of their own', async (t) => {
  const queue = ring(t)
  const at = fifo(t)
  const file = await queue.open(at, 'r+')
  const end = await queue.open(at, 'a')
  await accustom(end)
  await file.bytesAt(0, 6)
  const all = records(20)
  const submitted = await submittedBy(queue, () => Promise.all(all.map((one) => end.append(one))))
  // The kind of file may be asked for beside.
  t.true(submitted >= 20, `${submitted}`)
  // In any order.
  const content = await file.bytesAt(0, 5000)
  const came = records(20).map((_, i) => content.subarray(i * RECORD_BYTES, (i + 1) * RECORD_BYTES))
  t.is(content.length, 20 * RECORD_BYTES)
  t.deepEqual(came.sort(Buffer.compare), all.sort(Buffer.compare))
})

test('close waits for what was appended before it, and nothing is appended behind it', async (t) => {
  const queue = ring(t)
  for (const closes of [(file: File) => file.close(), () => queue.close()]) {
    const { at, file, before } = await log(t, queue)
    const all = records(50)
    const appended = all.map((record) => file.append(record))
    const closed = closes(file)
    const late = rejection(file.append(Buffer.from('late')))
    t.deepEqual(await Promise.all(appended), lengths(all))
    t.regex(String((await late).code), /EBADF|ERR_URING_CLOSED/)
    await closed
    t.deepEqual(fs.readFileSync(at).subarray(before), Buffer.concat(all))
  }
})

for (const options of [undefined, { datasync: true }]) {
  const appends = options === undefined ? 'appends' : 'synced appends'
  test(`${appends} that a close cancels reject or are there, and none is both`, async (t) => {
    const queue = ring(t)
    for (let round = 0; round < 40; round++) {
      const { at, file, before } = await log(t, queue)
      const appended = records(50).map((record) => file.append(record, options))
      const outcomes = Promise.allSettled(appended)
      if (round % 2 === 1) queue.flush()
      if (round % 4 > 1) await setTimeout(0)
      await file.close({ timeoutMs: 0 })
      let size = before
      for (const outcome of await outcomes) {
        if (outcome.status === 'fulfilled') size += outcome.value
        else {
          t.is(outcome.reason.code, 'ABORT_ERR')
          size += outcome.reason.bytesWritten
        }
      }
      t.is(fs.statSync(at).size, size, `round ${round}`)
      if (round % 4 === 0) t.is(size, before, 'cancelled before it went, nothing is written')
    }
    assertIdle(t, queue)
  })
}

test('appends of many files at once, by two queues, lie each in its file', async (t) => {
  const at = folder(t)
  const queues = [ring(t), ring(t)]
  const all = records(200)
  const names = Array.from({ length: 8 }, (_, i) => path.join(at, `${i}`))
  const files = await Promise.all(names.map((name, i) => (queues[i % 2] as Queue).open(name, 'a')))
  for (const file of files) await accustom(file)
  const appended = all.flatMap((record) => files.map((file) => file.append(record)))
  t.deepEqual(await Promise.all(appended), Array(1600).fill(RECORD_BYTES))
  for (const name of names) {
    t.deepEqual(fs.readFileSync(name).subarray(6), Buffer.concat(all))
  }
})

test('records that two processes append at once are each whole', async (t) => {
  const queue = ring(t)
  const { at, file } = await log(t, queue)
  const line = (who: string, i: number) => `${who}${String(i).padStart(7, '0')}${who.repeat(91)}\n`
  const other = `
    import fs from 'node:fs'
    const fd = fs.openSync(process.argv[1], 'a')
    for (let i = 0; i < 3000; i++) {
      fs.writeSync(fd, 'b' + String(i).padStart(7, '0') + 'b'.repeat(91) + '\\n')
    }
    console.log('3000')`
  const others = childJson(other, { args: [at] })
  for (let i = 0; i < 3000; i += 100) {
    await Promise.all(
      Array.from({ length: 100 }, (_, j) => file.append(Buffer.from(line('a', i + j)))),
    )
  }
  t.is(await others, 3000)
  const lines = fs.readFileSync(at, 'utf8').slice(6).split('\n').slice(0, -1)
  t.is(lines.length, 6000)
  for (const who of ['a', 'b']) {
    const its = lines.filter((text) => text.startsWith(who)).map((text) => `${text}\n`)
    t.deepEqual(
      its,
      Array.from({ length: 3000 }, (_, i) => line(who, i)),
    )
  }
})

fuseTest(
  'an fdatasync that fails is the failure of all who share it, and is not tried again',
  async (t) => {
    const log = scratch(t, Buffer.alloc(0))
    const file = { syncErrnos: [5, 0], log }
    const mounted = await fuse(t, 'sync', { file })
    const queue = ring(t)
    const opened = await queue.open(mounted.at('file'), 'a')
    const before = await accustom(opened)
    const all = records(20)
    const append = (to: File) => all.map((record) => to.append(record, { datasync: true }))
    const errors = await Promise.all(append(opened).map((appended) => rejection(appended)))
    for (const error of errors) {
      t.is(error.message, 'EIO: i/o error, fdatasync')
      t.is(error.bytesWritten, RECORD_BYTES)
    }
    t.not(errors[0], errors[1], 'each caller has an error of its own')
    const syncs = () =>
      fs
        .readFileSync(log, 'utf8')
        .split('\n')
        .filter((line) => line === 's').length
    t.is(syncs(), 1)
    const anew = await queue.open(mounted.at('file'), 'a')
    t.deepEqual(await Promise.all(append(anew)), lengths(all))
    const content = fs.readFileSync(mounted.behind('file')).subarray(before)
    t.is(content.length, 2 * all.length * RECORD_BYTES)
    t.deepEqual(content.subarray(0, all.length * RECORD_BYTES), Buffer.concat(all))
    assertIdle(t, queue)
  },
)

fuseTest(
  'appends that were written whole before their write failed have an fdatasync',
  async (t) => {
    const log = scratch(t, Buffer.alloc(0))
    // Room for 12 records and a half behind the 6 bytes that it takes to be accustomed.
    const failFrom = 6 + 12 * RECORD_BYTES + RECORD_BYTES / 2
    for (const syncErrnos of [[], [28]]) {
      fs.writeFileSync(log, '')
      const mounted = await fuse(t, 'sync', { file: { failFrom, syncErrnos, log } })
      const queue = ring(t)
      const file = await queue.open(mounted.at('file'), 'a')
      await accustom(file)
      const appended = records(20).map((record) => file.append(record, { datasync: true }))
      const outcomes = await Promise.allSettled(appended)
      const told = outcomes.map((outcome) =>
        outcome.status === 'fulfilled'
          ? outcome.value
          : `${outcome.reason.code} ${outcome.reason.syscall} ${outcome.reason.bytesWritten}`,
      )
      t.deepEqual(
        told.slice(0, 12),
        Array(12).fill(syncErrnos.length === 0 ? 100 : 'ENOSPC fdatasync 100'),
      )
      t.is(told[12], 'EIO write 50')
      t.deepEqual(told.slice(13), Array(7).fill('EIO write 0'))
      const lines = fs.readFileSync(log, 'utf8').trim().split('\n')
      t.is(lines.filter((line) => line === 's').length, 1)
      t.true(lines.indexOf('s') > lines.lastIndexOf('w 6'))
      assertIdle(t, queue)
    }
  },
)

fuseTest(
  'appends behind the place where their write failed fail as it did, and nothing is written twice',
  async (t) => {
    // As on a disk where there is room again: one request is refused, amidst the 13th record.
    const failFrom = 6 + 12 * RECORD_BYTES + RECORD_BYTES / 2
    const mounted = await fuse(t, 'sync', { file: { failFrom, failTimes: 1 } })
    const queue = ring(t)
    const file = await queue.open(mounted.at('file'), 'a')
    const before = await accustom(file)
    const all = records(20)
    const outcomes = await Promise.allSettled(all.map((record) => file.append(record)))
    const told = outcomes.map((outcome) =>
      outcome.status === 'fulfilled'
        ? outcome.value
        : `${outcome.reason.code} ${outcome.reason.syscall} ${outcome.reason.bytesWritten}`,
    )
    const expected = [
      ...Array(12).fill(RECORD_BYTES),
      'EIO write 50',
      ...Array(7).fill('EIO write 0'),
    ]
    t.deepEqual(told, expected)
    t.is(await file.append(all[19] as Buffer), RECORD_BYTES, 'and the next goes on')
    const content = fs.readFileSync(mounted.behind('file')).subarray(before)
    const written = Buffer.concat(all).subarray(0, failFrom - before)
    t.deepEqual(content, Buffer.concat([written, all[19] as Buffer]))
    assertIdle(t, queue)
  },
)
