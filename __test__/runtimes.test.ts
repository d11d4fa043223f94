// Runtimes that are not quite Node.js: what they lack is taken away here, one thing at a time. The real
// ones are in slow/runtimes.test.ts.

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { assertEnded, childJson, fixture, runChild } from './helpers/child.js'
import { ROOT } from './helpers/packed.js'
import { folder } from './helpers/scratch.js'

const BINARY = fs.readdirSync(ROOT).find((name) => name.endsWith('.node')) ?? 'none'
const caged = {
  NAPI_RS_NATIVE_LIBRARY_PATH: fileURLToPath(fixture('no-external-buffers.cjs')),
  BINARY: path.basename(BINARY),
}

test('without external ArrayBuffers all works', async (t) => {
  t.timeout(120_000)
  const options = { args: [folder(t)], env: caged, timeoutMs: 90_000 }
  const ended = await runChild(fixture('smoke.mjs'), options)
  assertEnded(t, ended)
  t.regex(ended.stdout, /^smoke: \{"backend":"io_uring"/)
})

test('without external ArrayBuffers memory from alloc is copied, and freed as elsewhere', async (t) => {
  t.timeout(60_000)
  const program = `
    import { Queue } from 'node-uring'
    const queue = new Queue()
    const file = await queue.open(process.argv[1] + '/file', 'w+')
    const buffer = queue.alloc(8192).fill('x')
    const external = queue.stats().memory.alloc.usedBytes
    await file.writeAt(buffer, 0)
    await file.readAt(buffer, 0)
    const { bouncedBytes } = queue.stats()
    queue.free(buffer)
    const codes = []
    for (const other of [buffer, Buffer.alloc(1)]) {
      try { queue.free(other) } catch ({ code }) { codes.push(code) }
    }
    const length = buffer.length
    await queue.close()
    console.log(JSON.stringify({ external, bouncedBytes, length, codes }))`
  const met = await childJson(program, { args: [folder(t)], env: caged })
  t.deepEqual(met, {
    external: 0,
    bouncedBytes: 2 * 8192,
    length: 0,
    codes: ['ERR_URING_FREED', 'ERR_URING_NOT_ALLOCATED'],
  })
})
