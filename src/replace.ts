/**
 * A file replaced whole or not at all: written beside it, synced, renamed, the folder synced. Made of
 * the ordinary operations; nothing is left behind on any error.
 */
import fs from 'node:fs'
import { promisify } from 'node:util'
import {
  OP_CLOSE,
  OP_FSYNC,
  OP_OPENAT,
  OP_RENAMEAT,
  OP_STATX,
  OP_UNLINKAT,
  OP_WRITE,
  syscallOf,
} from './backend.js'
import { ERRNO } from './errno.js'
import { rejected, systemError, uringError } from './errors.js'
import { FileState } from './file-state.js'
import { type ParsedPath, parseFlags } from './flags.js'
import { type LimitOptions, type Limits, overBefore } from './limits.js'
import { hasBytes } from './memory.js'
import type { Opened } from './native.js'
import type { Operations } from './operations.js'
import { onOwnDescriptor } from './own-descriptor.js'
import { STATX_STATS, Stats } from './stats.js'

const { EINVAL, EISDIR, ELOOP, EMFILE, ENOENT, EPERM } = ERRNO

/** Options of {@link Queue.replaceFile}. */
export interface ReplaceOptions extends LimitOptions {
  /** Permissions: a number or octal digits. Default: those of the file that is replaced, else 0o666. */
  mode?: number | string
}

const fchmod = promisify(fs.fchmod)
const fchown = promisify(fs.fchown)
const { readlink, unlink } = fs.promises
/** Links that lead to links, at most. path_resolution(7). */
const LINKS_MAX = 40
/** The permissions in a mode. inode(7). */
const PERMISSIONS = 0o7777
const SLASH = 0x2f

/** What is to be written: the memory, and how long it was at the call. */
interface Data {
  readonly bytes: Uint8Array
  readonly length: number
}

/** The steps of a replacement, each an operation that may also start while the queue closes. */
class Steps {
  readonly #operations: Operations
  readonly #limits: Limits | undefined

  constructor(operations: Operations, limits: Limits | undefined) {
    this.#operations = operations
    this.#limits = limits
  }

  async call(
    opcode: number,
    file: FileState | undefined,
    numbers: readonly [offset: number, length: number],
    bytes?: Uint8Array,
  ): Promise<unknown> {
    const [offset, length] = numbers
    const limits = this.#limits
    const options = { internal: true, limits, ...(bytes === undefined ? {} : { bytes }) }
    const result = await this.#operations.call(opcode, file, offset, length, 0, options)
    if (typeof result === 'number' && result < 0) throw systemError(result, syscallOf(opcode))
    return result
  }

