/**
 * What goes on beside the lanes of the main queue: queues that come and go, FIFOs whose reads never
 * end by themselves, workers that are killed, children, and garbage. Each is a loop until a time.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { Queue } from 'node-uring'
import { verifyAfterKill, Wrong } from './cells.js'
import { collect } from './gauges.js'
import { type Counts, type Lane, noCounts } from './lane.js'
import type { Random } from './random.js'
import type { WorkerData } from './worker.js'

/** What the loops share. */
export interface Scene {
  folder: string
  random: Random
  pace: { ms: number }
  /** The number of the next file. */
  nextFile(): number
  /** Queues and lanes at work, so that the watchdog can tell of them. */
  queues: Set<Queue>
  lanes: Set<Lane>
  /** What was done by lanes that are gone. */
  past: Counts
  tally: {
    queues: number
    workersKilled: number
    workersExited: number
    workersClosed: number
    children: number
    fifoReads: number
    collections: number
  }
}

export function add(total: Counts, counts: Counts): void {
  for (const key of Object.keys(total) as (keyof Counts)[]) total[key] += counts[key]
}

/** Makes a queue that the watchdog knows. */
export function watchedQueue(
  scene: Scene,
  options?: ConstructorParameters<typeof Queue>[0],
): Queue {
  const queue = new Queue(options)
  scene.queues.add(queue)
  scene.tally.queues++
  return queue
}

/** Queues of all sizes over one file, closed in the middle of their work or after it. */
export async function queuesComeAndGo(scene: Scene, lane: Lane, until: number): Promise<void> {
  const { random } = scene
  const mib = 1 << 20
  while (Date.now() < until) {
    const entries = random.pick([2, 4, 32, 1024])
    const slabBytes = random.pick([64 << 10, mib, 4 * mib])
    const queue = watchedQueue(scene, {
      entries,
      cqEntries: entries * random.pick([1, 2]),
      setup: { taskRun: random.pick(['defer', 'cooperative', 'interrupt'] as const) },
      arena: { slabBytes, maxBytes: 16 * mib },
      bounceBytes: random.pick([2 * mib, 8 * mib]),
      resultBytes: random.pick([0, 4 * mib]),
      register: random.chance(80),
    })
    const hard = random.chance(60)
    await lane.run(queue, Math.min(until, Date.now() + 50 + random.below(900)), hard)
    if (!hard) await queue.close(random.chance(50) ? { timeoutMs: 0 } : undefined)
    if (queue.stats().stale !== 0) throw new Wrong(`${queue.stats().stale} stale completions`)
    scene.queues.delete(queue)
  }
}

/** Reads of an empty FIFO, ended by closing the file or the queue; and one that gets its bytes. */
export async function fifos(scene: Scene, until: number): Promise<void> {
  const { random, folder, tally } = scene
  const path = join(folder, 'fifo')
  execFileSync('mkfifo', [path])
  while (Date.now() < until) {
    const queue = watchedQueue(scene, { entries: 64 })
    const file = await queue.open(path, 'r+')
    const reads = Array.from({ length: 1 + random.below(12) }, (_, i) => {
      const buffer = i % 2 === 0 ? Buffer.alloc(4096) : queue.alloc(4096)
      return file.readAt(buffer, 0)
    })
    const ends = Promise.allSettled(reads)
    await after(random.below(60))
    const fed = random.below(3)
    if (fed > 0) await file.writeAt(Buffer.alloc(fed, 7), 0)
    if (fed > 0) await Promise.race(reads)
    const onQueue = random.chance(50)
    await (onQueue ? queue : file).close({ timeoutMs: 0 })
    let brought = 0
    for (const end of await ends) {
      tally.fifoReads++
      if (end.status === 'fulfilled') brought += end.value
      else if (end.reason.code !== 'ABORT_ERR') throw end.reason
    }
    if (brought !== fed) throw new Wrong(`the reads of a FIFO brought ${brought} of ${fed} bytes`)
    if (!onQueue) await queue.close()
    scene.queues.delete(queue)
    await after(100 + random.below(400))
  }
  rmSync(path)
}

/** Workers with a queue each, ended at any moment; what they wrote is looked at afterwards. */
export async function workers(scene: Scene, until: number): Promise<void> {
  while (Date.now() < until) await workerLife(scene, until)
}

async function workerLife(scene: Scene, until: number): Promise<void> {
  const { random, folder, tally } = scene
  const fileId = scene.nextFile()
  const path = join(folder, `worker-${fileId}`)
  const kill = random.chance(70)
  const lifeMs = Math.max(0, Math.min(30 + random.below(4000), until - Date.now()))
  const workerData: WorkerData = {
    seed: random.below(2 ** 31),
    fileId,
    path,
    mode: random.chance(40) ? 'direct' : 'plain',
    paceMs: scene.pace.ms,
    lifeMs: kill ? 10 * 60_000 : lifeMs,
    end: random.chance(50) ? 'close' : 'exit',
  }
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData })
  let counts = noCounts()
  let failure: unknown
  worker.on('message', (message: Counts) => {
    counts = message
  })
  worker.on('error', (error) => {
    failure = error
  })
  const exited = new Promise<number>((resolve) => worker.once('exit', resolve))
  if (kill) {
    await after(lifeMs)
    await worker.terminate()
    tally.workersKilled++
  } else {
    tally[workerData.end === 'exit' ? 'workersExited' : 'workersClosed']++
  }
  const late = setTimeout(() => {
    throw new Wrong(`a worker (${JSON.stringify(workerData)}) does not end; ${counts.steps} steps`)
  }, lifeMs + 40_000)
  await exited
  clearTimeout(late)
  if (failure !== undefined) throw failure
  add(scene.past, counts)
  try {
    verifyAfterKill(readFileSync(path), fileId, 'what a worker left')
    rmSync(path)
  } catch (error) {
    // Killed before it opened its file.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

/** Children under load. */
export async function children(scene: Scene, until: number): Promise<void> {
  while (Date.now() < until) {
    await after(Math.min(500 + scene.random.below(2500), Math.max(0, until - Date.now())))
    const { status, error } = spawnSync('true')
    if (status !== 0) throw error ?? new Wrong(`a child ended with ${status}`)
    scene.tally.children++
  }
}

/** Garbage, and its collection at odd moments. */
export async function garbage(scene: Scene, until: number): Promise<void> {
  let held: unknown[] = []
  while (Date.now() < until) {
    held.push(Buffer.alloc(1 << 20), new Array(10_000).fill({}))
    if (held.length > 16) held = []
    if (scene.random.chance(10)) {
      collect()
      scene.tally.collections++
    }
    await after(100 + scene.random.below(200))
  }
}
