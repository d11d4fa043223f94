/**
 * Every error of this package is made here: the system's in the words of node:fs, misuse in the
 * words of Node's `ERR_` codes, and our own `ERR_URING_` codes from one table.
 * Nothing here touches the engine, keeps state or decides when an error is due.
 */
import { inspect } from 'node:util'
import { ERRNO, errnoWords } from './errno.js'
import type { Unavailable } from './unavailable.js'

/** An error that the system reported, with the shape and the wording of node:fs. */
export interface SystemError extends Error {
  /** The system's error number, negative as in node:fs. */
  errno: number
  /** The name of the number: `EBADF`. */
  code: string
  /** The call that failed, as node:fs names it: `read`, `open`. */
  syscall: string
  /** What was given for a path; of calls on an open file, what it was opened by. */
  path?: string
  dest?: string
  /** For a write: how many bytes had reached the file before it failed. */
  bytesWritten?: number
}

/** What a {@link SystemError} can carry besides its number and its call. */
export interface SystemErrorExtra {
  path?: string | undefined
  dest?: string | undefined
  /** The path of the file whose descriptor was used: not in the message, where node:fs has none. */
  file?: string | undefined
  bytesWritten?: number | undefined
  cause?: unknown
}

/** What direct I/O asks of a file; see `STATX_DIOALIGN` in statx(2). */
export interface DirectAlignment {
  /** The address of the memory must be a multiple of this. */
  memoryBytes: number
  /** Position and length must be multiples of this. 0: the file takes no direct I/O. */
  offsetBytes: number
}

/** Details that every error of ours can have. */
interface CommonDetails {
  cause?: unknown
  bytesWritten?: number | undefined
}
type NoDetails = CommonDetails
interface SyscallDetails extends CommonDetails {
  syscall: string
}

/**
 * Our own codes: when each happens, what to do then, and its words.
 * What a code's function takes becomes properties of the error.
 */
