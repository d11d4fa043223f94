/**
 * Constructors of operations for `queue.submit`: each checks its arguments and returns a description,
 * which begins nothing and may be submitted more than once.
 */
import {
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_LINK_TIMEOUT,
  OP_MSG_RING,
  OP_NOP,
  OP_READ,
  OP_TIMEOUT,
  OP_WRITE,
  TIMEOUT_ABSOLUTE,
  TIMEOUT_SUCCEEDS,
} from './backend.js'
import { BatchOperation, type Parts } from './batch-operation.js'
import type { File } from './file.js'
import { checkWrite, stateOf } from './file-state.js'
import { monotonic } from './limits.js'
import { checkMemory } from './memory.js'
import {
  type ReadOptions,
  readModifiers,
  refuseDatasync,
  type UnsyncedWriteOptions,
  writeModifiers,
} from './modifiers.js'
import { files } from './op-files.js'
import { paths } from './op-paths.js'
import { checkBoolean, checkInteger, checkOptions, checkPosition } from './validate.js'

/** Options of `op.timeout`. */
export interface TimeoutOptions {
  /** `ms` is a point in time of `performance.now()`, not a duration. Default false. */
  absolute?: boolean | undefined
  /** It also ends, with 0, when so many other operations of the queue have completed. Default 0: never. */
  count?: number | undefined
}

const MS_MAX = 2 ** 31 - 1
const COUNT_MAX = 2 ** 32 - 1
/** The kernel counts nanoseconds in 63 bits; 139 years. */
const ABSOLUTE_MS_MAX = 2 ** 42
const INT32_MAX = 2 ** 31 - 1

/** Flags of the system call itself; limits are the whole batch's. */
export type ReadFlags = Pick<ReadOptions, 'nowait' | 'dontcache'>
/** As {@link ReadFlags}, of a write. */
export type WriteFlags = Pick<UnsyncedWriteOptions, 'nowait' | 'dontcache' | 'dsync' | 'datasync'>

function timeoutParts(ms: number, absolute: boolean): Parts<number> {
  if (!absolute) {
    checkInteger(ms, 'ms', 0, MS_MAX)
    return { position: ms * 1e6 }
  }
  checkInteger(typeof ms === 'number' ? Math.ceil(ms) : ms, 'ms', 0, ABSOLUTE_MS_MAX)
  return { position: monotonic(ms), offset: TIMEOUT_ABSOLUTE }
}

const rest = {
  /** There and back; 0. IORING_OP_NOP, Linux 5.1. */
  nop(): BatchOperation {
    return new BatchOperation(OP_NOP)
  },

  /**
   * Reads into `buffer` from `position`, a byte offset; how many bytes there were. As
   * {@link File.readAt}; in a chain it is one read, which may be short, and a short one ends a soft
   * chain. pread(2).
   */
  read(
    file: File,
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    options: ReadFlags = {},
  ): BatchOperation {
    checkMemory(buffer, 'read')
    checkPosition(position)
    checkOptions(options)
    const flags = readModifiers(options)
    const length = buffer.byteLength
    const state = stateOf(file)
    return new BatchOperation(OP_READ, { file: state, view: buffer, length, position, flags })
  },

  /**
   * Writes all of `buffer` at `position`; its length. As {@link File.writeAt}; in a chain it is one
   * write, and one that did not write all gives `ERR_URING_SHORT_WRITE`. A buffer that is not from
   * `queue.alloc` is copied when the write is staged. pwrite(2).
   */
  write(
    file: File,
    buffer: NodeJS.ArrayBufferView,
    position: number | bigint,
    options: WriteFlags = {},
  ): BatchOperation {
    checkMemory(buffer, 'write')
    checkPosition(position)
    refuseDatasync(options)
    const flags = writeModifiers(options)
    const state = stateOf(file)
    const length = buffer.byteLength
    checkWrite(state, length, position)
    return new BatchOperation(OP_WRITE, { file: state, view: buffer, length, position, flags })
  },

  /** Brings data and metadata to stable storage; 0. fsync(2). */
  fsync(file: File): BatchOperation {
    return new BatchOperation(OP_FSYNC, { file: stateOf(file) })
  },

  /** Brings the data to stable storage; 0. fdatasync(2). */
  datasync(file: File): BatchOperation {
    return new BatchOperation(OP_FSYNC, { file: stateOf(file), length: 1 })
  },

  /** Makes the file `length` bytes long; 0. ftruncate(2), by the ring since Linux 6.9. */
  truncate(file: File, length: number | bigint = 0): BatchOperation {
    checkPosition(length, 'length')
    return new BatchOperation(OP_FTRUNCATE, { file: stateOf(file), position: length })
  },

  /**
   * Waits `ms` milliseconds; 0. With `count` its error is `ETIME` when the time came first. In a
   * chain what is behind it starts when it is over. IORING_OP_TIMEOUT, Linux 5.4.
   */
  timeout(ms: number, options: TimeoutOptions = {}): BatchOperation {
    checkOptions(options)
    const { absolute = false, count = 0 } = options
    checkBoolean(absolute, 'options.absolute')
    checkInteger(count, 'options.count', 0, COUNT_MAX)
    const parts = timeoutParts(ms, absolute)
    const succeeds = count === 0 ? TIMEOUT_SUCCEEDS : 0
    const offset = (parts.offset ?? 0) | succeeds
    return new BatchOperation(OP_TIMEOUT, { ...parts, offset, length: count })
  },

  /**
   * In a chain, bounds the operation before it to `ms` milliseconds: when they are over first, that
   * one ends with `ECANCELED` and this with `ETIME`; otherwise this ends with `ECANCELED`, which does
   * not count as a failure. IORING_OP_LINK_TIMEOUT, Linux 5.5.
   */
  linkTimeout(ms: number, options: Pick<TimeoutOptions, 'absolute'> = {}): BatchOperation {
    checkOptions(options)
    const { absolute = false } = options
    checkBoolean(absolute, 'options.absolute')
    return new BatchOperation(OP_LINK_TIMEOUT, timeoutParts(ms, absolute))
  },

  /**
   * Posts `value`, an integer from -2^31 to 2^31-1, to the queue whose {@link Queue.handle} is given; 0.
   * As {@link Queue.post}. IORING_OP_MSG_RING, Linux 5.18.
   */
  post(handle: number, value: number): BatchOperation {
    checkInteger(handle, 'handle', 0, INT32_MAX)
    checkInteger(value, 'value', -INT32_MAX - 1, INT32_MAX)
    return new BatchOperation(OP_MSG_RING, { offset: handle, length: value >>> 0 })
  },
} as const

/** Constructors of operations. What each resolves with stands in `queue.submit`'s results. */
export const op: typeof rest & typeof files & typeof paths = { ...rest, ...files, ...paths }
