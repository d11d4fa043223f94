// A worker of the group `workers`: reads as many random blocks as it is told, 128 at once, through a
// queue of its own. In JavaScript, because Node.js 20 loads no TypeScript in a worker.
import { parentPort, workerData } from 'node:worker_threads'
import { Queue } from 'node-uring'

const BLOCK_BYTES = 4096
const AT_ONCE = 128
const { path, blocks } = workerData
const queue = new Queue()
const file = await queue.open(path)
const buffers = Array.from({ length: AT_ONCE }, () => queue.alloc(BLOCK_BYTES))

parentPort.on('message', async (operations) => {
  let started = 0
  const from = process.hrtime.bigint()
  await Promise.all(
    buffers.map(async (buffer) => {
      while (started < operations) {
        started++
        await file.readAt(buffer, Math.floor(Math.random() * blocks) * BLOCK_BYTES)
      }
    }),
  )
  parentPort.postMessage(Number(process.hrtime.bigint() - from))
})
