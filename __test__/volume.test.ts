// readMany, writeMany and nops: typed arrays in, one array of counts out, however many and however
// small the ring. Guard bytes show that nothing is written but what was read.

import fs from 'node:fs'
import path from 'node:path'
import { setImmediate, setTimeout } from 'node:timers/promises'
import { POLL } from 'node-uring'
import { checkMany, GUARD, MEMORIES } from './helpers/guards.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, type Caught, isPending, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { BACKEND, type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20
const EBADF = 9

for (const [what, memory] of Object.entries(MEMORIES)) {
  test(`readMany takes positions of every kind, into memory that is ${what}`, async (t) => {
    const queue = ring(t)
    const content = pattern(10_000)
    const file = await queue.open(scratch(t, content))
    const numbers = [0, 9990, 5000, 20_000, 1, 10_000, 0]
    const kinds = [
      Float64Array.from(numbers),
      Uint32Array.from(numbers),
      Int32Array.from(numbers),
      BigInt64Array.from(numbers.map(BigInt)),
      BigUint64Array.from(numbers.map(BigInt)),
    ]
    for (const positions of kinds) {
      const one = memory(queue, 7 * 100 + 50)
      checkMany(
        t,
        content,
        numbers,
        numbers.map(() => 100),
        await file.readMany(positions, 100, one),
        one,
      )
      const lengths = [10, 300, 0, 5, 1, 0, 7]
      const many = memory(queue, 400)
      const counts = await file.readMany(positions, Uint32Array.from(lengths), many)
      checkMany(t, content, numbers, lengths, counts, many)
    }
    const nothing = await file.readMany(new Float64Array(0), 4096, Buffer.alloc(0))
    t.is(nothing.length, 0)
    const zeroes = await file.readMany(new Float64Array(3), 0, Buffer.alloc(0))
    t.deepEqual([...zeroes], [0, 0, 0])
    assertIdle(t, queue)
  })

  test(`writeMany puts every part where it belongs, from memory that is ${what}`, async (t) => {
    const queue = ring(t)
    const at = scratch(t)
    const file = await queue.open(at, 'w')
    const source = memory(queue, 64 * 1000)
    pattern(64 * 1000).copy(source)
    // In reverse order: the last part lies at the beginning.
    const positions = Float64Array.from({ length: 1000 }, (_, i) => (999 - i) * 64)
    const counts = await file.writeMany(positions, 64, source)
    t.true(counts.every((count) => count === 64))
    const written = fs.readFileSync(at)
    for (let i = 0; i < 1000; i++) {
      const part = written.subarray((999 - i) * 64, (1000 - i) * 64)
      if (!part.equals(source.subarray(i * 64, i * 64 + 64))) t.fail(`part ${i}`)
    }
    const lengths = Uint32Array.of(0, 5, 100, 1)
    t.deepEqual(
      [...(await file.writeMany(BigInt64Array.of(0n, 100n, 200n, 400n), lengths, source))],
      [0, 5, 100, 1],
    )
    t.true(fs.readFileSync(at).subarray(200, 300).equals(source.subarray(5, 105)))
    assertIdle(t, queue)
  })

  test(`more than a part holds and more than the ring has entries, ${what}`, async (t) => {
    const content = pattern(100_000)
    const name = scratch(t, content)
    for (const entries of [2, 1024]) {
      const queue = ring(t, { entries, cqEntries: entries, bounceBytes: 2 * MIB }, 120_000)
      const file = await queue.open(name)
      const r = random(entries)
      const positions = Float64Array.from({ length: 40_000 }, () => r.below(99_900))
      const target = memory(queue, 40_000 * 100)
      const counts = await file.readMany(positions, 100, target)
      t.true(counts.every((count) => count === 100))
      let wrong = 0
      for (const [i, position] of positions.entries()) {
        if (target.compare(content, position, position + 100, i * 100, i * 100 + 100) !== 0) wrong++
      }
      t.is(wrong, 0)
      assertIdle(t, queue)
    }
  })

  test(`what fails gives its errno among the others, ${what}`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, pattern(100))
    const [readOnly, writeOnly] = [await queue.open(at, 'r'), await queue.open(scratch(t), 'w')]
    const mine = memory(queue, 30)
    const positions = Float64Array.of(0, 10, 20)
    t.deepEqual([...(await writeOnly.readMany(positions, 10, mine))], [-EBADF, -EBADF, -EBADF])
    t.true(mine.every((byte) => byte === GUARD))
    t.deepEqual([...(await readOnly.writeMany(positions, 10, mine))], [-EBADF, -EBADF, -EBADF])
    const far = BigInt64Array.of(0n, 2n ** 63n - 20n, 50n)
    const counts = await readOnly.readMany(far, 10, mine)
    t.deepEqual([counts[0], counts[2]], [10, 10])
    t.true((counts[1] as number) <= 0)
    t.true(mine.subarray(10, 20).every((byte) => byte === GUARD))
    assertIdle(t, queue)
  })
}

