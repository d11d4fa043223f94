// Chains: what io_uring_enter(2) says of IOSQE_IO_LINK, IOSQE_IO_HARDLINK and IORING_OP_LINK_TIMEOUT,
// and what this library adds: a chain goes whole or waits, and a short write is no success.

import fs from 'node:fs'
import path from 'node:path'
import { type BatchOperation, op, type Queue, type Stats } from 'node-uring'
import { childJson } from './helpers/child.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, isPending, ring, thrown, told } from './helpers/ring.js'
import { fifo, folder, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { BACKEND } from './helpers/test.js'

const MIB = 1 << 20
const SLOTS = 65_536

/** The codes of failed results, and what the others came to. */
function outcomes(results: readonly (number | Error | Stats)[]): (number | string)[] {
  return results.map((result) =>
    typeof result === 'number' ? result : String((result as { code?: unknown }).code),
  )
}

/** `count` times the same. */
function times<T>(count: number, what: T): T[] {
  return new Array<T>(count).fill(what)
}

/** One that fails: there is no such name. */
const failing = op.unlink('/nowhere/at/all')

test('the operations of a chain start one after the other', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  // Each round writes and reads the same place: any other order would read other bytes.
  for (const link of ['soft', 'hard'] as const) {
    const list: BatchOperation[] = []
    const reads: [Buffer, Buffer][] = []
    for (let round = 0; round < 200; round++) {
      const [content, target] = [pattern(64, round + 1), Buffer.alloc(64)]
      reads.push([content, target])
      list.push(op.write(file, content, 0), op.read(file, target, 0))
    }
    t.deepEqual(await queue.submit(list, { link }), times(400, 64))
    for (const [content, target] of reads) t.true(content.equals(target))
  }
  assertIdle(t, queue)
})

test('a chain that waits for time does nothing meanwhile', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  for (const link of ['soft', 'hard'] as const) {
    await file.truncate()
    const started = performance.now()
    const chain = queue.submit([op.timeout(60), op.write(file, Buffer.from('late'), 0)], { link })
    await queue.nop()
    if (performance.now() - started < 50) t.is(fs.statSync(at).size, 0)
    t.deepEqual(await chain, [0, 4])
    t.true(performance.now() - started >= 59)
  }
})

for (let broken = 0; broken < 8; broken++) {
  test(`a chain of 8 whose link ${broken} fails: soft ends with it, hard goes on`, async (t) => {
    const queue = ring(t)
    const at = scratch(t)
    const file = await queue.open(at, 'w')
    for (const link of ['soft', 'hard'] as const) {
      await file.truncate()
      const list = Array.from({ length: 8 }, (_, i) =>
        i === broken ? failing : op.write(file, Buffer.from([65 + i]), i),
      )
      const results = await queue.submit(list, { link })
      const after = link === 'soft' ? 'ECANCELED' : 1
      const expected = [...times(broken, 1), 'ENOENT', ...times(7 - broken, after)]
      t.deepEqual(outcomes(results), expected as (string | number)[], link)
      const written = Array.from({ length: 8 }, (_, i) =>
        i === broken || (link === 'soft' && i > broken) ? 0 : 65 + i,
      )
      const content = [...fs.readFileSync(at)]
      while (content.length < 8) content.push(0)
      t.deepEqual(content, written, link)
      const ended = results.filter((result) => (result as { code?: string }).code === 'ECANCELED')
      for (const error of ended) {
        t.like(told(error), { message: 'ECANCELED: operation canceled, write', syscall: 'write' })
      }
    }
    assertIdle(t, queue)
  })
}

