// A file system that answers short, with errors, late or not at all: one that the test serves itself
// through FUSE.

import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { op, Queue } from 'node-uring'
import { assertEnded, runChild } from './helpers/child.js'
import { FUSE, type Fuse, fuse } from './helpers/fuse.js'
import { pattern } from './helpers/random.js'
import { accustom, assertIdle, isPending, rejection, ring } from './helpers/ring.js'
import { loopMount, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const fuseTest = needs(test.serial, FUSE)
const loopTest = needs(test.serial, {
  ...FUSE,
  commands: [...FUSE.commands, 'losetup', 'mkfs.ext4'],
})

const KIB = 1024
const MIB = 1024 * KIB

type Make = (queue: Queue, content: Buffer) => Buffer
const MEMORY: Readonly<Record<'arena' | 'plain', Make>> = {
  arena: (queue, content) => {
    const mine = queue.alloc(content.length)
    mine.set(content)
    return mine
  },
  plain: (_, content) => content,
}

for (const [name, make] of Object.entries(MEMORY)) {
  fuseTest(`a read into ${name} memory is filled across short replies`, async (t) => {
    const content = pattern(2 * MIB + 777)
    const server = await fuse(t, 'async', {
      short: { content, maxBytes: 33_333 },
      blocks: { content, maxBytes: 12 * KIB },
    })
    const queue = ring(t)
    for (const [file, options] of [
      [await queue.open(server.at('short')), 'short'],
      [await queue.open(server.at('blocks'), 'r', { direct: true }), 'blocks'],
    ] as const) {
      for (const [position, length] of [
        [0, content.length],
        [4096, MIB + 4096],
        [1, 100_000],
      ] as const) {
        const target = make(queue, Buffer.alloc(length))
        t.is(await file.readAt(target, position), Math.min(length, content.length - position))
        t.is(target.compare(content.subarray(position, position + length)), 0, options)
      }
      const whole = await file.bytesAt(0, 3 * MIB)
      t.is(whole.compare(content), 0, options)
    }
    t.true(queue.stats().submitted > 300, 'there were as many pieces as replies')
    assertIdle(t, queue)
  })

  fuseTest(`a write from ${name} memory is whole after short replies`, async (t) => {
    const server = await fuse(t, 'sync', {
      short: { maxBytes: 33_333 },
      synced: { maxBytes: 33_333 },
      appended: { maxBytes: 33_333, content: pattern(10) },
    })
    const queue = ring(t)
    const content = pattern(MIB + 64 * KIB)
    const source = make(queue, content)
    for (const [at, options] of [
      ['short', {}],
      ['synced', { datasync: true }],
    ] as const) {
      const file = await queue.open(server.at(at), 'r+')
      t.is(await file.writeAt(source, 0, options), content.length)
      t.is(fs.readFileSync(server.behind(at)).compare(content), 0, at)
    }
    const file = await queue.open(server.at('appended'), 'a')
    t.is(await file.append(source), content.length)
    const behind = fs.readFileSync(server.behind('appended'))
    t.is(behind.compare(Buffer.concat([pattern(10), content])), 0)
    assertIdle(t, queue)
  })

  fuseTest(`an EIO inside a write from ${name} memory says what is in the file`, async (t) => {
    const failFrom = MIB + 100_001
    const server = await fuse(t, 'sync', {
      broken: { failFrom },
      synced: { failFrom, maxBytes: 70_000 },
      full: { failFrom, errno: 28 },
      dead: { failFrom: 0 },
    })
    const queue = ring(t)
    const content = pattern(3 * MIB)
    const source = make(queue, content)
    for (const [at, options, message, bytes] of [
      ['broken', {}, 'EIO: i/o error, write', failFrom],
      ['synced', { datasync: true }, 'EIO: i/o error, write', failFrom],
      ['full', {}, 'ENOSPC: no space left on device, write', failFrom],
      ['dead', {}, 'EIO: i/o error, write', 0],
    ] as const) {
      const file = await queue.open(server.at(at), 'r+')
      const error = await rejection(file.writeAt(source, 0, options))
      t.is(error.message, message)
      t.is(error.bytesWritten, bytes)
      t.is(fs.readFileSync(server.behind(at)).compare(content.subarray(0, bytes)), 0, at)
    }
    assertIdle(t, queue)
  })

  fuseTest(
    `a write from ${name} memory that the kernel fails as a whole claims no byte that is not there`,
    async (t) => {
      const server = await fuse(t, 'async', {
        short: { maxBytes: 33_333 },
        broken: { failFrom: (3 * MIB) / 2 },
      })
      const queue = ring(t)
      const content = pattern(2 * MIB)
      // Of several requests at once the kernel does not say how far they came: EIO, also for a short
      // one. fuse_get_res_by_io in its fs/fuse/file.c.
      for (const [at, least] of [
        ['short', 0],
        ['broken', name === 'plain' ? MIB : 0],
      ] as const) {
        const file = await queue.open(server.at(at), 'r+')
        const error = await rejection(file.writeAt(make(queue, content), 0))
        t.is(error.code, 'EIO')
        t.is(error.bytesWritten, least)
        const behind = fs.readFileSync(server.behind(at))
        t.is(behind.subarray(0, least).compare(content.subarray(0, least)), 0)
      }
      assertIdle(t, queue)
    },
  )

  fuseTest(
    `an EIO inside a read into ${name} memory rejects, and the next read is good`,
    async (t) => {
      const content = pattern(2 * MIB)
      const server = await fuse(t, 'async', { broken: { content, failFrom: MIB + 1 } })
      const queue = ring(t)
      const file = await queue.open(server.at('broken'))
      const target = make(queue, Buffer.alloc(2 * MIB))
      for (const reading of [
        file.readAt(target, 0),
        file.bytesAt(0, 2 * MIB),
        file.bytesAt(MIB + 1, 1),
      ]) {
        const error = await rejection(reading)
        t.is(error.message, 'EIO: i/o error, read')
        t.false('bytesWritten' in error)
      }
      t.is(await file.readAt(target.subarray(0, MIB), 0), MIB)
      t.is(target.compare(content.subarray(0, MIB), 0, MIB, 0, MIB), 0)
      assertIdle(t, queue)
    },
  )
}

fuseTest('appends whose one write fails fail with it, and none is written again', async (t) => {
  const server = await fuse(t, 'async', { broken: { content: pattern(10), failFrom: 1234 } })
  const queue = ring(t)
  const file = await queue.open(server.at('broken'), 'a')
  const size = 10 + (await accustom(file))
  const content = pattern(2000)
  const appended = Array.from({ length: 20 }, (_, i) => content.subarray(i * 100, (i + 1) * 100))
  const errors = await Promise.all(appended.map((record) => rejection(file.append(record))))
  t.deepEqual([...new Set(errors.map(({ code }) => code))], ['EIO'])
  const behind = fs.readFileSync(server.behind('broken')).subarray(size)
  t.deepEqual(behind, content.subarray(0, behind.length))
  assertIdle(t, queue)
})

fuseTest(
  'whoever serves a file system is asked nothing by the thread that opens a file',
  async (t) => {
    const log = scratch(t, Buffer.of())
    const server = await fuse(t, 'async', { file: { content: pattern(10), log } })
    const queue = ring(t)
    const file = await queue.open(server.at('file'), 'r+')
    const adopted = await queue.adopt(fs.openSync(server.at('file'), 'r+'))
    // As it would be asked whether it is a terminal.
    await file.writeAt(Buffer.from('x'), 0)
    await adopted.writeAt(Buffer.from('y'), 1)
    t.regex(fs.readFileSync(log, 'utf8'), /^w 0\nw 1\n$/)
    assertIdle(t, queue)
  },
)

fuseTest('replies that come late do not hold up other files, and settle right', async (t) => {
  const content = pattern(MIB)
  const server = await fuse(t, 'async', {
    late: { content, delayMs: 300 },
    kept: { content, held: true },
  })
  const queue = ring(t)
  const late = await queue.open(server.at('late'), 'r+')
  const kept = await queue.open(server.at('kept'), 'r+')
  const other = await queue.open(scratch(t, content), 'r+')
  const started = performance.now()
  // Fewer than the kernel has workers for files: four for each CPU.
  const waiting = [kept.bytesAt(1000, 1000), kept.writeAt(Buffer.alloc(10, 7), 0)]
  const slow = [late.bytesAt(0, 100), late.bytesAt(4096, 100)]
  await server.held(2)
  for (let i = 0; i < 50; i++) {
    const at = i * 4096
    t.is(await other.writeAt(Buffer.alloc(4096, i), at), 4096)
    t.true((await other.bytesAt(at, 4096)).every((byte) => byte === i))
    await queue.nop()
  }
  t.is((await slow[0])?.compare(content, 0, 100), 0)
  t.is((await slow[1])?.compare(content, 4096, 4196), 0)
  t.true(performance.now() - started > 295)
  t.true(await isPending(Promise.race(waiting)))
  server.release()
  t.is((await (waiting[0] as Promise<Buffer>)).compare(content, 1000, 2000), 0)
  t.is(await waiting[1], 10)
  t.is(fs.readFileSync(server.behind('kept'))[9], 7)
  assertIdle(t, queue)
})

fuseTest(
  'with reads left to workers the thread goes on, however many replies are kept',
  async (t) => {
    const content = pattern(64 * KIB)
    const server = await fuse(t, 'async', { kept: { content, held: true } })
    const other = await ring(t).open(scratch(t, content))
    // The kernel takes a FUSE file for one that never waits, because it can be polled: by itself it
    // would read in this thread, which sleeps once the file system has `max_background` requests.
    const queue = ring(t, {
      workers: { bounded: 2 },
      inline: { smallBytes: 0, aloneBytes: 0, turnBytes: 0 },
    })
    const kept = await queue.open(server.at('kept'))
    const waiting = Array.from({ length: 100 }, (_, i) => kept.bytesAt(i, 100))
    await server.held(2)
    for (let i = 0; i < 200; i++) {
      t.is((await other.bytesAt(i, 100)).compare(content, i, i + 100), 0)
    }
    t.true(await isPending(Promise.race(waiting)))
    server.release()
    const outcomes = await Promise.all(waiting)
    t.true(outcomes.every((bytes, i) => bytes.compare(content, i, i + 100) === 0))
    assertIdle(t, queue)
  },
)

/** Closes with reads and a write under way whose replies do not come, and tells what settled. */
const CLOSES = `
import { Queue } from 'node-uring'
const [name, own, mode] = process.argv.slice(1)
const code = (promise) => promise.catch((error) => error)
// Without background requests the kernel would read in this thread, which then sleeps.
const inline = mode === 'sync' ? { smallBytes: 0, aloneBytes: 0, turnBytes: 0 } : {}
const queue = new Queue({ inline })
const go = new Promise((resolve) => process.once('SIGUSR2', resolve))
const keep = setInterval(() => {}, 1000)
const file = await queue.open(name, 'r+')
// Several: one in 64 has its writes behind those of the file that is held.
const others = await Promise.all([...'abcdefgh'].map((letter) => queue.open(own + letter, 'w+')))
const inPlace = code(file.readAt(queue.alloc(100), 0))
const copied = code(file.readAt(Buffer.alloc(100), 0))
const writing = code(file.writeAt(Buffer.alloc(100, 7), 0))
// The file system has all three.
await go
clearInterval(keep)
await Promise.any(others.map((other) => other.writeAt(Buffer.from('goes on'), 0)))
const from = performance.now()
const closed = await code(queue.close({ timeoutMs: 0 }))
const ms = performance.now() - from
const settled = await Promise.all([inPlace, copied, writing])
const codes = settled.map(({ code, bytesWritten }) => [code, bytesWritten].join(' '))
console.log(JSON.stringify({ close: closed?.code ?? 'done', held: closed?.held ?? [], ms, codes }))
`

interface Closed {
  readonly close: string
  readonly held: string[]
  readonly ms: number
  readonly codes: string[]
}

/** Runs that, on a new mount. `told` is called when it has told and is about to end. */
async function closes(
  t: ExecutionContext,
  server: Fuse,
  mode: 'async' | 'sync',
  told: () => void = () => {},
): Promise<Closed> {
  const args = [server.at('kept'), scratch(t), mode]
  const ended = await runChild(CLOSES, {
    args,
    onStart: (child) => void server.held(3).then(() => child.kill('SIGUSR2')),
    onLine: told,
    timeoutMs: 30_000,
  })
  assertEnded(t, ended)
  return JSON.parse(ended.stdout) as Closed
}

fuseTest('close({ timeoutMs: 0 }) interrupts a file system that listens to it', async (t) => {
  t.timeout(60_000)
  const server = await fuse(t, 'sync', {
    kept: { content: pattern(100), held: true, interruptible: true },
  })
  const { close, held, ms, codes } = await closes(t, server, 'sync')
  t.deepEqual([close, held], ['done', []])
  t.true(ms < 20_000, `${ms} ms`)
  t.deepEqual(codes, ['ABORT_ERR ', 'ABORT_ERR ', 'ABORT_ERR 0'])
})

for (const mode of ['async', 'sync'] as const) {
  const end = mode === 'async' ? 'does not wait' : 'waits'
  fuseTest(
    `close({ timeoutMs: 0 }) names what a file system keeps (${mode}), and the end of the program ${end} for it`,
    async (t) => {
      t.timeout(60_000)
      const server = await fuse(t, mode, { kept: { content: pattern(100), held: true } })
      let released = false
      const { close, held, ms, codes } = await closes(t, server, mode, () => {
        // Where it does not wait there is nothing that would let it go on.
        if (mode === 'async') return
        setTimeout(() => {
          released = true
          server.release()
        }, 1000)
      })
      t.is(released, mode === 'sync')
      t.is(close, 'ERR_URING_BUSY')
      t.deepEqual([...held].sort(), ['1 write', '2 reads'])
      t.true(ms < 20_000, `${ms} ms`)
      t.deepEqual(codes, Array(3).fill('ERR_URING_CLOSED '))
    },
  )
}

// On ext4: XFS and btrfs take buffered writes in the thread that submits them.
loopTest(
  'a write that is kept holds up buffered writes of some other files, reads of none, and close() ends them',
  async (t) => {
    const server = await fuse(t, 'sync', { kept: { content: pattern(100), held: true } })
    const queue = ring(t)
    const kept = await queue.open(server.at('kept'), 'r+')
    const place = loopMount(t, ['mkfs.ext4', '-q', '-F'], 512)
    const others = await Promise.all(
      Array.from({ length: 1024 }, (_, i) => queue.open(path.join(place, `${i}`), 'w+')),
    )
    const writing = kept.writeAt(Buffer.alloc(10, 7), 0)
    await server.held(1)
    // A kernel worker does the buffered writes to files of one hash out of 64 one after the other:
    // io_wq_hash_work in its io_uring/io-wq.c.
    const outcomes: (number | string)[] = []
    const writes = others.map(async (other, i) => {
      outcomes[i] = await other.writeAt(Buffer.from('x'), 0).catch(({ code }) => code)
    })
    const written = () => outcomes.filter((outcome) => outcome === 1).length
    while (written() <= 896) await after(20)
    for (let before = -1; before < written(); await after(500)) {
      before = written()
      // Behind all that wait for a worker: what is not written when these are is held up.
      const free = others.filter((_, i) => outcomes[i] === 1)
      await Promise.all(free.map((other) => other.writeAt(Buffer.from('x'), 0)))
    }
    t.true(written() < 1024, 'none was held up')
    for (const other of others) t.true((await other.bytesAt(0, 1)).length <= 1)
    const late = others.findIndex((_, i) => outcomes[i] === undefined)
    await others[late]?.close({ timeoutMs: 0 })
    t.is(outcomes[late], 'ABORT_ERR')
    t.is(fs.statSync(path.join(place, `${late}`)).size, 0)
    server.release()
    t.is(await writing, 10)
    await Promise.all(writes)
    t.is(written(), 1023)
    assertIdle(t, queue)
  },
)

fuseTest('a file whose close was busy is closed when the file system lets go', async (t) => {
  const server = await fuse(t, 'async', { kept: { content: pattern(100), held: true } })
  const queue = ring(t)
  const kept = await queue.open(server.at('kept'))
  const read = kept.bytesAt(0, 100).catch(() => {})
  await server.held(1)
  const error = await t.throwsAsync(kept.close({ timeoutMs: 0 }), { code: 'ERR_URING_BUSY' })
  t.deepEqual((error as unknown as { held: string[] }).held, ['1 read'])
  t.is(queue.stats().files, 1)
  await t.throwsAsync(kept.bytesAt(0, 1), { code: 'EBADF' })
  server.release()
  await read
  // It is out of the table when its close begins, and over when that has come back.
  while (queue.stats().files > 0 || queue.stats().pending > 0) await after(5)
  assertIdle(t, queue)
})

fuseTest(
  'after an unclean close a link that had not started writes to no file of somebody else',
  async (t) => {
    for (const taskRun of ['interrupt', 'cooperative'] as const) {
      const mounted = await fuse(t, 'sync', { held: { syncHeld: true } })
      const queue = new Queue({ register: false, setup: { taskRun } })
      const held = await queue.open(mounted.at('held'), 'r+')
      const at = scratch(t, Buffer.alloc(0))
      const own = await queue.open(at, 'r+')
      const { fd } = own
      const chain = [op.fsync(held), op.write(own, Buffer.from('mine'), 0)]
      queue.submit(chain, { link: 'hard' }).catch(() => {})
      await mounted.held(1)
      t.is((await rejection(queue.close({ timeoutMs: 0 }))).code, 'ERR_URING_BUSY')
      // The kernel looks the number up when the link starts: nobody else may have it by then.
      const others = Array.from({ length: 32 }, () => scratch(t, Buffer.alloc(0)))
      const descriptors = others.map((other) => fs.openSync(other, 'r+'))
      t.false(descriptors.includes(fd))
      mounted.release()
      for (let i = 0; i < 100 && fs.statSync(at).size === 0; i++) await after(10)
      t.deepEqual(new Set(others.map((other) => fs.statSync(other).size)), new Set([0]))
      for (const descriptor of descriptors) fs.closeSync(descriptor)
    }
  },
)