test('what is wrong with the arguments throws, and stages nothing', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)), 'r+')
  const appending = await queue.open(file.path as string, 'a')
  const [two, target] = [Float64Array.of(0, 1), Buffer.alloc(20)]
  const { submitted } = queue.stats()
  const [TYPE, VALUE, RANGE] = ['ERR_INVALID_ARG_TYPE', 'ERR_INVALID_ARG_VALUE', 'ERR_OUT_OF_RANGE']
  const moved = new Uint8Array(64)
  structuredClone(moved, { transfer: [moved.buffer] })
  const cases: [string, unknown[]][] = [
    [TYPE, [[0, 1], 10, target]],
    [TYPE, [undefined, 10, target]],
    [TYPE, [new Float32Array(2), 10, target]],
    [TYPE, [new Uint8Array(2), 10, target]],
    [RANGE, [Float64Array.of(0, -1), 10, target]],
    [RANGE, [Float64Array.of(0, 0.5), 10, target]],
    [RANGE, [Float64Array.of(0, Number.NaN), 10, target]],
    [RANGE, [Float64Array.of(0, -0), 10, target]],
    [RANGE, [Float64Array.of(0, 2 ** 53), 10, target]],
    [RANGE, [Int32Array.of(0, -1), 10, target]],
    [RANGE, [BigInt64Array.of(0n, -1n), 10, target]],
    [RANGE, [BigUint64Array.of(0n, 2n ** 63n), 10, target]],
    [TYPE, [two, '10', target]],
    [TYPE, [two, [10, 10], target]],
    [TYPE, [two, new Float64Array(2), target]],
    [RANGE, [two, -1, target]],
    [RANGE, [two, 1.5, target]],
    [RANGE, [two, 11, target]],
    [RANGE, [two, 2 ** 31, target]],
    [RANGE, [two, Uint32Array.of(10, 11), target]],
    [RANGE, [two, Uint32Array.of(0, 2 ** 32 - 1), target]],
    [VALUE, [two, Uint32Array.of(1), target]],
    [VALUE, [two, Uint32Array.of(1, 1, 1), target]],
    [TYPE, [two, 10, 'target']],
    [TYPE, [two, 10, new ArrayBuffer(20)]],
    [TYPE, [two, 10, undefined]],
    [TYPE, [two, 10, target, null]],
    [TYPE, [two, 10, target, { onProgress: 1 }]],
    [TYPE, [two, 10, target, { signal: 1 }]],
    [RANGE, [two, 10, target, { timeoutMs: -1 }]],
    ['ERR_URING_BUFFER_DETACHED', [two, 0, moved]],
    ['ERR_URING_BUFFER_DETACHED', [new Float64Array(0), 0, moved]],
  ]
  for (const [index, [code, args]] of cases.entries()) {
    for (const method of ['readMany', 'writeMany'] as const) {
      const call = file[method] as unknown as (...args: unknown[]) => unknown
      const error = thrown(() => call.apply(file, args), `${method}, case ${index}`)
      t.is(error.code, code, error.message)
    }
  }
  t.is(thrown(() => appending.writeMany(two, 1, target)).code, 'ERR_URING_APPEND')
  for (const [code, count] of [
    [RANGE, -1],
    [RANGE, 0.5],
    [TYPE, '1'],
    [TYPE, undefined],
  ]) {
    t.is(thrown(() => queue.nops(count as number)).code, code)
  }
  t.is(queue.stats().submitted, submitted)
  await file.close()
  await appending.close()
  t.is((await rejection(file.readMany(two, 1, target))).message, 'EBADF: bad file descriptor, read')
  t.is((await rejection(file.readMany(two.subarray(2), 1, target))).code, 'EBADF')
  const signal = AbortSignal.abort()
  t.is((await rejection(queue.nops(0, { signal }))).code, 'ABORT_ERR')
  await queue.close()
  for (const count of [0, 1]) {
    t.is((await rejection(queue.nops(count))).code, 'ERR_URING_CLOSED')
  }
})

