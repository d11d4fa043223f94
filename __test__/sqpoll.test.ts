// A kernel thread that submits (sqpoll), alone and shared (attach): no system call while it is awake,
// none of its time while there is nothing to do, and everything works as without it.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { childJson, fixture } from './helpers/child.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const IDLE_MS = 20
const numbered = (): Buffer => Buffer.from(new Uint32Array(1 << 18).map((_, i) => i).buffer)

for (const idleMs of [1, 2000]) {
  test(`everything works with a polling thread that sleeps after ${idleMs} ms`, async (t) => {
    const queue = ring(t, { sqpoll: { idleMs }, entries: 32 })
    const place = folder(t)
    for (const direct of [false, true]) {
      const name = path.join(place, `data-${direct}`)
      fs.writeFileSync(name, numbered())
      const file = await queue.open(name, 'r+', { direct })
      const read = await Promise.all(
        Array.from({ length: 500 }, async (_, i) => {
          const bytes = i % 2 === 0 ? queue.alloc(4096) : Buffer.alloc(4096)
          await file.readAt(bytes, (i % 256) * 4096)
          return bytes.readUInt32LE(0) / 1024
        }),
      )
      t.deepEqual(
        read,
        [...Array(500).keys()].map((i) => i % 256),
      )
      await Promise.all(
        Array.from({ length: 50 }, (_, i) =>
          file.writeAt(Buffer.alloc(4096, i), i * 4096, { datasync: i % 10 === 0 }),
        ),
      )
      t.true((await file.bytesAt(49 * 4096, 4096)).every((byte) => byte === 49))
      await file.close()
    }
    const late = await queue.open(fifo(t), 'r+')
    const bytes = late.bytesAt(0, 10)
    await queue.sleep(2 * IDLE_MS)
    await late.writeAt(Buffer.from('late'), 0)
    t.is((await bytes).toString(), 'late')
    const never = rejection(late.readAt(Buffer.alloc(1), 0))
    await queue.sleep(1)
    await late.close({ timeoutMs: 0 })
    t.is((await never).code, 'ABORT_ERR')
    await Promise.all(Array.from({ length: 5000 }, () => queue.nop()))
    assertIdle(t, queue)
    t.deepEqual(queue.capabilities.sqpoll, { idleMs, cpu: null })
  })
}

test('while the polling thread is awake operations take no enter', async (t) => {
  const queue = ring(t, { sqpoll: { idleMs: 30_000 } })
  const file = await queue.open(scratch(t, Buffer.alloc(4096)))
  const bytes = queue.alloc(4096)
  await file.readAt(bytes, 0)
  const before = queue.stats()
  for (let i = 0; i < 500; i++) await file.readAt(bytes, 0)
  const { enters, submitted } = queue.stats()
  t.is(enters, before.enters)
  t.is(submitted - before.submitted, 500)
})

test('a polling thread stays on the CPU that it was given', async (t) => {
  const told = await childJson<string[]>(`
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const list = fs.readFileSync('/proc/self/status', 'utf8').match(/Cpus_allowed_list:\\s*(.*)/)[1]
    const cpu = Number(list.split(/[-,]/).at(-1))
    const queue = new Queue({ sqpoll: { cpu, idleMs: 5000 } })
    await queue.nop()
    const allowed = fs.readdirSync('/proc/self/task')
      .filter((id) => fs.readFileSync(\`/proc/self/task/\${id}/comm\`, 'utf8').startsWith('iou-sqp'))
      .map((id) => fs.readFileSync(\`/proc/self/task/\${id}/status\`, 'utf8').match(/Cpus_allowed_list:\\s*(.*)/)[1])
    console.log(JSON.stringify([allowed.join(), String(cpu), ...queue.capabilities.setupFlags]))
    await queue.close()`)
  t.is(told[0], told[1])
  t.true(told.includes('SQPOLL') && told.includes('SQ_AFF'))
})

