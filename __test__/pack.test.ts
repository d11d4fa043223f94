// The packages as they are published: what is in them, and that they work where they are installed,
// with no compiler and no registry in reach. On other Node.js releases: slow/nodes.test.ts.

import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { fixture } from './helpers/child.js'
import { installed, listed, project, ROOT, readmeExample, WAYS_IN } from './helpers/packed.js'

/** This machine's, as napi names it. */
const PLATFORM = `linux-${process.arch}-gnu`

const made = installed(test)

interface Manifest {
  readonly version: string
  readonly scripts?: Record<string, string>
  readonly optionalDependencies?: Record<string, string>
  readonly os?: string[]
  readonly cpu?: string[]
  readonly libc?: string[]
  readonly files: string[]
}

function manifest(folder: string): Manifest {
  return JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8')) as Manifest
}

test('the package holds dist, the loader and types, and nothing else', (t) => {
  const names = listed(made.packed.tarballs.at(-1) ?? '')
  const beside = ['LICENSE', 'README.md', 'index.d.ts', 'index.js', 'package.json']
  t.deepEqual(names.filter((name) => !name.startsWith('dist/')).sort(), beside)
  const inside = names.filter((name) => name.startsWith('dist/'))
  t.true(inside.includes('dist/index.js') && inside.includes('dist/index.d.ts'))
  t.deepEqual(
    inside.filter((name) => !/\.(js|d\.ts)$/.test(name)),
    [],
  )
})

test('a platform package holds a binary for that platform, and names the platform to npm', (t) => {
  const at = made.packed.platforms.findIndex((folder) => folder.endsWith(PLATFORM))
  const binary = `node-uring.${PLATFORM}.node`
  t.deepEqual(
    listed(made.packed.tarballs[at] ?? '').sort(),
    ['README.md', binary, 'package.json'].sort(),
  )
  const { os, cpu, libc, files } = manifest(made.packed.platforms[at] ?? '')
  t.deepEqual(
    { os, cpu, libc, files },
    { os: ['linux'], cpu: [process.arch], libc: ['glibc'], files: [binary] },
  )
})

test('the package asks for its platform packages by its own version, and installs without a script', (t) => {
  const { version, optionalDependencies, scripts = {} } = manifest(made.packed.root)
  const names = made.packed.platforms.map((folder) => `node-uring-${path.basename(folder)}`)
  t.deepEqual(optionalDependencies, Object.fromEntries(names.map((name) => [name, version])))
  for (const folder of made.packed.platforms) t.is(manifest(folder).version, version)
  const hooks = ['preinstall', 'install', 'postinstall', 'prepare']
  t.deepEqual(
    hooks.filter((hook) => hook in scripts),
    [],
  )
  t.is(manifest(ROOT).optionalDependencies, undefined, 'they are written when it is published')
})

for (const [name, program] of WAYS_IN) {
  test(`installed, it is loaded by ${name}`, async (t) => {
    t.is(await made.app.node(name, program), 'loaded Queue File\n')
  })
}

