// Opening, looking at, truncating, closing and adopting files; and what is refused before anything
// starts. node:fs is the witness: same flags, same modes, same errors.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { type File, Queue, Stats } from 'node-uring'
import { childJson } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, type Told, thrown, told } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { BACKEND, type ExecutionContext } from './helpers/test.js'

const { O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } =
  fs.constants
const { O_NOATIME, O_NONBLOCK, O_SYNC } = fs.constants

/** The flags of a descriptor, as the kernel tells them. proc(5), fdinfo. */
function kernelFlags(fd: number): string | undefined {
  return /flags:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
}

/** What came of opening a file: its flags and what it holds then, or the error. */
type Outcome = { readonly flags: string | undefined; readonly content: string } | Told

/** Opens by node:fs and tells what came of it. */
function openedByNode(file: string, flags: string | number | undefined): Outcome {
  try {
    const fd = fs.openSync(file, flags as string)
    try {
      return { flags: kernelFlags(fd), content: contentOf(file) }
    } finally {
      fs.closeSync(fd)
    }
  } catch (error) {
    return told(error)
  }
}

/** Opens by the queue and tells what came of it. */
async function openedByQueue(
  queue: Queue,
  file: string,
  flags: string | number | undefined,
): Promise<Outcome> {
  try {
    const opened = await queue.open(file, flags)
    try {
      return { flags: kernelFlags(opened.fd), content: contentOf(file) }
    } finally {
      await opened.close()
    }
  } catch (error) {
    return told(error)
  }
}

function contentOf(file: string): string {
  return fs.statSync(file).isFile() ? fs.readFileSync(file, 'utf8') : 'no file'
}

const STRINGS = [
  ...['r', 'rs', 'sr', 'r+', 'rs+', 'sr+', 'w', 'wx', 'xw', 'w+', 'wx+', 'xw+'],
  ...['a', 'ax', 'xa', 'as', 'sa', 'a+', 'ax+', 'xa+', 'as+', 'sa+'],
]
const NUMBERS = [
  ...[O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_EXCL, O_WRONLY | O_TRUNC],
  ...[O_RDWR | O_APPEND, O_RDWR | O_SYNC, O_RDONLY | O_NONBLOCK, O_RDONLY | O_NOFOLLOW],
  ...[O_RDONLY | O_DIRECTORY, O_RDONLY | O_NOATIME, O_WRONLY | O_RDWR, 0o10000000 /* O_PATH */],
]
/** Bits that are no flags: the kernel ignores them, or refuses some together. */
const ODD_NUMBERS = [0o20000000, 0o20000002, 2 ** 31 - 1, -1, -(2 ** 31)]

for (const [what, all] of Object.entries({
  string: [undefined, ...STRINGS],
  number: NUMBERS,
  'number of unknown bits': ODD_NUMBERS,
})) {
  test(`every flag ${what} opens as by node:fs, whatever is there`, async (t) => {
    const queue = ring(t)
    for (const flags of all) await sameAsNode(t, queue, flags)
    assertIdle(t, queue)
  })
}

async function sameAsNode(
  t: ExecutionContext,
  queue: Queue,
  flags: string | number | undefined,
): Promise<void> {
  for (const kind of ['a file', 'nothing', 'a folder', 'a link', 'a dangling link'] as const) {
    const make = (): string => {
      const at = path.join(folder(t), 'x')
      if (kind === 'a file') fs.writeFileSync(at, 'content')
      if (kind === 'a folder') fs.mkdirSync(at)
      if (kind === 'a link') fs.symlinkSync(scratch(t, Buffer.from('linked')), at)
      if (kind === 'a dangling link') fs.symlinkSync(`${at}-nowhere`, at)
      return at
    }
    const [ours, theirs] = [make(), make()]
    const expected = JSON.stringify(openedByNode(theirs, flags)).replaceAll(theirs, ours)
    const actual = JSON.stringify(await openedByQueue(queue, ours, flags))
    t.is(actual, expected, `${flags} on ${kind}`)
  }
}

test('a file opened by the queue is closed on exec', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t), O_RDWR | O_CREAT)
  t.is(Number.parseInt(kernelFlags(file.fd) ?? '', 8) & 0o2000000, 0o2000000)
})

