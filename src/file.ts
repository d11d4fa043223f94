/**
 * A file of a queue: positioned reads and writes, syncs, size, close. Checks arguments and hands
 * them to `operations.ts`; never touches the engine itself.
 */
import { ftruncate } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  OP_CLOSE,
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_READ,
  OP_STATX,
  OP_TIMEOUT,
  OP_WRITE,
} from './backend.js'
import { ERRNO } from './errno.js'
import { rejected, systemError, uringError } from './errors.js'
import { isAppend, isDirect } from './flags.js'
import { isDetached } from './memory.js'
import type { Operations } from './operations.js'
import { directAlignment, STATX_DIOALIGN, STATX_STATS, Stats } from './stats.js'
import {
  checkBoolean,
  checkInteger,
  checkLength,
  checkOptions,
  checkPosition,
  checkView,
} from './validate.js'

const { EBADF, EINVAL } = ERRNO
/** Alignment to assume of a direct file whose kernel cannot say (STATX_DIOALIGN is of 6.1). */
const BLOCK_BYTES_UNKNOWN = 4096
/** How long a close with `timeoutMs` waits for the kernel after it has cancelled. */
const CANCEL_GRACE_MS = 1000
/** Turns of the event loop that it then waits, so that what has come is taken. */
const TURNS_AFTER_GRACE = 64

/** Options of {@link File.writeAt} and {@link File.append}. */
export interface WriteOptions {
  /** Settle when the data is on stable storage: fdatasync(2) linked behind the write. */
  datasync?: boolean
}

/** Options of `close`. */
export interface CloseOptions {
  /** Cancel what is in flight after so many milliseconds, 0 for at once. Default: wait for it. */
  timeoutMs?: number
}

/** What operations need to know of an open file. */
export class FileState {
  readonly operations: Operations
  readonly handle: number
  readonly fd: number
  readonly path: string | undefined
  readonly append: boolean
  /** What direct I/O asks of position and length, and of memory; 0 and 1 for a buffered file. */
  blockBytes = 0
  memoryBytes = 1
  /** Whether a short read means that there may be more: regular files and block devices. */
  fills: boolean | undefined = undefined
  /** Operations under way. */
  pending = 0
  /** Nothing new may start. */
  closed = false
  /** Called when the last operation under way has settled. */
  onIdle: (() => void) | undefined = undefined
  /** Called when the descriptor is closed. */
  onClosed: (() => void) | undefined = undefined
  #closing: Promise<void> | undefined
  #learning: Promise<void> | undefined

  constructor(
    operations: Operations,
    handle: number,
    fd: number,
    path: string | undefined,
    flags: number,
  ) {
    this.operations = operations
    this.handle = handle
    this.fd = fd
    this.path = path
    this.append = isAppend(flags)
    if (isDirect(flags)) this.blockBytes = BLOCK_BYTES_UNKNOWN
  }

  /** statx(2) of the file; throws what the kernel says. */
  async statx(mask: number): Promise<Uint8Array> {
    const outcome = await this.operations.call(OP_STATX, this, 0, mask, 0, undefined, true)
    if (outcome instanceof Uint8Array) return outcome
    return rejected(this.operations.failure(Number(outcome ?? -EINVAL), 'fstat'))
  }

