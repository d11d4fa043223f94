/**
 * What is measured of many operations at once: batches beside C with the same batch, volume reads past
 * the cache beside fio, commits that callers share beside node:fs, and how others fare meanwhile. The
 * numbers behind `atMost` and `atLeast` are promises; nothing here is tuned to them.
 */
import { closeSync, openSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { op, Queue } from 'node-uring'
import { canMove } from './cpus.js'
import {
  type Bench,
  BLOCK_BYTES,
  cacheKeeper,
  FILE_BYTES,
  fioSides,
  type Group,
  KIB,
  MIB,
  openBoth,
} from './group.js'
import { inProcess, spreadOf, valueFinding } from './harness.js'
import {
  Blocks,
  durableAppends,
  durableHandleWrites,
  durableSyncWrites,
  handleReadsTogether,
  nopsAtOnce,
  nopsTogether,
  readManys,
  submits,
  syncedAppends,
  timerGapsBeside,
  times,
} from './loops.js'
import { floorSide } from './programs.js'
import { cachedFile, directFile, mountOf, xfsInMemory } from './scratch.js'

const BATCH = 1024

export const MANY_GROUPS: readonly Group[] = [
  { name: 'nops', about: 'nops by the batch beside C', run: nopsGroup },
  { name: 'many', about: 'cached 4 KiB reads by the batch', run: manyGroup },
  { name: 'many-direct', about: 'the same past the cache, on the disk', run: directGroup },
  { name: 'many-xfs', about: 'the same on XFS in memory (root)', run: xfsGroup },
  { name: 'commit', about: 'durable appends by 64 callers', run: commitGroup },
  {
    name: 'fair',
    about: 'how timers and single reads fare beside a million operations',
    run: fairGroup,
  },
]

async function nopsGroup(bench: Bench): Promise<void> {
  const queue = new Queue()
  const batch = times(BATCH, () => op.nop())
  await bench.contest<string>({
    name: `nops(${BATCH})`,
    sides: {
      ring: inProcess('node-uring', (n) => nopsAtOnce(queue, BATCH, n)),
      together: inProcess('node-uring, Promise.all', (n) => nopsTogether(queue, BATCH, n)),
      submit: inProcess('node-uring, submit', (n) => submits(queue, batch, n)),
      c: floorSide(`C, batch ${BATCH}`, bench.floor, 'nop', '--batch', `${BATCH}`),
    },
    rows: [
      {
        cell: `nops(${BATCH})`,
        measure: 'time',
        ours: 'ring',
        theirs: 'c',
        target: { atMost: 1.15 },
      },
      {
        cell: `nop ×${BATCH} by Promise.all`,
        measure: 'time',
        ours: 'together',
        theirs: 'c',
        target: { atMost: 2.6 },
      },
    ],
  })
  await queue.close()
}

async function manyGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'many.bin', FILE_BYTES)
  const { queue, file, handle, close } = await openBoth(path, false)
  const target = queue.alloc(BATCH * BLOCK_BYTES)
  const plain = new Uint8Array(BATCH * BLOCK_BYTES)
  const buffers = times(BATCH, () => new Uint8Array(BLOCK_BYTES))
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const floor = ['read', '--file', path, '--registered-file', '--batch', `${BATCH}`]
  const cell = `readMany 4 KiB cached ×${BATCH}`
  await bench.contest<string>({
    name: cell,
    before: cacheKeeper(path),
    sides: {
      ring: inProcess('node-uring', (n) => readManys(file, [target], BLOCK_BYTES, blocks, n)),
      plain: inProcess('node-uring, plain memory', (n) =>
        readManys(file, [plain], BLOCK_BYTES, blocks, n),
      ),
      c: floorSide(`C, batch ${BATCH}`, bench.floor, ...floor),
      promises: inProcess('fs/promises, Promise.all', (n) =>
        handleReadsTogether(handle, buffers, blocks, n),
      ),
    },
    rows: [
      { cell, measure: 'time', ours: 'ring', theirs: 'c', target: { atMost: 1.1 } },
      { cell, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 5 } },
      {
        cell: `${cell}, plain memory`,
        measure: 'rate',
        ours: 'plain',
        theirs: 'promises',
        target: { atLeast: 3.5 },
      },
    ],
  })
  await close()
}

async function directGroup(bench: Bench): Promise<void> {
  await directReads(bench, bench.folder, mountOf(bench.folder).type)
}

async function xfsGroup(bench: Bench): Promise<void> {
  const volume = xfsInMemory(bench.folder, FILE_BYTES * 2)
  try {
    await directReads(bench, volume.folder, 'xfs in memory')
  } finally {
    volume.unmount()
  }
}

/** Reads under way at once, as fio has them: the queue bounds what its calls keep with the kernel. */
const DEPTH = 128
/** Reads of a long call: 8 MiB, which is registered; larger memory is not. */
const LONG = 2048

