/**
 * Flags of the system calls themselves, RWF_ of preadv2(2) and MSG_ of recv(2): the options that ask
 * for them, and what is said where a kernel or file refuses one. They travel beside the opcode.
 */
import { MODIFIER_SHIFT } from './backend.js'
import { ERRNO } from './errno.js'
import { invalidArgValue, type SystemError, uringError } from './errors.js'
import { checkLimits, type LimitOptions, type Limits } from './limits.js'
import type { Operations } from './operations.js'
import { checkBoolean, checkOptions } from './validate.js'

/** EOPNOTSUPP is the same number. */
const { ENOTSUP } = ERRNO
const RWF_DSYNC = 0x02
const RWF_NOWAIT = 0x08
const RWF_APPEND = 0x10
const RWF_DONTCACHE = 0x80
const MSG_PEEK = 0x02
const MSG_WAITALL = 0x100

/** Beside the opcode of a write: to the end of the file, wherever that is then. */
export const APPENDS = RWF_APPEND << MODIFIER_SHIFT
/** Beside the opcode of a read or write: it does not wait. */
export const NOWAIT = RWF_NOWAIT << MODIFIER_SHIFT
/** Beside the opcode of a write: it is on stable storage when it is over. */
export const DSYNC = RWF_DSYNC << MODIFIER_SHIFT
const DONTCACHE = RWF_DONTCACHE << MODIFIER_SHIFT
/** Beside the opcode of a recv: it is short only where the other side ends. */
export const WAITS_FOR_ALL = MSG_WAITALL << MODIFIER_SHIFT

/** Options that reads and writes share. preadv2(2). */
interface TransferOptions extends LimitOptions {
  /**
   * Do not wait for the disk, or for data: rejects with `EAGAIN`, which nobody retries; a read that
   * had some of it resolves with that. `ERR_URING_UNSUPPORTED` where the file cannot tell whether it
   * would wait. RWF_NOWAIT, Linux 4.14.
   */
  nowait?: boolean | undefined
  /**
   * Leave nothing in the page cache that was not there. `ERR_URING_UNSUPPORTED` where the kernel or
   * the file system cannot. RWF_DONTCACHE, Linux 6.14.
   */
  dontcache?: boolean | undefined
}

/** Options of {@link File.readAt}. */
export interface ReadOptions extends TransferOptions {}

/** Options of {@link File.writeAt} and {@link File.append}. */
export interface WriteOptions extends TransferOptions {
  /** Settle when the data is on stable storage: fdatasync(2) linked behind the write. */
  datasync?: boolean | undefined
  /**
   * The write itself settles when its data is on stable storage, as on a file opened with O_DSYNC.
   * Other than `datasync` it brings nothing else there. RWF_DSYNC, Linux 4.7.
   */
  dsync?: boolean | undefined
}

/** Options of {@link File.recv}. */
export interface RecvOptions extends LimitOptions {
  /** Leave what is read in the socket. MSG_PEEK. */
  peek?: boolean | undefined
  /** Wait until the buffer is full, the other side has ended or something fails. MSG_WAITALL. */
  waitAll?: boolean | undefined
}

/** Options of writes that have no fdatasync(2) behind them: `dsync`, or a sync that follows, does that. */
export interface UnsyncedWriteOptions extends Omit<WriteOptions, 'datasync'> {
  datasync?: never
}

/** Whoever asks for what a write does not do is told, and not left to believe it. */
export function refuseDatasync(options: object): void {
  checkOptions(options)
  const { datasync } = options as WriteOptions
  if (datasync === undefined || datasync === false) return
  const reason = 'is not for this call: use dsync, or datasync() or commit() when it has settled'
  throw invalidArgValue('options.datasync', datasync, reason)
}

type Flags<Options> = readonly (readonly [keyof Options & string, number])[]
const READ: Flags<ReadOptions> = [
  ['nowait', RWF_NOWAIT],
  ['dontcache', RWF_DONTCACHE],
]
const WRITE: Flags<WriteOptions> = [...READ, ['dsync', RWF_DSYNC]]
const RECV: Flags<RecvOptions> = [
  ['peek', MSG_PEEK],
  ['waitAll', MSG_WAITALL],
]

function modifiers<Options extends object>(options: Options, flags: Flags<Options>): number {
  let made = 0
  for (const [name, flag] of flags) {
    const value = options[name] ?? false
    checkBoolean(value, `options.${name}`)
    if (value) made |= flag
  }
  return made << MODIFIER_SHIFT
}

/** What options of a read put beside its opcode. Throws ERR_INVALID_ARG_TYPE. */
export function readModifiers(options: ReadOptions): number {
  return modifiers(options, READ)
}

/** As {@link readModifiers}, of a write. */
export function writeModifiers(options: WriteOptions): number {
  return modifiers(options, WRITE)
}

/** What a write is asked to be, its options read once and checked. */
export interface WriteSettings {
  readonly datasync: boolean
  readonly limits: Limits | undefined
  /** Beside its opcode. */
  readonly flags: number
}

const PLAIN: WriteSettings = { datasync: false, limits: undefined, flags: 0 }

/** The options of a write. Throws ERR_INVALID_ARG_TYPE. */
export function writeSettings(options: WriteOptions | undefined): WriteSettings {
  if (options === undefined) return PLAIN
  checkOptions(options)
  const datasync = options.datasync ?? false
  checkBoolean(datasync, 'options.datasync')
  return { datasync, limits: checkLimits(options), flags: writeModifiers(options) }
}

/** As {@link readModifiers}, of a recv. */
export function recvModifiers(options: RecvOptions): number {
  return modifiers(options, RECV)
}

/** Refuses flags that node:fs has no way to give. Throws `ERR_URING_UNSUPPORTED`. */
export function checkModifiers({ backend }: Operations, flags: number): void {
  if (flags === 0 || backend.name === 'io_uring') return
  const all = [...WRITE, ['append() on a file that is not open for it', RWF_APPEND], ...RECV]
  const [feature = 'A flag'] =
    all.find(([, flag]) => (flags >> MODIFIER_SHIFT) & Number(flag)) ?? []
  throw uringError('ERR_URING_UNSUPPORTED', { feature: String(feature), needs: 'io_uring' })
}

/** The error of an operation with these flags: the kernel has one errno for all that it cannot. */
export function refusedModifier(flags: number, error: SystemError): Error {
  if (error.errno !== -ENOTSUP) return error
  const { bytesWritten } = error
  const refused = (feature: string, needs: string) =>
    uringError('ERR_URING_UNSUPPORTED', { feature, needs, bytesWritten, cause: error })
  if ((flags & DONTCACHE) !== 0) {
    return refused('dontcache', 'Linux 6.14 and a file system that has it')
  }
  if ((flags & NOWAIT) !== 0) return refused('nowait', 'a file that can tell whether it would wait')
  return error
}
