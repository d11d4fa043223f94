// Bytes go into a file and come back: every size, every kind of buffer, every position.
// node:fs is the witness: it writes what is read here and reads what is written here.

import fs from 'node:fs'
import {
  asBuffer,
  assertBytes,
  assertGuards,
  GUARD,
  GUARD_BYTES,
  guarded,
  SOURCES,
  type Source,
} from './helpers/guards.js'
import { pattern, random } from './helpers/random.js'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const KIB = 1024
const MIB = 1024 * KIB
const SEED = 20_240_229
const SIZES: readonly number[] = [
  ...[0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 131_071, 131_072, 131_073],
  ...[MIB - 1, MIB, MIB + 1, 3 * MIB],
  ...Array.from(
    { length: 8 },
    (
      (r) => () =>
        1 + r.below(300_000)
    )(random(SEED)),
  ),
]

for (const [from, source] of Object.entries(SOURCES)) {
  for (const [into, target] of Object.entries(SOURCES)) {
    test(`what is written from ${from} memory is read into ${into} memory at every size`, async (t) => {
      const queue = ring(t)
      const path = scratch(t)
      const file = await queue.open(path, 'w+')
      const witness = fs.openSync(path, 'r')
      t.teardown(() => fs.closeSync(witness))
      for (const [index, size] of SIZES.entries()) {
        const position = index * 5 * MIB + index
        const content = pattern(size, SEED + index)
        const out = source(queue, size)
        out.bytes.set(content)
        t.is(await file.writeAt(out.view, position), size)

        const seen = Buffer.alloc(size)
        t.is(fs.readSync(witness, seen, 0, size, position), size)
        assertBytes(t, seen, content, `${size} bytes in the file`)

        const back = target(queue, size)
        t.is(await file.readAt(back.view, position), size)
        assertBytes(t, back.bytes, content, `${size} bytes read`)
        assertGuards(t, back, `${size} bytes`)
      }
      assertIdle(t, queue)
    })
  }
}

const Resizable = ArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => ArrayBuffer

/** Every kind of view there is, of a length that is a multiple of 8, with memory around it. */
const KINDS: Readonly<Record<string, Source>> = {
  Buffer: SOURCES.plain,
  'a pooled Buffer': (_, length) => {
    const whole = Buffer.allocUnsafe(length + 2 * GUARD_BYTES)
    return guarded(whole, length, asBuffer)
  },
  'Uint8Array at an odd offset': (_, length) =>
    guarded(new Uint8Array(length + 99), length, (b, o, l) => new Uint8Array(b, o, l), 33),
  Uint8ClampedArray: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new Uint8ClampedArray(b, o, l)),
  Int8Array: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new Int8Array(b, o, l)),
  Uint16Array: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new Uint16Array(b, o, l / 2)),
  Float32Array: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new Float32Array(b, o, l / 4)),
  Float64Array: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new Float64Array(b, o, l / 8)),
  BigInt64Array: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new BigInt64Array(b, o, l / 8)),
  DataView: (_, length) =>
    guarded(new Uint8Array(length + 128), length, (b, o, l) => new DataView(b, o, l), 61),
  'Uint8Array over a SharedArrayBuffer': (_, length) => {
    const whole = new Uint8Array(new SharedArrayBuffer(length + 128))
    return guarded(whole, length, (b, o, l) => new Uint8Array(b, o, l))
  },
  'DataView over a SharedArrayBuffer': (_, length) => {
    const whole = new Uint8Array(new SharedArrayBuffer(length + 128))
    return guarded(whole, length, (b, o, l) => new DataView(b, o, l))
  },
  'Uint32Array over a resizable ArrayBuffer': (_, length) => {
    const buffer = new Resizable(length + 128, { maxByteLength: length + 4096 })
    return guarded(new Uint8Array(buffer), length, (b, o, l) => new Uint32Array(b, o, l / 4))
  },
  'Uint8Array that tracks the length of a resizable ArrayBuffer': (_, length) => {
    const buffer = new Resizable(GUARD_BYTES + length, { maxByteLength: length + 4096 })
    return guarded(new Uint8Array(buffer), length, (b, o) => new Uint8Array(b, o))
  },
  'Uint8Array of a subclass': (_, length) => {
    class Mine extends Uint8Array {}
    return guarded(
      new Uint8Array(length + 128),
      length,
      (b, o, l) => new Mine(b as ArrayBuffer, o, l),
    )
  },
  'subarray of an alloc buffer': (queue, length) => {
    const whole = queue.alloc(length + 99)
    return guarded(whole, length, (_, o, l) => whole.subarray(o, o + l), 35)
  },
  'Uint16Array over an alloc buffer': (queue, length) =>
    guarded(queue.alloc(length + 128), length, (b, o, l) => new Uint16Array(b, o, l / 2)),
  'DataView over an alloc buffer': (queue, length) =>
    guarded(queue.alloc(length + 128), length, (b, o, l) => new DataView(b, o, l), 1),
}

