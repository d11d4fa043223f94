/**
 * Sums up the round trips that `queue.nopRoundTrip` measured. While the clock runs a sample is one
 * store into a block of memory; the histogram (node:perf_hooks, HDR, three digits) gets the block
 * when the clock stands. It measures nothing itself.
 */
import { createHistogram } from 'node:perf_hooks'

/** Samples kept before the histogram must have them: 512 KiB, which stay in a CPU's cache. */
const BLOCK_SAMPLES = 1 << 16

/** What `queue.nopRoundTrip` tells. Each of `ns` is within 0.1% of the sample it stands for. */
export interface RoundTripSummary {
  /** How many round trips were measured. */
  samples: number
  /** How many were under way at once. */
  concurrency: number
  /** Round trips per second of the time that was measured; 0 if there were none. */
  opsPerSecond: number
  /** How long one took, in nanoseconds; all 0 if there were none. */
  ns: {
    min: number
    mean: number
    p50: number
    p90: number
    p99: number
    p999: number
    max: number
  }
}

/**
 * Collects round trips. Start at most {@link room} of them, stop the clock when the last is back,
 * call {@link drain}, start the clock again; then {@link finish}.
 */
export class RoundTrips {
  readonly #histogram = createHistogram({ figures: 3 })
  readonly #block: Float64Array
  readonly #observe: ((ns: number) => void) | undefined
  #length = 0

  /**
   * `samples` is how many are to come; fewer or more do no harm. `observe` gets each sample, too,
   * when it is drained.
   */
  constructor(samples: number, observe?: (ns: number) => void) {
    this.#observe = observe
    this.#block = new Float64Array(Math.max(1, Math.min(samples, BLOCK_SAMPLES)))
  }

  /** How many samples fit before {@link drain}; at least 1 after it. */
  get room(): number {
    return this.#block.length - this.#length
  }

  /** One round trip, in nanoseconds. Without room it drains first, and disturbs the measurement. */
  add(ns: number): void {
    if (this.#length === this.#block.length) this.drain()
    this.#block[this.#length++] = ns
  }

  /** Gives the block to the histogram. About 30 ns a sample: call it while the clock stands. */
  drain(): void {
    for (const ns of this.#block.subarray(0, this.#length)) {
      // The histogram takes integers from 1 up; two readings of a coarse clock can be equal.
      this.#histogram.record(Math.max(1, Math.round(ns)))
      this.#observe?.(ns)
    }
    this.#length = 0
  }

  /** Sums up. `elapsedNs` is the time that the clock ran, `concurrency` is handed through. */
  finish(elapsedNs: number, concurrency: number): RoundTripSummary {
    this.drain()
    const h = this.#histogram
    const samples = h.count
    if (samples === 0) {
      const ns = { min: 0, mean: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 }
      return { samples, concurrency, opsPerSecond: 0, ns }
    }
    return {
      samples,
      concurrency,
      opsPerSecond: elapsedNs > 0 ? (samples / elapsedNs) * 1e9 : 0,
      ns: {
        min: h.min,
        mean: h.mean,
        p50: h.percentile(50),
        p90: h.percentile(90),
        p99: h.percentile(99),
        p999: h.percentile(99.9),
        max: h.max,
      },
    }
  }
}
