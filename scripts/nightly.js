// What asan.js and fuzz.js share: a compiler that takes unstable flags, and running it with the
// output passed through, as scripts/test.js reads it.

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'

/** The one target whose AddressSanitizer runtime rustup ships for us. Build scripts go without. */
export const TARGET = 'x86_64-unknown-linux-gnu'

const said = (program, ...args) => spawnSync(program, args, { encoding: 'utf8' }).stdout ?? ''

// A stable compiler takes unstable flags when it is told to; its runtime comes with rust-std, too.
const hasNightly = said('rustup', 'toolchain', 'list').includes('nightly')
const toolchain = hasNightly ? ['+nightly'] : []
const bootstrap = hasNightly ? {} : { RUSTC_BOOTSTRAP: '1' }

/** @returns {string | undefined} why there are no sanitizers here */
export function missingSanitizer() {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'needs Linux on x86-64'
  const folder = said('rustc', ...toolchain, '--print', 'target-libdir').trim()
  const names = existsSync(folder) ? readdirSync(folder) : []
  if (!names.some((name) => name.endsWith('_rt.asan.a'))) return "needs rustup's sanitizer runtime"
}

/** Runs cargo with `flags` for rustc, building in target/`folder`. @returns {number} its exit code */
export function cargo(args, { flags, folder, env = {}, cwd = '.' }) {
  const [command, ...rest] = args
  return passThrough(['cargo', ...toolchain, command, '--target', TARGET, ...rest], {
    cwd,
    env: {
      ...bootstrap,
      CARGO_TARGET_DIR: `${process.cwd()}/target/${folder}`,
      RUSTFLAGS: [process.env.RUSTFLAGS, ...flags].filter(Boolean).join(' '),
      ...env,
    },
  })
}

/** Runs a command with our own output. @returns {number} its exit code */
export function passThrough([program, ...args], { env = {}, cwd = '.' } = {}) {
  const options = { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'inherit', 'inherit'] }
  const { status, signal, error } = spawnSync(program, args, options)
  if (error) console.error(`${program}: ${error.message}`)
  if (signal) console.error(`${program}: ended by ${signal}`)
  return status ?? 1
}
