/**
 * The README's example. It writes data.bin into the folder in which it is run.
 *
 *   node --import tsx examples/quickstart.ts
 */
import { Queue } from 'node-uring'

const queue = new Queue()
const file = await queue.open('data.bin', 'w+')
try {
  const block = queue.alloc(4096).fill('x') // page-aligned memory that the kernel uses in place
  await file.writeAt(block, 0, { datasync: true }) // all of it, on stable storage, or an error
  const copy = new Uint8Array(4096) // any other buffer works too, through a copy
  const n = await file.readAt(copy, 0) // fills the buffer unless the file ends
  const bytes = await file.bytesAt(0, 1 << 20) // a Buffer of its own, shorter at the end
  console.log(n, bytes.length, await queue.nopRoundTrip({ samples: 10_000 }))
} finally {
  await queue.close() // closes its files too
}
