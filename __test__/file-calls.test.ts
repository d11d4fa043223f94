// Operations on open files beside reads, writes and syncs, and vectored ones: what each does to the
// file, that each can be cancelled, and the flags of preadv2(2).

import { tracingChannel } from 'node:diagnostics_channel'
import fs from 'node:fs'
import path from 'node:path'
import {
  type BatchOperation,
  type File,
  type OperationMessage,
  op,
  POLL,
  type Queue,
} from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, submittedBy, thrown } from './helpers/ring.js'
import { fifo, folder, scratch, takenOut } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20

// ---- fallocate, fadvise, sync_file_range, poll ----------------------------------------------------

test('allocate makes room, keeps the size where asked to, punches holes and zeroes', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.alloc(8192, 'x'))
  const file = await queue.open(at, 'r+')
  t.is(await file.allocate(0, MIB, { keepSize: true }), 0)
  t.is(fs.statSync(at).size, 8192)
  t.true(fs.statSync(at).blocks * 512 >= MIB)
  await file.allocate(8192, 100)
  t.is(fs.statSync(at).size, 8292)
  await file.allocate(0, 4096, { punchHole: true })
  t.deepEqual(fs.readFileSync(at).subarray(4095, 4097), Buffer.from('\0x'))
  t.is(fs.statSync(at).size, 8292)
  t.is((await rejection(file.allocate(0, 1, { collapseRange: true }))).syscall, 'fallocate')
  t.throws(() => file.allocate(0, 0), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => file.allocate(-1, 1), { code: 'ERR_OUT_OF_RANGE' })
  assertIdle(t, queue)
})

test('advise and syncRange are done on files, and say ESPIPE of a FIFO', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.alloc(8192)), 'r+')
  const pipe = await queue.open(fifo(t), 'r+')
  for (const advice of [
    'normal',
    'random',
    'sequential',
    'willneed',
    'dontneed',
    'noreuse',
  ] as const)
    t.is(await file.advise(advice, 0, 4096), 0)
  t.is(await file.syncRange(), 0)
  t.is(await file.syncRange(4096, 4096, { waitBefore: false, waitAfter: false }), 0)
  t.is((await rejection(pipe.advise('random'))).message, 'ESPIPE: invalid seek, fadvise')
  t.is((await rejection(pipe.syncRange())).message, 'ESPIPE: invalid seek, sync_file_range')
  t.throws(() => file.advise('never' as 'normal'), { code: 'ERR_INVALID_ARG_VALUE' })
  t.throws(() => file.syncRange(0, 2 ** 32), { code: 'ERR_OUT_OF_RANGE' })
})

test('poll resolves when the file has an event, with those that it has', async (t) => {
  const queue = ring(t)
  const file = await queue.open(fifo(t), 'r+')
  t.is(await file.poll(POLL.OUT), POLL.OUT)
  const readable = file.poll(POLL.IN)
  t.true(await isPending(readable))
  fs.writeSync(file.fd, '!')
  t.is(await readable, POLL.IN)
  t.is(await file.poll(POLL.IN | POLL.OUT), POLL.IN | POLL.OUT)
  const [inBatch] = await queue.submit([op.poll(file, POLL.IN)])
  t.is(inBatch, POLL.IN)
})

test('cancel: a poll, a vectored read, a splice and a copy end by their signal, and hold nothing then', async (t) => {
  const queue = ring(t)
  const [from, to] = [await queue.open(fifo(t), 'r+'), await queue.open(scratch(t), 'w+')]
  const [other, out] = [await queue.open(fifo(t), 'r+'), queue.alloc(64)]
  const calls: ((signal: AbortSignal) => Promise<unknown>)[] = [
    (signal) => from.poll(POLL.IN, { signal }),
    (signal) => from.readvAt([out], 0, { signal }),
    (signal) => from.readvAt([new Uint8Array(8), out], 0, { signal }),
    (signal) => from.copyTo(to, { signal }),
    (signal) => queue.submit([op.splice(from, other, 1)], { signal, throwOnError: true }),
  ]
  for (const call of calls) {
    const controller = new AbortController()
    const promise = rejection(call(controller.signal))
    t.true(await isPending(promise, 20), String(call))
    controller.abort()
    t.is((await promise).name, 'AbortError', String(call))
    assertIdle(t, queue)
  }
  await Promise.all([from, to, other].map((file) => file.close()))
  t.is(queue.stats().files, 0)
})

