// What a queue runs on: the choice, the reasons, and where there is no ring that everything works all
// the same. strace refuses the system calls; a copy of the package has no binary.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Queue, type QueueOptions } from 'node-uring'
import { explainUnavailable } from '../src/unavailable.ts'
import { assertEnded, childJson, each, fixture, runChild } from './helpers/child.js'
import { ring, thrown } from './helpers/ring.js'
import { folder } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const injectable = needs(test.serial, {
  commands: ['strace'],
  that: {
    holds: spawnSync('strace', ['-o', '/dev/null', 'true'], { stdio: 'ignore' }).status === 0,
    reason: 'strace may not trace here',
  },
})

interface Reason {
  readonly code: string
  readonly errno?: number
  readonly message: string
  readonly help: string
}

/** What a program told that made a queue of each kind and did a bit of everything with one. */
interface Told {
  readonly backend: string
  readonly reason?: Reason
  readonly wrong: number
  readonly refused?: { readonly code: string; readonly reason: Reason }
}

/** A folder as `fixtures/refused.mjs` wants one. */
function workplace(t: ExecutionContext): string {
  const place = folder(t)
  execFileSync('mkfifo', [path.join(place, 'fifo')])
  const numbers = new Uint32Array(1 << 18).map((_, i) => i)
  fs.writeFileSync(path.join(place, 'data'), Buffer.from(numbers.buffer))
  return place
}

