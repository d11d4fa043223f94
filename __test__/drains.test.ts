// Drains: what starts when all before it is complete, and what waits for it; also where a part of one of them
// is still to be staged: the rest of a chain, the next piece of a long transfer.

import { tracingChannel } from 'node:diagnostics_channel'
import fs from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import { type BatchOperation, type File, type OperationMessage, op, type Queue } from 'node-uring'
import { FUSE, fuse } from './helpers/fuse.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

test('drain: what is staged before is complete when it starts, and what comes later starts after it', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const order: string[] = []
  const note = (name: string) => () => void order.push(name)
  const before = stream.readAt(queue.alloc(1), 0).then(note('before'))
  const drained = queue.submit([op.timeout(30), op.nop()], { drain: true }).then(note('drained'))
  const later = queue.nop().then(note('later'))
  const alone = queue.submit([op.nop()], { drain: true }).then(note('alone'))
  const last = queue.nop().then(note('last'))
  t.true(await isPending(Promise.race([before, drained, later, alone, last])))
  fs.writeSync(stream.fd, 'x')
  await Promise.all([before, drained, later, alone, last])
  t.deepEqual(order.indexOf('before'), 0)
  t.true(order.indexOf('later') < order.indexOf('alone'), String(order))
  t.is(order.indexOf('last'), 4)
  assertIdle(t, queue)
})

test('drain is the first one’s that can be begun', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const file = await queue.open(scratch(t, Buffer.of()), 'r+')
  const sync = op.fsync(file)
  await file.close()
  for (const link of ['none', 'hard'] as const) {
    const reading = stream.readAt(queue.alloc(1), 0)
    const drained = queue.submit([sync, op.nop()], { drain: true, link })
    t.true(await isPending(drained, 30), link)
    fs.writeSync(stream.fd, 'x')
    t.is(await reading, 1)
    const [first, second] = await drained
    t.is((first as unknown as { code: string }).code, 'EBADF')
    t.is(second, 0)
  }
  assertIdle(t, queue)
})

test('only the first piece of what drains waits for others', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const [at, content] = [scratch(t, Buffer.from('12345678')), pattern(3 * MIB)]
  const file = await queue.open(at, 'r+')
  const drained = [
    () => op.read(file, Buffer.alloc(100), 0),
    () => op.write(file, content, 0),
    () => op.read(file, Buffer.alloc(3 * MIB), 0),
  ]
  for (const make of drained) {
    const batch = queue.submit([make()], { drain: true })
    const read = pipe.readAt(Buffer.alloc(10), 0)
    const [count] = await batch
    t.true([8, 3 * MIB].includes(count as number), String(count))
    t.true(await isPending(read))
    fs.writeSync(pipe.fd, '1')
    t.is(await read, 1)
  }
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

test('a chain that drains starts after all that is staged, and what is staged later after all of it', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const order: string[] = []
  const before = Array.from({ length: 100 }, (_, i) =>
    file.writeAt(queue.alloc(10).fill(i), i * 10).then(() => order.push('before')),
  )
  const target = queue.alloc(1000)
  const chain = queue
    .submit([op.read(file, target, 0), op.timeout(20), op.truncate(file, 5)], {
      link: 'soft',
      drain: true,
    })
    .then((results) => order.push(String(results)))
  const later = file.readAt(queue.alloc(100), 0).then((count) => order.push(`later ${count}`))
  await Promise.all([...before, chain, later])
  t.deepEqual(order.slice(0, 100), Array(100).fill('before'))
  t.deepEqual(order.slice(100), ['1000,0,0', 'later 5'])
  t.true(target.every((byte, i) => byte === Math.floor(i / 10)))
  assertIdle(t, queue)
})

/** What a chain begins with so that the rest of it is staged when that is over, or by the kernel. */
const BEGINNINGS: Readonly<Record<string, (file: File) => BatchOperation[]>> = {
  'a nop': () => [op.nop()],
  'an fsync': (file) => [op.fsync(file)],
  'an ftruncate': (file) => [op.truncate(file, 4)],
  'two syncs': (file) => [op.fsync(file), op.datasync(file)],
}