test.serial('a new file gets its mode less the umask, as by node:fs', async (t) => {
  const queue = ring(t)
  const before = process.umask()
  t.teardown(() => void process.umask(before))
  for (const umask of [0, 0o022, 0o027, 0o777]) {
    process.umask(umask)
    for (const mode of [undefined, 0o666, 0o600, 0o777, 0, '640', '0755', 0o1777, 0o4755]) {
      const at = folder(t)
      const [ours, theirs] = [path.join(at, 'ours'), path.join(at, 'theirs')]
      fs.closeSync(fs.openSync(theirs, 'w', mode))
      const file = await queue.open(ours, 'w', mode === undefined ? {} : { mode })
      await file.close()
      const what = `mode ${mode}, umask ${umask.toString(8)}`
      t.is(fs.statSync(ours).mode.toString(8), fs.statSync(theirs).mode.toString(8), what)
    }
  }
})

test('a path is a string, a Buffer, a Uint8Array or a URL, and names the same file', async (t) => {
  const queue = ring(t)
  const at = path.join(folder(t), 'ä b%20c')
  fs.writeFileSync(at, 'found')
  const bytes = Buffer.from(at)
  const views = [at, bytes, new Uint8Array(bytes), pathToFileURL(at)]
  for (const name of views) {
    const file = await queue.open(name)
    t.is((await file.bytesAt(0, 10)).toString(), 'found')
    t.is(file.path, at)
    await file.close()
  }
})

test('a path need not be UTF-8', async (t) => {
  const queue = ring(t)
  const at = Buffer.concat([Buffer.from(`${folder(t)}/`), Buffer.of(0xff, 0x80, 0x41)])
  const file = await queue.open(at, 'w')
  await file.writeAt(Buffer.from('odd'), 0)
  t.is(fs.readFileSync(at, 'utf8'), 'odd')
})

test('a path may change once open was called', async (t) => {
  const queue = ring(t)
  const at = Buffer.from(scratch(t, Buffer.from('right')))
  const opening = queue.open(at)
  at.fill(0x78)
  t.is((await (await opening).bytesAt(0, 10)).toString(), 'right')
})

test('relative paths start in the working directory', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('here'))
  const file = await queue.open(path.relative(process.cwd(), at))
  t.is((await file.bytesAt(0, 10)).toString(), 'here')
})

// ---- errors -------------------------------------------------------------------------------------

/** Paths that cannot be opened, and the flags that they cannot be opened with. */
const REFUSED: Readonly<
  Record<string, (t: ExecutionContext) => [name: string | Buffer | URL, flags: string | number]>
> = {
  'ENOENT of a missing file': (t) => [path.join(folder(t), 'missing'), 'r'],
  'ENOENT of a missing folder': (t) => [path.join(folder(t), 'missing', 'file'), 'w'],
  'ENOENT of a Buffer': (t) => [Buffer.from(path.join(folder(t), 'missing')), 'r'],
  'ENOENT of a URL': (t) => [pathToFileURL(path.join(folder(t), 'missing ä')), 'r+'],
  'ENOENT of an empty path': () => ['', 'r'],
  'ENOENT of an empty Buffer': () => [Buffer.alloc(0), 'r'],
  'ENOTDIR below a file': (t) => [path.join(scratch(t, Buffer.from('x')), 'below'), 'r'],
  'ENOTDIR with O_DIRECTORY': (t) => [scratch(t, Buffer.from('x')), O_RDONLY | O_DIRECTORY],
  'EISDIR of a folder to write': (t) => [folder(t), 'w'],
  'EISDIR of a path that ends with a slash': (t) => [`${folder(t)}/new/`, 'w'],
  'EEXIST with x': (t) => [scratch(t, Buffer.from('x')), 'wx'],
  'ELOOP of a link to itself': (t) => {
    const at = path.join(folder(t), 'loop')
    fs.symlinkSync(at, at)
    return [at, 'r']
  },
  'ELOOP with O_NOFOLLOW': (t) => {
    const at = path.join(folder(t), 'link')
    fs.symlinkSync('/etc/passwd', at)
    return [at, O_RDONLY | O_NOFOLLOW]
  },
  'ENAMETOOLONG of a long name': (t) => [path.join(folder(t), 'x'.repeat(256)), 'w'],
  'ENAMETOOLONG of a path of 4095 bytes': () => [`/${'a'.repeat(4094)}`, 'r'],
  'ENAMETOOLONG of a path of 4096 bytes': () => [`/${'./'.repeat(2047)}a`, 'r'],
  'ENAMETOOLONG of a path of 10,000 bytes': () => ['/x'.repeat(5000), 'r'],
  'ENXIO of a FIFO without a reader': (t) => [fifo(t), O_WRONLY | O_NONBLOCK],
  'ENXIO of a device that is none': () => ['/dev/tty', 'r'],
}

