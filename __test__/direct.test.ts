// Direct I/O just works: whatever the memory, the position and the length of a read, and whatever
// the file system asks for. Only writes that are not of whole blocks are refused, and say the way.

import fs from 'node:fs'
import path from 'node:path'
import type { DirectAlignment, File, Queue } from 'node-uring'
import { pattern, random } from './helpers/random.js'
import { assertIdle, ring, thrown } from './helpers/ring.js'
import { folder, loopMount, scratch, type Teardown } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const MIB = 1 << 20
const SEED = 424_242

/** Whether files in this folder take direct I/O. */
function takesDirect(at: string): boolean {
  const name = path.join(at, 'probe')
  try {
    fs.closeSync(
      fs.openSync(name, fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_DIRECT),
    )
    return true
  } catch {
    return false
  }
}

/** Where the tests of this file run: each on a file system of its own kind. */
interface Place {
  readonly name: string
  readonly declare: (title: string, run: (t: ExecutionContext) => Promise<void>) => void
  /** A fresh folder there. */
  readonly at: (t: Teardown) => string
}

const mounted: Record<string, string> = {}
const undo: (() => void)[] = []
const isRoot = process.geteuid?.() === 0

/** Mounts once what several tests use. */
function mountOnce(
  name: string,
  mkfs: readonly [string, ...string[]],
  sectorBytes: 512 | 4096,
): string {
  mounted[name] ??= loopMount({ teardown: (step) => undo.push(step) }, mkfs, sectorBytes)
  return mounted[name]
}
test.after.always(() => {
  for (const step of undo.reverse()) step()
})

const home = folder({ teardown: (step) => undo.push(step) })
const loops = { root: true, commands: ['losetup', 'mkfs.xfs', 'mkfs.ext4'] }
const PLACES: readonly Place[] = [
  {
    name: 'the temporary folder',
    declare: needs(test, {
      that: { holds: takesDirect(home), reason: 'no O_DIRECT in the temporary folder' },
    }),
    at: (t) => folder(t),
  },
  {
    name: 'XFS with sectors of 512 bytes',
    declare: needs(test, loops),
    at: (t) => folder(t, mountOnce('xfs', ['mkfs.xfs', '-q'], 512)),
  },
  {
    name: 'ext4 with sectors of 4096 bytes',
    declare: needs(test, loops),
    at: (t) => folder(t, mountOnce('ext4', ['mkfs.ext4', '-q'], 4096)),
  },
]

/** A file with this content, and the queue that has it open for direct I/O. */
async function direct(
  t: ExecutionContext,
  place: Place,
  content: Uint8Array,
): Promise<{ queue: Queue; file: File; name: string; block: number }> {
  const queue = ring(t)
  const name = path.join(place.at(t), 'file')
  fs.writeFileSync(name, content)
  // What is not on the disk yet would not be read past the page cache by every file system.
  const fd = fs.openSync(name, 'r')
  fs.fsyncSync(fd)
  fs.closeSync(fd)
  const file = await queue.open(name, 'r+', { direct: true })
  t.teardown(() => file.close({ timeoutMs: 0 }))
  return { queue, file, name, block: (file.alignment as DirectAlignment).offsetBytes }
}

function assertSame(t: ExecutionContext, actual: Uint8Array, expected: Uint8Array, what: string) {
  t.is(actual.length, expected.length, `${what}: length`)
  const same = Buffer.compare(actual, expected) === 0
  t.is(same ? -1 : actual.findIndex((byte, i) => byte !== expected[i]), -1, `${what}: differs at`)
}

