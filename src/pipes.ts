/**
 * Pipes that copies go through: a few for a queue, each two descriptors, however many copies there are. Who
 * finds none reads and writes, and waits for nobody: a copy may last as long as what it copies from.
 */
import { FileState } from './file-state.js'
import type { Operations } from './operations.js'

/**
 * At once. A pipe of 1 MiB is a sixty-fourth of what Linux gives a user without privileges before it makes
 * them small (`pipe-user-pages-soft`, pipe(7)), and others of that user want some.
 */
const PIPES_MAX = 16

/** A pipe, empty unless somebody copies. */
export interface Pipe {
  readonly reader: FileState
  readonly writer: FileState
  /** What it holds at most. */
  readonly bytes: number
}

/** The pipes of one queue. */
export class Pipes {
  readonly #operations: Operations
  #count = 0

  constructor(operations: Operations) {
    this.#operations = operations
  }

  /** A pipe of one's own; undefined where there are enough, or there is no descriptor for one. */
  take(): Pipe | undefined {
    if (this.#count >= PIPES_MAX) return undefined
    const operations = this.#operations
    const made = operations.backend.makePipe()
    if (typeof made === 'number') return undefined
    this.#count++
    const end = ({ file, fd }: { file: number; fd: number }) =>
      new FileState(operations, file, fd, undefined, 0)
    return { reader: end(made.reader), writer: end(made.writer), bytes: made.bytes }
  }

  /** Closes it. */
  async give({ reader, writer }: Pipe): Promise<void> {
    try {
      await Promise.all([reader.close(), writer.close()])
    } finally {
      this.#count--
    }
  }
}
