// Who knows whether a member of a soft chain has succeeded, and whose memory is whose: where the kernel does not
// know, what follows waits until we do.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { op } from 'node-uring'
import { FUSE, fuse } from './helpers/fuse.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const MIB = 1 << 20

test('a direct read that brings all that was asked for ends no chain, also within blocks and at the end', async (t) => {
  const queue = ring(t)
  const content = pattern(9000)
  const file = await queue.open(scratch(t, content), 'r', { direct: true })
  for (const [length, position] of [
    [100, 8192],
    [4096, 100],
    [9000, 0],
    [808, 8192],
    [1, 8999],
  ] as const) {
    for (const memory of [Buffer.alloc(length), queue.alloc(length)]) {
      const chain = [op.read(file, memory, position), op.nop()]
      t.deepEqual(await queue.submit(chain, { link: 'soft' }), [length, 0], `${length} ${position}`)
      t.is(memory.compare(content, position, position + length), 0)
    }
  }
  // One that the end of the file cut short ends it.
  for (const [length, position] of [
    [809, 8192],
    [8950, 100],
  ] as const) {
    const chain = [op.read(file, Buffer.alloc(length), position), op.nop()]
    const [count, next] = await queue.submit(chain, { link: 'soft' })
    t.is(count, 9000 - position)
    t.is((next as unknown as { code: string }).code, 'ECANCELED')
  }
  assertIdle(t, queue)
})

test('a write that is copied writes what a read before it brought in place', async (t) => {
  const queue = ring(t)
  const source = await queue.open(scratch(t, Buffer.alloc(4096, 'R')))
  const at = scratch(t, Buffer.alloc(4096, '.'))
  const direct = await queue.open(at, 'r+', { direct: true })
  // From within a block of memory a direct file has it copied.
  const view = queue.alloc(8192).subarray(1, 4097)
  const reads = [op.read(source, view, 0)]
  if (queue.backend === 'io_uring') reads.push(op.readv(source, [view], 0))
  for (const link of ['soft', 'hard'] as const) {
    for (const read of reads) {
      view.fill('o')
      t.deepEqual(await queue.submit([read, op.write(direct, view, 0)], { link }), [4096, 4096])
      t.is((await direct.bytesAt(0, 4)).toString(), 'RRRR', link)
      await direct.writeAt(Buffer.alloc(4096, '.'), 0)
    }
  }
  // One that is short ends the chain.
  const short = await queue.open(scratch(t, Buffer.alloc(2048, 'S')))
  const shorts = [op.read(short, view, 0)]
  if (queue.backend === 'io_uring') shorts.push(op.readv(short, [view], 0))
  for (const read of shorts) {
    const [count, next] = await queue.submit([read, op.write(direct, view, 0)], { link: 'soft' })
    t.is(count, 2048)
    t.is((next as unknown as { code: string }).code, 'ECANCELED')
    t.is((await direct.bytesAt(0, 4)).toString(), '....')
  }
  assertIdle(t, queue)
})

test('two objects of one shared memory are one memory', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('RRRR....'))
  const file = await queue.open(at, 'r+')
  const one = new SharedArrayBuffer(4)
  const [mine, theirs] = [new Uint8Array(one).fill(111), new Uint8Array(structuredClone(one))]
  const chain = [op.read(file, mine, 0), op.write(file, theirs, 4)]
  t.deepEqual(await queue.submit(chain, { link: 'soft' }), [4, 4])
  t.is(fs.readFileSync(at, 'latin1'), 'RRRRRRRR')
  assertIdle(t, queue)
})

test('a chain of direct writes that go in place needs no memory for copies', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const file = await queue.open(scratch(t), 'w+', { direct: true })
  const mine = queue.alloc(8 * MIB)
  const { bouncedBytes } = queue.stats()
  const chain = [op.write(file, mine, 0), op.datasync(file), op.read(file, mine, 0)]
  t.deepEqual(await queue.submit(chain, { link: 'soft' }), [mine.length, 0, mine.length])
  t.is(queue.stats().bouncedBytes, bouncedBytes)
  // From within a block it is copied, and there is no memory for that.
  const off = op.write(file, queue.alloc(8 * MIB).subarray(1, 4 * MIB + 1), 0)
  t.is(thrown(() => queue.submit([off], { link: 'soft' })).code, 'ERR_URING_UNSUPPORTED')
  assertIdle(t, queue)
})

