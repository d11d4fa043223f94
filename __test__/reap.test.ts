// How completions are found ('eventfd', 'thread', 'poll', and without libuv's functions): everything
// works and nothing is left unsubmitted, others of the event loop have their turns, and a process or
// worker ends as it should.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Queue } from 'node-uring'
import { childJson, fixture } from './helpers/child.js'
import { rejection, ring, thrown } from './helpers/ring.js'
import { folder } from './helpers/scratch.js'

/** What is tested: the option, whether libuv's functions are hidden, what the queue tells. */
const WAYS = [
  { reap: 'eventfd', hidden: false, told: 'eventfd' },
  { reap: 'thread', hidden: false, told: 'thread' },
  { reap: 'poll', hidden: false, told: 'poll' },
  { reap: 'eventfd', hidden: true, told: 'thread' },
  { reap: 'poll', hidden: true, told: 'poll' },
] as const

function workplace(t: ExecutionContext<unknown>): string {
  const place = folder(t)
  fs.writeFileSync(
    path.join(place, 'data'),
    Buffer.from(new Uint32Array(1 << 18).map((_, i) => i).buffer),
  )
  execFileSync('mkfifo', [path.join(place, 'fifo')])
  return place
}

const EXPECTED = {
  wrong: 0,
  late: '01234567890123456789',
  ticks: true,
  echoes: 100,
  staged: ['timer', 'immediate', 'tick', 'fs'],
  stale: 0,
  pending: 0,
  inFlight: 0,
}

for (const { reap, hidden, told: reaped } of WAYS) {
  const way = `reap: '${reap}'${hidden ? ' without the functions of libuv' : ''}`
  const env = { NODE_URING_TEST_HIDE_LIBUV: hidden ? '1' : '0' }

  test(`with ${way} everything works, and timers and sockets have their turns`, async (t) => {
    t.timeout(60_000)
    const args = [JSON.stringify({ reap, entries: 64 }), workplace(t)]
    const told = await childJson(fixture('reaping.mjs'), { args, env, timeoutMs: 50_000 })
    t.deepEqual(told, { reap: reaped, ...EXPECTED })
  })

  test(`with ${way} the last operation of a program is waited for, and then it ends`, async (t) => {
    t.timeout(60_000)
    const args = [JSON.stringify({ reap, sqpoll: { idleMs: 10 } }), workplace(t), 'last']
    const told = await childJson(fixture('reaping.mjs'), { args, env, timeoutMs: 50_000 })
    t.deepEqual(told, { reap: reaped, ...EXPECTED })
  })

  test(`with ${way} the event loop comes round beside operations without end`, async (t) => {
    const program = `
      import { Queue } from 'node-uring'
      const queue = new Queue({ reap: '${reap}' })
      let [goes, nops] = [true, 0]
      const all = Array.from({ length: 512 }, async () => { while (goes) { await queue.nop(); nops++ } })
      const rounds = 20
      for (let i = 0; i < rounds; i++) await new Promise((resolve) => setImmediate(resolve))
      goes = false
      await Promise.all(all)
      await queue.close()
      console.log(JSON.stringify(nops / rounds))`
    const each = await childJson<number>(program, { env, timeoutMs: 50_000 })
    t.true(each < 20_000, `${each} operations while nobody else had their turn`)
  })

  test(`with ${way} a queue that is not wanted lets the process end`, async (t) => {
    const program = `
      import { Queue } from 'node-uring'
      const queue = new Queue({ reap: '${reap}' })
      await queue.nop()
      queue.sleep(3_600_000).catch(() => {})
      queue.unref()
      console.log('1')`
    t.is(await childJson<number>(program, { env, timeoutMs: 20_000 }), 1)
  })

  test(`with ${way} workers that end or are terminated at work leave nothing`, async (t) => {
    t.timeout(60_000)
    const program = `
      import fs from 'node:fs'
      import { Worker, isMainThread } from 'node:worker_threads'
      import { Queue } from 'node-uring'
      const holdings = () => [
        fs.readdirSync('/proc/self/fd').length,
        fs.readdirSync('/proc/self/task').filter((id) => {
          try { return fs.readFileSync('/proc/self/task/' + id + '/comm', 'utf8').startsWith('uring-reaper') } catch { return false }
        }).length,
      ]
      const code = \`
        import { parentPort } from 'node:worker_threads'
        import { Queue } from 'node-uring'
        const queue = new Queue({ reap: '${reap}' })
        const nops = async () => { for (;;) await queue.nop() }
        if (process.argv[2] === 'terminate') for (let i = 0; i < 20; i++) nops().catch(() => {})
        queue.sleep(process.argv[2] === 'terminate' ? 3600000 : 5).then(() => {}, () => {})
        parentPort.postMessage('at work')
      \`
      const run = async (how) => {
        const worker = new Worker(code, { eval: true, argv: [how] })
        const exit = new Promise((resolve) => worker.once('exit', resolve))
        await new Promise((resolve) => worker.once('message', resolve))
        if (how === 'terminate') await worker.terminate()
        await exit
      }
      // The first loads the binary.
      await new Queue().close()
      await run('end')
      const before = holdings()
      for (let i = 0; i < 10; i++) await run(i % 2 ? 'end' : 'terminate')
      // What is left for good is left then, too.
      const until = performance.now() + 20_000
      while (holdings().join() !== before.join() && performance.now() < until) {
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      console.log(JSON.stringify([before, holdings()]))`
    const [before, after] = await childJson<number[][]>(program, { env, timeoutMs: 50_000 })
    t.deepEqual(after, before)
    t.is(after?.[1], 0)
  })

  test(`with ${way} an exception in what a completion calls is the process's, and others settle`, async (t) => {
    const program = `
      import { Queue } from 'node-uring'
      const queue = new Queue({ reap: '${reap}' })
      const told = []
      process.on('uncaughtException', ({ message }) => told.push(message))
      process.on('unhandledRejection', ({ message }) => told.push(message))
      const nops = Array.from({ length: 10 }, (_, i) => queue.nop().then(() => {
        if (i === 3) throw new Error('mine')
        told.push(i)
      }))
      await Promise.allSettled(nops)
      queue.nop().then(() => process.nextTick(() => { throw new Error('later') }))
      await queue.sleep(10)
      await queue.close()
      console.log(JSON.stringify(told))`
    const told = await childJson<unknown[]>(program, { env, timeoutMs: 20_000 })
    t.deepEqual(told, [0, 1, 2, 4, 5, 6, 7, 8, 9, 'later'])
  })
}

