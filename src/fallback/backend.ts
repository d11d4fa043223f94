/**
 * The backend on node:fs: what {@link Backend} asks of an engine, kept by the calls that Node has.
 * Here operations are checked, and hold what they use until they are over; `turns.ts` says when they
 * begin and are delivered, `calls.ts` what node:fs does for them.
 */
import {
  type Backend,
  type Deliver,
  MODIFIER_SHIFT,
  OP_CLOSE,
  OP_FADVISE,
  OP_FALLOCATE,
  OP_FSYNC,
  OP_FTRUNCATE,
  OP_MKDIRAT,
  OP_NOP,
  OP_OPENAT,
  OP_READ,
  OP_STATX,
  OP_SYNC_FILE_RANGE,
  OP_WRITE,
  REFUSED_ARGUMENT,
  REFUSED_BUFFER_GONE,
  REFUSED_CLOSED,
  REFUSED_FILE_IN_FLIGHT,
  REFUSED_RANGE,
  REFUSED_SLOT_BUSY,
  REFUSED_SLOT_RANGE,
  REFUSED_UNKNOWN_CHUNK,
  REFUSED_UNKNOWN_FILE,
  REFUSED_UNKNOWN_OPCODE,
  TAKE_LIMIT,
} from '../backend.js'
import { ERRNO } from '../errno.js'
import { isDirect } from '../flags.js'
import type { EngineCapabilities, EngineOptions, EngineStats, Opened } from '../native.js'
import type { Unavailable } from '../unavailable.js'
import { Request } from './calls.js'
import { descriptorFlags, FileTable, type OpenFile } from './files.js'
import { Many } from './many.js'
import { Chunks } from './memory.js'
import { closeQuietly } from './streams.js'
import { LINKS, Turns } from './turns.js'

/** What the engine calls its operations, and which of them this backend has. */
const OPERATIONS: Readonly<Record<string, boolean>> = {
  nop: true,
  read: true,
  write: true,
  read_fixed: false,
  write_fixed: false,
  fsync: true,
  ftruncate: true,
  openat: true,
  close: true,
  statx: true,
  timeout: true,
  link_timeout: true,
  renameat: true,
  unlinkat: true,
  linkat: true,
  symlinkat: true,
  mkdirat: true,
  async_cancel: false,
}
/** Those that can be staged: up to the last, without those in between that Node has no call for. */
const HAS_NOT = new Set([OP_FALLOCATE, OP_FADVISE, OP_SYNC_FILE_RANGE])
const OPCODE_MAX = OP_MKDIRAT
/** Most operations of one {@link NodeBackend.stageMany}. */
const MANY_MAX = 1 << 20
/** Where each of many goes in the file. */
type Positions = Float64Array | BigInt64Array | BigUint64Array
/** Those that are done to a file. A statx may be of a path. */
const ON_FILES = new Set([OP_READ, OP_WRITE, OP_FSYNC, OP_FTRUNCATE, OP_CLOSE])

/** The engine, on node:fs. */
export class NodeBackend implements Backend {
  readonly name = 'node:fs'
  readonly inPlace = false
  readonly reason: Unavailable
  readonly #options: EngineOptions
  readonly #files = new FileTable()
  readonly #chunks: Chunks
  readonly #turns: Turns
  /** What opens and statxs left, by slot, until it is taken or the slot is used again. */
  readonly #opened = new Map<number, { fd: number; flags: number }>()
  readonly #statx = new Map<number, Uint8Array>()
  /** What became of each of many, likewise. */
  readonly #counts = new Map<number, Int32Array>()
  #closed = false
  #cancels = 0

