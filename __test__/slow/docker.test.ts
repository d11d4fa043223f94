// A container as Docker makes it by default: its profile refuses io_uring. The daemon is a real one,
// and so is the profile.

import test from 'ava'
import { Docker, docker } from '../helpers/docker.js'
import { needs } from '../helpers/skip.js'

const dockerTest = needs(test.serial, { root: true, that: docker() })

const PROGRAM = `
  import { Queue } from '/app/node_modules/node-uring/dist/index.js'
  let error = null
  try {
    await new Queue({ backend: 'io_uring' }).close()
  } catch ({ code, reason }) {
    error = [code, reason.code, /seccomp=/.test(reason.help)]
  }
  const queue = new Queue()
  const file = await queue.open('/tmp/file', 'w+')
  await file.writeAt(Buffer.from('written'), 0, { datasync: true })
  const read = (await file.bytesAt(0, 100)).toString()
  const { backend } = queue
  await queue.close()
  console.log(JSON.stringify({ error, backend, read }))`

dockerTest("Docker's default profile refuses with EPERM, and all works on node:fs", async (t) => {
  t.timeout(600_000)
  const daemon = await Docker.start(t)
  const image = daemon.image()
  const run = (...options: string[]): unknown => {
    const how = ['run', '--rm', '--network', 'none', ...options, image]
    return JSON.parse(daemon.run(...how, '/bin/node', '--input-type=module', '-e', PROGRAM))
  }
  t.deepEqual(run(), {
    error: ['ERR_URING_UNAVAILABLE', 'EPERM', true],
    backend: 'node:fs',
    read: 'written',
  })
  t.deepEqual(run('--security-opt', 'seccomp=unconfined'), {
    error: null,
    backend: 'io_uring',
    read: 'written',
  })
})