for (const [what, made] of Object.entries(BEGINNINGS)) {
  test(`what drains behind a chain that begins with ${what} waits for all of it`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, Buffer.from('....'))
    const file = await queue.open(at, 'r+')
    const chain = [...made(file), op.timeout(20), op.write(file, Buffer.from('AAAA'), 0)]
    for (const link of ['soft', 'hard'] as const) {
      const first = queue.submit(chain, { link })
      const drained = queue.submit([op.write(file, Buffer.from('BBBB'), 0)], { drain: true })
      t.is((await first).at(-1), 4)
      t.deepEqual(await drained, [4])
      t.is(fs.readFileSync(at, 'utf8'), 'BBBB', link)
    }
    assertIdle(t, queue)
  })

  test(`what comes behind a chain that drains and begins with ${what} waits for all of it`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, Buffer.from('....'))
    const file = await queue.open(at, 'r+')
    const chain = [...made(file), op.timeout(20), op.write(file, Buffer.from('AAAA'), 0)]
    for (const link of ['soft', 'hard'] as const) {
      const first = queue.submit(chain, { link, drain: true })
      const later = file.writeAt(Buffer.from('BBBB'), 0)
      t.is((await first).at(-1), 4)
      t.is(await later, 4)
      t.is(fs.readFileSync(at, 'utf8'), 'BBBB', link)
    }
    assertIdle(t, queue)
  })

  test(`the rest of a chain that begins with ${what} does not stand behind a drain that waits for it`, async (t) => {
    const queue = ring(t)
    const stream = await queue.open(fifo(t), 'r+')
    const file = await queue.open(scratch(t, Buffer.from('....')), 'r+')
    const chain = [...made(file), op.write(stream, Buffer.from('x'), 0)]
    const first = queue.submit(chain, { link: 'soft' })
    const byte = Buffer.alloc(1)
    const drained = queue.submit([op.read(stream, byte, 0)], { drain: true })
    t.is((await first).at(-1), 1)
    t.deepEqual(await drained, [1])
    t.is(byte.toString(), 'x')
    assertIdle(t, queue)
  })
}

test('what drains waits for all pieces of a long write, and what comes later for all of its own', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const long = pattern(5 * MIB)
  const cut = () => op.truncate(file, 0)
  for (const options of [undefined, { datasync: true }]) {
    const write = file.writeAt(long, 0, options)
    const drained = queue.submit([cut()], { drain: true })
    t.deepEqual([await write, await drained], [long.length, [0]])
    t.is(fs.statSync(at).size, 0)
  }
  const drained = queue.submit([op.write(file, long, 0)], { drain: true })
  const later = queue.submit([cut()])
  t.deepEqual([await drained, await later], [[long.length], [0]])
  t.is(fs.statSync(at).size, 0)
  assertIdle(t, queue)
})

test('what drains waits for the rest of a read that is short, and of all parts of many', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const [COUNT, BYTES] = [512, 8192]
  const all = Buffer.alloc(COUNT * BYTES, 'a')
  const last = (COUNT - 1) * BYTES
  const positions = Float64Array.from({ length: COUNT }, (_, index) => index * BYTES)
  const write = (file: File, position: number) =>
    queue.submit([op.write(file, Buffer.alloc(BYTES, 'b'), position)], { drain: true })
  for (const isKnown of [false, true]) {
    for (const memory of [Buffer.alloc(all.length), queue.alloc(all.length)]) {
      fs.writeFileSync(at, all.subarray(0, 100))
      const file = await queue.open(at, 'r+')
      if (isKnown) await file.readMany(Float64Array.of(0), 1, memory)
      const short = file.readAt(memory.subarray(0, 200), 0)
      let drained = write(file, 100)
      t.deepEqual([await short, await drained], [100, [BYTES]], `${isKnown}`)
      fs.writeFileSync(at, all)
      const calls = [
        () => file.readMany(positions, BYTES, memory),
        () => file.readMany(positions, BYTES, memory, { onProgress: () => {} }),
        () => file.readvAt([memory.subarray(0, MIB), memory.subarray(MIB)], 0),
      ]
      for (const call of calls) {
        memory.fill('.')
        const read = call()
        drained = write(file, last)
        await read
        t.is(memory.compare(all), 0, String(call))
        await drained
        t.is((await file.bytesAt(last, 1)).toString(), 'b')
        await file.writeAt(all.subarray(0, BYTES), last)
      }
      await file.close()
    }
  }
  assertIdle(t, queue)
})