for (const [title, make] of Object.entries(REFUSED)) {
  test(`open rejects with the error of node:fs: ${title}`, async (t) => {
    const queue = ring(t)
    const [name, flags] = make(t)
    let theirs: Told | undefined
    try {
      fs.closeSync(fs.openSync(name, flags))
    } catch (error) {
      theirs = told(error)
    }
    if (theirs === undefined) {
      // A terminal is there when the tests run in one.
      await t.notThrowsAsync(queue.open(name, flags))
      return
    }
    const ours = await rejection(queue.open(name, flags))
    t.deepEqual(told(ours), theirs)
    t.true(title.startsWith(String(theirs.code)) || title.includes('device'))
    t.deepEqual(Object.keys(ours).sort(), ['code', 'errno', 'path', 'syscall'])
    assertIdle(t, queue)
  })
}

/** Runs as another user: what `queue` is made before and what after must be the same. */
const AS_NOBODY = `
import fs from 'node:fs'
import { Queue } from 'node-uring'
const [secret, when] = process.argv.slice(1)
let queue
if (when === 'before') { queue = new Queue(); await queue.nop() }
process.setgroups([]); process.setgid(65534); process.setuid(65534)
queue ??= new Queue()
const told = (e) => ({ name: e.name, message: e.message, code: e.code, errno: e.errno, syscall: e.syscall, path: e.path })
let theirs
try { fs.openSync(secret); theirs = 'opened' } catch (e) { theirs = told(e) }
const ours = await queue.open(secret).then(() => 'opened', told)
await queue.close()
console.log(JSON.stringify({ theirs, ours }))
`

for (const when of ['before', 'after'] as const) {
  needs(test, { root: true })(
    `a file of root is refused with EACCES by a queue made ${when} the user was changed`,
    async (t) => {
      t.timeout(30_000)
      const secret = scratch(t, Buffer.from('secret'))
      fs.chmodSync(path.dirname(secret), 0o755)
      fs.chmodSync(secret, 0o600)
      const { theirs, ours } = await childJson<{ theirs: Told; ours: Told }>(AS_NOBODY, {
        args: [secret, when],
      })
      t.is(theirs.code, 'EACCES')
      t.deepEqual(ours, theirs)
    },
  )
}

test('the stack of a refused open, read and stat shows who called', async (t) => {
  const queue = ring(t)
  async function theOneWhoOpens(): Promise<unknown> {
    return await queue.open('/no/such/file')
  }
  async function theOneWhoReads(file: File): Promise<unknown> {
    return await file.readAt(Buffer.alloc(10), 0)
  }
  async function theOneWhoSyncs(file: File): Promise<unknown> {
    return await file.sync()
  }
  const writeOnly = await queue.open(scratch(t), 'w')
  const stream = await queue.open(fifo(t), 'r+')
  t.regex((await rejection(theOneWhoOpens())).stack ?? '', /at .*theOneWhoOpens/)
  t.regex((await rejection(theOneWhoReads(writeOnly))).stack ?? '', /at .*theOneWhoReads/)
  t.regex((await rejection(theOneWhoSyncs(stream))).stack ?? '', /at .*theOneWhoSyncs/)
})

test('a hundred opens at once give a hundred files, each the one that was asked for', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const name = (i: number) => path.join(at, String(i))
  for (let i = 0; i < 100; i += 2) fs.writeFileSync(name(i), String(i))
  const outcomes = await Promise.allSettled(
    Array.from({ length: 100 }, (_, i) => queue.open(name(i))),
  )
  for (const [i, outcome] of outcomes.entries()) {
    if (i % 2 === 0) {
      if (outcome.status === 'rejected') return t.fail(`${i}: ${outcome.reason}`)
      t.is((await outcome.value.bytesAt(0, 10)).toString(), String(i))
    } else {
      t.is(outcome.status === 'rejected' && outcome.reason.path, name(i))
    }
  }
  t.is(queue.stats().files, 50)
})

