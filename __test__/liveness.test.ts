// A program whose only work is one operation neither hangs nor ends early, wherever that operation
// was started; and a queue with nothing to do keeps nobody awake.

import fs from 'node:fs'
import { assertEnded, childJson, each, fixture, runChild } from './helpers/child.js'
import { fifo, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

const OPERATIONS = ['nop', 'sleep', 'open', 'read', 'bytesAt', 'fifo'] as const
const STARTS = [
  'the main script',
  'top-level await',
  'setTimeout',
  'setImmediate',
  'process.nextTick',
  'queueMicrotask',
  'an fs callback',
  'beforeExit',
  'a socket callback',
  'another completion',
  'a completion that came late',
  "another queue's completion",
  "another queue's late completion",
] as const
const DEADLINE_MS = 20_000

/** One program for each operation, with the queue closed at its end or not, by import or require. */
for (const start of STARTS) {
  // Serial: dozens of programs at once would only wait for each other.
  test.serial(
    `a program whose only work is one operation started from ${start} does it and ends`,
    async (t) => {
      t.timeout(60_000)
      const file = scratch(t, Buffer.from('12345'))
      // Half of the combinations each: all four of them with every start, every operation with all.
      const runs = OPERATIONS.flatMap((operation, index) => [
        { operation, closes: 'closed', program: index % 2 === 0 ? 'mjs' : 'cjs' },
        { operation, closes: 'left open', program: index % 2 === 0 ? 'cjs' : 'mjs' },
      ]).map((run) => ({ ...run, program: start === 'top-level await' ? 'mjs' : run.program }))
      await each(runs, async ({ operation, closes, program }) => {
        const pipe = operation === 'fifo' ? fifo(t) : undefined
        const ended = await runChild(fixture(`one-operation.${program}`), {
          args: [start, operation, closes, pipe ?? file],
          timeoutMs: DEADLINE_MS,
          onLine: (line) => {
            if (line === 'waiting' && pipe !== undefined) {
              setTimeout(() => fs.writeFileSync(pipe, '12345'), 30)
            }
          },
        })
        assertEnded(t, ended, { stdout: 'waiting\ndone\n' }, `${operation}, ${closes}, ${program}:`)
      })
    },
  )
}

test('a program that only makes a queue ends', async (t) => {
  t.timeout(30_000)
  const program = `import { Queue } from 'node-uring'; globalThis.queue = new Queue()`
  assertEnded(t, await runChild(program, { timeoutMs: DEADLINE_MS }))
})

test('a program ends although an unreferenced queue waits for a FIFO', async (t) => {
  t.timeout(30_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue().unref()
    const file = await queue.ref().open(process.argv[1], 'r+')
    queue.unref()
    file.readAt(Buffer.alloc(1), 0).then(() => console.log('read'))
    queue.sleep(20_000).then(() => console.log('slept'))
    setTimeout(() => console.log('the end'), 50)`
  const ended = await runChild(program, { args: [fifo(t)], timeoutMs: 15_000 })
  assertEnded(t, ended, { stdout: 'the end\n' })
})

test('unref() after an operation has started lets the program end, too', async (t) => {
  t.timeout(30_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    queue.sleep(20_000).then(() => console.log('slept'))
    setTimeout(() => queue.unref(), 50)`
  assertEnded(t, await runChild(program, { timeoutMs: 15_000 }), { stdout: '' })
})

test('ref() undoes unref(), before an operation and during it', async (t) => {
  t.timeout(30_000)
  const program = (first: string, then: string) => `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    ${first}
    queue.sleep(100).then(() => console.log('slept'))
    ${then}`
  for (const [first, then] of [
    ['queue.unref().ref()', ''],
    ['queue.unref()', 'queue.ref()'],
    ['queue.unref()', 'setTimeout(() => queue.ref(), 20)'],
  ] as const) {
    assertEnded(t, await runChild(program(first, then)), { stdout: 'slept\n' }, `${first} ${then}:`)
  }
})

test('operations of an unreferenced queue are done while something else keeps the program', async (t) => {
  t.timeout(30_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue().unref()
    const keep = setTimeout(() => console.log('too late'), 10_000)
    for (let i = 0; i < 100; i++) await queue.nop()
    await queue.sleep(20)
    await (await queue.open('/')).close()
    console.log('done')
    clearTimeout(keep)`
  assertEnded(t, await runChild(program), { stdout: 'done\n' })
})

test('an idle queue, one that waits for a FIFO and one that sleeps take no CPU', async (t) => {
  t.timeout(30_000)
  const program = `
    import { Queue } from 'node-uring'
    const queues = [new Queue(), new Queue(), new Queue()]
    for (const queue of queues) for (let i = 0; i < 1000; i++) await queue.nop()
    const file = await queues[1].open(process.argv[1], 'r+')
    file.readAt(Buffer.alloc(1), 0).catch(() => {})
    queues[2].sleep(30_000).catch(() => {})
    const after = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
    await after(300)
    const [cpu, { voluntaryContextSwitches }] = [process.cpuUsage(), process.resourceUsage()]
    await after(1000)
    const { user, system } = process.cpuUsage(cpu)
    const switches = process.resourceUsage().voluntaryContextSwitches - voluntaryContextSwitches
    console.log(JSON.stringify({ cpuMs: (user + system) / 1000, switches }))
    for (const queue of queues) await queue.close({ timeoutMs: 0 })`
  const { cpuMs, switches } = await childJson<{ cpuMs: number; switches: number }>(program, {
    args: [fifo(t)],
  })
  // A loop that does not sleep takes 1000 ms. What is seen is Node's own, below 5.
  t.true(cpuMs < 100, `${cpuMs} ms of CPU in a second`)
  t.true(switches < 200, `woken ${switches} times in a second`)
})

test('300,000 bytes that arrive one by one in a FIFO all wake the reader', async (t) => {
  t.timeout(60_000)
  const pipe = fifo(t)
  const enough = scratch(t)
  // The writer stops now and then, so that the reader goes to sleep at all kinds of moments. One that
  // has no CPU finds bytes whenever it looks: it gets more of them, later.
  const writer = `
    const fs = require('node:fs')
    const fd = fs.openSync(${JSON.stringify(pipe)}, 'w')
    const byte = Buffer.alloc(1)
    let [seed, i] = [1, 0]
    const write = () => {
      byte[0] = i++ % 251
      fs.writeSync(fd, byte)
    }
    while (i < 300_000) {
      write()
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
      for (let spins = (seed >>> 16) % 64; spins > 0; spins--) performance.now()
    }
    const cell = new Int32Array(new SharedArrayBuffer(4))
    for (let more = 0; more < 1000 && !fs.existsSync(${JSON.stringify(enough)}); more++) {
      Atomics.wait(cell, 0, 0, 20)
      write()
    }
    fs.writeSync(1, String(i))`
  const reader = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const [pipe, enough] = process.argv.slice(1)
    const queue = new Queue()
    const file = await queue.open(pipe)
    const buffer = Buffer.alloc(64)
    let [bytes, reads, wrong, told] = [0, 0, 0, false]
    for (;;) {
      const count = await file.readAt(buffer, 0)
      if (count === 0) break
      reads++
      if (!told && queue.stats().wakeups > 100) {
        told = true
        fs.writeFileSync(enough, '')
      }
      for (let i = 0; i < count; i++) if (buffer[i] !== bytes++ % 251) wrong++
    }
    console.log(JSON.stringify({ bytes, wrong, reads, wakeups: queue.stats().wakeups }))`
  const [read, written] = await Promise.all([
    childJson<{ bytes: number; wrong: number; reads: number; wakeups: number }>(reader, {
      args: [pipe, enough],
      timeoutMs: 55_000,
    }),
    runChild(writer, { commonjs: true, timeoutMs: 55_000 }),
  ])
  assertEnded(t, written)
  t.true(Number(written.stdout) >= 300_000)
  t.is(read.bytes, Number(written.stdout))
  t.is(read.wrong, 0)
  t.true(read.reads > 1000 && read.wakeups > 100, JSON.stringify(read))
})

test('work staged in every phase of the event loop is submitted before the loop sleeps', async (t) => {
  t.timeout(30_000)
  // Nothing but the operations themselves can wake the loop, and what they wait for is submitted in
  // the phase under test: a missed submission is a hang.
  const program = `
    import { Queue } from 'node-uring'
    import fs from 'node:fs'
    const queues = [new Queue(), new Queue(), new Queue()]
    const phases = [
      (then) => setTimeout(then, 1),
      (then) => setImmediate(then),
      (then) => process.nextTick(then),
      (then) => queueMicrotask(then),
      (then) => fs.access('/', then),
      (then) => queues[0].nop().then(then),
      (then) => queues[1].nop().then(then),
      (then) => queues[2].nop().then(then),
      (then) => queues[0].sleep(1).then(then),
      (then) => queues[2].sleep(1).then(then),
    ]
    for (const first of phases)
      for (const second of phases)
        for (const queue of queues) {
          await new Promise((resolve) => first(resolve))
          await new Promise((resolve) => second(resolve))
          await queue.nop()
        }
    console.log('done')`
  assertEnded(t, await runChild(program, { timeoutMs: DEADLINE_MS }), { stdout: 'done\n' })
})

test('a cancel from a continuation of another queue is submitted before the loop sleeps', async (t) => {
  t.timeout(30_000)
  const program = `
    import { Queue } from 'node-uring'
    const queues = [new Queue(), new Queue()]
    for (const [one, other] of [queues, [...queues].reverse()]) {
      const file = await one.open(process.argv[1], 'r+')
      const read = file.readAt(Buffer.alloc(1), 0).catch((error) => console.log(error.code))
      await new Promise((resolve) => setTimeout(resolve, 20))
      await other.nop()
      void file[Symbol.asyncDispose]()
      await read
    }`
  const ended = await runChild(program, { args: [fifo(t)], timeoutMs: DEADLINE_MS })
  assertEnded(t, ended, { stdout: 'ABORT_ERR\nABORT_ERR\n' })
})

test('the fixture and this file know the same starts and operations', async (t) => {
  const { default: program } = (await import(fixture('one-operation.cjs').href)) as {
    default: { STARTS: object; OPERATIONS: object }
  }
  t.deepEqual(Object.keys(program.STARTS), [...STARTS])
  t.deepEqual(Object.keys(program.OPERATIONS).sort(), [...OPERATIONS].sort())
})
