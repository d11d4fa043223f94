/** Constructors of operations on open files and sockets: a part of `op`. */
import {
  OP_CLOSE,
  OP_FADVISE,
  OP_FALLOCATE,
  OP_POLL_ADD,
  OP_READV,
  OP_RECV,
  OP_SEND,
  OP_SPLICE,
  OP_SYNC_FILE_RANGE,
  OP_WRITEV,
  SPLICE_FROM,
  SPLICE_TO,
  TRANSFER_BYTES_MAX,
} from './backend.js'
import { BatchOperation } from './batch-operation.js'
import { invalidArgValue } from './errors.js'
import type { File } from './file.js'
import { checkWrite, stateOf } from './file-state.js'
import { checkMemory } from './memory.js'
import { type RecvOptions, recvModifiers } from './modifiers.js'
import { checkBoolean, checkInteger, checkOptions, checkPosition } from './validate.js'
import { checkBuffers, vectorsInPlace } from './vectors.js'

const UINT32_MAX = 2 ** 32 - 1

/** Events of {@link op.poll}, poll(2). HUP and ERR are told of whether they were asked for or not. */
export const POLL = { IN: 0x01, PRI: 0x02, OUT: 0x04, ERR: 0x08, HUP: 0x10, RDHUP: 0x2000 } as const
const POLL_MAX = 0xffff

/** What {@link File.allocate} does, but for making room. fallocate(2), `FALLOC_FL_` without it. */
export interface AllocateSettings {
  /** The file's length stays, though its room grows. Default false. */
  keepSize?: boolean | undefined
  /** Gives the room back: the range reads as zeros, the length stays. Default false. */
  punchHole?: boolean | undefined
  /** Zeroes the range. Default false. */
  zeroRange?: boolean | undefined
  /** Takes the range out: what is behind it moves up. Whole blocks of the file system. Default false. */
  collapseRange?: boolean | undefined
  /** Makes a gap: what is there moves down. Whole blocks of the file system. Default false. */
  insertRange?: boolean | undefined
}

const ALLOCATE = [
  ['keepSize', 0x01],
  // FALLOC_FL_PUNCH_HOLE is refused without FALLOC_FL_KEEP_SIZE.
  ['punchHole', 0x02 | 0x01],
  ['zeroRange', 0x10],
  ['collapseRange', 0x08],
  ['insertRange', 0x20],
] as const

/** fallocate(2) does one thing at a time; the kernel says EOPNOTSUPP to two, or EINVAL. */
function checkAllocate(options: AllocateSettings): void {
  const { keepSize, collapseRange, insertRange } = options
  const [first, second] = (
    ['punchHole', 'zeroRange', 'collapseRange', 'insertRange'] as const
  ).filter((name) => options[name])
  const beside = keepSize && (collapseRange || insertRange) ? 'keepSize' : second
  if (first === undefined || beside === undefined) return
  throw invalidArgValue(`options.${beside}`, true, `cannot be given with options.${first}`)
}

/** What is to come of a part of a file. posix_fadvise(2). */
export type Advice = 'normal' | 'random' | 'sequential' | 'willneed' | 'dontneed' | 'noreuse'
/** As on every architecture of Node but s390x. */
const ADVICE: readonly Advice[] = [
  'normal',
  'random',
  'sequential',
  'willneed',
  'dontneed',
  'noreuse',
]

/** Which parts of sync_file_range(2) are done. */
export interface SyncRangeSettings {
  /** Wait for what is on its way before. Default true. */
  waitBefore?: boolean | undefined
  /** Begin to write what is not on its way. Default true. */
  write?: boolean | undefined
  /** Wait for all of it. Default true. */
  waitAfter?: boolean | undefined
}

/** What {@link op.splice} takes beside the two files. One of the two is a pipe. */
export interface SpliceSettings {
  /** Where to read, unless it is a pipe or socket. */
  from?: number | bigint | undefined
  /** Where to write, unless it is a pipe or socket. */
  to?: number | bigint | undefined
}

/** Bits of the options that are true; `options.name` is checked. */
function bits<Options extends object>(
  options: Options,
  flags: readonly (readonly [keyof Options & string, number])[],
  fallback: boolean,
): number {
  checkOptions(options)
  let made = 0
  for (const [name, flag] of flags) {
    const value = options[name] ?? fallback
    checkBoolean(value, `options.${name}`)
    if (value) made |= flag
  }
  return made
}