for (const place of PLACES) {
  const on = (title: string): string => `on ${place.name}: ${title}`

  place.declare(
    on('the file tells its alignment, and is opened past the page cache'),
    async (t) => {
      const { queue, file } = await direct(t, place, pattern(8192))
      const { memoryBytes, offsetBytes } = file.alignment as DirectAlignment
      for (const bytes of [memoryBytes, offsetBytes]) {
        t.true(bytes >= 1 && bytes <= 65_536 && (bytes & (bytes - 1)) === 0, `${bytes}`)
      }
      if (place.name.includes('4096')) t.is(offsetBytes, 4096)
      const info = fs.readFileSync(`/proc/self/fdinfo/${file.fd}`, 'utf8')
      const flags = Number.parseInt(/flags:\s+(\d+)/.exec(info)?.[1] ?? '', 8)
      t.not(flags & fs.constants.O_DIRECT, 0)
      const buffered = await queue.open(file.path as string)
      t.is(buffered.alignment, undefined)
    },
  )

  place.declare(
    on('aligned transfers of alloc memory go in place, through registered memory'),
    async (t) => {
      const content = pattern(4 * MIB)
      const { queue, file, name } = await direct(t, place, content)
      t.is(queue.stats().memory.registeredBytes, 0, 'nothing is pinned before it is used')
      for (const length of [4096, 65_536, MIB, 3 * MIB]) {
        const mine = queue.alloc(length)
        t.is(await file.readAt(mine, 8192), length)
        assertSame(t, mine, content.subarray(8192, 8192 + length), `${length} read`)
        mine.set(pattern(length, length + 1))
        t.is(await file.writeAt(mine, 4096), length)
        content.set(mine, 4096)
        assertSame(t, fs.readFileSync(name), content, `${length} written`)
      }
      t.is(queue.stats().bouncedBytes, 0)
      t.is(queue.capabilities.registeredMemory, 'registered')
      t.true(queue.stats().memory.registeredBytes >= 2 * MIB)
      assertIdle(t, queue)
    },
  )

  place.declare(on('without registration the same works unregistered'), async (t) => {
    const content = pattern(MIB)
    const { file: made, name } = await direct(t, place, content)
    await made.close()
    const queue = ring(t, { register: false })
    const file = await queue.open(name, 'r+', { direct: true })
    const mine = queue.alloc(65_536)
    t.is(await file.readAt(mine, 4096), 65_536)
    assertSame(t, mine, content.subarray(4096, 4096 + 65_536), 'read')
    t.is(await file.writeAt(mine, 0), 65_536)
    t.is(queue.stats().memory.registeredBytes, 0)
    t.is(queue.stats().bouncedBytes, 0)
    await file.close()
    assertIdle(t, queue)
  })

  place.declare(
    on('reads at any position, of any length, into any memory bring what is there'),
    async (t) => {
      const r = random(SEED)
      for (const size of [0, 1, 511, 513, 4095, 4096, 40_960, 1_000_000, 3 * MIB + 12_345]) {
        const content = pattern(size, SEED + size)
        const { queue, file } = await direct(t, place, content)
        const { block } = { block: file.alignment?.offsetBytes ?? 0 }
        const positions = [
          0,
          1,
          block - 1,
          block,
          size - 1,
          size,
          size + 1,
          size - block,
          size + block,
        ]
        const lengths = [1, block - 1, block, block + 1, 10_000, MIB + 1]
        const ranges = positions.flatMap((position) =>
          lengths.map((length) => [position, length] as const),
        )
        for (let i = 0; i < 40; i++) ranges.push([r.below(size + 5000), 1 + r.below(200_000)])
        await Promise.all(
          ranges.map(async ([from, length], i) => {
            const position = Math.max(0, from)
            const expected = content.subarray(position, position + length)
            const what = `${length} from ${position} of ${size}`
            // An arena buffer at an odd address, one at an even one, a plain one, and a fresh one.
            const odd = i % 3
            const whole =
              i % 2 === 0 ? queue.alloc(length + 2 * odd) : Buffer.alloc(length + 2 * odd)
            whole.fill(0xa5)
            const target = whole.subarray(odd, odd + length)
            t.is(await file.readAt(target, position), expected.length, what)
            assertSame(t, target.subarray(0, expected.length), expected, what)
            const guards = Buffer.concat([whole.subarray(0, odd), whole.subarray(odd + length)])
            t.true(
              guards.every((byte) => byte === 0xa5),
              `${what}: bytes around it`,
            )
            if (i % 5 === 0) assertSame(t, await file.bytesAt(position, length), expected, what)
          }),
        )
        await file.close()
        assertIdle(t, queue)
      }
    },
  )

  place.declare(
    on('aligned writes from memory that is not aligned are whole, in pieces too'),
    async (t) => {
      const { queue, file, name, block } = await direct(t, place, pattern(0))
      for (const length of [block, 16 * block, MIB, 3 * MIB + block]) {
        const content = pattern(length)
        const odd = queue.alloc(length + 8).subarray(3, 3 + length)
        for (const source of [content, odd]) {
          source.set(content)
          await file.truncate()
          t.is(await file.writeAt(source, 2 * block, { datasync: true }), length)
          assertSame(t, fs.readFileSync(name).subarray(2 * block), content, `${length}`)
        }
      }
      assertIdle(t, queue)
    },
  )

  place.declare(
    on('a write that is not of whole blocks is refused, says the way, and it works'),
    async (t) => {
      const content = pattern(5000)
      const { queue, file, name, block } = await direct(t, place, pattern(0))
      const { submitted } = queue.stats()
      for (const [position, length] of [
        [0, 1],
        [0, block + 1],
        [1, block],
        [block - 1, 1],
        [BigInt(block) + 1n, block],
      ] as const) {
        for (const buffer of [Buffer.alloc(length), queue.alloc(length)]) {
          const error = thrown(() => file.writeAt(buffer, position))
          t.is(error.code, 'ERR_URING_ALIGNMENT')
          t.deepEqual(error.alignment, file.alignment)
          t.regex(error.message, new RegExp(`multiples of ${block} bytes.*then truncate`))
        }
      }
      await queue.nop()
      t.is(queue.stats().submitted, submitted + 1, 'nothing but the nop')
      t.is(fs.statSync(name).size, 0)
      // The way: the padded block, then the true size.
      const padded = queue.alloc(Math.ceil(content.length / block) * block)
      padded.set(content)
      t.is(await file.writeAt(padded, 0), padded.length)
      await file.truncate(content.length)
      t.is((await file.stat()).size, content.length)
      assertSame(t, fs.readFileSync(name), content, 'the file')
      assertSame(t, await file.bytesAt(0, 100_000), content, 'read back')
      t.is(await file.writeAt(Buffer.alloc(0), 1), 0, 'nothing is of whole blocks')
    },
  )

  place.declare(
    on('thousands of direct reads and writes at once leave what was asked for'),
    async (t) => {
      const [count, length] = [2000, 4096]
      const content = pattern(count * length)
      const { queue, file, name } = await direct(t, place, Buffer.alloc(count * length))
      await Promise.all(
        Array.from({ length: count }, async (_, i) => {
          const mine = i % 4 === 0 ? Buffer.alloc(length) : queue.alloc(length)
          const expected = content.subarray(i * length, (i + 1) * length)
          mine.set(expected)
          t.is(await file.writeAt(mine, i * length), length)
          mine.fill(0)
          t.is(await file.readAt(mine, i * length), length)
          assertSame(t, mine, expected, `block ${i}`)
        }),
      )
      assertSame(t, fs.readFileSync(name), content, 'the file')
      assertIdle(t, queue)
    },
  )

  place.declare(on('a direct file is adopted as one'), async (t) => {
    const content = pattern(10_000)
    const { file: made, name } = await direct(t, place, content)
    await made.close()
    const queue = ring(t)
    const file = await queue.adopt(fs.openSync(name, fs.constants.O_RDWR | fs.constants.O_DIRECT))
    t.deepEqual(file.alignment, made.alignment)
    assertSame(t, await file.bytesAt(9, 20_000), content.subarray(9), 'read')
    t.is(thrown(() => file.writeAt(Buffer.alloc(3), 0)).code, 'ERR_URING_ALIGNMENT')
    // Where an append would go is not known, and no block of the beginning is named.
    const appended = await queue.open(name, 'a', { direct: true })
    const refused = thrown(() => appended.append(Buffer.alloc(3)))
    t.regex(refused.message, /^A direct append must be a multiple of/)
    t.false('position' in refused)
    await appended.close()
    await file.close()
  })
}

