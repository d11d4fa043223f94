// The packages under other runtimes than Node.js, from npm. Neither exports libuv's functions so that
// they can be called, so both work on node:fs, and say why.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { fixture } from '../helpers/child.js'
import { fromNpm } from '../helpers/npm.js'
import { type Project, pack, project } from '../helpers/packed.js'
import { needs } from '../helpers/skip.js'

let app: Project
const undo: (() => void)[] = []
const scene = { teardown: (step: () => void) => void undo.unshift(step) }

test.before('packing and installing', async (t) => {
  t.timeout(180_000)
  app = await project(scene, (await pack(scene)).tarballs)
})
test.after.always('removing it', () => {
  for (const step of undo) step()
})

const PROGRAM = `
  import { Queue } from 'node-uring'
  let code
  try {
    new Queue({ backend: 'io_uring' })
  } catch (error) {
    code = error.reason.code
  }
  const queue = new Queue()
  console.log(queue.backend, queue.capabilities.reason.code, code)
  await queue.close()`

for (const [name, npm, binary, args] of [
  ['Bun', '@oven/bun-linux-x64', 'bin/bun', ['run']],
  ['Deno', '@deno/linux-x64-glibc', 'deno', ['run', '-A']],
] as const) {
  const { at, that } = fromNpm(npm)
  const runtime = path.join(at, binary)
  needs(test.serial, { that })(
    `on ${name} there is no ring, and the reason is ENOTSUP`,
    async (t) => {
      t.timeout(120_000)
      t.is(await app.run('reason.mjs', PROGRAM, runtime, args), 'node:fs ENOTSUP ENOTSUP\n')
    },
  )
  needs(test.serial, { that })(`on ${name} all of it works on node:fs`, async (t) => {
    t.timeout(120_000)
    const smoke = fs.readFileSync(fixture('smoke.mjs'), 'utf8').replace('process.argv[2]', `'.'`)
    t.regex(await app.run('smoke.mjs', smoke, runtime, args), /^smoke: \{"backend":"node:fs"/)
  })
}
