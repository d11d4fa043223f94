/**
 * Bytes from one file to another, without passing through JavaScript: splice(2) into a pipe of ours and
 * out of it. (io_uring has no copy_file_range(2).) Where a file or kernel has no splice, by reading and
 * writing.
 */
import { checkAlignment } from './alignment.js'
import { OP_READ, OP_SPLICE, OP_WRITE, SPLICE_FROM, SPLICE_TO } from './backend.js'
import { ERRNO } from './errno.js'
import {
  closedError,
  invalidArgValue,
  rejected,
  systemError,
  tellBytesWritten,
  uringError,
  writtenBy,
} from './errors.js'
import type { FileState } from './file-state.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import type { Operation } from './slots.js'
import { moved } from './transfers.js'
import { checkFunction, checkInteger, checkOptions, checkPosition } from './validate.js'

const { EACCES, EINVAL, EIO } = ERRNO
/** What says that a file takes no splice, or that the ring may not. */
const NO_SPLICE: ReadonlySet<number> = new Set([-EINVAL, -EACCES])
/** What is read at once where there is no splice, and where there are more copies than pipes. */
const PIECE_BYTES = 1 << 20
const PIECE_OF_MANY_BYTES = 64 << 10
/** The longest copy that takes no pipe, between files: making and closing one costs more than this. */
const SHORT_BYTES = 64 << 10

/** Options of {@link File.copyTo}. */
export interface CopyOptions extends LimitOptions {
  /** Where to begin in this file. Default 0. */
  position?: number | bigint | undefined
  /** Where to begin in the other. Default 0. */
  toPosition?: number | bigint | undefined
  /** How many bytes, at most. Default: to the end. */
  length?: number | undefined
  /** Called after each piece of up to 1 MiB with how many bytes were copied so far. */
  onProgress?: ((done: number) => void) | undefined
}

type CopySettings = Omit<CopyOptions, keyof LimitOptions>

/** A copy whose arguments have been checked, and how far it is. */
class Copy {
  readonly #from: FileState
  readonly #to: FileState
  readonly #position: number | bigint
  readonly #toPosition: number | bigint
  #length: number
  readonly #onProgress: ((done: number) => void) | undefined
  readonly #limits: Limits | undefined
  /** Throws when the copy is to end. */
  readonly #check: () => void
  /** What its steps are steps of. */
  readonly #whole: Operation
  #done = 0

  constructor(
    from: FileState,
    to: FileState,
    options: CopySettings,
    limits: Limits | undefined,
    check: () => void,
    whole: Operation,
  ) {
    this.#from = from
    this.#to = to
    this.#position = options.position ?? 0
    this.#toPosition = options.toPosition ?? 0
    this.#length = options.length ?? Number.MAX_SAFE_INTEGER
    this.#onProgress = options.onProgress
    this.#limits = limits
    this.#check = check
    this.#whole = whole
  }

