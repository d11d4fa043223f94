// A write with `datasync` is followed by an fdatasync that begins when the write has ended well, and
// the promise waits for both. What the kernel was given is counted by `queue.stats().submitted`.

import fs from 'node:fs'
import path from 'node:path'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, submittedBy } from './helpers/ring.js'
import { fifo, folder, scratch, takenOut, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const MIB = 1 << 20

test('a write with datasync is one write and one fdatasync, and resolves with its length', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  const content = pattern(5000)
  const synced = await submittedBy(queue, async () => {
    t.is(await file.writeAt(content, 3, { datasync: true }), 5000)
  })
  t.is(synced, 2)
  t.is(fs.readFileSync(at).subarray(3).compare(content), 0)
  for (const options of [undefined, {}, { datasync: false }]) {
    t.is(await submittedBy(queue, () => file.writeAt(content, 0, options)), 1)
  }
  assertIdle(t, queue)
})

test('a write in pieces has its fdatasync behind the last piece, and only there', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  for (const length of [MIB, MIB + 1, 3 * MIB, 5 * MIB - 1]) {
    const content = pattern(length)
    const pieces = Math.ceil(length / MIB)
    const submitted = await submittedBy(queue, async () => {
      t.is(await file.writeAt(content, 0, { datasync: true }), length)
    })
    t.is(submitted, pieces + 1, `${length} bytes of plain memory`)
    t.is(fs.readFileSync(at).subarray(0, length).compare(content), 0)
  }
  const mine = queue.alloc(3 * MIB)
  t.is(await submittedBy(queue, () => file.writeAt(mine, 0, { datasync: true })), 2)
  assertIdle(t, queue)
})

test('a write of nothing with datasync is an fdatasync', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const submitted = await submittedBy(queue, async () => {
    t.is(await file.writeAt(Buffer.alloc(0), 0, { datasync: true }), 0)
  })
  t.is(submitted, 1)
})

test('hundreds of writes with datasync at once, among others, leave all their bytes', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  const content = pattern(600 * 1000)
  await Promise.all(
    Array.from({ length: 600 }, async (_, i) => {
      const part = content.subarray(i * 1000, (i + 1) * 1000)
      const mine = i % 2 === 0 ? queue.alloc(1000) : Buffer.alloc(1000)
      mine.set(part)
      t.is(await file.writeAt(mine, i * 1000, { datasync: i % 3 === 0 }), 1000)
    }),
  )
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

for (const entries of [1, 2, 3, 8]) {
  test(`chains fit a ring of ${entries} entries, or do without it`, async (t) => {
    const queue = ring(t, { entries, cqEntries: entries })
    const at = scratch(t)
    const file = await queue.open(at, 'w')
    const content = pattern(50 * 3000)
    await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        const part = content.subarray(i * 3000, (i + 1) * 3000)
        const writing = file.writeAt(part, i * 3000, { datasync: true })
        await queue.nop()
        t.is(await writing, 3000)
      }),
    )
    t.is(fs.readFileSync(at).compare(content), 0)
    assertIdle(t, queue)
  })
}

test('a write that fails is not followed by an fdatasync, and its error is the write’s', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.from('x')), 'r')
  const error = await rejection(file.writeAt(Buffer.alloc(10), 0, { datasync: true }))
  t.is(error.message, 'EBADF: bad file descriptor, write')
  t.is(error.bytesWritten, 0)
  assertIdle(t, queue)
})

test('an fdatasync that fails behind a good write is told as such, with what was written', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  const file = await queue.open(name, 'r+')
  for (const content of [pattern(1000), Buffer.from(pattern(100))]) {
    const error = await rejection(file.writeAt(content, 0, { datasync: true }))
    // A FIFO has nothing to sync. fdatasync(2), EINVAL.
    t.is(error.message, 'EINVAL: invalid argument, fdatasync')
    t.is(error.bytesWritten, content.length)
    t.is((await file.bytesAt(0, content.length)).compare(content), 0)
  }
  assertIdle(t, queue)
})

needs(test, { root: true })(
  'a write with datasync that the kernel cuts short goes on, and is synced once, at its end',
  async (t) => {
    const queue = ring(t)
    const name = path.join(tmpfs(t, 4 * MIB), 'file')
    const mine = queue.alloc(8 * MIB)
    const file = await queue.open(name, 'w')
    const error = await rejection(file.writeAt(mine, 0, { datasync: true }))
    t.is(error.message, 'ENOSPC: no space left on device, write')
    t.is(error.bytesWritten, fs.statSync(name).size)
    await file.truncate()
    t.is(await file.writeAt(mine.subarray(0, 3 * MIB), 0, { datasync: true }), 3 * MIB)
    assertIdle(t, queue)
  },
)

test('a short write to a FIFO goes on before its fdatasync is due', async (t) => {
  const queue = ring(t)
  const name = fifo(t)
  const [reader, writer] = await Promise.all([queue.open(name, 'r'), queue.open(name, 'w')])
  const content = pattern(300_000)
  const writing = rejection(writer.writeAt(content, 0, { datasync: true }))
  t.true(await isPending(writing), 'a pipe holds 64 KiB')
  const came = await takenOut(reader, content.length)
  const error = await writing
  t.is(error.message, 'EINVAL: invalid argument, fdatasync')
  t.is(error.bytesWritten, content.length)
  t.is(came.compare(content), 0)
  assertIdle(t, queue)
})

test('an append is one write, however long, and its fdatasync is linked behind it', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('head'))
  const file = await queue.open(at, 'a')
  const content = pattern(2 * MIB + 5)
  const submitted = await submittedBy(queue, async () => {
    t.is(await file.append(content, { datasync: true }), content.length)
  })
  t.is(submitted, 2)
  t.is(fs.readFileSync(at).subarray(4).compare(content), 0)
})

test('sync and datasync resolve with nothing, on a file, a folder and a read-only file', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const readOnly = await queue.open(scratch(t, Buffer.from('x')))
  const directory = await queue.open(folder(t))
  for (const each of [file, readOnly, directory]) {
    t.is(await each.sync(), undefined)
    t.is(await each.datasync(), undefined)
  }
  assertIdle(t, queue)
})
