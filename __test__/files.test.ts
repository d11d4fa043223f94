// Looking at, truncating, closing and adopting files. node:fs is the witness: same fields, same errors.

import fs from 'node:fs'
import { inspect } from 'node:util'
import { type File, Stats } from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, rejection, ring, thrown, told } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import test, { BACKEND } from './helpers/test.js'

const FIELDS = [
  ...(['dev', 'mode', 'nlink', 'uid', 'gid', 'rdev', 'blksize', 'ino', 'size', 'blocks'] as const),
  ...(['atimeMs', 'mtimeMs', 'ctimeMs', 'birthtimeMs'] as const),
  ...(['atime', 'mtime', 'ctime', 'birthtime'] as const),
]
const QUESTIONS = [
  ...(['isFile', 'isDirectory', 'isBlockDevice', 'isCharacterDevice'] as const),
  ...(['isSymbolicLink', 'isFIFO', 'isSocket'] as const),
]

test('stat tells what fs.fstat tells, field by field, of every kind of file', async (t) => {
  const queue = ring(t)
  const sparse = scratch(t)
  fs.closeSync(fs.openSync(sparse, 'w'))
  fs.truncateSync(sparse, 2 ** 33 + 5)
  fs.utimesSync(sparse, 12.345, -1.5)
  const kinds: [string, string | number][] = [
    [scratch(t, pattern(12_345)), 'r+'],
    [sparse, 'r'],
    [folder(t), 'r'],
    [fifo(t), 'r+'],
    ['/dev/null', 'r+'],
    ['/dev/zero', 'r'],
    ['/proc/self/status', 'r'],
    [process.execPath, 'r'],
    ['/', 'r'],
  ]
  for (const [name, flags] of kinds) {
    const file = await queue.open(name, flags)
    const ours = await file.stat()
    const theirs = fs.fstatSync(file.fd)
    t.true(ours instanceof Stats && ours instanceof fs.Stats)
    for (const field of FIELDS) t.deepEqual(ours[field], theirs[field], `${name}: ${field}`)
    for (const is of QUESTIONS) t.is(ours[is](), theirs[is](), `${name}: ${is}`)
    await file.close()
  }
  assertIdle(t, queue)
})

test('truncate shrinks and grows a file to numbers and bigints, and to 0 by default', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(10_000))
  const file = await queue.open(at, 'r+')
  for (const length of [10_000, 5000, 8000n, 2 ** 33 + 1, 2n ** 34n, 4097, 1]) {
    await file.truncate(length)
    t.is(fs.statSync(at).size, Number(length))
  }
  t.deepEqual(fs.readFileSync(at), pattern(10_000).subarray(0, 1))
  await file.truncate(3)
  t.deepEqual([...fs.readFileSync(at)], [pattern(10_000)[0] as number, 0, 0], 'new bytes are 0')
  await file.truncate()
  t.is(fs.statSync(at).size, 0)
})

test('a refused truncate, sync and datasync reject with the errors of node:fs', async (t) => {
  const queue = ring(t)
  const readOnly = await queue.open(scratch(t, pattern(10)))
  t.deepEqual(
    told(await rejection(readOnly.truncate(5))),
    told(thrown(() => fs.ftruncateSync(readOnly.fd, 5))),
  )
  const huge = await queue.open(scratch(t), 'w')
  t.deepEqual(
    told(await rejection(huge.truncate(2 ** 52))),
    told(thrown(() => fs.ftruncateSync(huge.fd, 2 ** 52))),
  )
  const stream = await queue.open(fifo(t), 'r+')
  t.deepEqual(told(await rejection(stream.sync())), told(thrown(() => fs.fsyncSync(stream.fd))))
  t.deepEqual(
    told(await rejection(stream.datasync())),
    told(thrown(() => fs.fdatasyncSync(stream.fd))),
  )
})

test('where node:fs truncates, it truncates no file that was opened for reading', async (t) => {
  const queue = ring(t, { without: ['ftruncate'] })
  const at = scratch(t, pattern(10))
  const readOnly = await queue.open(at)
  t.deepEqual(
    told(await rejection(readOnly.truncate(5))),
    told(thrown(() => fs.ftruncateSync(readOnly.fd, 5))),
  )
  t.deepEqual(fs.readFileSync(at), pattern(10))
  const appending = await queue.open(at, 'a')
  for (const length of [2 ** 53 - 1, 2n ** 53n, 2n ** 63n - 1n]) {
    t.like(await rejection(appending.truncate(length)), {
      message: 'EFBIG: file too large, ftruncate',
      path: at,
    })
  }
  await appending.truncate(4)
  t.is(fs.statSync(at).size, 4)
  const descriptors = fs.readdirSync('/proc/self/fd').filter((fd) => {
    return inodeOf(Number(fd)) === fs.statSync(at).ino
  })
  t.is(descriptors.length, 2, 'those of its own are closed')
  t.is((await rejection(appending.truncate(1, { signal: AbortSignal.abort() }))).code, 'ABORT_ERR')
  const late = await rejection(appending.truncate(1, { timeoutMs: 0 }))
  t.is(late.message, 'The ftruncate was not done within 0 ms')
  await appending.close()
  t.like(await rejection(appending.truncate(1)), { code: 'EBADF', path: at })
  t.is(fs.statSync(at).size, 4)
  assertIdle(t, queue)
})

