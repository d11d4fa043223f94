// Transfers past what one system call moves, 2 GiB - 4 KiB: they are split, and nobody notices.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import test from 'ava'
import { assertIdle, ring } from '../helpers/ring.js'
import { folder } from '../helpers/scratch.js'
import { needs } from '../helpers/skip.js'

const GIB = 2 ** 30
const LENGTH = 2.5 * GIB

const roomy = needs(test.serial, {
  that: {
    holds: os.freemem() > 10 * GIB && fs.existsSync('/dev/shm'),
    reason: 'needs 10 GiB of memory and /dev/shm',
  },
})

/** Marks every MiB with its number, and the bytes on both sides of the split. */
function mark(buffer: Buffer): void {
  for (let at = 0; at < buffer.length; at += 1 << 20) buffer.writeDoubleLE(at, at)
  buffer.writeDoubleLE(0.5, 0x7ffff000 - 4)
}

function unmarked(buffer: Buffer): number | undefined {
  for (let at = 0; at < buffer.length; at += 1 << 20) {
    if (buffer.readDoubleLE(at) !== at) return at
  }
  return buffer.readDoubleLE(0x7ffff000 - 4) === 0.5 ? undefined : 0x7ffff000
}

for (const memory of ['arena', 'plain'] as const) {
  roomy(`2.5 GiB of ${memory} memory go out and come back in one call`, async (t) => {
    const queue = ring(t, { arena: { maxBytes: 4 * GIB } }, 5 * 60_000)
    const name = path.join(folder(t, '/dev/shm'), 'file')
    const file = await queue.open(name, 'w+')
    const buffer = memory === 'arena' ? queue.alloc(LENGTH) : Buffer.alloc(LENGTH)
    mark(buffer)
    const { submitted } = queue.stats()
    t.is(await file.writeAt(buffer, 7, { datasync: true }), LENGTH)
    if (memory === 'arena') t.is(queue.stats().submitted - submitted, 3)
    t.is(fs.statSync(name).size, LENGTH + 7)
    buffer.fill(0)
    t.is(await file.readAt(buffer, 7), LENGTH)
    t.is(unmarked(buffer), undefined)
    assertIdle(t, queue)
  })
}

roomy('bytesAt of 2.5 GiB is one Buffer', async (t) => {
  const queue = ring(t, { resultBytes: 4 * GIB }, 5 * 60_000)
  const name = path.join(folder(t, '/dev/shm'), 'file')
  const fd = fs.openSync(name, 'w')
  for (let at = 0; at < LENGTH; at += 1 << 20) {
    const double = Buffer.alloc(8)
    double.writeDoubleLE(at)
    fs.writeSync(fd, double, 0, 8, at)
  }
  const half = Buffer.alloc(8)
  half.writeDoubleLE(0.5)
  fs.writeSync(fd, half, 0, 8, 0x7ffff000 - 4)
  fs.ftruncateSync(fd, LENGTH)
  fs.closeSync(fd)
  const file = await queue.open(name)
  const bytes = await file.bytesAt(0, LENGTH)
  t.is(bytes.length, LENGTH)
  t.is(unmarked(bytes), undefined)
})