// ---- direct -----------------------------------------------------------------------------------------

test('a direct file is read and written by whole blocks together, and others one by one', async (t) => {
  const queue = ring(t)
  const content = pattern(1 << 18)
  const at = scratch(t, content, process.cwd())
  const file = await queue.open(at, 'r+', { direct: true })
  const block = Math.max(512, file.alignment?.offsetBytes ?? 0, file.alignment?.memoryBytes ?? 0)
  const blocks = Float64Array.from({ length: 32 }, (_, i) => ((i * 7) % 32) * block)
  for (const memory of Object.values(MEMORIES)) {
    const target = memory(queue, 32 * block + 64)
    checkMany(
      t,
      content,
      [...blocks],
      [...blocks].map(() => block),
      await file.readMany(blocks, block, target),
      target,
    )
    // Of any length, anywhere, beyond the end too.
    const positions = [3, content.length - 5, 1000, content.length + 10, 0]
    const lengths = [10, 20, 5000, 10, 1]
    const odd = memory(queue, 6000)
    const counts = await file.readMany(Float64Array.from(positions), Uint32Array.from(lengths), odd)
    checkMany(t, content, positions, lengths, counts, odd)
    // Of whole blocks, but not where blocks begin.
    const between = [1, block * 4 + 7, block * 9]
    for (const places of [
      Float64Array.from(between),
      BigInt64Array.from(between.map((place) => BigInt(place))),
    ]) {
      const across = memory(queue, 3 * block)
      const brought = await file.readMany(places, block, across)
      checkMany(t, content, between, [block, block, block], brought, across)
    }
    // Aligned, but the memory is not.
    const shifted = memory(queue, 32 * block + 1).subarray(1)
    checkMany(
      t,
      content,
      [...blocks],
      [...blocks].map(() => block),
      await file.readMany(blocks, block, shifted),
      shifted,
    )
  }
  const source = queue.alloc(4 * block)
  pattern(4 * block, 77).copy(source)
  const places = Float64Array.of(block * 3, 0, block, block * 2)
  for (const mine of [source, Buffer.from(source)]) {
    t.deepEqual([...(await file.writeMany(places, block, mine))], [block, block, block, block])
    const back = fs.readFileSync(at)
    for (const [i, place] of places.entries()) {
      t.true(
        back.subarray(place, place + block).equals(source.subarray(i * block, (i + 1) * block)),
      )
    }
  }
  t.is(
    thrown(() => file.writeMany(Float64Array.of(0, 1), block, source)).code,
    'ERR_URING_ALIGNMENT',
  )
  t.is(
    thrown(() => file.writeMany(Float64Array.of(0), block - 1, source)).code,
    'ERR_URING_ALIGNMENT',
  )
  assertIdle(t, queue)
})

needs(test, { root: true })(
  'one by one, too, a write that a full file system cuts short says how much it wrote',
  async (t) => {
    const queue = ring(t)
    const at = path.join(tmpfs(t, 4 * MIB), 'file')
    const file = await queue.open(at, 'w')
    // Too long to go together.
    const counts = await file.writeMany(Float64Array.of(0), 6 * MIB, Buffer.alloc(6 * MIB))
    t.deepEqual([...counts], [fs.statSync(at).size])
    await file.close()
    assertIdle(t, queue)
  },
)

// ---- what changes meanwhile -------------------------------------------------------------------------

test('a close with a time ends a call that still asks what kind of file it has', async (t) => {
  const queue = ring(t)
  for (const memory of Object.values(MEMORIES)) {
    const file = await queue.open(fifo(t), 'r+')
    const target = memory(queue, 8)
    const reading = file.readMany(Float64Array.of(0, 0), 4, target)
    const closing = file.close({ timeoutMs: 0 })
    t.is((await rejection(reading)).code, 'ABORT_ERR')
    await closing
  }
  assertIdle(t, queue)
})

test('disposing of a queue or file between two parts ends a readMany whose next part would wait', async (t) => {
  for (const what of ['queue', 'file'] as const) {
    for (const memory of Object.values(MEMORIES)) {
      const queue = ring(t)
      const stream = await queue.open(fifo(t), 'r+')
      // What the first part reads, and no more.
      fs.writeSync(stream.fd, Buffer.alloc(16_384))
      let ended: Promise<void> | undefined
      const onProgress = () => {
        ended ??= (what === 'queue' ? queue : stream)[Symbol.asyncDispose]()
      }
      const target = memory(queue, 100_000)
      const reading = stream.readMany(new Float64Array(100_000), 1, target, { onProgress })
      t.is((await rejection(reading)).code, 'ABORT_ERR')
      await ended
      await queue.close()
    }
  }
})

