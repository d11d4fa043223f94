/**
 * Sides in JavaScript, each in a process of its own: what one does to V8's heap and teaches its compiler is
 * not the others' affair. Such a process runs the group as the bench does, up to the contest, and there
 * answers for its side.
 */
import { fileURLToPath } from 'node:url'
import type { Bench, Group } from './group.js'
import type { Contest, Side } from './harness.js'
import { answerRounds, processSide } from './programs.js'
import { Progress } from './progress.js'

/** Which side a process is. */
export interface Part {
  group: string
  contest: string
  side: string
  folder: string
}

/** The sides of a contest, those that are to be apart as processes; `end` ends these. */
export async function apart<Name extends string>(
  { name: contest, sides }: Contest<Name>,
  { group, folder }: { group: string; folder: string },
): Promise<{ sides: Record<Name, Side>; end(): void }> {
  const program = fileURLToPath(new URL('run.ts', import.meta.url))
  const ends: (() => void)[] = []
  const all = Object.entries<Side>(sides).map(async ([key, side]) => {
    if (!side.apart) return [key, side] as const
    const part: Part = { group, contest, side: key, folder }
    const started = await processSide(side.name, program, ['--side', JSON.stringify(part)])
    ends.push(() => started.end())
    return [key, started] as const
  })
  const started = Object.fromEntries(await Promise.all(all)) as Record<Name, Side>
  return {
    sides: started,
    end() {
      for (const one of ends) one()
    },
  }
}

/** Keeps all that waits for it, and so what is open there: files would be collected unclosed. */
const forever = new Promise<void>(() => {})

/** In such a process: runs the group, and stays in the contest. */
export async function answerAsSide(part: Part, groups: readonly Group[]): Promise<void> {
  const bench: Bench = {
    settings: { rounds: 0, roundMs: 0 },
    progress: new Progress(),
    folder: part.folder,
    floor: '',
    fio: false,
    async contest({ name, sides }) {
      if (name !== part.contest) return
      const all = sides as Record<string, Side>
      if (all[part.side] === undefined) throw new Error(`${name} has no side ${part.side}`)
      answerRounds((operations) => (all[part.side] as Side).run(operations))
      await forever
    },
    keep() {},
  }
  await groups.find(({ name }) => name === part.group)?.run(bench)
  throw new Error(`${part.group} has no contest ${part.contest}`)
}
