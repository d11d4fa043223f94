// What a queue says of itself: what the kernel granted, what is not in use and why, and the same from
// a probe that keeps nothing.

import fs from 'node:fs'
import test from 'ava'
import { type Capabilities, Queue, type QueueOptions } from 'node-uring'
import { capabilitiesOf } from '../src/capabilities.js'
import type { EngineCapabilities } from '../src/native.js'
import { engineOptions } from '../src/options.js'
import { childJson } from './helpers/child.js'
import { ring, thrown } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'

const FLAGS = ['NO_SQARRAY', 'SUBMIT_ALL', 'DEFER_TASKRUN', 'COOP_TASKRUN'] as const

test('each set-up flag is in use or has the reason why not', (t) => {
  for (const taskRun of ['defer', 'cooperative', 'interrupt'] as const) {
    const { setupFlags, notInUse } = ring(t, { setup: { taskRun } }).capabilities
    for (const flag of FLAGS) {
      t.not(setupFlags.includes(flag), flag in notInUse, `${flag} with ${taskRun}`)
    }
  }
})

test('capabilities are the same after a trip through JSON', (t) => {
  const { capabilities } = ring(t)
  t.deepEqual(JSON.parse(JSON.stringify(capabilities)), capabilities)
})

test('what an option turns off is not in use, and the reason names the option', (t) => {
  const { notInUse, registeredFiles } = ring(t, { register: false }).capabilities
  t.is(registeredFiles, 0)
  for (const name of ['registeredFiles', 'registeredMemory'] as const) {
    t.deepEqual(notInUse[name], { reason: 'options.register is false.' })
  }
  t.regex(ring(t).capabilities.notInUse.workers?.reason ?? '', /options\.workers/)
  const capped = ring(t, { workers: { bounded: 3, unbounded: 4 } }).capabilities
  t.false('workers' in capped.notInUse)
  t.deepEqual(capped.limits.workers, { bounded: 3, unbounded: 4 })
})

test('limits are those of the process', (t) => {
  const { limits } = ring(t).capabilities
  const proc = fs.readFileSync('/proc/self/limits', 'utf8')
  const limit = (name: string): number | null => {
    const soft = proc.match(new RegExp(`^${name} +(\\S+)`, 'm'))?.[1]
    return soft === 'unlimited' ? null : Number(soft)
  }
  t.is(limits.memlockBytes, limit('Max locked memory'))
  t.is(limits.openFiles, limit('Max open files'))
})

test('what the kernel refuses has its errno, its name and the version that brought it', (t) => {
  const asked = engineOptions({ workers: { bounded: 1 } })
  const granted: EngineCapabilities = {
    entries: 8,
    cqEntries: 16,
    setupFlags: ['CLAMP', 'CQSIZE'],
    registeredDescriptor: false,
    features: {},
    operations: {},
    refused: {
      NO_SQARRAY: 22,
      DEFER_TASKRUN: 22,
      REGISTER_FILES2: 24,
      REGISTER_IOWQ_MAX_WORKERS: 1,
    },
    registeredFiles: 0,
    registeredMemory: 12,
    ownThread: false,
    chainMax: 8,
  }
  const { notInUse, limits } = capabilitiesOf(granted, asked, 'io_uring', undefined)
  const known = 'The kernel does not know it: it came with Linux'
  const refused = Object.entries(notInUse).filter(([, { errno }]) => errno !== undefined)
  t.deepEqual(Object.fromEntries(refused), {
    NO_SQARRAY: { reason: `${known} 6.6.`, code: 'EINVAL', errno: -22 },
    DEFER_TASKRUN: { reason: `${known} 6.1.`, code: 'EINVAL', errno: -22 },
    registeredFiles: {
      reason: 'RLIMIT_NOFILE (ulimit -n) has no room for it.',
      code: 'EMFILE',
      errno: -24,
    },
    registeredMemory: {
      reason: 'RLIMIT_MEMLOCK (ulimit -l) has no room for it.',
      code: 'ENOMEM',
      errno: -12,
    },
    workers: { reason: 'The kernel refused it (EPERM).', code: 'EPERM', errno: -1 },
  })
  t.deepEqual(limits.workers, null)
  t.deepEqual(limits.memlockBytes, null)
})

const PROBED: QueueOptions[] = [
  {},
  { entries: 8, cqEntries: 64 },
  { register: false, setup: { taskRun: 'interrupt' } },
]

test('a probe tells what a queue with a direct file tells', async (t) => {
  for (const options of PROBED) {
    const queue = ring(t, options)
    const name = scratch(t, Buffer.alloc(4096))
    const file = await queue.open(name, 'r', { direct: true })
    await file.readAt(queue.alloc(4096), 0)
    t.deepEqual(Queue.probe(options), queue.capabilities)
  }
})

test('a probe keeps no descriptor and no mapping, and holds no process up', async (t) => {
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const rings = () => fs.readFileSync('/proc/self/maps', 'utf8').match(/io_uring/g)?.length ?? 0
    const held = () => [fs.readdirSync('/proc/self/fd').length, rings()]
    Queue.probe()
    const before = held()
    for (let i = 0; i < 50; i++) Queue.probe()
    console.log(JSON.stringify([before, held()]))`
  const [before, after] = await childJson<number[][]>(program)
  t.deepEqual(after, before)
})

test('a probe checks its options as a queue does', (t) => {
  t.is(thrown(() => Queue.probe({ entries: 0 })).code, 'ERR_OUT_OF_RANGE')
})

test('where there is no ring a probe says why, as a queue does', async (t) => {
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const told = (call) => {
      try { call() } catch ({ code, message, reason }) { return { code, message, reason } }
    }
    Queue.probe()
    try { for (;;) fs.openSync('/dev/null') } catch {}
    console.log(JSON.stringify([told(() => Queue.probe()), told(() => new Queue())]))`
  const told = { before: 'ulimit -n 64' }
  const [probe, queue] = await childJson<{ code: string; reason: { code: string } }[]>(
    program,
    told,
  )
  t.is(probe?.reason.code, 'EMFILE')
  t.is(probe?.code, 'ERR_URING_UNAVAILABLE')
  t.deepEqual(probe, queue)
})

test('after close capabilities are those of the end', async (t) => {
  const queue = ring(t)
  const before: Capabilities = queue.capabilities
  await queue.close()
  t.deepEqual(queue.capabilities, before)
})

test('capabilities tell of each operation that there is, also on node:fs', async (t) => {
  const queue = new Queue({ backend: 'node:fs' })
  t.deepEqual(Object.keys(queue.capabilities.operations), Object.keys(Queue.probe().operations))
  t.is(queue.capabilities.operations.fallocate, false)
  t.true(queue.capabilities.operations.read)
  await queue.close()
})
