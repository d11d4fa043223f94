/**
 * The loops that are measured. "N at once" is N loops that each await one operation after the other
 * (of callbacks: N chains), on every side. Each loop is written out, as a program would have it:
 * a shared one that is handed the operation would cost each side a call that it need not make.
 */
import { fdatasyncSync, read, readSync, write, writeSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import type { BatchOperation, File, Queue } from 'node-uring'

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

/** What the loop above costs by itself: promises that nothing but a turn of the event loop is behind. */
export async function promises(atOnce: number, operations: number): Promise<void> {
  let waiting: (() => void)[] = []
  const deliver = () => {
    const arrived = waiting
    waiting = []
    for (const resolve of arrived) resolve()
  }
  const operation = (): Promise<void> =>
    new Promise((resolve) => {
      if (waiting.push(resolve) === 1) setImmediate(deliver)
    })
  let left = operations
  const loop = async () => {
    while (left-- > 0) await operation()
  }
  await Promise.all(times(atOnce, loop))
}

/** Nops, so many by each call and promise, one call after the other. */
export async function nopsAtOnce(queue: Queue, batch: number, operations: number): Promise<void> {
  for (let left = operations; left > 0; left -= batch) await queue.nops(Math.min(batch, left))
}

/** Nops, so many begun at once and awaited together, one such batch after the other. */
export async function nopsTogether(queue: Queue, batch: number, operations: number): Promise<void> {
  const under = new Array<Promise<void>>(Math.min(batch, operations))
  for (let left = operations; left > 0; left -= batch) {
    under.length = Math.min(batch, left)
    for (let i = 0; i < under.length; i++) under[i] = queue.nop()
    await Promise.all(under)
  }
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

/** One list of operations after the other, the last as far as there are any left. */
export async function submits(
  queue: Queue,
  list: readonly BatchOperation[],
  operations: number,
): Promise<void> {
  for (let left = operations; left > 0; left -= list.length) {
    await queue.submit(left < list.length ? list.slice(0, left) : list)
  }
}

/**
 * Reads of equal length by a loop of calls for each of `targets`, each call as many as its target has room
 * for.
 */
export async function readManys(
  file: File,
  targets: readonly Uint8Array[],
  length: number,
  blocks: Positions,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async (target: Uint8Array) => {
    let positions = new Float64Array(Math.floor(target.length / length))
    while (left > 0) {
      if (left < positions.length) positions = positions.subarray(0, left)
      left -= positions.length
      for (let i = 0; i < positions.length; i++) positions[i] = blocks.next()
      const counts = await file.readMany(positions, length, target)
      // Not for-of, which costs ten times as much.
      for (let i = 0; i < counts.length; i++) check(counts[i] as number, length)
    }
  }
  await Promise.all(targets.map(loop))
}

/** As many reads as there are buffers begun at once and awaited together, again and again. */
export async function handleReadsTogether(
  handle: FileHandle,
  buffers: Uint8Array[],
  blocks: Positions,
  operations: number,
): Promise<void> {
  for (let left = operations; left > 0; left -= buffers.length) {
    const targets = left < buffers.length ? buffers.slice(0, left) : buffers
    const reads = targets.map((buffer) => handle.read(buffer, 0, buffer.length, blocks.next()))
    for (const { bytesRead } of await Promise.all(reads)) check(bytesRead, buffers[0]?.length ?? 0)
  }
}

/** Appends that are durable when they are awaited, so many callers at once. */
export async function durableAppends(
  queue: Queue,
  file: File,
  record: Uint8Array,
  atOnce: number,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) {
      check(await file.append(record), record.length)
      await queue.commit(file)
    }
  }
  await Promise.all(times(atOnce, loop))
}

/** The same by one call. */
export async function syncedAppends(
  file: File,
  record: Uint8Array,
  atOnce: number,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) check(await file.append(record, { datasync: true }), record.length)
  }
  await Promise.all(times(atOnce, loop))
}

/** The same by fs/promises: each writes, then has the file synced. */
export async function durableHandleWrites(
  handle: FileHandle,
  record: Uint8Array,
  atOnce: number,
  operations: number,
): Promise<void> {
  let left = operations
  const loop = async () => {
    while (left-- > 0) {
      check((await handle.write(record)).bytesWritten, record.length)
      await handle.datasync()
    }
  }
  await Promise.all(times(atOnce, loop))
}

/** The same one by one, by the calls that block. */
export function durableSyncWrites(fd: number, record: Uint8Array, operations: number): void {
  for (let left = operations; left > 0; left--) {
    check(writeSync(fd, record), record.length)
    fdatasyncSync(fd)
  }
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
  const loop = async (running: () => boolean) => {
    while (running()) await queue.nop()
  }
  return gapsBeside((running) => times(atOnce, () => loop(running)), durationMs)
}

/** The same while `work` goes on, again and again. */
export function timerGapsBeside(
  work: () => Promise<unknown>,
  durationMs: number,
): Promise<number[]> {
  const loop = async (running: () => boolean) => {
    while (running()) await work()
  }
  return gapsBeside((running) => [loop(running)], durationMs)
}

async function gapsBeside(
  start: (running: () => boolean) => Promise<void>[],
  durationMs: number,
): Promise<number[]> {
  let running = true
  const loops = start(() => running)
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