test('what is asked of the kernel has the kernel’s numbers', async (t) => {
  const file = await ring(t).open(scratch(t), 'w+')
  // linux/falloc.h, linux/fadvise.h, linux/fs.h: not each of them leaves something to be seen.
  const asked = (made: BatchOperation): unknown => Reflect.get(made, 'offset')
  const mode = (options: object): unknown => asked(op.allocate(file, 0, 1, options))
  t.is(mode({}), 0)
  t.is(mode({ keepSize: true }), 0x01)
  t.is(mode({ punchHole: true }), 0x02 | 0x01)
  t.is(mode({ collapseRange: true }), 0x08)
  t.is(mode({ zeroRange: true }), 0x10)
  t.is(mode({ zeroRange: true, keepSize: true }), 0x11)
  t.is(mode({ insertRange: true, keepSize: false }), 0x20)
  const all = ['normal', 'random', 'sequential', 'willneed', 'dontneed', 'noreuse'] as const
  t.deepEqual(
    all.map((advice) => asked(op.advise(file, advice))),
    [0, 1, 2, 3, 4, 5],
  )
  const parts = (options: object): unknown => asked(op.syncRange(file, 0, 0, options))
  t.is(parts({}), 1 | 2 | 4)
  t.is(parts({ waitBefore: false }), 2 | 4)
  t.is(parts({ write: false }), 1 | 4)
  t.is(parts({ waitAfter: false }), 1 | 2)
  // An fdatasync is an fsync with a flag.
  const [data, whole] = [op.datasync(file), op.fsync(file)].map((made) =>
    Reflect.get(made, 'length'),
  )
  t.deepEqual([data, whole], [1, 0])
})

// ---- copies ---------------------------------------------------------------------------------------

/** Two files, the first with content. */
async function two(
  t: ExecutionContext,
  queue: Queue,
  content: Buffer,
): Promise<[File, File, string]> {
  const at = scratch(t)
  const from = await queue.open(scratch(t, content), 'r')
  return [from, await queue.open(at, 'w+'), at]
}

test('copyTo copies a file, or a part of it to a place in another, by splices alone', async (t) => {
  const queue = ring(t)
  const content = pattern(5 * MIB + 123)
  const [from, to, at] = await two(t, queue, content)
  t.is(await from.copyTo(to), content.length)
  t.is(fs.readFileSync(at).compare(content), 0)
  t.is(queue.stats().bouncedBytes, 0)
  await to.truncate(0)
  t.is(await from.copyTo(to, { position: 1000, length: 70_000, toPosition: 5 }), 70_000)
  t.is(fs.readFileSync(at).subarray(5).compare(content.subarray(1000, 71_000)), 0)
  t.is(await from.copyTo(to, { position: content.length }), 0)
  t.is(queue.stats().files, 2, 'the pipes are closed')
  assertIdle(t, queue)
})

test('copyTo takes what a FIFO brings until it ends', async (t) => {
  const queue = ring(t)
  const place = fifo(t)
  const content = pattern(300_000)
  const source = path.join(folder(t), 'source')
  fs.writeFileSync(source, content)
  const at = scratch(t)
  const to = await queue.open(at, 'w')
  const opening = queue.open(place, 'r')
  const writer = await queue.open(place, 'w')
  const from = await opening
  const copied = from.copyTo(to)
  const bytes = await queue.open(source)
  t.is(await bytes.copyTo(writer), content.length)
  await writer.close()
  t.is(await copied, content.length)
  t.is(fs.readFileSync(at).compare(content), 0)
})

