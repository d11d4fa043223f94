import test from 'ava'
import fc from 'fast-check'
import { RoundTrips } from '../src/histogram.ts'

/** The sample at a percentile, by sorting all of them; HDR rounds the rank. */
function exact(samples: number[], percentile: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  return sorted[Math.max(1, Math.round((percentile / 100) * sorted.length)) - 1] ?? Number.NaN
}

function summaryOf(samples: number[], elapsedNs: number) {
  const trips = new RoundTrips(samples.length)
  for (const ns of samples) trips.add(ns)
  return trips.finish(elapsedNs, 1)
}

test('small samples are summed up exactly', (t) => {
  t.deepEqual(summaryOf([100, 200, 300, 400], 2000), {
    samples: 4,
    concurrency: 1,
    opsPerSecond: 2e6,
    ns: { min: 100, mean: 250, p50: 200, p90: 400, p99: 400, p999: 400, max: 400 },
  })
})

test('whatever the samples, every number is within 0.1% of the sample it stands for', (t) => {
  const sample = fc.integer({ min: 1, max: 10_000_000_000 })
  const property = fc.property(fc.array(sample, { minLength: 1, maxLength: 2000 }), (samples) => {
    const { ns } = summaryOf(samples, 1)
    const near = (got: number, wanted: number) => Math.abs(got - wanted) <= wanted * 0.001
    return (
      near(ns.min, Math.min(...samples)) &&
      near(ns.mean, samples.reduce((sum, one) => sum + one, 0) / samples.length) &&
      near(ns.p50, exact(samples, 50)) &&
      near(ns.p90, exact(samples, 90)) &&
      near(ns.p99, exact(samples, 99)) &&
      near(ns.p999, exact(samples, 99.9)) &&
      near(ns.max, Math.max(...samples))
    )
  })
  t.notThrows(() => fc.assert(property))
})

test('a rare slow sample shows in p999 and max, and not in p99', (t) => {
  const samples = Array.from({ length: 10_000 }, (_, index) => (index % 500 === 0 ? 500_000 : 1000))
  const { ns } = summaryOf(samples, 1)
  t.is(ns.p99, 1000)
  t.true(ns.p999 > 499_000)
  t.true(ns.max > 499_000)
})

test('no sample is lost when there are more than a block holds, drained in time or not', (t) => {
  for (const inTime of [true, false]) {
    const trips = new RoundTrips(200_000)
    for (let index = 0; index < 200_000; index++) {
      if (inTime && trips.room === 0) trips.drain()
      trips.add(1 + (index % 2))
    }
    const { samples, ns } = trips.finish(1e9, 128)
    t.is(samples, 200_000)
    t.is(ns.mean, 1.5)
  }
})

test('there is room for all samples of a short run, and room again after a drain', (t) => {
  const trips = new RoundTrips(1000)
  t.is(trips.room, 1000)
  for (let index = 0; index < 1000; index++) trips.add(5)
  t.is(trips.room, 0)
  trips.drain()
  t.is(trips.room, 1000)
  t.true(new RoundTrips(0).room >= 1)
})

test('memory is bounded however many samples are to come', (t) => {
  t.true(new RoundTrips(1e12).room <= 1 << 16)
})

test('a drain in between changes nothing in the summary', (t) => {
  const [whole, parts] = [new RoundTrips(10), new RoundTrips(10)]
  for (const ns of [10, 20, 30, 40]) {
    whole.add(ns)
    parts.add(ns)
    parts.drain()
  }
  t.deepEqual(parts.finish(100, 2), whole.finish(100, 2))
})

test('the rate is that of the time that was measured, whatever the concurrency', (t) => {
  const trips = new RoundTrips(10)
  for (let index = 0; index < 10; index++) trips.add(1000)
  const { opsPerSecond, concurrency } = trips.finish(2000, 8)
  t.is(opsPerSecond, 5e6)
  t.is(concurrency, 8)
})

test('samples between nanoseconds, of zero or below are counted', (t) => {
  const { samples, ns } = summaryOf([0, -3, 0.4, 1.6, 2.4], 1)
  t.is(samples, 5)
  t.is(ns.min, 1)
  t.is(ns.max, 2)
})

test('without a sample or without time every number is 0, none is NaN', (t) => {
  const zeros = { min: 0, mean: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 }
  const expected = { samples: 0, concurrency: 4, opsPerSecond: 0, ns: zeros }
  t.deepEqual(new RoundTrips(10).finish(1000, 4), expected)
  t.is(summaryOf([5], 0).opsPerSecond, 0)
})