test('whatever fails ends a soft chain, also where the kernel would go on; and no hard one', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('x'))
  const [readOnly, writeOnly] = [await queue.open(at), await queue.open(at, 'r+')]
  const other = await queue.open(scratch(t), 'w')
  const stream = await queue.open(fifo(t), 'r+')
  const bad = await queue.open(scratch(t), 'w')
  const kinds: [string, BatchOperation<number | Stats>][] = [
    ['EINVAL', op.fsync(stream)],
    ['EINVAL', op.datasync(stream)],
    ['EINVAL', op.truncate(readOnly, 0)],
    ['ENOENT', op.rename(`${at}/x`, `${at}/y`)],
    ['ENOTDIR', op.link(`${at}/x`, `${at}/y`)],
    ['ENOTDIR', op.stat(`${at}/x`)],
    ['EEXIST', op.symlink('x', at)],
    ['EEXIST', op.mkdir(at)],
    ['ENOENT', failing],
    ['EBADF', op.read(bad, Buffer.alloc(1), 0)],
    ['EBADF', op.write(readOnly, Buffer.alloc(1), 0)],
    ['ETIME', op.timeout(5, { count: 60_000 })],
    ['ENAMETOOLONG', op.mkdir('/x'.repeat(5000))],
    ['ENAMETOOLONG', op.rename(at, '/x'.repeat(5000))],
  ]
  if (BACKEND === 'io_uring') {
    kinds.push(['EBADF', op.allocate(readOnly, 0, 1)], ['ESPIPE', op.syncRange(stream)])
  }
  for (const [expected, failed] of kinds) {
    const code = expected === 'ENOENT' && failed !== failing ? 'ENOTDIR' : expected
    for (const bound of [[], [op.linkTimeout(20_000)]]) {
      const list = [
        op.nop(),
        failed,
        ...bound,
        op.write(other, Buffer.from('x'), 0),
        op.fsync(other),
      ]
      list.push(op.truncate(writeOnly, 1), ...bound, op.nop())
      for (const link of ['soft', 'hard'] as const) {
        await other.truncate()
        const [goes, on] = link === 'soft' ? ['ECANCELED', 'ECANCELED'] : [1, 0]
        const ends = bound.map(() => 'ECANCELED')
        const results = await queue.submit(list, { link })
        t.deepEqual(
          outcomes(results),
          [0, code, ...ends, goes, on, on, ...ends, on] as never,
          `${link} ${code}`,
        )
        t.is(fs.statSync(other.path as string).size, link === 'soft' ? 0 : 1)
      }
    }
  }
  const good = [
    op.fsync(other),
    op.truncate(writeOnly, 7),
    op.linkTimeout(9999),
    op.datasync(other),
    op.nop(),
  ]
  t.deepEqual(outcomes(await queue.submit(good, { link: 'soft' })), [0, 0, 'ECANCELED', 0, 0])
  t.is(fs.statSync(at).size, 7)
  assertIdle(t, queue)
})

test('a short read ends a soft chain and no hard one, and is a count in both', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)), 'r')
  for (const mine of [queue.alloc(80), Buffer.alloc(80)]) {
    const list = [op.read(file, mine, 50), op.nop(), op.nop()]
    t.deepEqual(outcomes(await queue.submit(list, { link: 'soft' })), [
      50,
      'ECANCELED',
      'ECANCELED',
    ])
    t.deepEqual(outcomes(await queue.submit(list, { link: 'hard' })), [50, 0, 0])
    t.true(mine.subarray(0, 50).equals(pattern(100).subarray(50)))
  }
  // At the end of the file there is nothing.
  const end = [op.read(file, Buffer.alloc(8), 100), op.nop()]
  t.deepEqual(outcomes(await queue.submit(end, { link: 'soft' })), [0, 'ECANCELED'])
  assertIdle(t, queue)
})

test('reads and writes of nothing keep their place in a chain', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(10))
  const file = await queue.open(at, 'r+')
  const nothing = Buffer.alloc(0)
  for (const link of ['soft', 'hard'] as const) {
    const { submitted } = queue.stats()
    const results = await queue.submit(
      [
        op.read(file, nothing, 0),
        op.write(file, nothing, 5),
        op.linkTimeout(10_000),
        op.timeout(1),
        op.write(file, queue.alloc(0), 0),
        op.fsync(file),
      ],
      { link },
    )
    t.deepEqual(outcomes(results), [0, 0, 'ECANCELED', 0, 0, 0])
    t.is(queue.stats().submitted - submitted, 6)
  }
  assertIdle(t, queue)
})

test('a bound whose time comes first ends what it bounds: ECANCELED and ETIME', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  for (const bounded of [op.timeout(60_000), op.read(stream, queue.alloc(8), 0)]) {
    for (const link of ['soft', 'hard'] as const) {
      const list = [op.nop(), bounded, op.linkTimeout(30), op.nop(), op.nop()]
      const started = performance.now()
      const results = await queue.submit(list, { link })
      t.true(performance.now() - started >= 29)
      const after = link === 'soft' ? 'ECANCELED' : 0
      t.deepEqual(outcomes(results), [0, 'ECANCELED', 'ETIME', after, after], link)
    }
  }
  const absolute = [op.timeout(60_000), op.linkTimeout(performance.now() + 20, { absolute: true })]
  t.deepEqual(outcomes(await queue.submit(absolute, { link: 'soft' })), ['ECANCELED', 'ETIME'])
  assertIdle(t, queue)
})