for (const [kind, make] of Object.entries(KINDS)) {
  test(`a ${kind} is written from and read into, and nothing around it is touched`, async (t) => {
    const queue = ring(t)
    const path = scratch(t)
    const file = await queue.open(path, 'w+')
    for (const length of [8, 4096, 24_000, 200_000]) {
      const content = pattern(length)
      const out = make(queue, length)
      out.bytes.set(content)
      t.is(await file.writeAt(out.view, 3), length)
      assertGuards(t, out, `${length} written`)
      assertBytes(t, fs.readFileSync(path).subarray(3, 3 + length), content, `${length} written`)
      const back = make(queue, length)
      t.is(await file.readAt(back.view, 3), length)
      assertBytes(t, back.bytes, content, `${length} read`)
      assertGuards(t, back, `${length} read`)
    }
    assertIdle(t, queue)
  })
}

test('only buffers that are not from alloc are copied on their way', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(10_000)), 'r+')
  const mine = queue.alloc(8192)
  await file.readAt(mine.subarray(7, 4103), 1)
  await file.writeAt(new DataView(mine.buffer, 5, 999), 3)
  t.is(queue.stats().bouncedBytes, 0)
  await file.readAt(new Uint8Array(1000), 0)
  t.is(queue.stats().bouncedBytes, 1000)
})

test('positions past 4 GiB reach the byte they name, as numbers and as bigints', async (t) => {
  const queue = ring(t)
  const path = scratch(t)
  const file = await queue.open(path, 'w+')
  const positions = [2 ** 31 - 3, 2 ** 32 - 3, 2 ** 32 + 100, 2 ** 33 + 1, 2 ** 40 + 12_345]
  for (const [index, position] of positions.entries()) {
    const asNumber = pattern(5, index)
    const asBigint = pattern(6, 100 + index)
    t.is(await file.writeAt(asNumber, position), 5)
    t.is(await file.writeAt(asBigint, BigInt(position) + 5n), 6)
  }
  const witness = fs.openSync(path, 'r')
  t.teardown(() => fs.closeSync(witness))
  for (const [index, position] of positions.entries()) {
    const expected = Buffer.concat([pattern(5, index), pattern(6, 100 + index)])
    const seen = Buffer.alloc(11)
    fs.readSync(witness, seen, 0, 11, position)
    assertBytes(t, seen, expected, `at ${position}, by node:fs`)
    assertBytes(t, await file.bytesAt(position, 11), expected, `at ${position}`)
    assertBytes(t, await file.bytesAt(BigInt(position), 11), expected, `at ${position}n`)
  }
  t.is((await file.stat()).size, 2 ** 40 + 12_345 + 11)
})

/** tmpfs alone has files of 2^63 bytes everywhere. */
const memoryTest = needs(test, {
  that: { holds: fs.existsSync('/dev/shm'), reason: 'needs /dev/shm' },
})

memoryTest('positions around 2^53 and up to 2^62 are exact', async (t) => {
  const queue = ring(t)
  const path = scratch(t, undefined, '/dev/shm')
  const file = await queue.open(path, 'w+')
  const witness = fs.openSync(path, 'r')
  t.teardown(() => fs.closeSync(witness))
  const last = Number.MAX_SAFE_INTEGER
  for (const position of [last - 4096, last - 1, last, 2n ** 53n + 1n, 2n ** 62n + 3n]) {
    const content = pattern(2, Number(BigInt(position) % 1000n))
    t.is(await file.writeAt(content, position), 2)
    const seen = Buffer.alloc(2)
    fs.readSync(witness, seen, 0, 2, position as number)
    assertBytes(t, seen, content, `at ${position}, by node:fs`)
    assertBytes(t, await file.bytesAt(position, 2), content, `at ${position}`)
  }
})

memoryTest('a transfer in pieces that crosses 2^53 keeps its place', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, undefined, '/dev/shm'), 'w+')
  const content = pattern(3 * MIB)
  const start = Number.MAX_SAFE_INTEGER - MIB - 4
  t.is(await file.writeAt(content, start), content.length)
  const back = Buffer.alloc(content.length)
  t.is(await file.readAt(back, BigInt(start)), content.length)
  assertBytes(t, back, content, 'plain')
  const tail = queue.alloc(2 * MIB)
  t.is(await file.readAt(tail, BigInt(start) + BigInt(MIB)), tail.length)
  assertBytes(t, tail, content.subarray(MIB), 'in place')
  t.is(await file.readAt(Buffer.alloc(10), BigInt(start) + BigInt(content.length)), 0)
})

