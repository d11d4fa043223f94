/**
 * What a guest is made of: a kernel of Debian's, and a first root that holds busybox, a Node with
 * its libraries, this package as it is published, and a program. All by path; nothing here boots.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { characterDevice, cpio, directory, type Entry, file } from './cpio.js'
import { type Architecture, CACHE, Missing, type Suite, unpacked } from './debian.js'

/** The project. */
export const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** Kernels by the name that they have here: where the newest of each is found. */
const KERNELS = {
  '5.10': ['bullseye', /^linux-image-5\.10\.0-\d+-cloud-/],
  '6.1': ['bookworm', /^linux-image-6\.1\.0-\d+-cloud-/],
  '6.12': ['bookworm', /^linux-image-6\.12\.\d+\+deb12-cloud-/],
} as const satisfies Record<string, readonly [Suite, RegExp]>

export type KernelName = keyof typeof KERNELS
export const KERNEL_NAMES = Object.keys(KERNELS) as KernelName[]

/** A Node to run, the libraries that it needs by their place in the guest, and a binding for it. */
export interface Runtime {
  readonly architecture: Architecture
  readonly node: string
  /** Path in the guest → file here. */
  readonly libraries: ReadonlyMap<string, string>
  readonly binding: string
}

/** The path of a kernel's image; fetched when it is not there yet. */
export function kernelImage(name: KernelName, architecture: Architecture = 'amd64'): string {
  const [suite, pattern] = KERNELS[name]
  const wanted = new RegExp(`${pattern.source}${architecture}$`)
  const boot = path.join(unpacked({ suite, architecture, name: wanted }), 'boot')
  const image = readdirSync(boot).find((entry) => entry.startsWith('vmlinuz-'))
  if (image === undefined) throw new Missing(`no vmlinuz in ${boot}`)
  return path.join(boot, image)
}

/** The Node that runs this, with the binding that was built beside it. */
export function ownRuntime(): Runtime {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    throw new Missing('needs Linux on x64')
  const binding = path.join(ROOT, 'node-uring.linux-x64-gnu.node')
  if (!existsSync(binding)) throw new Missing('needs the binding: `npm run build`')
  const node = process.execPath
  return { architecture: 'amd64', node, libraries: librariesOf(node, binding), binding }
}

/** What ldd says that the programs need, each where the loader looks for it. */
function librariesOf(...programs: string[]): Map<string, string> {
  const found = new Map<string, string>()
  for (const program of programs) {
    for (const line of execFileSync('ldd', [program], { encoding: 'utf8' }).split('\n')) {
      const at = /(?:=> )?(\/\S+) \(0x/.exec(line)?.[1]
      if (at !== undefined) found.set(at, at)
    }
  }
  return found
}

/** The archive of all that does not change between two boots: made once, 100 MB. */
export function baseArchive(runtime: Runtime): string {
  const busybox = path.join(
    unpacked({ suite: 'bookworm', architecture: runtime.architecture, name: 'busybox-static' }),
    'bin/busybox',
  )
  const sources = new Map([
    ...runtime.libraries,
    ['/bin/busybox', busybox],
    ['/bin/node', runtime.node],
  ])
  const key = createHash('sha256')
  for (const [place, source] of sources) {
    const { size, mtimeMs } = statSync(source)
    key.update(`${place} ${source} ${size} ${mtimeMs}\n`)
  }
  const archive = path.join(CACHE, `base-${key.digest('hex').slice(0, 16)}.cpio`)
  if (existsSync(archive)) return archive
  const entries = [
    characterDevice('dev/console', 5, 1),
    ...['proc', 'sys', 'tmp', 'mnt'].map(directory),
    ...[...sources].map(([place, source]) => file(place.slice(1), readFileSync(source))),
  ]
  mkdirSync(CACHE, { recursive: true })
  writeFileSync(`${archive}.${process.pid}`, cpio(entries))
  renameSync(`${archive}.${process.pid}`, archive)
  return archive
}

/** This package as it is published, below node_modules of the guest's root. */
export function packageEntries(runtime: Runtime): Entry[] {
  const at = (name: string): string => path.join('node_modules/node-uring', name)
  const here = (name: string): Buffer => readFileSync(path.join(ROOT, name))
  if (!existsSync(path.join(ROOT, 'dist/index.js')))
    throw new Missing('needs dist: `npm run build`')
  const scripts = readdirSync(path.join(ROOT, 'dist'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.js'))
    .map((name) => `dist/${name}`)
  return [
    ...['package.json', 'index.js', ...scripts].map((name) => file(at(name), here(name))),
    file(at(path.basename(runtime.binding)), readFileSync(runtime.binding)),
  ]
}