// ---- closing ------------------------------------------------------------------------------------

/** Every call of a file, and the name that its error gives it. */
const CALLS: readonly [syscall: string, call: (file: File) => Promise<unknown>][] = [
  ['read', (file) => file.readAt(Buffer.alloc(10), 0)],
  ['read', (file) => file.readAt(Buffer.alloc(0), 0)],
  ['read', (file) => file.bytesAt(0, 10)],
  ['read', (file) => file.bytesAt(0, 0)],
  ['read', (file) => file.bytesAt(0, 1 << 20)],
  ['write', (file) => file.writeAt(Buffer.alloc(10), 0)],
  ['write', (file) => file.writeAt(Buffer.alloc(0), 0)],
  ['write', (file) => file.writeAt(Buffer.alloc(10), 0, { datasync: true })],
  ['read', (file) => file.readvAt([Buffer.alloc(10)], 0)],
  ['read', (file) => file.readvAt([], 0)],
  ['write', (file) => file.writevAt([Buffer.alloc(10)], 0)],
  ['write', (file) => file.writevAt([], 0)],
  ['fsync', (file) => file.sync()],
  ['fdatasync', (file) => file.datasync()],
  ['ftruncate', (file) => file.truncate(5)],
  ['fstat', (file) => file.stat()],
]

test('every call on a closed file rejects with EBADF, and nothing is submitted', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  await file.close()
  const { submitted } = queue.stats()
  for (const [syscall, call] of CALLS) {
    const error = await rejection(call(file))
    const message = `EBADF: bad file descriptor, ${syscall}`
    t.deepEqual(
      { ...told(error), name: error.name },
      { name: 'Error', message, code: 'EBADF', errno: -9, syscall, path: undefined },
    )
  }
  t.is(queue.stats().submitted, submitted)
  t.is(queue.stats().memory.result.usedBytes, 0)
})

test('a call begun while the file is being closed rejects with EBADF', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const closing = file.close()
  for (const [, call] of CALLS) t.is((await rejection(call(file))).code, 'EBADF')
  await closing
})

test('close closes the descriptor once, however often it is called', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const { fd } = file
  const ino = inodeOf(fd)
  t.not(ino, undefined)
  t.is(file.close(), file.close())
  await file.close()
  // Its number may be another file's by now: other tests run beside this one.
  t.not(inodeOf(fd), ino)
  const next = fs.openSync(scratch(t), 'w')
  t.teardown(() => fs.closeSync(next))
  await file.close()
  await queue.close()
  t.notThrows(() => fs.fstatSync(next), 'a descriptor of the same number belongs to somebody else')
})

test('close waits for what is under way, which gets its true result', async (t) => {
  const queue = ring(t)
  const at = scratch(t)
  const file = await queue.open(at, 'w+')
  const order: string[] = []
  const content = pattern(3 << 20)
  const writing = file.writeAt(content, 0).then((count) => {
    order.push('written')
    return count
  })
  const closing = file.close().then(() => order.push('closed'))
  t.is(await writing, content.length)
  await closing
  t.deepEqual(order, ['written', 'closed'])
  t.deepEqual(fs.readFileSync(at), content)
})

test('closing the queue closes its files and their descriptors', async (t) => {
  const queue = ring(t)
  const files = await Promise.all([1, 2, 3].map(() => queue.open(scratch(t), 'w+')))
  const fds = files.map((file) => file.fd)
  const inodes = fds.map(inodeOf)
  t.false(inodes.includes(undefined))
  await queue.close()
  // Their numbers may be other files' by now: other tests run beside this one.
  for (const [i, fd] of fds.entries()) t.not(inodeOf(fd), inodes[i])
  for (const file of files) await file.close()
})

test('after the queue was closed its calls say so, and its files EBADF', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, pattern(10)), 'r+')
  const kept = queue.alloc(100)
  kept.fill(7)
  await queue.close()
  t.is(queue.close(), queue.close())
  for (const call of [
    () => queue.open('/etc/passwd'),
    () => queue.adopt(0),
    () => queue.nop(),
    () => queue.sleep(1),
    () => queue.nopRoundTrip({ samples: 10 }),
  ]) {
    const error = await rejection(call())
    t.is(error.code, 'ERR_URING_CLOSED', String(call))
  }
  t.throws(() => queue.alloc(10), { code: 'ERR_URING_CLOSED' })
  for (const [, call] of CALLS) t.is((await rejection(call(file))).code, 'EBADF')
  t.notThrows(() => queue.flush())
  t.notThrows(() => queue.ref().unref())
  t.is(queue.stats().pending, 0)
  t.is(queue.capabilities.backend, BACKEND)
  t.true(
    kept.every((byte) => byte === 7),
    'its memory stays',
  )
})

