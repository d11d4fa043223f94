// What every test of a ring begins and ends with: a deadline, a queue that is closed, and the proof
// that nothing was left behind.

import { setImmediate, setTimeout } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { type File, Queue, type QueueOptions } from 'node-uring'
import { BACKEND } from './test.js'

type Test = ExecutionContext<unknown>

/**
 * Anything here may hang; a test that asserts nothing for so long has failed. All tests of a file run at
 * once, and a disk that is busy with others has been seen to hold a process up for a minute.
 */
export const DEADLINE_MS = 120_000

/** A queue for the length of a test, and the test's deadline. */
export function ring(t: Test, options?: QueueOptions, deadlineMs: number = DEADLINE_MS): Queue {
  t.timeout(deadlineMs)
  const queue = new Queue(options)
  if ((options?.backend ?? 'auto') === 'auto' && queue.backend !== BACKEND) {
    throw new Error(`on ${queue.backend}: ${JSON.stringify(queue.capabilities.reason)}`)
  }
  // What still waits (a read of an empty FIFO) must not keep the next test from running.
  t.teardown(() => queue.close({ timeoutMs: 0 }))
  return queue
}

/** Asserts that nothing is under way, nobody's memory is held, and no completion went astray. */
export function assertIdle(t: Test, queue: Queue): void {
  const { pending, waiting, inFlight, stale, memory } = queue.stats()
  const bounceBytes = memory.bounce.usedBytes
  t.deepEqual(
    { pending, waiting, inFlight, stale, bounceBytes },
    { pending: 0, waiting: 0, inFlight: 0, stale: 0, bounceBytes: 0 },
  )
}

/** How many SQEs `work` took. */
export async function submittedBy(queue: Queue, work: () => Promise<unknown>): Promise<number> {
  const { submitted } = queue.stats()
  await work()
  return queue.stats().submitted - submitted
}

/**
 * Appends two bytes at once until it is known what kind of file it is, and that appends come in company;
 * from then on they share writes. Returns how many bytes that were.
 */
export async function accustom(file: File): Promise<number> {
  const byte = Buffer.from('-')
  for (let i = 0; i < 3; i++) {
    await Promise.all([file.append(byte), file.append(byte)])
    // The question is an operation of its own.
    await file.stat()
  }
  return 6
}

/** What can be told of an error without its stack. */
export interface Told {
  readonly name: string
  readonly message: string
  readonly code: unknown
  readonly errno: unknown
  readonly syscall: unknown
  readonly path: unknown
}

/**
 * An error as one can be compared with another. That of a call on an open file has its path, where
 * node:fs has none; in the message it is only where it was given.
 */
export function told(error: unknown): Told {
  const { name, message, code, errno, syscall, path } = error as Error & Record<string, unknown>
  const wasGiven = typeof path === 'string' && message.includes(`'${path}'`)
  return { name, message, code, errno, syscall, path: wasGiven ? path : undefined }
}

/** An error with what an error may have. */
export interface Caught extends Error {
  readonly code?: unknown
  readonly errno?: unknown
  readonly syscall?: unknown
  readonly path?: unknown
  readonly bytesWritten?: unknown
  readonly alignment?: unknown
}

/** What `call` throws; fails when it does not. `what` names the call in the failure. */
export function thrown(call: () => unknown, what = String(call)): Caught {
  let result: unknown
  try {
    result = call()
  } catch (error) {
    return error as Caught
  }
  // A promise where there should have been none may reject: that is not what was asked for.
  if (result instanceof Promise) result.catch(() => {})
  throw new Error(`nothing was thrown by ${what}`)
}

/** What the promise rejects with; fails when it does not. */
export async function rejection(promise: Promise<unknown>): Promise<Caught> {
  let value: unknown
  try {
    value = await promise
  } catch (error) {
    return error as Caught
  }
  throw new Error(`resolved with ${value} where it should have rejected`)
}

/** Whether the promise is still pending after `ms` milliseconds, and after what is due was done. */
export async function isPending(promise: Promise<unknown>, ms = 50): Promise<boolean> {
  let pending = true
  const settle = (): void => {
    pending = false
  }
  promise.then(settle, settle)
  await setTimeout(ms)
  // On a busy machine the timer may be due together with what it waited for.
  for (let turns = 0; turns < 3; turns++) await setImmediate()
  return pending
}