test('each of a chain may have its own bound', async (t) => {
  const queue = ring(t)
  const list = Array.from({ length: 10 }, () => [op.timeout(2), op.linkTimeout(20_000)]).flat()
  const results = await queue.submit(list, { link: 'soft' })
  t.deepEqual(outcomes(results), times(10, [0, 'ECANCELED']).flat())
  assertIdle(t, queue)
})

test('timeouts are relative, absolute, or of a count of completions', async (t) => {
  const queue = ring(t)
  const started = performance.now()
  const [relative, absolute, past] = await queue.submit([
    op.timeout(40),
    op.timeout(performance.now() + 40.5, { absolute: true }),
    op.timeout(0.25, { absolute: true }),
  ])
  t.deepEqual([relative, absolute, past], [0, 0, 0])
  t.true(performance.now() - started >= 40)
  // One that counts ends with the completions of others, and with ETIME when its time is first.
  const counting = queue.submit([op.timeout(60_000, { count: 3 })])
  queue.flush()
  await queue.nop()
  t.true(await isPending(counting, 20))
  for (let i = 0; i < 3; i++) await queue.nop()
  t.deepEqual(await counting, [0])
  t.deepEqual(outcomes(await queue.submit([op.timeout(10, { count: 1000 })])), ['ETIME'])
  assertIdle(t, queue)
})

test('a chain on a file that was closed: soft ends there, hard goes on without it', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w')
  const sync = op.fsync(file)
  await file.close()
  const list = [op.nop(), sync, op.linkTimeout(1000), op.nop(), op.timeout(1)]
  t.deepEqual(outcomes(await queue.submit(list, { link: 'soft' })), [
    0,
    'EBADF',
    'ECANCELED',
    'ECANCELED',
    'ECANCELED',
  ])
  t.deepEqual(outcomes(await queue.submit(list, { link: 'hard' })), [0, 'EBADF', 'ECANCELED', 0, 0])
  // Its bound goes with it, and bounds nothing else.
  for (const [before, expected] of [
    [[op.timeout(50)], [0]],
    [[], []],
  ]) {
    const bound = [...(before as BatchOperation[]), sync, op.linkTimeout(1), op.nop()]
    t.deepEqual(outcomes(await queue.submit(bound, { link: 'hard' })), [
      ...(expected as number[]),
      'EBADF',
      'ECANCELED',
      0,
    ])
  }
  t.deepEqual(outcomes(await queue.submit([sync, op.nop()], { link: 'soft' })), [
    'EBADF',
    'ECANCELED',
  ])
  t.deepEqual(outcomes(await queue.submit([sync], { link: 'soft' })), ['EBADF'])
  assertIdle(t, queue)
})

test('a sync waits for none that is linked behind what may never end', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const pipe = await queue.open(fifo(t), 'r+')
  for (const link of ['soft', 'hard'] as const) {
    const outcomes = await Promise.all([
      // The first reads what the second writes when it has synced.
      queue.submit([op.read(pipe, Buffer.alloc(1), 0), op.datasync(file)], { link }),
      queue.submit([op.datasync(file), op.write(pipe, Buffer.from('!'), 0)], { link }),
    ])
    t.deepEqual(outcomes, [
      [1, 0],
      [0, 1],
    ])
  }
  const late = queue.submit([op.read(pipe, Buffer.alloc(1), 0), op.datasync(file)], {
    link: 'soft',
  })
  // Before the one that drains, which waits for all that is staged, and beside it.
  const before = [
    file.datasync(),
    queue.commit(file),
    file.writeAt(Buffer.from('x'), 0, { datasync: true }),
  ]
  const drained = queue.submit([op.datasync(file)], { drain: true })
  await Promise.all(before)
  fs.writeSync(pipe.fd, '!')
  t.deepEqual([await late, await drained], [[1, 0], [0]])
  assertIdle(t, queue)
})

// ---- room -----------------------------------------------------------------------------------------

