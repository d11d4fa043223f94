// Every kernel that we say we run on, oldest first, in qemu: what each grants, and that all works with
// it. Then a kernel that refuses: `sysctl kernel.io_uring_disabled` belongs to the whole machine, so
// a guest's is set, not this machine's.

import test from 'ava'
import { GUEST_COMMANDS, kernels, run, smoke, story } from '../helpers/guest.js'
import { needs } from '../helpers/skip.js'

const commands = GUEST_COMMANDS
const DEFERRED = ['SINGLE_ISSUER', 'DEFER_TASKRUN', 'TASKRUN_FLAG', 'SUBMIT_ALL']

/** Kernel → its set-up flags, and what it has beyond them. */
const KERNELS = [
  ['5.10', { flags: ['CLAMP', 'CQSIZE'], descriptor: false, ftruncate: false }],
  ['6.1', { flags: ['CLAMP', 'CQSIZE', ...DEFERRED], descriptor: true, ftruncate: false }],
  [
    '6.12',
    { flags: ['CLAMP', 'CQSIZE', ...DEFERRED, 'NO_SQARRAY'], descriptor: true, ftruncate: true },
  ],
] as const

for (const [kernel, expected] of KERNELS) {
  needs(test.serial, { commands, that: kernels(kernel) })(
    `on Linux ${kernel} all works, with ${expected.flags.join(', ')}`,
    async (t) => {
      t.timeout(180_000)
      const { backend, direct, capabilities } = await smoke(t, kernel)
      t.is(backend, 'io_uring')
      t.is(direct, 'done')
      t.true(capabilities.kernel.startsWith(`${kernel}.`))
      t.deepEqual([...capabilities.setupFlags].sort(), [...expected.flags].sort())
      t.is(capabilities.registeredDescriptor, expected.descriptor)
      t.is(capabilities.operations['ftruncate'], expected.ftruncate)
    },
  )
}

/** Says who may make a queue: root, another user, and one in group 4242. */
const WHO = `
  import { execFileSync } from 'node:child_process'
  const ask = \`
    import('node-uring').then(({ Queue }) => {
      process.setgroups([])
      const [uid, gid] = process.argv.slice(1).map(Number)
      process.setgid(gid)
      process.setuid(uid)
      try {
        new Queue({ backend: 'io_uring' })
        process.stdout.write('granted')
      } catch ({ code, reason }) {
        process.stdout.write([code, reason.code, reason.errno].join(' '))
      }
      process.exit()
    })\`
  for (const who of [[0, 0], [1000, 1000], [1000, 4242]]) {
    console.log('answer: ' + execFileSync('node', ['-e', ask, ...who], { encoding: 'utf8' }))
  }`
const REFUSED = 'ERR_URING_UNAVAILABLE EPERM -1'

for (const [value, root, user, member] of [
  [0, 'granted', 'granted', 'granted'],
  [1, 'granted', REFUSED, 'granted'],
  [2, REFUSED, REFUSED, REFUSED],
] as const) {
  needs(test.serial, { commands, that: kernels('6.12') })(
    `kernel.io_uring_disabled=${value} decides who gets a queue, and the error says EPERM`,
    async (t) => {
      t.timeout(180_000)
      const end = await run(t, {
        kernel: '6.12',
        program: WHO,
        before: `echo ${value} > /proc/sys/kernel/io_uring_disabled &&
          echo 4242 > /proc/sys/kernel/io_uring_group`,
      })
      t.is(end.code, 0, story(end))
      const answers = end.lines.filter((line) => line.startsWith('answer: '))
      t.deepEqual(
        answers,
        [root, user, member].map((answer) => `answer: ${answer}`),
      )
    },
  )
}
