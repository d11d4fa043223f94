/**
 * `node-uring bench`: reads or writes a file at several sizes and depths, by node-uring and by
 * node:fs in turns, and prints both beside each other. What it makes it removes.
 */
import { randomFillSync } from 'node:crypto'
import {
  accessSync,
  closeSync,
  constants,
  openSync,
  readFileSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { availableParallelism, loadavg, release } from 'node:os'
import { dirname } from 'node:path'
import { Queue } from '../queue.js'
import { chart, type Group } from './bench/chart.js'
import { type Cell, type Kind, type Side, sideNames, sidesOf, type Target } from './bench/sides.js'
import {
  type Command,
  Failure,
  integer,
  list,
  manifest,
  parse,
  size,
  UsageError,
} from './command.js'
import { onExit } from './ending.js'
import { gauge, type Paint, Progress, painter, table } from './terminal.js'
import { about, bytes } from './units.js'

const MIB = 1 << 20
/** What all buffers of one side may take together. */
const MEMORY_BYTES_MAX = 512 * MIB
const O_DIRECT = constants.O_DIRECT ?? 0

const USAGE = `\
node-uring bench: a file read or written by node-uring and by node:fs

Usage: npx node-uring bench FILE [OPTIONS]

  --write         writes; only into a file that it makes itself, or with --force
  --force         overwrite a FILE that is there
  --direct        bypass the page cache: O_DIRECT, on both sides
  --sizes LIST    sizes of a block (4K,64K,1M)
  --depths LIST   how many are under way at once (1,16,128)
  --length SIZE   length of the FILE that it makes where there is none (256M)
  --rounds N      rounds in which the sides take turns; the median counts (5)
  --ms N          how long a side runs in a round, in milliseconds (100)
  --json          the result as one JSON object
  --svg OUT.svg   a bar chart of it, too

A FILE that is not there is made, filled with random bytes, and removed at the
end. Blocks are at random places. ctrl-C leaves nothing behind.
`

export const bench: Command = {
  name: 'bench',
  summary: 'read or write a file by node-uring and by node:fs, and compare',
  usage: USAGE,
  async run(args) {
    const plan = planOf(args)
    const queue = new Queue({ backend: 'io_uring' })
    try {
      const there = statSync(plan.path, { throwIfNoEntry: false })
      const isOurs = there === undefined
      if (plan.svg !== undefined) checkChart(plan.svg, there)
      if (plan.kind === 'write' && !isOurs && !plan.force) {
        throw new Failure(`${plan.path} exists, and writing destroys it; --force does so.`)
      }
      const progress = new Progress()
      const remove = isOurs ? await make(queue, plan, progress) : () => {}
      const target = await openAll(queue, plan)
      const groups = await measureAll(queue, plan, target, progress)
      await target.handle.close()
      closeSync(target.fd)
      remove()
      progress.clear()
      tell(plan, target.lengthBytes, groups)
    } finally {
      await queue.close()
    }
  },
}

/** Found out before anything is measured: the chart has a place, which is not the file's. */
function checkChart(svg: string, measured: Stats | undefined): void {
  const there = statSync(svg, { throwIfNoEntry: false })
  if (there !== undefined && there.dev === measured?.dev && there.ino === measured.ino) {
    throw new UsageError(`--svg ${svg} is the FILE itself.`)
  }
  accessSync(there === undefined ? dirname(svg) : svg, constants.W_OK)
}

/** What was asked for. */
interface Plan {
  readonly path: string
  readonly kind: Kind
  readonly force: boolean
  readonly direct: boolean
  readonly cells: readonly Cell[]
  readonly lengthBytes: number
  readonly rounds: number
  readonly ms: number
  readonly json: boolean
  readonly svg: string | undefined
}

function planOf(args: string[]): Plan {
  const flag = { type: 'boolean', default: false } as const
  const text = { type: 'string' } as const
  const options = {
    ...{ write: flag, force: flag, direct: flag, json: flag, svg: text },
    sizes: { ...text, default: '4K,64K,1M' },
    depths: { ...text, default: '1,16,128' },
    length: { ...text, default: '256M' },
    rounds: { ...text, default: '5' },
    ms: { ...text, default: '100' },
  } as const
  const { values, positionals } = parse(args, options, ['FILE'])
  const least = values.direct ? 4096 : 1
  const sizes = list(values.sizes, (item) => size(item, '--sizes', least, 64 * MIB))
  const depths = list(values.depths, (item) => integer(item, '--depths', 1, 4096))
  const cells = sizes.flatMap((sizeBytes) => depths.map((depth) => ({ sizeBytes, depth })))
  if (values.direct && sizes.some((sizeBytes) => sizeBytes % 4096 !== 0)) {
    throw new UsageError('--direct wants --sizes that are multiples of 4096.')
  }
  for (const { sizeBytes, depth } of cells) {
    if (sizeBytes * depth <= MEMORY_BYTES_MAX) continue
    throw new UsageError(
      `${depth} blocks of ${bytes(sizeBytes)} at once are more than ${bytes(MEMORY_BYTES_MAX)}.`,
    )
  }
  return {
    path: positionals[0] ?? '',
    kind: values.write ? 'write' : 'read',
    cells,
    lengthBytes: size(values.length, '--length', Math.max(...sizes), 2 ** 40),
    rounds: integer(values.rounds, '--rounds', 1, 1000),
    ms: integer(values.ms, '--ms', 1, 60_000),
    ...{ force: values.force, direct: values.direct, json: values.json, svg: values.svg },
  }
}

/** Makes the file, filled. Returns what removes it; that is done at an interrupt, too. */
async function make(queue: Queue, plan: Plan, progress: Progress): Promise<() => void> {
  // It must be nobody else's.
  const file = await queue.open(plan.path, 'wx')
  const remove = onExit(() => rmSync(plan.path, { force: true }))
  let [next, done] = [0, 0]
  const lane = async (): Promise<void> => {
    const piece = randomFillSync(queue.alloc(MIB))
    while (next < plan.lengthBytes) {
      const position = next
      next += MIB
      const length = Math.min(MIB, plan.lengthBytes - position)
      // Other bytes each time, at least where a file system looks for equal blocks.
      piece.writeDoubleLE(position, 0)
      await file.writeAt(piece.subarray(0, length), position)
      done += length
      progress.show((width) => meter('making the file', done / plan.lengthBytes, width))
    }
    queue.free(piece)
  }
  try {
    await Promise.all(Array.from({ length: 8 }, lane))
    await file.datasync()
    await file.close()
  } catch (error) {
    remove()
    throw error
  }
  return remove
}

async function openAll(queue: Queue, plan: Plan): Promise<Target> {
  const { path, kind, direct } = plan
  const access = kind === 'read' ? constants.O_RDONLY : constants.O_RDWR
  // Before it is opened: a FIFO would wait for its other end.
  const lengthBytes = lengthOf(path)
  const file = await queue.open(path, access, { direct }).catch((error) => {
    if (!direct || error.code !== 'EINVAL') throw error
    throw new Failure(`The file system of ${path} takes no direct I/O.`)
  })
  const flags = access | (direct ? O_DIRECT : 0)
  const longest = Math.max(...plan.cells.map(({ sizeBytes }) => sizeBytes))
  if (lengthBytes < longest) {
    throw new Failure(`${path} has ${bytes(lengthBytes)}, which is no block of ${bytes(longest)}.`)
  }
  return { lengthBytes, file, handle: await open(path, flags), fd: openSync(path, flags) }
}

/** The length of a file or a block device. */
function lengthOf(path: string): number {
  const stats = statSync(path)
  if (stats.isFile()) return stats.size
  if (!stats.isBlockDevice()) throw new Failure(`${path} is neither a file nor a block device.`)
  const [major, minor] = [
    (stats.rdev >> 8) & 0xfff,
    (stats.rdev & 0xff) | ((stats.rdev >> 12) & 0xfff00),
  ]
  // In sectors of 512 bytes, whatever the device calls a sector. sysfs(5).
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * 512
}

/** Every cell: the sides in turns, the first turn to warm up; the median of the others. */
async function measureAll(
  queue: Queue,
  plan: Plan,
  target: Target,
  progress: Progress,
): Promise<Group[]> {
  const groups: Group[] = []
  for (const [i, cell] of plan.cells.entries()) {
    const ring = Array.from({ length: cell.depth }, () => queue.alloc(cell.sizeBytes).fill(1))
    // node:fs takes any memory; direct I/O takes what is aligned.
    const node = plan.direct
      ? ring
      : Array.from({ length: cell.depth }, () => Buffer.alloc(cell.sizeBytes, 1))
    const sides = sidesOf(plan.kind, cell, target, ring, node)
    const rates = await takeTurns(sides, plan, (part, name) => {
      const what = `${bytes(cell.sizeBytes)} ×${cell.depth}  ${name}`
      progress.show((width) => meter(what, (i + part) / plan.cells.length, width))
    })
    groups.push({
      ...cell,
      sides: sides.map(({ name }, side) => {
        const opsPerSecond = median(rates[side] ?? [])
        return { name, opsPerSecond, bytesPerSecond: opsPerSecond * cell.sizeBytes }
      }),
    })
    for (const buffer of ring) queue.free(buffer)
  }
  return groups
}

/** Operations a second, a list of rounds for each side. */
async function takeTurns(
  sides: readonly Side[],
  { rounds, ms }: Plan,
  onTurn: (part: number, name: string) => void,
): Promise<number[][]> {
  const rates: number[][] = sides.map(() => [])
  const operations: number[] = sides.map(() => 16)
  for (let round = 0; round <= rounds; round++) {
    for (const [side, { name, run }] of sides.entries()) {
      onTurn((round * sides.length + side) / ((rounds + 1) * sides.length), name)
      const wanted = operations[side] ?? 1
      const from = performance.now()
      await run(wanted)
      const tookMs = Math.max(performance.now() - from, 0.001)
      operations[side] = Math.max(1, Math.ceil((wanted / tookMs) * ms))
      // The first is short and cold: it tells how many make a round.
      if (round > 0) rates[side]?.push((wanted / tookMs) * 1000)
    }
  }
  return rates
}

function tell(plan: Plan, lengthBytes: number, groups: readonly Group[]): void {
  const { kind, path, direct, rounds, ms } = plan
  const heading = `${kind}s of ${path}, ${bytes(lengthBytes)}, ${direct ? 'direct' : 'through the page cache'}`
  const host = `Linux ${release()}, Node.js ${process.version}, node-uring ${manifest.version}`
  const method = `median of ${rounds} round${rounds === 1 ? '' : 's'} of ${ms} ms, blocks at random places`
  if (plan.svg !== undefined) {
    writeFileSync(
      plan.svg,
      chart(heading, groups, [
        `${host}; ${method}.`,
        'Bars are operations a second; each group has a scale of its own.',
      ]),
    )
  }
  if (plan.json) {
    const where = { version: manifest.version, node: process.version, kernel: release() }
    const what = { file: path, lengthBytes, operation: kind, direct, rounds, ms }
    process.stdout.write(`${JSON.stringify({ ...where, ...what, cells: groups }, null, 2)}\n`)
    return
  }
  const paint = painter(process.stdout)
  const chartLine = plan.svg === undefined ? '' : `The chart is in ${plan.svg}.\n`
  process.stdout.write(
    `${paint('bold', heading)}\n\n${rows(kind, groups, paint)}\n\n` +
      `×: how many times as fast node-uring is.\nEach is the ${method}.\n${host}.\n${chartLine}${busy()}`,
  )
}

/** Figures from a machine with other things to do are worth a word. */
function busy(): string {
  const [load = 0, cores] = [loadavg()[0], availableParallelism()]
  if (load <= cores) return ''
  return `This machine is busy (load ${load.toFixed(1)}, ${cores} CPUs): the next run may tell otherwise.\n`
}

/** The table: our rate, and beside it each other's and how many times it ours is. 80 columns. */
function rows(kind: Kind, groups: readonly Group[], paint: Paint): string {
  const [our = '', ...others] = sideNames(kind)
  const body = groups.map(({ sizeBytes, depth, sides }) => {
    const ours = sides[0] as (typeof sides)[number]
    const theirs = others.map((name) => {
      const side = sides.find((side) => side.name === name)
      if (side === undefined) return ''
      const ratio = times(ours.opsPerSecond / side.opsPerSecond, paint)
      return `${perSecond(side.opsPerSecond)} ${ratio}`
    })
    const throughput = `${bytes(ours.bytesPerSecond)}/s`.padStart(10)
    const name = `${bytes(sizeBytes)} ×${depth}`
    return [name, `${perSecond(ours.opsPerSecond)} ${throughput}`, ...theirs]
  })
  const all = table([['block', our, ...others], ...body], new Set([1, 2, 3, 4]))
  const [header = '', ...lines] = all.split('\n')
  return [paint('dim', header), ...lines].join('\n')
}

/** As wide as the widest, `99.9k/s`. */
function perSecond(rate: number): string {
  return `${about(rate)}/s`.padStart(7)
}

function times(ratio: number, paint: Paint): string {
  const text = `${ratio.toFixed(ratio < 9.95 ? 2 : 1)}×`.padStart(5)
  return ratio > 1.05 ? paint('green', text) : ratio < 0.95 ? paint('red', text) : text
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const [low, high] = [sorted[(sorted.length - 1) >> 1] ?? 0, sorted[sorted.length >> 1] ?? 0]
  return (low + high) / 2
}

function meter(what: string, part: number, width: number): string {
  const percent = `${Math.floor(part * 100)}%`.padStart(4)
  return `${gauge(part, Math.max(8, Math.min(30, width - 40)))}  ${percent}  ${what}`
}
