/**
 * Appends called for in one go, before the event loop goes on, are one write together; where there was one
 * alone the time before, the first is a write of its own. A file system takes buffered appends to a file
 * one after the other, each by way of a kernel worker: ARCHITECTURE.md has what 64 of them cost.
 *
 * That write is an ordinary operation; what each caller has is a share in it. When it fails midway, those
 * behind the place are written by themselves, as they would have been.
 */
import { types } from 'node:util'
import { OP_WRITE } from './backend.js'
import { abortError } from './errors.js'
import type { FileState } from './file-state.js'
import { APPENDS } from './modifiers.js'
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
   * Takes an append if it can share a write: a `plain` one, without options. Otherwise what was gathered
   * goes, and the caller's append behind it.
   */
  join(view: ArrayBufferView, plain: boolean): Promise<number> | undefined {
    // No code of the caller's runs from here on, so that nobody else joins in between.
    const length = types.isUint8Array(view) ? lengthOf.call(view) : 0
    if (!plain || length === 0 || length > MEMBER_BYTES_MAX || !this.#isOpen()) {
      this.send()
      return undefined
    }
    if (this.#length + length > GROUP_BYTES_MAX) this.send()
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
    if (slots.forSlot.head !== undefined || slots.forMemory.head !== undefined) return false
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
    const [members, bytes, length] = [this.#members, this.#bytes, this.#length]
    this.#members = []
    this.#bytes = NOTHING
    this.#lengthBefore = length
    this.#length = 0
    // Cancelled, with the file or the queue, before it went.
    if (members.some(({ op }) => op.cancelled)) {
      this.#eachAlone(members, bytes)
      return
    }
    void this.#write(bytes, 0, length).then(
      () => {
        for (const member of members) this.#settle(member)
      },
      // Whoever was written whole has what it wanted, the others go on by themselves.
      (error: Error) => this.#eachAlone(members, bytes, writtenBy(error)),
    )
  }

  #write(bytes: Uint8Array, start: number, end: number): Promise<number> {
    const part = bytes.subarray(start, end)
    const { transfers } = this.#operations
    const length = end - start
    return transfers.transfer(
      OP_WRITE,
      this.#file,
      part,
      length,
      0,
      false,
      undefined,
      true,
      this.#flags,
    )
  }

  /** Ends those whose bytes are all among the first `written`, and writes what the others lack. */
  #eachAlone(members: readonly Member[], bytes: Uint8Array, written = 0): void {
    for (const member of members) {
      const { op, number, start, end } = member
      const from = Math.max(start, Math.min(written, end))
      if (from === end) this.#settle(member)
      else if (op.cancelled) this.#settle(member, abortError(undefined, from - start))
      else if (op.number === number) {
        void this.#write(bytes, from, end).then(
          () => this.#settle(member),
          (error: Error) => {
            const bytesWritten = from - start + writtenBy(error)
            this.#settle(member, Object.assign(error, { bytesWritten }))
          },
        )
      }
    }
  }

  #settle({ op, number, start, end }: Member, error?: Error): void {
    // The engine may have ended, and all that was under way with it.
    if (op.number !== number) return
    if (error === undefined) this.#operations.settle(op, end - start)
    else this.#operations.fail(op, error)
  }
}

function writtenBy(error: Error): number {
  return (error as { bytesWritten?: number }).bytesWritten ?? 0
}
