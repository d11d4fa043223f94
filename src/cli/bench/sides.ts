/**
 * The sides of `node-uring bench`: the same loop over a file by node-uring and by the three ways of
 * node:fs. Each keeps so many operations under way, at random places, each in a buffer of its own.
 */
import fs from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import type { File } from '../../file.js'

export type Kind = 'read' | 'write'

/** What is measured: blocks of one size, so many at once. */
export interface Cell {
  readonly sizeBytes: number
  readonly depth: number
}

/** One way to do a cell. */
export interface Side {
  readonly name: string
  run(operations: number): Promise<void>
}

/** The file, open in each way. */
export interface Target {
  readonly lengthBytes: number
  readonly file: File
  readonly handle: FileHandle
  readonly fd: number
}

type Arguments = [fd: number, buffer: Buffer, offset: number, length: number, position: number]
type Callback = (...args: [...Arguments, done: (error: Error | null) => void]) => void
type Sync = (...args: Arguments) => number

/** The names of the sides, in their order. */
export function sideNames(kind: Kind): string[] {
  return kind === 'read'
    ? ['node-uring', 'fs/promises', 'fs.read', 'fs.readSync']
    : ['node-uring', 'fs/promises', 'fs.write', 'fs.writeSync']
}

/** The sides of a cell. `ring` and `node` are their buffers, `depth` of each. */
export function sidesOf(
  kind: Kind,
  { sizeBytes, depth }: Cell,
  { lengthBytes, file, handle, fd }: Target,
  ring: readonly Buffer[],
  node: readonly Buffer[],
): Side[] {
  const isRead = kind === 'read'
  const blocks = Math.floor(lengthBytes / sizeBytes)
  const position = () => Math.floor(Math.random() * blocks) * sizeBytes
  const onFile = isRead
    ? (buffer: Buffer) => file.readAt(buffer, position())
    : (buffer: Buffer) => file.writeAt(buffer, position())
  const onHandle = isRead
    ? (buffer: Buffer) => handle.read(buffer, 0, sizeBytes, position())
    : (buffer: Buffer) => handle.write(buffer, 0, sizeBytes, position())
  const callback: Callback = isRead ? fs.read : fs.write
  const sync: Sync = isRead ? fs.readSync : fs.writeSync
  const [name = '', promises = '', callbacks = '', blocking = ''] = sideNames(kind)
  const sides: Side[] = [
    { name, run: (operations) => awaited(operations, ring, onFile) },
    { name: promises, run: (operations) => awaited(operations, node, onHandle) },
    {
      name: callbacks,
      run: (operations) =>
        called(operations, node, (buffer, done) => {
          callback(fd, buffer, 0, sizeBytes, position(), done)
        }),
    },
  ]
  // It blocks the thread: there is no other at the same time.
  if (depth === 1) {
    sides.push({
      name: blocking,
      async run(operations) {
        const [buffer = Buffer.alloc(0)] = node
        for (let i = 0; i < operations; i++) sync(fd, buffer, 0, sizeBytes, position())
      },
    })
  }
  return sides
}

/** A lane for each buffer, each with one operation at a time. */
async function awaited(
  operations: number,
  buffers: readonly Buffer[],
  operation: (buffer: Buffer) => Promise<unknown>,
): Promise<void> {
  let left = operations
  await Promise.all(
    buffers.map(async (buffer) => {
      while (left-- > 0) await operation(buffer)
    }),
  )
}

function called(
  operations: number,
  buffers: readonly Buffer[],
  operation: (buffer: Buffer, done: (error: Error | null) => void) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let [left, running] = [operations, buffers.length]
    for (const buffer of buffers) {
      const next = (error: Error | null): void => {
        if (error !== null) reject(error)
        else if (left-- > 0) operation(buffer, next)
        else if (--running === 0) resolve()
      }
      next(null)
    }
  })
}
