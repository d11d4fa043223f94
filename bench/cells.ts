/**
 * What is measured: the groups, their sides, and the rows with what the project asks of itself. The
 * numbers behind `atMost` and `atLeast` are promises; nothing here is tuned to them.
 */
import { fork } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { closeSync, openSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Queue } from 'node-uring'
import { MANY_GROUPS } from './cells-many.js'
import { REGISTERED_GROUPS } from './cells-registered.js'
import { THREAD_GROUPS } from './cells-threads.js'
import {
  type Bench,
  BLOCK_BYTES,
  cacheKeeper,
  FILE_BYTES,
  fioRows,
  fioSides,
  type Group,
  KIB,
  MIB,
  openBoth,
} from './group.js'
import { inProcess, type Row, spreadOf, valueFinding } from './harness.js'
import {
  Blocks,
  bytesAts,
  callbackReads,
  callbackWrites,
  freshHandleReads,
  handleReads,
  nops,
  promises,
  readAts,
  syncReads,
  timerGapsMs,
  times,
  writeAts,
} from './loops.js'
import { endWithUs, floorSide } from './programs.js'
import { cachedFile, directFile, mountOf, xfsInMemory } from './scratch.js'

const LARGE_BYTES = MIB

export const GROUPS: readonly Group[] = [
  { name: 'nop', about: 'awaited nops beside C', run: nopGroup },
  { name: 'cached', about: '4 KiB random reads of cached data', run: cachedGroup },
  { name: 'direct', about: '4 KiB random reads past the cache, on the disk', run: directGroup },
  { name: 'xfs', about: 'the same on XFS in memory (root)', run: xfsGroup },
  { name: 'write', about: '4 KiB writes into the cache', run: writeGroup },
  { name: 'large', about: '64 KiB and 1 MiB reads of cached data', run: largeGroup },
  { name: 'watched', about: 'cached reads while somebody watches', run: watchedGroup },
  { name: 'heap', about: 'what two million operations leave on the heap', run: heapGroup },
  { name: 'timer', about: 'how timers fare beside nops', run: timerGroup },
  ...MANY_GROUPS,
  ...THREAD_GROUPS,
  ...REGISTERED_GROUPS,
]

async function nopGroup(bench: Bench): Promise<void> {
  const queue = new Queue()
  for (const atOnce of [128, 1024, 1]) {
    const cell = atOnce === 1 ? 'nop, one at a time' : `nop ×${atOnce}`
    await bench.contest<'ring' | 'c' | 'alone'>({
      name: cell,
      sides: {
        ring: inProcess('node-uring', (n) => nops(queue, atOnce, n)),
        c: floorSide(`C, batch ${atOnce}`, bench.floor, 'nop', '--batch', `${atOnce}`),
        alone: inProcess('promises alone', (n) => promises(atOnce, n)),
      },
      rows: [
        {
          cell,
          measure: 'time',
          ours: 'ring',
          theirs: 'c',
          target: { atMost: atOnce === 1 ? 3.4 : 2.6 },
        },
      ],
    })
  }
  await queue.close()
}

async function cachedGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'cached.bin', FILE_BYTES)
  const { queue, file, handle, close } = await openBoth(path, false)
  const arena = times(128, () => queue.alloc(BLOCK_BYTES))
  const plain = times(128, () => new Uint8Array(BLOCK_BYTES))
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const one = arena.slice(0, 1)
  const before = cacheKeeper(path)
  const floor = ['read', '--file', path, '--registered-file']
  const { fd } = handle

  const name = 'read 4 KiB cached ×128'
  const cell = `${name}, arena`
  await bench.contest({
    name,
    before,
    sides: {
      ring: inProcess('node-uring', (n) => readAts(file, arena, blocks, n)),
      plain: inProcess('node-uring, plain buffer', (n) => readAts(file, plain, blocks, n)),
      c: floorSide('C', bench.floor, ...floor),
      sync: inProcess('fs.readSync', (n) => syncReads(fd, plain[0] as Uint8Array, blocks, n)),
      promises: inProcess('fs/promises', (n) => handleReads(handle, plain, blocks, n)),
      callback: inProcess('fs.read', (n) => callbackReads(fd, plain, blocks, n)),
      ...fioSides(bench, path, false),
    },
    rows: [
      { cell, measure: 'time', ours: 'ring', theirs: 'c', target: { atMost: 1.35 } },
      { cell, measure: 'time', ours: 'ring', theirs: 'sync', target: { atMost: 1.1 } },
      { cell, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 4 } },
      { cell, measure: 'rate', ours: 'ring', theirs: 'callback', target: { atLeast: 1 } },
      { cell, measure: 'cpu', ours: 'ring', theirs: 'callback', target: { atMost: 0.6 } },
      {
        cell: `${name}, plain buffer`,
        measure: 'rate',
        ours: 'plain',
        theirs: 'promises',
        target: { atLeast: 3.5 },
      },
      ...fioRows(bench, name, false),
    ],
  })

  const alone = 'read 4 KiB cached, one at a time'
  await bench.contest({
    name: alone,
    before,
    sides: {
      ring: inProcess('node-uring', (n) => readAts(file, one, blocks, n)),
      promises: inProcess('fs/promises', (n) => handleReads(handle, one, blocks, n)),
    },
    rows: [
      {
        cell: alone,
        measure: 'rate',
        ours: 'ring',
        theirs: 'promises',
        target: { atLeast: 10 },
      },
    ],
  })
  await close()
}

