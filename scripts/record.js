// Writes down when the slow tests last ran, on which commit and with what result. Only the last
// run is kept; history is git's.

import { mkdirSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { run } from './run.js'

const FILE = 'docs/test-slow.md'

/** @param {string} result the run's last line */
export async function recordSlowRun(result) {
  const { ok, lines } = await run(['git', 'log', '-1', '--format=%H'])
  const { lines: changes } = await run(['git', 'status', '--porcelain', '--', '.', `:!${FILE}`])
  const dirty = changes.length > 0 ? ' with uncommitted changes' : ''
  mkdirSync('docs', { recursive: true })
  writeFileSync(
    FILE,
    `# The slow tests

What takes too long for \`npm test\`: \`__test__/slow\`, the cargo tests marked
\`#[ignore = "slow"]\`, loom, core and addon under AddressSanitizer, and ten minutes of the fuzz target.
\`npm run test:slow\` runs them and writes this file. [safety.md](safety.md) says what they found.

| last run | |
|---|---|
| date | ${new Date().toISOString().slice(0, 10)} |
| commit | ${ok && lines[0] ? `${lines[0]}${dirty}` : 'none'} |
| Node.js, Linux | ${process.versions.node}, ${release().match(/^\d+\.\d+/)} |
| result | ${result} |
`,
  )
}