test('copyTo reads and writes where there is no splice', async (t) => {
  const content = pattern(2 * MIB + 512)
  for (const options of [{ without: ['splice'] }, {}] as const) {
    const queue = ring(t, options)
    const [from, to, at] = await two(t, queue, content)
    // A direct file needs whole blocks.
    const direct =
      'without' in options ? from : await queue.open(from.path as string, 'r', { direct: true })
    t.is(await direct.copyTo(to), content.length)
    t.is(fs.readFileSync(at).compare(content), 0)
    t.true(queue.stats().bouncedBytes >= content.length)
    assertIdle(t, queue)
  }
})

test('a copy that fails says how far it came, and refuses what cannot be', async (t) => {
  const queue = ring(t)
  const [from, to, at] = await two(t, queue, Buffer.from('content'))
  const full = await queue.open('/dev/full', 'w')
  const error = await rejection(from.copyTo(full))
  t.is(error.code, 'ENOSPC')
  t.is(error.bytesWritten, 0)
  const append = await queue.open(at, 'a')
  t.throws(() => from.copyTo(append), { code: 'ERR_URING_APPEND' })
  t.throws(() => from.copyTo(7 as unknown as File), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => from.copyTo(to, { length: -1 }), { code: 'ERR_OUT_OF_RANGE' })
  const other = await ring(t).open(at, 'w')
  t.throws(() => from.copyTo(other), { code: 'ERR_INVALID_ARG_VALUE' })
  await to.close()
  t.is((await rejection(from.copyTo(to))).code, 'EBADF')
  assertIdle(t, queue)
})

// ---- vectors --------------------------------------------------------------------------------------

test('readv and writev: buffers from alloc are one operation up to 1024, and pieces of 1024 beyond', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  for (const count of [1, 1024, 1025, 5000]) {
    const content = pattern(count * 3, count)
    const source = queue.alloc(count * 3)
    content.copy(source)
    const parts = Array.from({ length: count }, (_, i) => source.subarray(i * 3, i * 3 + 3))
    const pieces = Math.ceil(count / 1024)
    const writes = await submittedBy(queue, async () => {
      t.is(await file.writevAt(parts, 7), count * 3)
    })
    t.is(
      fs
        .readFileSync(at)
        .subarray(7, 7 + count * 3)
        .compare(content),
      0,
    )
    const target = queue.alloc(count * 3)
    const into = Array.from({ length: count }, (_, i) => target.subarray(i * 3, i * 3 + 3))
    const reads = await submittedBy(queue, async () => {
      t.is(await file.readvAt(into, 7), count * 3)
    })
    t.is(target.compare(content), 0)
    t.deepEqual([writes, reads], [pieces, pieces], `${count} buffers`)
  }
  t.is(queue.stats().bouncedBytes, 0)
  assertIdle(t, queue)
})

test('readv and writev: any buffers are filled and written in their order', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const content = pattern(3 * MIB)
  const cuts = [0, 1, 1, 5000, MIB - 1, MIB + 70_000, 3 * MIB]
  const parts = cuts.slice(1).map((cut, i) => content.subarray(cuts[i], cut))
  t.is(await file.writevAt([...parts, new DataView(new ArrayBuffer(0))], 11), content.length)
  t.is(fs.readFileSync(at).subarray(11).compare(content), 0)
  const mixed = parts.map((part, i) =>
    i % 2 ? queue.alloc(part.length) : new Uint8Array(part.length),
  )
  t.is(await file.readvAt(mixed, 11), content.length)
  t.is(Buffer.concat(mixed).compare(content), 0)
  // Where the file ends, what is behind its end is left alone.
  const last = [new Uint8Array(2).fill(7), new Uint8Array(4).fill(7)]
  t.is(await file.readvAt(last, content.length + 11 - 3), 3)
  t.is(Buffer.concat(last).compare(Buffer.concat([content.subarray(-3), Buffer.alloc(3, 7)])), 0)
  t.is(await file.readvAt([], 0), 0)
  assertIdle(t, queue)
})

