// Hundreds of thousands of mixed operations, many under way at once, against a model in memory:
// every result is compared. fast-check makes the programs, prints the seed of one that fails, and
// shortens it. `MIX_STEPS` is how many operations there are in all; __test__/slow/ has more.

import test from 'ava'
import type { QueueOptions } from 'node-uring'
import { mixed } from './helpers/mixed.js'

const STEPS = Number(process.env['MIX_STEPS'] ?? 1_000_000)

const QUEUES: Readonly<Record<string, { share: number; direct?: boolean; options: QueueOptions }>> =
  {
    'a queue as it comes': { share: 0.6, options: {} },
    'a ring of 2 entries': { share: 0.1, options: { entries: 2, cqEntries: 2 } },
    'little memory for copies': { share: 0.1, options: { bounceBytes: 2 << 20, entries: 16 } },
    'reads by kernel workers': {
      share: 0.1,
      options: { inline: { smallBytes: 0, aloneBytes: 0, turnBytes: 0 } },
    },
    'a direct file': { share: 0.1, direct: true, options: {} },
  }

for (const [what, { share, direct, options }] of Object.entries(QUEUES)) {
  test.serial(`mixed operations do what the model does: ${what}`, async (t) => {
    await mixed(t, { steps: STEPS * share, direct: direct ?? false, options })
  })
}
