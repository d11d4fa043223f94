// The fallback's own order: when operations begin, in chains, behind drains and under time limits,
// and how their completions are delivered. On the backend itself, without the layers above, with the
// rules of crates/core/src/operation.rs.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import { setImmediate, setTimeout } from 'node:timers/promises'
import {
  FLAG_DRAIN,
  FLAG_HARDLINK,
  FLAG_LINK,
  FLAG_QUIET,
  OP_CLOSE,
  OP_FSYNC,
  OP_LINK_TIMEOUT,
  OP_NOP,
  OP_OPENAT,
  OP_READ,
  OP_RENAMEAT,
  OP_TIMEOUT,
  OP_UNLINKAT,
  OP_WRITE,
  POOL_BOUNCE,
} from '../src/backend.ts'
import { NodeBackend } from '../src/fallback/backend.ts'
import { engineOptions } from '../src/options.ts'
import { chosen } from '../src/unavailable.ts'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const { ECANCELED, ETIME, EALREADY, ENOENT, EEXIST } = os.constants.errno
const MS = 1e6

/** A backend, and what it delivers, in the order in which it does. */
class Probe {
  readonly backend: NodeBackend
  /** Pairs of slot and result, by call of `deliver`. */
  readonly calls: [slot: number, result: number][][] = []
  /** Whether a call of the backend is on the stack. */
  inside = false
  deliveredInside = false

  constructor(t: ExecutionContext) {
    t.timeout(60_000)
    const pairs = new Int32Array(8192)
    this.backend = new NodeBackend(
      engineOptions(),
      (count, slot, result) => {
        this.deliveredInside ||= this.inside
        if (count === 1) this.calls.push([[slot, result]])
        else {
          this.calls.push(
            Array.from(
              { length: count },
              (_, i) => [pairs[2 * i]!, pairs[2 * i + 1]!] as const,
            ).map(([s, r]) => [s, r]),
          )
        }
      },
      pairs,
      chosen(),
    )
    t.teardown(() => this.backend.close())
  }

  /** Stages an operation without a file; `extra` has its other arguments. */
  stage(
    opcode: number,
    slot: number,
    extra: {
      file?: number
      chunk?: number
      offset?: number
      length?: number
      position?: number
      bytes?: Uint8Array
    } = {},
  ): number | undefined {
    const { file = 0, chunk = 0, offset = 0, length = 0, position = 0, bytes } = extra
    this.inside = true
    const refusal = this.backend.stage(opcode, slot, file, chunk, offset, length, position, bytes)
    this.inside = false
    return refusal
  }

  get order(): number[] {
    return this.calls.flat().map(([slot]) => slot)
  }

  get results(): Record<number, number> {
    return Object.fromEntries(this.calls.flat())
  }

  /** Waits until so many completions are there. */
  async until(count: number): Promise<void> {
    while (this.order.length < count) await setTimeout(1)
  }

  /** A file of this backend. */
  open(name: string, flags: number): number {
    return this.backend.adopt(fs.openSync(name, flags), false)
  }

  /** Memory with these bytes in it. */
  memory(content: Uint8Array): number {
    return this.backend.take(POOL_BOUNCE, content.length, content, 0)
  }
}

test('completions of a turn are delivered together, and never from within a call', async (t) => {
  const it = new Probe(t)
  for (let slot = 0; slot < 5000; slot++) t.is(it.stage(OP_NOP, slot), undefined)
  it.inside = true
  it.backend.flush()
  it.inside = false
  t.deepEqual(it.calls, [])
  await it.until(5000)
  t.false(it.deliveredInside)
  // As many as the array of pairs holds at once.
  t.deepEqual(
    it.calls.map(({ length }) => length),
    [4096, 904],
  )
  t.deepEqual(it.order, [...Array(5000).keys()])
})

