// The kernel refuses io_uring's system calls: strace(1) makes it, for the calls that it is told and with
// the errno that it is told.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { type Ended, fixture, runChild } from './child.js'
import { folder } from './scratch.js'
import { needs } from './skip.js'

/** For tests that strace has a part in. */
export const injectable = needs(test.serial, {
  commands: ['strace'],
  that: { holds: canTrace(), reason: 'strace may not trace here' },
})

function canTrace(): boolean {
  return spawnSync('strace', ['-o', '/dev/null', 'true'], { stdio: 'ignore' }).status === 0
}

/** The name that Node has for it: EOPNOTSUPP and ENOTSUP are one number. */
export function inNode(errno: string): string {
  return errno === 'EOPNOTSUPP' ? 'ENOTSUP' : errno
}

export type Told = Readonly<Record<string, unknown>>

/** Runs a program of `fixtures/refused.mjs`, in a folder of its own, while calls are refused: `io_uring_enter:error=EBUSY:when=3`. */
export async function refuse(
  t: ExecutionContext,
  what: string,
  inject?: string,
  timeoutMs = 90_000,
): Promise<{ ended: Ended; told: Told[] }> {
  const [call] = inject?.split(':') ?? []
  const under =
    inject === undefined
      ? []
      : ['strace', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${inject}`]
  // libuv can use io_uring, too, and its calls are not to be counted.
  const env = { UV_USE_IO_URING: '0' }
  const options = { args: [what, workplace(t)], under, env, timeoutMs }
  const ended = await runChild(fixture('refused.mjs'), options)
  const told = ended.stdout.split('\n').filter(Boolean)
  return { ended, told: told.map((line) => JSON.parse(line) as Told) }
}

/** A folder with a FIFO `fifo` and a file `data` of numbers. */
export function workplace(t: ExecutionContext): string {
  const place = folder(t)
  execFileSync('mkfifo', [path.join(place, 'fifo')])
  const numbers = new Uint32Array(1 << 18).map((_, i) => i)
  fs.writeFileSync(path.join(place, 'data'), Buffer.from(numbers.buffer))
  return place
}
