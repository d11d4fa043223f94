/**
 * Appends called for in one go, before the event loop goes on, are one write together; where there was one
 * alone the time before, the first is a write of its own. A file system takes buffered appends to a file
 * one after the other, each by way of a kernel worker: ARCHITECTURE.md has what 64 of them cost.
 *
 * That write is an ordinary operation; what each caller has is a share in it. When it fails midway, those
 * before the place have what they wanted, and those behind it fail as it did.
 */
import { types } from 'node:util'
import { OP_FSYNC, OP_WRITE } from './backend.js'
import { abortError, type SystemError, systemError, writtenBy } from './errors.js'
import type { FileState } from './file-state.js'
import { APPENDS, type WriteSettings } from './modifiers.js'
import type { Operations } from './operations.js'
import { KIND_OUTSIDE, type Operation } from './slots.js'
import { STATX_STATS, Stats } from './stats.js'

/** The longest that shares a write: a longer one costs more to copy twice than to submit. */
const MEMBER_BYTES_MAX = 16 << 10
/** Most bytes of one write of several. */
const GROUP_BYTES_MAX = 256 << 10
const GROUP_BYTES_FIRST = 4 << 10
const NOTHING = new Uint8Array(0)

/** The length of a Uint8Array, whatever properties it was given. */
const lengthOf = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  'byteLength',
)?.get as (this: Uint8Array) => number

/** A caller's part of a write. */
interface Member {
  readonly op: Operation
  readonly number: number
  readonly start: number
  readonly end: number
}

/** What is written at once. */
interface Write {
  readonly members: readonly Member[]
  readonly bytes: Uint8Array
  readonly datasync: boolean
}

/** The appends of one file. */
export class Appends {
  readonly #operations: Operations
  readonly #file: FileState
  readonly #flags: number
  /** How many were called for since the event loop went on, and the time before. */
  #called = 0
  #calledBefore = 0
  /** Whether the file is one where two writes are the same as one of both. */
  #isOrdinary = false
  /** How often several were called for until that was known. */
  #companies = 0
  #members: Member[] = []
  /** Whether what is gathered is to be on stable storage when it settles. */
  #datasync = false
  #bytes: Uint8Array = NOTHING
  #length = 0
  /** How many bytes they were the time before: a guess at how many they will be. */
  #lengthBefore = 0

  constructor(operations: Operations, file: FileState) {
    this.#operations = operations
    this.#file = file
    this.#flags = file.append ? 0 : APPENDS
  }

  /**
   * Takes an append if it can share a write: one that was asked for nothing but `datasync`, as those
   * gathered were or were not. Otherwise what was gathered goes, and the caller's append behind it.
   */
  join(view: ArrayBufferView, settings: WriteSettings): Promise<number> | undefined {
    const { datasync, limits, flags } = settings
    const plain = limits === undefined && flags === 0
    // No code of the caller's runs from here on, so that nobody else joins in between.
    const length = types.isUint8Array(view) ? lengthOf.call(view) : 0
    if (!plain || length === 0 || length > MEMBER_BYTES_MAX || !this.#isOpen()) {
      this.send()
      return undefined
    }
    if (this.#length + length > GROUP_BYTES_MAX || datasync !== this.#datasync) this.send()
    this.#datasync = datasync
    const start = this.#length
    const end = start + length
    this.#grow(end)
    this.#bytes.set(view as Uint8Array, start)
    this.#length = end
    if (start === 0) this.#operations.gathering.add(this)
    const [op, promise] = this.#operations.share<number>(
      OP_WRITE,
      this.#file,
      undefined,
      KIND_OUTSIDE,
    )
    this.#members.push({ op, number: op.number, start, end })
    return promise
  }

  /** Counts one more since the event loop went on; when it does, what was gathered goes. */
  #count(): void {
    if (this.#called++ > 0) return
    void Promise.resolve().then(() => {
      this.#calledBefore = this.#called
      this.#called = 0
      this.send()
    })
  }

