/**
 * The queue: a ring joined to this thread's event loop, its memory and its files. Checks arguments
 * and hands them to `operations.ts`. Each method stands with what it promises, which is most of its length.
 */
import { constants as buffers } from 'node:buffer'
import { type Backend, OP_CLOSE, OP_TIMEOUT } from './backend.js'
import { type BatchResult, type SubmitOptions, submit } from './batch.js'
import type { BatchOperation, Result, ResultOf } from './batch-operation.js'
import { type Capabilities, capabilitiesOf } from './capabilities.js'
import { invalidArgValue, rejected, systemError, uringError } from './errors.js'
import { File } from './file.js'
import {
  type CloseOptions,
  closeTimeout,
  FileState,
  isEndless,
  settled,
  stateOf,
} from './file-state.js'
import { isDirect, parseMode, parsePath } from './flags.js'
import { checkLimits, type LimitOptions, type Limits } from './limits.js'
import type { AllocBuffer } from './memory.js'
import type { MessageStats } from './messages.js'
import type { EngineOptions, EngineStats } from './native.js'
import type { Latency } from './observer.js'
import { op } from './op.js'
import type { OpenSettings, PathLike } from './op-paths.js'
import { Operations } from './operations.js'
import {
  backendChoice,
  engineOptions,
  hiddenOperations,
  observerOf,
  type QueueOptions,
} from './options.js'
import { Posts } from './post.js'
import { type Content, checkData, type ReplaceOptions, replaceFile } from './replace.js'
import { nopRoundTrip, type RoundTripOptions, type RoundTripSummary } from './round-trip.js'
import { run } from './run.js'
import { probeBackend } from './start.js'
import { keepToThisThread } from './this-thread.js'
import { checkInteger, checkLength, checkOptions } from './validate.js'

/** Options of {@link Queue.open}. */
export interface OpenOptions extends LimitOptions, OpenSettings {}

/** What {@link Queue.stats} tells: counters since the queue was made, and gauges of now. */
export interface QueueStats {
  /** SQEs that the kernel took, and operations it completed. */
  submitted: number
  completed: number
  /** Operations called for and not settled, in the engine, and waiting for room. */
  pending: number
  inFlight: number
  waiting: number
  /** Calls of io_uring_enter(2), how many SQEs one submitted on average, how many were refused. */
  enters: number
  meanBatch: number
  refusals: number
  /** Enters that found the completion queue overflown: a larger `cqEntries` would help. */
  overflows: number
  /** Completions of nobody. Anything but 0 is a bug. */
  stale: number
  /** Messages that other queues have posted. */
  messages: MessageStats
  /** Reads that kernel workers copied, cancels asked of the kernel, wake-ups by the eventfd. */
  punted: number
  cancels: number
  wakeups: number
  /** Bytes copied on their way to or from the kernel. */
  bouncedBytes: number
  /** Open files. */
  files: number
  /** Memory of the arena, in bytes: of `alloc`, of copies under way, of `bytesAt` results. */
  memory: {
    alloc: { mappedBytes: number; usedBytes: number }
    bounce: { mappedBytes: number; usedBytes: number }
    result: { mappedBytes: number; usedBytes: number }
    registeredBytes: number
  }
  /** With the option `latency`: how long operations took, by the names that they have in errors. */
  latency?: Record<string, Latency>
}

/** What is below a queue; for the rooms beside it. */
export let backendOf: (queue: Queue) => Backend

/**
 * A ring with its memory and its files, for the thread that makes it. Everything staged in one turn
 * of the event loop is submitted by one system call; results settle together.
 *
 * Where io_uring is missing or forbidden everything works on node:fs, and `capabilities.reason` says
 * why. With `backend: 'io_uring'` it throws `ERR_URING_UNAVAILABLE` with that reason instead.
 */
export class Queue extends Posts {
  readonly #operations: Operations
  readonly #options: EngineOptions
  readonly #files = new Set<FileState>()
  #closing: Promise<void> | undefined
  #capabilities: Capabilities | undefined

  static {
    backendOf = (queue) => queue.#operations.backend
  }

  constructor(options?: QueueOptions) {
    const asked = engineOptions(options)
    const operations = new Operations(
      backendChoice(options),
      asked,
      hiddenOperations(options),
      observerOf(options),
    )
    super(operations)
    this.#options = asked
    this.#operations = operations
    keepToThisThread(this)
    operations.enter = ({ file, fd }, path, flags, limits) =>
      this.#enter(new FileState(operations, file, fd, path, flags), limits)
  }

