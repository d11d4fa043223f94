/**
 * `npm run soak`: everything that the library does, mixed, for as long as you like, every byte
 * verified. Exits with 1 and an account when bytes are wrong, something hangs, or something grew. It is
 * started with MALLOC_ARENA_MAX=2 and MALLOC_MMAP_THRESHOLD_=131072 (mallopt(3)): what the allocator keeps of
 * each thread that ended, and between Buffers of a megabyte, would be taken for growth.
 */
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { isDeepStrictEqual, parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'
import { onExit } from '../../bench/cleanup.js'
import { Progress } from '../../bench/progress.js'
import { mountOf, scratchFolder, xfsInMemory } from '../../bench/scratch.js'
import { batches } from './batches.js'
import { Wrong } from './cells.js'
import {
  add,
  children,
  fifos,
  garbage,
  queuesComeAndGo,
  type Scene,
  watchedQueue,
  workers,
} from './churn.js'
import {
  collect,
  descriptorNames,
  type Gauges,
  gauges,
  grown,
  settledGauges,
  show,
} from './gauges.js'
import { type Counts, Lane, type LaneOptions, noCounts } from './lane.js'
import { Random } from './random.js'

const USAGE = `\
npm run soak -- [options]

  --minutes N   how long (1)
  --dir PATH    where the files go (the temporary folder)
  --xfs         on XFS, on a loop device in memory (root)
  --seed S      of the decisions; their order still depends on timing
  --help
`
/** Of one core, this process with its kernel workers. */
const CPU_SHARE = 0.5
/** No step, or one operation not over, for so long: something hangs. */
const STEP_MS_MAX = 30_000
const OPERATION_MS_MAX = 60_000
const PHASES = 4
const MIB = 1 << 20

const { values: options } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    dir: { type: 'string' },
    seed: { type: 'string' },
    xfs: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

const minutes = Number(options.minutes)
const seed = options.seed === undefined ? Date.now() % 2 ** 31 : Number(options.seed)
const progress = new Progress()
const startedMs = Date.now()

if (options.help) {
  process.stdout.write(USAGE)
} else if (!(minutes > 0) || !Number.isSafeInteger(seed)) {
  process.stderr.write(USAGE)
  process.exitCode = 1
} else {
  await main()
}

async function main(): Promise<void> {
  const scratch = scratchFolder(options.dir)
  const volume = options.xfs ? xfsInMemory(scratch, 1024 * MIB) : undefined
  const folder = volume?.folder ?? scratch
  const random = new Random(seed)
  let files = 0
  const scene: Scene = {
    folder,
    random,
    pace: { ms: 8 },
    nextFile: () => ++files,
    queues: new Set(),
    lanes: new Set(),
    past: noCounts(),
    tally: {
      queues: 0,
      workersKilled: 0,
      workersExited: 0,
      workersClosed: 0,
      children: 0,
      fifoReads: 0,
      collections: 0,
    },
  }
  const { type } = mountOf(folder)
  console.log(
    `soak: ${minutes} min on ${type} in ${folder}, Node.js ${process.version}, seed ${seed}`,
  )

  const stop = watch(scene)
  const fail = (error: unknown) => {
    progress.clear()
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
    console.error(`\nsoak FAILED after ${elapsed()} (seed ${seed}): ${text}\n${account(scene)}`)
    process.exit(1)
  }
  process.on('uncaughtException', fail)

  try {
    const lane = (mode: LaneOptions['mode'], strands: number) => {
      const fileId = scene.nextFile()
      const path = join(folder, `${mode}-${fileId}`)
      const sizeMax = 16 * MIB
      const made = new Lane({ fileId, path, mode, sizeMax, strands, random, pace: scene.pace })
      scene.lanes.add(made)
      return made
    }
    const lanes = [lane('plain', 8), lane('plain', 3), lane('direct', 8), lane('append', 4)]
    const travelling = [lane('plain', 4), lane('direct', 4)]
    const warmUpMs = Math.min(60_000, minutes * 15_000)
    const phaseMs = (minutes * 60_000 - warmUpMs) / PHASES
    await phase(scene, lanes, travelling, warmUpMs)
    const checkpoint = await settledGauges()
    progress.clear()
    console.log(`${elapsed()}  at rest after the warm-up: ${show(checkpoint)}`)
    const before = descriptorNames()
    let now: Gauges = checkpoint
    for (let i = 1; i <= PHASES; i++) {
      await phase(scene, lanes, travelling, phaseMs)
      now = await settledGauges(checkpoint)
      progress.clear()
      console.log(`${elapsed()}  at rest after part ${i} of ${PHASES}: ${show(now)}`)
    }
    stop()
    console.log(account(scene))
    const more = grown(checkpoint, now)
    if (more.length > 0) console.log(`descriptors before: ${before}\nand now: ${descriptorNames()}`)
    if (more.length > 0)
      throw new Wrong(`more at the end than after the warm-up: ${more.join('; ')}`)
    volume?.unmount()
    console.log(`soak passed after ${elapsed()} (seed ${seed})`)
  } catch (error) {
    fail(error)
  }
}

/** Everything at once for so long, on new queues; then all is closed and nothing may be left. */
async function phase(scene: Scene, lanes: Lane[], travelling: Lane[], ms: number): Promise<void> {
  const until = Date.now() + ms
  const queue = watchedQueue(scene)
  await Promise.all([
    ...lanes.map((lane) => lane.run(queue, until)),
    ...travelling.map((lane) => queuesComeAndGo(scene, lane, until)),
    fifos(scene, until),
    batches(scene, until),
    batches(scene, until),
    workers(scene, until),
    workers(scene, until),
    children(scene, until),
    garbage(scene, until),
  ])
  const atRest = { inFlight: 0, pending: 0, waiting: 0, stale: 0, files: 0, used: [0, 0, 0] }
  let left = atRest
  // What was dropped is the collector's, and the collector takes a few rounds.
  for (let round = 0; round < 40; round++) {
    collect()
    await after(50)
    const { inFlight, pending, waiting, stale, files, memory } = queue.stats()
    const used = [memory.alloc, memory.bounce, memory.result].map(({ usedBytes }) => usedBytes)
    left = { inFlight, pending, waiting, stale, files, used }
    if (isDeepStrictEqual(left, atRest)) break
  }
  if (!isDeepStrictEqual(left, atRest)) {
    throw new Wrong(`left in the queue at rest: ${JSON.stringify(left)}`)
  }
  await queue.close()
  scene.queues.delete(queue)
}

/** Shows how far it is, keeps the pace, and ends the run when something hangs. */
function watch(scene: Scene): () => void {
  const beats = new Int32Array(new SharedArrayBuffer(8))
  const watchdog = new Worker(new URL('./watchdog.js', import.meta.url), {
    workerData: beats.buffer,
  })
  onExit(() => Atomics.store(beats, 1, 1))
  let [lastSteps, steppedMs, lineMs] = [-1, Date.now(), Date.now()]
  let cpu = process.cpuUsage()
  let tickMs = Date.now()
  const timer = setInterval(() => {
    Atomics.add(beats, 0, 1)
    const now = Date.now()
    const lateMs = now - tickMs - 1000
    tickMs = now
    if (lateMs > 5000) {
      // The machine stood still, or this thread did: say so, and count no operation's time by it.
      console.log(`${elapsed()}  this thread stood still for ${Math.round(lateMs / 1000)} s`)
      for (const lane of scene.lanes) for (const lock of lane.locks) lock.sinceMs += lateMs
      steppedMs += lateMs
    }
    const { user, system } = process.cpuUsage(cpu)
    cpu = process.cpuUsage()
    const share = (user + system) / 1e6
    scene.pace.ms = Math.min(400, Math.max(0.5, scene.pace.ms * (share > CPU_SHARE ? 1.15 : 0.9)))

    const total = totals(scene)
    if (total.steps !== lastSteps || scene.queues.size === 0)
      [lastSteps, steppedMs] = [total.steps, now]
    const oldest = [...scene.lanes].flatMap((lane) => lane.locks.oldest() ?? [])
    const stuck = oldest.find(({ sinceMs }) => now - sinceMs > OPERATION_MS_MAX)
    if (stuck !== undefined) throw new Wrong(`hangs: ${stuck.what}, for ${now - stuck.sinceMs} ms`)
    if (now - steppedMs > STEP_MS_MAX) throw new Wrong(`no step was over for ${now - steppedMs} ms`)

    if (process.stderr.isTTY) progress.show(line(scene, total))
    else if (now - lineMs >= 10_000) {
      lineMs = now
      console.log(`${elapsed()}  ${line(scene, total)}`)
    }
  }, 1000)
  return () => {
    clearInterval(timer)
    Atomics.store(beats, 1, 1)
    Atomics.notify(beats, 1)
    watchdog.unref()
  }
}

function totals(scene: Scene): Counts {
  const total = { ...scene.past }
  for (const lane of scene.lanes) add(total, lane.counts)
  return total
}

function line(scene: Scene, total: Counts): string {
  const { tally } = scene
  const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`
  const killed = tally.workersKilled + tally.workersExited
  const rss = Math.round(process.memoryUsage.rss() / MIB)
  return (
    `${total.steps} steps, ${gib(total.bytesRead)} read and verified, ${gib(total.bytesWritten)} written, ${total.aborted} aborted, ${total.detached} detached, ` +
    `${tally.queues} queues, ${killed} workers ended, ${tally.children} children, RSS ${rss} MiB`
  )
}

/** All there is to tell. */
function account(scene: Scene): string {
  const stats = [...scene.queues].map((queue) => `queue: ${JSON.stringify(queue.stats())}`)
  const under = [...scene.lanes].flatMap((lane) => {
    const locks = [...lane.locks].map(({ what, sinceMs }) => `${what} (${Date.now() - sinceMs} ms)`)
    return locks.length === 0 ? [] : [`under way on ${lane.path}: ${locks.join('; ')}`]
  })
  return [
    JSON.stringify({ ...totals(scene), ...scene.tally }),
    show(gauges()),
    ...stats,
    ...under,
  ].join('\n')
}

function elapsed(): string {
  return `${Math.round((Date.now() - startedMs) / 1000)} s`
}