  /** Whether another may join: nobody waits for room, and the file is an ordinary one. */
  #isOpen(): boolean {
    const { closed, blockBytes } = this.#file
    const { ended, slots } = this.#operations
    if (closed || blockBytes !== 0 || ended !== undefined) return false
    this.#count()
    // One by itself is in nobody's company, unless the one before it was.
    if (this.#called === 1 && this.#calledBefore <= 1) return false
    if (slots.waiting > 0) return false
    if (!this.#isOrdinary && this.#called === 2) this.#ask()
    return this.#isOrdinary
  }

  /**
   * Asks whether the file has blocks. What a FIFO, socket or terminal takes at once is less, and a write to a
   * file of /proc or /sys is a command; those have none. An empty file has none yet, so it is asked again, the
   * 2nd time in company, the 4th, the 8th.
   */
  #ask(): void {
    const times = ++this.#companies
    if ((times & (times - 1)) !== 0 || this.#operations.slots.isFull) return
    this.#file.statx(STATX_STATS).then(
      (bytes) => {
        const stats = new Stats(bytes)
        if (stats.isFile() && stats.blocks > 0) this.#isOrdinary = true
      },
      () => {},
    )
  }

  #grow(length: number): void {
    if (length <= this.#bytes.length) return
    let size = Math.max(this.#bytes.length, this.#lengthBefore, GROUP_BYTES_FIRST)
    while (size < length) size *= 2
    const larger = Buffer.allocUnsafeSlow(size)
    larger.set(this.#bytes.subarray(0, this.#length))
    this.#bytes = larger
  }

  /** Stages what was gathered. */
  send(): void {
    if (this.#length === 0) return
    this.#operations.gathering.delete(this)
    const write = { members: this.#members, bytes: this.#bytes, datasync: this.#datasync }
    const length = this.#length
    this.#members = []
    this.#bytes = NOTHING
    this.#lengthBefore = length
    this.#length = 0
    // Cancelled, with the file or the queue, before it went.
    if (write.members.some(({ op }) => op.cancelled)) {
      this.#eachAlone(write)
      return
    }
    void this.#write(write, 0, length).then(
      () => {
        for (const member of write.members) this.#settle(member)
      },
      (error: Error) => {
        const written = writtenBy(error)
        // What is synced as it is written may all be in the file: it was the sync that failed.
        const counts = written < length && !this.#file.dsync
        const isWhole = ({ op, end }: Member) =>
          counts && end <= written && !(write.datasync && op.cancelled)
        const whole = write.members.filter(isWhole)
        this.#failed(
          write.members.filter((member) => !isWhole(member)),
          error,
          written,
        )
        if (write.datasync) void this.#sync(whole)
        else for (const member of whole) this.#settle(member)
      },
    )
  }

  #write({ bytes, datasync }: Write, start: number, end: number): Promise<number> {
    const part = bytes.subarray(start, end)
    const { transfers } = this.#operations
    const length = end - start
    return transfers.transfer(
      OP_WRITE,
      this.#file,
      part,
      length,
      0,
      datasync,
      undefined,
      true,
      this.#flags,
    )
  }

  /** Each by itself, but for those that were cancelled. */
  #eachAlone(write: Write): void {
    for (const member of write.members) {
      const { op, number, start, end } = member
      if (op.cancelled) this.#settle(member, abortError(undefined, 0))
      else if (op.number === number) {
        void this.#write(write, start, end).then(
          () => this.#settle(member),
          (error: Error) => this.#settle(member, error),
        )
      }
    }
  }

  /** The fdatasync of those whose write failed behind them. */
  async #sync(members: readonly Member[]): Promise<void> {
    if (members.length === 0) return
    const options = { internal: true }
    try {
      const result = await this.#operations.call(OP_FSYNC, this.#file, 0, 1, 0, options)
      if (typeof result === 'number' && result < 0)
        throw this.#operations.failure(result, 'fdatasync', { file: this.#file.path })
      for (const member of members) this.#settle(member)
    } catch (error) {
      this.#failed(members, error as Error)
    }
  }

  /**
   * The write failed behind the first `written` bytes, or a sync did behind all. It is not tried again. A sync
   * that failed may have been that of a write that is in the file (where all is mounted or marked to be
   * synced), which would be there twice; and the kernel tells of a failed write-back once: the next sync would
   * find nothing wrong. fsync(2).
   */
  #failed(members: readonly Member[], error: Error, written = Infinity): void {
    const { errno, name, syscall = 'write' } = error as Partial<SystemError>
    for (const member of members) {
      const bytesWritten = Math.max(0, Math.min(written, member.end) - member.start)
      let own = error
      if (errno !== undefined)
        own = systemError(errno, syscall, { file: this.#file.path, bytesWritten })
      else if (name === 'AbortError') own = abortError(undefined, bytesWritten)
      this.#settle(member, own)
    }
  }

  #settle({ op, number, start, end }: Member, error?: Error): void {
    // The engine may have ended, and all that was under way with it.
    if (op.number !== number) return
    if (error === undefined) this.#operations.settle(op, end - start)
    else this.#operations.fail(op, error)
  }
}