test('what drains waits for all parts of many nops, and of many reads that go one by one', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(2 * MIB), process.cwd())
  const target = Buffer.alloc(6 * MIB)
  const [many, three] = [new Float64Array(100_000), new Float64Array(3)]
  const calls = [
    () => queue.nops(100_000),
    (file: File) => file.readMany(many, 1, target),
    // Longer than what goes together.
    (file: File) => file.readMany(three, 2 * MIB, target),
    // Not by blocks.
    (_: File, direct: File) => direct.readMany(many.subarray(0, 300), 10, target),
  ]
  for (const isKnown of [false, true]) {
    for (const call of calls) {
      const [file, direct] = [await queue.open(at), await queue.open(at, 'r', { direct: true })]
      for (const each of [file, direct]) {
        if (isKnown) await each.readMany(three, 1, target)
      }
      const ended: string[] = []
      const all = call(file, direct).then(() => ended.push('all'))
      const drained = queue.submit([op.nop()], { drain: true }).then(() => ended.push('drained'))
      await Promise.all([all, drained])
      t.deepEqual(ended, ['all', 'drained'], `${call}, ${isKnown}`)
      await file.close()
      await direct.close()
    }
  }
  assertIdle(t, queue)
})

/** Drains for as long as it takes to write 3 MiB in pieces, behind what else the file has. */
function longDrain(queue: Queue, file: File): Promise<unknown> {
  return queue.submit([op.write(file, Buffer.alloc(3 * MIB), 8 * MIB)], { drain: true })
}

/** Drains that last until they are told to go on. */
async function heldDrains(t: ExecutionContext, queue: Queue) {
  const stream = await queue.open(fifo(t), 'r+')
  const log = await queue.open(scratch(t), 'w')
  const byte = Buffer.alloc(1)
  const both = [op.read(stream, byte, 0), op.write(log, byte, 0)]
  return {
    // The write is staged when the read is over; so the drain is, too.
    isStaged: () => queue.submit(both, { link: 'soft', drain: true }),
    // Nothing is to come of this one: what comes later waits in the engine.
    isAlone: () => queue.submit([op.read(stream, byte, 0)], { drain: true }),
    goOn: () => fs.writeSync(stream.fd, 'x'),
  }
}

test('a call of many parts that waits for a drain comes before what drains later, with all of them', async (t) => {
  t.timeout(60_000)
  const queue = ring(t)
  const at = scratch(t)
  const [COUNT, BYTES] = [512, 4096]
  const positions = Float64Array.from({ length: COUNT }, (_, index) => index * BYTES)
  const ones = Buffer.alloc(COUNT * BYTES, 1)
  const twos = Buffer.alloc(COUNT * BYTES, 2)
  const inPlace = queue.alloc(ones.length).fill(1)
  const halves = [ones.subarray(0, MIB + 5), ones.subarray(MIB + 5)]
  const target = Buffer.alloc(ones.length)
  const calls = [
    (file: File) => file.writeMany(positions, BYTES, ones),
    (file: File) => file.writeMany(positions, BYTES, inPlace, { onProgress: () => {} }),
    (file: File) => file.writevAt(halves, 0),
    (file: File) => file.readMany(positions, BYTES, target),
    (file: File) => file.readvAt([target.subarray(0, MIB + 5), target.subarray(MIB + 5)], 0),
  ]
  for (const isKnown of [false, true]) {
    for (const call of calls) {
      fs.writeFileSync(at, ones)
      const file = await queue.open(at, 'r+')
      if (isKnown) await file.readMany(Float64Array.of(0), 1, target)
      target.fill(0)
      const first = longDrain(queue, file)
      const many = call(file)
      const later = queue.submit([op.write(file, twos, 0)], { drain: true })
      await Promise.all([first, many])
      t.deepEqual(await later, [twos.length])
      t.is(fs.readFileSync(at).subarray(0, twos.length).compare(twos), 0, `${call}, ${isKnown}`)
      if (`${call}`.includes('target')) t.is(target.compare(ones), 0, `${call}, ${isKnown}`)
      await file.close()
    }
  }
  const file = await queue.open(at, 'r+')
  const ended: string[] = []
  const [nops, drained] = [
    queue.nops.bind(queue, 100_000),
    () => queue.submit([op.nop()], { drain: true }),
  ]
  await Promise.all([
    longDrain(queue, file).then(() => ended.push('first')),
    nops().then(() => ended.push('nops')),
    drained().then(() => ended.push('later')),
    nops().then(() => ended.push('last')),
  ])
  t.deepEqual(ended, ['first', 'nops', 'later', 'last'])
  assertIdle(t, queue)
})

