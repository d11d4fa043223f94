// Places for tests to write: fresh folders that are removed, FIFOs, and mounted file systems.
// Whatever is made here is undone by the test's teardown, also when the test fails.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { ExecutionContext } from 'ava'
import type { File } from 'node-uring'

/** Something that undoes what was made: a test, or a `before` hook's own list. */
export interface Teardown {
  teardown(undo: () => void): void
}

/** A fresh folder in `parent`, removed with all that is in it. */
export function folder(t: Teardown, parent: string = os.tmpdir()): string {
  const made = fs.mkdtempSync(path.join(parent, 'node-uring-'))
  t.teardown(() => fs.rmSync(made, { recursive: true, force: true }))
  return made
}

/** The path of a file in a fresh folder, which holds `content` if there is any. */
export function scratch(
  t: ExecutionContext<unknown>,
  content?: Uint8Array,
  parent?: string,
): string {
  const file = path.join(folder(t, parent), 'file')
  if (content !== undefined) fs.writeFileSync(file, content)
  return file
}

/** A FIFO in a fresh folder. */
export function fifo(t: Teardown): string {
  const made = path.join(folder(t), 'fifo')
  execFileSync('mkfifo', [made])
  return made
}

/** What comes out of a FIFO until it is so many bytes. */
export async function takenOut(reader: File, bytes: number): Promise<Buffer> {
  const parts: Buffer[] = []
  for (let got = 0; got < bytes; ) {
    const part = await reader.bytesAt(0, 100_000)
    got += part.length
    parts.push(part)
  }
  return Buffer.concat(parts)
}

/** A tmpfs of `bytes`, mounted. Needs root. */
export function tmpfs(t: Teardown, bytes: number): string {
  const at = folder(t)
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', at])
  t.teardown(() => execFileSync('umount', ['--lazy', at]))
  return at
}

/**
 * A new file system on a loop device over memory, mounted. `mkfs` is its command and arguments,
 * `sectorBytes` what the device calls a sector. Needs root.
 */
export function loopMount(
  t: Teardown,
  mkfs: readonly [string, ...string[]],
  sectorBytes: 512 | 4096,
): string {
  const image = path.join(folder(t, '/dev/shm'), 'image')
  fs.closeSync(fs.openSync(image, 'w'))
  fs.truncateSync(image, 320 << 20)
  const device = loopDevice(t, image, sectorBytes)
  const [command, ...args] = mkfs
  execFileSync(command, [...args, device], { stdio: 'pipe' })
  const at = folder(t)
  execFileSync('mount', [device, at])
  t.teardown(() => execFileSync('umount', ['--lazy', at]))
  return at
}

/** A loop device over a file. Needs root. */
export function loopDevice(t: Teardown, image: string, sectorBytes: 512 | 4096 = 512): string {
  const losetup = ['--find', '--show', '--sector-size', String(sectorBytes), image]
  const device = execFileSync('losetup', losetup, { encoding: 'utf8' }).trim()
  t.teardown(() => execFileSync('losetup', ['--detach', device]))
  return device
}