for (const entries of [2, 8, 1024]) {
  test(`a chain as long as a ring of ${entries} goes, one longer is refused and nothing is staged`, async (t) => {
    const queue = ring(t, { entries, cqEntries: entries })
    const at = scratch(t)
    const file = await queue.open(at, 'w')
    const writes = Array.from({ length: entries + 1 }, (_, i) =>
      op.write(file, Buffer.from([i & 255]), i),
    )
    for (const link of ['soft', 'hard'] as const) {
      const { submitted } = queue.stats()
      const error = thrown(() => queue.submit(writes, { link }))
      t.is(error.code, 'ERR_URING_UNSUPPORTED')
      t.regex(error.message, new RegExp(`chain of ${entries + 1} .* has ${entries}`))
      t.is(queue.stats().submitted, submitted)
      await file.truncate()
      const chains = times(3, writes.slice(0, entries)).map((list) => queue.submit(list, { link }))
      for (const results of await Promise.all(chains)) t.deepEqual(results, times(entries, 1))
      t.deepEqual(
        [...fs.readFileSync(at)],
        Array.from({ length: entries }, (_, i) => i & 255),
      )
    }
    assertIdle(t, queue)
  })
}

test('a chain that copies more than there can ever be memory for is refused, and nothing is staged', async (t) => {
  const queue = ring(t, { bounceBytes: 4 * MIB })
  const file = await queue.open(scratch(t), 'w+')
  const direct = await queue.open(file.path as string, 'r', { direct: true })
  const { submitted } = queue.stats()
  const [big, mine] = [Buffer.alloc(MIB + 1), queue.alloc(64 * MIB)]
  for (const list of [
    times(3, op.write(file, big, 0)),
    times(3, op.read(file, big, 0)),
    [op.write(file, Buffer.alloc(5 * MIB), 0)],
    [op.nop(), op.read(file, Buffer.alloc(4 * MIB + 1), 0)],
    // With the blocks around it, which may be needed, each is more than 2 MiB.
    times(2, op.read(direct, Buffer.alloc(2 * MIB), 1)),
    times(2, op.read(direct, mine.subarray(1, 1 + 2 * MIB), 1)),
  ]) {
    const error = thrown(() => queue.submit(list, { link: 'soft' }))
    t.is(error.code, 'ERR_URING_UNSUPPORTED')
    t.regex(error.message, /bounceBytes/)
  }
  t.is(queue.stats().submitted, submitted)
  // In place there is no such limit, nor without links.
  t.deepEqual(await queue.submit([op.write(file, mine, 0)], { link: 'soft' }), [mine.length])
  t.deepEqual(await queue.submit([op.write(file, Buffer.alloc(5 * MIB), 0)]), [5 * MIB])
  assertIdle(t, queue)
})

for (const [what, options] of [
  ['of a file', { arena: { slabBytes: 64 * 1024 } }],
  ['of a direct file', { arena: { slabBytes: 64 * 1024 } }],
  ['of a direct file, in slabs as large as all of it', {}],
] as const) {
  test(`every chain that is not refused goes, however it uses the memory for copies, ${what}`, async (t) => {
    t.timeout(120_000)
    const queue = ring(t, { bounceBytes: 2 * MIB, ...options })
    const content = pattern(2 * MIB)
    const file = await queue.open(scratch(t, content), 'r', { direct: what !== 'of a file' })
    const r = random(5)
    let [went, refused] = [0, 0]
    for (let i = 0; i < 150; i++) {
      const targets = Array.from({ length: 1 + r.below(12) }, () =>
        Buffer.alloc(1 + r.below(2 ** (1 + r.below(21)))),
      )
      const at = targets.map(({ length }) => r.below(content.length - length + 1))
      const list = targets.map((target, index) => op.read(file, target, at[index] as number))
      try {
        const results = await queue.submit(list, { link: 'hard' })
        went++
        t.deepEqual(
          results,
          targets.map((target) => target.length),
        )
        for (const [index, target] of targets.entries()) {
          const from = at[index] as number
          t.is(target.compare(content, from, from + target.length), 0)
        }
      } catch (error) {
        t.is((error as { code?: string }).code, 'ERR_URING_UNSUPPORTED')
        refused++
      }
    }
    t.true(went > 5 && refused > 5, `${went} went, ${refused} were refused`)
    assertIdle(t, queue)
  })
}