const URING_ERRORS = {
  /** The queue was closed before the call, or while it was pending. Do: open a new queue. */
  ERR_URING_CLOSED: (_: NoDetails) => 'The queue is closed',

  /** This machine, container or user may not use io_uring. Do: read `reason.help`. */
  ERR_URING_UNAVAILABLE: ({ reason }: CommonDetails & { reason: Unavailable }) =>
    `io_uring is not available (${reason.code}): ${reason.message} ${reason.help}`,

  /**
   * The kernel refused to go on with the ring; all that is pending and all that comes later
   * rejects with this. Do: read `cause`, open a new queue. Writes may or may not have happened.
   */
  ERR_URING_FAILED: ({ cause }: CommonDetails & { cause: unknown }) =>
    `The queue has failed: ${cause instanceof Error ? cause.message : inspect(cause)}`,

  /** `alloc` went past the arena's maximum. Do: free buffers, or give the queue a larger arena. */
  ERR_URING_NO_MEMORY: (d: CommonDetails & { wantedBytes: number; limitBytes: number }) =>
    `No room for ${d.wantedBytes} bytes in an arena of at most ${d.limitBytes} bytes. Free buffers, or make ` +
    'the queue with a larger arena.maxBytes',

  /**
   * A write with a position on a file opened for appending: the kernel would ignore the position
   * (pwrite(2), BUGS). Do: call `append`, or open without the 'a' flag.
   */
  ERR_URING_APPEND: (_: NoDetails) =>
    'The file is open for appending, where the kernel ignores positions. Use append()',

  /**
   * A write to a direct file does not begin and end on its blocks. `alignment` has the numbers.
   * Do: write the whole blocks around it with what they hold; at the end of the file pad them, then
   * truncate it to its true size. An append has no `position`.
   */
  ERR_URING_ALIGNMENT: (
    d: CommonDetails & {
      position: number | bigint | undefined
      lengthBytes: number
      alignment: DirectAlignment
    },
  ) => {
    const block = BigInt(Math.max(1, d.alignment.offsetBytes))
    if (d.position === undefined) {
      const padded = ((BigInt(d.lengthBytes) + block - 1n) / block) * block
      return (
        `A direct append must be a multiple of ${block} bytes long, this one has ${d.lengthBytes}. ` +
        `Append it padded to ${padded} bytes, then truncate`
      )
    }
    const start = BigInt(d.position)
    const end = start + BigInt(d.lengthBytes)
    const from = (start / block) * block
    const to = ((end + block - 1n) / block) * block
    return (
      `A direct write must begin and end on multiples of ${block} bytes, this one goes from ` +
      `${start} to ${end}. Write the blocks around it (${to - from} bytes at ${from}) with what they ` +
      'hold; at the end of the file padded, then truncate'
    )
  },

  /**
   * The caller's buffer was transferred, detached or shrunk while an operation used it. Nothing was
   * copied into it. Do: leave a buffer alone until its operation settles.
   */
  ERR_URING_BUFFER_DETACHED: ({ syscall }: SyscallDetails) =>
    `The buffer was detached or shrunk before the ${syscall} was done with it`,

  /** `timeoutMs` passed, counted from the call. A write says `bytesWritten`. Do: try again. */
  ERR_URING_TIMEOUT: (d: SyscallDetails & { timeoutMs: number }) =>
    `The ${d.syscall} was not done within ${d.timeoutMs} ms`,

  /**
   * `close` could not get everything back from the kernel; `held` names it. The memory stays valid
   * until the kernel lets go. Do: wait for what is named, or let the process end.
   */
  ERR_URING_BUSY: ({ held }: CommonDetails & { held: readonly string[] }) =>
    `Closed, but the kernel still holds ${held.length === 0 ? 'operations' : held.join(', ')}`,

  /**
   * A write in a chain wrote less than all; `bytesWritten` says how much. A soft chain ends with it.
   * Do: write the rest, then what was to follow.
   */
  ERR_URING_SHORT_WRITE: (d: CommonDetails & { bytesWritten: number; lengthBytes: number }) =>
    `The write wrote ${d.bytesWritten} of ${d.lengthBytes} bytes, and a chain does not go on with the rest`,

  /** This kernel or file cannot do it. Do: what `needs` says. */
  ERR_URING_UNSUPPORTED: (d: CommonDetails & { feature: string; needs: string }) =>
    `${d.feature} is not supported here: it needs ${d.needs}`,

  /**
   * The user or the groups of the process changed (setresuid(2), setgroups(2)) after a queue with
   * `sqpoll` was made: its kernel thread would look paths up as who the process was. Files that are
   * open stay usable. Do: make a new queue.
   */
  ERR_URING_CREDENTIALS: (_: NoDetails) =>
    'The process is another user or group than when this queue with sqpoll was made, whose kernel ' +
    'thread would open files as before. Make a new queue',

  /** `free` was given a buffer that was freed or transferred before. Do: free a buffer once. */
  ERR_URING_FREED: (_: NoDetails) => 'The buffer was freed or transferred before',

  /** `free` was given a buffer that this queue's `alloc` did not make. Do: free nothing else. */
  ERR_URING_NOT_ALLOCATED: (_: NoDetails) => 'The buffer is not from alloc() of this queue',

  /** `free` was given a buffer that an operation uses. Do: free it when the operation has settled. */
  ERR_URING_IN_FLIGHT: (_: NoDetails) => 'The buffer is in use by an operation',

  /** A mistake of ours. Do: report it, with the message. */
  ERR_URING_INTERNAL: ({ detail }: CommonDetails & { detail: string }) =>
    `${detail}. This is a bug in node-uring; please report it`,
} as const

/** The codes of {@link UringError}. */
export type UringErrorCode = keyof typeof URING_ERRORS
/** What is told of an error with this code, besides the code. */
export type UringErrorDetails<C extends UringErrorCode> = Parameters<(typeof URING_ERRORS)[C]>[0]

/** An error with one of our own codes; `code` says which of the details it has. */
export class UringError extends Error {
  declare readonly name: 'UringError'
  readonly code: UringErrorCode
  /** ERR_URING_UNAVAILABLE: why. */
  declare readonly reason?: Unavailable
  /** ERR_URING_ALIGNMENT: what the file asks for. */
  declare readonly alignment?: DirectAlignment
  /** ERR_URING_BUSY: what the kernel holds, one entry a kind. */
  declare readonly held?: readonly string[]
  /** For a write: how many bytes had reached the file. */
  declare readonly bytesWritten?: number
  /** ERR_URING_SHORT_WRITE, ERR_URING_ALIGNMENT: how many it was to be. */
  declare readonly lengthBytes?: number
  /** ERR_URING_ALIGNMENT: where it was to begin, unless it was an append. */
  declare readonly position?: number | bigint
  /** ERR_URING_TIMEOUT, ERR_URING_BUFFER_DETACHED: what it was. */
  declare readonly syscall?: string
  /** ERR_URING_TIMEOUT: the time that it had. */
  declare readonly timeoutMs?: number
  /** ERR_URING_NO_MEMORY: what was asked for, and the arena's maximum. */
  declare readonly wantedBytes?: number
  declare readonly limitBytes?: number
  /** ERR_URING_UNSUPPORTED: what is not there, and what it needs. */
  declare readonly feature?: string
  declare readonly needs?: string