for (const [flags, other] of [
  ['r', 'w'],
  ['w', 'r'],
  [O_WRONLY, O_RDONLY],
] as const) {
  test(`opening a FIFO with ${flags} waits for the other side, as by node:fs, and blocks nobody`, async (t) => {
    const queue = ring(t)
    const name = fifo(t)
    const opening = queue.open(name, flags)
    t.true(await isPending(opening, 100), 'nobody is on the other side')
    await queue.nop()
    const there = await queue.open(name, other)
    const here = await opening
    const [reader, writer] = flags === 'r' ? [here, there] : [there, here]
    t.is(await writer.writeAt(Buffer.from('through'), 0), 7)
    t.is((await reader.bytesAt(0, 100)).toString(), 'through')
    assertIdle(t, queue)
  })
}

test('an open that waits is cancelled by closing the queue, and says that it was', async (t) => {
  for (const flags of ['r', 'w'] as const) {
    const queue = ring(t)
    const opening = rejection(queue.open(fifo(t), flags))
    t.true(await isPending(opening, 20))
    await queue.close({ timeoutMs: 0 })
    t.like(await opening, { name: 'AbortError', code: 'ABORT_ERR' })
  }
})

test('opening a FIFO with O_NONBLOCK waits for nobody', async (t) => {
  const queue = ring(t)
  const file = await queue.open(fifo(t), O_RDONLY | O_NONBLOCK)
  t.is(await file.readAt(Buffer.alloc(10), 0), 0, 'there is no writer')
})

test('more files than the registered table has places are all read and closed', async (t) => {
  const queue = ring(t)
  const at = scratch(t, pattern(100))
  const places = queue.capabilities.registeredFiles
  const count = Math.min(places, 1024) + 50
  const files = await Promise.all(Array.from({ length: count }, () => queue.open(at)))
  t.is(queue.stats().files, count)
  for (const file of files) t.deepEqual(await file.bytesAt(90, 100), pattern(100).subarray(90))
  await Promise.all(files.map((file) => file.close()))
  t.is(queue.stats().files, 0)
  assertIdle(t, queue)
})

// ---- stat and truncate --------------------------------------------------------------------------

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
  t.regex(String((await rejection(file.bytesAt(0, 5))).code), /^(ERR_URING_CLOSED|EBADF)$/)
  await closing
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

// ---- misuse -------------------------------------------------------------------------------------

/** Calls that are wrong, by the code of what they throw. */
type Misuse = readonly [code: string, call: (queue: Queue, file: File) => unknown]
const TYPE = 'ERR_INVALID_ARG_TYPE'
const RANGE = 'ERR_OUT_OF_RANGE'
const VALUE = 'ERR_INVALID_ARG_VALUE'
const NOT_NUMBERS: readonly unknown[] = ['0', null, {}, [], true, Symbol('x'), () => 0, new Date(0)]
const BAD_NUMBERS: readonly unknown[] = [-1, NaN, 1.5, -0.1, Infinity, -Infinity, 2 ** 53, -0]
const BAD_BIGINTS: readonly unknown[] = [-1n, 2n ** 63n, 2n ** 64n, -(2n ** 63n)]
const NOT_VIEWS: readonly unknown[] = [
  ...[undefined, null, 'text', 5, [1, 2], {}, { byteLength: 5 }, () => 0],
  ...[new ArrayBuffer(8), new SharedArrayBuffer(8)],
]

function positions(call: (file: File, position: never) => unknown, optional = false): Misuse[] {
  const notNumbers = optional ? NOT_NUMBERS : [...NOT_NUMBERS, undefined]
  return [
    ...notNumbers.map((bad): Misuse => [TYPE, (_, file) => call(file, bad as never)]),
    ...[...BAD_NUMBERS, ...BAD_BIGINTS].map(
      (bad): Misuse => [RANGE, (_, file) => call(file, bad as never)],
    ),
  ]
}

function notViews(call: (file: File, view: never) => unknown): Misuse[] {
  return NOT_VIEWS.map((bad) => [TYPE, (_, file) => call(file, bad as never)])
}