test('a chain whose copies fit only when memory is free waits for it, and then goes', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  const content = pattern(2 * MIB)
  const file = await queue.open(scratch(t, content))
  const reading = stream.readAt(Buffer.alloc(MIB), 0)
  const targets = [Buffer.alloc(MIB), Buffer.alloc(MIB)]
  const list = targets.map((target, i) => op.read(file, target, i * MIB))
  const chain = queue.submit(list, { link: 'soft' })
  // What comes later and needs no memory does not wait behind it; what needs some does.
  await queue.nop()
  const later = file.readAt(Buffer.alloc(10), 0)
  t.true(await isPending(Promise.race([chain, later])))
  t.is(queue.stats().waiting, 2)
  fs.writeSync(stream.fd, 'x')
  t.is(await reading, 1)
  t.deepEqual(await chain, [MIB, MIB])
  t.is(await later, 10)
  t.true(Buffer.concat(targets).equals(content))
  assertIdle(t, queue)
})

test.serial(
  'chains, singles and writes with datasync beside 65,536 that wait do not wait for each other for ever',
  async (t) => {
    t.timeout(180_000)
    const queue = ring(t, { entries: 256, bounceBytes: 2 * MIB })
    const stream = await queue.open(fifo(t), 'r+')
    const file = await queue.open(scratch(t, pattern(100_000)), 'r+')
    const arena = queue.alloc(SLOTS)
    const count = SLOTS - 20
    const endless = Array.from({ length: count }, (_, i) =>
      stream.readAt(arena.subarray(i, i + 1), 0),
    )
    const works: Promise<unknown>[] = []
    const target = Buffer.alloc(100)
    for (let i = 0; i < 300; i++) {
      works.push(
        // 19 slots, with the others never free at once but for FIFO order.
        queue
          .submit(times(19, op.read(file, target, i)), { link: i % 2 === 0 ? 'soft' : 'hard' })
          .then((results) => t.deepEqual(results, times(19, 100))),
        queue.nop(),
        file.writeAt(pattern(50), 200_000 + i * 50, { datasync: i % 10 === 0 }),
        file.readAt(Buffer.alloc(70_000), i),
        queue
          .submit([op.write(file, pattern(9), 300_000), op.timeout(0), op.linkTimeout(9999)], {
            link: 'soft',
            drain: false,
          })
          .then((results) => t.deepEqual(outcomes(results), [9, 0, 'ECANCELED'])),
      )
    }
    t.true(queue.stats().waiting > 0)
    await Promise.all(works)
    const outcome = Promise.allSettled(endless)
    await stream.close({ timeoutMs: 0 })
    await outcome
    assertIdle(t, queue)
  },
)

// ---- short writes -----------------------------------------------------------------------------------

needs(test, { root: true })(
  'a short write in a chain on a full file system is an error with its count, and the next link of a soft one does not run',
  async (t) => {
    const queue = ring(t)
    const at = tmpfs(t, MIB)
    const other = await queue.open(scratch(t), 'w')
    for (const mine of [queue.alloc(2 * MIB), Buffer.alloc(2 * MIB)]) {
      for (const link of ['soft', 'hard'] as const) {
        const name = path.join(at, 'file')
        const file = await queue.open(name, 'w')
        await other.truncate()
        const list = [
          op.write(file, mine, 0),
          op.write(other, Buffer.from('the next'), 0),
          op.nop(),
        ]
        const [short, next, last] = await queue.submit(list, { link })
        const { size } = fs.statSync(name)
        t.true(size > 0 && size < 2 * MIB)
        t.like(short, { code: 'ERR_URING_SHORT_WRITE', bytesWritten: size, lengthBytes: 2 * MIB })
        const after = link === 'soft' ? ['ECANCELED', 'ECANCELED'] : [8, 0]
        t.deepEqual(outcomes([next as number, last as number]), after)
        t.is(fs.statSync(other.path as string).size, link === 'soft' ? 0 : 8)
        await file.close()
        fs.rmSync(name)
      }
    }
    assertIdle(t, queue)
  },
)

