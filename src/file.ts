/**
 * A file of a queue: positioned reads and writes, syncs, size, close. Checks arguments and hands
 * them to `operations.ts`; never touches the engine itself. Each method stands with what it promises, which
 * is most of the length of this.
 */
import { constants as buffers } from 'node:buffer'
import { constants, ftruncate } from 'node:fs'
import { type InspectOptions, inspect, promisify } from 'node:util'
import { checkAlignment } from './alignment.js'
import {
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_READ,
  OP_READV,
  OP_RECV,
  OP_SEND,
  OP_WRITE,
  OP_WRITEV,
  syscallOf,
} from './backend.js'
import { type CopyOptions, copyTo } from './copy.js'
import { ERRNO } from './errno.js'
import {
  closedError,
  illegalConstructor,
  invalidArgValue,
  rejected,
  systemError,
  uringError,
} from './errors.js'
import {
  type CloseOptions,
  checkWrite,
  closeTimeout,
  FileState,
  lookInside,
  stateOf,
} from './file-state.js'
import { mayWrite } from './flags.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import { checkMemory } from './memory.js'
import {
  APPENDS,
  checkModifiers,
  type ReadOptions,
  type RecvOptions,
  readModifiers,
  recvModifiers,
  refuseDatasync,
  type UnsyncedWriteOptions,
  type WriteOptions,
  type WriteSettings,
  writeModifiers,
  writeSettings,
} from './modifiers.js'
import { type Advice, type AllocateSettings, files, type SyncRangeSettings } from './op-files.js'
import type { Operations } from './operations.js'
import { onOwnDescriptor } from './own-descriptor.js'
import { run } from './run.js'
import { STATX_STATS, Stats } from './stats.js'
import { keepToThisThread } from './this-thread.js'
import { checkFunction, checkLength, checkPosition } from './validate.js'
import { checkBuffers, vectored } from './vectors.js'
import { checkMany, type ManyLengths, type Positions } from './volume.js'

const { EFBIG, EINVAL } = ERRNO

/** Options of {@link File.readMany} and {@link File.writeMany}. */
export interface ManyOptions extends LimitOptions {
  /** Called now and then with the number of operations that are done and the number of all. */
  onProgress?: ((done: number, total: number) => void) | undefined
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

  static {
    lookInside((file) =>
      typeof file === 'object' && file !== null && #state in file ? file.#state : undefined,
    )
  }

  /** @internal */
  constructor(state: FileState) {
    if (!(state instanceof FileState))
      throw illegalConstructor('File', 'queue.open() or queue.adopt()')
    this.#state = state
    this.#operations = state.operations
    state.owner = new WeakRef(this)
    forgotten.register(this, state, this)
    keepToThisThread(this)
  }

  /** The path as it was given to `open`; undefined for an adopted descriptor. */
  get path(): string | undefined {
    return this.#state.path
  }

  /**
   * The descriptor's number, for calls that this library has not; -1 once it is closed, when another file
   * may have that number. Do not close it.
   */
  get fd(): number {
    return this.#state.isEnded ? -1 : this.#state.fd
  }