  /** Finds out what kind of file this is, once. One that cannot say is read like a stream. */
  learn(): Promise<void> {
    this.#learning ??= this.statx(STATX_STATS).then(
      (bytes) => {
        const stats = new Stats(bytes)
        this.fills = stats.isFile() || stats.isBlockDevice()
      },
      // Whoever asked takes what it has; the next asks again.
      () => {
        this.#learning = undefined
      },
    )
    return this.#learning
  }

  /** Asks a direct file for its alignment. `open` waits for it. */
  async learnAlignment(): Promise<void> {
    const bytes = await this.statx(STATX_STATS | STATX_DIOALIGN)
    const stats = new Stats(bytes)
    this.fills = stats.isFile() || stats.isBlockDevice()
    const alignment = directAlignment(bytes)
    this.blockBytes = alignment?.offsetBytes || BLOCK_BYTES_UNKNOWN
    this.memoryBytes = alignment?.memoryBytes || BLOCK_BYTES_UNKNOWN
  }

  /** Waits for what is under way, then closes the descriptor. The first call decides how. */
  close(timeoutMs?: number): Promise<void> {
    this.#closing ??= this.#close(timeoutMs)
    return this.#closing
  }

  async #close(timeoutMs: number | undefined): Promise<void> {
    this.closed = true
    await settled(this, timeoutMs, () => this.operations.cancel((op) => op.file === this))
    if (this.pending === 0) return this.#end()
    // The descriptor goes when the kernel has given all of them back, or with the queue.
    settled(this, undefined, () => {})
      .then(() => this.#end())
      .catch(() => {})
    throw uringError('ERR_URING_BUSY', { held: this.operations.describe((op) => op.file === this) })
  }

  async #end(): Promise<void> {
    const result = await this.operations.call(OP_CLOSE, this, 0, 0, 0, undefined, true)
    this.onClosed?.()
    if (typeof result === 'number' && result < 0) throw systemError(result, 'close')
  }

  /** Cancels reads, which may never end by themselves; writes are left alone. */
  cancelReads(): void {
    this.operations.cancel((op) => op.file === this && op.opcode === OP_READ)
  }
}

/** Something with operations under way: a file, or a queue. */
interface Busy {
  pending: number
  onIdle: (() => void) | undefined
}

/**
 * Waits until nothing is under way. With a time, calls `cancel` when it is up, and gives the kernel
 * a while to let go; then something may still be under way.
 */
export async function settled(
  busy: Busy,
  timeoutMs: number | undefined,
  cancel: () => void,
): Promise<void> {
  if (busy.pending === 0) return
  const idle = new Promise<void>((resolve) => {
    const before = busy.onIdle
    busy.onIdle = () => {
      busy.onIdle = before
      before?.()
      resolve()
    }
  })
  if (timeoutMs === undefined) {
    await idle
    // What awaited the last operation may begin another: an open, its statx.
    return turns(1)
  }
  if (timeoutMs > 0 && (await within(idle, timeoutMs))) return turns(1)
  cancel()
  // As long as the kernel gives operations back, it will give the others back too.
  for (let before = Infinity; busy.pending > 0 && busy.pending < before; ) {
    before = busy.pending
    await within(idle, CANCEL_GRACE_MS)
    // That time may have passed while this thread was busy, with completions waiting to be taken.
    for (let turn = 0; turn < TURNS_AFTER_GRACE && busy.pending > 0; turn++) await turns(1)
  }
}

/** Lets the event loop come round. */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await setImmediate()
}

/** Whether the promise settles within so many milliseconds. */
function within(promise: Promise<void>, ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms, false)
    void promise.then(() => {
      clearTimeout(timer)
      resolve(true)
    })
  })
}

/** Checks an option bag with `timeoutMs`. */
export function closeTimeout(options: CloseOptions | undefined): number | undefined {
  if (options === undefined) return undefined
  checkOptions(options)
  if (options.timeoutMs === undefined) return undefined
  checkInteger(options.timeoutMs, 'options.timeoutMs', 0, 2 ** 31 - 1)
  return options.timeoutMs
}

/** Closes files that their owner forgot. Holds the state, which operations use, and not the File. */
const forgotten = new FinalizationRegistry((state: FileState) => {
  if (state.closed || state.operations.ended !== undefined) return
  const name = state.path === undefined ? `descriptor ${state.fd}` : `'${state.path}'`
  process.emitWarning(`A File (${name}) was collected without close()`, {
    code: 'URING_FILE_NOT_CLOSED',
    detail:
      'It is closed now. Close files when you are done: the collector may come late or never.',
  })
  state.close().catch(() => {})
})

