// One kernel that is not this machine's, in qemu: that of Debian 12. The others are in
// slow/kernels.test.ts, which `npm run test:kernels` runs alone.

import test from 'ava'
import { GUEST_COMMANDS, kernels, smoke } from './helpers/guest.js'
import { needs } from './helpers/skip.js'

const guestTest = needs(test, { commands: GUEST_COMMANDS, that: kernels('6.1') })

guestTest('on Linux 6.1 all works, with task running deferred to enter', async (t) => {
  t.timeout(180_000)
  const { backend, direct, capabilities } = await smoke(t, '6.1')
  t.is(backend, 'io_uring')
  t.is(direct, 'done')
  t.regex(capabilities.kernel, /^6\.1\./)
  t.true(capabilities.setupFlags.includes('DEFER_TASKRUN'))
  t.false(capabilities.setupFlags.includes('NO_SQARRAY'), 'it is of 6.6')
  t.false(capabilities.operations['ftruncate'], 'it is of 6.9: the size was set without the ring')
  t.true(capabilities.registeredDescriptor)
  t.is(capabilities.registeredMemory, 'registered')
})
