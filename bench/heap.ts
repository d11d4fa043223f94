/**
 * Measures what operations leave on the heap: a process of its own, with --expose-gc, which sends
 * the growth of `heapUsed` in bytes, one number a round, to the process that forked it.
 */
import { Queue } from 'node-uring'
import { Blocks, nops, readAts, times } from './loops.js'

const BLOCK_BYTES = 4096

const [path = '', fileBytes = '0', operations = '0', rounds = '0'] = process.argv.slice(2)
const collect = globalThis.gc
if (collect === undefined || process.send === undefined) {
  throw new Error('bench/run.ts forks this, with --expose-gc')
}

const queue = new Queue()
const file = await queue.open(path)
const arena = times(128, () => queue.alloc(BLOCK_BYTES))
const plain = times(128, () => new Uint8Array(BLOCK_BYTES))
const blocks = new Blocks(Number(fileBytes), BLOCK_BYTES)

/** Half nops, a quarter reads into the arena, a quarter into plain memory. */
async function work(count: number): Promise<void> {
  await nops(queue, 128, count / 2)
  await readAts(file, arena, blocks, count / 4)
  await readAts(file, plain, blocks, count / 4)
}

async function heapUsed(): Promise<number> {
  // The second finds what finalizers of the first let go.
  for (let i = 0; i < 3; i++) {
    collect?.()
    await new Promise(setImmediate)
  }
  return process.memoryUsage().heapUsed
}

// Compiled code is on the heap: let the compiler come to rest first.
await work(Number(operations) / 4)
const growths: number[] = []
for (let round = 0; round < Number(rounds); round++) {
  const before = await heapUsed()
  await work(Number(operations))
  growths.push((await heapUsed()) - before)
}
await queue.close()
process.send(growths)
process.disconnect()