  /** What errors and `console.log` show of it. @internal */
  [inspect.custom](_depth: number, options: InspectOptions): string {
    const { path, closed } = this.#state
    return `File ${inspect({ path, fd: this.fd, closed }, options)}`
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
  readAt(
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    options?: ReadOptions,
  ): Promise<number> {
    checkMemory(buffer, 'read')
    checkPosition(position)
    let flags = 0
    let limits: Limits | undefined
    if (options !== undefined) {
      limits = checkLimits(options)
      flags = readModifiers(options)
      checkModifiers(this.#operations, flags)
    }
    const length = buffer.byteLength
    if (length === 0) return this.#nothing('read')
    const { transfers } = this.#operations
    const state = this.#state
    return transfers.transfer(OP_READ, state, buffer, length, position, false, limits, false, flags)
  }

  /**
   * Reads `length` bytes from `position` into a Buffer of its own, shorter if the file ends.
   * From 128 KiB on the memory that the kernel wrote is handed over without a copy.
   */
  bytesAt(position: number | bigint, length: number, options?: LimitOptions): Promise<Buffer> {
    checkPosition(position)
    checkLength(length, buffers.MAX_LENGTH)
    const limits = checkLimits(options)
    if (length === 0) return this.#nothing('read').then(() => Buffer.alloc(0))
    return this.#operations.transfers.bytes(this.#state, length, position, limits)
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
    checkMemory(buffer, 'write')
    checkPosition(position)
    if (this.#state.append) throw uringError('ERR_URING_APPEND')
    return this.#write(buffer, position, writeSettings(options))
  }

  /**
   * Writes all of `buffer` at the end of the file, and resolves with its length. The kernel finds the
   * end when it writes, so that concurrent appends lie one behind the other, each whole: also those
   * from other processes, but for what is longer than the queue's `bounceBytes` (of `alloc` memory:
   * 2 GiB) or was short and had to go on (a full disk), which goes in pieces. open(2), O_APPEND; on a
   * file that was not opened for it, RWF_APPEND of pwritev2(2).
   */
  append(buffer: NodeJS.ArrayBufferView, options?: WriteOptions): Promise<number> {
    checkMemory(buffer, 'write')
    const settings = writeSettings(options)
    const { appends, append } = this.#state
    const flags = append ? 0 : APPENDS
    checkModifiers(this.#operations, settings.flags | flags)
    return appends.join(buffer, settings) ?? this.#write(buffer, 0, settings, flags)
  }

  #write(
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    { datasync, limits, flags: asked }: WriteSettings,
    ours = 0,
  ): Promise<number> {
    const flags = asked | ours
    checkModifiers(this.#operations, flags)
    const state = this.#state
    const length = buffer.byteLength
    if (length === 0 && !datasync) return this.#nothing('write')
    if (length === 0) {
      const over = overBefore(limits, OP_WRITE, 0)
      if (over !== undefined) return rejected(over)
      return this.#call(OP_FSYNC, 'fdatasync', 1, 0, limits).then(() => 0)
    }
    const isAppend = state.append || (ours & APPENDS) !== 0
    checkAlignment(state, length, isAppend ? undefined : position)
    const { transfers } = this.#operations
    return transfers.transfer(
      OP_WRITE,
      state,
      buffer,
      length,
      position,
      datasync,
      limits,
      false,
      flags,
    )
  }

  /**
   * Reads into several buffers, one after the other, from `position`. Resolves with the number of
   * bytes, as {@link readAt} does. Buffers from {@link Queue.alloc} are filled in place, up to 1024 of
   * them by one operation; a list with any other goes through one buffer, 1 MiB at a time. preadv(2).
   */
  readvAt(
    buffers: readonly NodeJS.ArrayBufferView[],
    position: number | bigint,
    options: ReadOptions = {},
  ): Promise<number> {
    const length = checkBuffers(buffers, 'readv')
    checkPosition(position)
    const limits = checkLimits(options)
    const flags = readModifiers(options)
    checkModifiers(this.#operations, flags)
    const file = this.#state
    return vectored({ file, opcode: OP_READV, buffers, length, position, limits, flags })
  }

  /**
   * Writes all of several buffers, one after the other, at `position`; otherwise as {@link writeAt} and
   * {@link readvAt}. pwritev(2).
   */
  writevAt(
    buffers: readonly NodeJS.ArrayBufferView[],
    position: number | bigint,
    options: UnsyncedWriteOptions = {},
  ): Promise<number> {
    const length = checkBuffers(buffers, 'writev')
    checkPosition(position)
    checkWrite(this.#state, length, position)
    const limits = checkLimits(options)
    refuseDatasync(options)
    const flags = writeModifiers(options)
    checkModifiers(this.#operations, flags)
    const file = this.#state
    return vectored({ file, opcode: OP_WRITEV, buffers, length, position, limits, flags })
  }

  /**
   * Thousands of reads by one call: the i-th from `positions[i]`, of `lengths` bytes (or `lengths[i]`),
   * into `target`, one behind the other. Resolves with the count of bytes of each, fewer than asked for
   * where the file ends, or its negated errno; each is filled as by {@link readAt}, and what one had
   * come to when it failed counts. There is no object for each, and there may be any number of them.
   *
   * Faster still into memory from {@link Queue.alloc}. Rejects only as a whole: by its limits, or when
   * `target` was transferred meanwhile. pread(2).
   */
  readMany(
    positions: Positions,
    lengths: ManyLengths,
    target: NodeJS.ArrayBufferView,
    options?: ManyOptions,
  ): Promise<Int32Array> {
    return this.#many(OP_READ, positions, lengths, target, options)
  }

  /**
   * Thousands of writes by one call, from `source`; otherwise as {@link readMany}. Writes that overlap
   * end in any order. When it rejects, `bytesWritten` counts what all of them wrote. pwrite(2).
   */
  writeMany(
    positions: Positions,
    lengths: ManyLengths,
    source: NodeJS.ArrayBufferView,
    options?: ManyOptions,
  ): Promise<Int32Array> {
    if (this.#state.append) throw uringError('ERR_URING_APPEND')
    if (options !== undefined) refuseDatasync(options)
    return this.#many(OP_WRITE, positions, lengths, source, options)
  }

  #many(
    opcode: number,
    given: Positions,
    givenLengths: ManyLengths,
    view: NodeJS.ArrayBufferView,
    options: ManyOptions | undefined,
  ): Promise<Int32Array> {
    checkMemory(view, syscallOf(opcode), opcode === OP_READ ? 'target' : 'source')
    const limits = checkLimits(options)
    const onProgress = options?.onProgress
    if (onProgress !== undefined) checkFunction(onProgress, 'options.onProgress')
    const { positions, lengths } = checkMany(given, givenLengths, view)
    const file = this.#state
    if (opcode === OP_WRITE && file.blockBytes !== 0) {
      for (let i = 0; i < positions.length; i++) {
        const length = typeof lengths === 'number' ? lengths : (lengths[i] as number)
        checkAlignment(file, length, positions[i] as number | bigint)
      }
    }
    if (file.closed) return rejected(closedError(file, syscallOf(opcode)))
    const what = { file, opcode, positions, lengths, view, limits, onProgress }
    return this.#operations.volume.transfer(what)
  }

  /** Nothing to move is no trip to the kernel, but misuse is still misuse. */
  #nothing(syscall: string): Promise<number> {
    if (this.#state.closed) return rejected(closedError(this.#state, syscall))
    if (this.#operations.ended !== undefined) return rejected(this.#operations.ended())
    return Promise.resolve(0)
  }

  /** Brings data and metadata to stable storage. fsync(2). */
  sync(options?: LimitOptions): Promise<void> {
    return this.#call(OP_FSYNC, 'fsync', 0, 0, checkLimits(options))
  }

  /** Brings the data, and what is needed to read it back, to stable storage. fdatasync(2). */
  datasync(options?: LimitOptions): Promise<void> {
    return this.#call(OP_FSYNC, 'fdatasync', 1, 0, checkLimits(options))
  }

  /** Makes the file `length` bytes long. ftruncate(2); before Linux 6.9 by node:fs. */
  truncate(length: number | bigint = 0, options?: LimitOptions): Promise<void> {
    checkPosition(length, 'length')
    const limits = checkLimits(options)
    const state = this.#state
    const operations = this.#operations
    if (!operations.kernel.lacks(OP_FTRUNCATE)) {
      return this.#call(OP_FTRUNCATE, 'ftruncate', 0, length, limits)
    }
    if (state.closed) return rejected(closedError(state, 'ftruncate'))
    if (operations.ended !== undefined) return rejected(operations.ended())
    const over = overBefore(limits, OP_FTRUNCATE)
    if (over !== undefined) return rejected(over)
    const refused = (errno: number): Promise<never> =>
      rejected(systemError(errno, 'ftruncate', { file: state.path }))
    // A descriptor of its own would have a right that this one has not.
    if (!mayWrite(operations.backend.descriptorFlags(state.fd))) return refused(-EINVAL)
    // node:fs has no number for it.
    if (length > Number.MAX_SAFE_INTEGER) return refused(-EFBIG)
    // It cannot be cancelled: it settles with its true result.
    const { O_WRONLY } = constants
    return operations.outside(state, OP_FTRUNCATE, () =>
      onOwnDescriptor(state.fd, O_WRONLY, (fd) =>
        promisify(ftruncate)(fd, Number(length)).catch(({ errno }) => refused(errno)),
      ),
    )
  }

  /**
   * Makes room for `length` bytes from `offset`, so that writes there do not fail for want of it. With
   * `punchHole` gives the room back, with `zeroRange` zeroes it; see {@link AllocateSettings}.
   * fallocate(2), Linux 5.6.
   */
  allocate(
    offset: number | bigint,
    length: number,
    options?: AllocateSettings & LimitOptions,
  ): Promise<number> {
    return run(this.#operations, files.allocate(this, offset, length, options), options)
  }

  /**
   * Tells the kernel how `length` bytes from `offset` will be used, 0 for all to the end.
   * posix_fadvise(2), Linux 5.6.
   */
  advise(
    advice: Advice,
    offset: number | bigint = 0,
    length = 0,
    options?: LimitOptions,
  ): Promise<number> {
    return run(this.#operations, files.advise(this, advice, offset, length), options)
  }

  /**
   * Writes what is in the page cache of `length` bytes from `offset`, 0 for all to the end. That is not
   * durable: use {@link datasync}. sync_file_range(2), Linux 5.2.
   */
  syncRange(
    offset: number | bigint = 0,
    length = 0,
    options?: SyncRangeSettings & LimitOptions,
  ): Promise<number> {
    return run(this.#operations, files.syncRange(this, offset, length, options), options)
  }

  /**
   * Copies bytes from this file to another of the same queue without taking them into this process;
   * resolves with how many. A FIFO or socket at either side has no position, and from it comes what
   * comes until its end. An error says `bytesWritten`. splice(2), Linux 5.7.
   */
  copyTo(to: File, options?: CopyOptions): Promise<number> {
    const target = stateOf(to, 'to')
    if (target.operations !== this.#operations) {
      throw invalidArgValue('to', to, 'is of another queue. Open it with the queue of this one')
    }
    return copyTo(this.#state, target, options)
  }

  /**
   * Waits until the file has one of `events`, of {@link POLL}; resolves with those that it has, and HUP
   * and ERR. For FIFOs, sockets and terminals. poll(2), Linux 5.1.
   */
  poll(events: number, options?: LimitOptions): Promise<number> {
    return run(this.#operations, files.poll(this, events), options)
  }

  /**
   * Sends all of `buffer` on a socket that was adopted, and resolves with its length; an error says
   * `bytesWritten`. send(2), Linux 5.6.
   */
  send(buffer: NodeJS.ArrayBufferView, options?: LimitOptions): Promise<number> {
    checkMemory(buffer, 'send')
    return this.#transmit(OP_SEND, buffer, checkLimits(options), 0)
  }

  /**
   * Receives from a socket that was adopted, once; resolves with how many bytes, 0 when the other side
   * has ended. recv(2), Linux 5.6.
   */
  recv(buffer: NodeJS.ArrayBufferView, options: RecvOptions = {}): Promise<number> {
    checkMemory(buffer, 'recv')
    const limits = checkLimits(options)
    return this.#transmit(OP_RECV, buffer, limits, recvModifiers(options))
  }

  #transmit(
    opcode: number,
    buffer: NodeJS.ArrayBufferView,
    limits: Limits | undefined,
    flags: number,
  ): Promise<number> {
    const { kernel, transfers } = this.#operations
    kernel.require(opcode)
    const length = buffer.byteLength
    if (length === 0) return this.#nothing(syscallOf(opcode))
    return transfers.transfer(opcode, this.#state, buffer, length, 0, false, limits, false, flags)
  }

  /** The file's attributes, in the shape of `fs.Stats`. statx(2). */
  async stat(options?: LimitOptions): Promise<Stats> {
    const limits = checkLimits(options)
    if (this.#state.closed) throw closedError(this.#state, 'fstat')
    if (this.#operations.ended !== undefined) throw this.#operations.ended()
    return new Stats(await this.#state.statx(STATX_STATS, limits))
  }

  async #call(
    opcode: number,
    syscall: string,
    length: number,
    position: number | bigint,
    limits: Limits | undefined,
  ): Promise<void> {
    if (this.#state.closed) throw closedError(this.#state, syscall)
    const result = await this.#operations.call(opcode, this.#state, 0, length, position, { limits })
    if (typeof result !== 'number' || result >= 0) return
    return rejected(this.#operations.failure(result, syscall, { file: this.path }))
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
