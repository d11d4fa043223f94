// What the syncs of a file come to: a success counts when all that ran beside it succeeded, and not after a
// failure. Their results are made up here; commit.test and faults-devices.test have real ones.

import test from 'ava'
import fc from 'fast-check'
import {
  FLAG_DRAIN,
  OP_FSYNC,
  OP_READ,
  OP_SPLICE,
  OP_SYNC_FILE_RANGE,
  OP_WRITE,
  OP_WRITEV,
} from '../src/backend.ts'
import { Fifo } from '../src/fifo.ts'
import type { FileState } from '../src/file-state.ts'
import { DSYNC } from '../src/modifiers.ts'
import { Operation } from '../src/slots.ts'
import { isSync, noteSync, Syncs } from '../src/syncs.ts'

const [EIO, ECANCELED, EINTR, ENOSPC] = [-5, -125, -4, -28]
const [EDQUOT, EFBIG] = [-122, -27]

/** Syncs, and what each came to: nothing while that is not known. */
function watched() {
  const staged = new Set<number>()
  const results = new Map<Operation, number>()
  let slots = 0
  const goOn = (op: Operation, result: number) => {
    if (results.has(op)) throw new Error('twice')
    results.set(op, result)
  }
  const syncs = new Syncs((slot) => staged.has(slot), goOn)
  /** Stages one, which is submitted at once unless it is `kept`. */
  const begin = (kept = false, opcode = OP_FSYNC, runs = true): Operation => {
    const op = new Operation()
    op.opcode = opcode
    op.slot = slots++
    if (kept) staged.add(op.slot)
    syncs.add(op, runs)
    return op
  }
  const end = (op: Operation, result: number) => {
    staged.delete(op.slot)
    if (op.sync !== undefined) syncs.arrived(op.sync, result)
  }
  return { syncs, staged, results, begin, end }
}