test('a chain runs one by one, a failure ends it, and a hard link does not mind one', async (t) => {
  const it = new Probe(t)
  it.stage(OP_TIMEOUT | FLAG_LINK, 0, { position: 20 * MS, offset: 2 })
  it.stage(OP_NOP | FLAG_LINK, 1)
  it.stage(OP_NOP, 2)
  it.stage(OP_NOP, 3)
  // A timeout that does not succeed by its time breaks its link.
  it.stage(OP_TIMEOUT | FLAG_LINK, 4, { position: MS })
  it.stage(OP_NOP | FLAG_HARDLINK, 5)
  it.stage(OP_NOP, 6)
  it.stage(OP_TIMEOUT | FLAG_HARDLINK, 7, { position: MS })
  it.stage(OP_NOP, 8)
  await it.until(9)
  t.deepEqual(it.results, {
    0: -ETIME,
    1: 0,
    2: 0,
    3: 0,
    4: -ETIME,
    5: -ECANCELED,
    6: -ECANCELED,
    7: -ETIME,
    8: 0,
  })
  t.true(it.order.indexOf(0) < it.order.indexOf(1) && it.order.indexOf(1) < it.order.indexOf(2))
  t.is(it.order[0], 3, 'what is in no chain does not wait for one')
})

test('an operation that fails breaks its link, and a short read; a full one does not', async (t) => {
  const it = new Probe(t)
  it.stage(OP_UNLINKAT | FLAG_LINK, 4, { bytes: Buffer.from('/no/such/file') })
  it.stage(OP_NOP, 5)
  const file = it.open(scratch(t, Buffer.from('12345')), fs.constants.O_RDWR)
  const chunk = it.memory(new Uint8Array(10))
  it.stage(OP_READ | FLAG_LINK, 0, { file, chunk, length: 10 })
  it.stage(OP_FSYNC, 1, { file })
  it.stage(OP_READ | FLAG_LINK, 2, { file, chunk, length: 5 })
  it.stage(OP_FSYNC, 3, { file })
  await it.until(6)
  t.deepEqual(it.results, { 0: 5, 1: -ECANCELED, 2: 5, 3: 0, 4: -ENOENT, 5: -ECANCELED })
})

test('a chain begins when it is whole, and one that cannot be is cancelled whole', async (t) => {
  const it = new Probe(t)
  it.stage(OP_NOP | FLAG_LINK, 0)
  it.stage(OP_NOP | FLAG_LINK, 1)
  it.backend.flush()
  for (let turn = 0; turn < 5; turn++) await setImmediate()
  t.deepEqual(it.calls, [], 'it is not whole yet')
  t.is(it.stage(OP_READ, 2, { file: 99, chunk: 1, length: 1 }), 6)
  await it.until(2)
  t.deepEqual(it.results, { 0: -ECANCELED, 1: -ECANCELED })
  it.stage(OP_NOP, 3)
  await it.until(3)
  t.is(it.results[3], 0)
})

test('a chain of 30,000 nops takes no stack', async (t) => {
  const it = new Probe(t)
  for (let slot = 0; slot < 30_000; slot++) it.stage(OP_NOP | FLAG_LINK, slot)
  it.stage(OP_NOP, 30_000)
  await it.until(30_001)
  t.true(Object.values(it.results).every((result) => result === 0))
})

test('what has not begun is cancelled, its chain with it; timers are, too', async (t) => {
  const it = new Probe(t)
  it.stage(OP_NOP, 0)
  it.stage(OP_NOP | FLAG_LINK, 1)
  it.stage(OP_NOP, 2)
  it.stage(OP_TIMEOUT, 3, { position: 3600 * 1000 * MS })
  it.backend.cancel(0)
  it.backend.cancel(2)
  await setTimeout(20)
  it.backend.cancel(3)
  await it.until(4)
  t.deepEqual(it.results, { 0: -ECANCELED, 1: -ECANCELED, 2: -ECANCELED, 3: -ECANCELED })
  t.is(it.backend.cancel(3), 4, 'there is nothing any more')
})