PLACES[0]?.declare('a flag number with O_DIRECT is the same as direct: true', async (t) => {
  const queue = ring(t)
  const name = scratch(t, pattern(5000))
  const file = await queue.open(name, fs.constants.O_RDONLY | fs.constants.O_DIRECT)
  t.true((file.alignment?.offsetBytes ?? 0) >= 512)
  t.is((await file.bytesAt(1, 10_000)).compare(pattern(5000).subarray(1)), 0)
  await file.close()
})

needs(test, { that: { holds: isRoot, reason: 'needs root' } })(
  'a block device is read to its end, buffered and direct',
  async (t) => {
    const queue = ring(t)
    const image = mountOnce('xfs', ['mkfs.xfs', '-q'], 512)
    const device = fs
      .readFileSync('/proc/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' '))
      .find(([, at]) => at === image)?.[0] as string
    const size = 320 << 20
    for (const options of [{}, { direct: true }]) {
      const file = await queue.open(device, 'r', options)
      t.true((await file.stat()).isBlockDevice())
      t.is((await file.bytesAt(0, 4)).toString(), 'XFSB')
      t.is((await file.bytesAt(3, 100)).length, 100)
      t.is((await file.bytesAt(size - 1000, 5000)).length, 1000)
      t.is((await file.bytesAt(size, 5000)).length, 0)
      await file.close()
    }
  },
)
