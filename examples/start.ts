/**
 * What `npm start` runs: writes a real file through the ring, reads it back and checks every byte,
 * then measures: the NOP round trip, and reads and writes side by side with node:fs/promises.
 *
 *   npm start [-- FOLDER]       where the file goes; the temporary folder if none is given
 *
 * The file is deleted at the end, however this ends. The measurements proper are `npm run bench`.
 */
import { createHash, randomFillSync } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { availableParallelism, loadavg, release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { type File, Queue, type RoundTripSummary, UringError } from 'node-uring'
import { onExit } from '../bench/cleanup.js'
import { inProcess, type Side, spreadOf } from '../bench/harness.js'
import {
  Blocks,
  handleReads,
  handleWrites,
  InOrder,
  readAts,
  times,
  writeAts,
} from '../bench/loops.js'
import { Progress } from '../bench/progress.js'
import { mountOf } from '../bench/scratch.js'
import { painter, table } from '../src/cli/terminal.js'
import { duration } from '../src/cli/units.js'

const MIB = 2 ** 20
const FILE_BYTES = 256 * MIB
const PIECE_BYTES = MIB
const PIECES_AT_ONCE = 8
/** How long one side of a comparison runs, and how often both take turns. */
const TURN_MS = 300
const TURNS = 3

const paint = painter(process.stdout)
const progress = new Progress()

try {
  await main()
} catch (error) {
  progress.clear()
  process.exitCode = 1
  if (error instanceof UringError && error.reason !== undefined) {
    const { code, message, help } = error.reason
    console.error(`io_uring cannot be used here (${code}). ${message}\n${help}`)
    console.error('More: npx node-uring doctor')
  } else {
    console.error(error)
  }
}

async function main(): Promise<void> {
  const queue = new Queue({ backend: 'io_uring' })
  const folder = mkdtempSync(join(process.argv[2] ?? tmpdir(), 'node-uring-start-'))
  const undo = onExit(() => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, 'data.bin')
  const { type } = mountOf(folder)
  const cores = availableParallelism()
  console.log(`Linux ${release()}, ${cores} CPUs, Node.js ${process.version}, ${path} on ${type}\n`)

  try {
    const file = await queue.open(path, 'w+')
    await writeAndVerify(queue, file)
    await roundTrips(queue)
    const handle = await open(path, 'r+')
    await compare(queue, file, handle)
    await handle.close()
  } finally {
    await queue.close()
    undo()
  }
  const load = loadavg()[0] ?? 0
  if (load > cores) {
    console.log(`This machine is busy (load ${load.toFixed(1)}): the next run may tell otherwise.`)
  }
  console.log(
    '\nNext: npx node-uring doctor (what io_uring can do here), the programs in examples/,\n' +
      'npm run bench (everything that is measured, beside C and fio too).',
  )
}

/** Random bytes into the file and back again, many pieces at once; throws if one byte differs. */
async function writeAndVerify(queue: Queue, file: File): Promise<void> {
  const digests: string[] = []
  await inPieces(queue, 'writing', async (piece, buffer) => {
    randomFillSync(buffer)
    digests[piece] = digest(buffer)
    await file.writeAt(buffer, piece * PIECE_BYTES)
  })
  await file.datasync()
  await inPieces(queue, 'reading', async (piece, buffer) => {
    const count = await file.readAt(buffer.fill(0), piece * PIECE_BYTES)
    if (count !== PIECE_BYTES || digest(buffer) !== digests[piece]) {
      throw new Error(`what was read at ${piece * PIECE_BYTES} is not what was written`)
    }
  })
  progress.clear()
  console.log(
    `${FILE_BYTES / MIB} MiB written, synced and read back through io_uring: every byte as it was\n`,
  )
}

async function inPieces(
  queue: Queue,
  verb: string,
  work: (piece: number, buffer: Buffer) => Promise<void>,
): Promise<void> {
  let next = 0
  const lane = async () => {
    const buffer = queue.alloc(PIECE_BYTES)
    while (next < FILE_BYTES / PIECE_BYTES) {
      progress.show(`${verb} ${next} of ${FILE_BYTES / PIECE_BYTES} MiB`)
      await work(next++, buffer)
    }
    queue.free(buffer)
  }
  await Promise.all(times(PIECES_AT_ONCE, lane))
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

async function roundTrips(queue: Queue): Promise<void> {
  const onProgress = (done: number, samples: number) =>
    progress.show(`nop round trips: ${done} of ${samples}`)
  await queue.nopRoundTrip({ samples: 50_000 })
  const one = await queue.nopRoundTrip({ samples: 300_000, onProgress })
  const many = await queue.nopRoundTrip({ samples: 2_000_000, concurrency: 128, onProgress })
  progress.clear()
  const row = (name: string, { opsPerSecond, ns }: RoundTripSummary) => [
    name,
    ...[ns.p50, ns.p99, ns.p999].map(duration),
    whole(opsPerSecond),
  ]
  const header = ['a nop to the kernel and back', 'median', '99%', '99.9%', 'per second']
  print([header, row('one at a time', one), row('128 at once', many)])
  console.log(
    'Of 128 at once each takes longer, since they travel together; more are done a second.\n',
  )
}

/** What is compared: the same loop on both sides. */
interface Comparison {
  name: string
  blockBytes: number
  ring: Side
  node: Side
}

async function compare(queue: Queue, file: File, handle: FileHandle): Promise<void> {
  const random = new Blocks(FILE_BYTES, 4096)
  const inOrder = new InOrder(FILE_BYTES, MIB)
  // The ring uses memory of its own in place; node:fs uses any.
  const arena = {
    small: times(128, () => queue.alloc(4096)),
    large: times(8, () => queue.alloc(MIB)),
  }
  const plain = {
    small: times(128, () => Buffer.alloc(4096)),
    large: times(8, () => Buffer.alloc(MIB)),
  }
  const [arenaOne, plainOne] = [arena.small.slice(0, 1), plain.small.slice(0, 1)]
  const ring = (work: (operations: number) => Promise<void>) => inProcess('node-uring', work)
  const node = (work: (operations: number) => Promise<void>) => inProcess('fs/promises', work)
  const comparisons: Comparison[] = [
    {
      name: '4 KiB random reads, 128 at once',
      blockBytes: 4096,
      ring: ring((n) => readAts(file, arena.small, random, n)),
      node: node((n) => handleReads(handle, plain.small, random, n)),
    },
    {
      name: '4 KiB random reads, one at a time',
      blockBytes: 4096,
      ring: ring((n) => readAts(file, arenaOne, random, n)),
      node: node((n) => handleReads(handle, plainOne, random, n)),
    },
    {
      name: '1 MiB reads in order, 8 at once',
      blockBytes: MIB,
      ring: ring((n) => readAts(file, arena.large, inOrder, n)),
      node: node((n) => handleReads(handle, plain.large, inOrder, n)),
    },
    {
      name: '4 KiB random writes, 128 at once',
      blockBytes: 4096,
      ring: ring((n) => writeAts(file, arena.small, random, n)),
      node: node((n) => handleWrites(handle, plain.small, random, n)),
    },
  ]

  const rows = [['cached data', 'node-uring', '', 'fs/promises', '', 'node-uring is']]
  const slower: string[] = []
  for (const comparison of comparisons) {
    const { ringNs, nodeNs, ratio } = await takeTurns(comparison)
    const rates = [ringNs, nodeNs].flatMap((ns) => [
      `${whole(1e9 / ns)}/s`,
      `${whole((comparison.blockBytes / MIB / ns) * 1e9)} MiB/s`,
    ])
    rows.push([comparison.name, ...rates, `${ratio.toFixed(ratio < 9.95 ? 1 : 0)}× as fast`])
    if (ratio < 1) slower.push(`${comparison.name} (${ratio.toFixed(2)}×)`)
  }
  progress.clear()
  print(rows)
  console.log('The file is in the page cache: these are the costs of the calls, not of a disk.')
  if (slower.length > 0) console.log(`Slower than node:fs/promises: ${slower.join('; ')}.`)
}

/** Both sides, in turns after a warm-up; the ratio is the median of the turns'. */
async function takeTurns({ name, ring, node }: Comparison) {
  const [ringNs, nodeNs]: [number[], number[]] = [[], []]
  const counts = new Map([
    [ring, 1000],
    [node, 200],
  ])
  for (let turn = 0; turn <= TURNS; turn++) {
    for (const side of [ring, node]) {
      progress.show(`${name}: ${side.name}`)
      const { wallNs } = await side.run(counts.get(side) ?? 1)
      counts.set(side, Math.ceil((TURN_MS * 1e6) / wallNs))
      if (turn > 0) (side === ring ? ringNs : nodeNs).push(wallNs)
    }
  }
  const ratios = ringNs.map((ns, turn) => (nodeNs[turn] ?? 0) / ns)
  return {
    ringNs: spreadOf(ringNs).median,
    nodeNs: spreadOf(nodeNs).median,
    ratio: spreadOf(ratios).median,
  }
}

function whole(value: number): string {
  return Math.round(value).toLocaleString('en')
}

/** Prints a table under a bold heading. */
function print(rows: string[][]): void {
  const [heading = '', ...rest] = table(rows, new Set([1, 2, 3, 4, 5])).split('\n')
  console.log([paint('bold', heading), ...rest, ''].join('\n'))
}
