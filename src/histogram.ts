/**
 * Sums up how long things took. While the clock runs a sample is one store into a block of memory; the
 * histogram (node:perf_hooks, HDR, three digits) gets the block when it is full or when it is asked.
 * Measures nothing itself.
 */
import { createHistogram } from 'node:perf_hooks'

/** Samples kept before the histogram must have them: 512 KiB, which stay in a CPU's cache. */
const BLOCK_SAMPLES = 1 << 16

/** Durations in nanoseconds, each within 0.1% of the sample it stands for; all 0 if there were none. */
export interface Durations {
  min: number
  mean: number
  p50: number
  p90: number
  p99: number
  p999: number
  max: number
}

/** Durations as they come, and what they sum up to. */
export class Samples {
  readonly #histogram = createHistogram({ figures: 3 })
  readonly #block: Float64Array
  readonly #observe: ((ns: number) => void) | undefined
  #length = 0

  /**
   * `blockSamples` is how many are kept before the histogram gets them, at most 65,536. `observe` gets
   * each sample, too, when it is drained.
   */
  constructor(blockSamples: number, observe?: (ns: number) => void) {
    this.#observe = observe
    this.#block = new Float64Array(Math.max(1, Math.min(blockSamples, BLOCK_SAMPLES)))
  }

  /** How many samples fit before {@link drain}; at least 1 after it. */
  get room(): number {
    return this.#block.length - this.#length
  }

  /** One duration, in nanoseconds. Without room it drains first, and disturbs what is measured. */
  add(ns: number): void {
    if (this.#length === this.#block.length) this.drain()
    this.#block[this.#length++] = ns
  }

  /** Gives the block to the histogram. About 30 ns a sample. */
  drain(): void {
    for (const ns of this.#block.subarray(0, this.#length)) {
      // The histogram takes integers from 1 up; two readings of a coarse clock can be equal.
      this.#histogram.record(Math.max(1, Math.round(ns)))
      this.#observe?.(ns)
    }
    this.#length = 0
  }

  /** How many there were. */
  get count(): number {
    this.drain()
    return this.#histogram.count
  }

  /** Sums up. */
  durations(): Durations {
    if (this.count === 0) return { min: 0, mean: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 }
    const h = this.#histogram
    return {
      min: h.min,
      mean: h.mean,
      p50: h.percentile(50),
      p90: h.percentile(90),
      p99: h.percentile(99),
      p999: h.percentile(99.9),
      max: h.max,
    }
  }
}
