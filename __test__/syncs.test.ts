// What the syncs of a file come to: a success counts when all that ran beside it succeeded, and not after a
// failure. Their results are made up here; commit.test and faults-devices.test have real ones.

import test from 'ava'
import fc from 'fast-check'
import { OP_FSYNC } from '../src/backend.ts'
import type { FileState } from '../src/file-state.ts'
import { Operation } from '../src/slots.ts'
import { isSync, Syncs } from '../src/syncs.ts'

const [EIO, ECANCELED, EINVAL] = [-5, -125, -22]

/** Syncs, and what each came to: nothing while that is not known. */
function watched() {
  const syncs = new Syncs()
  const results = new Map<Operation, number>()
  const goOn = (op: Operation, result: number) => {
    if (results.has(op)) throw new Error('twice')
    results.set(op, result)
  }
  const begin = (): Operation => {
    const op = new Operation()
    op.opcode = OP_FSYNC
    op.file = {} as FileState
    syncs.began(op)
    return op
  }
  const end = (op: Operation, result: number) => syncs.arrived(op, result, goOn)
  return { syncs, results, begin, end }
}

test('a success waits for those that began before it was over, and for no others', (t) => {
  const { results, begin, end } = watched()
  const [first, second] = [begin(), begin()]
  end(second, 0)
  t.false(results.has(second))
  const late = begin()
  end(first, 0)
  t.false(results.has(first), 'the last began before it was over')
  t.is(results.get(second), 0)
  end(late, 0)
  t.deepEqual([results.get(first), results.get(late)], [0, 0])
})

test('one that fails is the failure of those held and running, and of all that come', (t) => {
  const { results, begin, end } = watched()
  const [first, second, third] = [begin(), begin(), begin()]
  end(first, 0)
  end(second, EIO)
  t.deepEqual([results.get(first), results.get(second)], [EIO, EIO])
  end(third, 0)
  const later = begin()
  end(later, 0)
  t.deepEqual([results.get(third), results.get(later)], [EIO, EIO])
})

test('what was not synced at all says nothing of the data', (t) => {
  const { results, begin, end } = watched()
  for (const harmless of [ECANCELED, EINVAL]) {
    const [first, second] = [begin(), begin()]
    end(first, 0)
    end(second, harmless)
    t.deepEqual([results.get(first), results.get(second)], [0, harmless])
  }
})

test('one that is held is cancelled without the others', (t) => {
  const { syncs, results, begin, end } = watched()
  const [first, second] = [begin(), begin()]
  end(first, 0)
  t.true(syncs.cancel(first))
  t.false(syncs.cancel(first))
  t.false(syncs.cancel(second), 'the engine has it')
  t.is(results.get(first), ECANCELED)
  end(second, 0)
  t.is(results.get(second), 0)
})

test('a record that was settled and used again meanwhile is not gone on with', (t) => {
  const { results, begin, end } = watched()
  const [first, second] = [begin(), begin()]
  end(first, 0)
  first.number++
  end(second, 0)
  t.false(results.has(first))
  t.is(results.get(second), 0)
})

test('only an fsync of a file is a sync', (t) => {
  const op = new Operation()
  op.opcode = OP_FSYNC
  t.false(isSync(op))
  op.file = {} as FileState
  t.true(isSync(op))
  op.opcode = OP_FSYNC + 1
  t.false(isSync(op))
})

test('in whatever order they begin and end, none succeeds beside a failure or after one', (t) => {
  const step = fc.record({ which: fc.nat(7), result: fc.constantFrom(0, 0, 0, 0, EIO, ECANCELED) })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const { results, begin, end } = watched()
      const running: { op: Operation; from: number }[] = []
      const over: { op: Operation; from: number; to: number; result: number }[] = []
      let now = 0
      const finish = (at: number, result: number) => {
        const [one] = running.splice(at, 1)
        if (one === undefined) return
        end(one.op, result)
        over.push({ ...one, to: now++, result })
      }
      for (const { which, result } of steps) {
        if (which < running.length) finish(which, result)
        else running.push({ op: begin(), from: now++ })
      }
      while (running.length > 0) finish(0, 0)
      const failures = over.filter(({ result }) => result === EIO)
      for (const { op, to, result } of over) {
        const isLost = failures.some(({ from }) => from < to)
        t.is(results.get(op), result === 0 && isLost ? EIO : result)
      }
    }),
    { numRuns: 3000 },
  )
})