test('a drain waits for all before it, and all behind it wait for the drain', async (t) => {
  const it = new Probe(t)
  const file = it.open(fifo(t), fs.constants.O_RDWR)
  const chunk = it.memory(new Uint8Array(1))
  it.stage(OP_READ, 0, { file, chunk, length: 1 })
  it.stage(OP_TIMEOUT | FLAG_DRAIN | FLAG_LINK, 1, { position: 20 * MS, offset: 2 })
  it.stage(OP_NOP, 2)
  it.stage(OP_NOP, 3)
  it.stage(OP_TIMEOUT | FLAG_QUIET, 4, { position: MS })
  await it.until(1)
  t.deepEqual(it.order, [4], 'a quiet one waits for nothing')
  it.stage(OP_WRITE | FLAG_DRAIN, 5, { file, chunk, length: 1 })
  it.backend.cancel(5)
  await it.until(2)
  t.is(it.results[5], -ECANCELED, 'what is cancelled ends, though it stands behind a drain')
  t.is(it.backend.cancel(0), undefined)
  await it.until(6)
  t.deepEqual(it.order.slice(2), [0, 1, 2, 3])
})

test('a hundred drains run one by one', async (t) => {
  const it = new Probe(t)
  for (let slot = 0; slot < 100; slot++) {
    it.stage(OP_TIMEOUT | FLAG_DRAIN, slot, { position: slot % 2 === 0 ? 0 : MS / 10 })
  }
  await it.until(100)
  t.deepEqual(it.order, [...Array(100).keys()])
})

test('a time limit cancels what waits, leaves alone what is done, and says when it can do nothing', async (t) => {
  const it = new Probe(t)
  const pipe = fifo(t)
  const file = it.open(pipe, fs.constants.O_RDWR)
  const chunk = it.memory(new Uint8Array(1))
  it.stage(OP_READ | FLAG_LINK, 0, { file, chunk, length: 1 })
  it.stage(OP_LINK_TIMEOUT, 1, { position: 10 * MS })
  it.stage(OP_NOP | FLAG_LINK, 2)
  it.stage(OP_LINK_TIMEOUT | FLAG_LINK, 3, { position: 3600 * 1000 * MS })
  it.stage(OP_NOP, 4)
  // An open of a FIFO waits in a thread of the pool, until there is another side.
  const other = fifo(t)
  const bytes = Buffer.from(other)
  it.stage(OP_OPENAT | FLAG_LINK, 5, { offset: fs.constants.O_RDONLY, bytes })
  it.stage(OP_LINK_TIMEOUT, 6, { position: 10 * MS })
  await it.until(5)
  t.deepEqual(it.results, { 0: -ECANCELED, 1: -ETIME, 2: 0, 3: -ECANCELED, 4: 0 })
  await setTimeout(20)
  const side = fs.openSync(other, 'r+')
  await it.until(7)
  fs.closeSync(side)
  t.is(it.results[6], -EALREADY)
  t.true(it.results[5]! > 0, 'its true result')
  t.truthy(it.backend.takeOpened(5))
})

test('a timeout ends after so many others, or at a time of the clock', async (t) => {
  const it = new Probe(t)
  it.stage(OP_TIMEOUT, 0, { position: 3600 * 1000 * MS, length: 3 })
  await setTimeout(10)
  for (const slot of [1, 2, 3]) it.stage(OP_NOP, slot)
  await it.until(4)
  t.is(it.results[0], 0)
  const now = Number(process.hrtime.bigint())
  // In this order also where both times have come before either is begun.
  it.stage(OP_TIMEOUT, 6, { position: 1, offset: 1 })
  it.stage(OP_TIMEOUT, 5, { position: now + 1000 * MS, offset: 1 })
  await it.until(6)
  t.true(Number(process.hrtime.bigint()) >= now + 1000 * MS)
  t.deepEqual(it.order.slice(4), [6, 5])
})

test('a name is changed and taken away', async (t) => {
  const it = new Probe(t)
  const place = folder(t)
  const [from, to] = [Buffer.from(`${place}/from`), Buffer.from(`${place}/to`)]
  fs.writeFileSync(from, 'x')
  const bytes = Buffer.concat([from, to])
  it.stage(OP_RENAMEAT | FLAG_LINK, 0, { length: from.length, bytes })
  it.stage(OP_UNLINKAT | FLAG_LINK, 1, { bytes: to })
  it.stage(OP_UNLINKAT, 2, { bytes: to })
  await it.until(3)
  t.deepEqual(it.results, { 0: 0, 1: 0, 2: -ENOENT })
  it.stage(OP_UNLINKAT, 0, { offset: 0x200, bytes: Buffer.from(place) })
  await it.until(4)
  t.false(fs.existsSync(place))
  fs.mkdirSync(place)
})