  /** Made by {@link uringError}, which ties the details to their code. */
  constructor(code: UringErrorCode, details: CommonDetails) {
    const { cause, ...properties } = details
    const words = URING_ERRORS[code] as (details: CommonDetails) => string
    super(words(details), cause === undefined ? undefined : { cause })
    this.code = code
    for (const [name, value] of Object.entries(properties)) {
      if (value !== undefined) Reflect.set(this, name, value)
    }
    writeHeader(this)
  }
}
Object.defineProperty(UringError.prototype, 'name', { value: 'UringError' })
Object.defineProperty(UringError.prototype, 'toString', { value: headed })

/** An operation was cancelled by its signal. Has Node's name and code; `cause` is the reason. */
export class AbortError extends Error {
  readonly code = 'ABORT_ERR'
  override readonly name = 'AbortError'
  /** For a write: how many bytes had reached the file. */
  declare readonly bytesWritten?: number

  constructor(cause?: unknown, bytesWritten?: number) {
    super('The operation was aborted', cause === undefined ? undefined : { cause })
    if (bytesWritten !== undefined) this.bytesWritten = bytesWritten
  }
}

/**
 * Makes the error that node:fs would make of this number: same wording, same properties.
 * It has no stack frames, as in the callbacks of node:fs: it is made where a completion arrives.
 * {@link rejected} gives it those of the caller that waits.
 *
 * `errno` is taken with either sign. `bytesWritten` is added for writes.
 */
export function systemError(errno: number, syscall: string, extra?: SystemErrorExtra): SystemError {
  const number = -Math.abs(errno)
  const [code, words] = errnoWords(number)
  let message = `${code}: ${words}, ${syscall}`
  if (extra?.path !== undefined) message += ` '${extra.path}'`
  if (extra?.dest !== undefined) message += ` -> '${extra.dest}'`
  const options = extra?.cause === undefined ? undefined : { cause: extra.cause }
  const error = withoutFrames(() => new Error(message, options)) as SystemError
  error.errno = number
  error.code = code
  error.syscall = syscall
  const path = extra?.path ?? extra?.file
  if (path !== undefined) error.path = path
  if (extra?.dest !== undefined) error.dest = extra.dest
  if (extra?.bytesWritten !== undefined) error.bytesWritten = extra.bytesWritten
  return error
}

/** What calls on a file that is closed reject with. */
export function closedError(
  file: { readonly path: string | undefined },
  syscall: string,
): SystemError {
  return systemError(ERRNO.EBADF, syscall, { file: file.path })
}

/**
 * Makes an error of ours. Its frames are those of the call: it is for throwing. It costs 12 µs;
 * where many promises are rejected at once, make it in {@link withoutFrames}.
 */
export function uringError<C extends UringErrorCode>(
  code: C,
  ...details: NoDetails extends UringErrorDetails<C>
    ? [details?: UringErrorDetails<C>]
    : [details: UringErrorDetails<C>]
): UringError & { code: C } {
  return new UringError(code, details[0] ?? {}) as UringError & { code: C }
}

/**
 * Makes the error of an operation cancelled by this signal, without frames as {@link systemError}.
 * `bytesWritten` is for writes.
 */
export function abortError(signal?: { reason?: unknown }, bytesWritten?: number): AbortError {
  return withoutFrames(() => new AbortError(signal?.reason, bytesWritten))
}

/**
 * Rejects with this error after giving it the frames of the functions that await. Resolve a
 * pending promise with the result, at once, instead of rejecting it with the bare error.
 *
 * Where a completion arrives the stack says nothing. V8 finds async callers by walking from the
 * running microtask along the promises that wait for it. In the first turn the pending promise
 * subscribes to ours; from the second V8 can walk. Costs about 5 µs, which only failures pay.
 */
export async function rejected(error: Error): Promise<never> {
  await undefined
  await undefined
  Error.captureStackTrace(error, rejected)
  if (error instanceof UringError) writeHeader(error)
  throw error
}

/** Says in an error how much was written. It may be anything that a caller's function throws. */
export function tellBytesWritten(error: unknown, bytesWritten: number): void {
  if (error instanceof Error && Object.isExtensible(error)) Object.assign(error, { bytesWritten })
}

/** The bytes that the error of a write says it has written. */
export function writtenBy(error: unknown): number {
  return (error as { bytesWritten?: number }).bytesWritten ?? 0
}

/** A mistake of ours. */
export function internalError(detail: string): Error {
  return uringError('ERR_URING_INTERNAL', { detail })
}

/** An error about an argument, with Node's code. */
export type ArgumentError<E extends Error, C extends string> = E & { code: C }

