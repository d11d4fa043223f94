/**
 * What registering files and memory with the ring saves: the same reads by a queue that registers, as by
 * default, and by one that does not (`register: false`).
 */
import { Queue } from 'node-uring'
import { type Bench, cacheKeeper, FILE_BYTES, type Group, KIB, MIB } from './group.js'
import { inProcess } from './harness.js'
import { Blocks, readAts, times } from './loops.js'
import { cachedFile, directFile } from './scratch.js'

export const REGISTERED_GROUPS: readonly Group[] = [
  { name: 'registered', about: 'registered files and memory beside none', run: registeredGroup },
]

async function registeredGroup(bench: Bench): Promise<void> {
  const writer = new Queue()
  const direct = directFile(bench.folder, 'direct.bin', FILE_BYTES, writer.alloc(MIB))
  await writer.close()
  const cached = cachedFile(bench.folder, 'cached.bin', FILE_BYTES)
  for (const path of [cached, direct]) {
    for (const [kib, atOnce] of [
      [4, 128],
      [64, 8],
    ] as const) {
      const isDirect = path === direct
      const bytes = kib * KIB
      const side = async (name: string, register: boolean) => {
        const queue = new Queue({ register })
        const file = await queue.open(path, 'r', { direct: isDirect })
        const buffers = times(atOnce, () => queue.alloc(bytes))
        const blocks = new Blocks(FILE_BYTES, bytes)
        return { queue, side: inProcess(name, (n) => readAts(file, buffers, blocks, n)) }
      }
      const on = await side('registered', true)
      const off = await side('not registered', false)
      const cell = `read ${kib} KiB ${isDirect ? 'O_DIRECT' : 'cached'} ×${atOnce}, registered`
      const row = { cell, ours: 'on', theirs: 'off', target: { atMost: 1 } } as const
      await bench.contest({
        name: cell,
        ...(isDirect ? {} : { before: cacheKeeper(path) }),
        sides: { on: on.side, off: off.side },
        rows: [
          { ...row, measure: 'time' },
          { ...row, measure: 'cpu' },
        ],
      })
      await Promise.all([on, off].map(({ queue }) => queue.close()))
    }
  }
}