test('many of a kind have a result each, and complete as one', async (t) => {
  const it = new Probe(t)
  const content = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251))
  const file = it.open(scratch(t, content), fs.constants.O_RDONLY)
  const chunk = it.memory(new Uint8Array(1100 * 2))
  const positions = Float64Array.from({ length: 1100 }, (_, i) => (i * 7) % 1100)
  t.is(it.backend.stageMany(OP_READ, 0, file, chunk, 0, 2, positions, 1), undefined)
  t.is(it.stage(OP_NOP, 0), 3, 'the slot is taken')
  await it.until(1)
  t.is(it.results[0], 1100)
  const counts = new Int32Array(1101)
  t.is(it.backend.takeCounts(0, counts, 1), undefined)
  const bytes = Buffer.alloc(2200)
  it.backend.copyOut(chunk, 0, bytes, 0, 2200)
  for (const [i, position] of positions.entries()) {
    t.is(counts[i + 1], Math.max(0, Math.min(2, 1000 - position)))
    if (position < 999)
      t.deepEqual(bytes.subarray(2 * i, 2 * i + 2), content.subarray(position, position + 2))
  }
  t.is(it.backend.stageMany(OP_NOP, 1, 0, 0, 0, 0, 100_000, 0), undefined)
  await it.until(2)
  t.is(it.results[1], 100_000)
  t.is(it.backend.takeCounts(1, new Int32Array(99_999), 0), 64, 'no room')
})

test('many that are cancelled keep what they came to', async (t) => {
  const it = new Probe(t)
  const pipe = fifo(t)
  const file = it.open(pipe, fs.constants.O_RDWR)
  const chunk = it.memory(new Uint8Array(300))
  it.backend.stageMany(OP_READ, 0, file, chunk, 0, 1, new Float64Array(300), 0)
  await setTimeout(10)
  fs.writeFileSync(pipe, 'ab')
  // A copy lets go of the chunk, which the reads keep all the same.
  for (const seen = Buffer.alloc(2); seen.toString() !== 'ab'; await setTimeout(1)) {
    it.backend.copyOut(chunk, 0, seen, 0, 2)
  }
  it.backend.cancel(0)
  await it.until(1)
  t.is(it.results[0], -ECANCELED)
  const counts = new Int32Array(300)
  it.backend.takeCounts(0, counts, 0)
  t.is(counts.filter((count) => count === 1).length, 2)
  t.is(counts.filter((count) => count === -ECANCELED).length, 298)
  it.stage(OP_CLOSE, 1, { file })
  await it.until(2)
  t.is(it.results[1], 0, 'nothing holds the file')
})

test('a descriptor is adopted once, and not a closed one', (t) => {
  const it = new Probe(t)
  const fd = fs.openSync(scratch(t, Buffer.alloc(1)), 'a+')
  t.true(it.backend.adopt(fd, false) > 0)
  t.is(it.backend.adopt(fd, false), -EEXIST)
  t.is(it.backend.descriptorFlags(fd) & fs.constants.O_APPEND, fs.constants.O_APPEND)
  t.is(it.backend.descriptorFlags(10_000), -os.constants.errno.EBADF)
})

test('what nobody took is closed when its slot is used again, and at the end', async (t) => {
  const it = new Probe(t)
  const name = scratch(t, Buffer.alloc(1))
  const mine = (): number =>
    Number(
      execFileSync('sh', [
        '-c',
        `ls -l /proc/${process.pid}/fd 2>/dev/null | grep -c ${name}`,
      ]).toString(),
    )
  const opening = { offset: fs.constants.O_RDONLY, bytes: Buffer.from(name) }
  it.stage(OP_OPENAT, 0, opening)
  it.stage(OP_OPENAT, 1, opening)
  await it.until(2)
  t.is(mine(), 2)
  it.stage(OP_NOP, 0)
  await it.until(3)
  t.is(mine(), 1)
  t.true(it.backend.close())
  t.throws(() => mine(), undefined, 'grep -c finds none')
})
