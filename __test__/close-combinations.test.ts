// Every way to end a queue, with every combination of reads, writes, sleeps and operations that wait
// for memory under way; and the end of a file from inside its own completions.

import fs from 'node:fs'
import test, { type ExecutionContext } from 'ava'
import { type File, Queue } from 'node-uring'
import { assertIdle, DEADLINE_MS, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'

const MIB = 1 << 20

/** What each operation came to: `kept`, or the code that it rejected with. */
const outcome = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'kept',
    ({ code }: { code: string }) => code,
  )

/** What is under way on a queue, and where reads wait. */
interface Work {
  readonly queue: Queue
  /** How long sleeps are. */
  readonly sleepMs: number
  readonly pipe: File
  /** Where writes go. */
  readonly file: File
}

const KINDS = {
  reads: ({ queue, pipe }: Work) => [
    pipe.readAt(Buffer.alloc(10), 0),
    pipe.readAt(queue.alloc(10), 0),
    pipe.bytesAt(0, 10),
    pipe.bytesAt(0, 200 << 10),
  ],
  writes: ({ queue, file }: Work) => [
    file.writeAt(Buffer.alloc(100, 1), 0),
    file.writeAt(queue.alloc(MIB).fill(1), 100),
    file.writeAt(Buffer.alloc(3 * MIB, 1), 100 + MIB, { datasync: true }),
  ],
  sleeps: ({ queue, sleepMs }: Work) => [queue.sleep(sleepMs), queue.sleep(sleepMs + 20)],
  // Two of them have all the memory for copies, and the others wait for it.
  waiting: ({ pipe }: Work) => Array.from({ length: 5 }, () => pipe.readAt(Buffer.alloc(MIB), 0)),
}
type Kind = keyof typeof KINDS
const ALL = Object.keys(KINDS) as Kind[]
const COMBINATIONS: Kind[][] = Array.from({ length: 2 ** ALL.length }, (_, bits) =>
  ALL.filter((_, bit) => bits & (1 << bit)),
)

interface Way {
  readonly end: (queue: Queue) => Promise<void>
  /** Whether reads, sleeps and writes come to their ends, `maybe` where the kernel decides. */
  readonly kept: {
    readonly reads: boolean
    readonly sleeps: boolean
    readonly writes: boolean | 'maybe'
  }
}

const WAYS: Readonly<Record<string, Way>> = {
  'close()': {
    end: (queue) => queue.close(),
    kept: { reads: true, sleeps: true, writes: true },
  },
  'close({ timeoutMs: 0 })': {
    end: (queue) => queue.close({ timeoutMs: 0 }),
    kept: { reads: false, sleeps: false, writes: 'maybe' },
  },
  'close({ timeoutMs: 20 })': {
    end: (queue) => queue.close({ timeoutMs: 20 }),
    kept: { reads: false, sleeps: false, writes: 'maybe' },
  },
  'Symbol.asyncDispose': {
    end: (queue) => queue[Symbol.asyncDispose](),
    kept: { reads: false, sleeps: false, writes: true },
  },
}

