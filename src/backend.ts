/**
 * What the layers above need of an engine, whichever it is: the calls once an operation, the cold
 * calls, and the numbers that both sides agree on. TypeScript reaches the engine through this alone;
 * `start.ts` chooses which, and `fallback/` is the other one.
 */
import type {
  Engine,
  EngineCapabilities,
  EngineStamps,
  EngineStats,
  Opened,
  Pipe,
} from './native.js'
import type { Unavailable } from './unavailable.js'

/** What can be staged. `crates/core/src/operation.rs` says what each takes. */
export const OP_NOP = 0
export const OP_READ = 1
export const OP_WRITE = 2
export const OP_FSYNC = 3
export const OP_FTRUNCATE = 4
export const OP_OPENAT = 5
export const OP_CLOSE = 6
export const OP_STATX = 7
export const OP_TIMEOUT = 8
export const OP_LINK_TIMEOUT = 9
export const OP_RENAMEAT = 10
export const OP_UNLINKAT = 11
export const OP_FALLOCATE = 12
export const OP_FADVISE = 13
export const OP_SYNC_FILE_RANGE = 14
export const OP_LINKAT = 15
export const OP_SYMLINKAT = 16
export const OP_MKDIRAT = 17
export const OP_SPLICE = 18
export const OP_POLL_ADD = 19
export const OP_SEND = 20
export const OP_RECV = 21
export const OP_READV = 22
export const OP_WRITEV = 23
export const OP_MSG_RING = 24
/** In place of a slot: what completed is a message of another queue, whose value is the result. */
export const MESSAGE_SLOT = -1
/** Beside an opcode: the next operation starts when this one has succeeded, or is over. */
export const FLAG_LINK = 1 << 8
export const FLAG_HARDLINK = 1 << 9
/** Beside an opcode: starts when all before is complete; what is staged later starts when it is. */
export const FLAG_DRAIN = 1 << 10
/** Beside an opcode: keeps no event loop alive, and goes before all others. */
export const FLAG_QUIET = 1 << 12
/** Beside an opcode, from this bit on: flags of the system call itself, RWF_ or MSG_. */
export const MODIFIER_SHIFT = 16
/** Flags of a timeout: a point in time, not a duration; that it is over breaks no chain. */
export const TIMEOUT_ABSOLUTE = 1
export const TIMEOUT_SUCCEEDS = 2
/** Of a splice: the position is in the file that it reads from, or in the one that it writes to. */
export const SPLICE_FROM = 1
export const SPLICE_TO = 2
/** Most bytes of one read, write or splice: the kernel's MAX_RW_COUNT, 2 GiB - 4 KiB. read(2). */
export const TRANSFER_BYTES_MAX = 0x7ffff000

/** Names of operations in errors, as node:fs has them. */
const SYSCALLS: readonly string[] = [
  'nop',
  'read',
  'write',
  'fsync',
  'ftruncate',
  'open',
  'close',
  'fstat',
  'timeout',
  'link_timeout',
  'rename',
  'unlink',
  'fallocate',
  'fadvise',
  'sync_file_range',
  'link',
  'symlink',
  'mkdir',
  'splice',
  'poll',
  'send',
  'recv',
  'read',
  'write',
  'msg_ring',
]

/** The name of an operation in errors. */
export function syscallOf(opcode: number): string {
  return SYSCALLS[opcode] ?? 'operation'
}

/** What tells calls of one opcode apart. */
interface Call {
  readonly opcode: number
  readonly offset: number
  readonly length: number
  readonly bytes: Uint8Array | undefined
}

/** As {@link syscallOf}, where its arguments make another call of it. */
export function syscallOfCall({ opcode, offset, length, bytes }: Call): string {
  if (opcode === OP_FSYNC && length === 1) return 'fdatasync'
  if (opcode === OP_UNLINKAT && offset !== 0) return 'rmdir'
  if (opcode === OP_STATX && bytes !== undefined) return offset === 0 ? 'stat' : 'lstat'
  return syscallOf(opcode)
}

/** Whether the operation's bytes go out of memory, into a file or socket. */
export function isOutgoing(opcode: number): boolean {
  return opcode === OP_WRITE || opcode === OP_SEND
}