/** The part of `op` that is on open files. */
export const files = {
  /** Closes a file when what is in flight on it has settled; 0. Not in a chain. close(2), Linux 5.6. */
  close(file: File): BatchOperation {
    return new BatchOperation(OP_CLOSE, { file: stateOf(file) })
  },

  /**
   * Makes room for `length` bytes from `offset`, so that writes there do not fail for want of it; or
   * what `options` say in place of that; 0. fallocate(2), Linux 5.6.
   */
  allocate(
    file: File,
    offset: number | bigint,
    length: number,
    options: AllocateSettings = {},
  ): BatchOperation {
    checkPosition(offset, 'offset')
    checkInteger(length, 'length', 1)
    const mode = bits(options, ALLOCATE, false)
    checkAllocate(options)
    return new BatchOperation(OP_FALLOCATE, {
      file: stateOf(file),
      offset: mode,
      length,
      position: offset,
    })
  },

  /**
   * Tells the kernel how `length` bytes from `offset` will be used, 0 for all to the end; 0.
   * posix_fadvise(2), Linux 5.6.
   */
  advise(file: File, advice: Advice, offset: number | bigint = 0, length = 0): BatchOperation {
    const number = ADVICE.indexOf(advice)
    if (number < 0) throw invalidArgValue('advice', advice, `must be one of ${ADVICE.join(', ')}`)
    checkPosition(offset, 'offset')
    checkInteger(length, 'length', 0, UINT32_MAX)
    const state = stateOf(file)
    return new BatchOperation(OP_FADVISE, { file: state, offset: number, length, position: offset })
  },

  /**
   * Writes what is in the page cache of `length` bytes from `offset`, 0 for all to the end; 0. It is
   * not durable: metadata and the disk's own cache are left out. sync_file_range(2), Linux 5.2.
   */
  syncRange(
    file: File,
    offset: number | bigint = 0,
    length = 0,
    options: SyncRangeSettings = {},
  ): BatchOperation {
    checkPosition(offset, 'offset')
    checkInteger(length, 'length', 0, UINT32_MAX)
    const parts = [
      ['waitBefore', 1],
      ['write', 2],
      ['waitAfter', 4],
    ] as const
    const flags = bits(options, parts, true)
    return new BatchOperation(OP_SYNC_FILE_RANGE, {
      file: stateOf(file),
      offset: flags,
      length,
      position: offset,
    })
  },

  /**
   * Waits until the file has one of `events`, of {@link POLL}; those that it has, and HUP and ERR.
   * poll(2), Linux 5.1.
   */
  poll(file: File, events: number): BatchOperation {
    checkInteger(events, 'events', 1, POLL_MAX)
    return new BatchOperation(OP_POLL_ADD, { file: stateOf(file), offset: events })
  },

  /**
   * Moves up to `length` bytes from a file to another, of which one is a pipe, without copying them
   * through this process; how many, 0 at the end. splice(2), Linux 5.7.
   */
  splice(from: File, to: File, length: number, options: SpliceSettings = {}): BatchOperation {
    checkInteger(length, 'length', 0, TRANSFER_BYTES_MAX)
    checkOptions(options)
    const { from: fromPosition, to: toPosition } = options
    if (fromPosition !== undefined) checkPosition(fromPosition, 'options.from')
    if (toPosition !== undefined) checkPosition(toPosition, 'options.to')
    if (fromPosition !== undefined && toPosition !== undefined) {
      throw invalidArgValue('options.to', toPosition, 'cannot be given with options.from')
    }
    const side = toPosition === undefined ? 0 : SPLICE_TO
    return new BatchOperation(OP_SPLICE, {
      file: stateOf(to, 'to'),
      other: stateOf(from, 'from'),
      offset: fromPosition === undefined ? side : SPLICE_FROM,
      length,
      position: fromPosition ?? toPosition ?? 0,
    })
  },

  /** Sends all of `buffer` on a socket; its length. In a chain it is one send. send(2), Linux 5.6. */
  send(socket: File, buffer: NodeJS.ArrayBufferView): BatchOperation {
    checkMemory(buffer, 'send')
    const length = buffer.byteLength
    return new BatchOperation(OP_SEND, { file: stateOf(socket, 'socket'), view: buffer, length })
  },

  /** Receives from a socket, once; how many bytes, 0 when the other side has ended. recv(2), Linux 5.6. */
  recv(
    socket: File,
    buffer: NodeJS.ArrayBufferView,
    options: Pick<RecvOptions, 'peek' | 'waitAll'> = {},
  ): BatchOperation {
    checkMemory(buffer, 'recv')
    checkOptions(options)
    const flags = recvModifiers(options)
    const length = buffer.byteLength
    return new BatchOperation(OP_RECV, {
      file: stateOf(socket, 'socket'),
      view: buffer,
      length,
      flags,
    })
  },

  /**
   * Reads from `position` into up to 1024 buffers from `queue.alloc`, one after the other, by one call;
   * how many bytes. {@link File.readvAt} takes any, and fills them. preadv(2), Linux 5.1.
   */
  readv(
    file: File,
    buffers: readonly NodeJS.ArrayBufferView[],
    position: number | bigint,
  ): BatchOperation {
    checkBuffers(buffers, 'readv')
    checkPosition(position)
    const state = stateOf(file)
    const bytes = vectorsInPlace(state, buffers)
    // A copy: the list is the caller's, who may put other buffers into it.
    return new BatchOperation(OP_READV, { file: state, buffers: [...buffers], bytes, position })
  },

  /** As `op.readv`, to `position`; how many bytes, which may be fewer than all. pwritev(2), Linux 5.1. */
  writev(
    file: File,
    buffers: readonly NodeJS.ArrayBufferView[],
    position: number | bigint,
  ): BatchOperation {
    const length = checkBuffers(buffers, 'writev')
    checkPosition(position)
    const state = stateOf(file)
    checkWrite(state, length, position)
    const bytes = vectorsInPlace(state, buffers)
    return new BatchOperation(OP_WRITEV, { file: state, buffers: [...buffers], bytes, position })
  },
} as const