test('a write in a chain that meets the limit of file sizes is short, and says how much it wrote', async (t) => {
  const at = folder(t)
  const told = await childJson<{ outcomes: unknown[]; sizes: number[] }>(
    `import fs from 'node:fs'
     import { Queue, op } from 'node-uring'
     process.on('SIGXFSZ', () => {})
     const at = process.argv[1]
     const queue = new Queue()
     const file = await queue.open(at + '/limited', 'w')
     const other = await queue.open(at + '/other', 'w')
     const list = [op.write(file, Buffer.alloc(6000), 0), op.write(other, Buffer.from('x'), 0)]
     const results = await queue.submit(list, { link: 'soft' })
     await queue.close()
     const sizes = ['limited', 'other'].map((name) => fs.statSync(at + '/' + name).size)
     console.log(JSON.stringify({ outcomes: results.map(({ code, bytesWritten }) => [code, bytesWritten]), sizes }))`,
    // In blocks of 512 bytes.
    { args: [at], before: 'ulimit -f 8' },
  )
  t.deepEqual(told.sizes, [4096, 0])
  t.deepEqual(told.outcomes[0], ['ERR_URING_SHORT_WRITE', 4096])
  t.is((told.outcomes[1] as unknown[])[0], 'ECANCELED')
})

// ---- use ------------------------------------------------------------------------------------------

async function copy(queue: Queue, from: string, to: string, blockBytes: number): Promise<void> {
  const [source, dest] = [await queue.open(from), await queue.open(to, 'w')]
  const { size } = await source.stat()
  const pairs: Promise<unknown>[] = []
  for (let at = 0; at < size; at += blockBytes) {
    const block = queue.alloc(Math.min(blockBytes, size - at))
    pairs.push(
      queue.submit([op.read(source, block, at), op.write(dest, block, at)], {
        link: 'soft',
        throwOnError: true,
      }),
    )
  }
  await Promise.all(pairs)
  await Promise.all([source.close(), dest.close()])
}

test('a file is copied by linked pairs of a read and a write', async (t) => {
  const queue = ring(t, { entries: 64 })
  const content = pattern(3 * MIB + 77)
  const [from, to] = [scratch(t, content), scratch(t)]
  await copy(queue, from, to, 10_000)
  t.true(fs.readFileSync(to).equals(content))
  assertIdle(t, queue)
})

test('a chain whose buffer goes away while it waits for memory ends whole, and leaves nothing behind', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const stream = await queue.open(fifo(t), 'r+')
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  for (const link of ['soft', 'hard'] as const) {
    const reading = stream.readAt(Buffer.alloc(MIB), 0)
    const [here, gone] = [Buffer.alloc(MIB), Buffer.from(new ArrayBuffer(MIB))]
    const list = [op.write(file, here, 0), op.write(file, gone, MIB), op.nop()]
    const chain = queue.submit(list, { link })
    t.true(await isPending(chain, 20))
    structuredClone(gone.buffer, { transfer: [gone.buffer] })
    fs.writeSync(stream.fd, 'x')
    t.is(await reading, 1)
    const code = 'ERR_URING_BUFFER_DETACHED'
    t.deepEqual(outcomes(await chain), ['ECANCELED', code, 'ECANCELED'], link)
    assertIdle(t, queue)
  }
  t.is(fs.statSync(at).size, 0)
})

/** Chains that a queue with a polling thread does not take once the process is another user. */
const REFUSED = `
import fs from 'node:fs'
import { op, Queue } from 'node-uring'
const queue = new Queue({ sqpoll: { idleMs: 100 } })
const file = await queue.open(process.argv[1], 'w')
process.setuid(65534)
const write = op.write(file, Buffer.alloc(100), 0)
const told = []
for (const link of ['soft', 'hard']) {
  const list = [write, op.open(process.argv[1]), write, op.fsync(file), write]
  told.push((await queue.submit(list, { link })).map((result) => result.code ?? result))
}
const { memory, inFlight, pending } = queue.stats()
const left = [memory.bounce.usedBytes, inFlight, pending, fs.fstatSync(file.fd).size]
await queue.close()
console.log(JSON.stringify({ told, left }))`

needs(test, { root: true })(
  'a chain with what the engine refuses ends whole, and leaves nothing behind',
  async (t) => {
    // What has not been submitted is cancelled, and what is behind it does not begin.
    const chain = ['ECANCELED', 'ERR_URING_CREDENTIALS', ...times(3, 'ECANCELED')]
    const told = await childJson(REFUSED, { args: [scratch(t, Buffer.of())] })
    t.deepEqual(told, { told: [chain, chain], left: [0, 0, 0, 0] })
  },
)

