// `iopoll` on a device that polls: an NVMe drive of a guest, whose driver was given a queue to poll.
// And, so that this can fail, on the same drive without.

import fs from 'node:fs'
import test from 'ava'
import type { GuestEnd } from '../../scripts/guest/guest.js'
import type { KernelName } from '../../scripts/guest/system.js'
import { fixture } from '../helpers/child.js'
import { ext4Image, GUEST_COMMANDS, kernels, run, story } from '../helpers/guest.js'
import type { Teardown } from '../helpers/scratch.js'
import { needs } from '../helpers/skip.js'

function poll(t: Teardown, kernel: KernelName, queues: number): Promise<GuestEnd> {
  return run(t, {
    kernel,
    program: fs.readFileSync(fixture('iopoll-guest.mjs'), 'utf8'),
    args: ['/mnt'],
    before: 'mount -t ext4 /dev/nvme0n1 /mnt',
    drives: [`file=${ext4Image(t)},format=raw`],
    kernelArguments: [`nvme.poll_queues=${queues}`],
    timeoutMs: 240_000,
  })
}

for (const kernel of ['6.1', '6.12'] as const) {
  needs(test.serial, { commands: GUEST_COMMANDS, that: kernels(kernel) })(
    `a queue with iopoll reads and writes on an NVMe drive with poll queues, on Linux ${kernel}`,
    async (t) => {
      t.timeout(300_000)
      const end = await poll(t, kernel, 1)
      t.is(end.code, 0, story(end))
      t.true(end.lines.includes('polled'), story(end))
    },
  )
}

needs(test.serial, { commands: GUEST_COMMANDS, that: kernels('6.12') })(
  'on the same drive without poll queues iopoll is refused, and the error says what the drive lacks',
  async (t) => {
    t.timeout(300_000)
    const end = await poll(t, '6.12', 0)
    t.is(end.code, 1, story(end))
    t.regex(
      end.lines.join('\n'),
      /needs a device with poll queues, and this one has none: \/sys\/dev\/block\/259:0/,
      story(end),
    )
  },
)
