// Child processes beside a queue at work: fork(2) copies none of the arena, and no operation notices.

import { execFile, fork, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { pattern, random } from './helpers/random.js'
import { assertIdle, ring } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

const MIB = 1 << 20
const PAGE = 4096
/** No arena is larger; AddressSanitizer's own mappings are. */
const ARENA_BYTES_MAX = 64n << 30n

interface MemoryMap {
  readonly start: bigint
  readonly end: bigint
  readonly flags: readonly string[]
}

/** The private, writable mappings of this process that are of no file, with their flags. proc(5). */
function memoryMaps(): MemoryMap[] {
  const maps: { start: bigint; end: bigint; flags: string[] }[] = []
  let last: (typeof maps)[number] | undefined
  for (const line of fs.readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const header = /^([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ (\d+)/.exec(line)
    if (header !== null) {
      const [, start, end, access, inode] = header
      last =
        access === 'rw-p' && inode === '0'
          ? { start: BigInt(`0x${start}`), end: BigInt(`0x${end}`), flags: [] }
          : undefined
      if (last !== undefined) maps.push(last)
    } else if (line.startsWith('VmFlags:')) {
      last?.flags.push(...line.split(' ').slice(1).filter(Boolean))
    }
  }
  return maps.filter(({ start, end }) => end - start <= ARENA_BYTES_MAX)
}

/** Memory that begins no page, wherever malloc(3) finds it: it gives multiples of 16 bytes. */
function apart(length: number): Buffer {
  return Buffer.from(new ArrayBuffer(8 + length), 8)
}

/** Which of the marks begin a page of the mapping: chunks begin with pages, and our copies do not. */
function marksIn(memory: number, { start, end }: MemoryMap, marks: readonly Buffer[]): number[] {
  const found = new Set<number>()
  const bytes = apart(MIB)
  for (let at = start; at < end; at += BigInt(MIB)) {
    let count = 0
    try {
      count = fs.readSync(memory, bytes, 0, Math.min(MIB, Number(end - at)), at)
    } catch {
      // A part that cannot be read: [vvar] and the like.
    }
    for (let page = 0; page + 16 <= count; page += PAGE) {
      for (const [i, mark] of marks.entries()) {
        if (bytes.compare(mark, 0, 16, page, page + 16) === 0) found.add(i)
      }
    }
  }
  return [...found]
}

test.serial('every mapping of the arena is left out of a fork', async (t) => {
  // Large slabs of all three kinds of memory, registered and not.
  const queue = ring(t, { arena: { slabBytes: 4 * MIB } })
  const names = ['alloc', 'a long alloc', 'bounce', 'result'] as const
  const marks = names.map((_, i) => {
    const [mark, r] = [apart(16), random(4711 + i)]
    for (let at = 0; at < 16; at++) mark[at] = r.below(256)
    return mark
  })
  const [short, long, bounce, result] = marks as [Buffer, Buffer, Buffer, Buffer]
  const page = apart(PAGE)
  page.set(bounce)
  const at = scratch(t, page)
  const direct = await queue.open(at, 'r', { direct: true }).catch(() => undefined)
  await direct?.readAt(queue.alloc(PAGE), 0)
  queue.alloc(PAGE).set(short)
  const kept = [queue.alloc(16 * MIB), queue.alloc(PAGE)]
  kept[0]?.set(long)
  kept[1]?.set(short)
  const file = await queue.open(at)
  // The chunk keeps what came until somebody else has it.
  await file.readAt(apart(100), 0)
  const big = apart(MIB)
  big.set(result)
  const given = await (await queue.open(scratch(t, big))).bytesAt(0, MIB)
  t.is(given.compare(big), 0)

  const memory = fs.openSync('/proc/self/mem', 'r')
  t.teardown(() => fs.closeSync(memory))
  const seen = new Set<number>()
  for (const map of memoryMaps()) {
    for (const mark of marksIn(memory, map, marks)) {
      seen.add(mark)
      const where = `${names[mark]} at ${map.start.toString(16)}: ${map.flags.join(' ')}`
      t.true(map.flags.includes('dc'), where)
    }
  }
  t.deepEqual(
    [...seen].sort(),
    [...marks.keys()],
    `found ${[...seen].map((mark) => names[mark]).join(', ')}`,
  )
  t.is(kept.length, 2)
})

test.serial('children started while a queue is at work harm none of its data', async (t) => {
  t.timeout(100_000)
  const queue = ring(t)
  const place = folder(t)
  const content = pattern(8 * MIB)
  fs.writeFileSync(path.join(place, 'data'), content)
  const data = await queue.open(path.join(place, 'data'))
  const direct = await queue.open(path.join(place, 'data'), 'r', { direct: true }).catch(() => data)
  const out = await queue.open(path.join(place, 'out'), 'w+')
  const pipe = await queue.open(fifo(t), 'r+')
  // Under way the whole time, and written to by a child.
  const waiting = pipe.readAt(queue.alloc(100), 0)
  let [going, wrong, done] = [true, 0, 0]
  const work = Array.from({ length: 24 }, async (_, i) => {
    const r = random(i)
    const mine = queue.alloc(64 << 10)
    while (going) {
      const from = r.below(1000) * 4096
      const plain = Buffer.alloc(1 + r.below(mine.length))
      const reads = [
        (i % 2 === 0 ? data : direct).readAt(mine, from),
        data.readAt(plain, from),
        data.bytesAt(from, 300_000),
      ] as const
      const bytes = await reads[2]
      if ((await reads[0]) !== mine.length || (await reads[1]) !== plain.length) wrong++
      for (const buffer of [mine, plain, bytes]) {
        if (buffer.compare(content, from, from + buffer.length) !== 0) wrong++
      }
      // In place, while children are made.
      if ((await out.writeAt(mine, i * mine.length)) !== mine.length) wrong++
      const back = await out.bytesAt(i * mine.length, mine.length)
      if (back.compare(mine) !== 0) wrong++
      done++
    }
  })
  const execute = promisify(execFile)
  let children = 0
  while (children < 60 || done < 300) {
    t.is(spawnSync('true').status, 0)
    const { stdout } = await execute('sh', ['-c', 'exec ls -l /proc/self/fd'])
    t.true(stdout.includes('pipe') || stdout.includes('socket'), stdout)
    const ours = ['[io_uring]', '[eventfd]', place, pipe.path as string]
    t.deepEqual(
      ours.filter((name) => stdout.includes(name)),
      [],
      'descriptors of ours that the child has',
    )
    await new Promise((resolve) => spawn('true').once('exit', resolve))
    children += 3
  }
  // A whole Node by fork(), with a channel to this one.
  const program = path.join(place, 'child.mjs')
  fs.writeFileSync(program, `process.send('hello'); process.disconnect()`)
  const child = fork(program, { execArgv: [] })
  t.is(await new Promise((resolve) => child.once('message', resolve)), 'hello')
  spawnSync('sh', ['-c', `printf from-a-child > "$0"`, pipe.path as string])
  t.is(await waiting, 12)
  going = false
  await Promise.all(work)
  t.is(wrong, 0)
  assertIdle(t, queue)
})