needs(test, FUSE)(
  'a write with dsync that a failed sync beside it makes a failure ends a soft chain',
  async (t) => {
    t.timeout(60_000)
    const queue = ring(t)
    const at = folder(t)
    for (const name of ['dsync', 'O_DSYNC', 'hard']) {
      // Of the two syncs, ours and the write's, the first fails.
      const fault = { content: Buffer.from('xxxx'), syncMs: 1000, syncErrnos: [5] }
      const broken = await fuse(t, 'async', { [name]: fault })
      const all = name === 'O_DSYNC' ? fs.constants.O_RDWR | fs.constants.O_DSYNC : 'r+'
      const file = await queue.open(broken.at(name), all)
      const made = path.join(at, name)
      const options = name === 'O_DSYNC' ? {} : { dsync: true }
      const chain = [op.write(file, Buffer.from('new!'), 0, options), op.mkdir(made)]
      const synced = rejection(file.sync())
      await after(50)
      const link = name === 'hard' ? 'hard' : 'soft'
      const results = (await queue.submit(chain, { link })) as { code?: string }[]
      t.is((await synced).code, 'EIO')
      const second = name === 'hard' ? undefined : 'ECANCELED'
      t.deepEqual([results[0]?.code, results[1]?.code], ['EIO', second])
      t.is(fs.existsSync(made), name === 'hard')
    }
    assertIdle(t, queue)
  },
)

test('memory that a member of a chain or batch will use cannot be freed before', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const make = () => queue.alloc(4096).fill('m')
  const [one, other, third] = [make(), make(), make()]
  const batches: Promise<unknown[]>[] = [
    queue.submit([op.datasync(file), op.write(file, one, 0)], { link: 'soft' }),
    queue.submit([...Array.from({ length: 1024 }, () => op.nop()), op.write(file, other, 4096)]),
  ]
  if (queue.backend === 'io_uring') {
    const chain = [op.datasync(file), op.writev(file, [third], 8192)]
    batches.push(queue.submit(chain, { link: 'soft' }))
  } else batches.push(queue.submit([op.write(file, third, 8192)]))
  for (const memory of [one, other, third]) {
    t.is(thrown(() => queue.free(memory)).code, 'ERR_URING_IN_FLIGHT')
  }
  for (const batch of batches) t.is((await batch).at(-1), 4096)
  for (const memory of [one, other, third]) queue.free(memory)
  t.is(fs.readFileSync(at).compare(Buffer.alloc(3 * 4096, 'm')), 0)
  assertIdle(t, queue)
})

test('the operations of a chain on a FIFO are each done once', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  await stream.writeAt(Buffer.from('-'), 0)
  const letters = [...'abcde'].map((letter) => op.write(stream, Buffer.from(letter), 0))
  for (const link of ['soft', 'hard'] as const) {
    t.deepEqual(await queue.submit(letters, { link }), [1, 1, 1, 1, 1])
  }
  await after(20)
  t.is((await stream.bytesAt(0, 100)).toString(), '-abcdeabcde')
  await stream.writeAt(Buffer.from('123456789'), 0)
  const parts = [Buffer.alloc(3), Buffer.alloc(3)]
  const reads = parts.map((part) => op.read(stream, part, 0))
  t.deepEqual(await queue.submit(reads, { link: 'soft' }), [3, 3])
  t.deepEqual(parts.map(String), ['123', '456'])
  await after(20)
  t.is((await stream.bytesAt(0, 100)).toString(), '789')
  assertIdle(t, queue)
})

