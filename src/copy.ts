/**
 * Bytes from one file to another, without passing through JavaScript: splice(2) into a pipe of ours and
 * out of it. (io_uring has no copy_file_range(2).) Where a file or kernel has no splice, by reading and
 * writing.
 */
import { OP_READ, OP_SPLICE, OP_WRITE, SPLICE_FROM, SPLICE_TO } from './backend.js'
import { ERRNO } from './errno.js'
import { invalidArgValue, rejected, systemError, uringError } from './errors.js'
import { checkAlignment, FileState } from './file-state.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import { moved } from './transfers.js'
import { checkInteger, checkOptions, checkPosition } from './validate.js'

const { EBADF, EINVAL, EIO } = ERRNO
/** What is read at once where there is no splice. */
const PIECE_BYTES = 1 << 20

/** Options of {@link File.copyTo}. */
export interface CopyOptions extends LimitOptions {
  /** Where to begin in this file. Default 0. */
  position?: number | bigint
  /** Where to begin in the other. Default 0. */
  toPosition?: number | bigint
  /** How many bytes, at most. Default: to the end. */
  length?: number
}

/** A copy whose arguments have been checked, and how far it is. */
class Copy {
  readonly #from: FileState
  readonly #to: FileState
  readonly #position: number | bigint
  readonly #toPosition: number | bigint
  readonly #length: number
  readonly #limits: Limits | undefined
  /** Throws when the copy is to end. */
  readonly #check: () => void
  #done = 0

  constructor(
    from: FileState,
    to: FileState,
    options: CopyOptions,
    limits: Limits | undefined,
    check: () => void,
  ) {
    this.#from = from
    this.#to = to
    this.#position = options.position ?? 0
    this.#toPosition = options.toPosition ?? 0
    this.#length = options.length ?? Number.MAX_SAFE_INTEGER
    this.#limits = limits
    this.#check = check
  }

  async run(): Promise<number> {
    try {
      for (const file of [this.#from, this.#to]) {
        if (file.fills === undefined) await file.learn()
        this.#check()
        // Without it nobody knows whether it has positions.
        if (file.fills === undefined) throw systemError(-EIO, 'fstat')
      }
      const direct = this.#from.blockBytes !== 0 || this.#to.blockBytes !== 0
      const bySplice = !direct && !this.#from.operations.kernel.lacks(OP_SPLICE)
      if (!bySplice || !(await this.#splice())) await this.#readAndWrite()
      return this.#done
    } catch (error) {
      throw Object.assign(error as Error, { bytesWritten: this.#done })
    }
  }

  /** Through a pipe; false when the files have no splice, and nothing was copied. */
  async #splice(): Promise<boolean> {
    const { operations } = this.#from
    const made = operations.backend.makePipe()
    if (typeof made === 'number') throw systemError(made, 'pipe')
    const end = ({ file, fd }: { file: number; fd: number }) =>
      new FileState(operations, file, fd, undefined, 0)
    const [reader, writer] = [end(made.reader), end(made.writer)]
    try {
      while (this.#done < this.#length) {
        const wanted = Math.min(this.#length - this.#done, made.bytes)
        const filled = await this.#move(this.#from, writer, wanted, SPLICE_FROM)
        if (filled === 0) return true
        if (filled === -EINVAL && this.#done === 0) return false
        if (filled < 0) throw systemError(filled, 'splice')
        for (let left = filled; left > 0; ) {
          const written = await this.#move(reader, this.#to, left, SPLICE_TO)
          if (written === -EINVAL && this.#done === 0 && this.#from.fills) return false
          if (written <= 0) throw systemError(written || -EIO, 'splice')
          left -= written
          this.#done += written
        }
      }
      return true
    } finally {
      await Promise.all([reader.close(), writer.close()])
    }
  }

  /** One splice; what has no positions gets none. */
  async #move(from: FileState, to: FileState, length: number, side: number): Promise<number> {
    const file = side === SPLICE_FROM ? from : to
    const start = side === SPLICE_FROM ? this.#position : this.#toPosition
    const [offset, position] = file.fills ? [side, moved(start, this.#done)] : [0, 0]
    this.#check()
    const options = { other: from, limits: this.#limits, internal: true }
    const { operations } = this.#from
    return Number(await operations.call(OP_SPLICE, to, offset, length, position, options))
  }

  async #readAndWrite(): Promise<void> {
    const [from, to, limits] = [this.#from, this.#to, this.#limits]
    const { transfers } = from.operations
    const piece = Buffer.allocUnsafeSlow(Math.min(this.#length, PIECE_BYTES))
    while (this.#done < this.#length) {
      const wanted = Math.min(this.#length - this.#done, piece.length)
      const position = moved(this.#position, this.#done)
      this.#check()
      const read = await transfers.transfer(
        OP_READ,
        from,
        piece,
        wanted,
        position,
        false,
        limits,
        true,
      )
      if (read === 0) return
      const at = moved(this.#toPosition, this.#done)
      checkAlignment(to, read, at)
      const bytes = piece.subarray(0, read)
      this.#check()
      await transfers.transfer(OP_WRITE, to, bytes, read, at, false, limits, true)
      this.#done += read
    }
  }
}

/** See {@link File.copyTo}. Throws what is wrong with the arguments before anything is begun. */
export function copyTo(from: FileState, to: FileState, options: CopyOptions = {}): Promise<number> {
  checkOptions(options)
  const { position, toPosition, length } = options
  if (position !== undefined) checkPosition(position, 'options.position')
  if (toPosition !== undefined) checkPosition(toPosition, 'options.toPosition')
  if (length !== undefined) checkInteger(length, 'options.length', 0)
  const limits = checkLimits(options)
  const { operations } = from
  if (to.operations !== operations) throw invalidArgValue('to', to, 'is of another queue')
  if (to.append) throw uringError('ERR_URING_APPEND')
  if (from.closed || to.closed) return rejected(systemError(EBADF, 'splice'))
  if (operations.ended !== undefined) return rejected(operations.ended())
  const over = overBefore(limits, OP_SPLICE, 0)
  if (over !== undefined) return rejected(over)
  const work = (check: () => void) => new Copy(from, to, options, limits, check).run()
  // Both count as in use until it is over.
  return operations.outside(to, OP_SPLICE, work, from)
}
