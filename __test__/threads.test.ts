// Worker threads with a queue each: they read and write the same and different files, hand descriptors
// to one another, and end at any moment. And the kernel's own workers: whose they are, how many at most.

import fs from 'node:fs'
import path from 'node:path'
import { childJson, fixture } from './helpers/child.js'
import { folder, scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

for (const count of [1, 2, 4, 8]) {
  test(`${count} workers write and read one file and their own, and none writes over another`, async (t) => {
    t.timeout(110_000)
    const args = [String(count), folder(t)]
    const told = await childJson(fixture('sharing.mjs'), { args, timeoutMs: 100_000 })
    t.deepEqual(told, { wrong: 0, foreign: 0, terminated: 0 })
  })
}

test('workers that are terminated at all moments of their writes do not harm those that go on', async (t) => {
  t.timeout(110_000)
  const args = ['3', folder(t), 'terminate']
  const told = await childJson(fixture('sharing.mjs'), { args, timeoutMs: 100_000 })
  t.deepEqual(told, { wrong: 0, foreign: 0, terminated: 12 })
})

test('a descriptor that is posted belongs to the queue that adopts it, which closes it', async (t) => {
  t.timeout(60_000)
  const program = `
    import fs from 'node:fs'
    import { Worker } from 'node:worker_threads'
    import { Queue } from 'node-uring'
    const path = process.argv[1]
    const code = \`
      import fs from 'node:fs'
      import { parentPort } from 'node:worker_threads'
      import { Queue } from 'node-uring'
      const queue = new Queue()
      parentPort.on('message', async ({ fd, keep }) => {
        // Of a file that its opener keeps, a descriptor of one's own.
        const file = await queue.adopt(keep ? fs.openSync('/proc/self/fd/' + fd, 'r+') : fd)
        const text = (await file.bytesAt(0, 8)).toString()
        await file.writeAt(Buffer.from(keep ? 'kept' : 'mine'), 8)
        await file.close()
        parentPort.postMessage(text)
        if (keep) parentPort.close()
      })\`
    const worker = new Worker(code, { eval: true })
    const answer = () => new Promise((resolve) => worker.once('message', resolve))
    const told = {}
    const fd = fs.openSync(path, 'r+')
    worker.postMessage({ fd })
    told.given = await answer()
    try { fs.fstatSync(fd) } catch ({ code }) { told.closed = code }
    told.written = fs.readFileSync(path, 'utf8')
    const queue = new Queue()
    const file = await queue.open(path, 'r+')
    worker.postMessage({ fd: file.fd, keep: true })
    told.kept = await answer()
    told.still = (await file.bytesAt(0, 100)).toString()
    await queue.close()
    console.log(JSON.stringify(told))`
  const args = [scratch(t, Buffer.from('contents'))]
  const told = await childJson(program, { args, timeoutMs: 50_000 })
  t.deepEqual(told, {
    given: 'contents',
    closed: 'EBADF',
    written: 'contentsmine',
    kept: 'contents',
    still: 'contentskept',
  })
})

interface Workers {
  /** The most workers at once, of each thread that had any. */
  readonly most: number[]
  /** Whether the main thread had any. */
  readonly pid: boolean
}

function kernelWorkers(how: string, cap: number, name: string): Promise<Workers> {
  const args = [how, String(cap), name]
  return childJson<Workers>(fixture('kernel-workers.mjs'), { args, timeoutMs: 50_000 })
}

test.serial(
  'caps on kernel workers hold, for files and for what is none, and for all queues of a thread',
  async (t) => {
    t.timeout(110_000)
    const name = path.join(folder(t), 'large')
    fs.writeFileSync(name, Buffer.alloc(64 << 20))
    for (const how of ['bounded', 'unbounded', 'shared']) {
      const { most, pid } = await kernelWorkers(how, 1, name)
      // One worker runs, and one may be on its way out.
      t.true(
        most.length === 1 && (most[0] as number) <= 2 && pid,
        `${how}: ${JSON.stringify(most)}`,
      )
    }
  },
)

// Where they end with it (Linux 6.18.44), a thread was seen for which none was made any more, and its
// operations hung: docs/safety.md.
test('a thread keeps its kernel workers when its last queue is closed, and no descriptor', async (t) => {
  t.timeout(60_000)
  const left = await childJson(fixture('kept-workers.mjs'), { timeoutMs: 30_000 })
  t.deepEqual(left, { workers: true, rings: 0 })
})

test.serial(
  'kernel workers belong to the thread, also of queues that are attached to another',
  async (t) => {
    t.timeout(60_000)
    const name = path.join(folder(t), 'large')
    fs.writeFileSync(name, Buffer.alloc(64 << 20))
    const { most, pid } = await kernelWorkers('threads', 0, name)
    t.deepEqual({ threads: most.length, pid }, { threads: 2, pid: true })
  },
)
