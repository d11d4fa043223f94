/**
 * What the groups of cells share: what a group gets to work with, fio beside a side, a file opened by
 * both sides. Nothing here is measured.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { type File, Queue, type QueueOptions } from 'node-uring'
import type { Contest, Finding, Row, Settings, Side } from './harness.js'
import { fioSide } from './programs.js'
import type { Progress } from './progress.js'
import { keepCached } from './scratch.js'

export const KIB = 1024
export const MIB = 1024 * KIB
export const FILE_BYTES = 256 * MIB
export const BLOCK_BYTES = 4 * KIB

/** What a group gets to work with. */
export interface Bench {
  settings: Settings
  progress: Progress
  /** A folder on the file system that is measured; it goes away at the end. */
  folder: string
  /** The floor's executable, and whether fio is there. */
  floor: string
  fio: boolean
  /** Runs a contest and keeps what it found. */
  contest<Name extends string>(contest: Contest<Name>): Promise<void>
  /** Keeps a row that is no contest. */
  keep(finding: Finding): void
}

export interface Group {
  name: string
  about: string
  /** Throws `Skip` when it cannot be measured here. */
  run(bench: Bench): Promise<void>
}

/** fio as a side, where it is installed. */
export function fioSides(bench: Bench, file: string, direct: boolean): Record<'fio', Side> {
  const sides = bench.fio ? { fio: fioSide('fio', { file, depth: 128, direct }) } : {}
  return sides as Record<'fio', Side>
}

/** The floor beside fio: a slow floor would flatter us. On a device we are beside fio too. */
export function fioRows(bench: Bench, cell: string, direct: boolean): Row<'ring' | 'c' | 'fio'>[] {
  if (!bench.fio) return []
  const sanity = { cell: `C itself: ${cell}`, measure: 'rate', ours: 'c', theirs: 'fio' } as const
  const ours = { cell, measure: 'rate', ours: 'ring', theirs: 'fio' } as const
  const target = { atLeast: 0.95 }
  return direct
    ? [
        { ...ours, target },
        { ...sanity, target },
      ]
    : [{ ...sanity, target }]
}

/** Keeps the file in the page cache between rounds. */
export function cacheKeeper(path: string): () => void {
  const buffer = new Uint8Array(MIB)
  return () => keepCached(path, buffer)
}

/** The same file by a queue of its own and by node:fs. */
export async function openBoth(
  path: string,
  direct: boolean,
  options?: QueueOptions,
): Promise<{ queue: Queue; file: File; handle: FileHandle; close(): Promise<void> }> {
  const queue = new Queue(options)
  const file = await queue.open(path, 'r', { direct })
  const handle = await open(path, constants.O_RDONLY | (direct ? constants.O_DIRECT : 0))
  return {
    queue,
    file,
    handle,
    async close() {
      await queue.close()
      await handle.close()
    },
  }
}