test('a vectored read goes on after a short one, and is one read from a FIFO', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(10_000)), 'r')
  const mine = [queue.alloc(6000), queue.alloc(6000)]
  t.is(await file.readvAt(mine, 0), 10_000)
  t.is(Buffer.concat(mine).subarray(0, 10_000).compare(pattern(10_000)), 0)
  const pipe = await queue.open(fifo(t), 'r+')
  for (const parts of [mine, [Buffer.alloc(3), Buffer.alloc(30)]]) {
    fs.writeSync(pipe.fd, 'hello')
    t.is(await pipe.readvAt(parts, 0), 5)
    t.is(Buffer.concat(parts).toString('latin1', 0, 3), 'hel')
  }
})

test('a vectored write that is short goes on where it ended, in the middle of a buffer', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const content = pattern(400_123)
  const cuts = [0, 1001, 150_000, 150_000, 150_007, 400_123]
  const parts = cuts.slice(1).map((cut, i) => content.subarray(cuts[i], cut))
  const mine = parts.map((part) => {
    const buffer = queue.alloc(Math.max(part.length, 1)).subarray(0, part.length)
    part.copy(buffer)
    return buffer
  })
  for (const list of [mine, parts]) {
    const writing = pipe.writevAt(list, 0)
    t.is((await takenOut(pipe, content.length)).compare(content), 0)
    t.is(await writing, content.length)
  }
  assertIdle(t, queue)
})

test('vectored calls of a direct file go in place where all is aligned, and else by whole blocks', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(5 * 4096 + 100))
  const file = await queue.open(at, 'r+', { direct: true })
  const block = file.alignment?.offsetBytes as number
  const content = fs.readFileSync(at)
  const aligned = (blocks: number): Buffer => queue.alloc(blocks * block)
  const inPlace = async (list: Buffer[], position: number): Promise<boolean> => {
    const { bouncedBytes } = queue.stats()
    const expected = content.subarray(position, position + Buffer.concat(list).length)
    t.is(await file.readvAt(list, position), expected.length)
    t.is(Buffer.concat(list).compare(expected, 0, expected.length, 0, expected.length), 0)
    return queue.stats().bouncedBytes === bouncedBytes
  }
  t.true(await inPlace([aligned(1), aligned(2)], block))
  t.true(await inPlace([aligned(1), aligned(16)], 4 * 4096), 'past the end')
  t.false(await inPlace([aligned(1), aligned(1)], 7), 'a position in a block')
  t.false(await inPlace([aligned(2).subarray(0, block + 1), aligned(1)], 0), 'a part of a block')
  t.false(await inPlace([aligned(2).subarray(1, block + 1)], 0), 'memory that is not aligned')
  const [odd, { bouncedBytes }] = [aligned(2).fill('o'), queue.stats()]
  t.is(await file.writevAt([aligned(1).fill('a'), aligned(1).fill('b')], block), 2 * block)
  t.is(queue.stats().bouncedBytes, bouncedBytes)
  t.is(await file.writevAt([odd.subarray(1), odd.subarray(0, 1)], 0), 2 * block)
  t.is(queue.stats().bouncedBytes, bouncedBytes + 2 * block)
  for (const list of [[odd.subarray(1)], [Buffer.alloc(block), Buffer.alloc(7)]]) {
    t.throws(() => file.writevAt(list, 0), { code: 'ERR_URING_ALIGNMENT' })
    t.throws(() => op.writev(file, list, 0), { code: 'ERR_URING_ALIGNMENT' })
    t.throws(() => op.write(file, list.at(-1) as Buffer, 0), { code: 'ERR_URING_ALIGNMENT' })
  }
  t.throws(() => op.writev(file, [odd], 1), { code: 'ERR_URING_ALIGNMENT' })
  t.is(fs.readFileSync(at, 'latin1').slice(0, 3 * block), 'o'.repeat(2 * block) + 'b'.repeat(block))
  t.is(fs.statSync(at).size, content.length)
  const append = await queue.open(at, 'a')
  for (const make of [op.write, op.writev] as const) {
    const made = () => make(append, (make === op.write ? odd : [odd]) as never, 0)
    t.throws(made, { code: 'ERR_URING_APPEND' })
  }
  assertIdle(t, queue)
})