async function directReads(bench: Bench, folder: string, type: string): Promise<void> {
  const writer = new Queue()
  const path = directFile(folder, 'many-direct.bin', FILE_BYTES, writer.alloc(MIB))
  await writer.close()
  const options = { entries: DEPTH, cqEntries: DEPTH }
  const { queue, file, close } = await openBoth(path, true, options)
  // Two calls of 2 MiB, so that there are reads to go on with when one of them ends.
  const both = queue.alloc(8 * DEPTH * BLOCK_BYTES)
  const halves = [both.subarray(0, both.length / 2), both.subarray(both.length / 2)]
  const long = [queue.alloc(LONG * BLOCK_BYTES)]
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const floor = ['read', '--file', path, '--direct', '--registered-file', '--fixed-buffers']
  const cell = `readMany 4 KiB O_DIRECT on ${type} ×${DEPTH}`
  const longCell = `${cell}, by calls of 8 MiB`
  const rate = { measure: 'rate', target: { atLeast: 0.98 } } as const
  const cpu = { measure: 'cpu', target: { atMost: 1.1 } } as const
  await bench.contest<string>({
    name: cell,
    onOneCpu: canMove(),
    sides: {
      ring: inProcess('node-uring', (n) => readManys(file, halves, BLOCK_BYTES, blocks, n)),
      long: inProcess('node-uring, 8 MiB', (n) => readManys(file, long, BLOCK_BYTES, blocks, n)),
      c: floorSide('C, 8 MiB', bench.floor, ...floor, '--memory', `${LONG}`),
      ...fioSides(bench, path, true),
    },
    rows: [
      ...(bench.fio
        ? [
            { cell, ours: 'ring', theirs: 'fio', ...rate },
            { cell, ours: 'ring', theirs: 'fio', ...cpu },
            { cell: longCell, ours: 'long', theirs: 'fio', ...rate },
            { cell: longCell, ours: 'long', theirs: 'fio', ...cpu },
          ]
        : []),
      { cell: longCell, ours: 'long', theirs: 'c', ...rate },
    ],
  })
  await close()
}

async function commitGroup(bench: Bench): Promise<void> {
  const record = new Uint8Array(256).fill(7)
  const queue = new Queue()
  const paths = ['ring', 'promises', 'sync'].map((name) => join(bench.folder, `log-${name}`))
  const [ring, promises, sync] = paths as [string, string, string]
  const file = await queue.open(ring, 'a')
  const handle = await open(promises, 'a')
  const fd = openSync(sync, 'a')
  const cell = `durable append ×64 on ${mountOf(bench.folder).type}`
  await bench.contest({
    name: cell,
    sides: {
      ring: inProcess('node-uring, commit', (n) => durableAppends(queue, file, record, 64, n)),
      synced: inProcess('node-uring, datasync', (n) => syncedAppends(file, record, 64, n)),
      promises: inProcess('fs/promises', (n) => durableHandleWrites(handle, record, 64, n)),
      sync: inProcess('fs.writeSync', (n) => durableSyncWrites(fd, record, n)),
    },
    rows: [
      { cell, measure: 'rate', ours: 'ring', theirs: 'sync', target: { atLeast: 8 } },
      { cell, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 4 } },
      {
        cell: `${cell}, { datasync: true }`,
        measure: 'rate',
        ours: 'synced',
        theirs: 'promises',
        target: { atLeast: 4 },
      },
    ],
  })
  await queue.close()
  await handle.close()
  closeSync(fd)
  for (const path of paths) rmSync(path)
}

async function fairGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'fair.bin', 16 * MIB)
  const queue = new Queue()
  const file = await queue.open(path)
  const other = await queue.open(path)
  const count = 1_000_000
  const length = 16
  const target = queue.alloc(count * length)
  const positions = Float64Array.from({ length: count }, (_, i) => (i * 7919) % (16 * MIB - length))
  const big = queue.alloc(16_384 * 4 * KIB)
  const bigPositions = positions.subarray(0, 16_384)
  const works = {
    'a million nops': () => queue.nops(count),
    'readMany of a million': () => file.readMany(positions, length, target),
    'readMany of 16,384 × 4 KiB': () => file.readMany(bigPositions, 4 * KIB, big),
    'submit of a million nops': () => queue.submit(new Array(count).fill(op.nop())),
  }
  for (const [name, work] of Object.entries(works)) {
    const gaps: number[] = []
    const latencies: number[] = []
    for (let round = 0; round < bench.settings.rounds; round++) {
      bench.progress.show(`beside ${name}: round ${round + 1} of ${bench.settings.rounds}`)
      let reading = true
      const small = queue.alloc(4096)
      const single = async () => {
        while (reading) {
          const from = performance.now()
          await other.readAt(small, 0)
          latencies.push((performance.now() - from) * 1000)
          await new Promise((resolve) => setTimeout(resolve, 1))
        }
      }
      const reads = single()
      gaps.push(spreadOf(await timerGapsBeside(work, bench.settings.roundMs * 2)).median)
      reading = false
      await reads
    }
    const cell = `median gap of a 1 ms timer beside ${name}`
    bench.keep(valueFinding(cell, 'node-uring', 'ms', gaps, { atMost: 1.5 }))
    latencies.sort((a, b) => a - b)
    const p99 = latencies[Math.floor(latencies.length * 0.99)] ?? 0
    const read = `p99 of a single cached 4 KiB read beside ${name}`
    bench.keep(valueFinding(read, 'node-uring', 'µs', [p99], { atMost: 2000 }))
  }
  await queue.close()
}
