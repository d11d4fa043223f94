/**
 * Builds every binary that is published, on a machine whose compiler has this machine's standard
 * library alone: the others come from Debian's compiler, and musl's is built from its source.
 *
 *     node --import tsx scripts/cross/build.ts      then scripts/cross/smoke.ts
 */
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { ROOT } from '../guest/system.js'
import { debianRustc } from './compiler.js'

const debian = { RUSTC: debianRustc() }
for (const [target, env, ...args] of [
  ['x86_64-unknown-linux-gnu', {}],
  ['aarch64-unknown-linux-gnu', debian],
  ['x86_64-unknown-linux-musl', debian, '--build-std'],
  ['aarch64-unknown-linux-musl', debian, '--build-std'],
] as const) {
  const { status } = spawnSync(
    process.execPath,
    [path.join(ROOT, 'scripts/release/build.js'), ...args, target],
    { stdio: 'inherit', env: { ...process.env, ...env } },
  )
  if (status !== 0) process.exit(1)
}
