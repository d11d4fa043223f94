// Numbers of descriptors are used again, by the kernel and by other code of the process. What a File
// does never reaches another file that has its number, or its place in the table, by now.

import fs from 'node:fs'
import type { QueueOptions } from 'node-uring'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test, { type ExecutionContext } from './helpers/test.js'

/** A descriptor of node:fs that has the number `fd`, which nobody uses. */
function take(t: ExecutionContext, fd: number, path: string): void {
  const others: number[] = []
  t.teardown(() => {
    for (const other of others) fs.closeSync(other)
  })
  for (;;) {
    const got = fs.openSync(path, 'r+')
    others.push(got)
    if (got === fd) return
    if (got > fd) throw new Error(`${fd} is not free`)
  }
}

const TABLES: Readonly<Record<string, QueueOptions>> = {
  'in the registered table': {},
  'by their descriptors': { register: false },
}

for (const [where, options] of Object.entries(TABLES)) {
  test.serial(
    `what is called on a closed file reaches nobody who has its number by now (files ${where})`,
    async (t) => {
      const queue = ring(t, options)
      const [mine, theirs] = [scratch(t, Buffer.from('mine')), scratch(t, Buffer.from('theirs'))]
      const file = await queue.open(mine, 'r+')
      const { fd } = file
      await file.close()
      take(t, fd, theirs)
      const next = await queue.open(theirs, 'r+')
      for (const call of [
        () => file.readAt(Buffer.alloc(4), 0),
        () => file.bytesAt(0, 4),
        () => file.writeAt(Buffer.from('WRONG!'), 0),
        () => file.truncate(0),
        () => file.sync(),
        () => file.datasync(),
        () => file.stat(),
      ]) {
        t.is((await rejection(call())).code, 'EBADF', String(call))
      }
      await file.close()
      t.is(fs.readlinkSync(`/proc/self/fd/${fd}`), theirs, 'it was not closed once more')
      t.is(fs.readFileSync(theirs, 'utf8'), 'theirs')
      t.is((await next.bytesAt(0, 10)).toString(), 'theirs')
      assertIdle(t, queue)
    },
  )

  test.serial(
    `a thousand files opened and closed in turn are each the one that was opened (files ${where})`,
    async (t) => {
      const queue = ring(t, options)
      const paths = Array.from({ length: 10 }, (_, i) => scratch(t, Buffer.from(`file ${i}`)))
      const closed: { at: number; bytesAt: () => Promise<Buffer> }[] = []
      await Promise.all(
        paths.map(async (path, i) => {
          for (let round = 0; round < 100; round++) {
            const file = await queue.open(path)
            t.is((await file.bytesAt(0, 10)).toString(), `file ${i}`)
            const last = file.bytesAt(0, 10)
            await file.close()
            t.is((await last).toString(), `file ${i}`)
            if (round % 10 === 0) closed.push({ at: i, bytesAt: () => file.bytesAt(0, 10) })
          }
        }),
      )
      for (const { bytesAt } of closed) t.is((await rejection(bytesAt())).code, 'EBADF')
      t.is(queue.stats().files, 0)
      assertIdle(t, queue)
    },
  )
}

test.serial(
  'an adopted descriptor that was closed elsewhere is read as it was in the registered table, and its number is closed',
  async (t) => {
    const queue = ring(t)
    const [mine, theirs] = [scratch(t, Buffer.from('mine')), scratch(t, Buffer.from('theirs'))]
    const fd = fs.openSync(mine, 'r+')
    const file = await queue.adopt(fd)
    fs.closeSync(fd)
    const other = fs.openSync(theirs, 'r+')
    t.is(other, fd, 'the lowest number that is free')
    // The table has the file itself, and not its number.
    t.is((await file.bytesAt(0, 10)).toString(), 'mine')
    t.is(await file.writeAt(Buffer.from('MINE'), 0), 4)
    t.is(fs.readFileSync(theirs, 'utf8'), 'theirs')
    t.is(fs.readFileSync(mine, 'utf8'), 'MINE')
    // That is what adopt() says: the number may be another file's by then.
    await file.close()
    t.throws(() => fs.fstatSync(other), { code: 'EBADF' })
    assertIdle(t, queue)
  },
)

test.serial(
  'an adopted descriptor that was closed elsewhere and is nobody’s rejects its close with EBADF',
  async (t) => {
    const queue = ring(t)
    const fd = fs.openSync(scratch(t, Buffer.from('mine')), 'r+')
    const file = await queue.adopt(fd)
    fs.closeSync(fd)
    const error = await rejection(file.close())
    t.is(error.message, 'EBADF: bad file descriptor, close')
    t.is(queue.stats().files, 0)
    assertIdle(t, queue)
  },
)