test('installed, all of it works, in a worker too, with the binary of the platform package', async (t) => {
  t.timeout(120_000)
  // A child gets it as it is: what it imports is found from the project.
  const program = fs.readFileSync(fixture('smoke.mjs'), 'utf8').replace('process.argv[2]', `'.'`)
  const report = await made.app.node('smoke.mjs', program)
  t.regex(report, /^smoke: \{"backend":"io_uring"/)
  const where = `
    const { Queue } = require('node-uring')
    new Queue().close()
    const maps = require('node:fs').readFileSync('/proc/self/maps', 'utf8')
    console.log(maps.match(/\\S*node-uring\\S*\\.node/)[0])`
  t.regex(
    await made.app.node('where.cjs', where),
    /node_modules\/node-uring-linux-x64-gnu\/node-uring\./,
  )
})

test("installed, README's example runs as it is printed", async (t) => {
  t.timeout(60_000)
  t.regex(await made.app.node('readme.mjs', readmeExample()), /^4096 4096 \{/)
})

test('installed, a test of node:test that uses it passes, and the program ends', async (t) => {
  t.timeout(60_000)
  const program = `
    import test from 'node:test'
    import assert from 'node:assert/strict'
    import { Queue } from 'node-uring'
    const queue = new Queue()
    test.after(() => queue.close())
    test('a nop', () => queue.nop())
    test('a file', async () => {
      const file = await queue.open('tested', 'w+')
      assert.equal(await file.writeAt(Buffer.from('tested'), 0), 6)
      assert.equal((await file.bytesAt(0, 10)).toString(), 'tested')
      await file.close()
    })`
  const said = await made.app.node('some.test.mjs', program, undefined, ['--test'])
  t.regex(said, /pass 2\n/)
  t.regex(said, /fail 0\n/)
})

test('a bundle made by esbuild finds the binary of the package that is installed beside it', async (t) => {
  t.timeout(60_000)
  const alone = await project(t, made.packed.tarballs)
  const at = path.join(alone.folder, 'bundled')
  fs.mkdirSync(at)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    console.log(queue.backend, await queue.nop())
    await queue.close()`
  fs.writeFileSync(path.join(at, 'source.mjs'), program)
  const how = ['--bundle', '--platform=node', '--format=esm', '--log-level=warning']
  await alone.tool('esbuild', 'bundled/source.mjs', ...how, '--outfile=bundled/bundle.mjs')
  // Somebody's own index.js, where a path from the bundle would lead; and nothing to import.
  fs.writeFileSync(path.join(alone.folder, 'index.js'), `throw new Error('not yours')`)
  fs.rmSync(path.join(alone.folder, 'node_modules/node-uring/dist'), { recursive: true })
  t.is(await alone.node('run.mjs', `import './bundled/bundle.mjs'`), 'io_uring undefined\n')
})

for (const [module, moduleResolution] of [
  ['nodenext', 'nodenext'],
  ['esnext', 'bundler'],
] as const) {
  test(`installed, TypeScript compiles README's example with ${moduleResolution} resolution`, async (t) => {
    t.timeout(120_000)
    const at = path.join(made.app.folder, moduleResolution)
    fs.mkdirSync(at)
    fs.writeFileSync(path.join(at, 'package.json'), '{ "type": "module" }\n')
    const source = `${readmeExample()}
      export const capabilities: import('node-uring').Capabilities = queue.capabilities
      // @ts-expect-error: a position is a number, or the compiler has found no types
      await file.readAt(copy, 'zero')`
    fs.writeFileSync(path.join(at, 'app.ts'), source)
    const compilerOptions = {
      ...{ module, moduleResolution, target: 'es2022', strict: true, noEmit: true },
      ...{ types: ['node'], typeRoots: [path.join(ROOT, 'node_modules/@types')] },
    }
    fs.writeFileSync(path.join(at, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
    await t.notThrowsAsync(made.app.tool('tsc', '-p', moduleResolution))
  })
}

test('installed, the types of Node come with it, where a project names no types', async (t) => {
  t.timeout(120_000)
  const at = path.join(made.app.folder, 'untyped')
  fs.mkdirSync(at)
  const source = `import { Queue } from 'node-uring'
    const queue = new Queue()
    const file = await queue.open('x')
    // @ts-expect-error: a buffer is a view, or the compiler took it for anything
    await file.readAt('text', 0)
    // @ts-expect-error: a Buffer has no such property
    queue.alloc(1).nothing`
  fs.writeFileSync(path.join(at, 'app.mts'), source)
  const compilerOptions = {
    ...{ module: 'nodenext', target: 'es2022', strict: true, noEmit: true, types: [] },
    ...{ skipLibCheck: true, typeRoots: [path.join(ROOT, 'node_modules/@types')] },
  }
  fs.writeFileSync(path.join(at, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
  await t.notThrowsAsync(made.app.tool('tsc', '-p', 'untyped'))
})

test('installed, npx runs the command line, and doctor finds the binary in its own package', async (t) => {
  t.timeout(60_000)
  const run = promisify(execFile)
  const at = fs.realpathSync(made.app.folder)
  const { stdout } = await run('npx', ['--offline', 'node-uring', 'doctor', '--json'], { cwd: at })
  const { backend, facts, binary } = JSON.parse(stdout)
  const modules = path.join(at, 'node_modules')
  t.is(backend, 'io_uring')
  t.is(facts.package.path, path.join(modules, 'node-uring'))
  t.is(facts.platformPackage, `node-uring-${PLATFORM}`)
  t.is(binary.path, path.join(modules, `node-uring-${PLATFORM}`, `node-uring.${PLATFORM}.node`))
  t.is(binary.version, facts.package.version)
})