test('a splice that is short ends a soft chain, also to a file that syncs each write', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  for (const flag of [0, fs.constants.O_DSYNC]) {
    const flags = fs.constants.O_RDWR | fs.constants.O_CREAT | flag
    const file = await queue.open(scratch(t), flags)
    fs.writeSync(stream.fd, '12345')
    const chain = [op.splice(stream, file, 10, { to: 0 }), op.nop()]
    const [count, next] = await queue.submit(chain, { link: 'soft' })
    t.is(count, 5)
    t.is((next as unknown as { code: string }).code, 'ECANCELED', `${flag}`)
    fs.writeSync(stream.fd, '12345')
    const whole = [op.splice(stream, file, 5, { to: 0 }), op.nop()]
    t.deepEqual(await queue.submit(whole, { link: 'soft' }), [5, 0])
  }
  assertIdle(t, queue)
})

test('a sync waits for no writeMany that the kernel has not got', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const flags = fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_DSYNC
  const file = await queue.open(scratch(t), flags)
  const [positions, bytes] = [Float64Array.of(0, 4), Buffer.from('abcdefgh')]
  await file.writeMany(positions, 4, bytes)
  const synced = file.sync()
  const drained = queue.submit([op.read(stream, Buffer.alloc(1), 0)], { drain: true })
  const written = file.writeMany(positions, 4, bytes)
  await synced
  t.true(await isPending(Promise.race([drained, written])))
  fs.writeSync(stream.fd, 'x')
  t.deepEqual([await drained, [...(await written)]], [[1], [4, 4]])
  assertIdle(t, queue)
})

test('a chain of a long send and what follows does either both or says what was sent', async (t) => {
  const at = folder(t)
  const marker = path.join(at, 'marker')
  // The other side takes nothing for a while.
  const program = `
    import { spawn } from 'node:child_process'
    const stdio = ['ignore', 'inherit', 'inherit', 'pipe']
    const child = spawn(process.execPath, ['--input-type=module', '--eval', process.argv[1], process.argv[2]], { stdio })
    child.stdio[3].pause()
    setTimeout(() => child.stdio[3].resume(), 300)
    child.on('exit', () => process.exit())`
  const sender = `
    import { op, Queue } from 'node-uring'
    const queue = new Queue()
    const socket = await queue.adopt(3)
    const chain = [op.send(socket, Buffer.alloc(8 << 20)), op.mkdir(process.argv[1])]
    const results = await queue.submit(chain, { link: 'soft' })
    console.log(JSON.stringify(results.map((result) => result.code ?? result)))
    process.exit()`
  const args = ['--input-type=module', '--eval', program, sender, marker]
  const printed = execFileSync(process.execPath, args, { encoding: 'utf8', timeout: 30_000 })
  const results = JSON.parse(printed)
  const whole = results[0] === 8 * MIB
  t.deepEqual(results, whole ? [8 * MIB, 0] : ['ERR_URING_SHORT_WRITE', 'ECANCELED'])
  t.is(fs.existsSync(marker), whole)
})

test('memory that the rest of a chain will use cannot be freed', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const mine = queue.alloc(4096).fill('m')
  // The write is staged when the sync is over: until then the engine knows nothing of it.
  const chain = queue.submit([op.datasync(file), op.write(file, mine, 0)], { link: 'soft' })
  t.is(thrown(() => queue.free(mine)).code, 'ERR_URING_IN_FLIGHT')
  t.deepEqual(await chain, [0, 4096])
  queue.free(mine)
  t.is(fs.readFileSync(at).compare(Buffer.alloc(4096, 'm')), 0)
  assertIdle(t, queue)
})

test('what bounds a member that never begins was not needed', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.alloc(0)), 'r+')
  const bounded = [op.write(file, Buffer.from('a'), 0), op.linkTimeout(60_000)]
  const ended = queue.submit([op.timeout(200), ...bounded, op.nop()], { link: 'hard' })
  await after(20)
  await file.close({ timeoutMs: 0 })
  const bound = (await ended)[2]
  t.is((bound as { code?: unknown }).code, 'ECANCELED')
  assertIdle(t, queue)
})