const OPTION_BAGS = [null, 5, 'x', [], () => 0]
const MISUSE: Readonly<Record<string, readonly Misuse[]>> = {
  'readAt’s position': positions((file, bad) => file.readAt(Buffer.alloc(5), bad)),
  'writeAt’s position': positions((file, bad) => file.writeAt(Buffer.alloc(5), bad)),
  'bytesAt’s position': positions((file, bad) => file.bytesAt(bad, 5)),
  'truncate’s length': positions((file, bad) => file.truncate(bad), true),
  'readAt’s buffer': notViews((file, bad) => file.readAt(bad, 0)),
  'writeAt’s buffer': notViews((file, bad) => file.writeAt(bad, 0)),
  'append’s buffer': notViews((file, bad) => file.append(bad)),
  'bytesAt’s length': [
    ...[undefined, ...NOT_NUMBERS, 5n].map(
      (bad): Misuse => [TYPE, (_, file) => file.bytesAt(0, bad as never)],
    ),
    ...BAD_NUMBERS.filter((bad) => !Object.is(bad, -0)).map(
      (bad): Misuse => [RANGE, (_, file) => file.bytesAt(0, bad as never)],
    ),
  ],
  'writeAt’s options': [
    ...OPTION_BAGS.map(
      (bad): Misuse => [TYPE, (_, file) => file.writeAt(Buffer.alloc(5), 0, bad as never)],
    ),
    ...['yes', 1, {}].map(
      (datasync): Misuse => [
        TYPE,
        (_, file) => file.writeAt(Buffer.alloc(5), 0, { datasync } as never),
      ],
    ),
  ],
  'open’s path': [
    ...[undefined, null, 5, {}, [], new ArrayBuffer(5)].map(
      (bad): Misuse => [TYPE, (queue) => queue.open(bad as never)],
    ),
    [VALUE, (queue) => queue.open('/etc/pass\0wd')],
    [VALUE, (queue) => queue.open(Buffer.from('/etc/pass\0wd'))],
    ['ERR_INVALID_URL_SCHEME', (queue) => queue.open(new URL('http://localhost/x'))],
    ['ERR_INVALID_FILE_URL_HOST', (queue) => queue.open(new URL('file://elsewhere/x'))],
  ],
  'open’s flags': [
    ...['', 'q', 'R', 'rw', 'r ', {}, [], true, 5n].map(
      (bad): Misuse => [VALUE, (queue) => queue.open('/etc/passwd', bad as never)],
    ),
    ...[NaN, 1.5, 2 ** 31, -(2 ** 31) - 1, Infinity].map(
      (bad): Misuse => [RANGE, (queue) => queue.open('/etc/passwd', bad)],
    ),
  ],
  'open’s options': [
    ...OPTION_BAGS.map(
      (bad): Misuse => [TYPE, (queue) => queue.open('/etc/passwd', 'r', bad as never)],
    ),
    ...['yes', 1, {}].map(
      (direct): Misuse => [TYPE, (queue) => queue.open('/etc/passwd', 'r', { direct } as never)],
    ),
    ...['9', 'x', '', '0o7'].map(
      (mode): Misuse => [VALUE, (queue) => queue.open('/etc/passwd', 'r', { mode })],
    ),
    ...[-1, 1.5, NaN, 2 ** 32].map(
      (mode): Misuse => [RANGE, (queue) => queue.open('/etc/passwd', 'r', { mode })],
    ),
    ...[{}, true, 5n].map(
      (mode): Misuse => [TYPE, (queue) => queue.open('/etc/passwd', 'r', { mode } as never)],
    ),
  ],
  'adopt’s descriptor': [
    ...[undefined, null, '0', 5n, {}].map(
      (bad): Misuse => [TYPE, (queue) => queue.adopt(bad as never)],
    ),
    ...[-1, 1.5, NaN, 2 ** 31].map((bad): Misuse => [RANGE, (queue) => queue.adopt(bad)]),
  ],
  'sleep’s time': [
    ...[undefined, null, '0', 5n].map(
      (bad): Misuse => [TYPE, (queue) => queue.sleep(bad as never)],
    ),
    ...[-1, 1.5, NaN, 2 ** 31].map((bad): Misuse => [RANGE, (queue) => queue.sleep(bad)]),
  ],
  'alloc’s length': [
    ...[undefined, null, '0', 5n].map(
      (bad): Misuse => [TYPE, (queue) => queue.alloc(bad as never)],
    ),
    ...[-1, 1.5, NaN, Infinity, 2 ** 53].map((bad): Misuse => [RANGE, (queue) => queue.alloc(bad)]),
  ],
  'free’s buffer': [undefined, null, 'x', 5, [], {}].map(
    (bad): Misuse => [TYPE, (queue) => queue.free(bad as never)],
  ),
  'close’s options': [
    ...OPTION_BAGS.map((bad): Misuse => [TYPE, (queue) => queue.close(bad as never)]),
    ...OPTION_BAGS.map((bad): Misuse => [TYPE, (_, file) => file.close(bad as never)]),
    ...['0', null, 5n].map(
      (timeoutMs): Misuse => [TYPE, (_, file) => file.close({ timeoutMs } as never)],
    ),
    ...[-1, 1.5, NaN, 2 ** 31].map(
      (timeoutMs): Misuse => [RANGE, (queue) => queue.close({ timeoutMs })],
    ),
  ],
  'nopRoundTrip’s options': [
    ...OPTION_BAGS.map((bad): Misuse => [TYPE, (queue) => queue.nopRoundTrip(bad as never)]),
    ...['samples', 'concurrency'].flatMap((name): Misuse[] => [
      ...['1', null, 5n].map(
        (bad): Misuse => [TYPE, (queue) => queue.nopRoundTrip({ [name]: bad } as never)],
      ),
      ...[0, -1, 1.5, NaN, 1e10].map(
        (bad): Misuse => [RANGE, (queue) => queue.nopRoundTrip({ [name]: bad })],
      ),
    ]),
    [TYPE, (queue) => queue.nopRoundTrip({ signal: {} as never })],
    [TYPE, (queue) => queue.nopRoundTrip({ onProgress: 5 as never })],
  ],
}

