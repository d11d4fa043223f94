// The packages under other runtimes than Node.js, from npm. Neither exports libuv's functions so that
// they can be called: a thread waits for completions there.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { fixture } from '../helpers/child.js'
import { fromNpm } from '../helpers/npm.js'
import { installed } from '../helpers/packed.js'
import { needs } from '../helpers/skip.js'

const made = installed(test)

for (const [name, npm, binary, args] of [
  ['Bun', '@oven/bun-linux-x64', 'bin/bun', ['run']],
  ['Deno', '@deno/linux-x64-glibc', 'deno', ['run', '-A']],
] as const) {
  const { at, that } = fromNpm(npm)
  const runtime = path.join(at, binary)
  for (const backend of ['io_uring', 'node:fs']) {
    needs(test.serial, { that })(`on ${name} all of it works on ${backend}`, async (t) => {
      t.timeout(120_000)
      const smoke = fs
        .readFileSync(fixture('smoke.mjs'), 'utf8')
        .replace('process.argv[2]', `'.'`)
        .replace('new Queue({', `new Queue({ backend: '${backend}', `)
      const said = await made.app.run('smoke.mjs', smoke, runtime, args)
      t.true(said.startsWith(`smoke: {"backend":"${backend}"`), said)
    })
  }
}