test('where the kernel has no vectored calls, reads and writes are made in their place', async (t) => {
  const queue = ring(t, { without: ['readv', 'writev'] })
  const file = await queue.open(scratch(t), 'w+')
  const [from, into] = [queue.alloc(8).fill('abcdefgh'), queue.alloc(8)]
  t.is(await file.writevAt([from.subarray(0, 3), from.subarray(3)], 0), 8)
  t.is(await file.readvAt([into.subarray(0, 5), into.subarray(5)], 0), 8)
  t.is(into.toString(), 'abcdefgh')
  t.is(queue.stats().bouncedBytes, 16)
  assertIdle(t, queue)
})

test('buffers of nothing are no vectors: the others are one operation, in place', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const [memory, into] = [queue.alloc(8).fill('abcdefgh'), queue.alloc(8)]
  const nothing = memory.subarray(4, 4)
  const list = (from: Buffer): Uint8Array[] => [
    ...[nothing, from.subarray(0, 3), nothing, new Uint8Array(0)],
    ...[from.subarray(3), nothing],
  ]
  const submitted = await submittedBy(queue, async () => {
    t.is(await file.writevAt(list(memory), 0), 8)
    t.is(await file.readvAt(list(into), 0), 8)
    t.deepEqual(await queue.submit([op.readv(file, list(into), 0)]), [8])
  })
  t.is(submitted, 3)
  t.is(into.toString(), 'abcdefgh')
  t.is(queue.stats().bouncedBytes, 0)
  // A constructor stands for one operation, which has its most.
  const many = Array.from({ length: 1025 }, (_, i) => into.subarray(i % 8, (i % 8) + 1))
  t.notThrows(() => op.readv(file, many.slice(1), 0))
  for (const make of [op.readv, op.writev]) {
    t.throws(() => make(file, many, 0), { code: 'ERR_INVALID_ARG_VALUE' })
    t.throws(() => make(file, [nothing], 0), { code: 'ERR_INVALID_ARG_VALUE' })
  }
})

test('vectored calls that cannot begin say why before anything is staged', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)), 'r+')
  const buffers = [queue.alloc(4), queue.alloc(4)]
  const both = (options?: { signal: AbortSignal }) => [
    rejection(file.readvAt(buffers, 0, options)),
    rejection(file.writevAt(buffers, 0, options)),
  ]
  const submitted = await submittedBy(queue, async () => {
    const [read, write] = await Promise.all(both({ signal: AbortSignal.abort() }))
    t.deepEqual([read?.name, write?.name], ['AbortError', 'AbortError'])
    t.deepEqual([read?.bytesWritten, write?.bytesWritten], [undefined, 0])
  })
  t.is(submitted, 0)
  await file.close()
  for (const { code, syscall } of await Promise.all(both())) {
    t.is(code, 'EBADF')
    t.regex(syscall as string, /^(readv|writev|read|write)$/)
  }
  t.deepEqual(fs.readFileSync(file.path as string), pattern(100))
  await queue.close()
})

