/**
 * A queue in each thread of a pool: the pieces of a file are read and hashed by as many threads as
 * there are CPUs. Shows that a queue belongs to the thread that makes it, that threads need not share
 * anything but the name of the file, and how a pool ends: each thread closes its queue.
 *
 *   node examples/worker-pool.js [FILE] [--threads N] [--piece-kib 1024]
 *
 * Without FILE it takes the program that runs it. It is JavaScript, so that threads of Node.js 20 can
 * load it.
 */
import { createHash } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Queue } from 'node-uring'

/** How many pieces a thread has at once: while it hashes one, the kernel reads the others. */
const PIECES_AT_ONCE = 4

if (isMainThread) await main()
else await work(workerData)

// ---- a thread ---------------------------------------------------------------------------------

/** Gets the numbers of pieces, and null when there are no more; answers with `{ piece, digest }`. */
async function work({ path, pieceBytes }) {
  const queue = new Queue()
  try {
    const file = await queue.open(path)
    await new Promise((resolve, reject) => {
      let running = 0
      let isOver = false
      const run = async (piece) => {
        running++
        const buffer = queue.alloc(pieceBytes)
        const count = await file.readAt(buffer, piece * pieceBytes)
        const digest = createHash('sha256').update(buffer.subarray(0, count)).digest('hex')
        queue.free(buffer)
        parentPort.postMessage({ piece, digest })
        running--
        if (isOver && running === 0) resolve()
      }
      parentPort.on('message', (piece) => {
        isOver ||= piece === null
        if (piece !== null) run(piece).catch(reject)
        else if (running === 0) resolve()
      })
    })
  } finally {
    await queue.close()
    // Nothing more will come: the thread may end.
    parentPort.close()
  }
}

// ---- the pool ---------------------------------------------------------------------------------

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: String(availableParallelism()) },
      'piece-kib': { type: 'string', default: '1024' },
    },
  })
  const path = positionals[0] ?? process.execPath
  const pieceBytes = Number(values['piece-kib']) * 1024
  const threads = Number(values.threads)

  const queue = new Queue()
  try {
    const file = await queue.open(path)
    const { size } = await file.stat()
    const startedMs = performance.now()
    const digests = await inThreads({ path, pieceBytes }, threads, Math.ceil(size / pieceBytes))
    const elapsedMs = performance.now() - startedMs
    // The last one by this thread, too, to see that a piece is what it is said to be.
    const last = digests.length - 1
    const bytes = await file.bytesAt(last * pieceBytes, pieceBytes)
    if (createHash('sha256').update(bytes).digest('hex') !== digests[last]) {
      throw new Error('a thread read something else')
    }
    const whole = createHash('sha256').update(digests.join('')).digest('hex').slice(0, 16)
    console.log(
      `${path}: ${digests.length} pieces, ${size} bytes, hashed by ${threads} threads ` +
        `in ${elapsedMs.toFixed(0)} ms (${whole})`,
    )
  } finally {
    await queue.close()
  }
}

/** The digest of each piece. A thread is given another piece when it has brought one. */
async function inThreads(setup, threads, pieces) {
  const digests = []
  let next = 0
  const one = () =>
    new Promise((resolve, reject) => {
      const worker = new Worker(new URL(import.meta.url), { workerData: setup })
      const give = () => worker.postMessage(next < pieces ? next++ : null)
      for (let i = 0; i < PIECES_AT_ONCE; i++) give()
      worker.on('message', ({ piece, digest }) => {
        digests[piece] = digest
        give()
      })
      worker.on('error', reject)
      worker.on('exit', (code) => {
        if (code === 0) resolve()
        else reject(new Error(`a thread ended with ${code}`))
      })
    })
  await Promise.all(Array.from({ length: threads }, one))
  return digests
}
