/**
 * Constructors of operations for `queue.submit`: each checks its arguments and returns a description,
 * which begins nothing and may be submitted more than once.
 */
import {
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_LINK_TIMEOUT,
  OP_NOP,
  OP_READ,
  OP_RENAMEAT,
  OP_TIMEOUT,
  OP_UNLINKAT,
  OP_WRITE,
  TIMEOUT_ABSOLUTE,
  TIMEOUT_SUCCEEDS,
} from './backend.js'
import { type File, stateOf } from './file.js'
import { checkWrite, type FileState } from './file-state.js'
import { type ParsedPath, parsePath } from './flags.js'
import { monotonic } from './limits.js'
import { checkBoolean, checkInteger, checkOptions, checkPosition, checkView } from './validate.js'

/** What an operation is made of; the names are those of the record that carries it. */
interface Parts {
  file?: FileState
  view?: ArrayBufferView
  length?: number
  position?: number | bigint
  offset?: number
  bytes?: Uint8Array
  path?: string
  dest?: string
}

/** An operation for {@link Queue.submit}, made by {@link op}. */
export class BatchOperation {
  // Not `instanceof`: a Proxy of one, or an object with its prototype, would pass and be asked again.
  readonly #made = true
  /** @internal */
  static isMade(value: unknown): value is BatchOperation {
    return typeof value === 'object' && value !== null && #made in value
  }

  /** @internal */
  readonly opcode: number
  /** @internal */
  readonly file: FileState | undefined
  /** @internal */
  readonly view: ArrayBufferView | undefined
  /** @internal */
  readonly length: number
  /** @internal */
  readonly position: number | bigint
  /** @internal */
  readonly offset: number
  /** @internal */
  readonly bytes: Uint8Array | undefined
  /** @internal */
  readonly path: string | undefined
  /** @internal */
  readonly dest: string | undefined

  /** @internal */
  constructor(opcode: number, parts: Parts = {}) {
    this.opcode = opcode
    this.file = parts.file
    this.view = parts.view
    this.length = parts.length ?? 0
    this.position = parts.position ?? 0
    this.offset = parts.offset ?? 0
    this.bytes = parts.bytes
    this.path = parts.path
    this.dest = parts.dest
  }
}

/** Options of `op.timeout`. */
export interface TimeoutOptions {
  /** `ms` is a point in time of `performance.now()`, not a duration. Default false. */
  absolute?: boolean
  /** It also ends, with 0, when so many other operations of the queue have completed. Default 0: never. */
  count?: number
}

const MS_MAX = 2 ** 31 - 1
const COUNT_MAX = 2 ** 32 - 1

function timeoutParts(ms: number, absolute: boolean): Parts {
  if (!absolute) {
    checkInteger(ms, 'ms', 0, MS_MAX)
    return { position: ms * 1e6 }
  }
  checkPosition(Math.ceil(ms), 'ms')
  return { position: monotonic(ms), offset: TIMEOUT_ABSOLUTE }
}

/** A path that the kernel would look at, for the engine takes no other. */
function pathOf(path: string | Buffer | Uint8Array | URL, name: string): ParsedPath {
  return parsePath(path, name)
}

/** Constructors of operations. What each resolves with stands in `queue.submit`'s results. */
export const op = {
  /** There and back; 0. IORING_OP_NOP, Linux 5.1. */
  nop(): BatchOperation {
    return new BatchOperation(OP_NOP)
  },

  /**
   * Reads into `buffer` from `position`, a byte offset; how many bytes there were. As
   * {@link File.readAt}; in a chain it is one read, which may be short, and a short one ends a soft
   * chain. pread(2).
   */
  read(file: File, buffer: NodeJS.ArrayBufferView, position: number | bigint): BatchOperation {
    checkView(buffer)
    checkPosition(position)
    const length = buffer.byteLength
    return new BatchOperation(OP_READ, { file: stateOf(file), view: buffer, length, position })
  },

  /**
   * Writes all of `buffer` at `position`; its length. As {@link File.writeAt}; in a chain it is one
   * write, and one that did not write all gives `ERR_URING_SHORT_WRITE`. A buffer that is not from
   * `queue.alloc` is copied when the write is staged. pwrite(2).
   */
  write(file: File, buffer: NodeJS.ArrayBufferView, position: number | bigint): BatchOperation {
    checkView(buffer)
    checkPosition(position)
    const state = stateOf(file)
    const length = buffer.byteLength
    checkWrite(state, length, position)
    return new BatchOperation(OP_WRITE, { file: state, view: buffer, length, position })
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

  /** Gives a file another name, in place of what has it; 0. rename(2), Linux 5.11. */
  rename(
    from: string | Buffer | Uint8Array | URL,
    to: string | Buffer | Uint8Array | URL,
  ): BatchOperation {
    const [old, dest] = [pathOf(from, 'from'), pathOf(to, 'to')]
    return new BatchOperation(OP_RENAMEAT, {
      bytes: Buffer.concat([old.bytes, dest.bytes]),
      length: old.bytes.length,
      path: old.text,
      dest: dest.text,
    })
  },

  /** Takes a name away; 0. unlink(2), Linux 5.11. */
  unlink(path: string | Buffer | Uint8Array | URL): BatchOperation {
    const { bytes, text } = pathOf(path, 'path')
    return new BatchOperation(OP_UNLINKAT, { bytes, path: text })
  },
} as const
