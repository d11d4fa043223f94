/**
 * How long a nop takes from the call to its promise, and where in between the time goes. Behind
 * `queue.nopRoundTrip` and `node-uring nop`.
 */
import type { Backend } from './backend.js'
import { abortError, invalidArgValue, uringError } from './errors.js'
import { type Durations, Samples } from './histogram.js'
import type { Operations } from './operations.js'
import { checkBoolean, checkFunction, checkInteger, checkOptions, checkSignal } from './validate.js'

/** Round trips measured, or stages of them, before the clock stands and somebody is told. */
const STAGED_BLOCK = 4096

/** Options of {@link Queue.nopRoundTrip}. */
export interface RoundTripOptions {
  /** How many round trips to measure, 1 to 1e9. Default 100,000. */
  samples?: number | undefined
  /** How many are under way at once, 1 to 65,536. Default 1. */
  concurrency?: number | undefined
  /**
   * Whether to measure the stages of each, too, which costs four more looks at the clock: one at a
   * time, with nothing else under way on the queue, on io_uring. Default false.
   */
  stages?: boolean | undefined
  /** Ends the measurement with an AbortError. */
  signal?: AbortSignal | undefined
  /** Called now and then with the number of round trips made and the number asked for. */
  onProgress?: ((done: number, samples: number) => void) | undefined
}

/** The way of a nop. The mean durations of the stages add up to that of the round trip. */
export interface RoundTripStages {
  /** From the call to its return: the operation is staged. */
  stage: Durations
  /** From there until it is in the submission queue and enter is next. */
  enter: Durations
  /** From there until its completion was found: the kernel's part. */
  complete: Durations
  /** From there until its promise has resumed who awaits it. */
  settle: Durations
}

/** What `queue.nopRoundTrip` tells. */
export interface RoundTripSummary {
  /** How many round trips were measured. */
  samples: number
  /** How many were under way at once. */
  concurrency: number
  /** Round trips per second of the time that was measured; 0 if there were none. */
  opsPerSecond: number
  /** How long one took, in nanoseconds. */
  ns: Durations
  /** With the option `stages`: how long each stage of it took, in nanoseconds. */
  stages?: RoundTripStages
}

/** What is to be measured, and who wants to know meanwhile. */
export interface RoundTripPlan {
  samples: number
  concurrency: number
  /** Whether to end early. */
  isOver: () => boolean
  /** Called when a block of samples is with the histogram, the clock standing. */
  onBlock: (done: number) => void
}

/**
 * Round trips as they are made. Start at most {@link Samples.room} of them, stop the clock when the
 * last is back, drain, start the clock again.
 */
export class RoundTrips extends Samples {
  #elapsedNs = 0
  #stages: Record<keyof RoundTripStages, Samples> | undefined

  /** Makes them. Resolves when they are made, or when the plan is over. */
  async run(nop: () => Promise<void>, plan: RoundTripPlan): Promise<void> {
    const { samples, concurrency, isOver, onBlock } = plan
    let [started, done] = [0, 0]
    const lane = async (until: number): Promise<void> => {
      while (started < until && !isOver()) {
        started++
        const from = performance.now()
        await nop()
        this.add((performance.now() - from) * 1e6)
        done++
      }
    }
    while (done < samples && !isOver()) {
      const until = Math.min(samples, started + this.room)
      const from = performance.now()
      const lanes = Math.min(concurrency, until - started)
      await Promise.all(Array.from({ length: lanes }, () => lane(until)))
      this.#elapsedNs += (performance.now() - from) * 1e6
      this.drain()
      onBlock(done)
    }
  }

  /** The same one at a time, in stages. */
  async runInStages(nop: () => Promise<void>, plan: RoundTripPlan, backend: Backend) {
    const made = () => new Samples(STAGED_BLOCK)
    const [stage, enter, complete, settle] = [made(), made(), made(), made()]
    this.#stages = { stage, enter, complete, settle }
    backend.measure(true)
    try {
      for (let done = 0; done < plan.samples && !plan.isOver(); ) {
        const from = nowNs()
        const promise = nop()
        const staged = nowNs()
        await promise
        const settled = nowNs()
        const stamps = backend.stamps()
        if (stamps === null) throw uringError('ERR_URING_CLOSED')
        stage.add(staged - from)
        enter.add(stamps.enteredNs - staged)
        complete.add(stamps.reapedNs - stamps.enteredNs)
        settle.add(settled - stamps.reapedNs)
        this.add(settled - from)
        this.#elapsedNs += settled - from
        if (++done % STAGED_BLOCK === 0 || done === plan.samples) plan.onBlock(done)
      }
    } finally {
      backend.measure(false)
    }
  }

  /** Sums up what was made until now. */
  summary(concurrency: number): RoundTripSummary {
    const ns = this.durations()
    const [samples, elapsedNs] = [this.count, this.#elapsedNs]
    const opsPerSecond = elapsedNs > 0 ? (samples / elapsedNs) * 1e9 : 0
    const summary = { samples, concurrency, opsPerSecond, ns }
    if (this.#stages === undefined) return summary
    const { stage, enter, complete, settle } = this.#stages
    const stages = {
      stage: stage.durations(),
      enter: enter.durations(),
      complete: complete.durations(),
      settle: settle.durations(),
    }
    return { ...summary, stages }
  }
}

/** Checks options and measures. Throws Node's `ERR_` errors before anything is queued. */
export function nopRoundTrip(
  operations: Operations,
  options: RoundTripOptions = {},
): Promise<RoundTripSummary> {
  checkOptions(options)
  const { samples = 100_000, concurrency = 1, stages = false, signal, onProgress } = options
  checkInteger(samples, 'options.samples', 1, 1e9)
  checkInteger(concurrency, 'options.concurrency', 1, 65_536)
  checkBoolean(stages, 'options.stages')
  if (signal !== undefined) checkSignal(signal)
  if (onProgress !== undefined) checkFunction(onProgress, 'options.onProgress')
  if (stages) checkStages(operations, concurrency)
  return measured(operations, samples, concurrency, stages, signal, onProgress)
}

function checkStages({ backend, pending }: Operations, concurrency: number): void {
  if (concurrency !== 1) {
    throw invalidArgValue('options.concurrency', concurrency, 'must be 1 with options.stages')
  }
  if (backend.name !== 'io_uring') {
    throw uringError('ERR_URING_UNSUPPORTED', { feature: 'options.stages', needs: 'io_uring' })
  }
  if (pending > 0) {
    const needs = `a queue with nothing else under way (${pending} operations are)`
    throw uringError('ERR_URING_UNSUPPORTED', { feature: 'options.stages', needs })
  }
}

async function measured(
  operations: Operations,
  samples: number,
  concurrency: number,
  stages: boolean,
  signal: AbortSignal | undefined,
  onProgress: RoundTripOptions['onProgress'],
): Promise<RoundTripSummary> {
  if (signal?.aborted) throw abortError(signal)
  const trips = new RoundTrips(samples)
  const isOver = () => signal?.aborted === true
  const onBlock = (done: number) => onProgress?.(done, samples)
  const plan = { samples, concurrency, isOver, onBlock }
  const nop = () => operations.nop()
  if (stages) await trips.runInStages(nop, plan, operations.backend)
  else await trips.run(nop, plan)
  if (signal?.aborted) throw abortError(signal)
  return trips.summary(concurrency)
}

/** The clock that the engine's stamps are read from, in nanoseconds. */
function nowNs(): number {
  return Number(process.hrtime.bigint())
}
