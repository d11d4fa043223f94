// A queue that polls devices (iopoll): direct files are read where file system and device poll, or an
// error says which of them does not; everything else works, and the event loop has its turns.

import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { QueueOptions } from 'node-uring'
import { assertIdle, type Caught, rejection, ring } from './helpers/ring.js'
import { folder } from './helpers/scratch.js'

const WAYS: readonly QueueOptions[] = [
  { iopoll: true },
  { iopoll: true, sqpoll: { idleMs: 50 } },
  { iopoll: true, reap: 'thread' },
  { iopoll: true, restrict: { operations: ['openat', 'statx', 'read', 'write', 'fsync'] } },
  { iopoll: true, register: false },
]

/** Where files are: on whatever disk this is, and in memory, where nothing polls. */
const PLACES = [process.cwd(), '/dev/shm'].filter((place) => fs.existsSync(place))

for (const options of WAYS) {
  for (const place of PLACES) {
    test(`in ${path.basename(place)}, with ${JSON.stringify(options)}, a direct read is right or says what does not poll`, async (t) => {
      const queue = ring(t, options)
      const name = path.join(folder(t, path.join(place)), 'data')
      const content = Buffer.alloc(1 << 16, 7)
      fs.writeFileSync(name, content)
      t.true(queue.capabilities.iopoll)
      const file = await queue.open(name, 'r+', { direct: true })
      let timers = 0
      const timer = setInterval(() => timers++, 1)
      const reads = Array.from({ length: 50 }, async (_, i) => {
        const block = queue.alloc(4096)
        await file.readAt(block, (i % 16) * 4096)
        return block.every((byte) => byte === 7)
      })
      for (const read of await Promise.allSettled(reads)) {
        if (read.status === 'fulfilled') t.true(read.value)
        else refusal(t, read.reason)
      }
      // What is not read or written by itself, directly, does not need to be polled.
      const written = file.writeAt(queue.alloc(4096).fill(7), 4096, { datasync: true })
      t.is(await written, 4096)
      const plain = await queue.open(name, 'r')
      t.deepEqual(await plain.bytesAt(0, 1 << 16), content)
      await file.sync()
      await queue.sleep(20)
      clearInterval(timer)
      t.true(timers > 0)
      await Promise.all([file.close(), plain.close()])
      assertIdle(t, queue)
    })
  }
}

function refusal(t: ExecutionContext<unknown>, error: Caught): void {
  t.is(error.code, 'ERR_URING_UNSUPPORTED')
  t.regex(error.message, /options\.iopoll.*(poll queues|file system that polls|is on none)/)
  t.is((error.cause as { errno: number }).errno, -95)
}

test('closing a queue that polls ends what it polls', async (t) => {
  const queue = ring(t, { iopoll: true })
  const name = path.join(folder(t, process.cwd()), 'data')
  fs.writeFileSync(name, Buffer.alloc(1 << 16))
  const file = await queue.open(name, 'r', { direct: true })
  const reads = Array.from({ length: 20 }, () => file.readAt(queue.alloc(4096), 0))
  const settled = Promise.allSettled(reads)
  await queue.close({ timeoutMs: 0 })
  await settled
  t.is((await rejection(file.readAt(Buffer.alloc(1), 0))).code, 'EBADF')
})