for (const [argument, calls] of Object.entries(MISUSE)) {
  test(`${argument}: what is wrong throws at once, with the code of Node, and stages nothing`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, pattern(100))
    const file = await queue.open(at, argument.startsWith('append') ? 'a+' : 'r+')
    const { submitted } = queue.stats()
    for (const [code, call] of calls) {
      const error = thrown(() => call(queue, file), String(call))
      t.is(error.code, code, `${call}: ${error.message}`)
      t.is(error.constructor, code === RANGE ? RangeError : TypeError, error.message)
    }
    await queue.nop()
    t.is(queue.stats().submitted, submitted + 1, 'the nop alone')
    t.is(fs.readFileSync(at).compare(pattern(100)), 0)
    assertIdle(t, queue)
  })
}

test('options of a queue that are wrong throw with the codes of Node', (t) => {
  const bad: [code: string, options: unknown][] = [
    ...[null, 5, [], 'x'].map((o): [string, unknown] => [TYPE, o]),
    ...['1', null, 5n].map((entries): [string, unknown] => [TYPE, { entries }]),
    ...[0, -1, 1.5, NaN, 32_769].map((entries): [string, unknown] => [RANGE, { entries }]),
    [RANGE, { entries: 64, cqEntries: 63 }],
    [RANGE, { cqEntries: 65_537 }],
    [RANGE, { bounceBytes: (2 << 20) - 1 }],
    [RANGE, { arena: { slabBytes: 4096 } }],
    [VALUE, { arena: { slabBytes: 100_000 } }],
    [RANGE, { arena: { slabBytes: 1 << 20, maxBytes: 1 << 19 } }],
    [TYPE, { arena: null }],
    [VALUE, { setup: { taskRun: 'never' } }],
    [RANGE, { workers: { bounded: -1 } }],
    [TYPE, { register: 1 }],
  ]
  for (const [code, options] of bad) {
    const error = thrown(() => new Queue(options as never))
    t.is(error.code, code, error.message)
  }
})

test('a slab and a limit on copies, each allowed by itself, are allowed together', async (t) => {
  const queue = ring(t, { arena: { slabBytes: 4 << 20 }, bounceBytes: 2 << 20 })
  const file = await queue.open(scratch(t), 'w+')
  t.is(await file.writeAt(Buffer.from('plain'), 0), 5)
})

test('a call of a queue or file without its object throws a TypeError', async (t) => {
  const queue = ring(t)
  const { nop } = queue
  t.throws(() => (nop as () => unknown)(), { instanceOf: TypeError })
})
