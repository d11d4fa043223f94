// Memory in which every byte that an operation may not touch is known, and what an operation did to it.

import type { ExecutionContext } from 'ava'
import type { Queue } from 'node-uring'

/** Bytes on either side of a buffer that nobody may touch. */
export const GUARD_BYTES = 64
/** What they are. */
export const GUARD = 0xa5

/** A view for an operation, and all the memory around it. */
export interface Guarded {
  readonly view: NodeJS.ArrayBufferView
  readonly bytes: Uint8Array
  readonly guards: readonly Uint8Array[]
}

/** The view of `length` bytes in the middle of `whole`. */
export function guarded(
  whole: Uint8Array,
  length: number,
  make: (buffer: ArrayBufferLike, offset: number, length: number) => NodeJS.ArrayBufferView,
  before = GUARD_BYTES,
): Guarded {
  whole.fill(GUARD)
  const bytes = whole.subarray(before, before + length)
  return {
    view: make(whole.buffer, whole.byteOffset + before, length),
    bytes,
    guards: [whole.subarray(0, before), whole.subarray(before + length)],
  }
}

/** Asserts that only the view was written to. */
export function assertGuards(
  t: ExecutionContext<unknown>,
  { guards }: Guarded,
  what: string,
): void {
  t.true(
    guards.every((guard) => guard.every((byte) => byte === GUARD)),
    `${what}: bytes around the buffer were written`,
  )
}

/** Equal bytes, said in one line when they are not. */
export function assertBytes(
  t: ExecutionContext<unknown>,
  actual: Uint8Array,
  expected: Uint8Array,
  what: string,
): void {
  t.is(actual.length, expected.length, `${what}: length`)
  const same = Buffer.compare(actual, expected) === 0
  const at = same ? -1 : actual.findIndex((byte, i) => byte !== expected[i])
  t.is(at, -1, `${what}: the first byte that differs`)
}

export const asBuffer = (b: ArrayBufferLike, offset: number, length: number) =>
  Buffer.from(b as ArrayBuffer, offset, length)

export type Source = (queue: Queue, length: number) => Guarded
/** Memory of a queue, and of V8. */
export const SOURCES: Readonly<Record<'arena' | 'plain', Source>> = {
  arena: (queue, length) => guarded(queue.alloc(length + 2 * GUARD_BYTES), length, asBuffer),
  plain: (_, length) => guarded(new Uint8Array(length + 2 * GUARD_BYTES), length, asBuffer),
}

/** Makes memory that is all guard bytes. */
export type Memory = (queue: Queue, bytes: number) => Buffer
/** Memory that many operations are copied to and from, or use in place. */
export const MEMORIES: Record<string, Memory> = {
  plain: (_, bytes) => Buffer.alloc(bytes, GUARD),
  'in place': (queue, bytes) => queue.alloc(bytes).fill(GUARD),
}

/** What a read of `length` at `position` brings. */
export function slice(content: Buffer, position: number, length: number): Buffer {
  return content.subarray(Math.min(position, content.length), position + length)
}

/** Checks counts and target against the file's content, and that no other byte of it was touched. */
export function checkMany(
  t: ExecutionContext<unknown>,
  content: Buffer,
  positions: readonly number[],
  lengths: readonly number[],
  counts: Int32Array,
  target: Buffer,
): void {
  const expected = Buffer.alloc(target.length, GUARD)
  let at = 0
  const sizes = positions.map((position, i) => {
    const bytes = slice(content, position, lengths[i] as number)
    bytes.copy(expected, at)
    at += lengths[i] as number
    return bytes.length
  })
  t.deepEqual([...counts], sizes)
  t.true(target.equals(expected), 'the target')
}

/** An ArrayBuffer that can be resized, of which TypeScript's library of 2022 knows nothing. */
export const Resizable = ArrayBuffer as unknown as new (
  length: number,
  options: { maxByteLength: number },
) => ArrayBuffer & { resize(length: number): void }