test('a vectored write that fails says what it wrote; a target that is gone is not written to', async (t) => {
  const queue = ring(t)
  const full = await queue.open('/dev/full', 'w')
  for (const parts of [[queue.alloc(8)], [new Uint8Array(8)]]) {
    const error = await rejection(full.writevAt(parts, 0))
    t.deepEqual([error.code, error.syscall, error.bytesWritten], ['ENOSPC', 'write', 0])
  }
  const pipe = await queue.open(fifo(t), 'r+')
  const gone = new Uint8Array(8)
  const read = rejection(pipe.readvAt([gone, new Uint8Array(8)], 0))
  structuredClone(gone, { transfer: [gone.buffer] })
  fs.writeSync(pipe.fd, 'hello')
  t.is((await read).code, 'ERR_URING_BUFFER_DETACHED')
  // Between two pieces: what the first of them wrote is told of.
  const file = await queue.open(scratch(t), 'w')
  for (const last of [new Uint8Array(MIB), new DataView(new ArrayBuffer(MIB))]) {
    const written = rejection(file.writevAt([Buffer.alloc(MIB), last], 0))
    structuredClone(last.buffer, { transfer: [last.buffer as ArrayBuffer] })
    const { code, bytesWritten } = await written
    t.deepEqual([code, bytesWritten], ['ERR_URING_BUFFER_DETACHED', MIB])
  }
  t.throws(() => full.writevAt(new Uint8Array(8) as unknown as Uint8Array[], 0), {
    code: 'ERR_INVALID_ARG_TYPE',
  })
  t.throws(() => full.readvAt([7 as unknown as Uint8Array], 0), { code: 'ERR_INVALID_ARG_TYPE' })
  assertIdle(t, queue)
})

test('op.readv and op.writev take buffers from alloc, and go in chains', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const parts = [queue.alloc(3).fill('a'), queue.alloc(5).fill('b')]
  const into = [queue.alloc(4), queue.alloc(4)]
  const chain: BatchOperation[] = [
    op.writev(file, parts, 0),
    op.fsync(file),
    op.readv(file, into, 0),
  ]
  t.deepEqual(await queue.submit(chain, { link: 'soft' }), [8, 0, 8])
  t.is(Buffer.concat(into).toString(), 'aaabbbbb')
  t.throws(() => op.readv(file, [new Uint8Array(4)], 0), { code: 'ERR_INVALID_ARG_VALUE' })
  t.throws(() => op.readv(file, [], 0), { code: 'ERR_INVALID_ARG_VALUE' })
})

test('what op.readv and op.writev are given is theirs, whatever becomes of the list', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const [from, into] = [queue.alloc(3).fill('a'), queue.alloc(3)]
  const list = [from]
  const write = op.writev(file, list, 0)
  list[0] = into
  const read = op.readv(file, list, 0)
  list.length = 0
  // Behind a sync they are not with the kernel yet.
  const chain = queue.submit([op.fsync(file), write, op.fsync(file), read], { link: 'soft' })
  for (const buffer of [from, into]) {
    t.throws(() => queue.free(buffer), { code: 'ERR_URING_IN_FLIGHT' })
  }
  t.deepEqual(await chain, [0, 3, 0, 3])
  t.is(into.toString(), 'aaa')
  assertIdle(t, queue)
})

test('memory of a vectored call is not freed before that is over, also what it has not come to', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const list = Array.from({ length: 1500 }, () => queue.alloc(4096))
  const [last, plain] = [list.at(-1) as Buffer, queue.alloc(4096)]
  const controller = new AbortController()
  const { signal } = controller
  // The FIFO takes neither of them whole.
  const calls = [
    rejection(pipe.writevAt(list, 0, { signal })),
    rejection(pipe.writevAt([Buffer.alloc(2 * MIB), plain], 0, { signal })),
  ]
  list.length = 0
  await queue.sleep(5)
  for (const buffer of [last, plain]) {
    t.throws(() => queue.free(buffer), { code: 'ERR_URING_IN_FLIGHT' })
  }
  controller.abort()
  for (const { name } of await Promise.all(calls)) t.is(name, 'AbortError')
  for (const buffer of [last, plain]) t.notThrows(() => queue.free(buffer))
  assertIdle(t, queue)
})

