// What becomes of a program when the kernel refuses io_uring's system calls, for the calls and with the
// errno that strace is told. Each errno for the first, one and every call: errnos.test.ts.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { assertEnded, each, story } from './helpers/child.js'
import { injectable, inNode, refuse, workplace } from './helpers/refuse.js'
import { rejection, ring } from './helpers/ring.js'

injectable(
  'everything settles when the first, some, every second or 200 enters are refused',
  async (t) => {
    t.timeout(100_000)
    // Each with the fewest refusals that there must have been.
    const whens = [
      // 4 at once, then by a timer that ends at 32 ms: 6 s, most of them asleep.
      ['nops', '1..200', 200],
      ['nops', '7..9', 3],
      ['nops', '2+2', 49],
      ['mixed', '1', 1],
      ['mixed', '2', 1],
      ['mixed', '5', 1],
      ['mixed', '1+2', 3],
      ['mixed', '2+3', 2],
      ['mixed', '1..20', 20],
    ] as const
    const errnos = ['EAGAIN', 'EBUSY', 'EINTR']
    const runs = whens.flatMap((when) => errnos.map((errno) => [errno, ...when] as const))
    const one = async ([errno, what, when, refusals]: (typeof runs)[number]): Promise<void> => {
      const { ended, told } = await refuse(t, what, `io_uring_enter:error=${errno}:when=${when}`)
      assertEnded(t, ended, {}, `${what} with ${errno} for enter ${when}: it`)
      const [{ wrong = 0, stale = 0, ...rest } = {}] = told
      t.deepEqual({ wrong, stale }, { wrong: 0, stale: 0 })
      t.true(Number(rest['refusals']) >= refusals, `${when}: ${JSON.stringify(told)}`)
    }
    await each(runs, one, 6)
  },
)

injectable(
  'while every enter is refused the loop goes on and takes little CPU, and then all settles',
  async (t) => {
    t.timeout(100_000)
    await each(['EAGAIN', 'EBUSY', 'EINTR'], async (errno) => {
      // Its timers make the loop come round, and each time enter is tried: 230 times while it looks.
      const { ended, told } = await refuse(
        t,
        'refused',
        `io_uring_enter:error=${errno}:when=1..300`,
      )
      assertEnded(t, ended)
      const [{ ticks, cpuMs, wallMs, refusals, submitted } = {}, end] = told as Record<
        string,
        number
      >[]
      t.is(submitted, 0, 'all of it was refused until then')
      t.true(refusals! > 20 && ticks! > 50, story(ended))
      t.true(cpuMs! < wallMs! / 2, `${cpuMs} of ${wallMs} ms`)
      t.true(end!['settled']! > 100)
    })
  },
)

injectable(
  'a read that is done while enter is refused takes no CPU until it can be had',
  async (t) => {
    t.timeout(100_000)
    // The first three are of the open and the start of the read.
    const { ended, told } = await refuse(
      t,
      'refused with a read done',
      'io_uring_enter:error=EAGAIN:when=4..60',
    )
    assertEnded(t, ended)
    const [{ bytes, cpuMs, wallMs, refusals } = {}] = told
    t.is(bytes, 'hello')
    t.true(Number(refusals) > 20, story(ended))
    t.true(Number(cpuMs) < Number(wallMs) / 2, `${cpuMs} of ${wallMs} ms`)
  },
)

injectable(
  'another errno of enter fails the queue: all rejects with ERR_URING_FAILED, and the program ends',
  async (t) => {
    t.timeout(100_000)
    // Those that io_uring_enter(2) lists, but for the three that are tried again; and one more.
    const errnos = ['EBADF', 'EBADFD', 'EBADR', 'EEXIST', 'EFAULT', 'EINVAL', 'ENXIO', 'EOPNOTSUPP']
    await each([...errnos, 'EPERM'], async (errno) => {
      // From the sixth: two opens, which workers do, took two each, and the pending ones went well.
      const { ended, told } = await refuse(t, 'fails', `io_uring_enter:error=${errno}:when=6+`)
      assertEnded(t, ended, {}, `after ${errno} it`)
      const [{ staged, pending, later, close } = {}] = told
      t.deepEqual(staged, Array(5).fill(`ERR_URING_FAILED ${inNode(errno)} io_uring_enter`))
      t.deepEqual(pending, Array(3).fill('ERR_URING_FAILED'))
      t.deepEqual(later, Array(9).fill('ERR_URING_FAILED'))
      t.is(close, 'done')
    })
  },
)