test('what the caller does to its arrays of numbers afterwards changes nothing', async (t) => {
  const queue = ring(t, { entries: 2 })
  const content = pattern(50_000)
  const file = await queue.open(scratch(t, content))
  for (const memory of Object.values(MEMORIES)) {
    for (const positions of [
      Float64Array.from({ length: 20_000 }, (_, i) => i),
      BigInt64Array.from({ length: 20_000 }, (_, i) => BigInt(i)),
      BigUint64Array.from({ length: 20_000 }, (_, i) => BigInt(i)),
    ]) {
      const lengths = new Uint32Array(20_000).fill(2)
      const target = memory(queue, 40_010)
      const reading = file.readMany(positions, lengths, target)
      // Zeros as numbers and as bigints.
      new Uint8Array(positions.buffer).fill(0)
      lengths.fill(2 ** 32 - 1)
      structuredClone(positions, { transfer: [positions.buffer as ArrayBuffer] })
      const counts = await reading
      const [numbers, sizes] = [[...Array(20_000).keys()], new Array<number>(20_000).fill(2)]
      checkMany(t, content, numbers, sizes, counts, target)
    }
  }
  assertIdle(t, queue)
})

for (const positions of [100, 4000]) {
  test(`a plain target that is transferred while ${positions} reads are under way gets nothing more, and the call rejects`, async (t) => {
    const queue = ring(t)
    const file = await queue.open(scratch(t, pattern(8192)))
    await file.readMany(new Float64Array(1), 1, Buffer.alloc(1))
    const target = new Uint8Array(positions * 4096)
    const reading = rejection(file.readMany(new Float64Array(positions), 4096, target))
    queue.flush()
    const moved = structuredClone(target, { transfer: [target.buffer] })
    const error = await reading
    t.is(error.code, 'ERR_URING_BUFFER_DETACHED')
    t.true(moved.every((byte) => byte === 0))
    assertIdle(t, queue)
  })
}

test('a plain source that is transferred is written as far as it was copied, and the call says how far', async (t) => {
  const queue = ring(t, { bounceBytes: 4 * MIB })
  const at = scratch(t)
  const file = await queue.open(at, 'w')
  const source = new Uint8Array(16 * MIB).fill(9)
  const positions = Float64Array.from({ length: 4096 }, (_, i) => i * 4096)
  const writing = rejection(
    file.writeMany(positions, 4096, source, {
      onProgress() {
        if (source.byteLength > 0) structuredClone(source, { transfer: [source.buffer] })
      },
    }),
  )
  const error = await writing
  t.is(error.code, 'ERR_URING_BUFFER_DETACHED')
  const nines = fs.readFileSync(at).filter((byte) => byte === 9).length
  t.is(error.bytesWritten, nines)
  t.true(nines > 0 && nines < 16 * MIB)
  assertIdle(t, queue)
})

test('readMany that was called before its file or queue is closed is done to its end', async (t) => {
  for (const what of ['file', 'queue'] as const) {
    for (const memory of Object.values(MEMORIES)) {
      const queue = ring(t)
      const file = await queue.open(scratch(t, pattern(1000)))
      const target = memory(queue, 400_000)
      const reading = file.readMany(new Float64Array(100_000), 4, target)
      await (what === 'file' ? file : queue).close()
      t.true(
        (await reading).every((count) => count === 4),
        what,
      )
    }
  }
})

// ---- limits -----------------------------------------------------------------------------------------

/** Waits until there is nothing to read in a FIFO, whose readers may be kernel workers. */
async function emptied(t: ExecutionContext, name: string): Promise<void> {
  const queue = ring(t)
  const stream = await queue.open(name, 'r+')
  const isReadable = (): Promise<boolean> =>
    stream.poll(POLL.IN, { timeoutMs: 100 }).then(
      () => true,
      () => false,
    )
  while (await isReadable()) await setTimeout(5)
  await queue.close()
}

