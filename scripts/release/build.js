// Builds binaries as they are published, into target/release-bindings, and checks each: the oldest
// glibc that it runs with, and its size. They are linked by zig (cargo-zigbuild and ziglang of PyPI,
// in a virtual environment below target), which links against any glibc.
//
//   npm run build:release                             x64 with glibc
//   npm run build:release -- TARGET…                  others; rustc must have their standard library,
//                                                     or its sources (--build-std)
//   npm run build:release -- --check                  as `npm test` runs it: see below
//
// --check builds only what has changed; where Python's packages have not been fetched it skips,
// except in CI.

import { existsSync, readFileSync } from 'node:fs'
import { delimiter, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { progress, run } from '../run.js'
import { bindingInputs, cargoLocked, stampHolds, writeStamp } from '../setup.js'
import { compare, neededVersions, newestGlibc } from './elf.js'

/** Where the binaries are. */
export const RELEASE_BINDINGS = 'target/release-bindings'
export const NATIVE_TARGET = 'x86_64-unknown-linux-gnu'

const ZIG = resolve('target/zig')
const REQUIREMENTS = 'scripts/release/requirements.txt'
const MIB = 1 << 20
const SIZE_BYTES_MAX = MIB
/** The standard library, too, on a busy machine. */
const BUILD_MS_MAX = 60 * 60 * 1000

/** What is published: the name that napi gives it, and the oldest glibc that it is to run with. */
export const TARGETS = {
  'x86_64-unknown-linux-gnu': { platform: 'linux-x64-gnu', glibc: [2, 17] },
  'aarch64-unknown-linux-gnu': { platform: 'linux-arm64-gnu', glibc: [2, 17] },
  'x86_64-unknown-linux-musl': { platform: 'linux-x64-musl' },
  'aarch64-unknown-linux-musl': { platform: 'linux-arm64-musl' },
}

export const binaryOf = (target) =>
  join(RELEASE_BINDINGS, `node-uring.${TARGETS[target].platform}.node`)
const stampOf = (target) => `target/setup/release-${TARGETS[target].platform}`

/** Whether a binary is there that was built from the sources as they are. */
export const isFresh = (target) =>
  existsSync(binaryOf(target)) && stampHolds(stampOf(target), bindingInputs())

const hasZig = () => stampHolds(join(ZIG, 'stamp'), readFileSync(REQUIREMENTS, 'utf8'))

async function fetchZig() {
  if (hasZig()) return true
  const done = progress('fetch cargo-zigbuild and ziglang')
  const pip = [join(ZIG, 'venv/bin/pip'), 'install', '--quiet', '--disable-pip-version-check']
  for (const command of [
    ['python3', '-m', 'venv', '--clear', join(ZIG, 'venv')],
    [...pip, '--requirement', REQUIREMENTS],
  ]) {
    const { ok, lines } = await run(command)
    if (!ok) {
      done('FAILED')
      console.log(lines.join('\n'))
      return false
    }
  }
  writeStamp(join(ZIG, 'stamp'), readFileSync(REQUIREMENTS, 'utf8'))
  done('ok')
  return true
}

/**
 * Builds one target, with zig as the linker.
 *
 * @param {string} target one of TARGETS
 * @param {{ buildStd?: boolean }} [how] `buildStd`: build the standard library, too, for a compiler
 *   that has its sources only
 * @returns {Promise<boolean>}
 */
export async function build(target, { buildStd = false } = {}) {
  if (!(await fetchZig())) return false
  const { glibc } = TARGETS[target]
  const done = progress(`build ${target}`)
  const inputs = bindingInputs()
  const { ok, lines } = await run(
    [
      ...['node_modules/.bin/napi', 'build', '--platform', '--release', '--esm', '--no-js'],
      ...['--manifest-path', 'crates/binding/Cargo.toml', '--package-json-path', 'package.json'],
      ...['--output-dir', RELEASE_BINDINGS, '--target-dir', join(ZIG, 'cargo')],
      ...['--cross-compile', '--target', glibc ? `${target}.${glibc.join('.')}` : target],
      ...['--', ...cargoLocked, ...(buildStd ? ['-Z', 'build-std=std,panic_unwind'] : [])],
    ],
    {
      timeoutMs: BUILD_MS_MAX,
      env: {
        PATH: [join(ZIG, 'venv/bin'), process.env.PATH].join(delimiter),
        ...(buildStd ? { RUSTC_BOOTSTRAP: '1' } : {}),
        // An addon is a shared object: with musl, too, which is linked statically by default.
        ...(glibc ? {} : { RUSTFLAGS: '-C target-feature=-crt-static' }),
      },
    },
  )
  done(ok ? 'ok' : 'FAILED')
  if (!ok) console.log(lines.join('\n'))
  else writeStamp(stampOf(target), inputs)
  return ok
}

/** @returns {string[]} what is wrong with a binary; prints what it is */
export function complaints(target, binary = binaryOf(target)) {
  const elf = readFileSync(binary)
  const { glibc: floor } = TARGETS[target]
  const newest = newestGlibc(neededVersions(elf))
  const needs = newest[0] === 0 ? 'no glibc' : `glibc ${newest.join('.')}`
  console.log(`${binary}: ${elf.length} bytes, needs ${needs}`)
  const found = []
  if (elf.length > SIZE_BYTES_MAX) found.push(`${binary} is larger than ${SIZE_BYTES_MAX} bytes`)
  if (floor ? compare(newest, floor) > 0 : newest[0] !== 0) {
    found.push(`${binary} needs ${needs}, and is to run with ${floor ? floor.join('.') : 'musl'}`)
  }
  return found
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      'build-std': { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
    },
  })
  const targets = positionals.length > 0 ? positionals : [NATIVE_TARGET]
  const unknown = targets.filter((target) => !Object.hasOwn(TARGETS, target))
  if (unknown.length > 0) {
    console.error(`No such target: ${unknown}. There are ${Object.keys(TARGETS).join(', ')}.`)
    return false
  }
  if (values.check && process.arch !== 'x64') {
    console.log('skipped: the release binary — needs Linux on x86-64')
    return true
  }
  if (values.check && !hasZig() && !process.env.CI) {
    console.log('skipped: the release binary — needs cargo-zigbuild: `npm run build:release`')
    return true
  }
  const wrong = []
  for (const target of targets) {
    const ready = values.check && isFresh(target)
    if (!ready && !(await build(target, { buildStd: values['build-std'] }))) return false
    wrong.push(...complaints(target))
  }
  for (const complaint of wrong) console.error(complaint)
  return wrong.length === 0
}

if (process.argv[1] === fileURLToPath(import.meta.url) && !(await main())) process.exitCode = 1