test('a call of many parts that waits for a drain ends by its signal, its time and a close, and nothing stands', async (t) => {
  t.timeout(60_000)
  const queue = ring(t)
  const { isStaged, isAlone, goOn } = await heldDrains(t, queue)
  const empty = await queue.open(scratch(t, Buffer.of()))
  const at = scratch(t)
  const positions = Float64Array.from({ length: 512 }, (_, index) => index * 4096)
  const data = Buffer.alloc(512 * 4096, 1)
  type Options = { signal?: AbortSignal; timeoutMs?: number }
  const calls: ((file: File, options?: Options) => Promise<unknown>)[] = [
    (file, options) => file.writeMany(positions, 4096, data, options),
    (file, options) => file.writevAt([data, data], 0, options),
    (file, options) => empty.copyTo(file, options),
    (_, options) => queue.nops(100_000, options),
  ]
  for (const drain of [isStaged, isAlone]) {
    for (const [index, call] of calls.entries()) {
      const where = `${drain}, ${call}`
      const file = await queue.open(at, 'w+')
      const drained = drain()
      const abort = new AbortController()
      const [aborted, late] = [call(file, { signal: abort.signal }), call(file, { timeoutMs: 20 })]
      const last = queue.submit([op.nop()], { drain: true })
      abort.abort()
      const bytesWritten = index < 3 ? 0 : undefined
      const failed = (error: unknown) => {
        const { code, bytesWritten } = error as { code: string; bytesWritten?: number }
        return { code, bytesWritten }
      }
      t.deepEqual(await aborted.catch(failed), { code: 'ABORT_ERR', bytesWritten }, where)
      t.deepEqual(await late.catch(failed), { code: 'ERR_URING_TIMEOUT', bytesWritten }, where)
      const waits =
        index < 3 ? t.throwsAsync(call(file), { name: 'AbortError' }, where) : call(file)
      if (index < 3) await Promise.all([waits, file.close({ timeoutMs: 0 })])
      goOn()
      await Promise.all([drained, last, waits])
      t.is(fs.statSync(at).size, 0, `${where}: none of it was written`)
      await file.close()
      t.is(await Promise.race([queue.nop().then(() => 'went'), after(10_000, 'stands')]), 'went')
    }
  }
  assertIdle(t, queue)
})

test('memory of a call of many parts that waits, for a drain or to know its file, is not freed', async (t) => {
  t.timeout(60_000)
  const queue = ring(t)
  const { isStaged, isAlone, goOn } = await heldDrains(t, queue)
  const positions = Float64Array.from({ length: 512 }, (_, index) => index * 4096)
  for (const drain of [isStaged, isAlone, undefined]) {
    const file = await queue.open(scratch(t), 'w+')
    for (const isKnown of [false, true]) {
      const memory = queue.alloc(512 * 4096).fill(7)
      const drained = drain?.()
      const write = file.writeMany(positions, 4096, memory, { onProgress: () => {} })
      t.throws(() => queue.free(memory), { code: 'ERR_URING_IN_FLIGHT' }, `${drain}, ${isKnown}`)
      if (drain !== undefined) goOn()
      t.true((await write).every((count) => count === 4096))
      await drained
      queue.free(memory)
    }
    await file.close()
  }
  assertIdle(t, queue)
})

