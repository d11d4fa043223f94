/**
 * Files to measure on: a folder of our own on a real file system, and XFS on a loop device whose
 * backing file is in memory. All of it is gone when the program ends.
 */
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { onExit } from './cleanup.js'

const MIB = 1 << 20
const XFS_PREFIX = 'xfs-'

/** Why something is not measured here. */
export class Skip extends Error {}

/** The mount that a path is on. */
export interface Mount {
  /** `ext4`, `xfs`, `tmpfs`, … */
  type: string
  device: string
  folder: string
}

/** Reads proc_pid_mountinfo(5). */
export function mountOf(path: string): Mount {
  const real = realpathSync(path)
  let best: Mount = { type: 'unknown', device: 'unknown', folder: '' }
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [before, after] = line.split(' - ')
    const folder = before?.split(' ')[4]?.replaceAll('\\040', ' ')
    const [type, device] = after?.split(' ') ?? []
    if (folder === undefined || type === undefined || device === undefined) continue
    const inside = real === folder || real.startsWith(folder === '/' ? '/' : `${folder}/`)
    if (inside && folder.length >= best.folder.length) best = { type, device, folder }
  }
  return best
}

/** Whether the path is in memory and on no disk. */
export function isInMemory({ type }: Mount): boolean {
  return type === 'tmpfs' || type === 'ramfs' || type === 'overlay'
}

/** Makes a folder of our own: in `parent`, or in the temporary folder if that is on a disk. */
export function scratchFolder(parent: string | undefined): string {
  const here = resolve('target')
  let place = parent ?? tmpdir()
  if (parent === undefined && isInMemory(mountOf(place))) {
    mkdirSync(here, { recursive: true })
    if (!isInMemory(mountOf(here))) place = here
  }
  const folder = mkdtempSync(join(place, 'node-uring-bench-'))
  onExit(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Writes a file of random bytes through the page cache, where it stays. */
export function cachedFile(folder: string, name: string, bytes: number): string {
  return writeFile(join(folder, name), bytes, new Uint8Array(MIB), constants.O_CREAT)
}

/**
 * Reads the file through the page cache, so that it is in there: a system may take pages back that
 * nobody has read for a while.
 */
export function keepCached(path: string, buffer: Uint8Array): void {
  const fd = openSync(path, 'r')
  while (readSync(fd, buffer, 0, buffer.length, null) > 0);
  closeSync(fd)
}

/**
 * Writes a file past the page cache. `buffer` is 1 MiB of aligned memory; throws {@link Skip} where
 * the file system takes no O_DIRECT.
 */
export function directFile(
  folder: string,
  name: string,
  bytes: number,
  buffer: Uint8Array,
): string {
  try {
    return writeFile(join(folder, name), bytes, buffer, constants.O_CREAT | constants.O_DIRECT)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
    throw new Skip(`${mountOf(folder).type} takes no O_DIRECT`)
  }
}

function writeFile(path: string, bytes: number, buffer: Uint8Array, flags: number): string {
  // A side in a process of its own finds the file that was made for all.
  if (statSync(path, { throwIfNoEntry: false })?.size === bytes) return path
  const fd = openSync(path, constants.O_WRONLY | flags, 0o600)
  try {
    for (let at = 0; at < bytes; at += buffer.length) {
      crypto.getRandomValues(buffer.subarray(0, 65536))
      for (let to = 65536; to < buffer.length; to += 65536) buffer.copyWithin(to, 0, 65536)
      writeSync(fd, buffer, 0, Math.min(buffer.length, bytes - at), at)
    }
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
  return path
}

/** A mounted file system of our own. */
export interface Volume {
  folder: string
  /** How the header describes it. */
  text: string
  unmount(): void
}

/**
 * Makes XFS of so many bytes on a loop device over a file in /dev/shm, or finds the one that is mounted for
 * all sides. Root only.
 */
export function xfsInMemory(scratch: string, bytes: number): Volume {
  const mounted = readdirSync(scratch)
    .filter((name) => name.startsWith(XFS_PREFIX))
    .map((name) => join(scratch, name))
    .find((folder) => mountOf(folder).type === 'xfs')
  if (mounted !== undefined) return { folder: mounted, text: 'xfs', unmount() {} }
  if (process.getuid?.() !== 0) throw new Skip('mounting needs root')
  const missing = ['mkfs.xfs', 'losetup', 'mount', 'umount'].find((name) => !isInstalled(name))
  if (missing !== undefined) throw new Skip(`${missing} is not installed`)
  if (!existsSync('/dev/shm') || mountOf('/dev/shm').type !== 'tmpfs') {
    throw new Skip('/dev/shm is not in memory')
  }

  const memory = mkdtempSync('/dev/shm/node-uring-bench-')
  const undoMemory = onExit(() => rmSync(memory, { recursive: true, force: true }))
  const image = join(memory, 'xfs.img')
  writeFileSync(image, '')
  truncateSync(image, bytes)
  const device = attempt('losetup', '--find', '--show', image).trim()
  const undoDevice = onExit(() => attempt('losetup', '--detach', device))
  attempt('mkfs.xfs', '-q', '-f', device)

  // A name of its own: more than one group asks for one.
  const folder = mkdtempSync(join(scratch, XFS_PREFIX))
  attempt('mount', '-t', 'xfs', device, folder)
  // Lazily: at a ctrl-C our own files are still open. The kernel finishes when we are gone.
  const undoMount = onExit(() => attempt('umount', '--lazy', folder))
  return {
    folder,
    text: `xfs on ${device}, a loop device over ${mountOf('/dev/shm').type}`,
    unmount() {
      undoMount()
      undoDevice()
      undoMemory()
    },
  }
}

/** Runs a tool for its output; that it is refused is no failure of the benchmark. */
function attempt(program: string, ...args: string[]): string {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    const { stderr } = error as { stderr?: string }
    throw new Skip(`${program} failed: ${stderr?.trim() || String(error)}`)
  }
}

/** Whether a program is on the path. */
export function isInstalled(program: string): boolean {
  const folders = (process.env['PATH'] ?? '').split(':')
  return [...folders, '/sbin', '/usr/sbin'].some((folder) => existsSync(join(folder, program)))
}
