// The one way a test is skipped: it names what it needs, and where that is missing the test is
// registered as skipped, with the reason in its title. scripts/readers.js reads it there, and CI
// fails on a skip that __test__/allowed-skips.json does not list.

import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { ImplementationFn } from 'ava'

/** What a test cannot do without. All of it must hold. */
export interface Requirements {
  /** Effective user id 0: mounting, loop devices, other users' files. */
  readonly root?: boolean
  /** Programs that must be on PATH. */
  readonly commands?: readonly string[]
  /** Anything else, found out by trying it: whether it holds, and what to print where it does not. */
  readonly that?: { readonly holds: boolean; readonly reason: string }
}

/** `test` or `test.serial` of ava. */
interface Declare<Context> {
  (title: string, implementation: ImplementationFn<[], Context>): void
  skip(title: string, implementation: ImplementationFn<[], Context>): void
}

/**
 * Gives back `declare` where all of `requirements` hold, and otherwise a function that registers
 * each test as skipped. It is called as ava's `test` is: with a title and an implementation.
 *
 *     const rootTest = needs(test.serial, { root: true, commands: ['mkfs.xfs'] })
 *     rootTest('a direct read on XFS …', async (t) => { … })
 */
export function needs<Context>(
  declare: Declare<Context>,
  requirements: Requirements,
): (title: string, implementation: ImplementationFn<[], Context>) => void {
  const reason = missing(requirements)
  if (reason === undefined) return declare
  return (title, implementation) => declare.skip(`${title} — ${reason}`, implementation)
}

function missing({ root = false, commands = [], that }: Requirements): string | undefined {
  if (root && process.geteuid?.() !== 0) return 'needs root'
  const absent = commands.filter((name) => !isOnPath(name))
  if (absent.length > 0) return `needs ${absent.join(', ')}`
  if (that && !that.holds) return that.reason
  return undefined
}

function isOnPath(name: string): boolean {
  return (process.env['PATH'] ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