test('memory that goes elsewhere while a call waits for a drain is not taken for empty, nor for another’s', async (t) => {
  const queue = ring(t)
  const { isStaged, goOn } = await heldDrains(t, queue)
  const at = scratch(t, Buffer.alloc(8192, 'z'))
  const file = await queue.open(at, 'r+')
  const bytes = () => new Uint8Array(4096).fill(7)
  const move = ({ buffer }: Uint8Array) =>
    structuredClone(buffer, { transfer: [buffer as ArrayBuffer] })
  const positions = Float64Array.of(0, 2048)
  for (const gone of [0, 1]) {
    const two = [bytes(), bytes()] as const
    const others = [bytes(), bytes()] as const
    const one = bytes()
    const drained = isStaged()
    const ends = [
      file.writevAt(two, 0),
      file.readvAt(others, 0),
      file.writeMany(positions, 2048, one),
    ]
    for (const view of [two[gone], others[gone], one]) move(view as Uint8Array)
    goOn()
    for (const end of ends)
      await t.throwsAsync(end, { code: 'ERR_URING_BUFFER_DETACHED' }, `${gone}`)
    await drained
    t.true(fs.readFileSync(at).equals(Buffer.alloc(8192, 'z')), 'nothing was written')
    if (gone === 0) t.deepEqual(others[1], bytes(), 'nothing was read to another place')
  }
  assertIdle(t, queue)
})

test('a call whose signal aborts when its turn has come does not wait to know its file', async (t) => {
  const queue = ring(t)
  const [stream, other] = [await queue.open(fifo(t), 'r+'), await queue.open(fifo(t), 'r+')]
  const log = await queue.open(scratch(t), 'w')
  const [file, next] = [await queue.open(scratch(t), 'w'), await queue.open(scratch(t), 'w')]
  const abort = new AbortController()
  const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
  const isBehind = { error: () => abort.abort() }
  channels.subscribe(isBehind as never)
  t.teardown(() => channels.unsubscribe(isBehind as never))
  const byte = Buffer.alloc(1)
  const chain = [
    op.read(stream, byte, 0),
    op.write(log, byte, 0),
    op.read(other, Buffer.alloc(1), 0),
  ]
  const drained = queue.submit(chain, { link: 'soft', drain: true })
  const many = file.writeMany(Float64Array.of(0, 1), 1, Buffer.from('xy'), { signal: abort.signal })
  // It fails in the turn of the event loop in which the one before it has its turn.
  const moved = new Uint8Array(8)
  const write = next.writeAt(moved, 0)
  structuredClone(moved.buffer, { transfer: [moved.buffer] })
  fs.writeSync(stream.fd, 'x')
  const ended = many.catch(({ code }: { code: string }) => code)
  t.is(await Promise.race([ended, after(10_000, 'stands')]), 'ABORT_ERR')
  await t.throwsAsync(write, { code: 'ERR_URING_BUFFER_DETACHED' })
  fs.writeSync(other.fd, 'x')
  await drained
  // Which waits for the question, that goes on.
  await file.close()
  assertIdle(t, queue)
})

test('what drains keeps its place among those that wait for memory to be copied through', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const at = scratch(t, Buffer.from('aaaa'))
  const file = await queue.open(at, 'r+')
  const longs = [1, 2].map(() => Buffer.alloc(MIB))
  // They have all the memory.
  const hold = () => longs.map((long) => file.readAt(long, 0))
  let held = hold()
  const mine = queue.alloc(4)
  const drained = queue.submit([op.write(file, Buffer.from('D'), 0)], { drain: true })
  const later = queue.submit([op.read(file, mine, 0)])
  await Promise.all([...held, drained, later])
  t.is(mine.toString(), 'Daaa', 'begun behind the drain')
  held = hold()
  const copied = Buffer.alloc(4)
  const before = file.readAt(copied, 0)
  const own = queue.alloc(1).fill('E')
  await Promise.all([...held, before, queue.submit([op.write(file, own, 0)], { drain: true })])
  t.is(copied.toString(), 'Daaa', 'begun before the drain')
  t.is(fs.readFileSync(at, 'utf8'), 'Eaaa')
  assertIdle(t, queue)
})

