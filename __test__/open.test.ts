// Opening files, and opens that are refused. node:fs is the witness: same flags, same modes, same errors.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import type { File, Queue } from 'node-uring'
import { childJson } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { assertIdle, isPending, rejection, ring, type Told, told } from './helpers/ring.js'
import { fifo, folder, scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

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
