// What users of Go's library for io_uring have, row by row of docs/parity.md: here are the tests that
// belong to no other file, and the proof that the page leads to tests that exist.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { op } from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

const root = fileURLToPath(new URL('..', import.meta.url))
/** With the heap's limit and a busy machine in mind. */
const LONG_MS = 120_000

test('30,000 concurrent writes of 8 bytes to one file leave exactly the bytes that were written', async (t) => {
  const queue = ring(t, {}, LONG_MS)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  const content = pattern(30_000 * 8)
  const parts = Array.from({ length: 30_000 }, (_, i) => content.subarray(i * 8, i * 8 + 8))
  const counts = await Promise.all(parts.map((part, i) => file.writeAt(part, i * 8)))
  t.true(counts.every((count) => count === 8))
  t.is(fs.readFileSync(at).compare(content), 0)
  assertIdle(t, queue)
})

test('100,000 concurrent readers of one file each get what they asked for', async (t) => {
  const queue = ring(t, {}, LONG_MS)
  const content = pattern(1 << 20)
  const file = await queue.open(scratch(t, content), 'r')
  const target = Buffer.alloc(100_000 * 8)
  const place = (i: number): number => (i * 7919) % (content.length - 8)
  const counts = await Promise.all(
    Array.from({ length: 100_000 }, (_, i) => {
      return file.readAt(target.subarray(i * 8, i * 8 + 8), place(i))
    }),
  )
  t.true(counts.every((count) => count === 8))
  let wrong = 0
  for (let i = 0; i < 100_000; i++) {
    const from = place(i)
    if (target.compare(content, from, from + 8, i * 8, i * 8 + 8) !== 0) wrong++
  }
  t.is(wrong, 0)
  assertIdle(t, queue)
})

test('operations that outlive many wraps of the ring keep their own result', async (t) => {
  const queue = ring(t, { entries: 8, cqEntries: 16 }, LONG_MS)
  const file = await queue.open(scratch(t, pattern(64)), 'r')
  const slow = Array.from({ length: 20 }, (_, i) => queue.sleep(200 + i).then(() => i))
  const bytes = Buffer.alloc(20 * 3)
  // Each of these is a wrap of the submission queue, and half a one of the completion queue.
  for (let wrap = 0; wrap < 2000; wrap++) {
    await Promise.all(Array.from({ length: 8 }, () => queue.nop()))
  }
  const reads = Array.from({ length: 20 }, (_, i) =>
    file.readAt(bytes.subarray(i * 3, i * 3 + 3), i * 3),
  )
  t.deepEqual(await Promise.all(slow), [...slow.keys()])
  t.deepEqual(await Promise.all(reads), Array(20).fill(3))
  t.is(bytes.compare(pattern(64), 0, 60), 0)
  assertIdle(t, queue)
})

test('a write of nothing returns 0, and a call on a closed file is EBADF', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  t.is(await file.writeAt(Buffer.alloc(0), 0), 0)
  await file.close()
  t.is((await rejection(file.writeAt(Buffer.alloc(1), 0))).code, 'EBADF')
  t.is((await rejection(file.writeAt(Buffer.alloc(0), 0))).code, 'EBADF')
})

test('a write and a close of one file may race without harm', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  for (let turn = 0; turn < 200; turn++) {
    const file = await queue.open(at, 'w')
    const before = [0, 1, 2].map((i) => file.writeAt(Buffer.from(`${i}`), i))
    const closed = file.close()
    const after = rejection(file.writeAt(Buffer.from('x'), 3))
    t.deepEqual(await Promise.all(before), [1, 1, 1])
    await closed
    t.is((await after).code, 'EBADF')
    t.is(fs.readFileSync(at, 'latin1'), '012')
  }
  t.is(queue.stats().files, 0)
  assertIdle(t, queue)
})

test('a linked pair timeout → link timeout gives ECANCELED and ETIME', async (t) => {
  const queue = ring(t)
  const results = await queue.submit([op.timeout(60_000), op.linkTimeout(5)], { link: 'soft' })
  t.deepEqual(
    results.map((result) => (result as { code?: string }).code),
    ['ECANCELED', 'ETIME'],
  )
})

test('every operation has a constructor in op', (t) => {
  const names = `nop read write readv writev fsync datasync truncate open close send recv timeout linkTimeout
    stat allocate advise syncRange splice rename unlink rmdir link symlink mkdir poll post`
  for (const name of names.split(/\s+/)) t.is(typeof Reflect.get(op, name), 'function', name)
})

test('docs/parity.md leads from every row to tests that exist', (t) => {
  const page = fs.readFileSync(path.join(root, 'docs/parity.md'), 'utf8')
  const rows = page.split('\n').filter((line) => /^\| (?!---|row)/.test(line))
  t.true(rows.length >= 18)
  for (const row of rows) {
    const links = [...row.matchAll(/\[([^\]]+)\]\(\.\.\/([^)]+)\)/g)]
    t.true(links.length > 0, `no test: ${row}`)
    for (const [, title = '', file = ''] of links) {
      const source = fs.readFileSync(path.join(root, file), 'utf8')
      const wanted = file.endsWith('.rs') ? `fn ${title}(` : title
      t.true(source.replaceAll("\\'", "'").includes(wanted), `${file}: ${title}`)
    }
  }
})

test('the file copied by examples/copy.ts is the same', (t) => {
  const [from, to] = [scratch(t, pattern(300_001)), scratch(t)]
  execFileSync(process.execPath, ['--import=tsx', path.join(root, 'examples/copy.ts'), from, to], {
    cwd: root,
    timeout: 60_000,
    stdio: 'pipe',
  })
  t.is(fs.readFileSync(to).compare(fs.readFileSync(from)), 0)
})
