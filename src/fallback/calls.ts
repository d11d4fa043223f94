/**
 * One operation by node:fs: a call for each opcode, which says what it does with the arguments. What
 * is answered at once is returned; all else comes through a callback, later. Both are as the engine
 * has them: a result, or a negated errno.
 */
import fs, { type BigIntStats } from 'node:fs'
import {
  FLAG_QUIET,
  OP_CLOSE,
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_LINKAT,
  OP_MKDIRAT,
  OP_NOP,
  OP_OPENAT,
  OP_READ,
  OP_RENAMEAT,
  OP_STATX,
  OP_SYMLINKAT,
  OP_TIMEOUT,
  OP_UNLINKAT,
  OP_WRITE,
  TIMEOUT_ABSOLUTE,
} from '../backend.js'
import { ERRNO } from '../errno.js'
import { type Direction, lineOf, type OpenFile } from './files.js'
import type { Many } from './many.js'
import { errnoOf, packStatx } from './statx.js'
import type { Timers, Withdraw } from './timers.js'

/** The largest position that the kernel has. */
const POSITION_MAX = 2n ** 63n - 1n

/** Flag of unlinkat(2): a directory goes, not a file. */
const AT_REMOVEDIR = 0x200
/** Flag of statx(2): of a symbolic link itself. */
const AT_SYMLINK_NOFOLLOW = 0x100
const BIG = { bigint: true } as const

/** A read or write. */
export interface Move {
  readonly opcode: number
  readonly file: OpenFile | undefined
  /** The chunk's memory, which nobody outside can reach. */
  readonly memory: Uint8Array | undefined
  readonly offset: number
  readonly length: number
  readonly position: number | bigint
  /** Takes it back while it is under way, where that is possible. */
  withdraw: Withdraw | undefined
  /** It was to be taken back when that was not possible: it must not begin to wait. */
  unwanted: boolean
}

/** An operation from staging to its completion. */
export class Request implements Move {
  readonly slot: number
  readonly opcode: number
  readonly flags: number
  readonly file: OpenFile | undefined
  readonly chunk: number
  readonly offset: number
  readonly length: number
  readonly position: number | bigint
  memory: Uint8Array | undefined = undefined
  /** The path, or two of them, a copy. */
  path: Buffer | undefined = undefined
  /** All of them, where this is many under one slot. */
  many: Many | undefined = undefined
  /** The next member of its chain, and the time limit that it is under. */
  next: Request | undefined = undefined
  limit: Request | undefined = undefined
  /** Handed to node:fs, or its timer set. */
  begun = false
  /** To be completed with ECANCELED instead of begun. */
  doomed = false
  /** Over, and perhaps not yet delivered. */
  over = false
  /** Of a timeout that counts others: the how manieth of all it ends with. */
  due = 0
  withdraw: Withdraw | undefined = undefined
  unwanted = false
  /** What a statx left to be taken. */
  statx: Uint8Array | undefined = undefined

  constructor(
    slot: number,
    opcode: number,
    flags: number,
    file: OpenFile | undefined,
    chunk: number,
    offset: number,
    length: number,
    position: number | bigint,
  ) {
    this.slot = slot
    this.opcode = opcode
    this.flags = flags
    this.file = file
    this.chunk = chunk
    this.offset = offset
    this.length = length
    this.position = position
  }
}

/** Takes the result of a request, once, and never within the call that it belongs to. */
export type Done = (result: number) => void

/**
 * Begins a request: by node:fs, or by a timer. Gives the result that needs neither, and then does not
 * call `done`. What can be taken back while it is under way has `withdraw` then.
 */
export function perform(request: Request, timers: Timers, done: Done): number | undefined {
  try {
    return call(request, timers, done)
  } catch (error) {
    // An argument that node:fs refuses; the kernel would, too.
    return errnoOf(error)
  }
}

function call(request: Request, timers: Timers, done: Done): number | undefined {
  if (request.many !== undefined) return callMany(request, request.many, timers, done)
  const { opcode, offset, length, position, path } = request
  const over = (error: Error | null): void => done(error === null ? 0 : errnoOf(error))
  const fd = request.file?.fd ?? -1
  switch (opcode) {
    case OP_NOP:
      return 0
    case OP_READ:
    case OP_WRITE:
      return transfer(request, timers, done)
    case OP_FSYNC:
      if (length === 1) fs.fdatasync(fd, over)
      else fs.fsync(fd, over)
      return undefined
    case OP_FTRUNCATE:
      if (position > Number.MAX_SAFE_INTEGER) return -ERRNO.EFBIG
      fs.ftruncate(fd, Number(position), over)
      return undefined
    case OP_OPENAT:
      fs.open(path as Buffer, offset | 0, length & 0o7777, (error, opened) =>
        done(error === null ? opened : errnoOf(error)),
      )
      return undefined
    case OP_CLOSE:
      fs.close(fd, over)
      return undefined
    case OP_STATX:
      stat(request, done)
      return undefined
    case OP_TIMEOUT:
      timeout(request, timers, () => done(-ERRNO.ETIME))
      return undefined
    case OP_RENAMEAT:
      // Node has no renameat2(2), whose flags ask for more than rename(2) does.
      if (offset !== 0) return -ERRNO.EINVAL
      fs.rename((path as Buffer).subarray(0, length), (path as Buffer).subarray(length), over)
      return undefined
    case OP_UNLINKAT:
      if (offset === AT_REMOVEDIR) fs.rmdir(path as Buffer, over)
      else fs.unlink(path as Buffer, over)
      return undefined
    case OP_LINKAT:
      // As link(2), which follows no symbolic link.
      if (offset !== 0) return -ERRNO.EINVAL
      fs.link((path as Buffer).subarray(0, length), (path as Buffer).subarray(length), over)
      return undefined
    case OP_SYMLINKAT:
      fs.symlink((path as Buffer).subarray(0, length), (path as Buffer).subarray(length), over)
      return undefined
    case OP_MKDIRAT:
      fs.mkdir(path as Buffer, length & 0o7777, over)
      return undefined
    default:
      return -ERRNO.EINVAL
  }
}

