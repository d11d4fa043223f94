// What the kernel refuses is told as node:fs tells it, and a write that failed midway says how much
// of it is in the file. node:fs makes the same mistakes here, and is compared with.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import type { File, Queue } from 'node-uring'
import { childJson } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, thrown, told } from './helpers/ring.js'
import { fifo, folder, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const MIB = 1 << 20

/** What a call gives, or what can be told of what it throws. */
function outcome(call: () => unknown): unknown {
  try {
    return call()
  } catch (error) {
    return told(error)
  }
}

type Make = (queue: Queue, length: number) => Buffer
const MEMORY: Readonly<Record<'arena' | 'plain', Make>> = {
  arena: (queue, length) => {
    const mine = queue.alloc(length)
    mine.set(pattern(length))
    return mine
  },
  plain: (_, length) => pattern(length),
}

for (const [name, make] of Object.entries(MEMORY)) {
  test(`a write from ${name} memory to a file open for reading rejects as by node:fs`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, Buffer.from('as it was'))
    const file = await queue.open(at, 'r')
    for (const length of [1, 4096, 3 * MIB]) {
      const ours = await rejection(file.writeAt(make(queue, length), 0))
      t.deepEqual(told(ours), told(thrown(() => fs.writeSync(file.fd, Buffer.alloc(1), 0, 1, 0))))
      t.is(ours.code, 'EBADF')
      t.is(ours.bytesWritten, 0)
    }
    const synced = await rejection(file.writeAt(make(queue, 10), 0, { datasync: true }))
    t.is(synced.message, 'EBADF: bad file descriptor, write')
    t.is(synced.bytesWritten, 0)
    t.is(fs.readFileSync(at, 'utf8'), 'as it was')
    assertIdle(t, queue)
  })

  test(`a read into ${name} memory of a file open for writing rejects as by node:fs`, async (t) => {
    const queue = ring(t)
    const file = await queue.open(scratch(t, pattern(100)), 'r+')
    const writeOnly = await queue.open(file.path as string, 'a')
    for (const length of [1, 4096, 3 * MIB]) {
      const target = make(queue, length)
      const before = Buffer.from(target)
      const ours = await rejection(writeOnly.readAt(target, 0))
      t.deepEqual(
        told(ours),
        told(thrown(() => fs.readSync(writeOnly.fd, Buffer.alloc(1), 0, 1, 0))),
      )
      t.false('bytesWritten' in ours)
      t.is(target.compare(before), 0, 'nothing was read')
    }
    for (const length of [10, MIB]) {
      t.is((await rejection(writeOnly.bytesAt(0, length))).code, 'EBADF')
    }
    assertIdle(t, queue)
  })

  test(`a read of a folder into ${name} memory rejects with EISDIR as by node:fs`, async (t) => {
    const queue = ring(t)
    const file = await queue.open(folder(t), 'r')
    const ours = await rejection(file.readAt(make(queue, 100), 0))
    t.deepEqual(told(ours), told(thrown(() => fs.readSync(file.fd, Buffer.alloc(1), 0, 1, 0))))
    t.is(ours.code, 'EISDIR')
    assertIdle(t, queue)
  })

  test(`a write from ${name} memory to a full device rejects with ENOSPC as by node:fs`, async (t) => {
    const queue = ring(t)
    const file = await queue.open('/dev/full', 'w')
    for (const options of [{}, { datasync: true }]) {
      const ours = await rejection(file.writeAt(make(queue, 2 * MIB), 0, options))
      t.deepEqual(told(ours), told(thrown(() => fs.writeSync(file.fd, Buffer.alloc(1), 0, 1, 0))))
      t.is(ours.bytesWritten, 0)
    }
    assertIdle(t, queue)
  })

  test(`a write from ${name} memory past the largest file rejects as by node:fs`, async (t) => {
    const queue = ring(t)
    const file = await queue.open(scratch(t), 'w')
    const readOnly = await queue.open(file.path as string)
    const buffer = make(queue, 8192)
    // Past the files of ext4, not of every file system: then both write.
    const far = 2 ** 52
    const theirs = outcome(() => fs.writeSync(file.fd, buffer, 0, 8192, far))
    t.deepEqual(await file.writeAt(buffer, far).catch(told), theirs)
    await file.truncate()
    // The end is past what the kernel counts to.
    for (const position of [2n ** 63n - 1n, 2n ** 63n - 4096n]) {
      const ours = await rejection(file.writeAt(buffer, position))
      t.is(ours.message, 'EINVAL: invalid argument, write', `at ${position}`)
      t.is(ours.bytesWritten, 0)
      const reading = await rejection(readOnly.readAt(buffer, position))
      t.is(reading.message, 'EINVAL: invalid argument, read', `at ${position}`)
    }
    t.is((await file.stat()).size, 0)
    assertIdle(t, queue)
  })

  needs(test, { root: true })(
    `a write from ${name} memory that runs out of space says what is in the file`,
    async (t) => {
      const queue = ring(t)
      const at = tmpfs(t, MIB + 200_000)
      const content = make(queue, 3 * MIB)
      const expected = Buffer.from(content)
      for (const [i, options] of [{}, { datasync: true }].entries()) {
        const name = path.join(at, `file${i}`)
        const file = await queue.open(name, 'w')
        const error = await rejection(file.writeAt(content, 0, options))
        t.is(error.message, 'ENOSPC: no space left on device, write')
        const { size } = fs.statSync(name)
        t.is(error.bytesWritten, size)
        t.true(size > MIB - 100_000 && size < 2 * MIB, `${size} bytes were written`)
        t.is(fs.readFileSync(name).compare(expected.subarray(0, size)), 0, 'and rightly so')
        t.is(content.compare(expected), 0)
        await file.truncate()
        // There is room again.
        t.is(await file.writeAt(content.subarray(0, MIB), 0, options), MIB)
        await file.close()
        fs.rmSync(name)
      }
      assertIdle(t, queue)
    },
  )

  needs(test, { root: true })(
    `an append from ${name} memory that runs out of space says what is in the file`,
    async (t) => {
      const queue = ring(t)
      const name = path.join(tmpfs(t, 2 * MIB), 'file')
      fs.writeFileSync(name, pattern(100_001))
      const file = await queue.open(name, 'a')
      const error = await rejection(file.append(make(queue, 4 * MIB)))
      t.is(error.code, 'ENOSPC')
      t.is(error.bytesWritten, fs.statSync(name).size - 100_001)
      assertIdle(t, queue)
    },
  )
}

