// A batch of a million does not keep the rest of the program waiting: timers, sockets, other files. The
// bounds here are for a machine that does other things, too; the figures are the benchmark's.

import fs from 'node:fs'
import net from 'node:net'
import { performance } from 'node:perf_hooks'
import { type File, op, type Queue } from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MILLION = 1_000_000
/** The median gap of a 1 ms timer. */
const GAP_MS_MAX = 5

/** What happened beside a batch. */
interface Beside {
  /** The median gap of a 1 ms timer, and how often it ran. */
  readonly gapMs: number
  readonly ticks: number
  /** How many echoes on a socket, and single reads of another file, were done. */
  readonly echoes: number
  readonly reads: number
  /** The most operations of the batch that completed between a read's call and its end. */
  readonly overtaking: number
  readonly ms: number
}

/**
 * A clock in milliseconds that leaves out how long this thread waited for a CPU that others had: their
 * load is not what is measured. proc(5), schedstat; where there is none it is a clock like any other.
 */
function ownClock(t: ExecutionContext): () => number {
  const at = '/proc/thread-self/schedstat'
  if (!fs.existsSync(at)) return () => performance.now()
  const fd = fs.openSync(at, 'r')
  t.teardown(() => fs.closeSync(fd))
  const text = Buffer.alloc(100)
  return () => {
    const [, waitedNs] = text.toString('latin1', 0, fs.readSync(fd, text, 0, 100, 0)).split(' ')
    return performance.now() - Number(waitedNs) / 1e6
  }
}

async function echoServer(t: ExecutionContext): Promise<net.Socket> {
  const server = net.createServer((socket) => {
    // The end of a test cuts the connection.
    socket.on('error', () => {}).pipe(socket)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  t.teardown(() => {
    socket.destroy()
    server.close()
  })
  await new Promise((resolve) => socket.once('connect', resolve))
  return socket
}

async function beside(
  t: ExecutionContext,
  queue: Queue,
  other: File,
  work: () => Promise<unknown>,
): Promise<Beside> {
  const socket = await echoServer(t)
  const clock = ownClock(t)
  const gaps: number[] = []
  let over = false
  let last = clock()
  const timer = setInterval(() => {
    const now = clock()
    gaps.push(now - last)
    last = now
  }, 1)
  let [echoes, reads, overtaking] = [0, 0, 0]
  socket.on('data', () => {
    echoes++
    if (!over) socket.write('x')
  })
  socket.write('x')
  const reading = (async () => {
    const buffer = queue.alloc(512)
    while (!over) {
      const { submitted } = queue.stats()
      await other.readAt(buffer, 0)
      overtaking = Math.max(overtaking, queue.stats().submitted - submitted)
      reads++
      // The next in a later turn, from where a program would call it.
      await new Promise((resolve) => setImmediate(resolve))
    }
  })()
  const started = clock()
  await work()
  over = true
  const ms = clock() - started
  clearInterval(timer)
  await reading
  gaps.sort((a, b) => a - b)
  return {
    gapMs: gaps[gaps.length >> 1] ?? Infinity,
    ticks: gaps.length,
    echoes,
    reads,
    overtaking,
    ms,
  }
}

const WORKS: Record<string, (queue: Queue, file: File) => Promise<unknown>> = {
  'a million nops': (queue) => queue.nops(MILLION),
  'readMany of a million cached reads': (queue, file) => {
    const positions = Float64Array.from({ length: MILLION }, (_, i) => (i * 64) % 60_000)
    return file.readMany(positions, 16, queue.alloc(MILLION * 16))
  },
  'a batch of a million': (queue) => queue.submit(new Array(MILLION).fill(op.nop())),
}

for (const [what, work] of Object.entries(WORKS)) {
  test.serial(`timers, sockets and another file go on beside ${what}`, async (t) => {
    const queue = ring(t, {}, 180_000)
    const file = await queue.open(scratch(t, pattern(1 << 17)))
    const other = await queue.open(scratch(t, pattern(4096)))
    await file.readMany(new Float64Array(1), 1, Buffer.alloc(1))
    const seen = await beside(t, queue, other, () => work(queue, file))
    const told = `${what}: ${JSON.stringify(seen)}`
    t.log(told)
    t.true(seen.gapMs <= GAP_MS_MAX, told)
    // Something of each in every 50 ms, whatever else the machine does.
    const least = Math.max(1, Math.floor(seen.ms / 50))
    t.true(seen.ticks >= least && seen.echoes >= least && seen.reads >= least, told)
    t.true(seen.overtaking <= 20_000, told)
    assertIdle(t, queue)
  })
}
