/**
 * The memory of the fallback, by chunk numbers as the engine has them. Nothing that JavaScript outside
 * can reach is ever given to node:fs: it writes to a buffer that was transferred meanwhile, whosever
 * memory that is by then. So every operation works on a chunk from here, and `alloc` memory is copied
 * like any other; its chunks are numbers that limits are counted by.
 */
import {
  POOL_ALLOC,
  POOL_BOUNCE,
  REFUSED_BUFFER_GONE,
  REFUSED_SLOT_BUSY,
  REFUSED_UNKNOWN_CHUNK,
  TAKE_BUFFER_GONE,
  TAKE_ERRNO,
  TAKE_LIMIT,
  TAKE_TOO_LONG,
} from '../backend.js'
import { ERRNO } from '../errno.js'

/** The smallest chunk, and what direct I/O asks of memory at most: a page. */
const PAGE_BYTES = 4096
/** The longest chunk whose length is a power of two. */
const CLASS_BYTES_MAX = 4 << 20
/** What aligned chunks are cut from, unless they are longer. */
const SLAB_BYTES = 2 << 20
/** WebAssembly's pages, which its memory begins on. */
const WASM_PAGE_BYTES = 65_536
/** Most bytes of unused chunks that are kept for the next to take. */
const RETAIN_BYTES = 8 << 20

/** Memory of operations, or an ArrayBuffer of the user's that is counted. */
interface Chunk {
  readonly sizeBytes: number
  readonly pool: number
  /** Of POOL_BOUNCE: what operations work on. */
  readonly bytes: Uint8Array | undefined
  /** Of POOL_ALLOC, until it was exposed; after that the user alone has it. */
  fresh: ArrayBuffer | undefined
  /** Operations under way on it, and whether its owner has not let go. */
  holds: number
  owned: boolean
  /** Which memory it was cut from; chunks of earlier kinds are not kept. */
  readonly kind: number
}

/** Limits, in bytes. */
export interface MemoryLimits {
  readonly allocBytes: number
  readonly bounceBytes: number
}

/** Bytes that are there, and bytes in chunks that somebody holds. */
export interface Usage {
  mappedBytes: number
  usedBytes: number
}

/** The chunks of one queue. */
export class Chunks {
  readonly #limits: MemoryLimits
  readonly #chunks = new Map<number, Chunk>()
  #next = 1
  readonly #unused = new Map<number, Uint8Array[]>()
  #unusedBytes = 0
  #slabBytes = 0
  #kind = 0
  #aligned = false
  readonly alloc: Usage = { mappedBytes: 0, usedBytes: 0 }
  readonly #bounce: Usage = { mappedBytes: 0, usedBytes: 0 }
  /** Users' buffers that were collected without `free`. */
  readonly #collected = new FinalizationRegistry((chunk: number) => this.disown(chunk))

  constructor(limits: MemoryLimits) {
    this.#limits = limits
  }