async function watchedGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'watched.bin', FILE_BYTES)
  const one = await openBoth(path, false)
  const kept = await openBoth(path, false, { latency: true })
  const memory = ({ queue }: { queue: Queue }) => times(128, () => queue.alloc(BLOCK_BYTES))
  const [arena, keptArena] = [memory(one), memory(kept)]
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const name = 'read 4 KiB cached ×128'
  const reads = (n: number) => readAts(one.file, arena, blocks, n)
  const traced = async (n: number) => {
    const nobody = () => {}
    subscribe('tracing:node-uring:operation:asyncEnd', nobody)
    try {
      return await reads(n)
    } finally {
      unsubscribe('tracing:node-uring:operation:asyncEnd', nobody)
    }
  }
  await bench.contest<'ring' | 'kept' | 'traced'>({
    name: `${name}, watched`,
    before: cacheKeeper(path),
    sides: {
      ring: inProcess('node-uring', reads),
      kept: inProcess('with latency: true', (n) => readAts(kept.file, keptArena, blocks, n)),
      traced: inProcess('with a subscriber', traced),
    },
    rows: [
      {
        cell: `${name}, latency histograms`,
        measure: 'time',
        ours: 'kept',
        theirs: 'ring',
        target: { atMost: 1.15 },
      },
    ],
  })
  await one.close()
  await kept.close()
}

async function directGroup(bench: Bench): Promise<void> {
  const { type } = mountOf(bench.folder)
  await directReads(bench, bench.folder, `read 4 KiB O_DIRECT on ${type}`, (cell) => [
    { cell, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 2 } },
    { cell, measure: 'cpu', ours: 'ring', theirs: 'promises', target: { atMost: 0.2 } },
  ])
}

async function xfsGroup(bench: Bench): Promise<void> {
  const volume = xfsInMemory(bench.folder, FILE_BYTES * 2)
  try {
    await directReads(bench, volume.folder, 'read 4 KiB O_DIRECT on xfs in memory', (cell) => [
      { cell, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 4 } },
    ])
  } finally {
    volume.unmount()
  }
}

type DirectSide = 'ring' | 'promises' | 'c' | 'fio'

async function directReads(
  bench: Bench,
  folder: string,
  what: string,
  rows: (cell: string) => Row<DirectSide>[],
): Promise<void> {
  const writer = new Queue()
  const path = directFile(folder, 'direct.bin', FILE_BYTES, writer.alloc(MIB))
  await writer.close()
  const { queue, file, handle, close } = await openBoth(path, true)
  // Node has no aligned memory: the queue's serves both.
  const buffers = times(128, () => queue.alloc(BLOCK_BYTES))
  const blocks = new Blocks(FILE_BYTES, BLOCK_BYTES)
  const floor = ['read', '--file', path, '--direct', '--registered-file', '--fixed-buffers']
  const cell = `${what} ×128`
  await bench.contest<DirectSide>({
    name: cell,
    sides: {
      ring: inProcess('node-uring', (n) => readAts(file, buffers, blocks, n)),
      promises: inProcess('fs/promises', (n) => handleReads(handle, buffers, blocks, n)),
      c: floorSide('C', bench.floor, ...floor),
      ...fioSides(bench, path, true),
    },
    rows: [...fioRows(bench, cell, true), ...rows(cell)],
  })
  await close()
}

