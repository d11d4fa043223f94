/**
 * What an open file is to the operations on it, how it is closed, and how long that waits. The public
 * `File` is over this; operations hold this and not the `File`, which can be collected.
 */
import { fstatSync, readFileSync } from 'node:fs'
import { clearTimeout, setTimeout } from 'node:timers'
import { setImmediate } from 'node:timers/promises'
import { checkAlignment } from './alignment.js'
import { Appends } from './appends.js'
import {
  OP_CLOSE,
  OP_OPENAT,
  OP_POLL_ADD,
  OP_READ,
  OP_READV,
  OP_RECV,
  OP_SPLICE,
  OP_STATX,
  OP_TIMEOUT,
} from './backend.js'
import { Commits } from './commits.js'
import { ERRNO } from './errno.js'
import { invalidArgType, rejected, systemError, uringError } from './errors.js'
import type { File } from './file.js'
import { isAppend, isDirect, isDsync } from './flags.js'
import type { Limits } from './limits.js'
import type { Operations } from './operations.js'
import type { Operation } from './slots.js'
import {
  directAlignment,
  type ExactStats,
  exactStats,
  STATX_DIOALIGN,
  STATX_STATS,
} from './stats.js'
import { Syncs } from './syncs.js'
import { checkInteger, checkOptions } from './validate.js'

const { EACCES, EINVAL } = ERRNO
/** Alignment to assume of a direct file whose kernel cannot say (STATX_DIOALIGN is of 6.1). */
const BLOCK_BYTES_UNKNOWN = 4096
/** How long a close with `timeoutMs` waits for the kernel after it has cancelled. */
const CANCEL_GRACE_MS = 1000
/** Turns of the event loop that it then waits, so that what has come is taken. */
const TURNS_AFTER_GRACE = 64