/** Feeds what reads there are until `ended`. */
async function feed(pipe: number, ended: Promise<void>): Promise<void> {
  let over = false
  void ended.then(() => {
    over = true
  })
  while (!over) {
    fs.writeSync(pipe, 'x')
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

async function one(t: ExecutionContext, place: string, way: Way, kinds: Kind[], what: string) {
  const queue = new Queue({ bounceBytes: 2 * MIB })
  const name = fifo(t)
  const path = `${place}/${what.replaceAll(/\W/g, '-')}`
  const work = {
    queue,
    // Those that are cancelled would not end before, however long this thread is held up.
    sleepMs: way.kept.sleeps ? 60 : 600_000,
    pipe: await queue.open(name, 'r+'),
    file: await queue.open(path, 'w'),
  }
  const { fd } = work.file
  const own = fs.openSync(name, 'r+')
  const told = kinds.map((kind) => KINDS[kind](work).map(outcome))
  const ending = way.end(queue)
  if (way.kept.reads === true) await feed(own, ending)
  await ending
  fs.closeSync(own)
  for (const [i, kind] of kinds.entries()) {
    const kept = way.kept[kind === 'waiting' ? 'reads' : kind]
    for (const came of await Promise.all(told[i] as Promise<string>[])) {
      const right =
        kept === 'maybe'
          ? ['kept', 'ABORT_ERR'].includes(came)
          : came === (kept ? 'kept' : 'ABORT_ERR')
      t.true(right, `${what}: one of the ${kind} came to ${came}`)
    }
  }
  if (kinds.includes('writes') && way.kept.writes === true) {
    t.true(fs.readFileSync(path).equals(Buffer.alloc(100 + 4 * MIB, 1)), what)
  }
  assertIdle(t, queue)
  t.is(queue.stats().files, 0)
  t.not(descriptor(fd), path)
  t.is(await outcome(queue.nop()), 'ERR_URING_CLOSED')
}

function descriptor(fd: number): string | undefined {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return undefined
  }
}

for (const [name, way] of Object.entries(WAYS)) {
  test.serial(
    `${name} ends a queue, whatever combination of operations is under way and waits`,
    async (t) => {
      t.timeout(DEADLINE_MS)
      const place = folder(t)
      for (const kinds of COMBINATIONS) {
        await one(t, place, way, kinds, `${name} with ${kinds.join(', ') || 'nothing'}`)
      }
    },
  )
}

for (const timeoutMs of [undefined, 0]) {
  test(`close(${timeoutMs ?? ''}) of a file from a continuation of its own leaves the completions beside it whole`, async (t) => {
    const queue = ring(t)
    const numbers = new Uint32Array(8192).map((_, i) => i)
    const content = Buffer.from(numbers.buffer)
    const [file, other] = [
      await queue.open(scratch(t, content)),
      await queue.open(scratch(t, content)),
    ]
    let closing: Promise<void> | undefined
    const read = async (from: File, i: number): Promise<string> => {
      const word = i % 4 < 2 ? Buffer.alloc(4) : queue.alloc(4)
      const came = await outcome(from.readAt(word, i * 4))
      if (from === file && i === 1000) {
        closing = file.close(timeoutMs === undefined ? undefined : { timeoutMs })
        // Nothing new is taken, also while it is being closed.
        t.is(await outcome(file.readAt(word, 0)), 'EBADF')
        return 'kept'
      }
      return came === 'kept' && word.readUInt32LE(0) !== i ? 'wrong' : came
    }
    const came = await Promise.all(
      Array.from({ length: 8192 }, (_, i) => read(i % 2 === 0 ? file : other, i)),
    )
    await closing
    for (const [i, outcome] of came.entries()) {
      const may = i % 2 === 0 && timeoutMs === 0 ? ['kept', 'ABORT_ERR'] : ['kept']
      t.true(may.includes(outcome), `read ${i}: ${outcome}`)
    }
    t.is(queue.stats().files, 1)
    assertIdle(t, queue)
  })
}

test.serial(
  'what has yet to learn what its file is ends as what knows it, however the queue or file ends',
  async (t) => {
    const [positions, one] = [Float64Array.of(0, 1), () => Buffer.alloc(2)]
    const calls: Record<string, (stream: File, file: File, other: File) => Promise<unknown>> = {
      'readMany of a FIFO': (stream) => stream.readMany(positions, 1, one()),
      'readvAt of a FIFO': (stream) => stream.readvAt([one()], 0),
      'copyTo from a FIFO': (stream, file) => stream.copyTo(file),
      'copyTo of a file': (_, file, other) => file.copyTo(other),
      'writeMany to a file': (_, file) => file.writeMany(positions, 1, one()),
    }
    const endless = Object.keys(calls).slice(0, 3)
    for (const [what, call] of Object.entries(calls)) {
      for (const way of ['of the queue', 'of the file', 'with a time'] as const) {
        for (const known of [false, true]) {
          const queue = new Queue()
          const stream = await queue.open(fifo(t), 'r+')
          const file = await queue.open(scratch(t, Buffer.alloc(4 * MIB)), 'r+')
          const other = await queue.open(scratch(t), 'w')
          const fds = [stream, file, other]
          if (known) for (const each of fds) await each.writevAt([Buffer.alloc(1), Buffer.of()], 0)
          if (known) await stream.readvAt([Buffer.alloc(1)], 0)
          const from = what.endsWith('FIFO') ? stream : file
          const ended = call(stream, file, other).then(
            () => 'kept',
            (error: { code?: unknown; bytesWritten?: number }) => {
              if (/writeMany|copyTo/.test(what)) t.is(typeof error.bytesWritten, 'number', what)
              return error.code
            },
          )
          if (way === 'of the queue') await queue[Symbol.asyncDispose]()
          if (way === 'of the file') await from[Symbol.asyncDispose]()
          if (way === 'with a time') await queue.close({ timeoutMs: 0 })
          const kept = !endless.includes(what) && way !== 'with a time'
          t.is(
            await ended,
            kept ? 'kept' : 'ABORT_ERR',
            `${what}, ${way}, ${known ? 'known' : 'new'}`,
          )
          if (way === 'of the file') await queue.close()
        }
      }
    }
  },
)