  constructor(options: EngineOptions, deliver: Deliver, pairs: Int32Array, reason: Unavailable) {
    this.#options = options
    this.reason = reason
    this.#chunks = new Chunks(options)
    this.#turns = new Turns(
      deliver,
      pairs,
      (request, result) => this.#letGo(request, result),
      (request, result) => this.#late(request, result),
    )
  }

  // ---- taking operations in -------------------------------------------------------------------

  stage(
    opcode: number,
    slot: number,
    file: number,
    chunk: number,
    offset: number,
    length: number,
    position: number | bigint,
    bytes?: Uint8Array,
  ): number | undefined {
    const refusal = this.#take(opcode, slot, file, chunk, offset, length, position, bytes)
    // The operations of a chain that cannot go on are cancelled, as the engine does.
    if (refusal !== undefined) this.#turns.cancelOpenChain()
    return refusal
  }

  stageBare(opcode: number, slot: number): number | undefined {
    return this.stage(opcode, slot, 0, 0, 0, 0, 0)
  }

  #take(
    opcode: number,
    slot: number,
    handle: number,
    chunk: number,
    offset: number,
    length: number,
    position: number | bigint,
    bytes: Uint8Array | undefined,
  ): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    if (this.#turns.at(slot) !== undefined) return REFUSED_SLOT_BUSY
    const [kind, flags] = [opcode & 0xff, opcode & ~0xff]
    if (kind > OPCODE_MAX || HAS_NOT.has(kind)) return REFUSED_UNKNOWN_OPCODE
    if (position < 0 || flags >> MODIFIER_SHIFT !== 0) return REFUSED_ARGUMENT
    // Node opens from the working directory only, and has no openat2(2).
    if (kind === OP_OPENAT && (handle !== 0 || position !== 0)) return REFUSED_ARGUMENT
    const file = this.#files.get(handle)
    if (file === undefined && (handle !== 0 || ON_FILES.has(kind))) return REFUSED_UNKNOWN_FILE
    const request = new Request(slot, kind, flags, file, chunk, offset, length, position)
    if (kind === OP_CLOSE) {
      if ((file as OpenFile).holds > 0) return REFUSED_FILE_IN_FLIGHT
      if ((flags & LINKS) !== 0) return REFUSED_ARGUMENT
      // Nothing staged later can reach it.
      this.#files.remove(handle)
    } else if (handle === 0 && bytes !== undefined) {
      request.path = Buffer.from(bytes)
    }
    return this.#admit(request)
  }

  /** Takes hold of what a request uses, until it is over. */
  #admit(request: Request): number | undefined {
    const { opcode, slot, file, chunk, offset, length } = request
    if (opcode === OP_READ || opcode === OP_WRITE) {
      const memory = this.#chunks.bytesOf(chunk)
      if (memory === undefined) return REFUSED_UNKNOWN_CHUNK
      if (offset + length > memory.byteLength) return REFUSED_RANGE
      request.memory = memory
      this.#chunks.hold(chunk)
    }
    if (file !== undefined) file.holds++
    this.#forget(slot)
    this.#turns.enter(request)
    return undefined
  }

  /** What nobody took is nobody's. */
  #forget(slot: number): void {
    const opened = this.#opened.get(slot)
    if (opened !== undefined) closeQuietly(opened.fd)
    this.#opened.delete(slot)
    this.#statx.delete(slot)
    this.#counts.delete(slot)
  }

  stageMany(
    opcode: number,
    slot: number,
    handle: number,
    chunk: number,
    offset: number,
    lengths: number | Uint32Array,
    positions: Positions | number,
    fill: number,
  ): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    if (this.#turns.at(slot) !== undefined) return REFUSED_SLOT_BUSY
    const transfers = opcode === OP_READ || opcode === OP_WRITE
    if (!transfers && opcode !== OP_NOP) return REFUSED_UNKNOWN_OPCODE
    const count = typeof positions === 'number' ? positions : positions.length
    if (count === 0 || count > MANY_MAX) return REFUSED_ARGUMENT
    const many = new Many({
      count,
      // Copies: they are the caller's.
      lengths: typeof lengths === 'number' ? lengths : lengths.slice(),
      positions: typeof positions === 'number' ? undefined : positions.slice(),
      fill: fill !== 0,
    })
    const file = this.#files.get(handle)
    if (transfers && file === undefined) return REFUSED_UNKNOWN_FILE
    const request = new Request(slot, opcode, 0, file, chunk, offset, many.bytes, 0)
    request.many = many
    return this.#admit(request)
  }

  takeCounts(slot: number, target: Int32Array, offset: number): number | undefined {
    const counts = this.#counts.get(slot)
    if (counts === undefined) return REFUSED_UNKNOWN_CHUNK
    this.#counts.delete(slot)
    if (offset + counts.length > target.length) return REFUSED_BUFFER_GONE
    target.set(counts, offset)
    return undefined
  }

  /** A request is over: what it held is free, and what it brought can be taken. */
  #letGo(request: Request, result: number): void {
    const { opcode, file, chunk, slot, statx, many } = request
    if (request.memory !== undefined) this.#chunks.unhold(chunk)
    if (file !== undefined) file.holds--
    if (opcode === OP_OPENAT && result >= 0) {
      this.#opened.set(slot, { fd: result, flags: request.offset })
    } else if (opcode === OP_STATX && statx !== undefined) {
      this.#statx.set(slot, statx)
    } else if (many !== undefined) {
      // Each has a result, also of those that never began.
      if (!request.begun) many.cancel()
      this.#counts.set(slot, many.results)
    } else if (opcode === OP_CLOSE && !request.begun) {
      closeQuietly((file as OpenFile).fd)
    }
  }

  /** What node:fs gives back when the backend is closed: a descriptor must not be left open. */
  #late(request: Request, result: number): void {
    const { opcode, file } = request
    if (opcode === OP_OPENAT && result >= 0) closeQuietly(result)
    if (file === undefined || opcode === OP_CLOSE) return
    file.holds--
    if (file.gone && file.holds === 0) closeQuietly(file.fd)
  }

  cancel(slot: number): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    const request = this.#turns.at(slot)
    if (request === undefined) return REFUSED_SLOT_RANGE
    // As the engine, which asks the kernel for none of what was not submitted.
    if (request.begun) this.#cancels++
    this.#turns.cancel(request)
    return undefined
  }

  isStaged(slot: number): boolean {
    const request = this.#turns.at(slot)
    return request !== undefined && !request.begun && !request.over
  }

  flush(): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    this.#turns.begin()
    return undefined
  }

  // There is no kernel queue to enter, and nothing comes out of one.
  measure(): void {}
  stamps(): null {
    return null
  }

  setWanted(wanted: boolean): void {
    this.#turns.setWanted(wanted)
  }
  cameRound(): void {}

  /** Nobody can post to it. */
  setListening(): void {}

  // ---- memory ---------------------------------------------------------------------------------

  take(pool: number, length: number, source?: Uint8Array, sourceOffset?: number): number {
    return this.#closed ? TAKE_LIMIT : this.#chunks.take(pool, length, source, sourceOffset)
  }
  disown(chunk: number, buffer?: ArrayBufferLike): number | undefined {
    return this.#closed ? REFUSED_CLOSED : this.#chunks.disown(chunk, buffer)
  }
  copyOut(
    chunk: number,
    offset: number,
    target: Uint8Array,
    targetOffset: number,
    length: number,
  ): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    return this.#chunks.copyOut(chunk, offset, target, targetOffset, length)
  }
  copyRuns(
    chunk: number,
    runs: Float64Array,
    target: Uint8Array,
    targetOffset: number,
  ): number | undefined {
    if (this.#closed) return REFUSED_CLOSED
    return this.#chunks.copyRuns(chunk, runs, target, targetOffset)
  }
  expose(chunk: number): ArrayBuffer | undefined {
    return this.#chunks.expose(chunk)
  }

  // ---- files ----------------------------------------------------------------------------------

  takeOpened(slot: number): Opened | null {
    const opened = this.#opened.get(slot)
    if (opened === undefined) return null
    this.#opened.delete(slot)
    if (isDirect(opened.flags)) this.#chunks.align()
    return this.#files.add(opened.fd, opened.flags)
  }
  takeStat(slot: number): Uint8Array | null {
    const statx = this.#statx.get(slot) ?? null
    this.#statx.delete(slot)
    return statx
  }
  adopt(fd: number, direct: boolean): number {
    if (this.#closed) return -ERRNO.EBADF
    if (direct) this.#chunks.align()
    return this.#files.adopt(fd)
  }
  descriptorFlags(fd: number): number {
    return descriptorFlags(fd)
  }
  makePipe(): number {
    return -ERRNO.ENOTSUP
  }

  // ---- looking in, and the end ----------------------------------------------------------------

  stats(): EngineStats | null {
    if (this.#closed) return null
    const { alloc, bounce } = this.#chunks
    const { submitted, completed, inFlight } = this.#turns
    return {
      submitted,
      completed,
      inFlight,
      enters: 0,
      submittingEnters: 0,
      refusals: 0,
      overflows: 0,
      stale: 0,
      messages: 0,
      punted: 0,
      cancels: this.#cancels,
      wakeups: 0,
      files: this.#files.size,
      allocMappedBytes: alloc.mappedBytes,
      allocUsedBytes: alloc.usedBytes,
      bounceMappedBytes: bounce.mappedBytes,
      bounceUsedBytes: bounce.usedBytes,
      resultMappedBytes: 0,
      resultUsedBytes: 0,
      registeredBytes: 0,
    }
  }

  capabilities(): EngineCapabilities | null {
    if (this.#closed) return null
    const { entries, cqEntries } = this.#options
    return {
      entries,
      cqEntries,
      setupFlags: [],
      registeredDescriptor: false,
      features: {},
      operations: { ...OPERATIONS },
      registeredFiles: 0,
      registeredMemory: ERRNO.ENOTSUP,
      refused: {},
      ownThread: false,
      chainMax: entries,
    }
  }

  /** There is no ring to attach to. */
  handle(): null {
    return null
  }

  /** Ends it at once: nobody can be waited for here. True when node:fs has nothing any more. */
  close(): boolean {
    if (this.#closed) return true
    this.#closed = true
    this.#files.endStreams()
    this.#turns.close()
    for (const { fd } of this.#opened.values()) closeQuietly(fd)
    this.#opened.clear()
    this.#files.end()
    return this.#turns.running === 0
  }
}
