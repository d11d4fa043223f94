// Everything that CI checks, in one run: `npm test`. Each step is run even when an earlier one
// failed, so that one run shows all there is to mend. The last line is always
// `N passed, N failed`, with `, N skipped` when something was; a step without tests counts as one.
//
//   npm test -- --only ava,types          some steps (the build is always brought up to date)
//   npm test -- __test__/file.test.ts     one test file; --match 'title*' narrows it further
//   npm test -- --verbose                 all output of every step, not only of failing ones
//   npm test -- --ci                      as with CI=true: a skip not in allowed-skips.json fails
//   npm run test:slow                     the slow tests, recorded in docs/test-slow.md

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { drift } from './drift.js'
import { avaReader, cargoReader, exitCodeReader } from './readers.js'
import { recordSlowRun } from './record.js'
import { progress, run } from './run.js'
import { cargoLocked, missingPrerequisite, parts } from './setup.js'

const { values: options, positionals: files } = parseArgs({
  allowPositionals: true,
  options: {
    ci: { type: 'boolean', default: Boolean(process.env.CI) },
    match: { type: 'string', multiple: true, default: [] },
    only: { type: 'string' },
    slow: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
  },
})

const cargo = (...args) => ['cargo', ...args, ...cargoLocked]
const bin = (name, ...args) => [`node_modules/.bin/${name}`, ...args]
const matches = options.match.flatMap((pattern) => ['--match', pattern])

const fastSteps = [
  {
    name: 'fmt',
    title: 'cargo fmt (files that `npm run format` would change)',
    command: ['cargo', 'fmt', '--all', '--', '--check', '-l'],
  },
  {
    name: 'clippy',
    title: 'cargo clippy',
    command: [
      ...cargo('clippy', '--workspace', '--all-targets', '--keep-going'),
      ...['--', '-D', 'warnings'],
    ],
  },
  {
    name: 'cargo',
    title: 'cargo test',
    command: [...cargo('test', '--workspace', '--no-fail-fast'), '--', '--show-output'],
    reader: cargoReader,
  },
  { name: 'drift', title: 'generated files (index.js, index.d.ts)', check: drift },
  {
    name: 'biome',
    title: 'biome',
    command: bin('biome', 'ci', '--error-on-warnings', '--colors=off'),
  },
  {
    name: 'types',
    title: 'types of the library',
    command: bin('tsc', '-p', 'tsconfig.json', '--noEmit'),
  },
  {
    name: 'types',
    title: 'types of tests, benchmarks and examples',
    command: bin('tsc', '-p', 'tsconfig.check.json'),
  },
  {
    name: 'release',
    title: 'the binary that is published: size, and the oldest glibc',
    command: ['node', 'scripts/release/build.js', '--check'],
  },
  {
    name: 'ava',
    title: 'ava',
    command: bin('ava', ...matches, ...(files.length > 0 ? files : ['__test__/*.test.ts'])),
    reader: avaReader,
  },
  {
    name: 'node-fs',
    title: 'ava on node:fs (but for what __test__/node-fs.json lists)',
    command: bin('ava', ...matches, ...(files.length > 0 ? files : filesOnNodeFs())),
    // No binary is found, so every queue falls back, also those of programs that tests start.
    env: {
      URING_TEST_BACKEND: 'node:fs',
      NAPI_RS_NATIVE_LIBRARY_PATH: '/nonexistent/node-uring.node',
      // A tenth of what a ring does in the time.
      MIX_STEPS: '100000',
    },
    reader: avaReader,
  },
  { name: 'fuzz', title: 'fuzz target, 30 s', command: ['node', 'scripts/fuzz.js'] },
]

const slowMs = 4 * 60 * 60 * 1000
const slowSteps = [
  {
    name: 'cargo',
    title: 'slow cargo tests',
    command: [
      ...cargo('test', '--workspace', '--no-fail-fast'),
      '--',
      '--ignored',
      '--show-output',
    ],
    reader: cargoReader,
    timeoutMs: slowMs,
  },
  {
    name: 'ava',
    title: 'slow ava tests',
    command: bin('ava', '--timeout=1h', ...matches, ...(files.length > 0 ? files : slowFiles())),
    reader: avaReader,
    timeoutMs: slowMs,
  },
  {
    name: 'loom',
    title: 'loom',
    command: [
      ...cargo('test', '-p', 'node-uring-core', '--test', 'loom_wakeup', '--release'),
      ...['--config', 'build.rustflags=["--cfg","loom"]', '--target-dir', 'target/loom'],
    ],
    reader: cargoReader,
    timeoutMs: slowMs,
  },
  {
    name: 'asan',
    title: 'core under AddressSanitizer',
    command: ['node', 'scripts/asan.js', 'core'],
    reader: cargoReader,
    timeoutMs: slowMs,
  },
  {
    name: 'asan',
    title: 'addon under AddressSanitizer',
    command: ['node', 'scripts/asan.js', 'addon'],
    reader: avaReader,
    timeoutMs: slowMs,
  },
  {
    name: 'fuzz',
    title: 'fuzz target, 10 minutes',
    command: ['node', 'scripts/fuzz.js', '--seconds', '600'],
    timeoutMs: slowMs,
  },
].filter((step) => step.name !== 'ava' || files.length > 0 || slowFiles().length > 0)

