// The package as its users get it: what it exports, how it can be loaded, and what happens where its
// binary cannot.

import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import * as imported from 'node-uring'
import { assertEnded, childJson, runChild } from './helpers/child.js'
import { folder } from './helpers/scratch.js'

const require = createRequire(import.meta.url)
const root = path.dirname(require.resolve('../package.json'))
const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
  exports: { '.': Record<string, string> }
  dependencies?: object
  type: string
}

test('the package exports these names and no others', (t) => {
  const names = ['AbortError', 'File', 'POLL', 'Queue', 'Stats', 'UringError', 'op']
  t.deepEqual(Object.keys(imported).sort(), names)
})

test('require() gives the very classes that import gives', async (t) => {
  t.timeout(30_000)
  // Not here: the loader that compiles the tests gives require() a copy of its own.
  const program = `
    import { createRequire } from 'node:module'
    import * as imported from 'node-uring'
    const required = createRequire(import.meta.url)('node-uring')
    const names = Object.keys(imported)
    console.log(names.length > 0 && names.every((name) => required[name] === imported[name]))`
  assertEnded(t, await runChild(program), { stdout: 'true\n' })
})

for (const [how, commonjs, load] of [
  ['require()', true, `const uring = require('node-uring')`],
  ['import', false, `import * as uring from 'node-uring'`],
  ['import() in CommonJS', true, `import('node-uring').then((uring) => uring.Queue)`],
] as const) {
  test(`${how} loads it without a warning, and the program ends`, async (t) => {
    t.timeout(30_000)
    assertEnded(t, await runChild(load, { commonjs, node: ['--trace-warnings'] }), { stdout: '' })
  })
}

test('loading it makes no ring, loads no binary and touches no global', async (t) => {
  t.timeout(30_000)
  const program = `
    import fs from 'node:fs'
    const rings = () => fs.readdirSync('/proc/self/fd').filter((fd) => {
      try { return fs.readlinkSync('/proc/self/fd/' + fd).includes('io_uring') } catch { return false }
    }).length
    const binary = () => fs.readFileSync('/proc/self/maps', 'utf8').includes('node-uring.linux')
    const names = () => Object.getOwnPropertyNames(globalThis).length
    const before = { rings: rings(), binary: binary(), names: names() }
    const { Queue } = await import('node-uring')
    const after = { rings: rings(), binary: binary(), names: names() }
    const queue = new Queue()
    console.log(JSON.stringify({ before, after, used: { binary: binary() } }))
    await queue.close()`
  type State = { rings?: number; binary: boolean; names?: number }
  const { before, after, used } =
    await childJson<Record<'before' | 'after' | 'used', State>>(program)
  t.deepEqual(after, before)
  t.false(before.binary)
  t.true(used.binary)
})

test('no module of the package has a top-level await', (t) => {
  // A module with one cannot be loaded by require(), which tells by ERR_REQUIRE_ASYNC_MODULE.
  for (const name of fs
    .readdirSync(path.join(root, 'dist'))
    .filter((file) => file.endsWith('.js'))) {
    t.notThrows(() => require(path.join(root, 'dist', name)) as unknown, name)
  }
})

test('the types that the package names are there and declare what it exports', (t) => {
  const entry = manifest.exports['.']
  t.is(Object.keys(entry)[0], 'types', 'TypeScript takes the first condition that fits')
  for (const file of Object.values(entry)) t.true(fs.existsSync(path.join(root, file)), file)
  const types = fs.readFileSync(path.join(root, entry['types'] ?? ''), 'utf8')
  for (const name of Object.keys(imported)) t.regex(types, new RegExp(`\\b${name}\\b`))
})

test('nothing but Node is needed to use the package', (t) => {
  t.deepEqual(Object.keys(manifest.dependencies ?? {}), [])
  t.is(manifest.type, 'module')
})

/** What a program meets whose binary is this file. */
interface Met {
  readonly name: string
  readonly code: string
  readonly message: string
  readonly reason: { code: string; errno?: number; message: string; help: string }
  readonly cause: boolean
  readonly again: string
}

/** Tells of the error of a queue that cannot be, of the package at `place`. */
const refusedAt = (place: string): string => `
  import { Queue } from ${JSON.stringify(place)}
  const make = () => {
    try { new Queue({ backend: 'io_uring' }) } catch (error) { return error }
  }
  const { name, code, message, reason, cause } = make()
  const again = make().code
  console.log(JSON.stringify({ name, code, message, reason, cause: cause instanceof Error, again }))`

function withBinary(binary: string): Promise<Met> {
  return childJson<Met>(refusedAt('node-uring'), { env: { NAPI_RS_NATIVE_LIBRARY_PATH: binary } })
}

function assertUnavailable(t: ExecutionContext, met: Met, code: string): void {
  t.is(met.code, 'ERR_URING_UNAVAILABLE')
  t.is(met.name, 'UringError')
  t.is(met.reason.code, code)
  t.is(met.reason.errno, undefined)
  t.true(met.message.includes(met.reason.message) && met.message.includes(met.reason.help))
  t.true(met.reason.help.length > 20)
  t.true(met.cause)
  t.is(met.again, 'ERR_URING_UNAVAILABLE')
}

test('without a binary the package loads, and a queue is refused with MODULE_NOT_FOUND', async (t) => {
  t.timeout(30_000)
  // A copy of the package as it is where no binary was installed: the loader looks beside itself.
  const copy = path.join(folder(t), 'node-uring')
  fs.mkdirSync(copy)
  fs.cpSync(path.join(root, 'dist'), path.join(copy, 'dist'), { recursive: true })
  for (const file of ['package.json', 'index.js']) {
    fs.copyFileSync(path.join(root, file), path.join(copy, file))
  }
  const program = refusedAt(path.join(copy, 'dist/index.js'))
  assertUnavailable(t, await childJson<Met>(program), 'MODULE_NOT_FOUND')
})

test('where Node.js loads no binaries a queue is refused with ERR_DLOPEN_DISABLED', async (t) => {
  t.timeout(30_000)
  assertUnavailable(
    t,
    await childJson<Met>(refusedAt('node-uring'), { node: ['--no-addons'] }),
    'ERR_DLOPEN_DISABLED',
  )
})

test('with a binary of something else a queue is refused with ERR_DLOPEN_FAILED', async (t) => {
  t.timeout(30_000)
  const binary = path.join(folder(t), 'other.node')
  fs.writeFileSync(binary, 'not a shared object')
  assertUnavailable(t, await withBinary(binary), 'ERR_DLOPEN_FAILED')
})