test('a commit that is called for behind a drain shares none that was called for before it', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.from('....')), 'r+')
  const order: string[] = []
  const note = (name: string) => () => void order.push(name)
  const list = [op.timeout(20), op.write(file, Buffer.from('x'), 0)]
  await Promise.all([
    queue.commit(file).then(note('before')),
    queue.commit(file).then(note('beside it')),
    queue.submit(list, { drain: true, link: 'soft' }).then(note('drained')),
    queue.commit(file).then(note('behind')),
  ])
  t.deepEqual(order, ['before', 'beside it', 'drained', 'behind'])
  assertIdle(t, queue)
})

test('a close of a file that nothing uses waits for no drain', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const at = scratch(t, Buffer.from('....'))
  for (const endless of [op.timeout(600_000), op.read(stream, Buffer.alloc(1), 0)]) {
    const abort = new AbortController()
    const { signal } = abort
    const idle = [await queue.open(at), await queue.open(at)] as const
    const first = queue.submit([endless], { signal })
    const drained = queue.submit([op.nop()], { drain: true, signal })
    await idle[0].close()
    t.deepEqual(await queue.submit([op.close(idle[1])]), [0])
    t.true(await isPending(drained))
    abort.abort()
    await Promise.all([first, drained])
  }
  assertIdle(t, queue)
})

test('what waits for a chain goes when that fails, is cancelled or is timed out', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const file = await queue.open(scratch(t, Buffer.from('....')), 'r+')
  const missing = `${folder(t)}/nothing/here`
  const abort = new AbortController()
  const chains: [BatchOperation[], object][] = [
    [[op.mkdir(missing), op.nop()], {}],
    [[op.fsync(file), op.read(stream, Buffer.alloc(1), 0)], { timeoutMs: 20 }],
    [[op.fsync(file), op.read(stream, Buffer.alloc(1), 0)], { signal: abort.signal }],
    [[op.fsync(file), op.read(stream, Buffer.alloc(1), 0), op.linkTimeout(20)], {}],
  ]
  for (const [chain, options] of chains) {
    for (const drains of [false, true]) {
      const first = queue.submit(chain, { link: 'soft', drain: drains, ...options })
      const behind = queue.submit([op.nop()], { drain: !drains })
      setTimeout(() => abort.abort(), 20)
      t.true((await first).some((result) => result instanceof Error))
      t.deepEqual(await behind, [0])
    }
  }
  assertIdle(t, queue)
})

test('a drain that waits is cancelled by its signal and its time, and what is behind it goes', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const file = await queue.open(scratch(t, Buffer.from('....')), 'r+')
  const chain = queue.submit([op.fsync(file), op.read(stream, Buffer.alloc(1), 0)], {
    link: 'soft',
  })
  // Before the fsync is over: the drain waits for the rest of the chain to be staged.
  const abort = new AbortController()
  const nop = [op.nop()]
  const aborted = queue.submit(nop, { drain: true, signal: abort.signal })
  const late = queue.submit(nop, { drain: true, timeoutMs: 30 })
  abort.abort()
  t.is(((await aborted)[0] as unknown as Error).name, 'AbortError')
  t.is(((await late)[0] as unknown as { code: string }).code, 'ERR_URING_TIMEOUT')
  t.is(await Promise.race([queue.nop().then(() => 'went'), after(10_000, 'stands')]), 'went')
  fs.writeSync(stream.fd, 'x')
  t.deepEqual(await chain, [0, 1])
  assertIdle(t, queue)
})

/** Operations of every kind that are behind a drain, some of which have several steps. */
async function everything(queue: Queue, file: File, into: File): Promise<unknown[]> {
  const positions = Float64Array.from({ length: 40_000 }, (_, index) => index)
  return Promise.all([
    file.readAt(Buffer.alloc(3 * MIB), 0),
    file.readMany(positions, 16, Buffer.alloc(16 * 40_000)),
    file.copyTo(into),
    file.stat(),
    queue.nops(40_000),
    queue.replaceFile(`${into.path}.other`, 'whole'),
    queue.submit(Array.from({ length: 2000 }, () => op.nop())),
    queue.commit(file),
  ])
}

