// The packages under every line of Node.js that they are for, and under the newest there is, each from
// npm; and what the linters of packages say of them.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { fixture } from '../helpers/child.js'
import { fromNpm } from '../helpers/npm.js'
import { installed, readmeExample, WAYS_IN } from '../helpers/packed.js'
import { needs } from '../helpers/skip.js'

const made = installed(test)

for (const version of ['20', '22', '24', 'latest']) {
  const { at, that } = fromNpm(`node-linux-${process.arch}`, version)
  const binary = path.join(at, 'bin/node')
  needs(test.serial, { that })(
    `all of it works on ${version === 'latest' ? 'the newest Node.js' : `Node.js ${version}`}`,
    async (t) => {
      t.timeout(300_000)
      const release = await made.app.node('version.mjs', 'console.log(process.version)', binary)
      t.log(release.trim())
      if (version !== 'latest') t.true(release.startsWith(`v${version}.`), release)
      for (const [name, program] of WAYS_IN) {
        t.is(await made.app.node(name, program, binary), 'loaded Queue File\n', name)
      }
      t.regex(await made.app.node('readme.mjs', readmeExample(), binary), /^4096 4096 \{/)
      const smoke = fs.readFileSync(fixture('smoke.mjs'), 'utf8').replace('process.argv[2]', `'.'`)
      t.regex(await made.app.node('smoke.mjs', smoke, binary), /^smoke: \{"backend":"io_uring"/)
    },
  )
}

/** A linter from npm at a version: what it prints, or an error with that. */
function npx(...args: string[]): string {
  return execFileSync('npx', ['--yes', ...args], {
    encoding: 'utf8',
    stdio: 'pipe',
    timeout: 300_000,
  })
}

test.serial('publint finds nothing', (t) => {
  t.timeout(600_000)
  t.regex(npx('publint@0.3.25', '--strict', made.packed.root), /All good!/)
  // It suggests a "type" to packages that hold no JavaScript.
  for (const folder of made.packed.platforms) {
    t.regex(npx('publint@0.3.25', '--strict', '--level', 'warning', folder), /All good!/)
  }
})

test.serial('arethetypeswrong finds nothing, for a package that is ESM alone', (t) => {
  t.timeout(600_000)
  const said = npx(
    '@arethetypeswrong/cli@0.18.5',
    '--profile',
    'esm-only',
    made.packed.tarballs.at(-1)!,
  )
  t.regex(said, /node16 \(from ESM\).*🟢/)
  // What it finds under a resolution that the profile ignores, it prints all the same.
  const found = said.split('\n').filter((line) => !line.includes('ignored'))
  t.notRegex(found.join('\n'), /❌|💀|🚭|⚠️/)
})
