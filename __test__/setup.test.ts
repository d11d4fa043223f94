// What a queue is asked for by name: contradicting and wrong options throw before anything is made, the
// kernel's refusals say what is missing, and a ring restricted to some operations is locked to them.

import fs from 'node:fs'
import test from 'ava'
import { Queue, type QueueOptions } from 'node-uring'
import { OPERATION_NAMES } from '../src/capabilities.js'
import { childJson } from './helpers/child.js'
import { assertIdle, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, scratch } from './helpers/scratch.js'

/** Options, the code that is thrown, and words of its message. */
const WRONG: readonly [unknown, string, RegExp][] = [
  [{ sqpoll: {}, setup: { taskRun: 'defer' } }, 'ERR_INVALID_ARG_VALUE', /with options\.sqpoll/],
  [{ sqpoll: {}, setup: { taskRun: 'cooperative' } }, 'ERR_INVALID_ARG_VALUE', /polling thread/],
  [{ sqpoll: { cpu: 0 }, attach: 5 }, 'ERR_INVALID_ARG_VALUE', /with options\.attach/],
  [{ setup: { taskRun: 'never' } }, 'ERR_INVALID_ARG_VALUE', /defer, cooperative, interrupt/],
  [{ setup: { noSqArray: 1 } }, 'ERR_INVALID_ARG_TYPE', /options\.setup\.noSqArray/],
  [{ setup: { submitAll: 'yes' } }, 'ERR_INVALID_ARG_TYPE', /options\.setup\.submitAll/],
  [{ setup: { registeredDescriptor: 0 } }, 'ERR_INVALID_ARG_TYPE', /registeredDescriptor/],
  [{ setup: [] }, 'ERR_INVALID_ARG_TYPE', /options\.setup/],
  [{ sqpoll: true }, 'ERR_INVALID_ARG_TYPE', /options\.sqpoll/],
  [{ sqpoll: null }, 'ERR_INVALID_ARG_TYPE', /options\.sqpoll/],
  [{ sqpoll: { idleMs: 0 } }, 'ERR_OUT_OF_RANGE', /options\.sqpoll\.idleMs/],
  [{ sqpoll: { idleMs: 1.5 } }, 'ERR_OUT_OF_RANGE', /options\.sqpoll\.idleMs/],
  [{ sqpoll: { cpu: -1 } }, 'ERR_OUT_OF_RANGE', /options\.sqpoll\.cpu/],
  [{ sqpoll: { cpu: '0' } }, 'ERR_INVALID_ARG_TYPE', /options\.sqpoll\.cpu/],
  [{ attach: -1 }, 'ERR_OUT_OF_RANGE', /options\.attach/],
  [{ attach: {} }, 'ERR_INVALID_ARG_TYPE', /options\.attach/],
  [{ flushDelayUs: -1 }, 'ERR_OUT_OF_RANGE', /options\.flushDelayUs/],
  [{ flushDelayUs: 1_000_001 }, 'ERR_OUT_OF_RANGE', /options\.flushDelayUs/],
  [{ flushDelayUs: '0' }, 'ERR_INVALID_ARG_TYPE', /options\.flushDelayUs/],
  [{ reap: 'never' }, 'ERR_INVALID_ARG_VALUE', /eventfd, thread, poll/],
  [{ restrict: ['read'] }, 'ERR_INVALID_ARG_TYPE', /options\.restrict/],
  [{ restrict: {} }, 'ERR_INVALID_ARG_TYPE', /options\.restrict\.operations/],
  [{ restrict: { operations: 'read' } }, 'ERR_INVALID_ARG_TYPE', /options\.restrict\.operations/],
  [{ restrict: { operations: ['read', 'reed'] } }, 'ERR_INVALID_ARG_VALUE', /'reed'/],
  [{ restrict: { operations: [undefined] } }, 'ERR_INVALID_ARG_VALUE', /undefined/],
  [{ restrict: { operations: ['toString'] } }, 'ERR_INVALID_ARG_VALUE', /'toString'/],
]

test.serial('wrong and contradicting options throw in a sentence, and no ring is made', (t) => {
  new Queue().close() // The binary is loaded.
  const rings = (): number => fs.readFileSync('/proc/self/maps', 'utf8').split('io_uring').length
  const before = rings()
  for (const [options, code, words] of WRONG) {
    const error = thrown(() => new Queue(options as QueueOptions), JSON.stringify(options))
    t.is(error.code, code, JSON.stringify(options))
    t.regex(error.message, words)
    t.is(thrown(() => Queue.probe(options as QueueOptions)).code, code)
  }
  t.is(rings(), before)
})

test('the names of operations are those that the engine tells', (t) => {
  t.deepEqual(Object.keys(ring(t).capabilities.operations).sort(), [...OPERATION_NAMES].sort())
})

test('each flag of set-up can be left out, and the reason says who left it out', (t) => {
  const { setupFlags, registeredDescriptor, notInUse } = ring(t, {
    setup: { noSqArray: false, submitAll: false, registeredDescriptor: false },
  }).capabilities
  t.false(setupFlags.includes('NO_SQARRAY') || setupFlags.includes('SUBMIT_ALL'))
  t.false(registeredDescriptor)
  for (const name of ['noSqArray', 'submitAll', 'registeredDescriptor']) {
    const found = Object.values(notInUse).some(
      ({ reason }) => reason === `options.setup.${name} is false.`,
    )
    t.true(found, name)
  }
})

