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
  OP_READ,
  OP_RENAMEAT,
  OP_STATX,
  OP_UNLINKAT,
  OP_WRITE,
  syscallOfCall,
} from './backend.js'
import { ERRNO } from './errno.js'
import {
  abortError,
  invalidArgType,
  rejected,
  systemError,
  tellBytesWritten,
  uringError,
  writtenBy,
} from './errors.js'
import { FileState } from './file-state.js'
import { type ParsedPath, parseFlags } from './flags.js'
import { type LimitOptions, type Limits, overBefore } from './limits.js'
import { checkMemory, hasBytes } from './memory.js'
import type { Opened } from './native.js'
import type { Operations } from './operations.js'
import { onOwnDescriptor } from './own-descriptor.js'
import { STATX_STATS, Stats } from './stats.js'

const { EINVAL, EISDIR, ELOOP, EMFILE, ENOENT, EPERM } = ERRNO

/** Options of {@link Queue.replaceFile}. */
export interface ReplaceOptions extends LimitOptions {
  /** Permissions: a number or octal digits. Default: those of the file that is replaced, else 0o666. */
  mode?: number | string | undefined
}

const fchmod = promisify(fs.fchmod)
const fchown = promisify(fs.fchown)
const { readlink, rename, unlink } = fs.promises
/** Links that lead to links, at most. path_resolution(7). */
const LINKS_MAX = 40
/** The permissions in a mode. inode(7). */
const PERMISSIONS = 0o7777
const SLASH = 0x2f
/** <fcntl.h>; Node does not name it. */
const O_PATH = 0o10000000

/** What the content of a file can be given as, or each part of it. */
export type Content = string | NodeJS.ArrayBufferView

const CONTENT = 'of type string or an instance of Buffer, TypedArray, or DataView'

/** The parts of what is to be written. */
type Parts = Iterable<Content> | AsyncIterable<Content>

/** Memory, and how long it was when it was given. */
interface Data {
  readonly bytes: Uint8Array
  readonly length: number
}

/** What the source of the parts threw: it is told as it is, for it is not ours. */
class OfSource {
  readonly error: unknown

  constructor(error: unknown) {
    this.error = error
  }
}

/**
 * What gives the parts of a content. It is asked for the first at once: a stream that fails tells whoever
 * listens, and ends the process where nobody does.
 */
class Source {
  readonly #iterator: Iterator<Content> | AsyncIterator<Content>
  #first: Promise<IteratorResult<Content>> | undefined
  /** It has ended or thrown: then nobody tells it that no more is wanted, as with `for await`. */
  #isOver = false

  constructor(parts: Parts) {
    this.#iterator =
      Symbol.asyncIterator in parts ? parts[Symbol.asyncIterator]() : parts[Symbol.iterator]()
    this.#first = this.#ask()
    this.#first.catch(() => {})
  }

  next(): Promise<IteratorResult<Content>> {
    const next = this.#first ?? this.#ask()
    this.#first = undefined
    return next
  }

