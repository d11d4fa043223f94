// Makes the packages as npm gets them, in target/pack: node-uring, and one for each binary found,
// each as a folder and as a .tgz. This is what napi-rs does at publishing: it makes the platform
// packages (`napi create-npm-dirs`), puts the binaries into them (`napi artifacts`), and writes
// them into the optionalDependencies of node-uring (`napi pre-publish`); here all of that happens
// to a copy, so that nothing that is committed changes, and nothing is published.
//
//   node scripts/release/pack.js [--bindings FOLDER] [--all]
//
// FOLDER is where the binaries are: target/release-bindings, unless said otherwise. With --all one
// that is missing is an error; without, its package is left out.

import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { run } from '../run.js'
import { RELEASE_BINDINGS, TARGETS } from './build.js'

const PACK = 'target/pack'

/**
 * @param {{ bindings?: string, all?: boolean, into?: string }} [options]
 * @returns {Promise<{ root: string, platforms: string[], tarballs: string[] }>} folders, and the
 *   .tgz files, that of the root last
 */
export async function pack({ bindings = RELEASE_BINDINGS, all = false, into = PACK } = {}) {
  const root = join(into, 'node-uring')
  rmSync(into, { recursive: true, force: true })
  mkdirSync(root, { recursive: true })
  const manifest = JSON.parse(readFileSync('package.json', 'utf8'))
  for (const name of ['README.md', 'LICENSE', ...manifest.files]) {
    cpSync(name, join(root, name), { recursive: true })
  }

  const built = Object.keys(TARGETS).filter((target) => existsSync(binaryIn(bindings, target)))
  manifest.napi.targets = all ? manifest.napi.targets : built
  writeFileSync(join(root, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
  const binaries = join(root, 'binaries')
  mkdirSync(binaries)
  for (const target of built) cpSync(binaryIn(bindings, target), binaryIn(binaries, target))

  const napi = (...args) =>
    must([resolve('node_modules/.bin/napi'), ...args, '--cwd', resolve(root)])
  await napi('create-npm-dirs')
  await napi('artifacts', '--output-dir', 'binaries', '--npm-dir', 'npm')
  await napi('pre-publish', '--skip-optional-publish', '--no-gh-release', '--tag-style', 'npm')
  rmSync(binaries, { recursive: true })

  const platforms = readdirSync(join(root, 'npm')).map((name) => join(root, 'npm', name))
  const tarballs = []
  for (const folder of [...platforms, root]) {
    const args = ['--json', '--pack-destination', resolve(into)]
    const lines = await must(['npm', 'pack', resolve(folder), ...args])
    const told = JSON.parse(lines.slice(lines.findIndex((line) => /^[[{]/.test(line))).join('\n'))
    tarballs.push(join(into, Object.values(told)[0].filename))
  }
  return { root, platforms, tarballs }
}

const binaryIn = (folder, target) => join(folder, `node-uring.${TARGETS[target].platform}.node`)

async function must(command) {
  const { ok, lines } = await run(command)
  if (!ok) throw new Error(`${command.join(' ')}:\n${lines.join('\n')}`)
  return lines
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: { bindings: { type: 'string' }, all: { type: 'boolean', default: false } },
  })
  const { tarballs } = await pack(values)
  for (const tarball of tarballs) console.log(tarball)
}
