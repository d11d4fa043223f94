// A mounted file system whose replies are short, fail, come late or do not come: see
// fixtures/fuse-server.mjs. It is a process of its own, and is unmounted by the test's teardown.

import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { ExecutionContext } from 'ava'
import { fixture } from './child.js'
import { folder } from './scratch.js'

/** What a test with such a file system needs: `needs(test, FUSE)`. */
export const FUSE = {
  root: true,
  that: { holds: fs.existsSync('/dev/fuse'), reason: 'needs /dev/fuse' },
  commands: ['mount', 'umount'],
}

/** What a file does wrong; nothing is a good file. */
export interface Fault {
  /** Most bytes that a read or write does. */
  readonly maxBytes?: number
  /** From this byte on nothing is read or written, but refused with `errno` (EIO). */
  readonly failFrom?: number
  /** How many requests are refused for that; default all. */
  readonly failTimes?: number
  readonly errno?: number
  /** How much later replies come. */
  readonly delayMs?: number
  /** Replies do not come until `release`. */
  readonly held?: boolean
  /** Kept replies end with EINTR when the kernel says that nobody waits for them. */
  readonly interruptible?: boolean
  /** How much later replies to fsync come, and with which errno the first ones fail; 0 for none. */
  readonly syncMs?: number
  /** Replies to fsync do not come until `release`. */
  readonly syncHeld?: boolean
  readonly syncErrnos?: readonly number[]
  /** Where a line is written for each write (`w OFFSET`), begun (`s`) and good fsync (`e`). */
  readonly log?: string
}

/** Where it is mounted, and what it does. */
export interface Fuse {
  /** The path of a file in it. */
  at(name: string): string
  /** The path of the same file behind it, without faults. */
  behind(name: string): string
  /** Waits until so many replies have been kept. */
  held(count: number): Promise<void>
  /** Sends the replies that were kept, and keeps no more. */
  release(): void
}

/**
 * Mounts files of `content`, each with its fault. `async`: the kernel may have several requests of
 * one read or write out, and waits for none; with `sync` its thread waits for each.
 */
export async function fuse(
  t: ExecutionContext<unknown>,
  mode: 'async' | 'sync',
  files: Readonly<Record<string, Fault & { readonly content?: Uint8Array }>>,
): Promise<Fuse> {
  const [store, mount] = [folder(t), folder(t)]
  const faults: Record<string, Fault> = {}
  for (const [name, { content = new Uint8Array(0), ...fault }] of Object.entries(files)) {
    fs.writeFileSync(path.join(store, name), content)
    faults[name] = fault
  }
  const program = fileURLToPath(fixture('fuse-server.mjs'))
  const args = [program, store, mount, mode, JSON.stringify(faults)]
  const server = spawn(process.execPath, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const ended = new Promise((resolve) => server.once('exit', resolve))
  t.teardown(async () => {
    spawnSync('umount', ['--lazy', mount], { stdio: 'ignore' })
    server.kill('SIGKILL')
    await ended
  })
  const seen = { ready: 0, held: 0 }
  let look = (): void => {}
  createInterface(server.stdout).on('line', (line) => {
    seen[line as keyof typeof seen]++
    look()
  })
  const until = (what: keyof typeof seen, count: number): Promise<void> => {
    return new Promise((resolve, reject) => {
      look = () => {
        if (seen[what] >= count) resolve()
      }
      look()
      void ended.then(() => reject(new Error(`the FUSE server ended before ${count} ${what}`)))
    })
  }
  await until('ready', 1)
  return {
    at: (name) => path.join(mount, name),
    behind: (name) => path.join(store, name),
    held: (count) => until('held', count),
    release: () => void server.stdin.write('release\n'),
  }
}