test('a success waits for those that ran before it was over, and for no others', (t) => {
  const { results, begin, end } = watched()
  const [first, second] = [begin(), begin()]
  end(second, 0)
  t.false(results.has(second))
  const late = begin()
  end(first, 0)
  t.false(results.has(first), 'the last ran before it was over')
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

test('what was not done at all says nothing of the data', (t) => {
  const { results, begin, end } = watched()
  for (const harmless of [ECANCELED, EINTR]) {
    const [first, second] = [begin(), begin()]
    end(first, 0)
    end(second, harmless)
    t.deepEqual([results.get(first), results.get(second)], [0, harmless])
  }
})

test('nobody waits for one that is not submitted, is linked behind another, or drains', (t) => {
  const { syncs, staged, results, begin, end } = watched()
  const [kept, linked] = [begin(true), begin(false, OP_FSYNC, false)]
  const one = begin()
  end(one, 0)
  t.is(results.get(one), 0)
  staged.delete(kept.slot)
  if (linked.sync !== undefined) syncs.begins(linked.sync)
  const other = begin()
  end(other, 0)
  end(kept, 0)
  t.false(results.has(other), 'both run now')
  end(linked, 0)
  t.deepEqual(
    [kept, linked, other].map((op) => results.get(op)),
    [0, 0, 0],
  )
})

test('as it is noted, what drains runs by itself and what is linked behind another when that is over', (t) => {
  const { syncs, results, begin, end } = watched()
  const note = (opcode: number, flags: number, before?: Operation): Operation => {
    const op = new Operation()
    Object.assign(op, { opcode, flags, file: { dsync: false, syncs } })
    noteSync(op, before)
    return op
  }
  const write = note(OP_WRITE, 0)
  t.is(write.sync, undefined)
  const linked = note(OP_FSYNC, 0, write)
  t.true(linked.sync !== undefined && write.follower === linked.sync)
  const drains = note(OP_FSYNC, FLAG_DRAIN)
  const beside = begin()
  end(beside, 0)
  t.is(results.get(beside), 0, 'neither runs beside it')
  const plain = note(OP_FSYNC, 0)
  const other = begin()
  end(other, 0)
  t.false(results.has(other), 'this one does')
  for (const op of [plain, drains, linked]) end(op, 0)
  t.deepEqual(
    [other, plain, drains, linked].map((op) => results.get(op)),
    [0, 0, 0, 0],
  )
})

test('one that is cancelled is not held, and one that is held is cancelled without the others', (t) => {
  const { syncs, results, begin, end } = watched()
  const [first, second, third] = [begin(), begin(), begin()]
  first.cancelled = true
  end(first, 0)
  t.is(results.get(first), ECANCELED)
  end(second, 0)
  t.false(results.has(second))
  if (second.sync !== undefined) syncs.cancel(second.sync)
  t.is(results.get(second), ECANCELED)
  end(third, 0)
  t.is(results.get(third), 0)
})

test('the fdatasync behind a write that is cancelled is not held', (t) => {
  const { results, begin, end } = watched()
  const [write, companion, other] = [new Operation(), begin(), begin()]
  companion.behind = write
  write.cancelled = true
  end(companion, 0)
  t.is(results.get(companion), ECANCELED)
  end(other, 0)
  t.is(results.get(other), 0)
})

test('a write that is done and cancelled while it is held has written what it has', (t) => {
  const { syncs, results, begin, end } = watched()
  const [sync, write, late] = [begin(), begin(false, OP_WRITE), begin(false, OP_WRITE)] as const
  end(write, 100)
  if (write.sync !== undefined) syncs.cancel(write.sync)
  late.cancelled = true
  end(late, 50)
  t.deepEqual([results.get(write), write.done], [ECANCELED, 100])
  t.deepEqual([results.get(late), late.done], [ECANCELED, 50])
  end(sync, 0)
  t.is(results.get(sync), 0)
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

// What a failed write-back is told as: ENOSPC is what ext4 has for a store that is full.
for (const failure of [EIO, ENOSPC, EDQUOT]) {
  test(`a write that syncs itself fails beside a failure, not after one, and ${failure} is one of its own`, (t) => {
    const { results, begin, end } = watched()
    const writes = [begin(false, OP_WRITE), begin(false, OP_WRITE), begin(false, OP_WRITE)] as const
    end(writes[0], EFBIG)
    const sync = begin()
    end(writes[1], failure)
    end(writes[2], 100)
    end(sync, 0)
    t.deepEqual(
      [...writes, sync].map((op) => results.get(op)),
      [EFBIG, failure, failure, failure],
    )
    t.is(writes[2].done, 100, 'it is written, if not for good')
    const later = begin(false, OP_WRITE)
    end(later, 100)
    t.is(results.get(later), 100)
  })
}

test('syncs are what syncs a file: fsync, sync_file_range, and writes that are told to', (t) => {
  const op = new Operation()
  const told = (opcode: number, flags = 0, dsync = false): boolean => {
    op.file = { dsync } as FileState
    op.opcode = opcode
    op.flags = flags
    return isSync(op)
  }
  for (const opcode of [OP_FSYNC, OP_SYNC_FILE_RANGE]) t.true(told(opcode))
  for (const opcode of [OP_WRITE, OP_WRITEV, OP_SPLICE]) {
    t.true(told(opcode, DSYNC))
    t.true(told(opcode, 0, true))
    t.false(told(opcode))
  }
  t.false(told(OP_READ, 0, true))
  op.file = undefined
  op.opcode = OP_FSYNC
  t.false(isSync(op))
})

test('very many at once take no longer for each than a few', (t) => {
  const { syncs, results, begin, end } = watched()
  const first = begin()
  const all = Array.from({ length: 200_000 }, () => begin())
  for (const op of all) end(op, 0)
  t.is(results.size, 0)
  for (const op of all.slice(0, 100_000)) if (op.sync !== undefined) syncs.cancel(op.sync)
  end(first, 0)
  t.is(results.size, 200_001)
  t.is([...results.values()].filter((result) => result === ECANCELED).length, 100_000)
})

test('in whatever order they run and end, none succeeds beside a failure or after one', (t) => {
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

test('a FIFO that is empty has no last to take, and keeps what comes', (t) => {
  const fifo = new Fifo<number>()
  for (const one of [1, 2]) fifo.push(one)
  for (const one of [1, 2]) {
    t.is(fifo.first, one)
    fifo.shift()
  }
  fifo.shift()
  t.is(fifo.last, undefined)
  fifo.pop()
  for (const one of [3, 4]) fifo.push(one)
  t.deepEqual([fifo.first, fifo.last], [3, 4])
  fifo.pop()
  t.deepEqual([fifo.first, fifo.last], [3, 3])
})
