// ava's `test`, which leaves out what cannot be on node:fs when the suite runs there. The suite does
// so in a step of its own, where no binary is found: scripts/test.js. What is left out, and why, is
// listed in __test__/node-fs.json, and nowhere else.

import { readFileSync } from 'node:fs'
import test from 'ava'

export type { ExecutionContext } from 'ava'

/** What queues are expected to run on here. */
export const BACKEND: 'io_uring' | 'node:fs' =
  process.env['URING_TEST_BACKEND'] === 'node:fs' ? 'node:fs' : 'io_uring'

/** What is left out on node:fs. */
export interface LeftOut {
  /** Whole files, each with the reason. */
  readonly files: Readonly<Record<string, string>>
  /** By file, titles with the reason; a `*` in a title stands for anything. */
  readonly tests: Readonly<Record<string, Readonly<Record<string, string>>>>
}

/** The list. */
export function leftOut(): LeftOut {
  const url = new URL('../node-fs.json', import.meta.url)
  return JSON.parse(readFileSync(url, 'utf8')) as LeftOut
}

/** Whether a title is one that the list means. */
export function matches(pattern: string, title: string): boolean {
  const parts = pattern.split('*').map((part) => part.replace(/[\\^$.|?+()[\]{}]/g, '\\$&'))
  return new RegExp(`^${parts.join('.*')}$`).test(title)
}

/** The same function, with what it is given left out where the list says so. */
function withLeftOut<T extends object>(declare: T, patterns: readonly string[]): T {
  return new Proxy(declare, {
    apply(target, self, args: unknown[]) {
      const [title] = args
      const out = typeof title === 'string' && patterns.some((pattern) => matches(pattern, title))
      return out ? undefined : Reflect.apply(target as never, self, args)
    },
    get(target, name) {
      const member: unknown = Reflect.get(target, name)
      const declares = name === 'serial' || name === 'skip' || name === 'failing'
      return declares ? withLeftOut(member as object, patterns) : member
    },
  })
}

function ours(): typeof test {
  const { tests } = leftOut()
  const file = Object.keys(tests).find((name) => test.meta.file.endsWith(`/__test__/${name}`))
  return file === undefined ? test : withLeftOut(test, Object.keys(tests[file] ?? {}))
}

export default BACKEND === 'node:fs' ? ours() : test
