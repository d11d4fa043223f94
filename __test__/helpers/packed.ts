// The packages as npm gets them, installed into an empty project: no compiler in reach, nothing from a
// registry, no install script. And the programs that are run in that project.

import { execFile, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import type { TestFn } from 'ava'
import { childJson } from './child.js'
import { folder, type Teardown } from './scratch.js'

const run = promisify(execFile)
export const ROOT = path.resolve(import.meta.dirname, '../..')

/** What scripts/release/pack.js made. */
export interface Packed {
  /** The package itself and the platform packages, as folders. */
  readonly root: string
  readonly platforms: readonly string[]
  /** The platform packages and, last, the package itself, as .tgz. */
  readonly tarballs: readonly string[]
}

/** Packs this project, with the binary that is published where there is one of these sources. */
export function pack(t: Teardown): Promise<Packed> {
  const program = `
    const { NATIVE_TARGET, RELEASE_BINDINGS, isFresh } = await import('./scripts/release/build.js')
    const { pack } = await import('./scripts/release/pack.js')
    const bindings = isFresh(NATIVE_TARGET) ? RELEASE_BINDINGS : '.'
    console.log(JSON.stringify(await pack({ bindings, into: process.argv[1] })))`
  return childJson<Packed>(program, { args: [folder(t)], timeoutMs: 120_000 })
}

/** The names in a .tgz, without the folder that npm puts them in. */
export function listed(tarball: string): string[] {
  return execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' })
    .split('\n')
    .filter(Boolean)
    .map((name) => name.replace(/^package\//, ''))
}

/** A project of somebody else's. */
export interface Project {
  readonly folder: string
  /** Writes a file and runs it, with this Node unless another is given. Gives what it prints. */
  node(name: string, program: string, node?: string, args?: readonly string[]): Promise<string>
  /** The same with another runtime and all of its arguments. */
  run(name: string, program: string, runtime: string, args: readonly string[]): Promise<string>
  /** Runs one of this project's own tools there. */
  tool(name: string, ...args: string[]): Promise<string>
}

/**
 * The environment of a machine that has Node and nothing of ours: no cargo, no settings of npm, and a
 * cache that is empty.
 */
function bare(home: string): NodeJS.ProcessEnv {
  return { PATH: `${path.dirname(process.execPath)}:/usr/bin:/bin`, HOME: home }
}

/** Whether npm takes it here: the package itself, and the one with the binary for this machine. */
function isForHere(tarball: string): boolean {
  const platform = /node-uring-(linux-.*)-\d/.exec(path.basename(tarball))?.[1]
  return platform === undefined || platform === `linux-${process.arch}-gnu`
}

/** An empty project with these tarballs installed, without those for other machines. */
export async function project(t: Teardown, tarballs: readonly string[]): Promise<Project> {
  const at = folder(t)
  const env = bare(folder(t))
  fs.writeFileSync(path.join(at, 'package.json'), '{ "private": true }\n')
  if (
    await run('cargo', ['--version'], { env }).then(
      () => true,
      () => false,
    )
  ) {
    throw new Error(`cargo is on the path of a machine that should have none: ${env['PATH']}`)
  }
  const npm = ['install', '--offline', '--no-audit', '--no-fund', '--loglevel=error']
  await run('npm', [...npm, ...tarballs.filter(isForHere)], { cwd: at, env })
  const inside: Project['run'] = async (name, program, runtime, args) => {
    fs.writeFileSync(path.join(at, name), program)
    const options = { cwd: at, env, timeout: 60_000 }
    const { stdout, stderr } = await run(runtime, [...args, name], options)
    if (stderr !== '') throw new Error(`${name} said: ${stderr}`)
    return stdout
  }
  return {
    folder: at,
    node: (name, program, node = process.execPath, args = []) =>
      inside(name, program, node, ['--trace-warnings', ...args]),
    run: inside,
    async tool(name, ...args) {
      const tool = path.join(ROOT, 'node_modules/.bin', name)
      const env = { PATH: `${path.dirname(process.execPath)}:/usr/bin:/bin` }
      try {
        return (await run(tool, args, { cwd: at, env, timeout: 60_000 })).stdout
      } catch (error) {
        const { stdout, stderr } = error as { stdout?: string; stderr?: string }
        throw new Error(`${name} ${args.join(' ')}: ${stdout}${stderr}`)
      }
    },
  }
}

/** The first program in README.md. */
export function readmeExample(): string {
  const example = /```ts\n([\s\S]*?)```/.exec(fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8'))
  if (example?.[1] === undefined) throw new Error('README.md has no example')
  return example[1]
}

/** The ways into the package: [file name, program]. Each prints `loaded Queue File`. */
export const WAYS_IN = [
  [
    'import.mjs',
    `import { Queue, File } from 'node-uring'\nconsole.log('loaded', Queue.name, File.name)`,
  ],
  [
    'require.cjs',
    `const { Queue, File } = require('node-uring')\nconsole.log('loaded', Queue.name, File.name)`,
  ],
  [
    'import.cjs',
    `import('node-uring').then(({ Queue, File }) => console.log('loaded', Queue.name, File.name))`,
  ],
] as const

/** What a test file has packed and installed. */
export interface Installed {
  readonly packed: Packed
  readonly app: Project
}

/** Packs and installs before the tests of a file, and removes it after them; filled once they run. */
export function installed(test: TestFn): Installed {
  const made = {} as { packed: Packed; app: Project }
  const undo: (() => void)[] = []
  const scene = { teardown: (step: () => void) => void undo.unshift(step) }
  test.before('packing and installing', async (t) => {
    t.timeout(180_000)
    made.packed = await pack(scene)
    made.app = await project(scene, made.packed.tarballs)
  })
  test.after.always('removing it', () => {
    for (const step of undo) step()
  })
  return made
}