/** Options of `close`. */
export interface CloseOptions {
  /** Cancel what is in flight after so many milliseconds, 0 for at once. Default: wait for it. */
  timeoutMs?: number | undefined
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
  /** Which file it is, of all of this machine; undefined until it was asked what it is. */
  identity: string | undefined = undefined
  /** Operations under way. */
  pending = 0
  /** The File that it is the state of, which closes it when it is collected. */
  owner: WeakRef<File> | undefined = undefined
  /** Nothing new may start. */
  closed = false
  /** Whether the descriptor is closed, or is about to be. */
  isEnded = false
  /** Whether the close has cancelled what was under way, and nothing more of it may begin. */
  cancelled = false
  /** Called when the last operation under way has settled. */
  onIdle: (() => void) | undefined = undefined
  /** Called when the descriptor is closed. */
  onClosed: (() => void) | undefined = undefined
  /** Whether its reads were cancelled: those of a batch that have not begun begin no more. */
  readsCancelled = false
  /** Whether each write is on stable storage when it is over: O_DSYNC, O_SYNC. */
  readonly dsync: boolean
  #isMountedSync: boolean | undefined
  #syncs: Syncs | undefined
  #appends: Appends | undefined
  #commits: Commits | undefined
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
    this.dsync = isDsync(flags)
    if (isDirect(flags)) this.blockBytes = BLOCK_BYTES_UNKNOWN
  }

  /** statx(2) of the file; throws what the kernel says. */
  async statx(mask: number, limits?: Limits): Promise<Uint8Array> {
    const internal = true
    const outcome = await this.operations.call(OP_STATX, this, 0, mask, 0, { internal, limits })
    if (outcome instanceof Uint8Array) return outcome
    return rejected(
      this.operations.failure(Number(outcome ?? -EINVAL), 'fstat', { file: this.path }),
    )
  }

  /**
   * Finds out what kind of file this is, once, for an operation under limits, or for `whole`, which it is a step
   * of. One that cannot say is read like a stream.
   */
  learn(opcode: number, limits: Limits | undefined, whole?: Operation): Promise<void> {
    const learned = this.#learn()
    if (limits === undefined) return learned
    return this.operations.waitFor(learned, opcode, this, limits, whole)
  }

  #learn(): Promise<void> {
    this.#learning ??= this.look().then(
      (stats) => {
        this.#learned(stats)
      },
      () => {
        // Whoever asked takes what it has; the next asks again.
        this.#learning = undefined
      },
    )
    return this.#learning
  }

  /** Whether it is one of which reads are not short, found out by this thread if nobody knows yet. */
  get isRegular(): boolean {
    try {
      if (this.fills === undefined) this.#learned(this.#lookNow())
    } catch {
      // It may have been closed: nothing is known of it.
    }
    return this.fills === true
  }

  /** Whether its file system is mounted to sync each write. Asks /proc, once, and no server of a file system. */
  get isMountedSync(): boolean {
    this.#isMountedSync ??= isMountedSync(this.fd)
    return this.#isMountedSync
  }

  #learned(stats: ExactStats): void {
    this.fills = stats.isFile() || stats.isBlockDevice()
    // A device by any of its names.
    this.identity = stats.isBlockDevice() ? `device ${stats.rdev}` : `${stats.dev} ${stats.ino}`
  }

  /** What it is now. */
  async look(limits?: Limits): Promise<ExactStats> {
    // This must not wait for others: they may wait for it.
    if (this.operations.waiting.isFull) return this.#lookNow()
    try {
      return exactStats(await this.statx(STATX_STATS, limits))
    } catch (error) {
      // A ring that is restricted has no statx.
      if ((error as { errno?: number }).errno === -EACCES) return this.#lookNow()
      throw error
    }
  }

  #lookNow(): ExactStats {
    return fstatSync(this.fd, { bigint: true })
  }

  /** Asks a direct file for its alignment. `open` waits for it. */
  async learnAlignment(limits: Limits | undefined): Promise<void> {
    const bytes = await this.statx(STATX_STATS | STATX_DIOALIGN, limits)
    this.#learned(exactStats(bytes))
    const alignment = directAlignment(bytes)
    this.blockBytes = alignment?.offsetBytes || BLOCK_BYTES_UNKNOWN
    this.memoryBytes = alignment?.memoryBytes || BLOCK_BYTES_UNKNOWN
  }

  /** What its syncs come to. */
  get syncs(): Syncs {
    const { backend, goOnWith } = this.operations
    this.#syncs ??= new Syncs((slot) => backend.isStaged(slot), goOnWith)
    return this.#syncs
  }

  /** What is shared by those who append at once. */
  get appends(): Appends {
    this.#appends ??= new Appends(this.operations, this)
    return this.#appends
  }

  /** What is shared by all that wait for the file to be durable. */
  get commits(): Commits {
    this.#commits ??= new Commits(this.operations, this)
    return this.#commits
  }

  /** Waits for what is under way, then closes the descriptor. The first call decides how. */
  close(timeoutMs?: number): Promise<void> {
    this.#closing ??= this.#close(timeoutMs)
    return this.#closing
  }

  async #close(timeoutMs: number | undefined): Promise<void> {
    this.closed = true
    await settled(this, timeoutMs, () => {
      this.cancelled = true
      this.operations.cancel((op) => isOn(op, this))
    })
    if (this.pending === 0) return this.#end()
    // The descriptor goes when the kernel has given all of them back, or with the queue.
    settled(this, undefined, () => {})
      .then(() => this.#end())
      .catch(() => {})
    throw uringError('ERR_URING_BUSY', { held: this.operations.describe((op) => isOn(op, this)) })
  }

  async #end(): Promise<void> {
    this.isEnded = true
    const result = await this.operations.call(OP_CLOSE, this, 0, 0, 0, { internal: true })
    this.onClosed?.()
    if (typeof result === 'number' && result < 0)
      throw systemError(result, 'close', { file: this.path })
  }

  /** An operation is over. */
  leave(): void {
    if (--this.pending === 0) this.onIdle?.()
  }

  /** Cancels reads, which may never end by themselves; writes are left alone. */
  cancelReads(): void {
    this.readsCancelled = true
    this.operations.cancel((op) => isOn(op, this) && isEndless(op))
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

let lookedInside: (file: unknown) => FileState | undefined = () => undefined

/** Called once, by the class whose instances have a state. */
export function lookInside(look: (file: unknown) => FileState | undefined): void {
  lookedInside = look
}

/** Whether it is a File of this library. */
export function isFile(value: unknown): value is File {
  return lookedInside(value) !== undefined
}

/** The state behind a File, for the rest of this library. Throws ERR_INVALID_ARG_TYPE. */
export function stateOf(file: File, name = 'file'): FileState {
  const state = lookedInside(file)
  if (state === undefined) throw invalidArgType(name, 'an instance of File', file)
  return state
}

/** Checks an option bag with `timeoutMs`. */
export function closeTimeout(options: CloseOptions | undefined): number | undefined {
  if (options === undefined) return undefined
  checkOptions(options)
  if (options.timeoutMs === undefined) return undefined
  checkInteger(options.timeoutMs, 'options.timeoutMs', 0, 2 ** 31 - 1)
  return options.timeoutMs
}

/** Refuses a write with a position that the file cannot take. */
export function checkWrite(state: FileState, length: number, position: number | bigint): void {
  if (state.append) throw uringError('ERR_URING_APPEND')
  checkAlignment(state, length, position)
}

/** Whether an operation may never end by itself: it waits for others, or reads what they write. */
export function isEndless({ opcode, other, path, whole }: Endless): boolean {
  // The opens of `replaceFile`, which name no path for the error, are of regular files.
  if (opcode === OP_OPENAT) return path !== undefined
  // A step of something is what that is.
  if (whole !== undefined) return false
  if (opcode === OP_SPLICE) return other?.isRegular !== true
  return ENDLESS.has(opcode)
}

/** An operation, or the description of one. */
interface Endless {
  readonly opcode: number
  readonly whole?: Operation | undefined
  readonly other: FileState | undefined
  readonly path: string | undefined
}

const ENDLESS = new Set([OP_READ, OP_TIMEOUT, OP_RECV, OP_POLL_ADD, OP_READV])

/** By proc_pid_fdinfo(5) and proc_pid_mountinfo(5), whose last field are the options of the file system. */
function isMountedSync(fd: number): boolean {
  try {
    const id = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1]
    const mounts = readFileSync('/proc/self/mountinfo', 'latin1').split('\n')
    const mount = mounts.find((line) => line.startsWith(`${id} `))
    return mount?.split(' ').at(-1)?.split(',').includes('sync') ?? false
  } catch {
    // No /proc: then it is as everywhere.
    return false
  }
}

function isOn(op: Operation, file: FileState): boolean {
  return op.file === file || op.other === file
}
