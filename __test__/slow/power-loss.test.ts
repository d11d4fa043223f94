// Power loss: a guest writes to ext4 on a drive with a volatile cache, and says on its serial line what
// the library acknowledged. qemu is killed at a random moment, what the drive had not flushed is lost
// sector by sector, and every acknowledged record must be there, whole. (Killing a process alone would
// prove nothing: the page cache survives it.) Two controls must lose records: no fdatasync, and a
// file system that never flushes its drive.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { boot } from '../../scripts/guest/guest.js'
import { VolatileDrive } from '../../scripts/guest/volatile-drive.js'
import { childJson, fixture } from '../helpers/child.js'
import { ext4Image, GUEST_COMMANDS, kernels, story } from '../helpers/guest.js'
import { random } from '../helpers/random.js'
import { folder } from '../helpers/scratch.js'
import { needs } from '../helpers/skip.js'

const KERNEL = '6.1'
const POWER_CUTS = 20
const AFTER_FIRST_ACK_MS_MAX = 4000
/** Nothing is written to the drive or flushed by itself: only because somebody asked for it. */
const NOTHING_BY_ITSELF = `
  echo 0 > /proc/sys/vm/dirty_writeback_centisecs &&
  echo 60000 > /proc/sys/vm/dirty_expire_centisecs`

const guestTest = needs(test.serial, {
  commands: [...GUEST_COMMANDS, 'e2fsck', 'debugfs'],
  that: kernels(KERNEL),
})

/** What fixtures/power-loss.mjs writes: `writeAt` with datasync twice, `commit`, `replaceFile`. */
const KINDS = ['commit', 'log', 'replaced', 'sector']
const kindsOf = (records: readonly string[]): string[] =>
  [...new Set(records.map((record) => record.split(' ')[0] ?? ''))].sort()

interface Verdict {
  readonly acked: number
  /** Acknowledged records that are not there, or not whole: `KIND NUMBER`. */
  readonly lost: readonly string[]
  /** Kinds of which something was acknowledged. */
  readonly kinds: readonly string[]
  readonly flushes: number
  /** Sectors in the drive's cache when the power went. */
  readonly cached: number
}

/** One guest, one power cut. `delayMs` runs from when so many kinds had an acknowledgement. */
async function cut(
  t: ExecutionContext<unknown>,
  {
    how,
    barrier,
    kinds,
    delayMs,
    lost,
  }: { how: string; barrier: 0 | 1; kinds: number; delayMs: number; lost: () => boolean },
): Promise<Verdict> {
  const image = ext4Image(t)
  const drive = await VolatileDrive.of(image)
  t.teardown(() => drive.close())
  const acked: string[] = []
  let timer: NodeJS.Timeout | undefined
  const guest = boot({
    kernel: KERNEL,
    program: fs.readFileSync(fixture('power-loss.mjs'), 'utf8'),
    args: ['write', '/mnt', how],
    before: `${NOTHING_BY_ITSELF} &&
      mount -t ext4 -o commit=300,barrier=${barrier} /dev/nvme0n1 /mnt`,
    drives: [drive.drive],
    onLine(line, { kill }) {
      const record = /^ack (\w+ \d+)\.$/.exec(line)?.[1]
      if (record === undefined) return
      acked.push(record)
      if (timer === undefined && kindsOf(acked).length >= kinds) timer = setTimeout(kill, delayMs)
    },
  })
  t.teardown(guest.kill)
  const end = await guest.ended
  t.true(timer !== undefined && end.code === undefined && !end.late, story(end))
  const { flushes } = drive
  const cached = drive.cutPower(image, lost)
  const left = readBack(t, image)
  const acks = path.join(folder(t), 'acks.json')
  fs.writeFileSync(acks, JSON.stringify(acked))
  const args = ['check', left, acks]
  const verdict = await childJson<Verdict>(fixture('power-loss.mjs'), { args })
  return { ...verdict, kinds: kindsOf(acked), flushes, cached }
}

/** The files in an image, after its journal was replayed; nothing is mounted. */
function readBack(t: ExecutionContext<unknown>, image: string): string {
  // 1: it corrected something, which replaying a journal is.
  const { status, stdout } = spawnSync('e2fsck', ['-fy', image], { encoding: 'utf8' })
  t.true(status === 0 || status === 1, `e2fsck ended with ${status}: ${stdout}`)
  const at = folder(t)
  execFileSync('debugfs', ['-R', `rdump / ${at}`, image], { stdio: 'pipe' })
  return at
}

guestTest(
  `what was acknowledged is there, whole, after each of ${POWER_CUTS} power cuts`,
  async (t) => {
    t.timeout(3_600_000)
    const { below } = random(Date.now())
    let acked = 0
    const kinds = new Set<string>()
    for (let round = 0; round < POWER_CUTS; round++) {
      const delayMs = below(AFTER_FIRST_ACK_MS_MAX)
      const verdict = await cut(t, {
        how: 'datasync',
        barrier: 1,
        kinds: 1,
        delayMs,
        lost: () => below(2) === 0,
      })
      t.log(JSON.stringify({ delayMs, ...verdict }))
      t.deepEqual(verdict.lost, [], `cut ${round}, ${delayMs} ms after the first acknowledgement`)
      acked += verdict.acked
      for (const kind of verdict.kinds) kinds.add(kind)
    }
    t.deepEqual([...kinds].sort(), KINDS)
    t.true(acked > POWER_CUTS * 10, `${acked} records acknowledged`)
  },
)

guestTest('control: without the fdatasync acknowledged records are lost', async (t) => {
  t.timeout(600_000)
  const verdict = await cut(t, {
    how: 'nothing',
    barrier: 1,
    kinds: KINDS.length,
    delayMs: 500,
    lost: () => true,
  })
  t.log(JSON.stringify({ ...verdict, lost: verdict.lost.length }))
  t.deepEqual(kindsOf(verdict.lost), KINDS, 'the test would not notice a missing fdatasync')
})

guestTest('control: with a file system that does not flush its drive they are lost', async (t) => {
  t.timeout(600_000)
  const verdict = await cut(t, {
    how: 'datasync',
    barrier: 0,
    kinds: KINDS.length,
    delayMs: 500,
    lost: () => true,
  })
  t.log(JSON.stringify({ ...verdict, lost: verdict.lost.length }))
  t.deepEqual(kindsOf(verdict.lost), KINDS, 'the drive keeps what was not flushed')
})