for (const [what, ...last] of [
  ['everything works'],
  ['the last operation is waited for', 'last'],
]) {
  test(`with sqpoll, where nobody says how completions are found, ${what}`, async (t) => {
    t.timeout(60_000)
    const args = [JSON.stringify({ sqpoll: { idleMs: 10 }, entries: 64 }), workplace(t), ...last]
    const told = await childJson(fixture('reaping.mjs'), { args, timeoutMs: 50_000 })
    t.deepEqual(told, { reap: 'eventfd', ...EXPECTED })
  })
}

for (const [which, options, pending] of [
  ['a queue that polls', "{ reap: 'poll' }", 'nothing is'],
  ['a queue with sqpoll', '{ sqpoll: { idleMs: 10 } }', 'a long timeout is'],
] as const) {
  test(`${which} costs no CPU while ${pending} in flight`, async (t) => {
    t.timeout(30_000)
    const program = `
      import { setTimeout } from 'node:timers/promises'
      import { Queue } from 'node-uring'
      const queue = new Queue(${options})
      await queue.nop()
      const [pending] = process.argv.slice(1)
      const late = pending === 'nothing is' ? undefined : queue.sleep(60_000)
      late?.catch(() => {})
      await setTimeout(100)
      const from = process.cpuUsage()
      await setTimeout(1000)
      const { user, system } = process.cpuUsage(from)
      await queue.close({ timeoutMs: 0 })
      console.log(String((user + system) / 1000))`
    const cpuMs = await childJson<number>(program, { args: [pending], timeoutMs: 20_000 })
    t.true(cpuMs < 200, `${cpuMs} of 1000 ms`)
  })
}

test('another way to reap throws, before anything is made', (t) => {
  const error = thrown(() => new Queue({ reap: 'epoll' as 'poll' }))
  t.is(error.code, 'ERR_INVALID_ARG_VALUE')
  t.regex(error.message, /eventfd, thread, poll/)
})

test('a queue with a thread is closed from inside of a completion', async (t) => {
  const queue = ring(t, { reap: 'thread' })
  const late = rejection(queue.sleep(60_000))
  await queue.nop().then(() => queue.close({ timeoutMs: 0 }))
  t.is((await late).code, 'ABORT_ERR')
  t.is((await rejection(queue.nop())).code, 'ERR_URING_CLOSED')
})
