/**
 * Memory from `queue.alloc`: which buffers are over arena chunks, and giving them back. Never keeps
 * a buffer alive: a chunk returns when its ArrayBuffer is collected.
 */
import {
  type Backend,
  POOL_ALLOC,
  REFUSED_CLOSED,
  REFUSED_SLOT_BUSY,
  REFUSED_UNKNOWN_CHUNK,
  TAKE_ERRNO,
} from './backend.js'
import { invalidArgType, systemError, uringError } from './errors.js'
import { checkView } from './validate.js'

/** A chunk that an ArrayBuffer of ours covers. */
export interface Allocation {
  /** What operations use in place; 0 where the backend copies. */
  readonly chunk: number
  /** What is given back. */
  readonly number: number
  readonly owner: Memory
}

/**
 * Puts a private field onto an object that exists: a class whose base constructor returns the object
 * it is given. Only this module can read or forge it, it does not move along when the buffer's
 * memory is transferred to another ArrayBuffer, and a look-up costs 1 ns (a WeakMap's: 19).
 */
const Returning = function (this: object, object: object) {
  return object
} as unknown as new (
  object: object,
) => object

class Stamp extends Returning {
  #allocation: Allocation
  constructor(object: object, allocation: Allocation) {
    super(object)
    this.#allocation = allocation
  }
  static of(object: object): Allocation | undefined {
    return #allocation in object ? (object as Stamp).#allocation : undefined
  }
}

/**
 * Memory from {@link Queue.alloc}: `using buffer = queue.alloc(4096)` frees it with the block, or when it is
 * collected if an operation has it then.
 */
export type AllocBuffer = Buffer & Disposable

function disposable(buffer: Buffer): AllocBuffer {
  return Object.defineProperty(buffer, Symbol.dispose, { value: dispose }) as AllocBuffer
}

/**
 * Frees the buffer that it is called on, unless that was done before. One that is in use is left to the
 * collector: a block that ends by an error beside an operation is to end with that error. So is one whose
 * queue is closed, which may well be within the block.
 */
function dispose(this: Buffer): void {
  if (isDetached(this.buffer)) return
  try {
    Stamp.of(this)?.owner.free(this)
  } catch (error) {
    const { code } = error as { code?: string }
    if (code !== 'ERR_URING_IN_FLIGHT' && code !== 'ERR_URING_CLOSED') throw error
  }
}

/** Whether an operation uses a buffer, or will; `engineKnows` of those that it has. */
type IsUsed = (buffer: ArrayBufferLike, engineKnows: boolean) => boolean

/** The memory of one queue. */
export class Memory {
  readonly #backend: Backend
  readonly #limitBytes: number
  readonly #isUsed: IsUsed

  constructor(backend: Backend, limitBytes: number, isUsed: IsUsed) {
    this.#isUsed = isUsed
    this.#backend = backend
    this.#limitBytes = limitBytes
  }

  /** See {@link Queue.alloc}. `length` has been checked. */
  alloc(length: number): AllocBuffer {
    if (length === 0) return this.#stamped(new ArrayBuffer(0), 0)
    const chunk = this.#backend.take(POOL_ALLOC, length)
    if (chunk <= TAKE_ERRNO) throw systemError(TAKE_ERRNO - chunk, 'mmap')
    if (chunk <= 0) {
      throw uringError('ERR_URING_NO_MEMORY', {
        wantedBytes: length,
        limitBytes: this.#limitBytes,
      })
    }
    // A runtime without external ArrayBuffers: memory of V8's own, which every operation copies.
    return this.wrap(chunk, length) ?? this.#stamped(new ArrayBuffer(length), 0)
  }

  /** A Buffer over `length` bytes of a chunk, which it owns; undefined where that cannot be. */
  wrap(chunk: number, length: number): AllocBuffer | undefined {
    const arrayBuffer = this.#backend.expose(chunk, length)
    if (!(arrayBuffer instanceof ArrayBuffer)) {
      this.#backend.disown(chunk)
      return undefined
    }
    lookAtYoungMemory()
    return this.#stamped(arrayBuffer, chunk)
  }

