/**
 * Appends called for in one go, before the event loop goes on, are one write together; where there was one
 * alone the time before, the first is a write of its own. A file system takes buffered appends to a file one after the other,
 * each by way of a kernel worker: 64 of 256 bytes cost 14 µs each with the fdatasync that they share, so 6.
 *
 * That write is an ordinary operation; what each caller has is a share in it. When it fails midway, those
 * behind the place are written by themselves, as they would have been.
 */
import { OP_WRITE } from './backend.js'
import { abortError } from './errors.js'
import type { FileState } from './file-state.js'
import { APPENDS } from './modifiers.js'
import type { Operations } from './operations.js'
import { KIND_OUTSIDE, type Operation } from './slots.js'

/** The longest that shares a write: a longer one costs more to copy twice than to submit. */
const MEMBER_BYTES_MAX = 16 << 10
/** Most bytes of one write of several. */
const GROUP_BYTES_MAX = 256 << 10
const GROUP_BYTES_FIRST = 4 << 10

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
  /** Whether it was asked what kind of file it is. */
  #asked = false
  #members: Member[] = []
  #bytes = new Uint8Array(0)
  #length = 0

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
    const length = view.byteLength
    if (!plain || length === 0 || length > MEMBER_BYTES_MAX || !this.#isOpen()) {
      this.send()
      return undefined
    }
    if (this.#length + length > GROUP_BYTES_MAX) this.send()
    const start = this.#length
    const end = start + length
    this.#grow(end)
    this.#bytes.set(new Uint8Array(view.buffer, view.byteOffset, length), start)
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

  /** Whether another may join: nobody waits for room, and the file is a regular one. */
  #isOpen(): boolean {
    const { closed, blockBytes, fills } = this.#file
    const { ended, slots } = this.#operations
    if (closed || blockBytes !== 0 || ended !== undefined) return false
    if (this.#called++ === 0) {
      void Promise.resolve().then(() => {
        this.#calledBefore = this.#called
        this.#called = 0
        this.send()
      })
    }
    // One by itself is in nobody's company, unless the one before it was.
    if (this.#called === 1 && this.#calledBefore <= 1) return false
    // What a pipe takes at once is less, and others read it.
    if (fills === undefined && !this.#asked) {
      this.#asked = true
      void this.#file.learn()
    }
    return fills === true && slots.forSlot.head === undefined && slots.forMemory.head === undefined
  }

  #grow(length: number): void {
    if (length <= this.#bytes.length) return
    let size = Math.max(this.#bytes.length, GROUP_BYTES_FIRST)
    while (size < length) size *= 2
    const larger = new Uint8Array(size)
    larger.set(this.#bytes.subarray(0, this.#length))
    this.#bytes = larger
  }

  /** Stages what was gathered. */
  send(): void {
    if (this.#length === 0) return
    this.#operations.gathering.delete(this)
    const [members, bytes, length] = [this.#members, this.#bytes, this.#length]
    this.#members = []
    this.#bytes = new Uint8Array(0)
    this.#length = 0
    // Cancelled, with the file or the queue, before it went.
    if (members.some(({ op }) => op.cancelled)) {
      this.#eachAlone(members, bytes)
      return
    }
    void this.#write(bytes, 0, length).then(
      () => {
        // Nobody else has these bytes, and the next group is as long.
        if (this.#length === 0) this.#bytes = bytes
        for (const member of members) this.#settle(member)
      },
      (error: Error) => this.#fail(members, bytes, error),
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

  /** The write failed: whoever was written whole has what it wanted. */
  #fail(members: readonly Member[], bytes: Uint8Array, error: Error): void {
    const { bytesWritten: written = 0 } = error as { bytesWritten?: number }
    const behind: Member[] = []
    for (const member of members) {
      const { start, end } = member
      if (end <= written) this.#settle(member)
      else if (start > written) behind.push(member)
      else this.#settle(member, Object.assign(error, { bytesWritten: written - start }))
    }
    this.#eachAlone(behind, bytes)
  }

  #eachAlone(members: readonly Member[], bytes: Uint8Array): void {
    for (const member of members) {
      const { op, start, end } = member
      if (op.cancelled) this.#settle(member, abortError(undefined, 0))
      else {
        void this.#write(bytes, start, end).then(
          () => this.#settle(member),
          (error: Error) => this.#settle(member, error),
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
