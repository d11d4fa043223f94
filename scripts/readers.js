// Read what test programs print and count it. A reader takes lines as they come and says at the
// end what passed, what failed and what was skipped, and which lines are worth showing when
// something failed. They know the formats of `cargo test` and of ava, and nothing of processes.

import { stripVTControlCharacters } from 'node:util'

/** How a skipped test gives its reason; __test__/helpers/skip.ts writes the same. */
const DASH = ' — '
const SKIPPED = /^skipped: (.+)$/

/** What cargo says while it works; failures are told in lines that begin otherwise. */
const CARGO_PROGRESS = /^ +(Blocking|Compiling|Checking|Downloaded|Downloading|Finished|Updating) /
const PASSED_CARGO_TEST = /^test .* \.\.\. (ok|ignored.*)$/

/** @typedef {{ title: string, reason: string }} Skip */
/** @typedef {{ passed: number, failed: number, skips: Skip[] }} Counts */

/** A command that has nothing to count is one check: its exit code. It may skip itself, too. */
export function exitCodeReader() {
  const skips = []
  return {
    line(raw) {
      const skipped = SKIPPED.exec(stripVTControlCharacters(raw))
      if (skipped) skips.push(splitReason(skipped[1]))
    },
    /** @returns {Counts} */
    end: (ok) => ({ passed: ok && skips.length === 0 ? 1 : 0, failed: ok ? 0 : 1, skips }),
    status: () => '',
    worthShowing: (line) => !CARGO_PROGRESS.test(stripVTControlCharacters(line)),
  }
}

/**
 * Reads `cargo test --no-fail-fast -- --show-output`. A test that skips itself prints
 * `skipped: <title> — <reason>` and returns; cargo counts it as passed, we do not. Tests that are
 * `#[ignore = "slow"]` belong to `npm run test:slow`; any other ignored test is a skip.
 */
export function cargoReader() {
  const counts = { passed: 0, failed: 0, skips: [] }
  let selfSkipped = 0
  return {
    line(raw) {
      const line = stripVTControlCharacters(raw)
      const result = /^test result: \w+\. (\d+) passed; (\d+) failed;/.exec(line)
      const skipped = SKIPPED.exec(line)
      const ignored = /^test (.+) \.\.\. ignored(?:, (.*))?$/.exec(line)
      // A binary that was killed or left by exit() has no result line.
      if (/^ {2}process didn't exit successfully: /.test(line)) counts.failed += 1
      else if (result) {
        counts.passed += Number(result[1])
        counts.failed += Number(result[2])
      } else if (skipped) {
        selfSkipped += 1
        counts.skips.push(splitReason(skipped[1]))
      } else if (ignored && !ignored[2]?.startsWith('slow')) {
        counts.skips.push({ title: ignored[1], reason: ignored[2] ?? 'ignored' })
      }
    },
    /** @returns {Counts} */
    end(ok) {
      counts.passed -= selfSkipped
      // It did not compile.
      if (!ok && counts.failed === 0) counts.failed = 1
      return counts
    },
    status: () => `${counts.passed} passed, ${counts.failed} failed`,
    worthShowing(raw) {
      const line = stripVTControlCharacters(raw)
      return !CARGO_PROGRESS.test(line) && !PASSED_CARGO_TEST.test(line)
    },
  }
}

/**
 * Reads ava's default report, which it writes to stdout alone (tests' own output goes to stderr).
 * Not TAP: ava's TAP drops the stack and names ava's own file as the place of a failed assertion.
 */
export function avaReader() {
  const counts = { passed: 0, failed: 0, skips: [] }
  return {
    line(raw, stream) {
      if (stream !== 'stdout') return
      const line = stripVTControlCharacters(raw)
      const skipped = /^ {2}- \[(skip|todo)\] (.+)$/.exec(line)
      if (/^ {2}[✔√] /.test(line)) counts.passed += 1
      else if (/^ {2}[✘×] /.test(line)) counts.failed += 1
      else if (skipped) {
        const skip = splitReason(skipped[2])
        counts.skips.push(skipped[1] === 'todo' ? { ...skip, reason: 'to do' } : skip)
      }
    },
    /** @returns {Counts} */
    end(ok) {
      if (!ok && counts.failed === 0) counts.failed = 1
      return counts
    },
    status: () => `${counts.passed} passed, ${counts.failed} failed`,
    worthShowing: (line) => !/^ {2}[✔√] /.test(stripVTControlCharacters(line)),
  }
}

function splitReason(text) {
  const at = text.lastIndexOf(DASH)
  return at < 0
    ? { title: text, reason: 'no reason given' }
    : { title: text.slice(0, at), reason: text.slice(at + DASH.length) }
}
