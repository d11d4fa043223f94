/**
 * Copies a file with many reads and writes in flight, then reads both and compares every byte.
 *
 *   node --import tsx examples/copy.ts SOURCE TARGET [--in-flight 16] [--piece-kib 1024]
 *
 * Without SOURCE and TARGET it copies the program that runs it to the temporary folder, and deletes
 * that. It overwrites nothing.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type File, Queue } from 'node-uring'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'in-flight': { type: 'string', default: '16' },
    'piece-kib': { type: 'string', default: '1024' },
  },
})
const inFlight = Number(values['in-flight'])
const pieceBytes = Number(values['piece-kib']) * 1024

if (positionals.length === 2) {
  await copy(positionals[0] as string, positionals[1] as string)
} else if (positionals.length === 0) {
  const folder = await mkdtemp(join(tmpdir(), 'node-uring-copy-'))
  try {
    await copy(process.execPath, join(folder, 'copy'))
  } finally {
    await rm(folder, { recursive: true })
  }
} else {
  console.error('usage: copy.ts SOURCE TARGET [--in-flight N] [--piece-kib KIB]')
  process.exitCode = 1
}

async function copy(source: string, target: string): Promise<void> {
  const queue = new Queue()
  try {
    const from = await queue.open(source)
    const to = await queue.open(target, 'wx+')
    const { size } = await from.stat()

    const startedMs = performance.now()
    // Each lane has one buffer: it reads the next piece, writes it, and comes back for more.
    await forEachPiece(size, async (lane) => {
      const buffer = queue.alloc(pieceBytes)
      for (const position of lane) {
        const count = await from.readAt(buffer, position)
        await to.writeAt(buffer.subarray(0, count), position)
      }
      queue.free(buffer)
    })
    await to.datasync()
    const elapsedMs = performance.now() - startedMs

    await verify(queue, from, to, size)
    const rate = size / 2 ** 20 / (elapsedMs / 1000)
    console.log(
      `${source} -> ${target}: ${size} bytes copied, synced and compared, ` +
        `${elapsedMs.toFixed(0)} ms for the copy (${rate.toFixed(0)} MiB/s)`,
    )
  } finally {
    await queue.close()
  }
}

/** Throws unless both files hold the same `size` bytes. */
async function verify(queue: Queue, from: File, to: File, size: number): Promise<void> {
  if ((await to.stat()).size !== size) throw new Error('the copy has another size')
  await forEachPiece(size, async (lane) => {
    const [mine, copied] = [queue.alloc(pieceBytes), queue.alloc(pieceBytes)]
    for (const position of lane) {
      // Both are staged before either is awaited: they travel in one submission.
      const reads = [from.readAt(mine, position), to.readAt(copied, position)] as const
      const [wanted, found] = await Promise.all(reads)
      if (wanted !== found || !mine.subarray(0, wanted).equals(copied.subarray(0, found))) {
        throw new Error(`the copy differs at or after byte ${position}`)
      }
    }
    queue.free(mine)
    queue.free(copied)
  })
}

/** Runs lanes side by side, which share one sequence of positions, as long as there are any. */
async function forEachPiece(
  size: number,
  lane: (positions: Iterable<number>) => Promise<void>,
): Promise<void> {
  let next = 0
  const positions = {
    *[Symbol.iterator]() {
      while (next < size) {
        // Advanced before it is given: the other lanes must not get the same one.
        next += pieceBytes
        yield next - pieceBytes
      }
    },
  }
  await Promise.all(Array.from({ length: inFlight }, () => lane(positions)))
}