  async #ask(): Promise<IteratorResult<Content>> {
    try {
      const { done = false, value } = await this.#iterator.next()
      this.#isOver = done
      return { done, value: await value }
    } catch (error) {
      this.#isOver = true
      throw new OfSource(error)
    }
  }

  /** Nothing more is wanted. */
  async end(): Promise<void> {
    try {
      if (!this.#isOver) await this.#iterator.return?.()
    } catch {
      // It had its chance to tell of that.
    }
  }
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
    if (typeof result === 'number' && result < 0) {
      throw systemError(result, syscallOfCall({ opcode, offset, length, bytes }))
    }
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

  /** Writes the parts, one behind the other. What one of them throws ends it. */
  async writeAll(file: FileState, parts: Data | Source): Promise<void> {
    if (!(parts instanceof Source)) {
      await this.#write(file, parts, 0)
      return
    }
    const operations = this.#operations
    const isOver = operations.isCancelled || operations.endsReads
    const over = isOver ? abortError(undefined, 0) : overBefore(this.#limits, OP_WRITE, 0)
    if (over !== undefined) throw over
    // What gives the parts may take its time, or for ever: its limits end that, and whatever ends reads.
    const [waiting, ended] = operations.share<never>(OP_READ, undefined, this.#limits)
    const { number } = waiting
    const before = until(ended)
    try {
      for (let position = 0; ; ) {
        const { done, value } = await before(parts.next())
        if (done) return
        const data = dataOf(value, 'data')
        await this.#write(file, data, position)
        position += data.length
      }
    } finally {
      if (waiting.number === number) operations.settle(waiting, undefined)
    }
  }

  /** Writes all that there was; what has gone elsewhere since must not pass for nothing. */
  async #write(file: FileState, { bytes, length }: Data, position: number): Promise<void> {
    if (!hasBytes(bytes, length)) {
      throw uringError('ERR_URING_BUFFER_DETACHED', { syscall: 'write', bytesWritten: position })
    }
    if (length === 0) return
    const { transfers } = this.#operations
    try {
      await transfers.transfer(OP_WRITE, file, bytes, length, position, false, this.#limits, true)
    } catch (error) {
      tellBytesWritten(error, position + writtenBy(error))
      throw error
    }
  }

  async rename(from: Buffer, to: Buffer): Promise<void> {
    if (this.#operations.kernel.lacks(OP_RENAMEAT)) await rename(from, to)
    else await this.call(OP_RENAMEAT, undefined, [0, from.length], Buffer.concat([from, to]))
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

/**
 * What the next of many promises comes to, unless `end` rejects first. `Promise.race` would keep all that they
 * came to for as long as there is no end.
 */
function until(end: Promise<never>): <T>(next: Promise<T>) => Promise<T> {
  let over: { error: unknown } | undefined
  let stop: ((error: unknown) => void) | undefined
  end.catch((error: unknown) => {
    over = { error }
    stop?.(error)
  })
  return (next) =>
    new Promise((resolve, reject) => {
      stop = reject
      next.then(resolve, reject)
      if (over !== undefined) reject(over.error)
    })
}

/** The memory of some content. Throws ERR_INVALID_ARG_TYPE, ERR_URING_BUFFER_DETACHED. */
function dataOf(content: unknown, name: string): Data {
  const view = typeof content === 'string' ? Buffer.from(content) : content
  if (!ArrayBuffer.isView(view)) throw invalidArgType(name, CONTENT, content)
  checkMemory(view, 'write', name)
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
  return { bytes, length: bytes.length }
}

/** What was given to write. Throws as {@link dataOf}; what is iterated is looked at when it comes. */
export function checkData(data: unknown): Data | Parts {
  if (typeof data === 'string' || ArrayBuffer.isView(data)) return dataOf(data, 'data')
  const given = Object(data) as { [Symbol.iterator]?: unknown; [Symbol.asyncIterator]?: unknown }
  const iterates = given[Symbol.asyncIterator] ?? given[Symbol.iterator]
  if (typeof data === 'object' && typeof iterates === 'function') return data as Parts
  throw invalidArgType('data', `${CONTENT}, or an iterable of these`, data)
}

/**
 * A path that leads to the same place wherever the process goes meanwhile, and whatever becomes of the names
 * of the folder that it is in now; `letGo` when it is not needed any more. Without /proc it is as it was given.
 */
function fixed(path: Uint8Array): { path: Uint8Array; letGo(): void } {
  const asGiven = { path, letGo() {} }
  if (path[0] === SLASH || path.length === 0) return asGiven
  try {
    // O_PATH: a folder that may be searched need not be readable. open(2)
    const folder = fs.openSync('.', O_PATH | fs.constants.O_DIRECTORY)
    const name = `/proc/self/fd/${folder}`
    const letGo = () => fs.closeSync(folder)
    try {
      // Looked at, and not through: whoever serves the folder would be asked.
      fs.readlinkSync(name)
      return { path: Buffer.concat([Buffer.from(`${name}/`), path]), letGo }
    } catch {
      letGo()
    }
  } catch {
    // No descriptor is left: the first step will say so.
  }
  return asGiven
}

/** See {@link Queue.replaceFile}. Arguments have been checked. */
export async function replaceFile(
  operations: Operations,
  path: ParsedPath,
  data: Data | Parts,
  mode: number | undefined,
  limits: Limits | undefined,
): Promise<void> {
  const content = 'bytes' in data ? data : new Source(data)
  const over = operations.ended?.() ?? overBefore(limits, OP_WRITE, 0)
  if (over !== undefined) {
    if (content instanceof Source) void content.end()
    return rejected(over)
  }
  // The queue does not close between the steps, nor before what they left is gone: as a close, this
  // is nothing that a close cancels. The step that is under way is cancelled.
  const whole = operations.hold()
  whole.opcode = OP_CLOSE
  const { number } = whole
  const { path: place, letGo } = fixed(path.bytes)
  try {
    await replace(operations, new Steps(operations, limits), place, content, mode)
  } catch (error) {
    throw error instanceof OfSource ? error.error : withPath(error, path.text)
  } finally {
    letGo()
    if (content instanceof Source) void content.end()
    if (whole.number === number) operations.settle(whole, undefined)
  }
}

async function replace(
  operations: Operations,
  steps: Steps,
  path: Uint8Array,
  data: Data | Source,
  mode: number | undefined,
): Promise<void> {
  if (path.length === 0) throw systemError(ENOENT, 'open')
  const target = await followed(path)
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
      if (before !== undefined) {
        const keeps = mode === undefined ? permissions : undefined
        await onOwnDescriptor(file.fd, fs.constants.O_RDONLY, (fd) => takeAfter(fd, before, keeps))
      }
      await steps.writeAll(file, data)
      await steps.call(OP_FSYNC, file, [0, 0])
    } finally {
      await file.close()
    }
    await steps.rename(temporary, target)
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
  for (let links = 0; links <= LINKS_MAX; links++) {
    // No link, or nothing there: the end. Whatever else is wrong, the next step is told of, too.
    const to = await readlink(target, 'buffer').catch(() => undefined)
    if (to === undefined) return target
    const absolute = to[0] === SLASH
    target = absolute ? to : Buffer.concat([folderOf(target), Buffer.of(SLASH), to])
  }
  throw systemError(ELOOP, 'open')
}

/** The owner as before, where that is allowed, and permissions without the umask. */
async function takeAfter(
  fd: number,
  before: Stats,
  permissions: number | undefined,
): Promise<void> {
  if (before.uid !== process.geteuid?.() || before.gid !== process.getegid?.()) {
    await fchown(fd, before.uid, before.gid).catch((error: { errno?: number }) => {
      if (error.errno !== -EPERM) throw error
    })
  }
  // A mode that was asked for is subject to the umask, as everywhere; one that was there is not.
  if (permissions !== undefined) await fchmod(fd, permissions)
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