needs(test, { root: true })(
  'many writes at once into a full file system: each is whole or says so',
  async (t) => {
    const queue = ring(t)
    const name = path.join(tmpfs(t, 2 * MIB), 'file')
    const file = await queue.open(name, 'w')
    const block = (i: number) => Buffer.alloc(64 << 10, i + 1)
    const outcomes = await Promise.allSettled(
      Array.from({ length: 64 }, (_, i) => file.writeAt(block(i), i * (64 << 10))),
    )
    const failed = outcomes.filter((outcome) => outcome.status === 'rejected')
    t.true(failed.length > 0 && failed.length < 64, `${failed.length} failed`)
    const seen = fs.readFileSync(name)
    for (const [i, outcome] of outcomes.entries()) {
      const written = outcome.status === 'fulfilled' ? outcome.value : outcome.reason.bytesWritten
      const from = i * (64 << 10)
      if (outcome.status === 'rejected') t.is(outcome.reason.code, 'ENOSPC')
      t.is(seen.subarray(from, from + written).compare(block(i).subarray(0, written)), 0, `${i}`)
    }
    assertIdle(t, queue)
  },
)

/** Writes past the largest file that this process may make. SIGXFSZ would end it. */
const PAST_THE_LIMIT = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
process.on('SIGXFSZ', () => {})
const [name] = process.argv.slice(1)
const told = ({ name, message, code, errno, syscall, path, bytesWritten }) =>
  ({ name, message, code, errno, syscall, path, bytesWritten })
