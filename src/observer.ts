/**
 * Who watches operations: histograms of how long each took, and the subscribers of
 * `node:diagnostics_channel`. While nobody does, an operation costs one look at whether somebody does.
 */
import { tracingChannel } from 'node:diagnostics_channel'
import { syscallOfCall } from './backend.js'
import { standsAlone, systemError } from './errors.js'
import { type Durations, Samples } from './histogram.js'
import { KIND_CALL, KIND_MANY, type Operation } from './slots.js'

/** Samples of one name kept before its histogram gets them, which takes about 30 ns for each. */
const BLOCK_SAMPLES = 1024

/** How long operations of one name took, from the call to their settling. */
export interface Latency {
  /** How many there were. */
  count: number
  /** How long one took, in nanoseconds. */
  ns: Durations
}

/**
 * What subscribers of the tracing channel `node-uring:operation` get: the same object at `start` and
 * `end` (when it has been staged, or waits) and at `asyncStart` and `asyncEnd` (when it settles), with
 * `error` before those two when it failed.
 */
export interface OperationMessage {
  /** As in errors: `read`, `fdatasync`, `open`; `readMany`, `writeMany` and `nops` for a part of those. */
  readonly operation: string
  /** Of the file, or the path that it is about. */
  readonly path?: string | undefined
  readonly dest?: string | undefined
  readonly fd?: number | undefined
  /** Bytes that are to be moved, and where in the file they begin. */
  readonly length?: number | undefined
  readonly position?: number | bigint | undefined
  /** Of many: how many. */
  readonly count?: number | undefined
  /** What it came to, when that is a number: bytes moved, or what the system call returned. */
  result?: number | undefined
  error?: Error | undefined
}

const CHANNELS = tracingChannel<unknown, OperationMessage>('node-uring:operation')
const { start, end, asyncStart, asyncEnd, error: failed } = CHANNELS

/** Whether somebody has subscribed. Node's own `hasSubscribers` of the five together came with 20.13. */
function isTraced(): boolean {
  return (
    start.hasSubscribers ||
    asyncEnd.hasSubscribers ||
    asyncStart.hasSubscribers ||
    end.hasSubscribers ||
    failed.hasSubscribers
  )
}

/** Watches over the operations of one queue. */
export class Observer {
  readonly #latencies: Map<string, Samples> | undefined

  constructor(latency: boolean) {
    this.#latencies = latency ? new Map() : undefined
  }

  /** Whether anybody wants to know of an operation that begins now. */
  get watches(): boolean {
    return this.#latencies !== undefined || isTraced()
  }

  /** An operation begins, a chain with all its members. What is to be {@link staged} afterwards. */
  begins(op: Operation): OperationMessage[] | undefined {
    const now = performance.now()
    const traced = isTraced() ? [] : undefined
    if (op.chain === undefined) begins(op, now, traced)
    else for (const member of op.chain) begins(member, now, traced)
    return traced
  }

  /** It has been staged, or waits, or has settled already. */
  staged(messages: readonly OperationMessage[]): void {
    for (const message of messages) end.publish(message)
  }

  /** An operation that was begun has failed; it settles next. */
  fails(op: Operation, error: Error): void {
    const { message } = op
    // Subscribers have had the message, and may have made of it what throws.
    if (message !== undefined) standsAlone(() => tellFailure(message, error))
  }

  /** An operation that was begun settles with this. */
  ends(op: Operation, value: unknown): void {
    const ms = performance.now() - op.begun
    op.begun = 0
    if (this.#latencies !== undefined) this.#keep(nameOf(op), ms)
    const { message } = op
    if (message === undefined) return
    op.message = undefined
    standsAlone(() => tellEnd(message, value))
  }

  #keep(name: string, ms: number): void {
    const latencies = this.#latencies as Map<string, Samples>
    let samples = latencies.get(name)
    if (samples === undefined) {
      samples = new Samples(BLOCK_SAMPLES)
      latencies.set(name, samples)
    }
    samples.add(ms * 1e6)
  }

  /** The histograms, or undefined where there are none. */
  latency(): Record<string, Latency> | undefined {
    if (this.#latencies === undefined) return undefined
    const entries = [...this.#latencies].map(([name, samples]) => {
      const { count } = samples
      return [name, { count, ns: samples.durations() }] as const
    })
    return Object.fromEntries(entries)
  }
}

function begins(op: Operation, now: number, traced: OperationMessage[] | undefined): void {
  op.begun = now
  if (traced === undefined) return
  const message = messageOf(op)
  op.message = message
  traced.push(message)
  start.publish(message)
}

function tellFailure(message: OperationMessage, error: Error): void {
  message.error = error
  failed.publish(message)
}

function tellEnd(message: OperationMessage, value: unknown): void {
  if (message.error === undefined && typeof value === 'number') {
    if (value >= 0) message.result = value
    else {
      // The caller makes the error that is thrown of the number.
      const { path, dest } = message
      tellFailure(message, systemError(value, message.operation, { path, dest }))
    }
  }
  asyncStart.publish(message)
  asyncEnd.publish(message)
}

function nameOf(op: Operation): string {
  const name = syscallOfCall(op)
  if (op.kind !== KIND_MANY) return name
  return name === 'nop' ? 'nops' : `${name}Many`
}

function messageOf(op: Operation): OperationMessage {
  const { file, kind, path, dest, length, position, many } = op
  const operation = nameOf(op)
  const of = { operation, path: path ?? file?.path, dest, fd: file?.fd }
  if (many !== undefined) {
    const count = typeof many.positions === 'number' ? many.positions : many.positions.length
    return { ...of, length: many.bytes, count }
  }
  // Of other calls the two are arguments of many meanings.
  if (kind === KIND_CALL) return of
  return operation === 'nop' ? of : { ...of, length, position }
}