// ---- flags of preadv2(2) ------------------------------------------------------------------------

test('dsync, nowait and dontcache reach the kernel, and one that a file cannot do says so', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const bytes = Buffer.from('content')
  t.is(await submittedBy(queue, () => file.writeAt(bytes, 0, { dsync: true })), 1)
  t.is(await file.writevAt([bytes, queue.alloc(1)], 7, { dsync: true }), 8)
  const pipe = await queue.open(fifo(t), 'r+')
  // A FIFO that has a name cannot tell.
  for (const target of [new Uint8Array(8), queue.alloc(8)]) {
    const error = await rejection(pipe.readAt(target, 0, { nowait: true }))
    t.is(error.code, 'ERR_URING_UNSUPPORTED')
    t.is((error.cause as { code?: string }).code, 'ENOTSUP')
  }
  for (const call of [
    (dontcache: boolean) => pipe.readAt(new Uint8Array(8), 0, { dontcache }),
    (dontcache: boolean) => pipe.readvAt([queue.alloc(8)], 0, { dontcache }),
    (dontcache: boolean) => pipe.writeAt(bytes, 0, { dontcache }),
    (dontcache: boolean) =>
      queue.submit([op.write(pipe, bytes, 0, { dontcache })], { throwOnError: true }),
  ]) {
    const error = await rejection(call(true))
    t.is(error.code, 'ERR_URING_UNSUPPORTED')
    t.true(error.message.includes('Linux 6.14'), error.message)
    t.is((error.cause as { code?: string }).code, 'ENOTSUP')
  }
  t.throws(() => file.readAt(bytes, 0, { nowait: 1 as unknown as boolean }), {
    code: 'ERR_INVALID_ARG_TYPE',
  })
  assertIdle(t, queue)
})

test('a nowait read of what is not in memory says EAGAIN, and of what is there brings it', async (t) => {
  const queue = ring(t)
  // In the folder of the tests, which is on a disk.
  const at = path.join(folder(t, process.cwd()), 'file')
  fs.writeFileSync(at, pattern(MIB))
  const file = await queue.open(at, 'r+')
  const target = queue.alloc(4096)
  for (const read of [
    () => file.readAt(target, 0, { nowait: true }),
    () => file.readAt(new Uint8Array(4096), 0, { nowait: true }),
    () => file.readvAt([target], 0, { nowait: true }),
    () => file.readvAt([new Uint8Array(4096)], 0, { nowait: true }),
  ]) {
    await file.sync()
    await file.advise('dontneed')
    const error = await rejection(read())
    t.is(error.message, 'EAGAIN: resource temporarily unavailable, read')
    await file.readAt(target, 0)
    t.is(await read(), 4096)
  }
  t.is(target.compare(pattern(MIB), 0, 4096), 0)
  assertIdle(t, queue)
})

test('what a vectored read of a FIFO has read is not lost to a limit that comes behind it', async (t) => {
  const queue = ring(t)
  const abort = new AbortController()
  const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
  // It asks what kind of file that was, which nobody knows yet.
  const isAsked = {
    start({ operation }: OperationMessage) {
      if (operation === 'fstat') abort.abort()
    },
  }
  channels.subscribe(isAsked as never)
  t.teardown(() => channels.unsubscribe(isAsked as never))
  const limits = [{ signal: abort.signal }, { signal: AbortSignal.timeout(60_000) }]
  for (const [index, limit] of limits.entries()) {
    const stream = await queue.open(fifo(t), 'r+')
    const two = [queue.alloc(8), queue.alloc(8)]
    const read = stream.readvAt(two, 0, limit)
    fs.writeSync(stream.fd, 'hello')
    t.is(await read, 5)
    t.is(two[0]?.toString('latin1', 0, 5), 'hello')
    t.is(abort.signal.aborted, true, `${index}`)
  }
  assertIdle(t, queue)
})