for (const [what, memory] of Object.entries(MEMORIES)) {
  test(`writeMany that is aborted says exactly how many bytes are in the file, ${what}`, async (t) => {
    const queue = ring(t, { bounceBytes: 2 * MIB })
    for (let round = 0; round < 8; round++) {
      const at = scratch(t)
      const file = await queue.open(at, 'w')
      const source = memory(queue, 16 * MIB).fill(1)
      const positions = Float64Array.from({ length: 4096 }, (_, i) => i * 4096)
      const controller = new AbortController()
      let calls = 0
      const outcome = await file
        .writeMany(positions, 4096, source, {
          signal: controller.signal,
          onProgress() {
            if (++calls === round) controller.abort()
          },
        })
        .catch((error: Caught) => error)
      if (round === 0) controller.abort()
      const ones = fs.readFileSync(at).reduce((sum, byte) => sum + byte, 0)
      if (outcome instanceof Error) {
        t.is(outcome.code, 'ABORT_ERR')
        t.is(outcome.bytesWritten, ones, `round ${round}`)
      } else {
        t.is(ones, 16 * MIB)
        t.true(outcome.every((count) => count === 4096))
      }
      await file.close()
      if (source.buffer.byteLength === 16 * MIB && what === 'in place') queue.free(source)
    }
    assertIdle(t, queue)
  })

  test(`readMany of a FIFO ends by its signal, and what had come is there, ${what}`, async (t) => {
    const queue = ring(t)
    const name = fifo(t)
    const stream = await queue.open(name, 'r+')
    fs.writeSync(stream.fd, Buffer.alloc(30, 7))
    const target = memory(queue, 4000)
    const controller = new AbortController()
    const { signal } = controller
    const { submitted } = queue.stats()
    const begun = submitted + (BACKEND === 'io_uring' ? 400 : 1)
    const reading = rejection(stream.readMany(new Float64Array(400), 10, target, { signal }))
    while (queue.stats().submitted < begun) await setImmediate()
    if (BACKEND === 'io_uring') await emptied(t, name)
    // node:fs may not have come to the three that there are bytes for: they are taken back then.
    else await setTimeout(50)
    controller.abort()
    const error = await reading
    t.is(error.code, 'ABORT_ERR')
    t.is(error.bytesWritten, undefined)
    const came = target.filter((byte) => byte === 7).length
    t.is(target.filter((byte) => byte === GUARD).length, 4000 - came)
    t.true(BACKEND === 'node:fs' || came === 30)
    // Nothing is lost, and nothing is there twice.
    const rest = fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    t.teardown(() => fs.closeSync(rest))
    if (came < 30) t.is(fs.readSync(rest, Buffer.alloc(31)), 30 - came)
    assertIdle(t, queue)
  })

  test(`a FIFO is not filled: one read is one read, ${what}`, async (t) => {
    const queue = ring(t)
    const stream = await queue.open(fifo(t), 'r+')
    fs.writeSync(stream.fd, Buffer.alloc(25, 7))
    const target = memory(queue, 40)
    // What comes before all of them have begun would fill the third of a call of four.
    const counts = [...(await stream.readMany(new Float64Array(3), 10, target))]
    t.deepEqual(counts.sort(), [10, 10, 5].sort())
    const reading = stream.readMany(new Float64Array(1), 10, target.subarray(30))
    t.true(await isPending(reading))
    fs.writeSync(stream.fd, Buffer.alloc(3, 8))
    t.deepEqual([...(await reading)], [3])
    t.is(target.filter((byte) => byte === GUARD).length, 12)
    assertIdle(t, queue)
  })
}

test('progress is told in order and ends with all of them, and what it throws ends the call', async (t) => {
  const queue = ring(t, { bounceBytes: 2 * MIB })
  const file = await queue.open(scratch(t, pattern(5000)))
  for (const memory of Object.values(MEMORIES)) {
    for (const [count, length] of [
      [50_000, 64],
      [1, 8],
      [16_385, 1],
      [5, 2 * MIB],
      // Longer than there is memory to copy it through at once.
      [2, 3 * MIB],
    ] as const) {
      const told: [number, number][] = []
      await file.readMany(new Float64Array(count), length, memory(queue, count * length), {
        onProgress: (done, total) => void told.push([done, total]),
      })
      t.true(told.every(([, total]) => total === count))
      t.true(told.every(([done], i) => done > (told[i - 1]?.[0] ?? 0)))
      t.is(told.at(-1)?.[0], count)
    }
  }
  const boom = new Error('from onProgress')
  const error = await rejection(
    file.readMany(new Float64Array(40_000), 4, Buffer.alloc(160_000), {
      onProgress() {
        throw boom
      },
    }),
  )
  t.is(error, boom)
  // Of several that fail the first is told of; a read says nothing of bytes.
  let calls = 0
  const first = await rejection(
    file.readMany(new Float64Array(200), 65_536, Buffer.alloc(200 * 65_536), {
      onProgress() {
        throw new Error(`${++calls}`)
      },
    }),
  )
  t.deepEqual([first.message, first.bytesWritten], ['1', undefined])
  t.true(calls > 1)
  // A few parts are under way by then, and no others begin.
  const at = scratch(t)
  const target = await queue.open(at, 'w')
  const source = Buffer.alloc(64 * MIB)
  const positions = Float64Array.from({ length: 1024 }, (_, i) => i * 65_536)
  const onProgress = () => {
    throw boom
  }
  t.is(await rejection(target.writeMany(positions, 65_536, source, { onProgress })), boom)
  t.true(fs.statSync(at).size < 32 * MIB)
  await target.close()
  assertIdle(t, queue)
})