/** Options that the kernel refuses, and what its refusal says is needed. */
const REFUSED: readonly [QueueOptions, string, RegExp][] = [
  [{ sqpoll: {}, attach: 1_000_000 }, 'ENXIO', /options\.attach.*open in this process/],
  [{ sqpoll: {}, attach: 0 }, 'EINVAL', /options\.attach.*polling thread/],
  [{ sqpoll: { cpu: 100_000 } }, 'EINVAL', /options\.sqpoll.*CPU that is online/],
]

test('what the kernel refuses says which option it is about and what that needs', (t) => {
  for (const [options, code, words] of REFUSED) {
    for (const call of [() => new Queue(options), () => Queue.probe(options)]) {
      const error = thrown(call, JSON.stringify(options))
      t.is(error.code, 'ERR_URING_UNSUPPORTED', JSON.stringify(options))
      t.regex(error.message, words)
      t.is((error.cause as { code: string }).code, code)
    }
  }
})

// ---- restrict -----------------------------------------------------------------------------------

test('a write whose fdatasync is not among the operations says so, and writes nothing', async (t) => {
  const queue = ring(t, { restrict: { operations: ['write'] } })
  const name = scratch(t, Buffer.from('as it was'))
  const file = await queue.adopt(fs.openSync(name, 'r+'))
  const error = await rejection(file.writeAt(Buffer.from('no'), 0, { datasync: true }))
  t.is(error.message, 'EACCES: permission denied, fdatasync')
  t.is(error.bytesWritten, 0)
  t.is(fs.readFileSync(name, 'latin1'), 'as it was')
  t.is(await file.writeAt(Buffer.from('is'), 3), 2)
  assertIdle(t, queue)
})

test('the kernel refuses what a queue is not restricted to, and nothing is changed', async (t) => {
  const queue = ring(t, { restrict: { operations: ['read'] } })
  const name = scratch(t, Buffer.from('as it was'))
  const file = await queue.adopt(fs.openSync(name, 'r+'))
  const refused = (call: string) => ({
    code: 'EACCES',
    message: `EACCES: permission denied, ${call}`,
  })
  t.is((await file.bytesAt(0, 100)).toString(), 'as it was')
  t.like(await rejection(file.writeAt(Buffer.from('other'), 0)), refused('write'))
  t.like(await rejection(file.writeAt(queue.alloc(10), 0, { datasync: true })), refused('write'))
  t.like(await rejection(file.truncate(0)), refused('ftruncate'))
  t.like(await rejection(file.sync()), refused('fsync'))
  t.like(await rejection(queue.open(name)), { code: 'EACCES', syscall: 'open', path: name })
  t.is(fs.readFileSync(name, 'utf8'), 'as it was')
  t.deepEqual(queue.capabilities.restrictedTo, ['read'])
  await file.close()
  assertIdle(t, queue)
})

test('a restricted queue keeps what it needs itself: nops, timeouts, cancels and closing', async (t) => {
  const queue = ring(t, { restrict: { operations: [] } })
  await queue.nop()
  await queue.sleep(1)
  const { fd } = await queue.adopt(fs.openSync(fifo(t), 'r+'))
  const { ino } = fs.fstatSync(fd)
  const sleep = rejection(queue.sleep(60_000))
  await queue.close({ timeoutMs: 0 })
  t.is((await sleep).code, 'ABORT_ERR')
  // Its number may be another file's by now: other tests run beside this one.
  let now: number | undefined
  try {
    now = fs.fstatSync(fd).ino
  } catch {
    // Nobody has it.
  }
  t.not(now, ino)
})

test('a queue restricted to what direct files need reads and writes them by registered memory', async (t) => {
  const queue = ring(t, { restrict: { operations: ['openat', 'statx', 'read', 'write', 'fsync'] } })
  const file = await queue.open(scratch(t, Buffer.alloc(8192)), 'r+', { direct: true })
  const block = queue.alloc(4096).fill(3)
  t.is(await file.writeAt(block, 4096, { datasync: true }), 4096)
  t.is(await file.readAt(block, 0), 4096)
  t.true(block.every((byte) => byte === 0))
  t.is(queue.capabilities.registeredMemory, 'registered')
  await file.close()
})

test('a restriction cannot be taken back: every other queue is as free as before', async (t) => {
  const told = await childJson<string[]>(`
    import { Queue } from 'node-uring'
    const code = (promise) => promise.then(() => 'done', ({ code }) => code)
    const [locked, free] = [new Queue({ restrict: { operations: ['read'] } }), new Queue()]
    const path = process.execPath
    console.log(JSON.stringify([await code(locked.open(path)), await code(free.open(path))]))`)
  t.deepEqual(told, ['EACCES', 'done'])
})

test('an option that there is none of is refused, with those that there are', (t) => {
  for (const [options, name] of [
    [{ entires: 5 }, 'options.entires'],
    [{ arena: { maxByte: 1 } }, 'options.arena.maxByte'],
    [{ workers: { bound: 1 } }, 'options.workers.bound'],
    [{ setup: { taskrun: 'defer' } }, 'options.setup.taskrun'],
    [{ sqpoll: { idle: 1 } }, 'options.sqpoll.idle'],
    [{ restrict: { operations: [], operation: [] } }, 'options.restrict.operation'],
  ] as const) {
    const { code, message } = thrown(() => new Queue(options as never))
    t.is(code, 'ERR_INVALID_ARG_VALUE')
    t.true(message.includes(`'${name}' is not known; there are `), message)
  }
})