  get bounce(): Usage {
    const mappedBytes = this.#aligned ? this.#slabBytes : this.#bounce.usedBytes + this.#unusedBytes
    return { mappedBytes, usedBytes: this.#bounce.usedBytes }
  }

  /** From now on memory begins on pages: there is a direct file. */
  align(): void {
    if (this.#aligned) return
    this.#aligned = true
    this.#forgetUnused()
  }

  /** See {@link RawFunctions.take}. `bytesAt` results are not given away uncopied here. */
  take(pool: number, length: number, source?: Uint8Array, sourceOffset = 0): number {
    const given = source === undefined ? undefined : part(source, sourceOffset, length)
    if (source !== undefined && given === undefined) return TAKE_BUFFER_GONE
    if (pool === POOL_ALLOC) return this.#takeForUser(length)
    if (pool !== POOL_BOUNCE) return TAKE_LIMIT
    const sizeBytes = sizeClass(length)
    if (sizeBytes > this.#limits.bounceBytes) return TAKE_TOO_LONG
    if (this.#bounce.usedBytes + sizeBytes > this.#limits.bounceBytes) return TAKE_LIMIT
    const bytes = this.#unusedOf(sizeBytes) ?? this.#make(sizeBytes)
    if (given !== undefined) bytes.set(given)
    this.#bounce.usedBytes += sizeBytes
    return this.#enter(POOL_BOUNCE, sizeBytes, bytes, undefined)
  }

  #takeForUser(length: number): number {
    const sizeBytes = Math.ceil(length / PAGE_BYTES) * PAGE_BYTES
    if (this.alloc.usedBytes + sizeBytes > this.#limits.allocBytes) return TAKE_LIMIT
    let buffer: ArrayBuffer
    try {
      buffer = new ArrayBuffer(length)
    } catch {
      return TAKE_ERRNO - ERRNO.ENOMEM
    }
    this.alloc.usedBytes += sizeBytes
    this.alloc.mappedBytes = this.alloc.usedBytes
    return this.#enter(POOL_ALLOC, sizeBytes, undefined, buffer)
  }

  #enter(
    pool: number,
    sizeBytes: number,
    bytes: Uint8Array | undefined,
    fresh: ArrayBuffer | undefined,
  ): number {
    const number = this.#next++
    const kind = this.#kind
    this.#chunks.set(number, { sizeBytes, pool, bytes, fresh, holds: 0, owned: true, kind })
    return number
  }

  #unusedOf(sizeBytes: number): Uint8Array | undefined {
    const bytes = this.#unused.get(sizeBytes)?.pop()
    if (bytes !== undefined) this.#unusedBytes -= sizeBytes
    return bytes
  }

  #make(sizeBytes: number): Uint8Array {
    const slabBytes = this.#aligned ? Math.max(sizeBytes, SLAB_BYTES) : sizeBytes
    // Unused chunks of other lengths must not keep memory past the limit.
    if (this.bounce.mappedBytes + slabBytes > this.#limits.bounceBytes) this.#forgetUnused()
    if (!this.#aligned) return new Uint8Array(sizeBytes)
    const slab = alignedMemory(slabBytes)
    this.#slabBytes += slabBytes
    for (let at = sizeBytes; at + sizeBytes <= slabBytes; at += sizeBytes) {
      this.#keep(slab.subarray(at, at + sizeBytes))
    }
    return slab.subarray(0, sizeBytes)
  }

  #keep(bytes: Uint8Array): void {
    const list = this.#unused.get(bytes.byteLength)
    if (list === undefined) this.#unused.set(bytes.byteLength, [bytes])
    else list.push(bytes)
    this.#unusedBytes += bytes.byteLength
  }

  /** Lets unused chunks go, and those in use when they come back. */
  #forgetUnused(): void {
    this.#unused.clear()
    this.#unusedBytes = 0
    this.#slabBytes = 0
    this.#kind++
  }

  /** The memory of a chunk that operations may use. */
  bytesOf(chunk: number): Uint8Array | undefined {
    return this.#chunks.get(chunk)?.bytes
  }

  /** An operation begins to use the chunk, and ends. */
  hold(chunk: number): void {
    const found = this.#chunks.get(chunk)
    if (found !== undefined) found.holds++
  }

  unhold(chunk: number): void {
    const found = this.#chunks.get(chunk)
    if (found !== undefined && --found.holds === 0 && !found.owned) this.#end(chunk, found)
  }

  /** See {@link RawFunctions.disown}. */
  disown(chunk: number, buffer?: ArrayBufferLike): number | undefined {
    const found = this.#chunks.get(chunk)
    if (found === undefined || !found.owned) return REFUSED_UNKNOWN_CHUNK
    if (buffer !== undefined) {
      if (found.holds > 0) return REFUSED_SLOT_BUSY
      // `ArrayBuffer.prototype.transfer` is of Node 22.
      structuredClone(buffer, { transfer: [buffer as ArrayBuffer] })
    }
    found.owned = false
    if (found.holds === 0) this.#end(chunk, found)
    return undefined
  }

  #end(chunk: number, { sizeBytes, pool, bytes, kind }: Chunk): void {
    this.#chunks.delete(chunk)
    if (pool === POOL_ALLOC) {
      this.alloc.usedBytes -= sizeBytes
      this.alloc.mappedBytes = this.alloc.usedBytes
      return
    }
    this.#bounce.usedBytes -= sizeBytes
    const room = this.#aligned || this.#unusedBytes + sizeBytes <= RETAIN_BYTES
    if (bytes !== undefined && room && kind === this.#kind) this.#keep(bytes)
  }

  /** See {@link RawFunctions.copyOut}. */
  copyOut(
    chunk: number,
    offset: number,
    target: Uint8Array,
    targetOffset: number,
    length: number,
  ): number | undefined {
    const bytes = this.bytesOf(chunk)
    if (bytes === undefined) return REFUSED_UNKNOWN_CHUNK
    const place = part(target, targetOffset, length)
    place?.set(bytes.subarray(offset, offset + length))
    return this.disown(chunk) ?? (place === undefined ? REFUSED_BUFFER_GONE : undefined)
  }

  /** See {@link RawFunctions.copyRuns}. */
  copyRuns(
    chunk: number,
    runs: Float64Array,
    target: Uint8Array,
    targetOffset: number,
  ): number | undefined {
    const bytes = this.bytesOf(chunk)
    if (bytes === undefined) return REFUSED_UNKNOWN_CHUNK
    let gone = false
    for (let i = 0; i < runs.length && !gone; i += 2) {
      const [offset, length] = [runs[i] as number, runs[i + 1] as number]
      const place = part(target, targetOffset + offset, length)
      place?.set(bytes.subarray(offset, offset + length))
      gone = place === undefined
    }
    return this.disown(chunk) ?? (gone ? REFUSED_BUFFER_GONE : undefined)
  }

  /** See {@link RawFunctions.expose}. */
  expose(chunk: number): ArrayBuffer | undefined {
    const found = this.#chunks.get(chunk)
    const buffer = found?.fresh
    if (found === undefined || buffer === undefined) return undefined
    found.fresh = undefined
    this.#collected.register(buffer, chunk)
    return buffer
  }
}

const viewPrototype = Object.getPrototypeOf(Uint8Array.prototype) as object
const getters = (['buffer', 'byteOffset', 'byteLength'] as const).map(
  (name) => Object.getOwnPropertyDescriptor(viewPrototype, name)?.get as () => unknown,
) as [() => ArrayBufferLike, () => number, () => number]
const [bufferOf, byteOffsetOf, byteLengthOf] = getters

/**
 * `length` bytes of a user's array, or undefined when it has not got them: it was detached or shrunk.
 * By what the array is: a subclass may say anything of itself, and make anything of `subarray`.
 */
function part(view: Uint8Array, offset: number, length: number): Uint8Array | undefined {
  if (offset + length > byteLengthOf.call(view)) return undefined
  return new Uint8Array(bufferOf.call(view), byteOffsetOf.call(view) + offset, length)
}

/** As in the engine's arena: the power of two that holds so many bytes, or for long ones whole pages. */
function sizeClass(length: number): number {
  if (length > CLASS_BYTES_MAX) return Math.ceil(length / PAGE_BYTES) * PAGE_BYTES
  return Math.max(PAGE_BYTES, 2 ** Math.ceil(Math.log2(length)))
}

/** What is used of it here: the types of Node leave it to those of browsers. */
interface Wasm {
  readonly Memory: new (size: {
    initial: number
    maximum: number
  }) => { readonly buffer: ArrayBuffer }
}

/**
 * Memory that begins on a page, which JavaScript can have from WebAssembly alone: the address of
 * other memory cannot be known. Where there is none (`--jitless`, RLIMIT_AS) it is memory like any
 * other, and the kernel says EINVAL to a direct read into it.
 */
function alignedMemory(length: number): Uint8Array {
  try {
    const { Memory } = (globalThis as unknown as { WebAssembly: Wasm }).WebAssembly
    const pages = Math.ceil(length / WASM_PAGE_BYTES)
    // Never grown: growing may move it, with an operation under way.
    return new Uint8Array(new Memory({ initial: pages, maximum: pages }).buffer)
  } catch {
    return new Uint8Array(length)
  }
}
