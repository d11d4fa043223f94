// What happens to the whole process: it is stopped, signalled thousands of times, becomes another
// user, or may lock no memory. Each in a process of its own.

import { type ChildProcess, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { assertEnded, type ChildOptions, childJson, fixture, runChild } from './helpers/child.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

function numbered(): Buffer {
  return Buffer.from(new Uint32Array(1 << 18).map((_, i) => i).buffer)
}

interface Steady {
  readonly done: number
  readonly wrong: number
  readonly signals: number
  readonly pending: number
  readonly inFlight: number
  readonly stale: number
}

/**
 * Runs `fixtures/steady.mjs` for a while and until it has had so many SIGUSR1, and tells what it told;
 * `disturb` gets its lines, the first is `ready`.
 */
async function steady(
  t: ExecutionContext,
  ms: number,
  signals: number,
  disturb: NonNullable<ChildOptions['onLine']>,
): Promise<Steady> {
  t.timeout(60_000)
  const place = folder(t)
  fs.writeFileSync(path.join(place, 'data'), numbered())
  fs.renameSync(fifo(t), path.join(place, 'fifo'))
  const ended = await runChild(fixture('steady.mjs'), {
    args: [place, String(ms), String(signals)],
    timeoutMs: 40_000,
    onLine(line, child) {
      disturb(line, child)
      if (line !== 'ready') fs.writeFileSync(path.join(place, 'stopped'), '')
    },
  })
  assertEnded(t, ended)
  const told = JSON.parse(ended.stdout.split('\n')[1] ?? '{}') as Steady
  const { wrong, pending, inFlight, stale } = told
  t.deepEqual(
    { wrong, pending, inFlight, stale },
    { wrong: 0, pending: 0, inFlight: 0, stale: 0 },
    JSON.stringify(told),
  )
  return told
}

test.serial(
  'a process that is stopped and continued in the midst of its operations loses none',
  async (t) => {
    let stops = 0
    const { done } = await steady(t, 2000, 1, (line, child) => {
      if (line !== 'ready') return
      const timer = setInterval(() => {
        if (child.exitCode !== null || !child.kill(stops % 2 === 0 ? 'SIGSTOP' : 'SIGCONT')) {
          clearInterval(timer)
        } else if (++stops === 51) child.kill('SIGUSR1')
      }, 15)
    })
    t.true(stops > 50, `${stops} signals`)
    t.true(done > 100, `${done} operations`)
  },
)

/** Waits on three FIFOs, in workers of the kernel, until it is continued; then gives each what it waits for. */
const WAITS_IN_WORKERS = `
import fs from 'node:fs'
import { Queue, op } from 'node-uring'
const [opened, read, source, target] = process.argv.slice(1)
const queue = new Queue()
const [reader, from, to] = await Promise.all([read, source, target].map((name) => queue.open(name, 'r+')))
const length = 256 << 10
const waiting = [
  queue.open(opened, 'r').then((file) => file.stat()).then((stat) => stat.isFIFO()),
  reader.readMany(new Uint32Array(1), length, queue.alloc(length)).then((counts) => [...counts]),
  queue.submit([op.splice(from, to, 5)]),
].map((promise) => promise.catch((error) => error.message))
queue.flush()
process.once('SIGCONT', async () => {
  // Each 'r+', which waits for nobody.
  for (const name of [opened, read, source]) fs.writeSync(fs.openSync(name, 'r+'), 'hello')
  console.log(JSON.stringify(await Promise.all(waiting)))
  process.exit()
})
setInterval(() => {}, 1000)
// The workers have begun; if not, it is only easier.
setTimeout(() => console.log('ready'), 100)`

test('what waits in a worker of the kernel goes on when the process was stopped and continued', async (t) => {
  t.timeout(100_000)
  const fifos = Array.from({ length: 4 }, () => fifo(t))
  for (let round = 0; round < 3; round++) {
    const ended = await runChild(WAITS_IN_WORKERS, {
      args: fifos,
      timeoutMs: 30_000,
      onLine(line, child) {
        if (line !== 'ready') return
        child.kill('SIGSTOP')
        setTimeout(() => child.kill('SIGCONT'), 100)
      },
    })
    assertEnded(t, ended)
    t.deepEqual(JSON.parse(ended.stdout.split('\n')[1] ?? ''), [true, [5], [5]])
  }
})

test.serial('a storm of signals, with a handler, disturbs no operation', async (t) => {
  let sender: ChildProcess | undefined
  const { done, signals } = await steady(t, 2000, 1001, (line, child) => {
    // To the last word: a process that ends has no handler any more.
    if (line !== 'ready') {
      sender?.kill('SIGKILL')
      return
    }
    const storm = `while kill -USR1 ${child.pid} 2>/dev/null; do :; done`
    sender = spawn('sh', ['-c', storm], { stdio: 'ignore' })
    t.teardown(() => sender?.kill('SIGKILL'))
  })
  t.log(`${signals} signals, ${done} operations`)
  t.true(signals > 1000, `${signals} signals`)
  t.true(done > 100, `${done} operations`)
})

/** Becomes nobody after its queue was made, and tries what only root may. */
const BECOMES_NOBODY = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
const [secret, open] = process.argv.slice(1)
const code = (promise) => promise.then(() => 'done', ({ code, path }) => [code, path].join(' '))
const queue = new Queue()
const before = await queue.open(secret, 'r+')
// The kernel's workers have been made by root.
await Promise.all(Array.from({ length: 20 }, async () => (await queue.open(secret)).close()))
process.setgroups([])
process.setgid(65534)
process.setuid(65534)
let theirs
try { fs.openSync(secret) } catch ({ code, path }) { theirs = [code, path].join(' ') }
const ours = await Promise.all(Array.from({ length: 50 }, (_, i) => code(queue.open(secret, i % 2 ? 'r' : 'r+'))))
const told = {
  theirs,
  ours: [...new Set(ours)],
  made: await code(queue.open(secret + '-new', 'w')),
  allowed: await code(queue.open(open)),
  // What was opened stays open.
  kept: (await before.bytesAt(0, 6)).toString(),
  other: await code(new Queue().open(secret)),
}
await queue.close()
console.log(JSON.stringify(told))
`

needs(test, { root: true })(
  'a process that gave its rights up after it made a queue opens nothing through it that it may not',
  async (t) => {
    const secret = scratch(t, Buffer.from('secret'))
    fs.chmodSync(secret, 0o600)
    fs.chmodSync(path.dirname(secret), 0o755)
    const open = scratch(t, Buffer.from('open'))
    fs.chmodSync(path.dirname(open), 0o755)
    const told = await childJson<Record<string, unknown>>(BECOMES_NOBODY, { args: [secret, open] })
    t.deepEqual(told, {
      theirs: `EACCES ${secret}`,
      ours: [`EACCES ${secret}`],
      made: `EACCES ${secret}-new`,
      allowed: 'done',
      kept: 'secret',
      other: `EACCES ${secret}`,
    })
  },
)

/** Works as a user who may lock 64 KiB of memory, and tells what could be registered. */
const LOCKS_LITTLE = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
const [name] = process.argv.slice(1)
// While it may: the binary is loaded with the first queue.
await new Queue().close()
process.setgroups([])
// What is locked is counted by user: one that nobody is, so that nobody else counts.
process.setgid(61234)
process.setuid(61234)
const queue = new Queue()
const file = await queue.open(name, 'r+', { direct: true })
const page = queue.alloc(4096).fill(7)
let wrong = 0
for (let i = 0; i < 200; i++) {
  page.writeUInt32LE(i, 0)
  if (await file.writeAt(page, (i % 16) * 4096) !== 4096) wrong++
  if (await file.readAt(page, (i % 16) * 4096) !== 4096 || page.readUInt32LE(0) !== i) wrong++
  if ((await file.bytesAt((i % 16) * 4096, 4)).readUInt32LE(0) !== i) wrong++
}
const many = Array.from({ length: 2 }, () => new Queue())
await Promise.all(many.map((queue) => queue.nop()))
const { registeredMemory, registeredFiles, entries } = queue.capabilities
const { registeredBytes } = queue.stats().memory
const limit = fs.readFileSync('/proc/self/limits', 'utf8').match(/Max locked memory +(\\d+)/)[1]
await Promise.all([queue, ...many].map((queue) => queue.close()))
console.log(JSON.stringify({ wrong, entries, registeredMemory, registeredFiles, registeredBytes, limit }))
`

needs(test.serial, { root: true })(
  'where 64 KiB may be locked the queues are smaller, and direct files use memory that is not registered',
  async (t) => {
    const name = scratch(t, Buffer.alloc(16 * 4096))
    fs.chmodSync(name, 0o666)
    fs.chmodSync(path.dirname(name), 0o755)
    const options = { args: [name], before: 'ulimit -l 64' }
    const told = await childJson<Record<string, unknown>>(LOCKS_LITTLE, options)
    t.deepEqual(told, {
      wrong: 0,
      entries: 256,
      registeredMemory: { code: 'ENOMEM', errno: -12 },
      registeredFiles: 1024,
      registeredBytes: 0,
      limit: '65536',
    })
  },
)
