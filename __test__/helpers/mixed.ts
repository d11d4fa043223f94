// Runs programs of mixed operations that fast-check makes, for the fast and the slow suite.

import type { ExecutionContext } from 'ava'
import fc from 'fast-check'
import type { QueueOptions } from 'node-uring'
import { Mix } from './mix.js'
import { assertIdle, ring } from './ring.js'
import { scratch } from './scratch.js'

/** Steps of a program: at most, and on average. */
const PROGRAM_STEPS = 4000
const MEAN_STEPS = 1700

/** Runs about `steps` operations. `MIX_SEED` repeats a run that failed. */
export async function mixed(
  t: ExecutionContext,
  { steps, direct, options }: { steps: number; direct: boolean; options: QueueOptions },
): Promise<void> {
  const queue = ring(t, options, 10 * 60_000)
  const name = scratch(t)
  const file = await queue.open(name, 'w+', { direct })
  const mix = new Mix(queue, file, { blockBytes: file.alignment?.offsetBytes ?? 1 })
  // Shortening a program takes steps out; making the numbers smaller would mean nothing.
  const step = fc.noShrink(fc.nat(2 ** 31 - 1))
  const program = fc.array(step, { maxLength: PROGRAM_STEPS, size: 'max' })
  let run = 0
  const property = fc.asyncProperty(program, async (program) => {
    run += program.length
    await mix.run(program)
  })
  const seed = process.env['MIX_SEED']
  // Programs are of any length: a few of them may be short ones all.
  while (run <= steps / 2) {
    await fc.assert(property, {
      numRuns: Math.ceil(steps / MEAN_STEPS),
      ...(seed === undefined ? {} : { seed: Number(seed) }),
    })
  }
  t.log(`${run} operations`)
  assertIdle(t, queue)
  await file.close()
}
