/** The memory of a lane's operations: of every kind, guarded on either side, freed at odd moments. */
import type { File, Queue } from 'node-uring'
import { type Failure, firstDifference, GUARD, Wrong } from './cells.js'
import type { Random } from './random.js'

/** Bytes on either side of a buffer that nobody may touch. */
const GUARD_BYTES = 32
const SPARE_MAX = 8

type Movable = ArrayBuffer & { transfer(): ArrayBuffer }

export interface Guarded {
  whole: Buffer
  /** Where what is asked for begins; before it, and behind it, are guards. */
  start: number
  arena: boolean
}

export interface BuffersOptions {
  random: Random
  /** Longest buffer, in bytes. */
  lengthMax: number
  /** Whether buffers may be moved to another ArrayBuffer. */
  moves: boolean
}

export class Buffers {
  /** Operations may be cancelled just now, and the queue closed. */
  cancelling = false
  #random: Random
  #moves: boolean
  #guards: Buffer
  #spare: Buffer[] = []

  constructor({ random, lengthMax, moves }: BuffersOptions) {
    this.#random = random
    this.#moves = moves
    this.#guards = Buffer.alloc(lengthMax + 8192, GUARD)
  }

  /** A buffer with guarded bytes around its middle, from the arena if there is room. */
  take(queue: Queue, { alignment }: File, arena: boolean, length: number): Guarded {
    const aligned = alignment !== undefined && this.#random.chance(70)
    const start = aligned ? 4096 : GUARD_BYTES + this.#random.below(64)
    const bytes = start + length + GUARD_BYTES
    if (!arena) return { whole: Buffer.allocUnsafeSlow(bytes), start, arena }
    const index = this.#spare.findIndex((spare) => spare.length >= bytes)
    if (index >= 0) return { whole: this.#spare.splice(index, 1)[0] as Buffer, start, arena }
    try {
      return { whole: queue.alloc(bytes), start, arena }
    } catch (error) {
      const { code } = error as Failure
      const closed = code === 'ERR_URING_CLOSED' && this.cancelling
      if (code !== 'ERR_URING_NO_MEMORY' && !closed) throw error
      return { whole: Buffer.allocUnsafeSlow(bytes), start, arena: false }
    }
  }

  /** Frees it, keeps it, or lets the collector find it. */
  done(queue: Queue, { whole, arena }: Guarded): void {
    if (!arena) return
    const fate = this.#random.below(10)
    if (fate < 5 && !this.cancelling) {
      queue.free(whole)
      if (whole.length !== 0) throw new Wrong('a buffer that was freed has a length')
    } else if (fate < 7 && this.#spare.length < SPARE_MAX) {
      this.#spare.push(whole)
    } else if (fate < 8 && 'transfer' in ArrayBuffer.prototype && this.#moves) {
      // Node 22: the memory goes along to another ArrayBuffer, and is the collector's from there.
      const moved = new Uint8Array((whole.buffer as Movable).transfer())
      moved.fill(GUARD)
    }
  }

  /**
   * Frees it in flight, which is refused while the kernel has it. It has not where a direct file
   * copies what is not aligned, nor while the operation waits for room: that one must be rejected.
   */
  freeInFlight(
    queue: Queue,
    { alignment }: File,
    { whole, arena }: Guarded,
    what: string,
  ): boolean {
    if (!arena || !this.#random.chance(3) || this.cancelling) return false
    const mayBeFree = alignment !== undefined || queue.stats().waiting > 0
    try {
      queue.free(whole)
    } catch (error) {
      if ((error as Failure).code === 'ERR_URING_IN_FLIGHT') return false
      throw error
    }
    if (!mayBeFree) throw new Wrong(`${what}: its buffer could be freed in flight`)
    return true
  }

  /** Some kind of view over `length` bytes of the middle. */
  view({ whole, start }: Guarded, length: number): NodeJS.ArrayBufferView {
    const at = whole.byteOffset + start
    const kind = this.#random.below(4)
    if (kind === 0) return new DataView(whole.buffer, at, length)
    if (kind === 1 && at % 2 === 0 && length % 2 === 0) {
      return new Uint16Array(whole.buffer, at, length / 2)
    }
    if (kind === 2) return new Uint8Array(whole.buffer, at, length)
    return whole.subarray(start, start + length)
  }

  /** Throws when a byte of these is not a guard's. */
  verifyGuard(bytes: Buffer, what: string): void {
    const untouched = this.#guards.subarray(0, bytes.length)
    if (bytes.equals(untouched)) return
    const at = firstDifference(bytes, untouched)
    throw new Wrong(`${what}: a byte beside the buffer was written (${at} of ${bytes.length})`)
  }

  /** Those that were kept for the next are the collector's. */
  clear(): void {
    this.#spare = []
  }
}
