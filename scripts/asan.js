// The tests under AddressSanitizer, which stops at the first access to memory that is not there, no
// longer there or somebody else's. It sees what our code and V8's copies touch, not what the kernel
// writes: tests/memory.rs and the fuzz target watch that with bytes of their own.
//
//   node scripts/asan.js core     cargo tests of crates/core, with leaks (LeakSanitizer)
//   node scripts/asan.js addon    the ava suite with a binding built for it (needs gcc's libasan)
//
// Everything is built below target/asan. The exit code and the output are those of the tests, as
// scripts/test.js reads them; a report of AddressSanitizer fails the run whatever the tests say.

import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cargo, missingSanitizer, passThrough, TARGET } from './nightly.js'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const flags = ['-Zsanitizer=address', '-Cforce-frame-pointers=yes']
const FOLDER = 'target/asan'

/**
 * Leaks that are meant, by the function that allocated: what Engine::shutdown keeps for ever when
 * the kernel did not let go. What is reachable from them is not reported either. (That they are freed
 * in every other case is counted by tests/shutdown.rs.)
 */
const SUPPRESSIONS = `
leak:node_uring_core::in_flight::InFlight>::is_free
leak:alloc::rc::Rc<node_uring_core::arena::mapping::Mapping>>::new
`

/** Tests that the addon's run leaves out, each with its reason. */
const EXCLUDED = {
  '40 workers terminated at work leave no descriptor, thread or mapping behind':
    'it counts mappings, and AddressSanitizer keeps some of each thread that ended',
}

/** Whole files. */
const LEFT_OUT = {
  'kernel.test.ts': 'it loads the addon in a guest, without the runtime',
  'pack.test.ts': 'it loads the addon in an empty environment, without the runtime',
}

const kinds = { core, addon }
const kind = process.argv[2]
const missing = missingSanitizer()
if (!Object.hasOwn(kinds, kind)) {
  console.error('node scripts/asan.js core|addon [arguments for cargo test or ava]')
  process.exitCode = 1
} else if (missing) {
  console.log(`skipped: ${kind} under AddressSanitizer — ${missing}`)
} else {
  mkdirSync(FOLDER, { recursive: true })
  process.exitCode = kinds[kind](process.argv.slice(3))
}

function core(args) {
  const suppressions = resolve(FOLDER, 'lsan.supp')
  writeFileSync(suppressions, SUPPRESSIONS)
  const selection = args.length > 0 ? args : ['--no-fail-fast', '--', '--show-output']
  return cargo(['test', '-p', 'node-uring-core', ...selection], {
    flags,
    folder: 'asan',
    env: {
      ASAN_OPTIONS: 'detect_leaks=1:detect_stack_use_after_return=1',
      LSAN_OPTIONS: `suppressions=${suppressions}:print_suppressions=0`,
      // Random cases are slower here, and random there: as many as elsewhere take a minute.
      PROPTEST_CASES: process.env.PROPTEST_CASES ?? '300',
    },
  })
}

function addon(args) {
  const library = execFileSync('cc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim()
  if (!library.includes('/')) {
    console.log('skipped: addon under AddressSanitizer — needs the libasan of gcc')
    return 0
  }
  const status = buildAddon()
  if (status !== 0) return status

  const tree = copyTree()
  const reports = resolve(FOLDER, 'reports')
  rmSync(reports, { recursive: true, force: true })
  mkdirSync(reports)
  // Node itself leaks at exit. A report goes to a file: the tests' children are many.
  const options = { ASAN_OPTIONS: `detect_leaks=0:log_path=${join(reports, 'report')}` }
  const all = readdirSync('__test__').filter((name) => name.endsWith('.test.ts'))
  const chosen = all
    .filter((name) => !Object.hasOwn(LEFT_OUT, name))
    .map((name) => join('__test__', name))
  const selection = args.length > 0 ? args : chosen
  // One file at a time: many tests have deadlines, and everything is two to four times slower.
  const excluded = Object.entries(EXCLUDED)
  for (const [title, reason] of [...excluded, ...Object.entries(LEFT_OUT)]) {
    console.log(`left out: ${title} — ${reason}`)
  }
  const matches = excluded.flatMap(([title]) => ['--match', `!${title}`])
  const limits = ['--timeout=20m', '--concurrency=1', ...matches]
  const ava = ['node_modules/.bin/ava', ...limits, ...selection]
  const tests = passThrough(ava, { cwd: tree, env: { ...options, LD_PRELOAD: library } })
  const files = readdirSync(reports)
  for (const name of files) console.error(readFileSync(join(reports, name), 'utf8'))
  if (files.length > 0) console.error(`${files.length} reports of AddressSanitizer`)
  return files.length > 0 ? 1 : tests
}

function buildAddon() {
  const profile = {
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS: '16',
    CARGO_PROFILE_RELEASE_DEBUG: 'line-tables-only',
    CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS: 'true',
    CARGO_PROFILE_RELEASE_LTO: 'off',
    CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS: 'true',
    CARGO_PROFILE_RELEASE_STRIP: 'none',
  }
  const args = ['build', '--release', '-p', 'node-uring-binding']
  return cargo(args, { flags, folder: 'asan', env: profile })
}

/**
 * A copy of the project with that binding in place of its own: tests look at the package by its name
 * and at its binary by its path.
 */
function copyTree() {
  const tree = resolve(FOLDER, 'tree')
  rmSync(tree, { recursive: true, force: true })
  const listed = execFileSync('git', ['ls-files', '-co', '--exclude-standard', '-z'])
  for (const name of listed.toString().split('\0').filter(Boolean)) {
    if (!existsSync(name)) continue
    mkdirSync(dirname(join(tree, name)), { recursive: true })
    copyFileSync(name, join(tree, name))
  }
  // Where tests that need a disk make their folders.
  mkdirSync(join(tree, 'target'))
  cpSync('dist', join(tree, 'dist'), { recursive: true })
  symlinkSync(resolve('node_modules'), join(tree, 'node_modules'))
  const binding = join(FOLDER, TARGET, 'release/libnode_uring_binding.so')
  copyFileSync(binding, join(tree, 'node-uring.linux-x64-gnu.node'))
  return tree
}