  async open(path: Uint8Array, flags: number, mode: number): Promise<FileState> {
    const opened = await this.call(OP_OPENAT, undefined, [flags >>> 0, mode], path)
    if (opened === null) throw systemError(EMFILE, 'open')
    const { file, fd } = opened as Opened
    return new FileState(this.#operations, file, fd, undefined, flags)
  }

  /** What is at the path, links followed; undefined when there is nothing. */
  async stat(path: Uint8Array): Promise<Stats | undefined> {
    try {
      const statx = await this.call(OP_STATX, undefined, [0, STATX_STATS], path)
      return new Stats(statx as Uint8Array)
    } catch (error) {
      if ((error as { errno?: number }).errno === -ENOENT) return undefined
      throw error
    }
  }

  /** Writes all that there was at the call; what has gone elsewhere since must not pass for nothing. */
  async write(file: FileState, { bytes, length }: Data): Promise<void> {
    if (!hasBytes(bytes, length)) {
      throw uringError('ERR_URING_BUFFER_DETACHED', { syscall: 'write', bytesWritten: 0 })
    }
    if (length === 0) return
    const { transfers } = this.#operations
    await transfers.transfer(OP_WRITE, file, bytes, length, 0, false, this.#limits, true)
  }

  /** Takes a name away, also when the queue has ended and cannot. */
  async remove(path: Uint8Array): Promise<void> {
    try {
      await this.call(OP_UNLINKAT, undefined, [0, 0], path)
    } catch {
      await unlink(Buffer.from(path)).catch(() => {})
    }
  }
}

/** See {@link Queue.replaceFile}. Arguments have been checked. */
export async function replaceFile(
  operations: Operations,
  path: ParsedPath,
  data: ArrayBufferView,
  mode: number | undefined,
  limits: Limits | undefined,
): Promise<void> {
  if (operations.ended !== undefined) return rejected(operations.ended())
  const over = overBefore(limits, OP_WRITE, 0)
  if (over !== undefined) return rejected(over)
  // The queue does not close between the steps, nor before what they left is gone: as a close, this
  // is nothing that a close cancels. The step that is under way is cancelled.
  const whole = operations.hold()
  whole.opcode = OP_CLOSE
  const { number } = whole
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  try {
    const what = { bytes, length: bytes.length }
    await replace(operations, new Steps(operations, limits), path, what, mode)
  } catch (error) {
    throw withPath(error, path.text)
  } finally {
    if (whole.number === number) operations.settle(whole, undefined)
  }
}

async function replace(
  operations: Operations,
  steps: Steps,
  path: ParsedPath,
  data: Data,
  mode: number | undefined,
): Promise<void> {
  const target = await followed(path.bytes)
  const folder = folderOf(target)
  const before = await steps.stat(target)
  if (before?.isDirectory()) throw systemError(EISDIR, 'open')
  // A device or a FIFO has no content to replace; by rename(2) it would be gone.
  if (before !== undefined && !before.isFile()) throw systemError(EINVAL, 'open')
  const temporary = Buffer.concat([folder, Buffer.from(`/.${crypto.randomUUID()}.tmp`)])
  const permissions = mode ?? (before === undefined ? 0o666 : before.mode & PERMISSIONS)
  try {
    const file = await steps.open(temporary, parseFlags('wx'), permissions)
    try {
      if (before !== undefined || mode !== undefined)
        await onOwnDescriptor(file.fd, fs.constants.O_RDONLY, (fd) =>
          takeAfter(fd, before, permissions, mode),
        )
      await steps.write(file, data)
      await steps.call(OP_FSYNC, file, [0, 0])
    } finally {
      await file.close()
    }
    const both = Buffer.concat([temporary, target])
    await steps.call(OP_RENAMEAT, undefined, [0, temporary.length], both)
  } catch (error) {
    // Whatever went wrong, nothing is left behind; limits do not apply to that.
    await new Steps(operations, undefined).remove(temporary)
    throw error
  }
  await syncFolder(steps, folder)
}

/** The new name is durable when the folder that has it is. Some file systems have no such thing. */
async function syncFolder(steps: Steps, path: Uint8Array): Promise<void> {
  const folder = await steps.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY, 0)
  try {
    await steps.call(OP_FSYNC, folder, [0, 0])
  } catch (error) {
    if ((error as { errno?: number }).errno !== -EINVAL) throw error
  } finally {
    await folder.close()
  }
}

/** Where the links of a path lead: to what is there, or, as open(2) has it, to what is to be made. */
async function followed(path: Uint8Array): Promise<Buffer> {
  let target = Buffer.from(path)
  for (let links = 0; links < LINKS_MAX; links++) {
    // No link, or nothing there: the end. Whatever else is wrong, the next step is told of, too.
    const to = await readlink(target, 'buffer').catch(() => undefined)
    if (to === undefined) return target
    const absolute = to[0] === SLASH
    target = absolute ? to : Buffer.concat([folderOf(target), Buffer.of(SLASH), to])
  }
  throw systemError(ELOOP, 'open')
}

/** Permissions without the umask, and the owner as before, where that is allowed. */
async function takeAfter(
  fd: number,
  before: Stats | undefined,
  permissions: number,
  mode: number | undefined,
): Promise<void> {
  const mine = process.geteuid?.()
  if (before !== undefined && (before.uid !== mine || before.gid !== process.getegid?.())) {
    await fchown(fd, before.uid, before.gid).catch((error: { errno?: number }) => {
      if (error.errno !== -EPERM) throw error
    })
  }
  // A mode that was asked for is subject to the umask, as everywhere; one that was there is not.
  if (before !== undefined && mode === undefined) await fchmod(fd, permissions)
}

function folderOf(path: Buffer): Buffer {
  const slash = path.lastIndexOf(SLASH)
  if (slash < 0) return Buffer.from('.')
  return slash === 0 ? Buffer.from('/.') : path.subarray(0, slash)
}

/** The caller's path in the error of a step, as node:fs would have it. */
function withPath(error: unknown, path: string): unknown {
  const { errno, syscall, bytesWritten } = error as {
    errno?: number
    syscall?: string
    bytesWritten?: number
  }
  if (errno === undefined || syscall === undefined) return error
  const told = systemError(errno, syscall, { path, bytesWritten, cause: error })
  Error.captureStackTrace(told, replaceFile)
  return told
}
