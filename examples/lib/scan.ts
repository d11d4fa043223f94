/**
 * Reads a file from its beginning on, record after record, by large pieces: for key-value.ts and
 * durable-log.ts.
 */
import type { File } from 'node-uring'

const PIECE_BYTES = 1 << 20

/** Gives any part of a file; parts that follow on each other come out of one read. */
export class Scan {
  readonly #file: File
  #piece: Buffer = Buffer.alloc(0)
  #start = 0

  constructor(file: File) {
    this.#file = file
  }

  /** `length` bytes from `position`, shorter if the file ends. Valid until the next call. */
  async at(position: number, length: number): Promise<Buffer> {
    if (position < this.#start || position + length > this.#start + this.#piece.length) {
      this.#piece = await this.#file.bytesAt(position, Math.max(PIECE_BYTES, length))
      this.#start = position
    }
    return this.#piece.subarray(position - this.#start, position - this.#start + length)
  }
}
