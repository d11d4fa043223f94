// A queue that always has work leaves the event loop to others: timers, immediates, node:fs and
// sockets come round however much is in flight. No assertion is about time.

import fs from 'node:fs'
import net from 'node:net'
import { Queue } from 'node-uring'
import { ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

/** Each has to come round so many times … */
const TIMES = 50
/** … before so many operations are done. As measured, it takes some hundred thousand. */
const OPERATIONS_MAX = 20_000_000

/** Things that an event loop does beside a queue; each calls back once. */
const OTHERS: Readonly<Record<string, (then: () => void) => void>> = {
  'setTimeout of 1 ms': (then) => setTimeout(then, 1),
  setImmediate: (then) => setImmediate(then),
  'fs.stat': (then) => fs.stat('/', then),
  'fs.promises.readFile': (then) => void fs.promises.readFile('/proc/self/stat').then(then),
}

/** Keeps `atOnce` of `work` going until everybody came round TIMES times, or work was done too often. */
async function underLoad(
  atOnce: number,
  work: (index: number) => Promise<unknown>,
  others = OTHERS,
): Promise<{ rounds: Record<string, number>; done: number }> {
  const rounds: Record<string, number> = {}
  let [done, going] = [0, true]
  for (const [name, other] of Object.entries(others)) {
    rounds[name] = 0
    const again = (): void => {
      rounds[name]!++
      if (going) other(again)
    }
    other(again)
  }
  const enough = (): boolean => Object.values(rounds).every((count) => count >= TIMES)
  const worker = async (index: number): Promise<void> => {
    while (going) {
      await work(index)
      if (++done % 1000 === 0 && (enough() || done >= OPERATIONS_MAX)) going = false
    }
  }
  await Promise.all(Array.from({ length: atOnce }, (_, index) => worker(index)))
  return { rounds, done }
}

for (const atOnce of [1, 16, 1024]) {
  test.serial(
    `timers, immediates and fs callbacks run while ${atOnce} nops are always in flight`,
    async (t) => {
      const queue = ring(t)
      const { rounds, done } = await underLoad(atOnce, () => queue.nop())
      t.true(done < OPERATIONS_MAX, JSON.stringify(rounds))
    },
  )
}

test.serial(
  'timers, immediates and fs callbacks run while two queues always have 512 nops',
  async (t) => {
    const queues = [ring(t), ring(t)] as const
    const { rounds, done } = await underLoad(1024, (index) => queues[index % 2]!.nop())
    t.true(done < OPERATIONS_MAX, JSON.stringify(rounds))
  },
)

test.serial(
  'timers, immediates and fs callbacks run while 128 cached reads are always in flight',
  async (t) => {
    const queue = ring(t)
    const file = await queue.open(scratch(t, Buffer.alloc(1 << 20)))
    const buffers = Array.from({ length: 128 }, () => queue.alloc(4096))
    const { rounds, done } = await underLoad(128, (index) =>
      file.readAt(buffers[index]!, (index % 256) * 4096),
    )
    t.true(done < OPERATIONS_MAX, JSON.stringify(rounds))
  },
)

test.serial('a socket is served while 1024 nops are always in flight', async (t) => {
  const queue = ring(t)
  const server = net
    .createServer((socket) => {
      // The client goes without a word.
      socket.on('error', () => {}).pipe(socket)
    })
    .listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const client = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  t.teardown(() => {
    client.destroy()
    server.close()
  })
  const echo = (then: () => void): void => {
    client.once('data', then)
    client.write('x')
  }
  const { rounds, done } = await underLoad(1024, () => queue.nop(), { echo })
  t.true(done < OPERATIONS_MAX, JSON.stringify(rounds))
})

test.serial(
  'an operation that comes late is delivered while another queue is always busy',
  async (t) => {
    t.timeout(60_000)
    const [busy, quiet] = [new Queue(), new Queue()]
    t.teardown(() => Promise.all([busy.close({ timeoutMs: 0 }), quiet.close({ timeoutMs: 0 })]))
    for (const [one, other] of [
      [busy, quiet],
      [quiet, busy],
    ] as const) {
      const sleep = (then: () => void): void =>
        // The last one may be cancelled by the end of the test.
        void one.sleep(1).then(then, () => {})
      const { rounds, done } = await underLoad(1024, () => other.nop(), { sleep })
      t.true(done < OPERATIONS_MAX, JSON.stringify(rounds))
    }
  },
)