  async run(): Promise<number> {
    try {
      for (const file of [this.#from, this.#to]) {
        if (file.fills === undefined) await file.learn(OP_SPLICE, this.#limits, this.#whole)
        this.#check()
        // Without it nobody knows whether it has positions.
        if (file.fills === undefined) throw systemError(-EIO, 'fstat', { file: file.path })
      }
      const [from, to] = [this.#from, this.#to]
      if (from.fills && from.identity === to.identity) await this.#withinOneFile()
      const short = from.fills && to.fills && this.#length <= SHORT_BYTES
      const direct = from.blockBytes !== 0 || to.blockBytes !== 0
      const bySplice = !short && !direct && !from.operations.kernel.lacks(OP_SPLICE)
      if (!bySplice) await this.#readAndWrite(PIECE_BYTES)
      else if (!(await this.#splice())) await this.#readAndWrite(PIECE_OF_MANY_BYTES)
      return this.#done
    } catch (error) {
      tellBytesWritten(error, this.#done)
      throw error
    }
  }

  /**
   * A file does not grow by what is copied to its end, and what is still to be copied is not written over:
   * copy_file_range(2) refuses that, too.
   */
  async #withinOneFile(): Promise<void> {
    const [position, toPosition] = [BigInt(this.#position), BigInt(this.#toPosition)]
    const stats = await this.#from.look(this.#limits)
    this.#check()
    // Of a device it tells no size.
    const rest = stats.size - position
    if (stats.isFile() && rest < this.#length) this.#length = Math.max(0, Number(rest))
    const apart = position < toPosition ? toPosition - position : position - toPosition
    if (apart >= this.#length) return
    const reason = `must be ${this.#length} bytes or more from the position that is copied from in one file`
    throw invalidArgValue('options.toPosition', this.#toPosition, reason)
  }

  #count(bytes: number): void {
    this.#done += bytes
    this.#onProgress?.(this.#done)
  }

  /** Through a pipe; false when there is none, or the files have no splice, and nothing was copied. */
  async #splice(): Promise<boolean> {
    const { pipes } = this.#from.operations
    const pipe = pipes.take()
    if (pipe === undefined) return false
    const { reader, writer, bytes } = pipe
    try {
      while (this.#done < this.#length) {
        const wanted = Math.min(this.#length - this.#done, bytes)
        const filled = await this.#move(this.#from, writer, wanted, SPLICE_FROM)
        if (filled === 0) return true
        if (NO_SPLICE.has(filled) && this.#done === 0) return false
        if (filled < 0) throw systemError(filled, 'splice', { file: this.#from.path })
        for (let left = filled; left > 0; ) {
          const written = await this.#move(reader, this.#to, left, SPLICE_TO)
          if (NO_SPLICE.has(written) && this.#done === 0) {
            // It takes no splice, and what came is in the pipe by now.
            const came = Buffer.allocUnsafeSlow(left)
            while (await this.#readAndWriteOnce(reader, came.subarray(this.#done))) {
              if (this.#done === filled) return false
            }
            throw systemError(-EIO, 'splice', { file: this.#from.path })
          }
          if (written <= 0) throw systemError(written || -EIO, 'splice', { file: this.#to.path })
          left -= written
          this.#count(written)
        }
      }
      return true
    } finally {
      await pipes.give(pipe)
    }
  }

  /** One splice; what has no positions gets none. */
  async #move(from: FileState, to: FileState, length: number, side: number): Promise<number> {
    const file = side === SPLICE_FROM ? from : to
    const start = side === SPLICE_FROM ? this.#position : this.#toPosition
    const [offset, position] = file.fills ? [side, moved(start, this.#done)] : [0, 0]
    this.#check()
    const whole = this.#whole
    const options = { other: from, limits: this.#limits, internal: true, whole }
    const { operations } = this.#from
    return Number(await operations.call(OP_SPLICE, to, offset, length, position, options))
  }

  async #readAndWrite(most: number): Promise<void> {
    const piece = Buffer.allocUnsafeSlow(Math.min(this.#length, most))
    while (this.#done < this.#length) {
      const wanted = Math.min(this.#length - this.#done, piece.length)
      if (!(await this.#readAndWriteOnce(this.#from, piece.subarray(0, wanted)))) return
    }
  }

  /** What a file has for the piece; false at its end. */
  async #readAndWriteOnce(from: FileState, piece: Buffer): Promise<boolean> {
    const [to, limits, whole] = [this.#to, this.#limits, this.#whole]
    const { transfers } = to.operations
    const { length } = piece
    const position = moved(this.#position, this.#done)
    this.#check()
    const read = await transfers.transfer(
      OP_READ,
      from,
      piece,
      length,
      position,
      false,
      limits,
      whole,
    )
    if (read === 0) return false
    const at = moved(this.#toPosition, this.#done)
    checkAlignment(to, read, at)
    const bytes = piece.subarray(0, read)
    this.#check()
    try {
      await transfers.transfer(OP_WRITE, to, bytes, read, at, false, limits, whole)
    } catch (error) {
      this.#done += writtenBy(error)
      throw error
    }
    this.#count(read)
    return true
  }
}

/** See {@link File.copyTo}. Throws what is wrong with the arguments before anything is begun. */
export function copyTo(from: FileState, to: FileState, options: CopyOptions = {}): Promise<number> {
  checkOptions(options)
  const { position, toPosition, length, onProgress } = options
  if (position !== undefined) checkPosition(position, 'options.position')
  if (toPosition !== undefined) checkPosition(toPosition, 'options.toPosition')
  if (length !== undefined) checkInteger(length, 'options.length', 0)
  if (onProgress !== undefined) checkFunction(onProgress, 'options.onProgress')
  const limits = checkLimits(options)
  const { operations } = from
  if (to.append) throw uringError('ERR_URING_APPEND')
  for (const file of [from, to]) if (file.closed) return rejected(closedError(file, 'splice'))
  if (operations.ended !== undefined) return rejected(operations.ended())
  const over = overBefore(limits, OP_SPLICE, 0)
  if (over !== undefined) return rejected(over)
  // Read once: what was checked is what is used.
  const settings = { position, toPosition, length, onProgress }
  const work = (check: () => void, whole: Operation) =>
    new Copy(from, to, settings, limits, check, whole).run()
  // Both count as in use until it is over.
  return operations.outside(to, OP_SPLICE, work, from)
}