const queue = new Queue()
const arena = queue.alloc(3 << 20).fill(7)
const results = []
for (const buffer of [Buffer.alloc(3 << 20, 7), arena]) {
  const file = await queue.open(name, 'w')
  const error = await file.writeAt(buffer, 0).then((n) => ({ resolved: n }), told)
  results.push({ error, size: fs.statSync(name).size })
  await file.close()
}
const fd = fs.openSync(name, 'w')
fs.ftruncateSync(fd, 0)
let theirs
try { fs.writeSync(fd, Buffer.alloc(10), 0, 10, 2 << 20) } catch (error) { theirs = told(error) }
await queue.close()
console.log(JSON.stringify({ results, theirs }))
`

test('a write past the largest file that the process may make rejects with EFBIG and says how far it came', async (t) => {
  t.timeout(100_000)
  // Blocks of 512 bytes in some shells, of 1024 in others.
  const { results, theirs } = await childJson<{
    results: { error: Record<string, unknown>; size: number }[]
    theirs: Record<string, unknown>
  }>(PAST_THE_LIMIT, { before: 'ulimit -f 2048', args: [scratch(t)] })
  t.is(theirs['code'], 'EFBIG')
  for (const { error, size } of results) {
    t.true(size === MIB || size === 2 * MIB, `${size}`)
    t.deepEqual(error, { ...theirs, path: error['path'], bytesWritten: size })
  }
})

test('an error reading memory is told as by node:fs', async (t) => {
  const queue = ring(t)
  const file = await queue.open('/proc/self/mem')
  const ours = await rejection(file.readAt(Buffer.alloc(10), 0))
  t.deepEqual(told(ours), told(thrown(() => fs.readSync(file.fd, Buffer.alloc(10), 0, 10, 0))))
  t.is(ours.code, 'EIO')
})

test('a write to a FIFO that nobody reads any more rejects with EPIPE, and the process lives', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  const [reader, writer] = await Promise.all([queue.open(name, 'r'), queue.open(name, 'w')])
  const content = pattern(MIB)
  const writing = rejection(writer.writeAt(content, 0))
  t.is((await reader.bytesAt(0, 1000)).length, 1000)
  await reader.close()
  const error = await writing
  t.is(error.message, 'EPIPE: broken pipe, write')
  t.true((error.bytesWritten as number) > 0 && (error.bytesWritten as number) < MIB)
  t.is((await rejection(writer.writeAt(content, 0))).bytesWritten, 0)
  assertIdle(t, queue)
})

test('a read of a descriptor that does not wait, O_NONBLOCK, waits all the same', async (t) => {
  const queue = ring(t)
  const { O_RDWR, O_NONBLOCK } = fs.constants
  const file = await queue.open(fifo(t), O_RDWR | O_NONBLOCK)
  const reading = file.readAt(Buffer.alloc(10), 0)
  t.true(await isPending(reading), 'node:fs would say EAGAIN')
  fs.writeSync(file.fd, 'here')
  t.is(await reading, 4)
})

test('of many reads at once, some of which fail, each gets what is its own', async (t) => {
  const queue = ring(t)
  const content = pattern(100_000)
  const good = await queue.open(scratch(t, content))
  const writeOnly = await queue.open(scratch(t), 'w')
  const directory = await queue.open('/')
  const files: readonly [file: File, code: string | undefined][] = [
    [good, undefined],
    [writeOnly, 'EBADF'],
    [directory, 'EISDIR'],
  ]
  await Promise.all(
    Array.from({ length: 3000 }, async (_, i) => {
      const [file, code] = files[i % 3] as (typeof files)[number]
      const target = i % 2 === 0 ? Buffer.alloc(20) : queue.alloc(20)
      const reading = file.readAt(target, i)
      if (code === undefined) {
        t.is(await reading, 20)
        t.is(target.compare(content.subarray(i, i + 20)), 0, `read ${i}`)
      } else {
        t.is((await rejection(reading)).code, code, `read ${i}`)
      }
    }),
  )
  assertIdle(t, queue)
})

needs(test, { root: true, commands: ['chattr'] })(
  'a write to an immutable file is refused at open, as by node:fs',
  async (t) => {
    const queue = ring(t)
    const at = scratch(t, Buffer.from('x'))
    execFileSync('chattr', ['+i', at], { stdio: 'pipe' })
    t.teardown(() => execFileSync('chattr', ['-i', at]))
    const ours = await rejection(queue.open(at, 'r+'))
    t.deepEqual(told(ours), told(thrown(() => fs.openSync(at, 'r+'))))
  },
)
