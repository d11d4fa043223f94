// The end of a program with as many operations in flight as there can be. The kernel cancels them one
// by one; a way of asking for it that is quadratic takes minutes, in which no signal helps.

import { execFileSync } from 'node:child_process'
import path from 'node:path'
import test from 'ava'
import { assertEnded, fixture, runChild } from '../helpers/child.js'
import { folder } from '../helpers/scratch.js'

for (const [ending, stdout] of [
  ['by itself', 'ready\n'],
  ['by process.exit()', 'ready\n'],
  ['as a worker that is done', 'worker ended with 0\nall is well\n'],
  ['as a worker that is terminated', 'worker ended with 1\nall is well\n'],
] as const) {
  test.serial(
    `a program with 65,536 reads of a FIFO in flight ends within seconds ${ending}`,
    async (t) => {
      t.timeout(600_000)
      const place = folder(t)
      execFileSync('mkfifo', [path.join(place, 'fifo')])
      const args = ['more operations than slots', ending, place]
      const ended = await runChild(fixture('ending.mjs'), { args, timeoutMs: 20_000 })
      const code = ending === 'by process.exit()' ? 3 : 0
      assertEnded(t, ended, { code, stdout })
    },
  )
}
