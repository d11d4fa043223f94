// 10 GiB of results, kept in parts over time.

import test from 'ava'
import { childJson, fixture, type KeptResults } from '../helpers/child.js'
import { scratch } from '../helpers/scratch.js'

test.serial(
  '10,000 results of 1 MiB, kept in parts, take nothing that other operations need',
  async (t) => {
    t.timeout(600_000)
    const args = ['20', scratch(t)]
    const options = { node: ['--expose-gc'], args, timeoutMs: 590_000 }
    const told = await childJson<KeptResults>(fixture('kept-results.mjs'), options)
    t.is(told.results, 10_000)
    t.true(told.givenBytes > 0 && told.copiedBytes > 0, JSON.stringify(told))
  },
)
