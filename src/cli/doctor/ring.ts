/**
 * Tries the ring, as a program would use it: makes a queue, sends nops round, reads a file that is
 * there in any case, and opens it for direct I/O, which registers memory. It writes nothing.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import type { Capabilities } from '../../capabilities.js'
import { UringError } from '../../errors.js'
import { Queue } from '../../queue.js'
import type { RoundTripSummary } from '../../round-trip.js'
import type { Unavailable } from '../../unavailable.js'

const SAMPLES = 2000
const READ_BYTES = 4096
/** Longer than any of these takes; nothing here may hang. */
const PATIENCE_MS = 10_000

/** What became of one trial: a failure's words, or nothing. */
export type Outcome<T> = T | { readonly failure: string }

export interface Ring {
  /** Why there is none; null when there is one. */
  readonly reason: Unavailable | null
  readonly capabilities: Capabilities | null
  readonly nop: Outcome<RoundTripSummary> | null
  /** Whether bytes that the ring read are those that node:fs reads. */
  readonly read: Outcome<{ readonly path: string; readonly bytes: number }> | null
  /** What direct I/O asks for where Node itself lies. */
  readonly direct: Outcome<{ readonly memoryBytes: number; readonly offsetBytes: number }> | null
}

export async function tryRing(): Promise<Ring> {
  const none = { capabilities: null, nop: null, read: null, direct: null }
  let queue: Queue
  try {
    queue = new Queue({ backend: 'io_uring' })
  } catch (error) {
    if (error instanceof UringError && error.reason) return { reason: error.reason, ...none }
    throw error
  }
  try {
    const nop = await outcome(() => queue.nopRoundTrip({ samples: SAMPLES }))
    const read = await outcome(() => readLikeNode(queue))
    const direct = await outcome(() => openDirect(queue))
    return { reason: null, capabilities: queue.capabilities, nop, read, direct }
  } finally {
    await queue.close({ timeoutMs: 0 }).catch(() => {})
  }
}

async function readLikeNode(queue: Queue): Promise<{ path: string; bytes: number }> {
  const path = process.execPath
  const wanted = Buffer.alloc(READ_BYTES)
  const fd = openSync(path, 'r')
  try {
    readSync(fd, wanted, 0, READ_BYTES, 0)
  } finally {
    closeSync(fd)
  }
  const file = await queue.open(path)
  const found = queue.alloc(READ_BYTES)
  await file.readAt(found, 0)
  await file.close()
  if (!found.equals(wanted)) throw new Error(`${path} reads otherwise than by node:fs`)
  return { path, bytes: READ_BYTES }
}

async function openDirect(queue: Queue): Promise<{ memoryBytes: number; offsetBytes: number }> {
  const file = await queue.open(process.execPath, 'r', { direct: true })
  const alignment = file.alignment ?? { memoryBytes: 1, offsetBytes: 1 }
  await file.close()
  return alignment
}

/** What a trial comes to, within {@link PATIENCE_MS}. */
async function outcome<T>(trial: () => Promise<T>): Promise<Outcome<T>> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`not done within ${PATIENCE_MS / 1000} s`)),
      PATIENCE_MS,
    )
  })
  try {
    return await Promise.race([trial(), late])
  } catch (error) {
    return { failure: error instanceof Error ? error.message : String(error) }
  } finally {
    clearTimeout(timer)
  }
}
