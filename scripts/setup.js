// Makes a clone ready to run: checks what must be there, installs the packages, builds the Rust
// binding and the TypeScript. Each part is done only when what it is made from has changed.
// Plain Node without dependencies: it runs before any is installed. It never touches the system.
//
//   node scripts/setup.js           what is missing or out of date
//   node scripts/setup.js --force   builds both again, whatever the stamps say

import { createHash } from 'node:crypto'
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { progress, run } from './run.js'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

/** The generated files that are committed. */
export const GENERATED = ['index.js', 'index.d.ts']
/** What the binding, and with it the generated files, is made from. */
export const BINDING_SOURCES = ['Cargo.toml', 'Cargo.lock', 'crates', 'package.json']
/** Where `napi build` writes before the result is copied to the top. */
export const BINDING_OUTPUT = 'target/napi'

/** In CI the lock files are law; elsewhere a build may bring Cargo.lock up to date. */
export const cargoLocked = process.env.CI ? ['--locked'] : []

/** @returns {string | undefined} what is missing and what to do about it, in one line */
export function missingPrerequisite() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  const supported = (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22
  if (!supported) {
    return `Node.js ${process.versions.node} is not supported: install 20.19 or later, or 22.12 or later.`
  }
  if (!findCommand('cargo')) {
    return 'cargo was not found: install Rust from https://rustup.rs and open a new shell.'
  }
  if (!findCommand('cc')) {
    return 'No C linker (cc) was found: install gcc or clang, on Debian and Ubuntu with `apt-get install gcc libc6-dev`.'
  }
}

function findCommand(name) {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/**
 * What is to be brought up to date, in order. `stale()` is cheap; `make()` does the work and
 * resolves with run()'s `{ ok, lines }`.
 */
export const parts = [
  {
    title: 'install the npm packages',
    stale: () => !stampHolds('node_modules/.stamp', installInputs()),
    async make() {
      const inputs = installInputs()
      // No dependency needs its install script: esbuild's binary comes as a package.
      const result = await run(['npm', 'ci', '--ignore-scripts', '--loglevel=error'])
      if (result.ok) writeStamp('node_modules/.stamp', inputs)
      return result
    },
  },
  {
    title: 'build the Rust binding',
    stale: () =>
      !stampHolds('target/setup/binding', bindingInputs()) ||
      !GENERATED.every((name) => existsSync(name)) ||
      !readdirSync('.').some((name) => name.endsWith('.node')),
    async make() {
      const inputs = bindingInputs()
      const result = await generateBinding()
      if (result.ok) {
        for (const name of readdirSync(BINDING_OUTPUT)) replace(join(BINDING_OUTPUT, name), name)
        writeStamp('target/setup/binding', inputs)
      }
      return result
    },
  },
  {
    title: 'compile the TypeScript',
    stale: () => !stampHolds('target/setup/dist', distInputs()) || !existsSync('dist/index.js'),
    async make() {
      const inputs = distInputs()
      rmSync('dist', { recursive: true, force: true }) // what src no longer has must not linger
      const result = await run(['node_modules/.bin/tsc', '-p', 'tsconfig.json'])
      // npm does so when it installs the package; `npx node-uring` here does not.
      if (result.ok) chmodSync('dist/cli/main.js', 0o755)
      if (result.ok) writeStamp('target/setup/dist', inputs)
      return result
    },
  },
]

/** Runs `napi build` into BINDING_OUTPUT and touches nothing at the top. */
export function generateBinding() {
  rmSync(BINDING_OUTPUT, { recursive: true, force: true })
  // Not straight into the top folder: napi stages beside its output folder, which would be
  // outside the project, and rewrites files that have not changed.
  const paths = ['--manifest-path', 'crates/binding/Cargo.toml', '--package-json-path']
  return run([
    ...['node_modules/.bin/napi', 'build', '--platform', '--release', '--esm'],
    ...[...paths, 'package.json', '--output-dir', BINDING_OUTPUT],
    ...(cargoLocked.length > 0 ? ['--', ...cargoLocked] : []),
  ])
}

// Unchanged files keep their time; a changed one appears by rename, since a running process may
// have the old binary mapped.
function replace(from, to) {
  if (existsSync(to) && readFileSync(from).equals(readFileSync(to))) return
  copyFileSync(from, `${to}.new`)
  renameSync(`${to}.new`, to)
}

const installInputs = () => digest(['package-lock.json'])
export const bindingInputs = () =>
  digest([...BINDING_SOURCES, 'node_modules/@napi-rs/cli/package.json'])
const distInputs = () =>
  digest(['src', 'index.d.ts', 'tsconfig.json', 'node_modules/typescript/package.json'])

/** One digest over the names and contents of files, and of folders with all that is in them. */
function digest(paths) {
  const hash = createHash('sha256')
  for (const path of paths) {
    if (!existsSync(path)) continue
    const files = statSync(path).isDirectory()
      ? readdirSync(path, { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => join(entry.parentPath, entry.name))
          .sort()
      : [path]
    for (const file of files) hash.update(`${file}\0`).update(readFileSync(file)).update('\0')
  }
  return hash.digest('hex')
}

export function stampHolds(stamp, inputs) {
  return existsSync(stamp) && readFileSync(stamp, 'utf8') === inputs
}

export function writeStamp(stamp, inputs) {
  mkdirSync(join(stamp, '..'), { recursive: true })
  writeFileSync(stamp, inputs)
}

/**
 * Brings everything up to date, saying what it does. Stops at the first part that fails, after
 * printing all that it said.
 *
 * @returns {Promise<boolean>} whether all of it is ready
 */
export async function setup({ force = false } = {}) {
  for (const [index, part] of parts.entries()) {
    if (!part.stale() && !(force && index > 0)) continue
    const done = progress(part.title)
    const { ok, lines } = await part.make()
    done(ok ? 'ok' : 'FAILED')
    if (!ok) {
      console.log(lines.join('\n'))
      return false
    }
  }
  return true
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const missing = missingPrerequisite()
  if (missing) console.error(missing)
  if (missing || !(await setup({ force: process.argv.includes('--force') }))) process.exitCode = 1
}
