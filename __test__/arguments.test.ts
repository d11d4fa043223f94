// Arguments that are not what they seem: of another realm, subclassed, behind a proxy, with getters.

import fs from 'node:fs'
import vm from 'node:vm'
import test from 'ava'
import { Queue } from 'node-uring'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'

const CONTENT = Buffer.from('0123456789abcdef')

class Special extends Uint8Array {
  static get [Symbol.species](): Uint8ArrayConstructor {
    throw new Error('nobody makes another')
  }
  override get length(): number {
    throw new Error('nobody asks')
  }
}

class Liar extends Uint8Array {
  override get byteLength(): number {
    return 1 << 30
  }
}

/** Reads the content into a view, and writes it from there over the file. */
async function roundTrip(queue: Queue, path: string, view: NodeJS.ArrayBufferView) {
  const file = await queue.open(path, 'r+')
  const read = await file.readAt(view, 0)
  const written = await file.writeAt(view, 0)
  await file.close()
  return [read, written]
}

test('views of another realm are as good as our own', async (t) => {
  const queue = ring(t)
  const path = scratch(t, CONTENT)
  const context = vm.createContext({})
  for (const made of [
    'new Uint8Array(16)',
    'new DataView(new ArrayBuffer(16))',
    'new Float64Array(2)',
  ]) {
    const view = vm.runInContext(made, context) as NodeJS.ArrayBufferView
    t.false(view.buffer instanceof ArrayBuffer, 'of another realm')
    t.deepEqual(await roundTrip(queue, path, view), [16, 16], made)
    t.true(Buffer.from(view.buffer, 0, 16).equals(CONTENT), made)
  }
  // A view of ours over memory of another realm, and options from there.
  const memory = vm.runInContext('new ArrayBuffer(32)', context) as ArrayBuffer
  t.deepEqual(await roundTrip(queue, path, new Uint8Array(memory, 8, 16)), [16, 16])
  const options = vm.runInContext('({ datasync: true })', context) as { datasync: boolean }
  const file = await queue.open(path, 'r+')
  t.is(await file.writeAt(CONTENT, 0, options), 16)
  assertIdle(t, queue)
})

test('subclassed views are used by what they are, and not by what they say', async (t) => {
  const queue = ring(t)
  const path = scratch(t, CONTENT)
  const special = new Special(16)
  t.deepEqual(await roundTrip(queue, path, special), [16, 16])
  t.true(Buffer.from(special.buffer).equals(CONTENT))
  // One that says that it is longer gets what it has, or is refused; nothing is written past it.
  const around = new ArrayBuffer(64)
  const liar = new Liar(around, 16, 16)
  const file = await queue.open(path)
  const outcome = await file.readAt(liar, 0).catch((error: { code: string }) => error.code)
  t.true(outcome === 16 || outcome === 'ERR_URING_BUFFER_DETACHED', `${outcome}`)
  t.true(Buffer.from(around, 0, 16).every((byte) => byte === 0))
  t.true(Buffer.from(around, 32).every((byte) => byte === 0))
  assertIdle(t, queue)
})

test('a proxy is no view, and is refused before anything is staged', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, CONTENT), 'r+')
  const { submitted } = queue.stats()
  for (const target of [
    new Uint8Array(8),
    Buffer.alloc(8),
    queue.alloc(8),
    new DataView(new ArrayBuffer(8)),
  ]) {
    const proxy = new Proxy(target, {})
    t.throws(() => void file.readAt(proxy, 0), { code: 'ERR_INVALID_ARG_TYPE' })
    t.throws(() => void file.writeAt(proxy, 0), { code: 'ERR_INVALID_ARG_TYPE' })
    t.throws(() => queue.free(proxy))
  }
  t.is(queue.stats().submitted, submitted)
  t.is(queue.stats().pending, 0)
})

test.serial('a getter of an option of a queue that throws leaves no ring', (t) => {
  // Of rings, eventfds and the like: files that others open here are not counted.
  const held = () =>
    fs.readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith('anon_inode:')
      } catch {
        return false // the one that read the folder
      }
    }).length
  // What the first queue of a process leaves is there.
  ring(t)
  const before = held()
  const names = ['entries', 'cqEntries', 'arena', 'bounceBytes', 'resultBytes', 'inline', 'workers']
  for (const name of [...names, 'register', 'setup']) {
    const options = Object.defineProperty({}, name, {
      get() {
        throw new Error(`${name} is mine`)
      },
    })
    t.throws(() => new Queue(options), { message: `${name} is mine` })
  }
  t.throws(
    () =>
      new Queue({
        arena: {
          get slabBytes(): number {
            throw new Error('deep')
          },
        },
      }),
    { message: 'deep' },
  )
  t.is(held(), before)
})

test('a getter of an option that throws leaves nothing staged', async (t) => {
  const queue = ring(t)
  const path = scratch(t, CONTENT)
  const file = await queue.open(path, 'r+')
  const { submitted } = queue.stats()
  const throwing = (name: string) =>
    Object.defineProperty({}, name, {
      get() {
        throw new Error('mine')
      },
    })
  t.throws(() => void file.writeAt(CONTENT, 0, throwing('datasync')), { message: 'mine' })
  t.throws(() => void queue.nopRoundTrip(throwing('samples')), { message: 'mine' })
  t.throws(() => void queue.close(throwing('timeoutMs')), { message: 'mine' })
  await t.throwsAsync(async () => queue.open(path, 'r', throwing('direct')), { message: 'mine' })
  t.is(queue.stats().submitted, submitted)
  t.is(queue.stats().pending, 0)
  t.is(await file.writeAt(CONTENT, 0), 16)
})
