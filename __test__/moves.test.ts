// Buffers that are moved, shrunk or freed under a read, in every way that the language has, all at once
// in one queue, with others of alloc in use beside them. What becomes of memory from alloc differs by
// Node's version: each outcome is asserted. What becomes of its chunk: collector.test.ts.

import fs from 'node:fs'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import type { File, Queue } from 'node-uring'
import { FUSE, fuse } from './helpers/fuse.js'
import { assertIdle, isPending, ring } from './helpers/ring.js'
import { fifo } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

/** What Node 22 has, and the type libraries of Node 20 do not. */
interface NewArrayBuffer extends ArrayBuffer {
  transfer(length?: number): ArrayBuffer
  transferToFixedLength(): ArrayBuffer
  resize(length: number): void
}
const Resizable = ArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => NewArrayBuffer

const BYTES = 100
const DATA = 'data'
const canTransfer = 'transfer' in ArrayBuffer.prototype
/** Memory that is not V8's: older engines copy it where they cannot move it, newer ones refuse. */
const refusesExternal = Number(process.versions.node.split('.')[0]) >= 22

function posted(buffer: ArrayBuffer): ArrayBuffer {
  const { port1, port2 } = new MessageChannel()
  try {
    port1.postMessage(buffer, [buffer])
    return (receiveMessageOnPort(port2) as { message: ArrayBuffer }).message
  } finally {
    port1.close()
  }
}

/** Each returns where the bytes are afterwards. */
const WAYS: Readonly<Record<string, (buffer: NewArrayBuffer) => ArrayBuffer>> = {
  'structuredClone()': (buffer) => structuredClone(buffer, { transfer: [buffer] }),
  'postMessage()': posted,
  ...(canTransfer && {
    'transfer()': (buffer) => buffer.transfer(),
    'transferToFixedLength()': (buffer) => buffer.transferToFixedLength(),
    'transfer(50)': (buffer) => buffer.transfer(50),
    'transfer(200)': (buffer) => buffer.transfer(200),
  }),
}

/** Where reads wait until they are let go on. */
interface Source {
  readonly file: File
  /** Gives DATA to the read that waits. */
  give(): void
}

type Sources = (t: ExecutionContext, queue: Queue) => Promise<() => Promise<Source>>

/** Each read has a FIFO of its own. */
const fifos: Sources = async (t, queue) => async () => {
  const file = await queue.open(fifo(t), 'r+')
  return { file, give: () => void fs.writeSync(file.fd, DATA) }
}

/** All read one file, whose replies come when the first asks for it. */
const slowFile: Sources = async (t, queue) => {
  const server = await fuse(t, 'async', { slow: { content: Buffer.from(DATA), held: true } })
  const file = await queue.open(server.at('slow'))
  return async () => ({ file, give: server.release })
}

/** A read under way into `view`, and what came of it. */
class Reading {
  readonly outcome: Promise<number | string>
  readonly #source: Source

  constructor(source: Source, view: NodeJS.ArrayBufferView) {
    this.#source = source
    this.outcome = source.file.readAt(view, 0).catch(({ code }) => code as string)
  }

  end(): Promise<number | string> {
    this.#source.give()
    return this.outcome
  }
}

