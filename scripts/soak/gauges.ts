/** What this process holds, as the kernel counts it in proc(5). Only looks. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as after } from 'node:timers/promises'
import { getHeapStatistics, setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

export interface Gauges {
  rssMiB: number
  descriptors: number
  rings: number
  threads: number
  /** Threads of the kernel's that work for rings. A thread that has had one keeps one of each kind. */
  kernelWorkers: number
  /** Without the pages of V8's heap: its young generation alone grows by some 120 when it likes. */
  mappings: number
  /** Mappings that a child does not get (`dc` in smaps), without those pages: arenas, and V8's code. */
  keptFromChildren: number
  /** Resident memory of those. */
  keptMiB: number
  /** Of V8's heap in this thread: what is mapped. */
  heapMiB: number
}

/** V8's heap is mapped by so much. */
const HEAP_PAGE_BYTES = 256 << 10
const MIB = 1 << 20

export function gauges(): Gauges {
  const status = readFileSync('/proc/self/status', 'utf8')
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1])
  const smaps = readFileSync('/proc/self/smaps', 'utf8')
  // Of each mapping: its resident KiB, and whether children get it.
  const kept = [...smaps.matchAll(/^Rss:\s+(\d+) kB$[\s\S]*?^VmFlags:(.*)$/gm)]
    .filter(([, , flags]) => / dc\b/.test(flags as string))
    .map(([, kib]) => Number(kib))
  const heap = getHeapStatistics()
  const heapPages = Math.round(heap.total_heap_size / HEAP_PAGE_BYTES)
  const links = names('/proc/self/fd', (path) => readlinkSync(path))
  const threads = names('/proc/self/task', (path) => readFileSync(`${path}/comm`, 'utf8'))
  return {
    rssMiB: Math.round(field('VmRSS') / 1024),
    // Node leaves the module open that a worker was loading when it was killed: `a.js`.
    descriptors: links.filter((link) => link !== '' && !/\.[cm]?js(on)?$/.test(link)).length,
    rings: links.filter((link) => link.includes('io_uring')).length,
    threads: threads.filter((name) => !name.startsWith('iou-')).length,
    kernelWorkers: threads.filter((name) => name.startsWith('iou-wrk')).length,
    mappings: (smaps.match(/^VmFlags:/gm)?.length ?? 0) - heapPages,
    keptFromChildren: kept.length - heapPages,
    keptMiB: Math.round(
      kept.reduce((sum, kib) => sum + kib, 0) / 1024 - heap.total_physical_size / MIB,
    ),
    heapMiB: Math.round(heap.total_heap_size / MIB),
  }
}

/** What `look` says of each entry of a folder of /proc; '' of one that is gone. */
function names(folder: string, look: (path: string) => string): string[] {
  return readdirSync(folder).map((name) => {
    try {
      return look(`${folder}/${name}`)
    } catch {
      return ''
    }
  })
}

/** What the open descriptors are, the same ones counted together. */
export function descriptorNames(): string {
  const counts = new Map<string, number>()
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const name = readlinkSync(`/proc/self/fd/${fd}`).replace(/\[\d+\]$/, '')
      counts.set(name, (counts.get(name) ?? 0) + 1)
    } catch {
      // Closed meanwhile.
    }
  }
  return [...counts].map(([name, count]) => `${count} ${name}`).join(', ')
}

export function show(g: Gauges): string {
  return (
    `RSS ${g.rssMiB} MiB, ${g.descriptors} descriptors, ${g.rings} rings, ${g.threads} threads, ${g.kernelWorkers} kernel workers, ` +
    `a heap of ${g.heapMiB} MiB, ${g.mappings} other mappings, ${g.keptFromChildren} of them DONTFORK with ` +
    `${g.keptMiB} MiB`
  )
}

/** Resident memory may grow by so much: allocator and V8 keep what they once had. */
const RSS_SLACK_MIB = 64
/** V8's own mappings come and go, with and without DONTFORK. A run makes far more queues. */
const MAPPINGS_SLACK = 80
const KEPT_SLACK_MIB = 24
/** Threads of V8 and libuv. */
const THREADS_SLACK = 1
/**
 * Idle ones of the main thread: one of each kind, and those that the kernel forgets to let go (6.18.44 kept
 * one more after each part of a run on a busy machine; the others leave after 5 s without work).
 */
const KERNEL_WORKERS_SLACK = 8

/** What is more at the end than at the checkpoint. */
export function grown(before: Gauges, now: Gauges): string[] {
  const limits: [keyof Gauges, number][] = [
    ['rssMiB', RSS_SLACK_MIB],
    ['descriptors', 0],
    ['rings', 0],
    ['threads', THREADS_SLACK],
    ['kernelWorkers', KERNEL_WORKERS_SLACK],
    ['mappings', MAPPINGS_SLACK],
    ['keptFromChildren', MAPPINGS_SLACK],
    ['keptMiB', KEPT_SLACK_MIB],
  ]
  return limits
    .filter(([name, slack]) => now[name] > before[name] + slack)
    .map(([name]) => `${name}: ${before[name]} after the warm-up, ${now[name]} at the end`)
}

setFlagsFromString('--expose-gc')
export const collect = runInNewContext('gc') as () => void

/** Collects garbage, lets finalizers run and kernel workers leave; gives what is held then. */
export async function settledGauges(before?: Gauges): Promise<Gauges> {
  let now = gauges()
  for (let round = 0; round < 20; round++) {
    collect()
    await after(round < 4 ? 100 : 500)
    now = gauges()
    const enough = before === undefined ? round >= 16 : grown(before, now).length === 0
    if (round >= 8 && enough) break
  }
  return now
}