injectable('a queue whose enter is refused for ever can be closed, and left', async (t) => {
  t.timeout(100_000)
  // The first two are of the open and the read.
  const closed = await refuse(t, 'closed while refused', 'io_uring_enter:error=EAGAIN:when=3+')
  assertEnded(t, closed.ended)
  // close() says what the kernel has not given back; everything is settled all the same.
  const [{ settled, close } = {}] = closed.told
  t.is(close, 'ERR_URING_BUSY')
  t.deepEqual(settled, Array(3).fill('ERR_URING_CLOSED'))
  const left = await refuse(t, 'left while refused', 'io_uring_enter:error=EAGAIN:when=3+')
  assertEnded(t, left.ended, { stdout: '{"left":true}\n' })
})

injectable('when io_uring_setup is refused a queue says why, and what to do', async (t) => {
  t.timeout(100_000)
  const errnos = {
    ENOSYS: 38,
    EPERM: 1,
    EACCES: 13,
    ENOMEM: 12,
    EINVAL: 22,
    EMFILE: 24,
    ENFILE: 23,
    EFAULT: 14,
  }
  await each(Object.entries(errnos), async ([errno, number]) => {
    const { ended, told } = await refuse(t, 'unavailable', `io_uring_setup:error=${errno}`)
    assertEnded(t, ended)
    const [{ name, code, message, reason } = {}] = told
    t.is(name, 'UringError')
    t.is(code, 'ERR_URING_UNAVAILABLE')
    const { help, ...rest } = reason as Record<string, string>
    t.is(rest['code'], errno)
    t.is(Number(rest['errno']), -number)
    t.true(String(message).includes(String(help)) && String(help).length > 10)
  })
})

injectable(
  'a set-up that the kernel does not know is tried with less, and everything works',
  async (t) => {
    t.timeout(100_000)
    const full = (await refuse(t, 'mixed')).told[0]!['setupFlags'] as string[]
    let before = full.length + 1
    const kinds = new Set<string>()
    // As if the kernel were older and older, until it is too old.
    for (let refused = 0; refused < 12; refused++) {
      const inject = refused === 0 ? undefined : `io_uring_setup:error=EINVAL:when=1..${refused}`
      const { ended, told } = await refuse(t, 'mixed', inject)
      if (ended.code !== 0) {
        t.regex(ended.stderr, /ERR_URING_UNAVAILABLE/)
        t.true(refused >= 3, `given up after ${refused}`)
        break
      }
      assertEnded(t, ended, {}, `after ${refused} refusals it`)
      const { wrong, stale, setupFlags } = told[0] as {
        wrong: number
        stale: number
        setupFlags: string[]
      }
      t.deepEqual({ wrong, stale }, { wrong: 0, stale: 0 })
      t.true(setupFlags.length <= before, `${setupFlags}`)
      t.true(refused === 0 || setupFlags.length < full.length, `${setupFlags}`)
      before = setupFlags.length
      kinds.add(setupFlags.find((flag) => flag.endsWith('_TASKRUN')) ?? 'interrupt')
    }
    t.deepEqual([...kinds], ['DEFER_TASKRUN', 'COOP_TASKRUN', 'interrupt'])
  },
)

injectable(
  'without any registration but the eventfd everything works, by descriptor and unregistered',
  async (t) => {
    t.timeout(100_000)
    // Those that io_uring_register(2) lists.
    const errnos = ['EACCES', 'EBADF', 'EBADFD', 'EBUSY', 'EEXIST', 'EFAULT', 'EINVAL', 'EMFILE']
    await each([...errnos, 'ENOMEM', 'ENXIO', 'EOPNOTSUPP', 'EPERM'], async (errno) => {
      // The second call registers the eventfd, as the next test shows.
      const { ended, told } = await refuse(t, 'mixed', `io_uring_register:error=${errno}:when=3+`)
      assertEnded(t, ended, {}, `with ${errno} it`)
      const [{ wrong, stale, registeredFiles, registeredMemory } = {}] = told
      t.deepEqual({ wrong, stale, registeredFiles }, { wrong: 0, stale: 0, registeredFiles: 0 })
      t.is((registeredMemory as { code: string }).code, inNode(errno))
    })
    const { ended, told } = await refuse(t, 'mixed', 'io_uring_register:error=EINVAL:when=1')
    assertEnded(t, ended)
    t.is(told[0]!['wrong'], 0)
    t.is(told[0]!['registeredDescriptor'], false)
  },
)

