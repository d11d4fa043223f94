/**
 * A worker of the soak: a queue and a lane of its own, until its time is up or somebody ends it.
 * Tells how far it is; a failure is an uncaught exception, which the main thread sees.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { Queue } from 'node-uring'
import { Lane } from './lane.js'
import { Random } from './random.js'

export interface WorkerData {
  seed: number
  fileId: number
  path: string
  mode: 'plain' | 'direct'
  paceMs: number
  lifeMs: number
  /** What it does when its time is up. */
  end: 'close' | 'exit'
}

const data = workerData as WorkerData
const lane = new Lane({
  fileId: data.fileId,
  path: data.path,
  mode: data.mode,
  sizeMax: 6 << 20,
  strands: 5,
  random: new Random(data.seed),
  wholeCells: true,
  pace: { ms: data.paceMs },
})
const queue = new Queue({ entries: 64 })
const reports = setInterval(() => parentPort?.postMessage(lane.counts), 250)
if (data.end === 'exit') setTimeout(() => process.exit(0), data.lifeMs)
await lane.run(queue, Date.now() + data.lifeMs + (data.end === 'exit' ? 60_000 : 0))
await queue.close()
parentPort?.postMessage(lane.counts)
clearInterval(reports)
