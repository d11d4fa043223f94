// The check that every binary passes before it is published (scripts/release): it has to find what
// would not run on an old distribution, and what has grown.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { childJson } from './helpers/child.js'
import { folder, type Teardown } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

/** A shared object that calls this function, as a compiler here links it. */
function library(t: Teardown, call: string): string {
  const at = folder(t)
  const source = path.join(at, 'library.c')
  fs.writeFileSync(source, `extern int ${call}(); int calls(void) { return ${call}(0, 0, 0); }\n`)
  const output = path.join(at, 'library.node')
  execFileSync('cc', ['-shared', '-fPIC', '-fno-builtin', '-o', output, source], { stdio: 'pipe' })
  return output
}

/** What the check says against a file as the binary of a target. */
function complaints(target: string, binary: string): Promise<string[]> {
  const program = `
    const { complaints } = await import('./scripts/release/build.js')
    const { log } = console
    console.log = () => {}
    log(JSON.stringify(complaints(...process.argv.slice(1))))`
  return childJson<string[]>(program, { args: [target, binary] })
}

const GNU = 'x86_64-unknown-linux-gnu'
const MUSL = 'x86_64-unknown-linux-musl'
const here = needs(test, {
  commands: ['cc'],
  that: { holds: process.arch === 'x64', reason: 'needs Linux on x86-64' },
})

here('a binary that needs glibc 2.25 does not pass, one that needs 2.2.5 does', async (t) => {
  // getrandom(3) came with glibc 2.25, gnu_get_libc_version(3) has been there for ever.
  const [late] = await complaints(GNU, library(t, 'getrandom'))
  t.regex(late ?? 'it passed', /needs glibc 2\.25, and is to run with 2\.17$/)
  t.deepEqual(await complaints(GNU, library(t, 'gnu_get_libc_version')), [])
})

here('a binary for musl that needs any glibc does not pass', async (t) => {
  const [wrong] = await complaints(MUSL, library(t, 'gnu_get_libc_version'))
  t.regex(wrong ?? 'it passed', /needs glibc 2\.2, and is to run with musl$/)
})

here('a binary of more than 1 MiB does not pass', async (t) => {
  const binary = library(t, 'gnu_get_libc_version')
  fs.truncateSync(binary, (1 << 20) + 1)
  t.regex((await complaints(GNU, binary))[0] ?? 'it passed', /is larger than 1048576 bytes$/)
})

test('what is no binary is refused', async (t) => {
  const file = path.join(folder(t), 'file')
  fs.writeFileSync(file, 'something else')
  await t.throwsAsync(complaints(GNU, file), { message: /not a 64-bit ELF file/ })
})
