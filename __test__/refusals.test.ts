// Real refusals, as containers and limits make them: a seccomp filter of our own answers a system call
// with an errno, and users may lock no memory. What is asked for by name is refused with the reason; what
// is not falls back to node:fs and tells the reason. (kernel.io_uring_disabled: slow/kernels.test.ts;
// Docker's own profile: slow/docker.test.ts.)

import { execFileSync } from 'node:child_process'
import { constants } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { childJson, fixture } from './helpers/child.js'
import { folder } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

/** The same on every processor that has them; io_uring_setup(2). */
const [SETUP, REGISTER] = [425, 427]

const undo: (() => void)[] = []
let refuse = ''
test.before('compiling the launcher', () => {
  refuse = path.join(folder({ teardown: (step) => undo.push(step) }), 'refuse')
  execFileSync('cc', ['-o', refuse, fileURLToPath(fixture('refuse.c'))])
})
test.after.always('removing it', () => {
  for (const step of undo) step()
})

interface Reason {
  readonly code: string
  readonly errno: number
  readonly message: string
  readonly help: string
}

/** What a program meets. */
interface Met {
  /** The error of a queue that has to be io_uring's. */
  readonly error: { code: string; reason: Reason } | null
  readonly backend: string
  readonly reason: Reason | null
  /** What was read back through the queue that there is. */
  readonly read: string
}

const MEET = `
  import fs from 'node:fs'
  import os from 'node:os'
  import path from 'node:path'
  import { Queue } from 'node-uring'
  const options = JSON.parse(process.argv[1] ?? '{}')
  if (process.argv[2]) process.setgroups([])
  if (process.argv[2]) process.setgid(Number(process.argv[2]))
  if (process.argv[2]) process.setuid(Number(process.argv[2]))
  let error = null
  try {
    // The kernel gives locked memory back a little later than a ring is closed.
    if (options.backend === undefined) await new Queue({ ...options, backend: 'io_uring' }).close()
  } catch ({ code, reason }) {
    error = { code, reason }
  }
  const queue = new Queue(options)
  const place = fs.mkdtempSync(path.join(os.tmpdir(), 'node-uring-'))
  const file = await queue.open(path.join(place, 'file'), 'w+')
  await file.writeAt(Buffer.from('written'), 0, { datasync: true })
  const read = (await file.bytesAt(0, 100)).toString()
  await file.close()
  fs.rmSync(place, { recursive: true })
  const { backend, capabilities } = queue
  await queue.close()
  console.log(JSON.stringify({ error, backend, reason: capabilities.reason ?? null, read }))`

for (const [name, errno, words] of [
  ['EPERM', constants.errno.EPERM, /seccomp/],
  ['ENOSYS', constants.errno.ENOSYS, /sandbox/],
  ['EACCES', constants.errno.EACCES, /security module/],
  ['ENOMEM', constants.errno.ENOMEM, /ulimit -l/],
] as const) {
  test(`where a filter answers io_uring_setup with ${name}, that is the reason given, and node:fs works`, async (t) => {
    t.timeout(60_000)
    const under = [refuse, String(SETUP), String(errno)]
    const { error, backend, reason, read } = await childJson<Met>(MEET, { under })
    t.is(error?.code, 'ERR_URING_UNAVAILABLE')
    t.is(error?.reason.code, name)
    t.is(error?.reason.errno, -errno)
    t.regex(`${error?.reason.message} ${error?.reason.help}`, words)
    t.is(backend, 'node:fs')
    t.deepEqual(reason, error?.reason ?? null)
    t.is(read, 'written')
  })
}

test('where a filter refuses io_uring_register, node:fs works: a ring that cannot wake us is none', async (t) => {
  t.timeout(60_000)
  const under = [refuse, String(REGISTER), String(constants.errno.EPERM)]
  const { error, backend, read } = await childJson<Met>(MEET, { under })
  t.is(error?.reason.code, 'EPERM')
  t.is(backend, 'node:fs')
  t.is(read, 'written')
})

const NOBODY = '65534'
/** What is locked is counted by user: one that no other test becomes, so that nobody else counts. */
const ALONE = '61235'

needs(test, { root: true })(
  'a user who may lock no memory is told so with ENOMEM, and node:fs works',
  async (t) => {
    t.timeout(60_000)
    const options = { before: 'ulimit -l 0', args: ['{}', NOBODY] }
    const { error, backend, reason, read } = await childJson<Met>(MEET, options)
    t.is(error?.reason.code, 'ENOMEM')
    t.is(error?.reason.errno, -constants.errno.ENOMEM)
    t.is(backend, 'node:fs')
    t.is(reason?.code, 'ENOMEM')
    t.is(read, 'written')
  },
)

needs(test, { root: true })('a user who may lock 16 KiB has a ring of 64 entries', async (t) => {
  t.timeout(60_000)
  const options = { before: 'ulimit -l 16', args: ['{"entries":64,"backend":"io_uring"}', ALONE] }
  const { backend, read } = await childJson<Met>(MEET, options)
  t.is(backend, 'io_uring')
  t.is(read, 'written')
})