function timeout(request: Request, timers: Timers, expired: () => void): void {
  const quiet = (request.flags & FLAG_QUIET) !== 0
  const counts = request.length > 0
  request.withdraw = timers.after(
    timeLeftMs(request),
    () => {
      // What is complete already, and not yet seen because the thread was busy, counts.
      if (counts) request.withdraw = timers.after(0, expired, quiet)
      else expired()
    },
    quiet,
  )
}

/** How long a timeout still has, in milliseconds. */
export function timeLeftMs({ offset, position }: Request): number {
  if ((offset & TIMEOUT_ABSOLUTE) === 0) return Number(position) / 1e6
  return Number(BigInt(position) - process.hrtime.bigint()) / 1e6
}

function callMany(request: Request, many: Many, timers: Timers, done: Done): number | undefined {
  request.withdraw = () => many.cancel()
  const { opcode, file, memory, offset } = request
  return many.begin((start, length, position, over) => {
    const move = {
      opcode,
      file,
      memory,
      offset: offset + start,
      length,
      position,
      withdraw: undefined,
      unwanted: false,
    }
    return [move, transfer(move, timers, over)]
  }, done)
}

function directionOf({ file, opcode }: Move): Direction {
  return opcode === OP_READ ? (file as OpenFile).reads : (file as OpenFile).writes
}

/** pread(2) and pwrite(2); read(2) and write(2) where there are no positions. */
function transfer(move: Move, timers: Timers, done: Done): number | undefined {
  const { opcode, length, position } = move
  const file = move.file as OpenFile
  const of = directionOf(move)
  if (of.stream) {
    throughLine(move, timers, done)
    return undefined
  }
  let at: number | bigint | null = position
  if (opcode === OP_WRITE) {
    // fs.write takes no bigint, and a number that is not exact for the current position.
    if (position > Number.MAX_SAFE_INTEGER) {
      return BigInt(position) + BigInt(length) > POSITION_MAX ? -ERRNO.EINVAL : -ERRNO.EFBIG
    }
    // Linux writes at the end whatever the position, and says by it whether there are any.
    at = file.append && process.platform !== 'linux' ? null : Number(position)
  }
  if (of.stream === undefined && at !== null) return probe(move, at, timers, done)
  return attempt(move, file.fd, at, done)
}

/**
 * Makes one of the first transfers of a file, of which nobody knows yet whether it has positions. Where
 * it has none all of them come back at once, in any order, and go on in the order of their calls.
 */
function probe(
  move: Move,
  position: number | bigint,
  timers: Timers,
  done: Done,
): number | undefined {
  const file = move.file as OpenFile
  const of = directionOf(move)
  // None is made once one has come back, so these are 0, 1, 2 …
  const number = of.probes++
  const refused = attempt(move, file.fd, position, (result) => {
    of.probes--
    of.stream ??= result === -ERRNO.ESPIPE
    if (result !== -ERRNO.ESPIPE) done(result)
    else of.early.push({ number, go: () => throughLine(move, timers, done) })
    if (of.probes > 0) return
    const early = of.early.splice(0)
    for (const { go } of early.sort((one, other) => one.number - other.number)) go()
  })
  if (refused !== undefined) of.probes--
  return refused
}

/** Gives an errno when node:fs refuses the arguments: a position that overflows with the length. */
function attempt(
  { opcode, memory, offset, length }: Move,
  fd: number,
  position: number | bigint | null,
  done: Done,
): number | undefined {
  const over = (error: Error | null, count: number): void => {
    done(error === null ? count : errnoOf(error))
  }
  try {
    if (opcode === OP_READ) fs.read(fd, memory as Uint8Array, offset, length, position, over)
    else fs.write(fd, memory as Uint8Array, offset, length, position as number | null, over)
    return undefined
  } catch (error) {
    return errnoOf(error)
  }
}

/** Behind those that read the same stream, or write to it. */
function throughLine(move: Move, timers: Timers, done: Done): void {
  const file = move.file as OpenFile
  const of = directionOf(move)
  if (of.probes > 0) {
    // Those before it are not in the line yet.
    of.early.push({ number: Number.MAX_SAFE_INTEGER, go: () => throughLine(move, timers, done) })
    return
  }
  if (move.unwanted) {
    done(-ERRNO.ECANCELED)
    return
  }
  const line = lineOf(file, move.opcode === OP_READ, timers)
  move.withdraw = line.push((fd, over) => attempt(move, fd, null, over), done)
}

function stat(request: Request, done: Done): void {
  const over = (error: Error | null, stats: BigIntStats): void => {
    if (error === null) request.statx = packStatx(stats)
    done(error === null ? 0 : errnoOf(error))
  }
  if (request.file !== undefined) fs.fstat(request.file.fd, BIG, over)
  else if (request.offset === AT_SYMLINK_NOFOLLOW) fs.lstat(request.path as Buffer, BIG, over)
  else fs.stat(request.path as Buffer, BIG, over)
}