/** Starts a read into each buffer, then does `move` to each, then lets all go on. */
async function attack<Item extends { readonly view: NodeJS.ArrayBufferView }>(
  t: ExecutionContext,
  sources: Sources,
  make: (queue: Queue) => Item[],
  move: (item: Item) => void,
  check: (item: Item, outcome: number | string) => void,
): Promise<void> {
  // Reads of the slow file are the kernel workers': in this thread they would wait in it.
  const inline = { smallBytes: 0, aloneBytes: 0, turnBytes: 0 }
  const queue = ring(t, { inline, workers: { bounded: 16 } })
  const source = await sources(t, queue)
  const items = make(queue)
  const neighbours = Array.from({ length: 40 }, (_, i) => queue.alloc(4096).fill(i + 1))
  const busy = Array.from({ length: 3 }, () => queue.alloc(4096).fill(7))
  const readings: Reading[] = []
  for (const { view } of [...items, ...busy.map((view) => ({ view }))]) {
    readings.push(new Reading(await source(), view))
  }
  t.true(await isPending(Promise.race(readings.map(({ outcome }) => outcome)), 20))
  for (const item of items) move(item)
  // Whatever was given up by that is somebody's now, if it can be.
  const others = Array.from({ length: 100 }, () => queue.alloc(4096).fill(0xee))
  const outcomes: (number | string)[] = []
  for (const reading of readings) outcomes.push(await reading.end())
  for (const [i, item] of items.entries()) check(item, outcomes[i] as number | string)
  for (const [i, buffer] of busy.entries()) {
    t.is(outcomes[items.length + i], DATA.length)
    t.is(buffer.toString('latin1', 0, 6), `${DATA}\x07\x07`)
  }
  t.true(neighbours.every((buffer, i) => buffer.every((byte) => byte === i + 1)))
  t.true(others.every((buffer) => buffer.every((byte) => byte === 0xee)))
  assertIdle(t, queue)
}

const SOURCES: readonly (readonly [string, typeof test, Sources])[] = [
  ['a FIFO', test, fifos],
  ['a slow file', needs(test.serial, FUSE) as typeof test, slowFile],
]

for (const [from, declare, sources] of SOURCES) {
  declare(
    `a read of ${from} into plain memory that is moved in flight is rejected, and writes nowhere`,
    async (t) => {
      const make = () =>
        Object.entries(WAYS).flatMap(([name, way]) =>
          [false, true].map((resizable) => {
            const buffer = resizable
              ? new Resizable(BYTES, { maxByteLength: 300 })
              : (new ArrayBuffer(BYTES) as NewArrayBuffer)
            const view = new Uint8Array(buffer).fill(5)
            return { name, way, buffer, view, after: undefined as ArrayBuffer | undefined }
          }),
        )
      await attack(
        t,
        sources,
        make,
        (item) => {
          item.after = item.way(item.buffer)
        },
        ({ name, view, after }, outcome) => {
          t.is(outcome, 'ERR_URING_BUFFER_DETACHED', name)
          t.is(view.length, 0)
          const kept = new Uint8Array(after as ArrayBuffer)
          t.true(
            kept.every((byte, i) => byte === (i < BYTES ? 5 : 0)),
            name,
          )
        },
      )
    },
  )

  declare(
    `a read of ${from} into plain memory that is shrunk in flight writes nothing past its end`,
    async (t) => {
      const make = () =>
        [0, 1, DATA.length - 1, DATA.length, BYTES, 150].map((left) => {
          const buffer = new Resizable(BYTES, { maxByteLength: 200 })
          return { left, buffer, view: new Uint8Array(buffer).fill(5) }
        })
      await attack(
        t,
        sources,
        make,
        ({ buffer, left }) => buffer.resize(left),
        ({ buffer, left }, outcome) => {
          const fits = left >= DATA.length
          t.is(outcome, fits ? DATA.length : 'ERR_URING_BUFFER_DETACHED', `${left} left`)
          const text = Buffer.from(buffer).toString('latin1', 0, DATA.length)
          t.is(text, fits ? DATA : '\x05'.repeat(left))
          buffer.resize(200)
          const rest = new Uint8Array(buffer).subarray(Math.max(left, DATA.length))
          t.true(rest.every((byte, i) => byte === 0 || (byte === 5 && i < left)))
        },
      )
    },
  )

  declare(
    `a read of ${from} into memory from alloc that somebody tries to move in flight ends as that Node has it`,
    async (t) => {
      interface Item {
        readonly name: string
        readonly way: (buffer: NewArrayBuffer) => unknown
        readonly view: Buffer
        after?: ArrayBuffer | undefined
        code?: unknown
      }
      let mine: Queue | undefined
      const make = (queue: Queue): Item[] => {
        mine = queue
        const others: Record<string, Item['way']> = {
          'resize()': (buffer) => buffer.resize(10),
          'free()': (buffer) => queue.free(buffer),
        }
        return Object.entries({ ...WAYS, ...others }).map(([name, way]) => ({
          name,
          way,
          view: queue.alloc(BYTES).fill(5),
        }))
      }
      const move = (item: Item): void => {
        try {
          item.after = item.way(item.view.buffer as NewArrayBuffer) as ArrayBuffer
        } catch (error) {
          const { name, code } = error as Error & { code: unknown }
          item.code = typeof code === 'string' ? code : name
        }
      }
      const text = (bytes: ArrayBufferLike): string => {
        const [start, rest] = [Buffer.from(bytes, 0, 4), Buffer.from(bytes, 4, BYTES / 2 - 4)]
        return `${start.toString('latin1')} ${rest.every((byte) => byte === 5)}`
      }
      const [filled, asBefore] = [`${DATA} true`, '\x05\x05\x05\x05 true']
      const seen: Record<string, unknown> = {}
      await attack(t, sources, make, move, ({ name, view, after, code }, outcome) => {
        // Of a file there may be more after a short read, and a chunk that nobody has takes no more.
        const lost = /^transfer.\d/.test(name) && from === 'a slow file'
        t.is(outcome, lost ? 'ERR_URING_BUFFER_DETACHED' : DATA.length, name)
        const here = view.length === 0 ? 'gone' : text(view.buffer)
        seen[name] = [code, here, after === undefined ? undefined : text(after)]
      })
      const cloned = refusesExternal
        ? ['DataCloneError', filled, undefined]
        : [undefined, filled, asBefore]
      // A transfer to another length copies at once: what comes later, nobody has.
      const [moved, copied] = [
        [undefined, 'gone', filled],
        [undefined, 'gone', asBefore],
      ]
      t.deepEqual(seen, {
        'structuredClone()': cloned,
        'postMessage()': cloned,
        ...(canTransfer && {
          'transfer()': moved,
          'transferToFixedLength()': moved,
          'transfer(50)': copied,
          'transfer(200)': copied,
        }),
        'resize()': ['TypeError', filled, undefined],
        'free()': ['ERR_URING_IN_FLIGHT', filled, undefined],
      })
      t.true((mine?.stats().memory.alloc.usedBytes ?? 0) > 0)
    },
  )
}