/** strace, refusing a call: `io_uring_setup:error=EPERM`. */
function refusing(inject: string): string[] {
  const [call] = inject.split(':')
  return ['strace', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${inject}`]
}

/** libuv may use io_uring, too. */
const ENV = { UV_USE_IO_URING: '0' }

injectable(
  'where io_uring_setup is refused everything works on node:fs, and the queue says why',
  async (t) => {
    t.timeout(120_000)
    const errnos = {
      ENOSYS: 38,
      EPERM: 1,
      EACCES: 13,
      EOPNOTSUPP: 95,
      ENOMEM: 12,
      EINVAL: 22,
      // Nobody says that it does, and then it is as good as forbidden.
      EFAULT: 14,
    }
    await each(Object.entries(errnos), async ([errno, number]) => {
      const told = await childJson<Told>(fixture('refused.mjs'), {
        args: ['auto', workplace(t)],
        under: refusing(`io_uring_setup:error=${errno}`),
        env: ENV,
      })
      t.is(told.backend, 'node:fs', errno)
      t.is(told.wrong, 0, errno)
      t.is(told.reason?.errno, -number)
      t.is(told.reason?.code, errno === 'EOPNOTSUPP' ? 'ENOTSUP' : errno)
      t.deepEqual(told.refused, { code: 'ERR_URING_UNAVAILABLE', reason: told.reason! })
      t.true(told.reason!.message.length > 10 && told.reason!.help.length > 10)
    })
  },
)

injectable('a queue is not slow for life because descriptors are short for a moment', async (t) => {
  t.timeout(100_000)
  const program = `
    import { Queue } from 'node-uring'
    const made = (options) => {
      try { return new Queue(options).backend } catch ({ code, reason }) { return [code, reason.code] }
    }
    console.log(JSON.stringify([made(), made({ backend: 'io_uring' }), made({ backend: 'node:fs' })]))`
  for (const errno of ['EMFILE', 'ENFILE']) {
    const told = await childJson<unknown>(program, {
      under: refusing(`io_uring_setup:error=${errno}`),
      env: ENV,
    })
    const refused = ['ERR_URING_UNAVAILABLE', errno]
    t.deepEqual(told, [refused, refused, 'node:fs'])
  }
})

/** What is made with so many descriptors left, from none on, and what is open afterwards. */
const WITH_FEW_DESCRIPTORS = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
const options = JSON.parse(process.argv[1])
await new Queue(options).close()
const held = []
const count = () => fs.readdirSync('/proc/self/fd').length
const before = count()
const outcomes = []
for (let left = 0; left < 10; left++) {
  try { for (;;) held.push(fs.openSync('/dev/null')) } catch {}
  for (let i = 0; i < left; i++) fs.closeSync(held.pop())
  let queue
  try {
    queue = new Queue(options)
    outcomes.push(queue.backend)
  } catch ({ code, reason }) {
    outcomes.push(code + ' ' + reason?.code)
  }
  for (const fd of held.splice(0)) fs.closeSync(fd)
  await queue?.nop()
  await queue?.close()
}
console.log(JSON.stringify({ outcomes, left: count() - before }))`

for (const options of [{}, { reap: 'thread' }, { iopoll: true }, { sqpoll: {} }] as const) {
  const asked = JSON.stringify(options)
  test(`whichever descriptor is the one too many, that is what is said: ${asked}`, async (t) => {
    t.timeout(60_000)
    const few = { args: [asked], before: 'ulimit -n 64' }
    const { outcomes, left } = await childJson<{ outcomes: string[]; left: number }>(
      WITH_FEW_DESCRIPTORS,
      few,
    )
    const made = outcomes.indexOf('io_uring')
    t.true(made > 0, outcomes.join())
    const refused = Array(made).fill('ERR_URING_UNAVAILABLE EMFILE')
    t.deepEqual(outcomes, [...refused, ...Array(10 - made).fill('io_uring')])
    t.is(left, 0)
  })
}

needs(test, { root: true, commands: ['prlimit'] })(
  'a queue is not slow for life because threads are short for a moment',
  async (t) => {
    const program = `
      import { execFileSync } from 'node:child_process'
      import { Queue } from 'node-uring'
      await new Queue().close()
      // Root may have as many as it likes.
      process.setgid(65534)
      process.setuid(65534)
      execFileSync('prlimit', ['--pid', String(process.pid), '--nproc=1:1'])
      const made = (options) => {
        try { return new Queue(options).backend } catch ({ code, reason }) { return [code, reason?.code] }
      }
      console.log(JSON.stringify([made({ reap: 'thread' }), made({ sqpoll: {} }), made({})]))`
    const refused = ['ERR_URING_UNAVAILABLE', 'EAGAIN']
    t.deepEqual(await childJson<unknown>(program), [refused, refused, 'io_uring'])
  },
)

injectable(
  'an engine that fails in mid-life fails its queue, which does not change over',
  async (t) => {
    t.timeout(100_000)
    const told = await childJson<unknown>(fixture('refused.mjs'), {
      args: ['fails in the middle', workplace(t)],
      under: refusing('io_uring_enter:error=EBADF'),
      env: ENV,
    })
    t.deepEqual(told, {
      before: 'io_uring',
      outcomes: ['ERR_URING_FAILED', 'ERR_URING_FAILED'],
      after: 'io_uring',
    })
  },
)

test('the option says what a queue runs on, and there is no reason for a ring', async (t) => {
  const auto = ring(t)
  t.is(auto.backend, 'io_uring')
  t.is(auto.capabilities.backend, 'io_uring')
  t.is(auto.capabilities.reason, undefined)
  t.is(ring(t, { backend: 'io_uring' }).backend, 'io_uring')
  const chosen = ring(t, { backend: 'node:fs' })
  t.is(chosen.backend, 'node:fs')
  t.is(chosen.capabilities.backend, 'node:fs')
  t.is(chosen.capabilities.reason?.code, 'CHOSEN')
  await chosen.close()
  t.is(chosen.backend, 'node:fs', 'also of a closed one')
})

test('an option that is no backend is refused before anything is made', (t) => {
  for (const backend of ['', 'fs', 'IO_URING', null, 1, {}]) {
    const error = thrown(() => new Queue({ backend } as unknown as QueueOptions))
    t.is(error.code, 'ERR_INVALID_ARG_VALUE')
    t.regex(error.message, /'options\.backend' must be one of auto, io_uring, node:fs/)
  }
})

test('a queue on node:fs makes no ring and loads no binary', async (t) => {
  t.timeout(100_000)
  const program = `
    import fs from 'node:fs'
    import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    await (await queue.open('/dev/zero')).bytesAt(0, 100)
    const descriptors = fs.readdirSync('/proc/self/fd').map((fd) => {
      try { return fs.readlinkSync('/proc/self/fd/' + fd) } catch { return '' }
    })
    console.log(
      descriptors.some((name) => name.includes('io_uring')),
      /node-uring\\.[a-z0-9-]+\\.node/.test(fs.readFileSync('/proc/self/maps', 'utf8')),
    )
    await queue.close()`
  assertEnded(t, await runChild(program, { env: ENV }), { stdout: 'false false\n' })
})

/** The package as npm leaves it when it skips the one with the binary. */
function withoutBinary(t: ExecutionContext): string {
  const root = path.dirname(new URL('../package.json', import.meta.url).pathname)
  const copy = path.join(folder(t), 'node-uring')
  fs.mkdirSync(copy)
  fs.cpSync(path.join(root, 'dist'), path.join(copy, 'dist'), { recursive: true })
  for (const file of ['package.json', 'index.js']) {
    fs.copyFileSync(path.join(root, file), path.join(copy, file))
  }
  return copy
}

/** Works with a file, and tells on what and why. */
const program = (copy: string, before = ''): string => `
  import fs from 'node:fs'
  ${before}
  const { Queue } = await import(${JSON.stringify(path.join(copy, 'dist/index.js'))})
  const queue = new Queue()
  const file = await queue.open(process.argv[1], 'w+', { direct: true })
  const block = queue.alloc(4096).fill('x')
  let wrong = 0
  if (await file.writeAt(block, 0, { datasync: true }) !== 4096) wrong++
  if (!(await file.bytesAt(0, 5000)).equals(block)) wrong++
  if ((await file.stat()).size !== 4096) wrong++
  await queue.sleep(1)
  let refused
  try { new Queue({ backend: 'io_uring' }) } catch ({ code, reason }) { refused = { code, reason } }
  await queue.close()
  const { backend } = queue
  console.log(JSON.stringify({ backend, reason: queue.capabilities.reason, wrong, refused }))`

test('where npm left the binary out it works on node:fs, and says which package to install', async (t) => {
  t.timeout(100_000)
  const copy = withoutBinary(t)
  const args = [path.join(folder(t), 'file')]
  const told = await childJson<Told>(program(copy), { args })
  t.is(told.backend, 'node:fs')
  t.is(told.wrong, 0)
  const { version } = JSON.parse(fs.readFileSync(path.join(copy, 'package.json'), 'utf8')) as {
    version: string
  }
  const missing = `node-uring-linux-${process.arch}-gnu`
  t.is(told.reason?.code, 'MODULE_NOT_FOUND')
  t.true(told.reason?.message.includes(missing), told.reason?.message)
  t.true(told.reason?.help.includes(`npm install ${missing}@${version}`), told.reason?.help)
  t.deepEqual(told.refused, { code: 'ERR_URING_UNAVAILABLE', reason: told.reason! })
})

for (const platform of ['darwin', 'win32']) {
  test(`on ${platform} the package imports without a binary, and works on node:fs`, async (t) => {
    t.timeout(100_000)
    const before = `Object.defineProperty(process, 'platform', { value: '${platform}' })`
    const args = [path.join(folder(t), 'file')]
    const told = await childJson<Told>(program(withoutBinary(t), before), { args })
    t.is(told.backend, 'node:fs')
    t.is(told.wrong, 0)
    t.is(told.reason?.code, 'ENOSYS')
    t.true(told.reason?.message.includes(platform))
    t.is(told.refused?.code, 'ERR_URING_UNAVAILABLE')
  })
}

test('a missing binary is named by what the loader looked for, and a platform without one is told so', (t) => {
  const chain = (...names: string[]): Error =>
    names.reduceRight<Error>(
      (cause, name) => new Error(`Cannot find module '${name}'`, { cause }),
      new Error('the first'),
    )
  const musl = explainUnavailable(
    chain('./node-uring.linux-arm64-musl.node', 'node-uring-linux-arm64-musl'),
    'linux',
  )
  t.regex(musl.message, /node-uring-linux-arm64-musl/)
  t.regex(musl.help, /npm install node-uring-linux-arm64-musl@\d/)
  const other = explainUnavailable(
    chain('node-uring-linux-riscv64-gnu', 'node-uring-wasm32-wasi'),
    'linux',
  )
  t.notRegex(other.help, /npm install/)
  t.regex(other.message, new RegExp(process.arch))
  t.is(other.code, 'MODULE_NOT_FOUND')
})