/** Pools of {@link Backend.take}. */
export const POOL_ALLOC = 0
export const POOL_BOUNCE = 1
export const POOL_RESULT = 2

/** Why something was not staged. `crates/core/src/operation.rs` and the binding's `stage.rs`. */
export const REFUSED_CLOSED = 1
export const REFUSED_FAILED = 2
export const REFUSED_SLOT_BUSY = 3
export const REFUSED_SLOT_RANGE = 4
export const REFUSED_UNKNOWN_OPCODE = 5
export const REFUSED_UNKNOWN_FILE = 6
export const REFUSED_FILE_IN_FLIGHT = 7
export const REFUSED_UNKNOWN_CHUNK = 8
export const REFUSED_RANGE = 9
export const REFUSED_ARGUMENT = 10
export const REFUSED_PATH = 11
export const REFUSED_CREDENTIALS = 13
export const REFUSED_DESCRIPTORS = 14
export const REFUSED_BUFFER_GONE = 64

/** Answers of {@link Backend.take} that are no chunk. Others below -1000 are an errno. */
export const TAKE_LIMIT = 0
export const TAKE_TOO_LONG = -1
export const TAKE_BUFFER_GONE = -2
export const TAKE_ERRNO = -1000

/** Done, or the number of a refusal. */
type Outcome = number | undefined

/** Calls once an operation. Each costs 10-20 ns; none checks what TypeScript has checked for words. */
export interface RawFunctions {
  /** Stages an operation. */
  stage(
    opcode: number,
    slot: number,
    file: number,
    chunk: number,
    offset: number,
    length: number,
    position: number | bigint,
    bytes?: Uint8Array,
  ): Outcome
  /** Stages an operation whose other arguments are all 0. */
  stageBare(opcode: number, slot: number): Outcome
  /**
   * Stages many reads or writes between one chunk and one file, or as many nops as `positions` says.
   * They complete at `slot` together, with how many they were.
   */
  stageMany(
    opcode: number,
    slot: number,
    file: number,
    chunk: number,
    offset: number,
    lengths: number | Uint32Array,
    positions: Float64Array | BigInt64Array | BigUint64Array | number,
    fill: number,
  ): Outcome
  /** Takes what became of each of many that completed at `slot`: bytes, or negated errnos. */
  takeCounts(slot: number, target: Int32Array, offset: number): Outcome
  /** Submits what is staged now. */
  flush(): Outcome
  /** Cancels the operation at `slot`; it completes all the same. */
  cancel(slot: number): Outcome
  /** Takes a chunk, with `source`'s bytes copied in if there is one. A chunk's number, or TAKE_. */
  take(pool: number, length: number, source?: Uint8Array, sourceOffset?: number): number
  /** Gives a chunk back; with its ArrayBuffer, detaches that first. */
  disown(chunk: number, buffer?: ArrayBufferLike): Outcome
  /** Copies out of a chunk and gives it back, also when the target is gone. */
  copyOut(
    chunk: number,
    offset: number,
    target: Uint8Array,
    targetOffset: number,
    length: number,
  ): Outcome
  /** As copyOut, of several runs: pairs of an offset and a length, from `targetOffset` on. */
  copyRuns(chunk: number, runs: Float64Array, target: Uint8Array, targetOffset: number): Outcome
  /** An ArrayBuffer over a chunk, which it owns from now on; undefined where that is not allowed. */
  expose(chunk: number, length: number): ArrayBuffer | number | undefined
}