test('a call begun while the queue is being closed says that it is closed', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), 'w+')
  const closing = queue.close()
  t.is((await rejection(queue.nop())).code, 'ERR_URING_CLOSED')
  t.is((await rejection(queue.open('/etc/passwd'))).code, 'ERR_URING_CLOSED')
  for (const [syscall, call] of CALLS) {
    t.regex(String((await rejection(call(file))).code), /^(ERR_URING_CLOSED|EBADF)$/, syscall)
  }
  await closing
})

test('a call of a file whose queue waits for others before it closes says that it is closed', async (t) => {
  for (const options of [{}, { without: ['ftruncate'] }] as const) {
    const queue = ring(t, options)
    const file = await queue.open(scratch(t), 'w+')
    const sleeping = queue.sleep(50)
    const closing = queue.close()
    for (const [syscall, call] of CALLS) {
      t.is((await rejection(call(file))).code, 'ERR_URING_CLOSED', `${syscall}: ${call}`)
    }
    await sleeping
    await closing
  }
})

// ---- adopting -----------------------------------------------------------------------------------

test('an adopted descriptor is read, tells its number, and is closed by its file', async (t) => {
  const queue = ring(t)
  const fd = fs.openSync(scratch(t, Buffer.from('mine')), 'r+')
  const file = await queue.adopt(fd)
  t.is(file.fd, fd)
  t.is(file.path, undefined)
  t.is((await file.bytesAt(0, 10)).toString(), 'mine')
  const { ino } = await file.stat()
  await file.close()
  // Its number may be another file's by now: other tests run beside this one.
  t.not(inodeOf(fd), ino)
})

/** The file that has the number; undefined when none has. */
function inodeOf(fd: number): number | undefined {
  try {
    return fs.fstatSync(fd).ino
  } catch {
    return undefined
  }
}

test('a descriptor is adopted once, and one that open gave is adopted already', async (t) => {
  const queue = ring(t)
  const fd = fs.openSync(scratch(t), 'w')
  const file = await queue.adopt(fd)
  t.is((await rejection(queue.adopt(fd))).code, 'EEXIST')
  const opened = await queue.open(scratch(t), 'w')
  t.is((await rejection(queue.adopt(opened.fd))).code, 'EEXIST')
  t.is(await file.writeAt(Buffer.from('still here'), 0), 10)
  t.is(await opened.writeAt(Buffer.from('still here'), 0), 10)
})

test('a number that is no descriptor is refused with EBADF', async (t) => {
  const queue = ring(t)
  const closed = fs.openSync('/dev/null', 'r')
  fs.closeSync(closed)
  for (const fd of [closed, 1_000_000, 2 ** 31 - 1]) {
    const error = await rejection(queue.adopt(fd))
    t.is(error.code, 'EBADF')
    t.is(error.errno, -9)
  }
  t.is(queue.stats().files, 0)
})

test('an adopted descriptor that appends is known to append', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('a'))
  const file = await queue.adopt(fs.openSync(at, 'a'))
  t.throws(() => file.writeAt(Buffer.from('x'), 0), { code: 'ERR_URING_APPEND' })
  await file.append(Buffer.from('b'))
  t.is(fs.readFileSync(at, 'utf8'), 'ab')
})

test('an error names the file, also where node:fs says none, and a closed one has no descriptor', async (t) => {
  const queue = ring(t)
  const path = scratch(t, pattern(100))
  const file = await queue.open(path)
  const folderFile = await queue.open(folder(t))
  const some = Buffer.alloc(8)
  const write = await rejection(file.writeAt(some, 0))
  t.like(write, { code: 'EBADF', message: 'EBADF: bad file descriptor, write', path })
  t.is((await rejection(file.truncate(5))).path, path)
  const { path: where } = await rejection(folderFile.readAt(some, 0))
  t.is(where, folderFile.path)
  t.is(inspect(file), `File { path: '${path}', fd: ${file.fd}, closed: false }`)
  await file.close()
  t.is(file.fd, -1)
  t.is(inspect(file), `File { path: '${path}', fd: -1, closed: true }`)
  for (const call of [() => file.readAt(some, 0), () => file.sync(), () => queue.commit(file)]) {
    t.like(await rejection(call()), { code: 'EBADF', path })
  }
  await queue.close()
  t.is(folderFile.fd, -1)
})
