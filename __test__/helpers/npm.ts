// Runtimes of others, as npm has them: kept in target/nodes, and asked for once a run.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { ROOT } from './packed.js'
import type { Requirements } from './skip.js'

/** A package, without its scripts: where it is, and for `needs` whether it is there. */
export function fromNpm(
  name: string,
  version = 'latest',
): { at: string; that: NonNullable<Requirements['that']> } {
  const folder = path.join(ROOT, 'target/nodes', `${name.replace('/', '-')}-${version}`)
  fs.mkdirSync(folder, { recursive: true })
  const npm = ['install', '--prefix', folder, '--ignore-scripts', '--no-audit', '--no-fund']
  try {
    const options = { stdio: 'pipe', timeout: 300_000 } as const
    execFileSync('npm', [...npm, '--silent', `${name}@${version}`], options)
    return { at: path.join(folder, 'node_modules', name), that: { holds: true, reason: '' } }
  } catch {
    return { at: '', that: { holds: false, reason: `needs ${name}@${version} from npm` } }
  }
}