/** The cold calls. */
export interface Backend extends RawFunctions {
  readonly name: 'io_uring' | 'node:fs'
  /** Why it is not io_uring. */
  readonly reason: Unavailable | undefined
  /**
   * Whether operations use memory from {@link expose} in place. If not, no operation may name its
   * chunk: it is there to be counted and given back.
   */
  readonly inPlace: boolean
  /** Takes the file that the open at `slot` gave. */
  takeOpened(slot: number): Opened | null
  /** Takes the `struct statx` that the operation at `slot` left. */
  takeStat(slot: number): Uint8Array | null
  /** Takes a descriptor over: its handle, or a negated errno. */
  adopt(fd: number, direct: boolean): number
  /** The flags that a descriptor was opened with, or a negated errno. */
  descriptorFlags(fd: number): number
  /** Makes a pipe; its two ends, to read and to write, and how many bytes it holds, or a negated errno. */
  makePipe(): Pipe | number
  /** Whether the operation at `slot` is staged and has not been submitted. */
  isStaged(slot: number): boolean
  /** Notes from now on the moments that {@link stamps} gives, or no longer. */
  measure(on: boolean): void
  /** When operations went to the kernel last and were found complete; null where nobody can tell. */
  stamps(): EngineStamps | null
  setWanted(wanted: boolean): void
  /** The event loop has come round, as a delivery of none has asked for. */
  cameRound(): void
  /** Whether messages are waited for, which keeps the event loop alive as an operation does. */
  setListening(listening: boolean): void
  /** The ring's descriptor, or null when closed. */
  handle(): number | null
  stats(): EngineStats | null
  capabilities(): EngineCapabilities | null
  /** Ends it; true when the kernel let go of everything within `patienceMs`. */
  close(patienceMs: number): boolean
}

/**
 * Called with completions: `(1, slot, result)` for one, `(count, 0, 0)` for as many pairs of slot and
 * result as lie in the array given beside it, `(-errno, 0, 0)` when the engine failed for good; `(0, 0, 0)`
 * asks for `cameRound` when the event loop has come round.
 */
export type Deliver = (count: number, slot: number, result: number) => void

/**
 * Bun and Deno finalize an ArrayBuffer over foreign memory as soon as it is detached, and when else is
 * untried: there they get none, and everything is copied.
 */
const IS_NODE = process.versions['bun'] === undefined && process.versions['deno'] === undefined

/** The engine in the compiled module. */
export class UringBackend implements Backend {
  readonly name = 'io_uring'
  readonly reason = undefined
  readonly inPlace = true
  readonly #engine: Engine
  readonly stage: RawFunctions['stage']
  readonly stageBare: RawFunctions['stageBare']
  readonly stageMany: RawFunctions['stageMany']
  readonly takeCounts: RawFunctions['takeCounts']
  readonly flush: RawFunctions['flush']
  readonly cancel: RawFunctions['cancel']
  readonly take: RawFunctions['take']
  readonly disown: RawFunctions['disown']
  readonly copyOut: RawFunctions['copyOut']
  readonly copyRuns: RawFunctions['copyRuns']
  readonly expose: RawFunctions['expose']

  constructor(engine: Engine, raw: RawFunctions) {
    this.#engine = engine
    this.stage = raw.stage
    this.stageBare = raw.stageBare
    this.stageMany = raw.stageMany
    this.takeCounts = raw.takeCounts
    this.flush = raw.flush
    this.cancel = raw.cancel
    this.take = raw.take
    this.disown = raw.disown
    this.copyOut = raw.copyOut
    this.copyRuns = raw.copyRuns
    this.expose = IS_NODE ? raw.expose : () => undefined
  }

  takeOpened(slot: number): Opened | null {
    return this.#engine.takeOpened(slot)
  }
  takeStat(slot: number): Uint8Array | null {
    return this.#engine.takeStat(slot)
  }
  adopt(fd: number, direct: boolean): number {
    return this.#engine.adopt(fd, direct)
  }
  descriptorFlags(fd: number): number {
    return this.#engine.descriptorFlags(fd)
  }
  makePipe(): Pipe | number {
    return this.#engine.makePipe()
  }
  isStaged(slot: number): boolean {
    return this.#engine.isStaged(slot)
  }
  measure(on: boolean): void {
    this.#engine.measure(on)
  }
  stamps(): EngineStamps | null {
    return this.#engine.stamps()
  }
  setWanted(wanted: boolean): void {
    this.#engine.setWanted(wanted)
  }
  cameRound(): void {
    this.#engine.cameRound()
  }

  setListening(listening: boolean): void {
    this.#engine.setListening(listening)
  }
  handle(): number | null {
    return this.#engine.handle()
  }
  stats(): EngineStats | null {
    return this.#engine.stats()
  }
  capabilities(): EngineCapabilities | null {
    return this.#engine.capabilities()
  }
  close(patienceMs: number): boolean {
    return this.#engine.close(patienceMs)
  }
}