async function writeGroup(bench: Bench): Promise<void> {
  const bytes = FILE_BYTES / 4
  const path = cachedFile(bench.folder, 'written.bin', bytes)
  const queue = new Queue()
  const file = await queue.open(path, 'r+')
  const fd = openSync(path, 'r+')
  const arena = times(128, () => queue.alloc(BLOCK_BYTES).fill(1))
  const plain = times(128, () => new Uint8Array(BLOCK_BYTES).fill(2))
  const blocks = new Blocks(bytes, BLOCK_BYTES)
  const cell = `write 4 KiB cached on ${mountOf(bench.folder).type} ×128`
  await bench.contest({
    name: cell,
    before: cacheKeeper(path),
    sides: {
      ring: inProcess('node-uring', (n) => writeAts(file, arena, blocks, n)),
      callback: inProcess('fs.write', (n) => callbackWrites(fd, plain, blocks, n)),
    },
    rows: [{ cell, measure: 'rate', ours: 'ring', theirs: 'callback', target: { atLeast: 1.1 } }],
  })
  closeSync(fd)
  await queue.close()
}

async function largeGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'large.bin', FILE_BYTES)
  const { queue, file, handle, close } = await openBoth(path, false)
  const arena = times(8, () => queue.alloc(LARGE_BYTES))
  const plain = times(8, () => new Uint8Array(LARGE_BYTES))
  const blocks = new Blocks(FILE_BYTES, LARGE_BYTES)
  const before = cacheKeeper(path)

  for (const [name, length, most] of [
    ['64 KiB', 64 * KIB, 1.15],
    ['1 MiB', LARGE_BYTES, 1.5],
  ] as const) {
    const places = new Blocks(FILE_BYTES, length)
    const inPlace = arena.map((buffer) => buffer.subarray(0, length))
    const copied = plain.map((buffer) => buffer.subarray(0, length))
    const given = `read ${name} cached ×8, arena`
    await bench.contest({
      name: given,
      before,
      sides: {
        ring: inProcess('node-uring', (n) => readAts(file, inPlace, places, n)),
        plain: inProcess('node-uring, plain buffer', (n) => readAts(file, copied, places, n)),
        promises: inProcess('fs/promises', (n) => handleReads(handle, copied, places, n)),
      },
      rows: [
        { cell: given, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 1 } },
        {
          cell: `read ${name} cached ×8, plain`,
          measure: 'time',
          ours: 'plain',
          theirs: 'ring',
          target: { atMost: most },
        },
      ],
    })
  }

  const fresh = 'read 1 MiB cached ×8, bytesAt'
  await bench.contest({
    name: fresh,
    before,
    sides: {
      ring: inProcess('node-uring', (n) => bytesAts(file, 8, LARGE_BYTES, blocks, n)),
      promises: inProcess('fs/promises, fresh', (n) =>
        freshHandleReads(handle, 8, LARGE_BYTES, blocks, n),
      ),
    },
    rows: [
      { cell: fresh, measure: 'rate', ours: 'ring', theirs: 'promises', target: { atLeast: 1 } },
    ],
  })
  await close()
}

async function heapGroup(bench: Bench): Promise<void> {
  const path = cachedFile(bench.folder, 'heap.bin', 16 * MIB)
  const operations = 2_000_000
  bench.progress.show(`heapUsed around ${operations} operations`)
  const rounds = Math.ceil(bench.settings.rounds / 3)
  const program = fileURLToPath(new URL('heap.ts', import.meta.url))
  const args = [path, 16 * MIB, operations, rounds].map(String)
  const growths = await new Promise<number[]>((resolve, reject) => {
    const child = fork(program, args, { execArgv: [...process.execArgv, '--expose-gc'] })
    const forget = endWithUs(child)
    let answer: number[] | undefined
    child.on('message', (message) => {
      answer = message as number[]
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      forget()
      if (answer !== undefined && code === 0) resolve(answer)
      else reject(new Error(`bench/heap.ts ended by ${signal ?? `exit code ${code}`}`))
    })
  })
  const rows = growths.map((bytes) => bytes / KIB)
  const cell = 'heapUsed grown by 2 million operations'
  bench.keep(valueFinding(cell, 'node-uring', 'KiB', rows, { atMost: 64 }))
}

async function timerGroup(bench: Bench): Promise<void> {
  const queue = new Queue()
  const rounds: number[] = []
  for (let round = 0; round <= bench.settings.rounds; round++) {
    bench.progress.show(`timer gaps: round ${round} of ${bench.settings.rounds}`)
    const gaps = await timerGapsMs(queue, 1024, bench.settings.roundMs * 2)
    if (round > 0) rounds.push(spreadOf(gaps).median)
  }
  const cell = 'median gap of a 1 ms timer, 1024 nops in flight'
  bench.keep(valueFinding(cell, 'node-uring', 'ms', rounds, { atMost: 1.5 }))
  await queue.close()
}