injectable(
  'each single registration may be refused: all works, or the queue says that it cannot be',
  async (t) => {
    t.timeout(100_000)
    const unavailable: number[] = []
    await each([...Array(12).keys()], async (index) => {
      const when = index + 1
      const { ended, told } = await refuse(
        t,
        'mixed',
        `io_uring_register:error=ENOMEM:when=${when}`,
      )
      if (/ERR_URING_UNAVAILABLE/.test(ended.stderr)) {
        unavailable.push(when)
        return
      }
      assertEnded(t, ended, {}, `with registration ${when} refused it`)
      t.deepEqual({ wrong: told[0]!['wrong'], stale: told[0]!['stale'] }, { wrong: 0, stale: 0 })
    })
    t.deepEqual(unavailable, [2], 'only the eventfd is needed')
  },
)

injectable('when every registration is refused a queue says why', async (t) => {
  t.timeout(100_000)
  for (const errno of ['EINVAL', 'ENOMEM']) {
    const { ended, told } = await refuse(t, 'unavailable', `io_uring_register:error=${errno}`)
    assertEnded(t, ended)
    const [{ code, reason } = {}] = told
    t.is(code, 'ERR_URING_UNAVAILABLE')
    t.is((reason as { code: string }).code, errno)
  }
})

for (const taskRun of ['defer', 'cooperative', 'interrupt'] as const) {
  for (const register of [true, false]) {
    test(`everything works with taskRun '${taskRun}', ${register ? 'registered' : 'unregistered'}`, async (t) => {
      const queue = ring(t, { setup: { taskRun }, register, entries: 32 })
      const place = workplace(t)
      const { setupFlags, registeredFiles } = queue.capabilities
      const kind = { defer: 'DEFER_TASKRUN', cooperative: 'COOP_TASKRUN', interrupt: undefined }[
        taskRun
      ]
      t.is(
        setupFlags.find((flag) => flag.endsWith('_TASKRUN')),
        kind,
      )
      t.is(registeredFiles > 0, register)
      for (const direct of [false, true]) {
        const file = await queue.open(path.join(place, 'data'), 'r+', { direct })
        const numbers = await Promise.all(
          Array.from({ length: 500 }, async (_, i) => {
            const bytes = i % 2 === 0 ? queue.alloc(4096) : Buffer.alloc(4096)
            await file.readAt(bytes, (i % 256) * 4096)
            return bytes.readUInt32LE(0) / 1024
          }),
        )
        t.deepEqual(
          numbers,
          [...Array(500).keys()].map((i) => i % 256),
        )
        const written = await Promise.all(
          Array.from({ length: 50 }, (_, i) =>
            file.writeAt(Buffer.alloc(4096, i), i * 4096, { datasync: i % 10 === 0 }),
          ),
        )
        t.deepEqual(written, Array(50).fill(4096))
        t.true((await file.bytesAt(49 * 4096, 4096)).every((byte) => byte === 49))
        fs.writeFileSync(
          path.join(place, 'data'),
          Buffer.from(new Uint32Array(1 << 18).map((_, i) => i).buffer),
        )
        await file.close()
      }
      const fifo = await queue.open(path.join(place, 'fifo'), 'r+')
      const late = fifo.bytesAt(0, 10)
      await queue.sleep(20)
      fs.writeFileSync(path.join(place, 'fifo'), 'late')
      t.is((await late).toString(), 'late')
      const never = rejection(fifo.readAt(Buffer.alloc(1), 0))
      await queue.sleep(1)
      await queue.close({ timeoutMs: 0 })
      t.is((await never)['code'], 'ABORT_ERR')
    })
  }
}