test('memory from alloc that is moved at rest is refused where it was, and a plain buffer where it went', async (t) => {
  const queue = ring(t)
  const file = await queue.open(fifo(t), 'r+')
  for (const [name, way] of Object.entries(WAYS)) {
    const view = queue.alloc(BYTES).fill(5)
    const clones = !name.startsWith('transfer')
    if (clones && refusesExternal) {
      t.throws(() => way(view.buffer as NewArrayBuffer), { name: 'DataCloneError' }, name)
      t.is(view.length, BYTES)
      continue
    }
    const there = Buffer.from(way(view.buffer as NewArrayBuffer))
    const { bouncedBytes } = queue.stats()
    if (clones) {
      t.is(await file.writeAt(view, 0), BYTES, `${name} copied it, and left it in its place`)
      t.is(queue.stats().bouncedBytes, bouncedBytes)
    } else {
      t.throws(() => file.readAt(view, 0), { code: 'ERR_URING_BUFFER_DETACHED' }, name)
      t.throws(() => queue.free(view), { code: 'ERR_URING_FREED' }, name)
      fs.writeSync(file.fd, Buffer.alloc(BYTES, 6))
    }
    t.throws(() => queue.free(there), { code: 'ERR_URING_NOT_ALLOCATED' }, name)
    const count = Math.min(BYTES, there.length)
    t.is(await file.readAt(there.subarray(0, count), 0), count)
    t.is(queue.stats().bouncedBytes, bouncedBytes + count, name)
    t.true(there.subarray(0, count).every((byte) => byte === (clones ? 5 : 6)))
    if (count < BYTES) await file.readAt(Buffer.alloc(BYTES), 0)
  }
  assertIdle(t, queue)
})
