// Every errno that the manual pages list for io_uring's three system calls, at the first call, at one
// in the midst, and at every call: each promise settles, with its own result or with the error that is
// defined for it, and the program ends.

import { assertEnded, each } from './helpers/child.js'
import { injectable, inNode, refuse } from './helpers/refuse.js'

/** What operations came to, of how many kinds, and what close() did. */
interface Told {
  readonly outcomes: Readonly<Record<string, number>>
  readonly kinds: number
  readonly close: string
}

/** Those that are tried again, and those that end the queue. io_uring_enter(2). */
const AGAIN = ['EAGAIN', 'EBUSY', 'EINTR']
const FATAL = ['EBADF', 'EBADFD', 'EBADR', 'EEXIST', 'EFAULT', 'EINVAL', 'ENXIO', 'EOPNOTSUPP']
/** io_uring_setup(2): EACCES is of a queue that is attached to, ENOSYS of a kernel without it. */
const SETUP = ['EACCES', 'EFAULT', 'EINVAL', 'EMFILE', 'ENFILE', 'ENOMEM', 'ENOSYS', 'EPERM']
/** io_uring_register(2). */
const REGISTER = [
  ...['EACCES', 'EBADF', 'EBADFD', 'EBUSY', 'EEXIST', 'EFAULT', 'EINVAL', 'EMFILE', 'ENOMEM'],
  ...['ENXIO', 'EOPNOTSUPP', 'EPERM'],
]

function pairs<A, B>(some: readonly A[], others: readonly B[]): (readonly [A, B])[] {
  return some.flatMap((one) => others.map((other) => [one, other] as const))
}

injectable(
  'an errno of enter that is tried again costs nobody anything, at any call',
  async (t) => {
    t.timeout(100_000)
    await each(pairs(AGAIN, ['1', '2', '5']), async ([errno, when]) => {
      const { ended, told } = await refuse(
        t,
        'everything',
        `io_uring_enter:error=${errno}:when=${when}`,
      )
      assertEnded(t, ended, {}, `with ${errno} for enter ${when} it`)
      const [{ outcomes, kinds, close }] = told as unknown as [Told]
      t.deepEqual(
        { outcomes, close },
        { outcomes: { right: kinds }, close: 'done' },
        `${errno} ${when}`,
      )
    })
  },
)

injectable(
  'with an errno of enter that is tried again at every call nothing settles before close(), and all does then',
  async (t) => {
    t.timeout(100_000)
    await each(AGAIN, async (errno) => {
      const { ended, told } = await refuse(
        t,
        'everything, for a second',
        `io_uring_enter:error=${errno}:when=1+`,
      )
      assertEnded(t, ended, {}, `with ${errno} it`)
      const [{ outcomes, kinds, close }] = told as unknown as [Told]
      // They are in the ring, and the kernel takes none of them back.
      t.deepEqual(
        { outcomes, close },
        { outcomes: { ERR_URING_CLOSED: kinds }, close: 'ERR_URING_BUSY' },
        errno,
      )
    })
  },
)

injectable(
  'any other errno of enter, at the first call, at one or at every, rejects what is under way and what follows',
  async (t) => {
    t.timeout(100_000)
    await each(pairs(FATAL, ['1', '4', '1+']), async ([errno, when]) => {
      const { ended, told } = await refuse(
        t,
        'everything',
        `io_uring_enter:error=${errno}:when=${when}`,
      )
      assertEnded(t, ended, {}, `with ${errno} for enter ${when} it`)
      const [{ outcomes, kinds, close }] = told as unknown as [Told]
      const { right = 0, ERR_URING_FAILED: failed = 0, ...others } = outcomes
      t.deepEqual({ others, close }, { others: {}, close: 'done' }, `${errno} ${when}`)
      t.is(right + failed, kinds)
      t.true(failed > 0 && (!when.startsWith('1') || right === 0), JSON.stringify(outcomes))
    })
  },
)

injectable('an errno of setup, at one call or at every, is told or met with less', async (t) => {
  t.timeout(100_000)
  await each(pairs(SETUP, ['1', '2', '3', '1+']), async ([errno, when]) => {
    const { ended, told } = await refuse(t, 'two', `io_uring_setup:error=${errno}:when=${when}`)
    assertEnded(t, ended, {}, `with ${errno} for setup ${when} it`)
    const refused = `ERR_URING_UNAVAILABLE ${errno}`
    // With EINVAL other flags are tried, and with ENOMEM a smaller ring.
    const once = errno === 'EINVAL' || errno === 'ENOMEM' ? 'made' : refused
    // The second ring is the one that the thread keeps beside its first: it does without.
    const expected = {
      '1': [once, 'made'],
      '2': ['made', 'made'],
      '3': ['made', once],
      '1+': [refused, refused],
    }[when]
    t.deepEqual(told[0]?.['told'], expected, `${errno} ${when}`)
  })
})

injectable(
  'an errno of register, at one call, is done without; at every call, is told',
  async (t) => {
    t.timeout(100_000)
    await each(pairs(REGISTER, ['1', '4', '1+']), async ([errno, when]) => {
      const what = when === '1+' ? 'two' : 'everything'
      const { ended, told } = await refuse(t, what, `io_uring_register:error=${errno}:when=${when}`)
      assertEnded(t, ended, {}, `with ${errno} for register ${when} it`)
      if (what === 'two') {
        const refused = `ERR_URING_UNAVAILABLE ${inNode(errno)}`
        t.deepEqual(told[0]?.['told'], [refused, refused])
      } else {
        const [{ outcomes, kinds, close }] = told as unknown as [Told]
        t.deepEqual(
          { outcomes, close },
          { outcomes: { right: kinds }, close: 'done' },
          `${errno} ${when}`,
        )
      }
    })
  },
)
