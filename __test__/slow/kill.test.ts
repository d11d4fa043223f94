// kill -9 during group commit and during replaceFile, many times.

import test from 'ava'
import { each } from '../helpers/child.js'
import { killDuringCommit, killDuringReplace } from '../helpers/kill.js'
import { random } from '../helpers/random.js'

const ROUNDS = 200

for (const [what, round] of [
  ['every record that was acknowledged by a group commit', killDuringCommit],
  ['a whole file, as new as the last acknowledgement of replaceFile,', killDuringReplace],
] as const) {
  test.serial(`${what} is there after kill -9, ${ROUNDS} times`, async (t) => {
    t.timeout(1_800_000)
    const r = random(ROUNDS)
    await each([...Array(ROUNDS).keys()], () => round(t, r), 2)
  })
}
