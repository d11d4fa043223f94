import test from 'ava'
import fc from 'fast-check'
import { Samples } from '../src/histogram.ts'

/** The sample at a percentile, by sorting all of them; HDR rounds the rank. */
function exact(samples: number[], percentile: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  return sorted[Math.max(1, Math.round((percentile / 100) * sorted.length)) - 1] ?? Number.NaN
}

function durationsOf(samples: number[]) {
  const all = new Samples(samples.length)
  for (const ns of samples) all.add(ns)
  return all.durations()
}

test('small samples are summed up exactly', (t) => {
  const expected = { min: 100, mean: 250, p50: 200, p90: 400, p99: 400, p999: 400, max: 400 }
  t.deepEqual(durationsOf([100, 200, 300, 400]), expected)
})

test('whatever the samples, every number is within 0.1% of the sample it stands for', (t) => {
  const sample = fc.integer({ min: 1, max: 10_000_000_000 })
  const property = fc.property(fc.array(sample, { minLength: 1, maxLength: 2000 }), (samples) => {
    const ns = durationsOf(samples)
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
  const ns = durationsOf(samples)
  t.is(ns.p99, 1000)
  t.true(ns.p999 > 499_000)
  t.true(ns.max > 499_000)
})

test('no sample is lost when there are more than a block holds, drained in time or not', (t) => {
  for (const inTime of [true, false]) {
    const trips = new Samples(200_000)
    for (let index = 0; index < 200_000; index++) {
      if (inTime && trips.room === 0) trips.drain()
      trips.add(1 + (index % 2))
    }
    t.is(trips.count, 200_000)
    t.is(trips.durations().mean, 1.5)
  }
})

test('there is room for all samples of a short run, and room again after a drain', (t) => {
  const trips = new Samples(1000)
  t.is(trips.room, 1000)
  for (let index = 0; index < 1000; index++) trips.add(5)
  t.is(trips.room, 0)
  trips.drain()
  t.is(trips.room, 1000)
  t.true(new Samples(0).room >= 1)
})

test('memory is bounded however many samples are to come', (t) => {
  t.true(new Samples(1e12).room <= 1 << 16)
})

test('a drain in between changes nothing in the summary', (t) => {
  const [whole, parts] = [new Samples(10), new Samples(10)]
  for (const ns of [10, 20, 30, 40]) {
    whole.add(ns)
    parts.add(ns)
    parts.drain()
  }
  t.deepEqual(parts.durations(), whole.durations())
})

test('samples between nanoseconds, of zero or below are counted', (t) => {
  const samples = [0, -3, 0.4, 1.6, 2.4]
  t.is(samples.length, 5)
  const ns = durationsOf(samples)
  t.is(ns.min, 1)
  t.is(ns.max, 2)
})

test('without a sample every number is 0, none is NaN', (t) => {
  const zeros = { min: 0, mean: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 }
  t.deepEqual(new Samples(10).durations(), zeros)
})
