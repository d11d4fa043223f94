/**
 * How waiting and threads fare: one direct read at a time by each way to reap and by a polling thread,
 * beside fio's engines, and cached reads by two workers beside one.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { Queue, type QueueOptions } from 'node-uring'
import { type Bench, BLOCK_BYTES, cacheKeeper, FILE_BYTES, type Group, MIB } from './group.js'
import { type Cost, inProcess, type Side } from './harness.js'
import { Blocks, readAts, times } from './loops.js'
import { fioSide } from './programs.js'
import { cachedFile, directFile } from './scratch.js'

export const THREAD_GROUPS: readonly Group[] = [
  { name: 'waiting', about: 'one direct read at a time, by each way to wait', run: waitingGroup },
  { name: 'workers', about: 'cached reads by two workers beside one', run: workersGroup },
]

async function waitingGroup(bench: Bench): Promise<void> {
  const queues = [new Queue()]
  const buffer = (queues[0] as Queue).alloc(MIB)
  const path = directFile(bench.folder, 'waiting.bin', FILE_BYTES, buffer)
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const side = async (name: string, options: QueueOptions): Promise<Side> => {
    const queue = new Queue(options)
    queues.push(queue)
    const file = await queue.open(path, 'r', { direct: true })
    const one = times(1, () => queue.alloc(BLOCK_BYTES))
    return inProcess(name, (n) => readAts(file, one, blocks, n))
  }
  // The kernel's thread spins for so long after a round. The next one has both CPUs to itself.
  const sqpoll = { idleMs: 5 }
  const before = () => sleepSync(4 * sqpoll.idleMs)
  const job = { file: path, depth: 1, direct: true }
  const cell = 'read 4 KiB O_DIRECT, one at a time'
  const sides = {
    eventfd: await side("node-uring, reap: 'eventfd'", {}),
    poll: await side("node-uring, reap: 'poll'", { reap: 'poll' }),
    sqpoll: await side('node-uring, sqpoll', { sqpoll }),
    slept: await side("node-uring, sqpoll, reap: 'eventfd'", { sqpoll, reap: 'eventfd' }),
    ...((bench.fio
      ? {
          fio: fioSide('fio io_uring', job),
          psync: fioSide('fio psync', { ...job, engine: 'psync' }),
        }
      : {}) as Record<'fio' | 'psync', Side>),
  }
  const beside = (ours: 'poll' | 'sqpoll', theirs: keyof typeof sides, atMost: number) =>
    ({ cell: `${cell}, ${ours}`, measure: 'time', ours, theirs, target: { atMost } }) as const
  const rows = [beside('poll', 'eventfd', 1), beside('sqpoll', 'eventfd', 1)]
  if (bench.fio) rows.push(beside('poll', 'fio', 1.25), beside('poll', 'psync', 1.25))
  await bench.contest({ name: cell, before, sides, rows })
  await Promise.all(queues.map((queue) => queue.close()))
}

function sleepSync(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

async function workersGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'workers.bin', FILE_BYTES)
  const options = { workerData: { path, blocks: FILE_BYTES / BLOCK_BYTES } }
  const program = new URL('cached-reader.mjs', import.meta.url)
  const workers = times(2, () => new Worker(program, options))
  const cell = 'read 4 KiB cached ×128, two workers'
  await bench.contest({
    name: cell,
    before: cacheKeeper(path),
    sides: { two: workerSide('two workers', workers), one: workerSide('one', workers.slice(0, 1)) },
    rows: [{ cell, measure: 'rate', ours: 'two', theirs: 'one', target: { atLeast: 1.8 } }],
  })
  await Promise.all(workers.map((worker) => worker.terminate()))
}

/** Shares the operations among workers: what one costs is the time of the slowest by how many there were. */
function workerSide(name: string, workers: readonly Worker[]): Side {
  return {
    name,
    async run(operations): Promise<Cost> {
      const each = Math.ceil(operations / workers.length)
      const from = process.cpuUsage()
      for (const worker of workers) worker.postMessage(each)
      const elapsedNs = await Promise.all(
        workers.map(async (worker) => ((await once(worker, 'message')) as [number])[0]),
      )
      const { user, system } = process.cpuUsage(from)
      const all = each * workers.length
      return { wallNs: Math.max(...elapsedNs) / all, cpuNs: ((user + system) * 1000) / all }
    },
  }
}
