// Arena memory that was moved to another thread: ArrayBuffer.prototype.transfer (Node 22) and byte streams make
// an ArrayBuffer that may be posted, and Node finalizes the original when its thread ends.

import test, { type ExecutionContext } from 'ava'
import { fixture, runChild } from './helpers/child.ts'
import { needs } from './helpers/skip.ts'

const WAYS = {
  stream: test,
  transfer: needs(test, {
    that: {
      holds: 'transfer' in ArrayBuffer.prototype,
      reason: 'this Node has no ArrayBuffer.prototype.transfer',
    },
  }),
}

for (const kind of ['alloc', 'bytesAt']) {
  for (const [by, declare] of Object.entries(WAYS)) {
    for (const end of ['terminate', 'exit']) {
      for (const others of [0, 3]) {
        const how = by === 'stream' ? ' by a stream' : ''
        const title = `${kind} memory moved${how} to another thread outlives its worker (${end}, ${others} newer buffers)`
        declare(title, async (t: ExecutionContext) => {
          const args = [kind, by, end, String(others)]
          const ended = await runChild(fixture('moved-buffer.cjs'), { args, timeoutMs: 60_000 })
          t.is(ended.signal, null, ended.stderr)
          t.is(ended.stdout.trim(), 'whole', ended.stderr)
        })
      }
    }
  }
}
