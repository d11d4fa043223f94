// Devices that fail and file systems that stand still: loop devices that the test makes.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { assertEnded, runChild, story } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { accustom, assertIdle, rejection, ring } from './helpers/ring.js'
import { folder, loopDevice, loopMount, scratch, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const MIB = 1 << 20

const loopTest = needs(test.serial, {
  root: true,
  commands: ['losetup', 'mount', 'umount', 'mkfs.ext4'],
})

loopTest(
  'a device whose backing was cut off fails reads with EIO, direct and buffered',
  async (t) => {
    const image = path.join(folder(t, '/dev/shm'), 'image')
    const content = pattern(4 * MIB)
    fs.writeFileSync(image, content)
    const device = loopDevice(t, image)
    fs.truncateSync(image, MIB)
    const queue = ring(t)
    for (const direct of [true, false]) {
      const file = await queue.open(device, 'r', { direct })
      const there = queue.alloc(64 << 10)
      t.is(await file.readAt(there, 0), there.length)
      t.is(there.compare(content.subarray(0, there.length)), 0)
      for (const buffer of [queue.alloc(4096), Buffer.alloc(4096), Buffer.alloc(2 * MIB)]) {
        const error = await rejection(file.readAt(buffer, 2 * MIB))
        t.is(error.message, 'EIO: i/o error, read', `direct: ${direct}`)
      }
      t.is((await rejection(file.bytesAt(3 * MIB, MIB))).code, 'EIO')
      // It begins where there is something: what was read first is not passed off as all there is.
      t.is((await rejection(file.bytesAt(0, 4 * MIB))).code, 'EIO')
      t.is((await file.bytesAt(MIB / 2, 4096)).compare(content, MIB / 2, MIB / 2 + 4096), 0)
      await file.close()
    }
    assertIdle(t, queue)
  },
)

loopTest(
  'a device that cannot store what was written says EIO when that is asked for',
  async (t) => {
    // The image is sparse, and there is no room for what is written to it.
    const image = path.join(tmpfs(t, MIB), 'image')
    fs.writeFileSync(image, '')
    fs.truncateSync(image, 16 * MIB)
    const device = loopDevice(t, image)
    const queue = ring(t)
    const buffered = await queue.open(device, 'r+')
    t.is(await buffered.writeAt(pattern(4 * MIB), 0), 4 * MIB, 'into the page cache')
    t.is((await rejection(buffered.sync())).message, 'EIO: i/o error, fsync')
    const synced = await rejection(buffered.writeAt(pattern(4 * MIB), 4 * MIB, { datasync: true }))
    t.is(synced.message, 'EIO: i/o error, fdatasync')
    t.is(synced.bytesWritten, 4 * MIB)
    const direct = await queue.open(device, 'r+', { direct: true })
    const source = queue.alloc(4 * MIB)
    source.set(pattern(4 * MIB))
    const error = await rejection(direct.writeAt(source, 8 * MIB))
    t.regex(error.message, /^(EIO: i\/o error|ENOSPC: no space left on device), write$/)
    t.true((error.bytesWritten as number) < 4 * MIB)
    assertIdle(t, queue)
  },
)

loopTest(
  'no write is said to be on stable storage that is not, whoever the kernel told of the failure',
  async (t) => {
    const image = path.join(tmpfs(t, 2 * MIB), 'image')
    fs.writeFileSync(image, '')
    fs.truncateSync(image, 64 * MIB)
    const device = loopDevice(t, image)
    const queue = ring(t)
    const file = await queue.open(device, 'r+')
    const stored = fs.openSync(image, 'r')
    t.teardown(() => fs.closeSync(stored))
    let resolved = 0
    let failed = 0
    for (let first = 0; first < 600; first += 100) {
      const blocks = Array.from({ length: 100 }, (_, i) => Buffer.alloc(4096, `block ${first + i}`))
      // Every 64 KiB: each takes memory of its own in the store, which has room for a part of them.
      const place = (i: number) => (first + i) * 65_536
      const outcomes = await Promise.allSettled(
        blocks.map((block, i) => file.writeAt(block, place(i), { datasync: true })),
      )
      for (const [i, { status }] of outcomes.entries()) {
        if (status === 'rejected') {
          failed++
          continue
        }
        resolved++
        const content = Buffer.alloc(4096)
        fs.readSync(stored, content, 0, 4096, place(i))
        t.is(content.compare(blocks[i] as Buffer), 0, `block ${first + i} was said to be stored`)
      }
    }
    t.true(resolved > 0 && failed > 0, `${resolved} resolved, ${failed} rejected`)
    t.is((await rejection(queue.commit(file))).syscall, 'fdatasync')
    assertIdle(t, queue)
  },
)

/** ext4 on a device whose store is a file system of its own, with nothing left there until `makeRoom`. */
function fullStore(t: ExecutionContext<unknown>, options = 'errors=continue') {
  const store = tmpfs(t, 2 * MIB)
  const image = path.join(store, 'image')
  fs.writeFileSync(image, '')
  fs.truncateSync(image, 32 * MIB)
  const sparse = ['-O', '^has_journal', '-E', 'lazy_itable_init=0', '-m', '0', '-N', '32']
  execFileSync('mkfs.ext4', ['-q', '-F', ...sparse, image], { stdio: 'pipe' })
  const at = folder(t)
  execFileSync('mount', ['-o', options, loopDevice(t, image), at])
  t.teardown(() => execFileSync('umount', ['--lazy', at]))
  const ballast = path.join(store, 'ballast')
  return {
    log: path.join(at, 'log'),
    fill() {
      const fd = fs.openSync(ballast, 'w')
      t.throws(() => {
        for (;;) fs.writeSync(fd, Buffer.alloc(4096))
      })
      fs.closeSync(fd)
    },
    makeRoom: () => fs.unlinkSync(ballast),
  }
}

/** Somebody else's write to the file, which is lost. */
function lose(log: string): void {
  const fd = fs.openSync(log, 'r+')
  try {
    fs.writeSync(fd, Buffer.alloc(65_536, '?'), 0, 65_536, 65_536)
    fs.fsyncSync(fd)
  } catch {
    // So it is.
  }
  fs.closeSync(fd)
}

loopTest('appends to a file opened with O_DSYNC that say ENOSPC are there once', async (t) => {
  const { log, fill, makeRoom } = fullStore(t)
  fs.writeFileSync(log, Buffer.alloc(4096, '.'))
  const queue = ring(t)
  const { O_APPEND, O_DSYNC, O_RDWR } = fs.constants
  const file = await queue.open(log, O_RDWR | O_APPEND | O_DSYNC)
  await accustom(file)
  fill()
  lose(log)
  makeRoom()
  const before = fs.statSync(log).size
  const records = Array.from({ length: 8 }, (_, i) => Buffer.alloc(1000, 65 + i))
  const outcomes = await Promise.allSettled(records.map((record) => file.append(record)))
  t.true(outcomes.some(({ status }) => status === 'rejected'))
  const content = fs.readFileSync(log).subarray(before)
  t.deepEqual(content, Buffer.concat(records))
  assertIdle(t, queue)
})

const SYNCING = [
  ['a write that syncs', undefined, fs.constants.O_DSYNC],
  ['a write where all is mounted to be synced', 'errors=continue,sync', 0],
] as const
for (const [what, options, flag] of SYNCING) {
  loopTest(`no sync succeeds after ${what} was told of what others lost`, async (t) => {
    const { log, fill, makeRoom } = fullStore(t, options)
    fs.writeFileSync(log, Buffer.alloc(4096, '.'))
    const queue = ring(t)
    const file = await queue.open(log, fs.constants.O_RDWR | flag)
    await file.datasync()
    fill()
    lose(log)
    makeRoom()
    const error = await rejection(file.writeAt(Buffer.alloc(100, 'B'), 0))
    for (const sync of [file.datasync(), file.sync(), queue.commit(file)]) {
      t.is((await rejection(sync)).code, error.code)
    }
    assertIdle(t, queue)
  })
}

/** Writes to a file system that is frozen meanwhile, and says what came of it. */
const FROZEN = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
const [name, own] = process.argv.slice(1)
const code = (promise) => promise.then((value) => ({ value }), (error) => error)
const queue = new Queue()
const frozen = await queue.open(name, 'r+')
const others = await Promise.all([...'abcdefgh'].map((letter) => queue.open(own + letter, 'w+')))
const go = new Promise((resolve) => process.once('SIGUSR2', resolve))
const keep = setInterval(() => {}, 1000)
console.log('ready')
await go
clearInterval(keep)
const writes = [frozen.writeAt(Buffer.alloc(5000, 7), 0), frozen.writeAt(queue.alloc(4096).fill(8), 8192)].map(code)
await queue.sleep(100)
// One in 64 has its writes behind those of the frozen file: any that has not.
const other = await Promise.any(others.map((other) => other.writeAt(Buffer.alloc(1), 0).then(() => other)))
let count = 0
for (let i = 0; i < 100; i++) {
  count += await other.writeAt(Buffer.alloc(100, i), i * 100)
  await other.readAt(Buffer.alloc(100), i * 100)
}
const from = performance.now()
const { code: file } = await code(frozen.close({ timeoutMs: 0 }))
const { code: close, held, message } = await code(queue.close({ timeoutMs: 0 }))
const ms = performance.now() - from
const settled = (await Promise.all(writes)).map(({ code }) => code)
console.log(JSON.stringify({ others: count, file, close, held, message, ms, settled }))
`

needs(test.serial, {
  root: true,
  commands: ['losetup', 'mount', 'umount', 'mkfs.ext4', 'fsfreeze'],
})(
  'a frozen file system is named by close({ timeoutMs }), and the end of the program waits for its thaw',
  async (t) => {
    t.timeout(60_000)
    const at = loopMount(t, ['mkfs.ext4', '-q', '-F'], 512)
    const name = path.join(at, 'file')
    fs.writeFileSync(name, Buffer.alloc(20_000))
    // Whoever writes there cannot be killed: another process thaws it, whatever becomes of this one.
    const thaw = ['fsfreeze', '--unfreeze', at] as const
    const watchdog = spawn('sh', ['-c', 'sleep 30; exec "$@"', 'sh', ...thaw], {
      detached: true,
      stdio: 'ignore',
    })
    t.teardown(() => {
      spawnSync(thaw[0], thaw.slice(1), { stdio: 'ignore' })
      if (watchdog.pid !== undefined) process.kill(-watchdog.pid, 'SIGKILL')
    })
    let thawed = false
    const ended = await runChild(FROZEN, {
      args: [name, scratch(t)],
      timeoutMs: 40_000,
      onLine(line, child) {
        if (line === 'ready') {
          execFileSync('fsfreeze', ['--freeze', at])
          child.kill('SIGUSR2')
        } else {
          setTimeout(() => {
            thawed = child.exitCode === null && child.signalCode === null
            execFileSync(thaw[0], thaw.slice(1))
          }, 1000)
        }
      },
    })
    assertEnded(t, ended)
    t.true(thawed, `it ended before the thaw: ${story(ended)}`)
    const told = JSON.parse(ended.stdout.split('\n')[1] ?? '{}')
    t.is(told.others, 10_000, 'other files go on')
    t.is(told.file, 'ERR_URING_BUSY')
    t.is(told.close, 'ERR_URING_BUSY')
    t.deepEqual(told.held, ['2 writes'])
    t.is(told.message, 'Closed, but the kernel still holds 2 writes')
    t.true(told.ms < 10_000, `${told.ms} ms`)
    t.deepEqual(told.settled, ['ERR_URING_CLOSED', 'ERR_URING_CLOSED'])
    // The kernel did each or did not, from memory that was still the program's.
    const content = fs.readFileSync(name)
    for (const [from, to, byte] of [
      [0, 5000, 7],
      [8192, 12_288, 8],
    ] as const) {
      const what = new Set(content.subarray(from, to))
      t.true(what.size === 1 && (what.has(byte) || what.has(0)), `${from}: ${[...what]}`)
    }
  },
)