  #stamped(arrayBuffer: ArrayBuffer, chunk: number): AllocBuffer {
    const inPlace = this.#backend.inPlace ? chunk : 0
    const allocation: Allocation = { chunk: inPlace, number: chunk, owner: this }
    new Stamp(arrayBuffer, allocation)
    const buffer = Buffer.from(arrayBuffer)
    // On the Buffer too: most operations are given this very object, and need not look further.
    new Stamp(buffer, allocation)
    return disposable(buffer)
  }

  /** The chunk under a view, or 0 when operations have to copy. */
  chunkOf(view: ArrayBufferView): number {
    const allocation = Stamp.of(view) ?? Stamp.of(view.buffer)
    return allocation !== undefined && allocation.owner === this ? allocation.chunk : 0
  }

  /** Gives memory back that nobody has seen yet; closing may have been faster. */
  letGo(buffer: Buffer): void {
    const chunk = this.chunkOf(buffer)
    if (chunk !== 0) this.#backend.disown(chunk, buffer.buffer)
  }

  /** See {@link Queue.free}. */
  free(buffer: ArrayBufferView | ArrayBuffer): void {
    const isView = ArrayBuffer.isView(buffer)
    if (!isView && !(buffer instanceof ArrayBuffer)) {
      throw invalidArgType(
        'buffer',
        'an instance of Buffer, TypedArray, DataView, or ArrayBuffer',
        buffer,
      )
    }
    const arrayBuffer = isView ? buffer.buffer : buffer
    if (arrayBuffer.byteLength === 0 && isDetached(arrayBuffer)) throw uringError('ERR_URING_FREED')
    const allocation = Stamp.of(arrayBuffer)
    if (allocation?.owner !== this) throw uringError('ERR_URING_NOT_ALLOCATED')
    if (allocation.number === 0) {
      this.#freeOwn(arrayBuffer)
      return
    }
    if (this.#isUsed(arrayBuffer, this.#backend.inPlace)) throw uringError('ERR_URING_IN_FLIGHT')
    const refusal = this.#backend.disown(allocation.number, arrayBuffer)
    if (refusal === REFUSED_SLOT_BUSY) throw uringError('ERR_URING_IN_FLIGHT')
    if (refusal === REFUSED_UNKNOWN_CHUNK) throw uringError('ERR_URING_FREED')
    if (refusal === REFUSED_CLOSED) throw uringError('ERR_URING_CLOSED')
  }

  /** Detaches memory of V8's own. */
  #freeOwn(buffer: ArrayBufferLike): void {
    if (!(buffer instanceof ArrayBuffer) || buffer.byteLength === 0) return
    if (this.#isUsed(buffer, false)) throw uringError('ERR_URING_IN_FLIGHT')
    structuredClone(buffer, { transfer: [buffer] })
  }
}

/**
 * V8 looks whether young ArrayBuffers hold too much memory, and collects the young generation if they
 * do, only when it allocates an ArrayBuffer's memory itself (`Heap::AllocateExternalBackingStore`).
 * Memory of ours would have it mark the whole heap, for every 68 results of 1 MiB: so it allocates a
 * byte.
 */
function lookAtYoungMemory(): void {
  new ArrayBuffer(1)
}

/** Whether a view still has so many bytes: its memory may have gone elsewhere, or have shrunk. */
export function hasBytes(view: ArrayBufferView, length: number): boolean {
  try {
    return view.byteLength >= length
  } catch {
    // A DataView says so by throwing.
    return false
  }
}

/**
 * A view of memory that is still there: one whose memory has gone elsewhere, or ends before it, would pass
 * for one of no bytes. Throws ERR_INVALID_ARG_TYPE, ERR_URING_BUFFER_DETACHED.
 */
export function checkMemory(
  view: unknown,
  syscall: string,
  name = 'buffer',
): asserts view is ArrayBufferView {
  checkView(view, name)
  if (!hasBytes(view, 1) && isGone(view)) {
    throw uringError('ERR_URING_BUFFER_DETACHED', { syscall })
  }
}

/** Whether a view shows nothing of its memory any more, not even no bytes. */
function isGone(view: ArrayBufferView): boolean {
  // Not the length, which is 0 then: the methods of a typed array look whether it is there.
  if (!(view instanceof DataView)) return throws(() => Uint8Array.prototype.keys.call(view))
  return throws(() => view.byteLength)
}

function throws(look: () => unknown): boolean {
  try {
    look()
    return false
  } catch {
    return true
  }
}

/** Whether the memory of an ArrayBuffer has gone elsewhere. */
export function isDetached(buffer: ArrayBufferLike): boolean {
  // `ArrayBuffer.prototype.detached` is of Node 22; a view cannot be made over a detached one.
  return throws(() => new Uint8Array(buffer))
}