  /**
   * What `new Queue(options).capabilities` would tell, without keeping a ring; whether memory can be
   * registered is tried. Throws as the constructor does.
   */
  static probe(options?: QueueOptions): Capabilities {
    const asked = engineOptions(options)
    hiddenOperations(options)
    observerOf(options)
    const { granted, name, reason } = probeBackend(backendChoice(options), asked)
    return capabilitiesOf(granted, asked, name, reason)
  }

  // ---- files --------------------------------------------------------------------------------

  /**
   * Opens a file without blocking the thread. `flags` are those of node:fs, a string or a number,
   * 'r' by default. Rejects with the errno of openat(2). With `directory` the path begins there, and
   * `resolve` says what it may not do: openat2(2).
   */
  open(path: PathLike, flags?: string | number, options: OpenOptions = {}): Promise<File> {
    const made = op.open(path, flags, options)
    if (made.file !== undefined && made.file.operations !== this.#operations) {
      throw ofAnotherQueue('options.directory', options.directory)
    }
    return run(this.#operations, made, options)
  }

  /**
   * Takes an open descriptor over: it is this queue's from now on, which closes it. Closing it
   * elsewhere, too, closes a number that may be another file's by then. Rejects with EBADF for one
   * that is not open, EEXIST for one that this queue has already.
   */
  adopt(fd: number): Promise<File> {
    checkInteger(fd, 'fd', 0, 2 ** 31 - 1)
    const { backend } = this.#operations
    if (this.#operations.ended !== undefined) return rejected(this.#operations.ended())
    const flags = backend.descriptorFlags(fd)
    if (flags < 0) return rejected(systemError(flags, 'fcntl'))
    const handle = backend.adopt(fd, isDirect(flags))
    if (handle < 0) return rejected(systemError(handle, 'adopt'))
    return this.#enter(new FileState(this.#operations, handle, fd, undefined, flags))
  }

  /** Makes a file of a state, complete with what it has to know before its first operation. */
  async #enter(state: FileState, limits?: Limits): Promise<File> {
    this.#files.add(state)
    state.onClosed = () => this.#files.delete(state)
    try {
      if (state.blockBytes !== 0) await state.learnAlignment(limits)
      if (this.#operations.ended !== undefined) throw this.#operations.ended()
    } catch (error) {
      await state.close()
      throw error
    }
    return new File(state)
  }

  // ---- memory -------------------------------------------------------------------------------

  /**
   * Memory that operations use in place: page aligned, zeroed, `length` bytes with an ArrayBuffer of
   * its own. It goes back when {@link free} is called or when it is collected. Views of it work in
   * place too. Where the language has it, `using buffer = queue.alloc(4096)` frees it at the end of the
   * block. At most `buffer.constants.MAX_LENGTH`, as any Buffer. Throws `ERR_URING_NO_MEMORY` past
   * `arena.maxBytes`.
   */
  alloc(length: number): AllocBuffer {
    checkLength(length, buffers.MAX_LENGTH)
    if (this.#operations.ended !== undefined) throw this.#operations.ended()
    return this.#operations.memory.alloc(length)
  }

  /**
   * Gives memory from {@link alloc} back early and detaches it: its length becomes 0. Throws
   * `ERR_URING_FREED` the second time, `ERR_URING_NOT_ALLOCATED` for anything else,
   * `ERR_URING_IN_FLIGHT` while an operation uses it, and `ERR_URING_CLOSED` on a closed queue.
   */
  free(buffer: NodeJS.ArrayBufferView | ArrayBuffer): void {
    this.#operations.memory.free(buffer)
  }

  // ---- operations without a file --------------------------------------------------------------

  /** The cheapest trip to the kernel and back: IORING_OP_NOP. */
  nop(options?: LimitOptions): Promise<void> {
    return this.#operations.nop(options === undefined ? undefined : checkLimits(options))
  }

  /** `count` nops, up to 2^32-1, by one call, for one promise: what a trip costs without one for each. */
  nops(count: number, options?: LimitOptions): Promise<void> {
    checkInteger(count, 'count', 0, 2 ** 32 - 1)
    return this.#operations.volume.nops(count, checkLimits(options))
  }

  /** Resolves after `ms` milliseconds, by the kernel's clock. IORING_OP_TIMEOUT. */
  sleep(ms: number, options?: LimitOptions): Promise<void> {
    checkInteger(ms, 'ms', 0, 2 ** 31 - 1)
    return this.#sleep(ms, checkLimits(options))
  }

  async #sleep(ms: number, limits: Limits | undefined): Promise<void> {
    const result = await this.#operations.call(OP_TIMEOUT, undefined, 0, 0, ms * 1e6, { limits })
    if (result === 0) return
    return rejected(this.#operations.failure(Number(result), 'timeout'))
  }

  /**
   * Many operations, made by {@link op}, for one promise. Resolves when all are over with what each
   * came to, in their order: a count of bytes, 0 where there is nothing to count, or an Error.
   *
   * `link` makes a chain of them, which goes to the kernel whole, in one submission, and needs a queue
   * with as many entries, and bounce memory for all its plain buffers at once; what can never fit throws
   * `ERR_URING_UNSUPPORTED`. (What follows an fsync, truncate, rename or unlink in a soft chain goes when
   * that has succeeded, and where memory is copied what follows a read that a later write takes its
   * bytes from.) A write in a chain that was short gives `ERR_URING_SHORT_WRITE`. Without `link` reads
   * are filled and writes complete, as by {@link File.readAt} and {@link File.writeAt}. `signal` and
   * `timeoutMs` are for each of them.
   */
  submit<const List extends readonly BatchOperation<Result>[]>(
    operations: List,
    options: SubmitOptions & { throwOnError: true },
  ): Promise<{ -readonly [Index in keyof List]: ResultOf<List[Index]> }>
  submit<const List extends readonly BatchOperation<Result>[]>(
    operations: List,
    options?: SubmitOptions,
  ): Promise<{ -readonly [Index in keyof List]: BatchResult<ResultOf<List[Index]>> }>
  submit(
    operations: readonly BatchOperation<Result>[],
    options?: SubmitOptions,
  ): Promise<BatchResult<Result>[]> {
    return submit(this.#operations, operations, options)
  }

  /** Submits what is staged now: for callers who compute before they await. */
  flush(): void {
    this.#operations.sendGathered()
    this.#operations.backend.flush()
  }

  /**
   * Measures nops: how long one takes from the call to its promise, with `stages` also where the time
   * goes, and how many there are a second. Rejects with an AbortError, or with what `onProgress` throws.
   */
  nopRoundTrip(options?: RoundTripOptions): Promise<RoundTripSummary> {
    return nopRoundTrip(this.#operations, options)
  }

  // ---- durability ---------------------------------------------------------------------------

  /**
   * Resolves when all writes to the file that had settled before the call are on stable storage; one that
   * is still under way may not be. All that call it in one turn share one fdatasync(2), and so do all that call it while one runs:
   * the next one. Rejects with the errno of fdatasync(2), after which what was written may be lost.
   */
  commit(file: File, options?: LimitOptions): Promise<void> {
    const state = stateOf(file)
    const limits = checkLimits(options)
    if (state.operations !== this.#operations) {
      throw ofAnotherQueue('file', file)
    }
    return state.commits.commit(limits)
  }

  /**
   * Replaces the content of a file, or makes it: whoever reads it, also after a crash, finds all of
   * the old or all of the new. `data` is the content, or its parts one after the other (an array, a
   * generator, a stream: what is too much for memory); buffers stay as they are until this settles. Writes a temporary file beside it, fsync(2)s it, renames it, and
   * fsync(2)s the folder. Links are followed; permissions are kept, and the owner where that is
   * allowed. On an error the temporary file is gone, and the old content is there unless only the last
   * step failed. (A process that is killed can leave a temporary file, `.*.tmp`.) Linux 5.11.
   */
  replaceFile(
    path: string | Buffer | Uint8Array | URL,
    data: Content | Iterable<Content> | AsyncIterable<Content>,
    options: ReplaceOptions = {},
  ): Promise<void> {
    const parsed = parsePath(path)
    const content = checkData(data)
    checkOptions(options)
    const { mode } = options
    const permissions = mode === undefined ? undefined : parseMode(mode, 'options.mode')
    const limits = checkLimits(options)
    return replaceFile(this.#operations, parsed, content, permissions, limits)
  }

  // ---- looking in ---------------------------------------------------------------------------

  /** What the operations run on, decided when the queue was made. */
  get backend(): 'io_uring' | 'node:fs' {
    return this.#operations.backend.name
  }

  /**
   * A number that names this queue in its process while it is open: for {@link Queue.post} and the
   * option `attach` of other queues, also of other threads. Throws `ERR_URING_CLOSED`, and
   * `ERR_URING_UNSUPPORTED` on node:fs.
   */
  get handle(): number {
    const { backend } = this.#operations
    const handle = backend.handle()
    if (handle !== null) return handle
    if (backend.name === 'io_uring') throw uringError('ERR_URING_CLOSED')
    throw uringError('ERR_URING_UNSUPPORTED', { feature: 'queue.handle', needs: 'io_uring' })
  }

  /** What the kernel granted, and why not the rest; after {@link close}, what it had last. */
  get capabilities(): Capabilities {
    const granted = this.#operations.kernel.capabilities()
    if (granted !== null) {
      const { name, reason } = this.#operations.backend
      this.#capabilities = capabilitiesOf(granted, this.#options, name, reason)
    }
    // #close keeps them.
    return this.#capabilities as Capabilities
  }

  /** Counters and gauges; see {@link QueueStats}. */
  stats(): QueueStats {
    const { backend, messages, slots, transfers, observer } = this.#operations
    const latency = observer.latency()
    const engine = backend.stats() ?? this.#lastStats
    if (engine === undefined) throw uringError('ERR_URING_CLOSED')
    return {
      submitted: engine.submitted,
      completed: engine.completed,
      pending: slots.pending,
      inFlight: engine.inFlight,
      waiting: slots.waiting,
      enters: engine.enters,
      meanBatch: engine.submittingEnters === 0 ? 0 : engine.submitted / engine.submittingEnters,
      refusals: engine.refusals,
      overflows: engine.overflows,
      stale: engine.stale,
      messages: {
        received: engine.messages,
        waiting: messages.waiting,
        dropped: messages.dropped,
      },
      punted: engine.punted,
      cancels: engine.cancels,
      wakeups: engine.wakeups,
      bouncedBytes: transfers.bouncedBytes,
      files: engine.files,
      memory: {
        alloc: { mappedBytes: engine.allocMappedBytes, usedBytes: engine.allocUsedBytes },
        bounce: { mappedBytes: engine.bounceMappedBytes, usedBytes: engine.bounceUsedBytes },
        result: { mappedBytes: engine.resultMappedBytes, usedBytes: engine.resultUsedBytes },
        registeredBytes: engine.registeredBytes,
      },
      ...(latency && { latency }),
    }
  }

  #lastStats: EngineStats | undefined

  /**
   * Keeps the process alive while operations are in flight, or somebody listens for messages; this is
   * how a queue starts.
   */
  ref(): this {
    this.#operations.backend.setWanted(true)
    return this
  }

  /** Lets the process end while operations are in flight, and while somebody listens. */
  unref(): this {
    this.#operations.backend.setWanted(false)
    return this
  }

  // ---- the end ------------------------------------------------------------------------------

  /**
   * Takes nothing new, waits for what is in flight, closes the files, then the ring. With
   * `timeoutMs` it cancels what has not settled by then; what the kernel will not give back is named
   * by `ERR_URING_BUSY`. Memory from {@link alloc} stays valid. Calls after the first return the
   * same promise.
   */
  close(options?: CloseOptions): Promise<void> {
    const timeoutMs = closeTimeout(options)
    this.#closing ??= this.#close(timeoutMs)
    return this.#closing
  }

  async #close(timeoutMs: number | undefined): Promise<void> {
    const operations = this.#operations
    const failed = operations.ended !== undefined
    operations.ended ??= () => uringError('ERR_URING_CLOSED')
    let held: string[] = []
    // Whoever closes it from inside of a settling finds that over.
    if (failed) await Promise.resolve()
    else {
      await settled(operations, timeoutMs, () => {
        operations.isCancelled = true
        operations.cancel((op) => op.opcode !== OP_CLOSE)
      })
      held = operations.describe((op) => op.cancelled)
      // An open that had begun goes on (it asks for the alignment, it closes what nobody wants).
      for (let left = true; left && held.length === 0; left = operations.pending > 0) {
        const files = [...this.#files].filter((state) => state.pending === 0)
        await Promise.allSettled(files.map((state) => state.close()))
        await settled(operations, undefined, () => {})
      }
    }
    this.#lastStats = operations.backend.stats() ?? undefined
    this.#capabilities = this.capabilities
    for (const state of this.#files) state.isEnded = true
    operations.close(0)
    if (held.length > 0) throw uringError('ERR_URING_BUSY', { held })
  }

  /** Cancels pending reads, opens and sleeps, waits for writes, and closes. */
  [Symbol.asyncDispose](): Promise<void> {
    const closed = this.close()
    this.#operations.endsReads = true
    this.#operations.cancel(isEndless)
    return closed
  }
}

function ofAnotherQueue(name: string, value: unknown): Error {
  return invalidArgValue(name, value, 'is of another queue. Use the one that opened it')
}
