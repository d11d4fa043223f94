/**
 * What a large arena costs a child process: `spawnSync('true')` from a process without a queue, and
 * from one whose queue has 256 MiB of touched, registered memory. Run it by itself:
 *
 *     node --import tsx bench/spawn.ts [--rounds N] [--round-ms MS] [--json FILE]
 *
 * Each side is a process of its own, since the memory of one would be forked by the other. The third
 * side has as much memory of Node's: what fork(2) costs that nobody keeps from it.
 */
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Queue } from 'node-uring'
import { type Cost, compete, inProcess, valueFinding } from './harness.js'
import { describeHost } from './host.js'
import { answerRounds, processSide } from './programs.js'
import { Progress } from './progress.js'
import { cellTable, sideTable } from './report.js'
import { directFile, scratchFolder } from './scratch.js'

const MIB = 1 << 20
const ARENA_BYTES = 256 * MIB
const PIECE_BYTES = MIB
/** What the arena may add to a child process. */
const ADDED_MS_MAX = 3

type Kind = 'none' | 'queue' | 'buffers'

if (process.send === undefined) await main()
else await child(process.argv[2] as Kind, process.argv[3] ?? '')

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    options: {
      rounds: { type: 'string', default: '9' },
      'round-ms': { type: 'string', default: '250' },
      json: { type: 'string' },
    },
  })
  const settings = { rounds: Number(options.rounds), roundMs: Number(options['round-ms']) }
  const progress = new Progress()
  const folder = scratchFolder(undefined)
  const queue = new Queue()
  const path = directFile(folder, 'direct.bin', 2 * MIB, queue.alloc(MIB))
  await queue.close()
  const here = fileURLToPath(import.meta.url)
  const sides = {
    none: await processSide('no queue', here, ['none', path]),
    queue: await processSide('a queue with 256 MiB', here, ['queue', path]),
    buffers: await processSide('256 MiB of plain Buffers', here, ['buffers', path]),
  }
  const contest = { name: "spawnSync('true')", sides, rows: [] }
  const { measured } = await compete(contest, settings, progress)
  progress.clear()

  const [none, arena, buffers] = measured.map(({ rounds }) => rounds) as [Cost[], Cost[], Cost[]]
  const added = (side: Cost[]) => side.map(({ wallNs }, i) => (wallNs - none[i]!.wallNs) / 1e6)
  const limit = { atMost: ADDED_MS_MAX }
  const findings = [
    valueFinding('added to a child by the arena', 'node-uring', 'ms', added(arena), limit),
    valueFinding('by as many plain Buffers', 'node', 'ms', added(buffers), limit),
  ]
  const host = describeHost(folder)
  console.log(`\
kernel ${host.kernel}, ${host.cpu}, ${host.cores} cores, load ${host.load.toFixed(2)}, Node.js ${host.node}
${settings.rounds} rounds of ${settings.roundMs} ms a side, in turns; medians of the rounds

${cellTable(findings)}

${sideTable([{ name: contest.name, measured }])}`)
  if (options.json !== undefined) {
    const all = { host, settings, findings, measured }
    writeFileSync(options.json, `${JSON.stringify(all, null, 2)}\n`)
  }
  process.exit(0)
}

/** The process of a side: touches its memory, then makes children as it is asked to. */
async function child(kind: Kind, path: string): Promise<void> {
  const kept: Buffer[] = []
  if (kind === 'queue') {
    const queue = new Queue()
    // The first direct file registers the arena.
    const file = await queue.open(path, 'r', { direct: true })
    while (kept.length < ARENA_BYTES / PIECE_BYTES) kept.push(queue.alloc(PIECE_BYTES).fill(1))
    for (const buffer of kept) await file.readAt(buffer, 0)
    await file.close()
    const { registeredBytes } = queue.stats().memory
    if (registeredBytes < ARENA_BYTES) {
      console.error(`only ${registeredBytes / MIB} MiB are registered; see RLIMIT_MEMLOCK`)
    }
  } else if (kind === 'buffers') {
    while (kept.length < ARENA_BYTES / PIECE_BYTES) kept.push(Buffer.alloc(PIECE_BYTES, 1))
  }
  const side = inProcess(kind, (operations) => {
    for (let i = 0; i < operations; i++) {
      const { error, status } = spawnSync('true', { stdio: 'ignore' })
      if (status !== 0) throw error ?? new Error(`true ended with ${status}`)
    }
  })
  answerRounds(async (operations) => {
    const cost = await side.run(operations)
    // The memory is alive to the end of the round.
    if (kept.some((buffer) => buffer.length === 0)) throw new Error('memory went away')
    return cost
  })
}