test('progress counts what is done in whatever order it ends, and of much that goes in place, too', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(65_536)))
  const told: number[] = []
  const onProgress = (done: number) => void told.push(done)
  // Too long to go together: the second has nothing to wait for.
  await file.readMany(new Float64Array(2), Uint32Array.of(2 * MIB, 0), Buffer.alloc(2 * MIB), {
    onProgress,
  })
  t.deepEqual(told.splice(0), [1, 2])
  await file.readMany(new Float64Array(512), 65_536, queue.alloc(32 * MIB), { onProgress })
  t.true(told.length > 2, told.join())
  assertIdle(t, queue)
})

for (const [what, memory] of Object.entries(MEMORIES)) {
  test(`writeMany to a pipe that is full ends by its signal, and says what it wrote, ${what}`, async (t) => {
    const queue = ring(t)
    const name = fifo(t)
    const stream = await queue.open(name, 'r+')
    // All of one part.
    const source = memory(queue, 16 * 8192)
    const controller = new AbortController()
    const { signal } = controller
    const writing = rejection(stream.writeMany(new Float64Array(16), 8192, source, { signal }))
    t.true(await isPending(writing))
    controller.abort()
    const { code, bytesWritten } = await writing
    const reader = fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    t.teardown(() => fs.closeSync(reader))
    const came = fs.readSync(reader, Buffer.alloc(16 * 8192))
    t.true(came > 0 && came < 16 * 8192)
    t.deepEqual([code, bytesWritten], ['ABORT_ERR', came])
    assertIdle(t, queue)
  })
}

test('reads that go one by one end by their signal', async (t) => {
  const queue = ring(t)
  const stream = await queue.open(fifo(t), 'r+')
  for (const waits of [false, true]) {
    const controller = new AbortController()
    const { signal } = controller
    const target = Buffer.alloc(4 * MIB)
    const reading = rejection(stream.readMany(new Float64Array(2), 2 * MIB, target, { signal }))
    if (waits) await queue.sleep(20)
    controller.abort()
    t.is((await reading).code, 'ABORT_ERR')
  }
  assertIdle(t, queue)
})

test('a wrong one among many positions and lengths is named by its index', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(100)))
  const target = Buffer.alloc(100)
  const { submitted } = queue.stats()
  const calls: [() => unknown, RegExp][] = [
    [() => file.readMany(Float64Array.of(0, 1, -5), 10, target), /"positions\[2\]".*-5$/],
    [() => file.readMany(Float64Array.of(0, 0.5), 10, target), /"positions\[1\]".*0\.5$/],
    [() => file.readMany(BigInt64Array.of(-1n), 10, target), /"positions\[0\]".*-1n$/],
    [
      () => file.readMany(Float64Array.of(0, 1), Uint32Array.of(1, 2 ** 32 - 1), target),
      /"lengths\[1\]"/,
    ],
    // One more than a read has, whatever memory there is.
    [
      () => file.readMany(Float64Array.of(0, 1), Uint32Array.of(1, 0x7ffff001), target),
      /"lengths\[1\]".*2147479552/,
    ],
    [() => file.readMany(Float64Array.of(0, 1), -1, target), /"lengths"/],
  ]
  for (const [call, message] of calls) {
    const error = thrown(call)
    t.is(error.code, 'ERR_OUT_OF_RANGE')
    t.regex(error.message, message)
  }
  t.is(queue.stats().submitted, submitted)
})
