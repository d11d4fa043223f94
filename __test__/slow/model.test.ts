// A million mixed operations against the model, on each kind of queue.

import test from 'ava'
import type { QueueOptions } from 'node-uring'
import { mixed } from '../helpers/mixed.js'

const QUEUES: Readonly<Record<string, { direct?: boolean; options: QueueOptions }>> = {
  'a queue as it comes': { options: {} },
  'a ring of 2 entries': { options: { entries: 2, cqEntries: 2 } },
  'little memory for copies': { options: { bounceBytes: 2 << 20, entries: 16 } },
  'reads by kernel workers': {
    options: { inline: { smallBytes: 0, aloneBytes: 0, turnBytes: 0 } },
  },
  'cooperative task running': { options: { setup: { taskRun: 'cooperative' } } },
  'neither task running': { options: { setup: { taskRun: 'interrupt' } } },
  'nothing registered': { options: { register: false } },
  'a direct file': { direct: true, options: {} },
}

for (const [what, { direct, options }] of Object.entries(QUEUES)) {
  test.serial(`a million mixed operations do what the model does: ${what}`, async (t) => {
    await mixed(t, { steps: 1_000_000, direct: direct ?? false, options })
  })
}
