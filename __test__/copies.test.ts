// copyTo: many copies at once, copies within one file, and how far they are. What a copy is, and how it fails,
// is in file-calls.test; what it leaves when it ends early in early-ends.test.

import fs from 'node:fs'
import path from 'node:path'
import { pattern } from './helpers/random.js'
import { assertIdle, type Caught, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, folder, loopDevice, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const KIB = 1024
const MIB = 1024 * KIB

// Serial: it counts descriptors, which tests beside it have, too.
test.serial(
  'however many copies there are at once, few descriptors are taken and every byte is right',
  async (t) => {
    const queue = ring(t)
    const [count, bytes] = [300, 100 * KIB]
    const content = pattern(count * bytes)
    const from = await queue.open(scratch(t, content))
    const at = scratch(t)
    const to = await queue.open(at, 'w+')
    const descriptors = () => fs.readdirSync('/proc/self/fd').length
    const before = descriptors()
    let most = 0
    const copies = Array.from({ length: count }, async (_, i) => {
      const place = i * bytes
      const turned = (count - 1 - i) * bytes
      const onProgress = () => {
        most = Math.max(most, descriptors())
      }
      return from.copyTo(to, { position: place, toPosition: turned, length: bytes, onProgress })
    })
    t.deepEqual(new Set(await Promise.all(copies)), new Set([bytes]))
    t.true(most > 0 && most <= before + 64, `${most - before} descriptors`)
    const copied = fs.readFileSync(at)
    for (let i = 0; i < count; i++) {
      const part = copied.subarray((count - 1 - i) * bytes, (count - i) * bytes)
      t.is(part.compare(content.subarray(i * bytes, (i + 1) * bytes)), 0, `copy ${i}`)
    }
    t.is(queue.stats().files, 2, 'the pipes are closed')
    assertIdle(t, queue)
  },
)

test('copies that wait for what never comes keep no others from being made', async (t) => {
  const queue = ring(t)
  const controller = new AbortController()
  const to = await queue.open('/dev/null', 'w')
  const fifos = await Promise.all(Array.from({ length: 40 }, () => queue.open(fifo(t), 'r+')))
  const { signal } = controller
  const stuck = fifos.map((from) => rejection(from.copyTo(to, { signal })))
  const content = pattern(3 * MIB)
  const at = scratch(t)
  const copy = await queue.open(at, 'w+')
  const file = await queue.open(scratch(t, content))
  t.is(await file.copyTo(copy), content.length)
  await file.close()
  t.is(fs.readFileSync(at).compare(content), 0)
  controller.abort()
  for (const error of await Promise.all(stuck)) t.is(error.code, 'ABORT_ERR')
})

test('within one file what would be written over before it is copied is refused', async (t) => {
  const queue = ring(t)
  const content = pattern(16 * 4096)
  const at = scratch(t, content)
  const link = `${at}-linked`
  fs.linkSync(at, link)
  const file = await queue.open(at, 'r+')
  const same = await queue.open(link, 'r+')
  for (const to of [file, same]) {
    for (const [position, toPosition, length] of [
      [0, 4096, 12 * 4096],
      [4096, 0, 12 * 4096],
      [0n, 1n, 2],
      [8192, 8192, 100],
      [0, 4096, undefined],
    ] as const) {
      const options = { position, toPosition, ...(length === undefined ? {} : { length }) }
      const error = await rejection(file.copyTo(to, options))
      t.is(error.code, 'ERR_INVALID_ARG_VALUE')
      t.regex(error.message, /options\.toPosition.*from the position that is copied from/)
      t.is(error.bytesWritten, 0)
    }
  }
  t.is(fs.readFileSync(at).compare(content), 0, 'nothing was written')
  t.is(await file.copyTo(same, { position: 0, toPosition: 4096, length: 4096 }), 4096)
  t.is(await file.copyTo(file, { position: 8192, toPosition: 4096, length: 4096 }), 4096)
  content.copy(content, 4096, 8192, 12_288)
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

test('a file that is copied to its own end is doubled, and the copy ends', async (t) => {
  const queue = ring(t)
  for (const bytes of [100, 3 * MIB + 5]) {
    const content = pattern(bytes)
    const at = scratch(t, content)
    const file = await queue.open(at, 'r+')
    t.is(await file.copyTo(file, { toPosition: bytes }), bytes)
    t.is(fs.readFileSync(at).compare(Buffer.concat([content, content])), 0)
    t.is(await file.copyTo(file, { position: 2 * bytes, toPosition: 0 }), 0)
  }
})

test('what onProgress throws is what a copy rejects with, whatever it is', async (t) => {
  const queue = ring(t)
  const from = await queue.open(scratch(t, pattern(100)))
  const to = await queue.open(scratch(t), 'w+')
  for (const thrown of [undefined, 5, Object.freeze(new Error('frozen'))]) {
    const onProgress = () => {
      throw thrown
    }
    const outcome = await from.copyTo(to, { onProgress }).then(
      () => 'copied',
      (error: unknown) => ({ error }),
    )
    t.deepEqual(outcome, { error: thrown })
  }
})

needs(test, { root: true, commands: ['losetup'] })(
  'a device is copied within itself, and has no overlapping copies by any of its names',
  async (t) => {
    const queue = ring(t)
    const image = path.join(folder(t, '/dev/shm'), 'image')
    const content = pattern(4 * MIB)
    fs.writeFileSync(image, content)
    const device = loopDevice(t, image)
    const [one, other] = [await queue.open(device, 'r+'), await queue.open(device, 'r+')]
    const places = { position: 0, toPosition: 2 * MIB, length: MIB }
    t.is(await one.copyTo(other, places), MIB)
    t.is((await other.bytesAt(2 * MIB, MIB)).compare(content.subarray(0, MIB)), 0)
    const error = await rejection(one.copyTo(other, { ...places, length: 3 * MIB }))
    t.is(error.code, 'ERR_INVALID_ARG_VALUE')
    await Promise.all([one.close(), other.close()])
  },
)

needs(test, { root: true })('a copy within a file past 2^53 has its last byte', async (t) => {
  const queue = ring(t)
  const at = path.join(folder(t, '/dev/shm'), 'sparse')
  const file = await queue.open(at, 'w+')
  const last = 2n ** 53n
  await file.writeAt(Buffer.from('Z'), last)
  t.is(await file.copyTo(file, { position: last, toPosition: 0 }), 1)
  t.is((await file.bytesAt(0, 1)).toString('latin1'), 'Z')
})

test('a copy tells how far it is, ends with what its listener throws, and checks what it is given', async (t) => {
  const queue = ring(t)
  const content = pattern(5 * MIB + 9)
  const from = await queue.open(scratch(t, content))
  const to = await queue.open(scratch(t), 'w+')
  const told: number[] = []
  await from.copyTo(to, { onProgress: (done) => void told.push(done) })
  t.true(told.length >= 5)
  t.is(told.at(-1), content.length)
  t.deepEqual(
    told,
    [...told].sort((a, b) => a - b),
  )
  const boom = new Error('from onProgress')
  const onProgress = () => {
    throw boom
  }
  const error: Caught = await rejection(from.copyTo(to, { onProgress }))
  t.is(error, boom)
  t.is(error.bytesWritten, told[0])
  const wrong = thrown(() => from.copyTo(to, { onProgress: 5 as unknown as () => void }))
  t.is(wrong.code, 'ERR_INVALID_ARG_TYPE')
  assertIdle(t, queue)
})

test('a copy ends with the close of either side, whatever its step waits for', async (t) => {
  const queue = ring(t)
  for (const closed of ['from', 'to'] as const) {
    for (const way of ['in', 'out'] as const) {
      const pipe = await queue.open(fifo(t), 'r+')
      const file = await queue.open(scratch(t, pattern(MIB)), 'r+')
      if (way === 'out') {
        // Full: what is copied to it waits for a reader.
        const full = fs.openSync(pipe.path as string, 'r+')
        await pipe.writeAt(Buffer.alloc(65_536), 0)
        fs.closeSync(full)
      }
      const [from, to] = way === 'in' ? [pipe, file] : [file, pipe]
      const copy = rejection(from.copyTo(to))
      await queue.sleep(50)
      const own = closed === 'from' ? from : to
      await own.close({ timeoutMs: 0 })
      t.is((await copy).code, 'ABORT_ERR', `${way}, ${closed}`)
      await (own === pipe ? file : pipe).close()
    }
  }
  assertIdle(t, queue)
})

test('an end by asyncDispose waits for copies between regular files, and ends others', async (t) => {
  for (const disposed of ['queue', 'from', 'to'] as const) {
    // By splice, and by reading and writing; the delay has it end between any two steps.
    for (const length of [256 * KIB, 10 * KIB]) {
      for (const [waitMs, limits] of [
        [5, undefined],
        [30, undefined],
        [50, undefined],
        [0, { timeoutMs: 60_000 }],
        [0, { signal: new AbortController().signal }],
      ] as const) {
        const queue = ring(t, { flushDelayUs: 20_000 })
        const [content, at] = [pattern(256 * KIB), scratch(t, Buffer.of())]
        const from = await queue.open(scratch(t, content))
        const to = await queue.open(at, 'r+')
        if (limits === undefined) {
          // It is known then what they are, and the first step is one of the copy.
          await from.copyTo(to)
          await to.truncate()
        }
        const copy = from.copyTo(to, { length, ...limits })
        if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs))
        await { queue, from, to }[disposed][Symbol.asyncDispose]()
        t.is(await copy, length, `${disposed} after ${waitMs} ms, ${Object.keys({ ...limits })}`)
        t.is(fs.readFileSync(at).compare(content.subarray(0, length)), 0)
        await queue.close()
      }
    }
  }
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  const copy = rejection(pipe.copyTo(await queue.open(scratch(t, Buffer.of()), 'r+')))
  await queue.sleep(20)
  await queue[Symbol.asyncDispose]()
  t.is((await copy).code, 'ABORT_ERR')
})

test('what came out of a FIFO reaches a file that takes no splice', async (t) => {
  const queue = ring(t)
  const pipe = await queue.open(fifo(t), 'r+')
  await pipe.writeAt(Buffer.from('node-uring test'), 0)
  const before = fs.readFileSync('/proc/self/comm')
  t.teardown(() => fs.writeFileSync('/proc/self/comm', before))
  const comm = await queue.open('/proc/self/comm', 'r+')
  t.is(await pipe.copyTo(comm, { length: 15 }), 15)
  t.is(fs.readFileSync('/proc/self/comm', 'latin1'), 'node-uring test\n')
  await pipe.writeAt(Buffer.from('12345678'), 0)
  const full = await queue.open('/dev/full', 'w')
  const error = await rejection(pipe.copyTo(full, { length: 8 }))
  t.is(error.code, 'ENOSPC')
  t.is(error.bytesWritten, 0)
  t.is(error.path, '/dev/full')
  assertIdle(t, queue)
})

test('a copy reads its options once', async (t) => {
  const queue = ring(t)
  const from = await queue.open(scratch(t, pattern(100)))
  const at = scratch(t, Buffer.of())
  const to = await queue.open(at, 'r+')
  const asked: string[] = []
  const options = new Proxy(
    { position: 10, toPosition: 0, length: 20 },
    {
      get: (target, name) => {
        asked.push(String(name))
        return Reflect.get(target, name)
      },
    },
  )
  t.is(await from.copyTo(to, options), 20)
  t.is(new Set(asked).size, asked.length, asked.join(' '))
  assertIdle(t, queue)
})

test('a copy after many others has a pipe, and passes no bytes through this process', async (t) => {
  const queue = ring(t)
  const content = pattern(100_000)
  const at = scratch(t)
  const [from, to] = [await queue.open(scratch(t, content)), await queue.open(at, 'w')]
  for (let i = 0; i < 20; i++) t.is(await from.copyTo(to), content.length)
  if (queue.backend === 'io_uring') t.is(queue.stats().bouncedBytes, 0)
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

test('a copy to a direct file takes whole blocks, and says so where there is a rest', async (t) => {
  const queue = ring(t)
  const [content, at] = [pattern(9000), scratch(t)]
  const from = await queue.open(scratch(t, content))
  const to = await queue.open(at, 'w+', { direct: true })
  t.is(await from.copyTo(to, { length: 8192 }), 8192)
  t.is(fs.readFileSync(at).compare(content, 0, 8192), 0)
  const { code, bytesWritten } = await rejection(from.copyTo(to))
  t.deepEqual([code, bytesWritten], ['ERR_URING_ALIGNMENT', 0])
  assertIdle(t, queue)
})

test('a copy between files that the kernel has no splice for, or that a queue is without, is whole', async (t) => {
  const queue = ring(t, { without: ['splice'] })
  const [content, at] = [pattern(300_000), scratch(t)]
  const from = await queue.open(scratch(t, content))
  t.is(await from.copyTo(await queue.open(at, 'w')), content.length)
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

test('a write after a direct read from within a block goes where it is to', async (t) => {
  const queue = ring(t)
  const content = pattern(8192)
  const direct = await queue.open(scratch(t, content), 'r', { direct: true })
  const at = scratch(t, Buffer.alloc(1000, '.'))
  const file = await queue.open(at, 'r+')
  for (let turn = 0; turn < 3; turn++) {
    const read = Buffer.alloc(100)
    t.is(await direct.readAt(read, 777), 100)
    t.is(read.compare(content, 777, 877), 0)
    t.is(await file.writeAt(Buffer.alloc(10, 'x'), 500), 10)
    t.is(fs.readFileSync(at, 'latin1').indexOf('x'), 500)
    fs.writeFileSync(at, Buffer.alloc(1000, '.'))
  }
  assertIdle(t, queue)
})

needs(test, { root: true, commands: ['mount', 'umount'] })(
  'a copy that finds no room says how much of it is there, by each way',
  async (t) => {
    const content = pattern(4 * MIB)
    const source = scratch(t, content)
    for (const { length, direct } of [
      { length: 60_000, direct: false },
      { length: 3 * MIB, direct: false },
      { length: 3 * MIB, direct: true },
    ]) {
      const at = tmpfs(t, length < MIB ? 40 * KIB : MIB)
      const queue = ring(t)
      const from = await queue.open(source, 'r', { direct })
      const name = path.join(at, 'copy')
      const to = await queue.open(name, 'w')
      const { code, bytesWritten } = await rejection(from.copyTo(to, { length }))
      const { size } = fs.statSync(name)
      t.deepEqual({ code, bytesWritten }, { code: 'ENOSPC', bytesWritten: size })
      t.true(size > 0)
      assertIdle(t, queue)
    }
  },
)