test('whatever is behind a drain that waits for a chain is done when that is, before and after a close', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(4 * MIB))
  const file = await queue.open(at, 'r+')
  const into = await queue.open(`${at}.into`, 'w')
  const chain = [op.fsync(file), op.timeout(10), op.fsync(file), op.nop()]
  const first = queue.submit(chain, { link: 'soft' })
  const drained = queue.submit([op.nop()], { drain: true })
  const all = everything(queue, file, into)
  const closed = queue.close()
  t.deepEqual([await first, await drained], [[0, 0, 0, 0], [0]])
  const [read, counts, copied] = await all
  t.deepEqual([read, copied], [3 * MIB, 4 * MIB])
  t.true((counts as Int32Array).every((count) => count === 16))
  t.is(fs.readFileSync(`${at}.into.other`, 'utf8'), 'whole')
  await closed
})

test('what waits behind a drain is not begun before it, and a close waits for neither', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const [file, other] = [await queue.open(scratch(t), 'w'), await queue.open(scratch(t), 'w')]
  // Nobody knows yet what the stream is: that is asked for in the midst of all this.
  const reading = stream.readAt(Buffer.alloc(3 * MIB), 0)
  const drained = queue.submit([op.nop()], { drain: true })
  const later = [queue.nop(), file.writeAt(Buffer.from('x'), 0)]
  await other.close()
  t.true(await isPending(Promise.race([drained, ...later])))
  fs.writeSync(stream.fd, 'x')
  t.is(await reading, 1)
  // Nothing else comes that would set them going.
  t.deepEqual([await drained, ...(await Promise.all(later))], [[0], undefined, 1])
  assertIdle(t, queue)
})

test('what drains, and has to ask what its file is, does not wait for itself', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.from('12345678')))
  const drained = queue.submit([op.read(file, Buffer.alloc(3 * MIB), 0)], { drain: true })
  t.deepEqual(await drained, [8])
  assertIdle(t, queue)
})

test('what comes behind a chain that drained, when that is over, does not wait', async (t) => {
  const queue = ring(t)
  const [stream, file] = [await queue.open(fifo(t), 'r+'), await queue.open(scratch(t), 'w')]
  const chain = [op.fsync(file), op.nop()]
  t.deepEqual(await queue.submit(chain, { link: 'soft', drain: true }), [0, 0])
  const reading = stream.readAt(Buffer.alloc(3 * MIB), 0)
  t.is(await file.writeAt(Buffer.from('x'), 0), 1)
  t.is(await stream.writeAt(Buffer.from('x'), 0), 1)
  t.is(await reading, 1)
  assertIdle(t, queue)
})

needs(test, FUSE)(
  'a long transfer that is interrupted in its first piece begins again before a drain behind it',
  async (t) => {
    const content = pattern(3 * MIB)
    for (const drain of [false, true]) {
      // EINTR
      const fault = { failFrom: 0, errno: 4, failTimes: 1 }
      const mounted = await fuse(t, 'sync', { written: fault, read: { content, ...fault } })
      const queue = ring(t)
      const written = await queue.open(mounted.at('written'), 'r+')
      const read = await queue.open(mounted.at('read'))
      const target = Buffer.alloc(content.length)
      for (const transfer of [op.write(written, content, 0), op.read(read, target, 0)]) {
        const batch = queue.submit([transfer], { drain })
        const drained = queue.submit([op.nop()], { drain: true })
        t.deepEqual([await batch, await drained], [[content.length], [0]])
      }
      t.is(fs.readFileSync(mounted.behind('written')).compare(content), 0)
      t.is(target.compare(content), 0)
      assertIdle(t, queue)
    }
  },
)

needs(test, FUSE)(
  'a drain waits for a commit that was called for while another runs',
  async (t) => {
    const log = scratch(t, Buffer.alloc(0))
    const mounted = await fuse(t, 'async', { file: { syncHeld: true, log } })
    const queue = ring(t)
    const file = await queue.open(mounted.at('file'), 'r+')
    const first = queue.commit(file)
    await mounted.held(1)
    const second = queue.commit(file)
    let syncs = 0
    const drained = queue.submit([op.nop()], { drain: true }).then(() => {
      syncs = fs.readFileSync(log, 'utf8').split('e').length - 1
    })
    t.true(await isPending(Promise.race([second, drained])))
    mounted.release()
    await Promise.all([first, second, drained])
    t.is(syncs, 2)
    assertIdle(t, queue)
  },
)