test('a queue with a polling thread that has nothing to do costs no CPU', async (t) => {
  t.timeout(30_000)
  const told = await childJson<{ polling: number; process: number; enters: number }>(`
    import fs from 'node:fs'
    import { setTimeout } from 'node:timers/promises'
    import { Queue } from 'node-uring'
    const queue = new Queue({ sqpoll: { idleMs: ${IDLE_MS} } })
    await queue.nop()
    const task = fs.readdirSync('/proc/self/task')
      .find((id) => fs.readFileSync(\`/proc/self/task/\${id}/comm\`, 'utf8').startsWith('iou-sqp'))
    const ticks = () => {
      const stat = fs.readFileSync(\`/proc/self/task/\${task}/stat\`, 'utf8').split(')')[1].split(' ')
      return Number(stat[12]) + Number(stat[13])
    }
    await setTimeout(${IDLE_MS * 10})
    const [from, cpu] = [ticks(), process.cpuUsage()]
    await setTimeout(2000)
    const { user, system } = process.cpuUsage(cpu)
    const polling = (ticks() - from) * 10
    const { enters } = queue.stats()
    // And it wakes up.
    await queue.nop()
    console.log(JSON.stringify({ polling, process: (user + system) / 1000, enters: queue.stats().enters - enters }))
    await queue.close()`)
  t.is(told.enters, 1, 'the enter that wakes it')
  t.true(told.polling <= 100, `at most 5% of 2 s: ${JSON.stringify(told)}`)
  t.true(told.process <= 400, `at most 20% of 2 s: ${JSON.stringify(told)}`)
})

test('queues of four workers that attach share one polling thread, whoever ends first', async (t) => {
  t.timeout(60_000)
  const args = ['attach', scratch(t, numbered())]
  const told = await childJson(fixture('attached.mjs'), { args, timeoutMs: 50_000 })
  t.deepEqual(told, { threads: 1, wrong: 0, again: [0, 0, 0] })
})

test('queues of four workers that do not attach have a polling thread each', async (t) => {
  t.timeout(60_000)
  const args = ['own', scratch(t, numbered())]
  const told = await childJson(fixture('attached.mjs'), { args, timeoutMs: 50_000 })
  t.deepEqual(told, { threads: 5, wrong: 0, again: [0, 0, 0] })
})

test('a handle names an open queue, and is told by none that is closed', async (t) => {
  const [one, other] = [ring(t), ring(t)]
  t.not(one.handle, other.handle)
  t.true(Number.isInteger(one.handle))
  t.regex(fs.readlinkSync(`/proc/self/fd/${one.handle}`), /io_uring/)
  await one.close()
  t.throws(() => one.handle, { code: 'ERR_URING_CLOSED' })
  // Without a polling thread it may be given, and nothing is shared.
  const attached = ring(t, { attach: other.handle })
  await attached.nop()
  t.true(attached.capabilities.setupFlags.includes('ATTACH_WQ'))
})

const BECOMES_NOBODY = `
import { Queue } from 'node-uring'
const [secret, open, how] = process.argv.slice(1)
const code = (promise) => promise.then(() => 'done', ({ code }) => code)
const queue = new Queue({ sqpoll: { idleMs: 100 } })
const before = await queue.open(secret, 'r+')
if (how === 'user') process.setuid(65534)
if (how === 'group') process.setegid(65534)
if (how === 'groups') process.setgroups([65534])
const told = {
  secret: await code(queue.open(secret)),
  open: await code(queue.open(open)),
  made: await code(queue.open(secret + '-new', 'w')),
  kept: (await before.bytesAt(0, 6)).toString(),
  closed: await code(before.close()),
  other: await code(new Queue({ sqpoll: { idleMs: 100 } }).open(secret)),
}
await queue.close()
console.log(JSON.stringify(told))
`

for (const how of ['user', 'group', 'groups']) {
  needs(test, { root: true })(
    `a queue with a polling thread opens nothing once the process has another ${how}`,
    async (t) => {
      const secret = scratch(t, Buffer.from('secret'))
      fs.chmodSync(secret, 0o600)
      fs.chmodSync(path.dirname(secret), 0o755)
      const open = scratch(t, Buffer.from('open'))
      fs.chmodSync(path.dirname(open), 0o755)
      const told = await childJson(BECOMES_NOBODY, { args: [secret, open, how] })
      t.deepEqual(told, {
        secret: 'ERR_URING_CREDENTIALS',
        open: 'ERR_URING_CREDENTIALS',
        made: 'ERR_URING_CREDENTIALS',
        kept: 'secret',
        closed: 'done',
        other: how === 'user' ? 'EACCES' : 'done',
      })
      t.false(fs.existsSync(`${secret}-new`))
    },
  )
}

test('a process ends by itself with a queue with a polling thread open', async (t) => {
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue({ sqpoll: { idleMs: 5000 } })
    await queue.nop()
    console.log('1')`
  t.is(await childJson<number>(program, { timeoutMs: 30_000 }), 1)
})
