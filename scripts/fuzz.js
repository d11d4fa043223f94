// Builds and runs the fuzz target of crates/core: sequences of calls against a real ring, watched by
// AddressSanitizer and by a model. It makes files below one folder in TMPDIR and nowhere else.
//
//   node scripts/fuzz.js                  30 s, for CI
//   node scripts/fuzz.js --seconds 600
//   node scripts/fuzz.js FILE             one input again, such as target/fuzz/artifacts/crash-…
//
// Inputs worth keeping stay in target/fuzz/corpus, so that the next run goes on where this one ended.
// cargo-fuzz is not needed, though `cargo +nightly fuzz run engine` in crates/core works as well.

import { mkdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { cargo, missingSanitizer, passThrough, TARGET } from './nightly.js'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const { values: options, positionals: inputs } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '30' } },
})

const FOLDER = resolve('target/fuzz')
/** What cargo-fuzz gives to rustc: coverage for libFuzzer, and AddressSanitizer. */
const flags = [
  '-Zsanitizer=address',
  '-Cforce-frame-pointers=yes',
  '--cfg=fuzzing',
  '-Ccodegen-units=1',
  '-Cpasses=sancov-module',
  ...['level=4', 'inline-8bit-counters', 'pc-table', 'trace-compares', 'stack-depth'].map(
    (feature) => `-Cllvm-args=-sanitizer-coverage-${feature}`,
  ),
  '-Cllvm-args=-simplifycfg-branch-fold-threshold=0',
]

const missing = missingSanitizer()
if (missing) console.log(`skipped: the fuzz target — ${missing}`)
else process.exitCode = build() || fuzz()

function build() {
  const args = ['build', '--release', '--locked', '--quiet']
  return cargo(args, { flags, folder: 'fuzz', cwd: 'crates/core/fuzz' })
}

function fuzz() {
  const [corpus, artifacts] = [join(FOLDER, 'corpus'), join(FOLDER, 'artifacts/')]
  for (const folder of [corpus, artifacts]) mkdirSync(folder, { recursive: true })
  const engine = join(FOLDER, TARGET, 'release/engine')
  const limits = ['-timeout=60', '-rss_limit_mb=2048']
  if (inputs.length > 0) return passThrough([engine, ...limits, ...inputs])
  const run = [
    `-artifact_prefix=${artifacts}`,
    `-max_total_time=${options.seconds}`,
    // Long sequences soon: short ones leave little in flight.
    ...['-max_len=2000', '-len_control=20', '-print_final_stats=1', '-verbosity=1'],
  ]
  return passThrough([engine, corpus, ...limits, ...run])
}