for (const [name, source] of Object.entries(SOURCES)) {
  test(`a read into ${name} memory across the end brings what there is, and at the end 0`, async (t) => {
    const queue = ring(t)
    for (const size of [0, 1, 4095, 4096, 5000, 2 * MIB + 17]) {
      const content = pattern(size)
      const file = await queue.open(scratch(t, content))
      for (const before of [1, 100, 4096, size]) {
        const position = Math.max(0, size - before)
        const target = source(queue, before + 3000)
        const count = await file.readAt(target.view, position)
        const expected = content.subarray(position)
        t.is(count, expected.length, `${size} bytes from ${position}`)
        assertBytes(t, target.bytes.subarray(0, count), expected, `${size} bytes from ${position}`)
        assertGuards(t, target, `${size} bytes from ${position}`)
      }
      const target = source(queue, 100)
      t.is(await file.readAt(target.view, size), 0)
      t.is(await file.readAt(target.view, size + 1_000_000), 0)
      t.true(target.bytes.every((byte) => byte === GUARD))
      await file.close()
    }
    assertIdle(t, queue)
  })
}

test('bytesAt gives what is there at lengths around its limits, across the end and past it', async (t) => {
  const queue = ring(t)
  const size = 3 * MIB + 5
  const content = pattern(size)
  const file = await queue.open(scratch(t, content))
  for (const length of [0, 1, 4096, 131_071, 131_072, 131_073, MIB, MIB + 1, 3 * MIB + 5]) {
    for (const position of [0, 1, size - 100_000, size - 1, size, size + 5]) {
      const bytes = await file.bytesAt(position, length)
      t.true(Buffer.isBuffer(bytes))
      const expected = content.subarray(position, position + length)
      assertBytes(t, bytes, expected, `${length} bytes from ${position}`)
    }
  }
  assertIdle(t, queue)
})

test('a result of bytesAt has memory of its own, which works in place afterwards', async (t) => {
  const queue = ring(t)
  const content = pattern(2 * MIB)
  const file = await queue.open(scratch(t, content), 'r+')
  for (const length of [1000, 131_071, 131_072, MIB]) {
    const [first, second] = await Promise.all([file.bytesAt(0, length), file.bytesAt(1, length)])
    t.is(first.buffer.byteLength, length, 'no memory that is not its own')
    t.not(first.buffer, second.buffer)
    first.fill(0)
    assertBytes(t, second, content.subarray(1, 1 + length), 'the other is as it was')
  }
  const large = await file.bytesAt(0, MIB)
  const { bouncedBytes } = queue.stats()
  t.is(await file.readAt(large, 100), MIB)
  assertBytes(t, large, content.subarray(100, 100 + MIB), 'read again')
  t.is(await file.writeAt(large, MIB), MIB)
  t.is(queue.stats().bouncedBytes, bouncedBytes, 'in place')
})

test('a result of bytesAt that the file cut short does not keep the memory that it did not need', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(200_000)))
  const results: Buffer[] = []
  for (let i = 0; i < 10; i++) results.push(await file.bytesAt(199_000, 64 * MIB))
  t.true(results.every((bytes) => bytes.buffer.byteLength === 1000))
  t.is(queue.stats().memory.result.usedBytes, 0)
})

test('reads give what node:fs reads, at random places, many at once', async (t) => {
  const queue = ring(t)
  const size = 300_000
  const path = scratch(t, pattern(size))
  const file = await queue.open(path)
  const witness = fs.openSync(path, 'r')
  t.teardown(() => fs.closeSync(witness))
  const r = random(SEED)
  await Promise.all(
    Array.from({ length: 500 }, async (_, i) => {
      const [position, length] = [r.below(size + 1000), 1 + r.below(70_000)]
      const target = i % 2 === 0 ? queue.alloc(length) : Buffer.alloc(length)
      const expected = Buffer.alloc(length)
      const count = fs.readSync(witness, expected, 0, length, position)
      t.is(await file.readAt(target, position), count, `${length} from ${position}`)
      assertBytes(t, target, expected, `${length} from ${position}`)
    }),
  )
  assertIdle(t, queue)
})