function slowFiles() {
  const folder = '__test__/slow'
  if (!existsSync(folder)) return []
  return readdirSync(folder)
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => join(folder, name))
}

/** The test files that make sense without a ring. */
function filesOnNodeFs() {
  const out = JSON.parse(readFileSync('__test__/node-fs.json', 'utf8')).files
  return readdirSync('__test__')
    .filter((name) => name.endsWith('.test.ts') && !(name in out))
    .map((name) => join('__test__', name))
}

const total = { passed: 0, failed: 0, skipped: 0 }
const failedTitles = []
const seenSkips = []

const missing = missingPrerequisite()
if (missing) {
  console.error(missing)
  process.exit(1)
}
const steps = choose(options.slow ? slowSteps : fastSteps)
await build()
for (const step of steps) await runStep(step)
report()
if (options.slow && !options.only && files.length === 0) await recordSlowRun(summary())
console.log(summary())
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0

function choose(all) {
  const only = options.only?.split(',') ?? (files.length + matches.length > 0 ? ['ava'] : undefined)
  if (!only) return all
  const names = new Set(all.map((step) => step.name))
  const unknown = only.filter((name) => !names.has(name))
  if (unknown.length > 0) {
    console.error(`No such step: ${unknown}. There are ${[...names].join(', ')}.`)
    process.exit(1)
  }
  return all.filter((step) => only.includes(step.name))
}

/** Brings the build up to date. It counts only when it fails: a second run counts as the first. */
async function build() {
  for (const part of parts) {
    if (!part.stale()) continue
    const ok = await runStep({ title: part.title, check: part.make })
    if (ok) total.passed -= 1
    // Nothing else can run without the packages.
    if (!ok && part === parts[0]) {
      console.log(summary())
      process.exit(1)
    }
  }
}

async function runStep(step) {
  const { title, command, check, env, reader: makeReader = exitCodeReader, timeoutMs } = step
  const reader = makeReader()
  const done = progress(title, reader.status)
  const { ok, lines } = check
    ? await check({ ci: options.ci })
    : await run(command, { onLine: reader.line, timeoutMs, env })
  const { passed, failed, skips } = reader.end(ok)

  const forbidden = options.ci ? skips.filter((skip) => !isAllowed(skip)) : []
  total.passed += passed
  total.failed += failed + forbidden.length
  total.skipped += skips.length - forbidden.length
  if (failed > 0) failedTitles.push(title)
  for (const skip of skips) {
    seenSkips.push(
      `${forbidden.includes(skip) ? 'skipped without leave' : 'skipped'}: ${skip.title} — ${skip.reason}`,
    )
  }

  const counted = makeReader === exitCodeReader ? '' : `  ${passed} passed, ${failed} failed`
  done(`${failed > 0 ? 'FAILED' : 'ok'}${counted}`)
  if (options.verbose) console.log(lines.join('\n'))
  else if (failed > 0) console.log(lines.filter(reader.worthShowing).join('\n'))
  return failed === 0
}

/** Whether __test__/allowed-skips.json lists it. Ava puts the file's name before the title. */
function isAllowed({ title, reason }) {
  const allowed = JSON.parse(readFileSync('__test__/allowed-skips.json', 'utf8'))
  return allowed.some(
    (entry) =>
      entry.reason === reason && (title === entry.title || title.endsWith(` › ${entry.title}`)),
  )
}

function report() {
  console.log()
  for (const line of seenSkips) console.log(line)
  for (const title of failedTitles) console.log(`failed: ${title}`)
  if (total.passed + total.failed === 0) console.log('nothing ran')
}

function summary() {
  const { passed, failed, skipped } = total
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`
}