test('a nowait read in pieces brings the pieces that are in memory', async (t) => {
  const queue = ring(t)
  // In the folder of the tests, which is on a disk.
  const at = path.join(folder(t, process.cwd()), 'file')
  const content = pattern(2 * MIB)
  fs.writeFileSync(at, content)
  const file = await queue.open(at, 'r+')
  await file.advise('random')
  const mine = queue.alloc(2 * MIB)
  for (const list of [
    Array.from({ length: 2048 }, (_, i) => mine.subarray(i * 1024, (i + 1) * 1024)),
    [Buffer.alloc(MIB), Buffer.alloc(MIB)],
  ]) {
    await file.sync()
    await file.advise('dontneed')
    await file.readAt(Buffer.alloc(MIB), 0)
    const count = await file.readvAt(list, 0, { nowait: true })
    // The kernel may have brought more meanwhile: it reads ahead for what finds nothing.
    t.true(count >= MIB, `${count}`)
    t.is(Buffer.concat(list).compare(content, 0, count, 0, count), 0)
  }
  assertIdle(t, queue)
})

test('a file read with dontcache is not in the page cache afterwards, where the file system can', async (t) => {
  const queue = ring(t)
  const file = await queue.open(path.join(folder(t, process.cwd()), 'file'), 'w+')
  const content = pattern(64 << 10)
  let error: { code?: unknown } | undefined
  try {
    t.is(await file.writeAt(content, 0, { dontcache: true }), content.length)
    t.is(await file.readAt(Buffer.alloc(content.length), 0, { dontcache: true }), content.length)
  } catch (caught) {
    error = caught as { code?: unknown }
  }
  if (error !== undefined) {
    // As good a test of the other answer.
    t.is(error.code, 'ERR_URING_UNSUPPORTED')
    return
  }
  await file.sync()
  await file.readAt(Buffer.alloc(content.length), 0, { dontcache: true })
  const nowait = await file.readAt(Buffer.alloc(4096), 0, { nowait: true }).catch((e) => e.code)
  t.true(nowait === 'EAGAIN' || nowait === 4096, String(nowait))
  t.is(fs.readFileSync(file.path as string).compare(content), 0)
})

test('each operation that moves nothing has its error named as its system call', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  await file.close()
  const other = await queue.open(scratch(t), 'w+')
  for (const [call, syscall] of [
    [() => file.allocate(0, 1), 'fallocate'],
    [() => file.advise('normal'), 'fadvise'],
    [() => file.syncRange(), 'sync_file_range'],
    [() => file.poll(POLL.IN), 'poll'],
    [() => file.copyTo(other), 'splice'],
    [() => file.readvAt([Buffer.alloc(1)], 0), 'read'],
    [() => file.writevAt([Buffer.alloc(1)], 0), 'write'],
    [() => file.send(Buffer.alloc(1)), 'send'],
    [() => file.recv(Buffer.alloc(1)), 'recv'],
    [() => file.send(Buffer.alloc(0)), 'send'],
    [() => file.recv(Buffer.alloc(0)), 'recv'],
  ] as const) {
    t.is((await rejection(call())).message, `EBADF: bad file descriptor, ${syscall}`)
  }
  const constructors = [op.allocate(file, 0, 1), op.poll(file, 1), op.splice(other, file, 1)]
  for (const result of await queue.submit(constructors))
    t.is((result as { code?: string }).code, 'EBADF')
  t.throws(() => op.splice(other, file, 1, { from: 0, to: 0 }), { code: 'ERR_INVALID_ARG_VALUE' })
  t.is(thrown(() => op.poll(file, 0)).code, 'ERR_OUT_OF_RANGE')
})