test('files that lie about their size and are read a page at a time are filled from', async (t) => {
  const queue = ring(t)
  for (const path of ['/proc/version', '/proc/cpuinfo', '/proc/kallsyms', '/proc/self/mounts']) {
    const file = await queue.open(path)
    const length = 64 * KIB
    const byNode = (): { expected: Buffer; size: number } => {
      const expected = Buffer.alloc(length)
      const witness = fs.openSync(path, 'r')
      let size = 0
      for (let n = -1; n !== 0 && size < length; size += n) {
        n = fs.readSync(witness, expected, size, length - size, size)
      }
      fs.closeSync(witness)
      return { expected, size }
    }
    // What others mount meanwhile may be in one of the two: read while the file stays as it is.
    const unchanged = async <T>(read: () => Promise<T>) => {
      for (;;) {
        const before = byNode()
        const ours = await read()
        if (byNode().expected.equals(before.expected)) return { ours, ...before }
      }
    }
    for (const target of [Buffer.alloc(length), queue.alloc(length)]) {
      const { ours, expected, size } = await unchanged(() => {
        target.fill(0)
        return file.readAt(target, 0)
      })
      t.is(ours, size, path)
      assertBytes(t, target, expected, path)
    }
    const { ours, expected, size } = await unchanged(() => file.bytesAt(0, length))
    assertBytes(t, ours, expected.subarray(0, size), path)
    await file.close()
  }
  assertIdle(t, queue)
})

// ---- appending ----------------------------------------------------------------------------------

test('a position on a file opened for appending is refused, and nothing is written', async (t) => {
  const queue = ring(t)
  const path = scratch(t, Buffer.from('before'))
  for (const flags of ['a', 'a+', fs.constants.O_APPEND | fs.constants.O_RDWR]) {
    const file = await queue.open(path, flags)
    t.throws(() => file.writeAt(Buffer.from('x'), 0), { code: 'ERR_URING_APPEND' })
    t.throws(() => file.writeAt(queue.alloc(10), 6, {}), { code: 'ERR_URING_APPEND' })
    await file.close()
  }
  t.is(fs.readFileSync(path, 'utf8'), 'before')
})

test('append writes at the end, whole, of a file that was not opened for appending, too', async (t) => {
  const queue = ring(t)
  const path = scratch(t, Buffer.from('before'))
  const file = await queue.open(path, 'r+')
  t.is(await file.append(Buffer.from('more')), 4)
  await file.writeAt(Buffer.from('B'), 0)
  // Longer than what is copied at once: in pieces, others would come in between.
  const long = [1, 2, 3].map((fill) => Buffer.alloc((2 << 20) + 1, fill))
  await Promise.all(long.map((bytes) => file.append(bytes, { dsync: true })))
  const content = fs.readFileSync(path)
  t.is(content.toString('latin1', 0, 10), 'Beforemore')
  const runs =
    content
      .subarray(10)
      .toString('latin1')
      .match(/(.)\1*/gs) ?? []
  t.deepEqual(
    runs.map((run) => run.length),
    [1, 2, 3].map(() => (2 << 20) + 1),
  )
})

test('a thousand records appended at once are all there, each whole', async (t) => {
  const queue = ring(t)
  const path = scratch(t)
  const file = await queue.open(path, 'a')
  const record = (i: number): Buffer =>
    Buffer.from(`${String(i).padStart(6, '0')}:${'x'.repeat(i % 90)}\n`)
  const counts = await Promise.all(
    Array.from({ length: 1000 }, (_, i) => {
      const bytes = record(i)
      if (i % 2 === 0) return file.append(bytes)
      const mine = queue.alloc(bytes.length)
      mine.set(bytes)
      return file.append(mine, i % 5 === 0 ? { datasync: true } : undefined)
    }),
  )
  t.deepEqual(
    counts,
    counts.map((_, i) => record(i).length),
  )
  const lines = fs.readFileSync(path, 'utf8').split('\n').slice(0, -1).sort()
  t.deepEqual(
    lines,
    counts.map((_, i) => record(i).toString().slice(0, -1)),
  )
  assertIdle(t, queue)
})

test('a long append is one run of bytes when nobody else appends, and a+ reads it back', async (t) => {
  const queue = ring(t)
  const path = scratch(t, Buffer.from('head'))
  const file = await queue.open(path, 'a+')
  const content = pattern(3 * MIB + 1)
  t.is(await file.append(content), content.length)
  const mine = queue.alloc(70_000)
  mine.set(content.subarray(0, 70_000))
  t.is(await file.append(mine), 70_000)
  const expected = Buffer.concat([Buffer.from('head'), content, content.subarray(0, 70_000)])
  assertBytes(t, fs.readFileSync(path), expected, 'the file')
  assertBytes(t, await file.bytesAt(4, 3 * MIB), content.subarray(0, 3 * MIB), 'read back')
})
