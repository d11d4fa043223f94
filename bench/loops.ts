/**
 * The loops that are measured. "N at once" is N loops that each await one operation after the other
 * (of callbacks: N chains), on every side. Each loop is written out, as a program would have it:
 * a shared one that is handed the operation would cost each side a call that it need not make.
 */
import { read, readSync, write } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import type { File, Queue } from 'node-uring'

/** Blocks of a file, visited in a random order that is the same for every side. */
export class Blocks {
  readonly #count: number
  readonly #bytes: number
  #state = 1

  constructor(fileBytes: number, blockBytes: number) {
    this.#count = Math.floor(fileBytes / blockBytes)
    this.#bytes = blockBytes
  }

  /** The position of the next block. */
  next(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0
    return ((this.#state >>> 8) % this.#count) * this.#bytes
  }
}

/** Blocks of a file one after the other, from the start again at the end. */
export class InOrder {
  readonly #end: number
  readonly #bytes: number
  #next = 0

  constructor(fileBytes: number, blockBytes: number) {
    this.#end = fileBytes - (fileBytes % blockBytes)
    this.#bytes = blockBytes
  }

  next(): number {
    const position = this.#next
    this.#next = position + this.#bytes === this.#end ? 0 : position + this.#bytes
    return position
  }
}

/** Where the next operation goes. */
export interface Positions {
  next(): number
}

/** So many of what `make` makes. */
export function times<T>(count: number, make: () => T): T[] {
  return Array.from({ length: count }, make)
}

function check(count: number, wanted: number): void {
  if (count !== wanted) throw new Error(`${count} bytes in place of ${wanted}`)
}

export async function nops(queue: Queue, atOnce: number, operations: number): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) await queue.nop()
  }
  await Promise.all(times(atOnce, loop))
}

/** As many at once as there are buffers; so in all that follow. */
export async function readAts(
  file: File,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async (buffer: Uint8Array) => {
    while (left-- > 0) check(await file.readAt(buffer, blocks.next()), buffer.length)
  }
  await Promise.all(buffers.map(loop))
}

export async function writeAts(
  file: File,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async (buffer: Uint8Array) => {
    while (left-- > 0) check(await file.writeAt(buffer, blocks.next()), buffer.length)
  }
  await Promise.all(buffers.map(loop))
}

export async function bytesAts(
  file: File,
  atOnce: number,
  length: number,
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) check((await file.bytesAt(blocks.next(), length)).length, length)
  }
  await Promise.all(times(atOnce, loop))
}

export async function handleReads(
  handle: FileHandle,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async (buffer: Uint8Array) => {
    while (left-- > 0) {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, blocks.next())
      check(bytesRead, buffer.length)
    }
  }
  await Promise.all(buffers.map(loop))
}

export async function handleWrites(
  handle: FileHandle,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async (buffer: Uint8Array) => {
    while (left-- > 0) {
      const { bytesWritten } = await handle.write(buffer, 0, buffer.length, blocks.next())
      check(bytesWritten, buffer.length)
    }
  }
  await Promise.all(buffers.map(loop))
}

/** Each read into memory of its own, not zeroed first, which is the fastest that Node has. */
export async function freshHandleReads(
  handle: FileHandle,
  atOnce: number,
  length: number,
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) {
      const buffer = Buffer.allocUnsafeSlow(length)
      const { bytesRead } = await handle.read(buffer, 0, length, blocks.next())
      check(bytesRead, length)
    }
  }
  await Promise.all(times(atOnce, loop))
}

export function callbackReads(
  fd: number,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  return chains(buffers, (buffer, done) => {
    const next = (error: Error | null, bytesRead = buffer.length) => {
      if (error !== null || bytesRead !== buffer.length || left-- <= 0) done(error)
      else read(fd, buffer, 0, buffer.length, blocks.next(), next)
    }
    next(null)
  })
}

export function callbackWrites(
  fd: number,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  return chains(buffers, (buffer, done) => {
    const next = (error: Error | null, bytesWritten = buffer.length) => {
      if (error !== null || bytesWritten !== buffer.length || left-- <= 0) done(error)
      else write(fd, buffer, 0, buffer.length, blocks.next(), next)
    }
    next(null)
  })
}

/** Starts a chain of callbacks for each buffer; resolves when all have called `done`. */
function chains(
  buffers: Uint8Array[],
  start: (buffer: Uint8Array, done: (error: Error | null) => void) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let open = buffers.length
    const done = (error: Error | null) => {
      if (error !== null) reject(error)
      else if (--open === 0) resolve()
    }
    for (const buffer of buffers) start(buffer, done)
  })
}

export function syncReads(
  fd: number,
  buffer: Uint8Array,
  blocks: Positions,
  operations: number,
): void {
  for (let left = operations; left > 0; left--) {
    check(readSync(fd, buffer, 0, buffer.length, blocks.next()), buffer.length)
  }
}

/** The gaps between calls of a 1 ms timer, in milliseconds, while nops are always in flight. */
export async function timerGapsMs(
  queue: Queue,
  atOnce: number,
  durationMs: number,
): Promise<number[]> {
  let running = true
  const loop = async () => {
    while (running) await queue.nop()
  }
  const loops = times(atOnce, loop)
  const gaps: number[] = []
  await new Promise<void>((resolve) => {
    const startedMs = performance.now()
    let lastMs = startedMs
    const timer = setInterval(() => {
      const nowMs = performance.now()
      gaps.push(nowMs - lastMs)
      lastMs = nowMs
      if (nowMs - startedMs < durationMs) return
      clearInterval(timer)
      resolve()
    }, 1)
  })
  running = false
  await Promise.all(loops)
  return gaps
}