/** `expected` completes "must be": `of type number`, `an instance of AbortSignal`. */
export function invalidArgType(
  name: string,
  expected: string,
  value: unknown,
): ArgumentError<TypeError, 'ERR_INVALID_ARG_TYPE'> {
  const message = `The "${name}" ${kindOf(name)} must be ${expected}. Received ${describe(value)}`
  return withCode(new TypeError(message), 'ERR_INVALID_ARG_TYPE')
}

/** What is made by another call, and never by `new`. */
export function illegalConstructor(
  name: string,
  by: string,
): ArgumentError<TypeError, 'ERR_ILLEGAL_CONSTRUCTOR'> {
  const message = `Illegal constructor: a ${name} is made by ${by}`
  return withCode(new TypeError(message), 'ERR_ILLEGAL_CONSTRUCTOR')
}

/** `reason` completes the sentence that begins with the argument: `is invalid`. */
export function invalidArgValue(
  name: string,
  value: unknown,
  reason = 'is invalid',
): ArgumentError<TypeError, 'ERR_INVALID_ARG_VALUE'> {
  let received = inspect(value)
  if (received.length > 128) received = `${received.slice(0, 128)}...`
  const message = `The ${kindOf(name)} '${name}' ${reason}. Received ${received}`
  return withCode(new TypeError(message), 'ERR_INVALID_ARG_VALUE')
}

/** `range` completes "must be": `>= 0 && <= 10`, `an integer`. */
export function outOfRange(
  name: string,
  range: string,
  value: unknown,
): ArgumentError<RangeError, 'ERR_OUT_OF_RANGE'> {
  const message = `The value of "${name}" is out of range. It must be ${range}.`
  return withCode(new RangeError(`${message} Received ${digits(value)}`), 'ERR_OUT_OF_RANGE')
}

/**
 * Makes an error with V8's stack capture off: about 1 µs instead of 2, or 12 for one of ours.
 * For errors made where completions arrive, where the stack says nothing.
 */
export function withoutFrames<E extends Error>(make: () => E): E {
  const limit = Error.stackTraceLimit
  // Not an assignment: with --frozen-intrinsics that would throw.
  Reflect.set(Error, 'stackTraceLimit', 0)
  try {
    return make()
  } finally {
    Reflect.set(Error, 'stackTraceLimit', limit)
  }
}

function withCode<E extends Error, C extends string>(error: E, code: C): ArgumentError<E, C> {
  Object.defineProperty(error, 'toString', { value: headed, writable: true, configurable: true })
  return writeHeader(Object.assign(error, { code }))
}

/** The `toString` of Node's own errors: `Name [CODE]: message`. */
function headed(this: Error & { code: string }): string {
  return `${this.name} [${this.code}]: ${this.message}`
}

/** Makes the stack begin as {@link headed}, and leaves the name as it was. */
function writeHeader<E extends Error & { code: string }>(error: E): E {
  const value = `${error.name} [${error.code}]`
  Object.defineProperty(error, 'name', { value, configurable: true })
  // V8 writes the header when the stack is first read.
  void error.stack
  Reflect.deleteProperty(error, 'name')
  return error
}

/** As Node: a dot in the name makes it a property. */
function kindOf(name: string): 'property' | 'argument' {
  return name.includes('.') ? 'property' : 'argument'
}

/** The words of Node for a value of the wrong type. */
function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'function') return `function ${value.name}`
  if (typeof value === 'object') {
    const name: unknown = value.constructor?.name
    return name ? `an instance of ${name}` : inspect(value, { depth: -1 })
  }
  if (typeof value !== 'string') return `type ${typeof value} (${inspect(value)})`
  const text = value.length > 28 ? `${value.slice(0, 25)}...` : value
  return `type string (${text.includes("'") ? JSON.stringify(text) : `'${text}'`})`
}

/** The words of Node for a value out of range: large integers get separators. */
function digits(value: unknown): string {
  const large =
    (typeof value === 'number' && Number.isInteger(value) && Math.abs(value) > 2 ** 32) ||
    (typeof value === 'bigint' && (value > 2n ** 32n || value < -(2n ** 32n)))
  if (!large) return inspect(value)
  const text = String(value).replace(/\B(?=(\d{3})+$)/g, '_')
  return typeof value === 'bigint' ? `${text}n` : text
}

/**
 * Runs what is the user's, or has been in the user's hands: what it throws is reported as uncaught, as
 * what any callback throws, and whoever runs it goes on.
 */
export function standsAlone(work: () => void): void {
  try {
    work()
  } catch (error) {
    process.nextTick(() => {
      throw error
    })
  }
}