test('what follows a cancelled read in a chain does not begin, though it waits for the copy', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  for (const link of ['soft', 'hard'] as const) {
    const controller = new AbortController()
    const memory = Buffer.alloc(100)
    const list = [op.read(stream, memory, 0), op.write(file, memory, 0)]
    const chain = queue.submit(list, { link, signal: controller.signal })
    t.true(await isPending(chain, 20))
    controller.abort()
    t.deepEqual(outcomes(await chain), ['ABORT_ERR', 'ABORT_ERR'], link)
    t.is(fs.statSync(at).size, 0)
  }
  assertIdle(t, queue)
})

test('a write writes what a read before it in its chain brought, whatever the memory', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const content = pattern(1000)
  const [source, dest] = [await queue.open(scratch(t, content)), await queue.open(at, 'w')]
  for (const memory of [Buffer.alloc(600, 1), queue.alloc(600).fill(1)]) {
    for (const link of ['soft', 'hard'] as const) {
      await dest.truncate()
      memory.fill(1)
      const part = memory.subarray(100, 500)
      const list = [
        op.write(dest, part, 0),
        op.read(source, part, 50),
        op.linkTimeout(10_000),
        op.write(dest, memory, 400),
        op.read(source, part, 700),
        op.write(dest, part, 1000),
      ]
      const results = await queue.submit(list, { link })
      // The second read is short.
      const end = link === 'soft' ? 'ECANCELED' : 400
      t.deepEqual(outcomes(results), [400, 400, 'ECANCELED', 600, 300, end])
      const [ones, first] = [Buffer.alloc(400, 1), content.subarray(50, 450)]
      const expected = [ones, ones.subarray(0, 100), first, ones.subarray(0, 100)]
      if (link === 'hard') expected.push(content.subarray(700), first.subarray(300))
      t.true(fs.readFileSync(at).equals(Buffer.concat(expected)), link)
    }
  }
  assertIdle(t, queue)
})

test('write, fdatasync and rename as one chain replace a file', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  fs.writeFileSync(path.join(at, 'file'), 'old')
  const file = await queue.open(path.join(at, 'new'), 'w')
  const chain = [
    op.write(file, Buffer.from('new content'), 0),
    op.datasync(file),
    op.rename(path.join(at, 'new'), path.join(at, 'file')),
  ]
  t.deepEqual(await queue.submit(chain, { link: 'soft' }), [11, 0, 0])
  t.deepEqual(fs.readdirSync(at), ['file'])
  t.is(fs.readFileSync(path.join(at, 'file'), 'utf8'), 'new content')
  assertIdle(t, queue)
})

for (const taskRun of ['interrupt', 'cooperative', 'defer'] as const) {
  test(`what a chain reads into memory by a copy is there before what follows uses it, ${taskRun}`, async (t) => {
    const queue = ring(t, { setup: { taskRun } })
    const source = await queue.open(scratch(t, Buffer.alloc(65_536, 'A')), 'r', { direct: true })
    const file = await queue.open(scratch(t), 'w+')
    const mine = queue.alloc(4096)
    const place = [mine] as const
    const followers = [
      () => op.write(file, mine, 0),
      ...(BACKEND === 'node:fs' ? [] : [() => op.writev(file, place, 0)]),
      () => op.write(file, mine.subarray(4000), 4000),
    ]
    for (const link of ['soft', 'hard'] as const) {
      for (const follower of followers) {
        mine.fill('z')
        // From within a block: a direct file has it copied.
        const chain = queue.submit([op.read(source, mine, 1), follower()], { link })
        queue.flush()
        // The thread computes, and the kernel would go on by itself.
        for (const since = performance.now(); performance.now() - since < 10; );
        const [read, written] = await chain
        t.is(read, 4096)
        t.is((await file.bytesAt(4096 - Number(written), 4096)).toString('latin1', 0, 3), 'AAA')
        await file.truncate()
      }
      // A later read of the same place comes later.
      mine.fill('z')
      await file.writeAt(Buffer.alloc(4096, 'B'), 0)
      const list = [op.read(source, mine, 1), op.read(file, mine, 0)]
      t.deepEqual(await queue.submit(list, { link }), [4096, 4096])
      t.is(mine.toString('latin1', 0, 3), 'BBB')
    }
    assertIdle(t, queue)
  })
}
