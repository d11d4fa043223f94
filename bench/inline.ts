/**
 * Who copies large reads of cached data: the thread that submits them, or kernel workers. Measures
 * the default policy against its extremes, and against a cap on the workers:
 *
 *     node --import tsx bench/inline.ts [--rounds N] [--round-ms MS]
 *
 * Each side is a process, since kernel workers, and their cap, belong to a thread. Beside the costs stands how long the side's thread was held up at worst in a round.
 */
import { open } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Queue, type QueueOptions } from 'node-uring'
import { type Cost, compete, inProcess, type Side, spreadOf } from './harness.js'
import { describeHost } from './host.js'
import { Blocks, handleReads, readAts, times } from './loops.js'
import { answerRounds, processSide } from './programs.js'
import { Progress } from './progress.js'
import { cachedFile, keepCached, scratchFolder } from './scratch.js'

const KIB = 1 << 10
const MIB = 1 << 20
const FILE_BYTES = 256 * MIB
const UINT32_MAX = 2 ** 32 - 1

const POLICIES: Record<string, QueueOptions | undefined> = {
  default: {},
  'all inline': { inline: { smallBytes: UINT32_MAX } },
  'all by workers': { inline: { smallBytes: 0, aloneBytes: 0, turnBytes: 0 } },
  'default, 1 worker': { workers: { bounded: 1 } },
  'default, 2 workers': { workers: { bounded: 2 } },
  'fs/promises': undefined,
}
/** Length of a read, and how many at once. */
const SHAPES: [number, number][] = [
  [16 * KIB, 8],
  [64 * KIB, 1],
  [64 * KIB, 8],
  [256 * KIB, 1],
  [256 * KIB, 8],
  [MIB, 1],
  [MIB, 8],
  [4 * MIB, 8],
  [4 * MIB, 32],
]

interface Task {
  policy: string
  path: string
  length: number
  atOnce: number
}
/** What a side says of a round. */
interface Told extends Cost {
  heldUpMs: number
}

if (process.send === undefined) await main()
else await side(JSON.parse(process.argv[2] ?? '') as Task)

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    options: {
      rounds: { type: 'string', default: '7' },
      'round-ms': { type: 'string', default: '150' },
    },
  })
  const settings = { rounds: Number(options.rounds), roundMs: Number(options['round-ms']) }
  const progress = new Progress()
  const folder = scratchFolder(undefined)
  const path = cachedFile(folder, 'cached.bin', FILE_BYTES)
  const buffer = new Uint8Array(MIB)
  const host = describeHost(folder)
  console.log(`\
kernel ${host.kernel}, ${host.cpu}, ${host.cores} cores, load ${host.load.toFixed(2)}, Node.js ${host.node}
medians of ${settings.rounds} rounds of ${settings.roundMs} ms a side, in turns: µs of a read (µs of CPU) [ms held up]
`)
  const here = fileURLToPath(import.meta.url)
  const names = Object.keys(POLICIES)
  console.log(['', ...names].map((name) => name.padEnd(22)).join(''))
  for (const [length, atOnce] of SHAPES) {
    const name = `${length / KIB} KiB ×${atOnce}`
    const heldUp = new Map<string, number[]>()
    const sides: Record<string, Side> = {}
    const ends: (() => void)[] = []
    for (const policy of names) {
      const task = JSON.stringify({ policy, path, length, atOnce } satisfies Task)
      const delays: number[] = []
      heldUp.set(policy, delays)
      const { end, ...process } = await processSide<Told>(policy, here, [task])
      ends.push(end)
      sides[policy] = {
        name: policy,
        async run(operations) {
          const told = await process.run(operations)
          delays.push(told.heldUpMs)
          return told
        },
      }
    }
    const before = () => keepCached(path, buffer)
    const { measured } = await compete({ name, sides, rows: [], before }, settings, progress)
    progress.clear()
    const cells = measured.map(({ name: policy, rounds }) => {
      const wall = spreadOf(rounds.map(({ wallNs }) => wallNs)).median / 1e3
      const cpu = spreadOf(rounds.map(({ cpuNs }) => cpuNs)).median / 1e3
      const held = spreadOf((heldUp.get(policy) as number[]).slice(-settings.rounds)).median
      return `${wall.toPrecision(3)} (${cpu.toPrecision(3)}) [${held.toPrecision(2)}]`
    })
    console.log([name, ...cells].map((cell) => cell.padEnd(22)).join(''))
    for (const end of ends) end()
  }
  process.exit(0)
}

/** One side, in its process: reads as often as it is asked to, and says what that cost. */
async function side({ policy, path, length, atOnce }: Task): Promise<void> {
  const options = POLICIES[policy]
  const blocks = new Blocks(FILE_BYTES, length)
  const read = options === undefined ? await nodeReads() : await ringReads(options)
  const measured = inProcess(policy, read)
  answerRounds(async (operations) => {
    let [longestMs, lastMs] = [0, performance.now()]
    const timer = setInterval(() => {
      const nowMs = performance.now()
      longestMs = Math.max(longestMs, nowMs - lastMs)
      lastMs = nowMs
    }, 1)
    const cost = await measured.run(operations)
    clearInterval(timer)
    const heldUpMs = Math.max(longestMs, performance.now() - lastMs)
    return { ...cost, heldUpMs } satisfies Told
  })

  async function ringReads(given: QueueOptions) {
    const queue = new Queue(given)
    const file = await queue.open(path, 'r')
    const buffers = times(atOnce, () => queue.alloc(length))
    return (operations: number) => readAts(file, buffers, blocks, operations)
  }

  async function nodeReads() {
    const handle = await open(path)
    const buffers = times(atOnce, () => new Uint8Array(length))
    return (operations: number) => handleReads(handle, buffers, blocks, operations)
  }
}