/**
 * An open file. Made by {@link Queue.open} and {@link Queue.adopt}.
 *
 * Every method checks its arguments before anything is staged and throws `TypeError` or
 * `RangeError` with Node's codes. What fails later rejects with the kernel's errno in the words of
 * node:fs; on a closed file with `EBADF`. Operations are unordered.
 */
export class File {
  readonly #state: FileState
  readonly #operations: Operations

  /** @internal */
  constructor(state: FileState) {
    this.#state = state
    this.#operations = state.operations
    forgotten.register(this, state, this)
  }

  /** The path as it was given to `open`; undefined for an adopted descriptor. */
  get path(): string | undefined {
    return this.#state.path
  }

  /** The descriptor's number, for calls that this library has not. Do not close it. */
  get fd(): number {
    return this.#state.fd
  }

  /** What direct I/O asks of this file, in bytes; undefined for a buffered one. */
  get alignment(): { memoryBytes: number; offsetBytes: number } | undefined {
    const { blockBytes, memoryBytes } = this.#state
    return blockBytes === 0 ? undefined : { memoryBytes, offsetBytes: blockBytes }
  }

  /**
   * Reads into `buffer` from `position`, a byte offset. Resolves with the number of bytes: all that
   * the buffer holds, fewer if the file ends, 0 at the end. From a FIFO, terminal or socket one read
   * is one read, and the position is ignored.
   *
   * A buffer from {@link Queue.alloc} is filled in place; any other is copied to on completion, and
   * one that was transferred or shrunk by then rejects with `ERR_URING_BUFFER_DETACHED`. pread(2).
   */
  readAt(buffer: NodeJS.ArrayBufferView, position: number | bigint): Promise<number> {
    checkView(buffer)
    checkPosition(position)
    const length = buffer.byteLength
    if (length === 0) return this.#nothing('read', buffer)
    return this.#operations.transfers.transfer(
      OP_READ,
      this.#state,
      buffer,
      length,
      position,
      false,
    )
  }

  /**
   * Reads `length` bytes from `position` into a Buffer of its own, shorter if the file ends.
   * From 128 KiB on the memory that the kernel wrote is handed over without a copy.
   */
  bytesAt(position: number | bigint, length: number): Promise<Buffer> {
    checkPosition(position)
    checkLength(length)
    if (length === 0) return this.#nothing('read').then(() => Buffer.alloc(0))
    return this.#operations.transfers.bytes(this.#state, length, position)
  }

  /**
   * Writes all of `buffer` at `position` and resolves with its length. If it fails midway the error
   * says how much reached the file: `bytesWritten`. With `datasync` it is also on stable storage.
   *
   * A buffer from {@link Queue.alloc} must stay as it is until this settles; any other is copied when
   * the write is staged, in pieces of 1 MiB. Throws `ERR_URING_APPEND` on a file opened for
   * appending, and `ERR_URING_ALIGNMENT` for a direct write that is not of whole blocks. pwrite(2).
   */
  writeAt(
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    options?: WriteOptions,
  ): Promise<number> {
    checkView(buffer)
    checkPosition(position)
    if (this.#state.append) throw uringError('ERR_URING_APPEND')
    return this.#write(buffer, position, options)
  }

  /**
   * Writes all of `buffer` at the end of a file that was opened for appending, and resolves with its
   * length. The kernel finds the end for each piece (of at most 2 GiB, of 1 MiB for a plain buffer).
   * On another file it throws `ERR_URING_UNSUPPORTED`. open(2), O_APPEND.
   */
  append(buffer: NodeJS.ArrayBufferView, options?: WriteOptions): Promise<number> {
    checkView(buffer)
    if (!this.#state.append) {
      const needs = "a file opened with the flag 'a' or 'a+'"
      throw uringError('ERR_URING_UNSUPPORTED', { feature: 'append()', needs })
    }
    return this.#write(buffer, 0, options)
  }

  #write(
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    options: WriteOptions | undefined,
  ): Promise<number> {
    let datasync = false
    if (options !== undefined) {
      checkOptions(options)
      datasync = options.datasync ?? false
      checkBoolean(datasync, 'options.datasync')
    }
    const state = this.#state
    const length = buffer.byteLength
    if (length === 0 && !datasync) return this.#nothing('write', buffer)
    if (length === 0) return this.datasync().then(() => 0)
    const block = state.blockBytes
    if (block !== 0 && (length % block !== 0 || BigInt(position) % BigInt(block) !== 0n)) {
      const alignment = { memoryBytes: state.memoryBytes, offsetBytes: block }
      throw uringError('ERR_URING_ALIGNMENT', { position, lengthBytes: length, alignment })
    }
    return this.#operations.transfers.transfer(OP_WRITE, state, buffer, length, position, datasync)
  }

  /** Nothing to move is no trip to the kernel, but misuse is still misuse. */
  #nothing(syscall: string, buffer?: NodeJS.ArrayBufferView): Promise<number> {
    if (buffer !== undefined && isDetached(buffer.buffer)) {
      throw uringError('ERR_URING_BUFFER_DETACHED', { syscall })
    }
    if (this.#state.closed) return rejected(systemError(EBADF, syscall))
    if (this.#operations.ended !== undefined) return rejected(this.#operations.ended())
    return Promise.resolve(0)
  }

  /** Brings data and metadata to stable storage. fsync(2). */
  sync(): Promise<void> {
    return this.#call(OP_FSYNC, 'fsync', 0, 0)
  }

  /** Brings the data, and what is needed to read it back, to stable storage. fdatasync(2). */
  datasync(): Promise<void> {
    return this.#call(OP_FSYNC, 'fdatasync', 1, 0)
  }

  /** Makes the file `length` bytes long. ftruncate(2); before Linux 6.9 by node:fs. */
  truncate(length: number | bigint = 0): Promise<void> {
    checkPosition(length, 'length')
    const state = this.#state
    const operations = this.#operations
    if (operations.supports('ftruncate')) return this.#call(OP_FTRUNCATE, 'ftruncate', 0, length)
    if (state.closed) return rejected(systemError(EBADF, 'ftruncate'))
    if (operations.ended !== undefined) return rejected(operations.ended())
    return operations.outside(state, promisify(ftruncate)(state.fd, Number(length)))
  }

  /** The file's attributes, in the shape of `fs.Stats`. statx(2). */
  async stat(): Promise<Stats> {
    if (this.#state.closed) throw systemError(EBADF, 'fstat')
    if (this.#operations.ended !== undefined) throw this.#operations.ended()
    return new Stats(await this.#state.statx(STATX_STATS))
  }

  async #call(
    opcode: number,
    syscall: string,
    length: number,
    position: number | bigint,
  ): Promise<void> {
    if (this.#state.closed) throw systemError(EBADF, syscall)
    const result = await this.#operations.call(opcode, this.#state, 0, length, position)
    if (typeof result !== 'number' || result >= 0) return
    return rejected(this.#operations.failure(result, syscall))
  }

  /**
   * Closes the file when what is in flight on it has settled. With `timeoutMs` it cancels what has
   * not by then. What the kernel will not give back is named by `ERR_URING_BUSY`; the descriptor is
   * closed when it has. Calls after the first return the same promise. close(2).
   */
  close(options?: CloseOptions): Promise<void> {
    const timeoutMs = closeTimeout(options)
    forgotten.unregister(this)
    return this.#state.close(timeoutMs)
  }

  /** Cancels pending reads, waits for writes, and closes. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#state.cancelReads()
    return this.close()
  }
}

/** Operations that may never end by themselves. */
export function isEndless(opcode: number): boolean {
  return opcode === OP_READ || opcode === OP_TIMEOUT
}
