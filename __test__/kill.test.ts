// kill -9 during group commit and during replaceFile. 200 rounds of each are in slow/kill.test.ts.

import { each } from './helpers/child.js'
import { killDuringCommit, killDuringReplace } from './helpers/kill.js'
import { random } from './helpers/random.js'
import test from './helpers/test.js'

const ROUNDS = 20

for (const [what, round] of [
  ['every record that was acknowledged by a group commit', killDuringCommit],
  ['a whole file, as new as the last acknowledgement of replaceFile,', killDuringReplace],
] as const) {
  test.serial(`${what} is there after kill -9, ${ROUNDS} times`, async (t) => {
    t.timeout(180_000)
    const r = random(ROUNDS)
    await each([...Array(ROUNDS).keys()], () => round(t, r), 2)
  })
}
