// queue.replaceFile: all of the old or all of the new, and nothing left beside it, whatever happens.

import { tracingChannel } from 'node:diagnostics_channel'
import fs from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import { type OperationMessage, Queue } from 'node-uring'
import { childJson } from './helpers/child.js'
import { pattern } from './helpers/random.js'
import { injectable } from './helpers/refuse.js'
import { assertIdle, type Caught, rejection, ring, thrown } from './helpers/ring.js'
import { fifo, folder, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test from './helpers/test.js'

const MIB = 1 << 20

/** What a mode says of permissions. */
const permissions = (at: string): number => fs.statSync(at).mode & 0o7777

test('a file is made or replaced, of any content', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const name = path.join(at, 'file')
  const mine = queue.alloc(3 * MIB)
  pattern(3 * MIB).copy(mine)
  const contents = [
    'Text with ünïcode',
    '',
    pattern(10),
    Buffer.alloc(0),
    pattern(5 * MIB),
    mine,
    new Uint16Array([1, 2, 3]),
    new DataView(new ArrayBuffer(9), 2, 5),
  ]
  for (const content of contents) {
    for (const target of [name, Buffer.from(name), new URL(`file://${name}`)]) {
      t.is(await queue.replaceFile(target, content), undefined)
      const expected =
        typeof content === 'string'
          ? Buffer.from(content)
          : Buffer.from(content.buffer, content.byteOffset, content.byteLength)
      t.true(fs.readFileSync(name).equals(expected))
      t.deepEqual(fs.readdirSync(at), ['file'])
    }
  }
  assertIdle(t, queue)
})

// Alone: it is told of all replacements of this process.
test.serial(
  'content is synced before it gets the name, and the folder before it is said so',
  async (t) => {
    const queue = ring(t)
    const name = path.join(folder(t), 'file')
    const settled: OperationMessage[] = []
    const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
    const subscribers = { asyncEnd: (message: OperationMessage) => void settled.push(message) }
    channels.subscribe(subscribers as never)
    t.teardown(() => channels.unsubscribe(subscribers as never))
    for (const content of ['made', 'replaced', ['in ', 'parts']]) {
      settled.length = 0
      await queue.replaceFile(name, content)
      const steps = settled.filter(({ operation }) => /^(write|fsync|rename)$/.test(operation))
      const writes = Array.isArray(content) ? content.map(() => 'write') : ['write']
      const told = steps.map(({ operation }) => operation)
      t.deepEqual(told, [...writes, 'fsync', 'rename', 'fsync'])
      const [write, sync] = steps.slice(writes.length - 1)
      t.is(sync?.fd, write?.fd, 'the file’s')
      t.true(
        settled.every(({ error }) => error === undefined || error.message.startsWith('ENOENT')),
      )
    }
    assertIdle(t, queue)
  },
)

test('the file is another one: who has the old one open keeps its content', async (t) => {
  const queue = ring(t)
  const name = path.join(folder(t), 'file')
  fs.writeFileSync(name, 'old')
  const old = await queue.open(name)
  const { ino } = fs.statSync(name)
  await queue.replaceFile(name, 'new')
  t.is((await old.bytesAt(0, 10)).toString(), 'old')
  t.not(fs.statSync(name).ino, ino)
})

test('permissions are kept, or those that are given, or those of any new file', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const name = path.join(at, 'file')
  const umask = process.umask()
  await queue.replaceFile(name, 'x')
  t.is(permissions(name), 0o666 & ~umask)
  for (const mode of [0o600, 0o777, 0o4755, 0o444]) {
    fs.chmodSync(name, mode)
    await queue.replaceFile(name, 'y')
    t.is(permissions(name), mode)
  }
  // What is given is subject to the umask, as everywhere.
  for (const mode of [0o640, 0o777]) {
    await queue.replaceFile(name, 'z', { mode })
    t.is(permissions(name), mode & ~umask)
  }
  await queue.replaceFile(path.join(at, 'other'), 'z', { mode: '600' })
  t.is(permissions(path.join(at, 'other')), 0o600)
  assertIdle(t, queue)
})

needs(test, { root: true })('the owner is kept', async (t) => {
  const queue = ring(t)
  const name = path.join(folder(t), 'file')
  fs.writeFileSync(name, 'old', { mode: 0o6755 })
  // Also where one of the two is that of the process.
  for (const [user, group] of [
    [1234, 2345],
    [0, 2345],
    [1234, 0],
  ] as const) {
    fs.chownSync(name, user, group)
    fs.chmodSync(name, 0o6755)
    await queue.replaceFile(name, 'new')
    const { uid, gid } = fs.statSync(name)
    t.deepEqual([uid, gid, permissions(name)], [user, group, 0o6755])
  }
})

test('links are followed to the file they lead to, or to the one they would make', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  for (const name of ['a', 'b']) fs.mkdirSync(path.join(at, name))
  const file = path.join(at, 'b', 'file')
  const [link, second, third] = ['link', 'second', 'third'].map((name) => path.join(at, 'a', name))
  fs.symlinkSync('../b/file', link as string)
  fs.symlinkSync(link as string, second as string)
  fs.symlinkSync('second', third as string)
  for (const name of [third, second, link]) {
    // The first time there is nothing at the end.
    await queue.replaceFile(name as string, `by ${name}`)
    t.is(fs.readFileSync(file, 'utf8'), `by ${name}`)
  }
  t.true([link, second, third].every((name) => fs.lstatSync(name as string).isSymbolicLink()))
  t.deepEqual(
    [fs.readdirSync(path.join(at, 'a')), fs.readdirSync(path.join(at, 'b'))],
    [['link', 'second', 'third'], ['file']],
  )
  // A folder that is a link, and a path from the current folder.
  fs.symlinkSync('b', path.join(at, 'folder'))
  await queue.replaceFile(path.join(at, 'folder', 'file'), 'through a folder')
  await queue.replaceFile(path.relative('.', path.join(at, 'relative')), 'relative')
  t.is(fs.readFileSync(file, 'utf8'), 'through a folder')
  t.is(fs.readFileSync(path.join(at, 'relative'), 'utf8'), 'relative')
  // As many as the kernel follows, and one more.
  fs.writeFileSync(path.join(at, '0'), 'old')
  for (let links = 1; links <= 41; links++)
    fs.symlinkSync(`${links - 1}`, path.join(at, `${links}`))
  t.is(fs.readFileSync(path.join(at, '40'), 'utf8'), 'old')
  await queue.replaceFile(path.join(at, '40'), 'by 40 links')
  t.is(fs.readFileSync(path.join(at, '0'), 'utf8'), 'by 40 links')
  t.is((await rejection(queue.replaceFile(path.join(at, '41'), 'x'))).code, 'ELOOP')
  const [one, two] = [path.join(at, 'one'), path.join(at, 'two')]
  fs.symlinkSync(one, two)
  fs.symlinkSync(two, one)
  t.is((await rejection(queue.replaceFile(one, 'x'))).code, 'ELOOP')
  assertIdle(t, queue)
})

test('what cannot be replaced rejects in the words of node:fs, and nothing is left behind', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const [missing, below] = [path.join(at, 'missing', 'file'), path.join(at, 'plain', 'file')]
  fs.writeFileSync(path.join(at, 'plain'), 'old')
  fs.mkdirSync(path.join(at, 'folder'))
  const stream = fifo(t)
  const cases: [string, string][] = [
    [missing, `ENOENT: no such file or directory, open '${missing}'`],
    [below, 'ENOTDIR: not a directory, '],
    [path.join(at, 'folder'), `EISDIR: illegal operation on a directory, open '${at}/folder'`],
    [`${at}/folder/`, 'EISDIR: illegal operation on a directory, open'],
    [stream, 'EINVAL: invalid argument, open'],
    ['/dev/null', "EINVAL: invalid argument, open '/dev/null'"],
    // Found out before anything is made.
    [path.join(at, 'x'.repeat(300)), 'ENAMETOOLONG: name too long, stat'],
  ]
  for (const [name, message] of cases) {
    const error = await rejection(queue.replaceFile(name, 'new'))
    t.true(error.message.startsWith(message), error.message)
    t.is(error.path, name)
    t.regex(error.stack as string, /replace-file\.test/)
  }
  t.deepEqual(fs.readdirSync(at).sort(), ['folder', 'plain'])
  t.is(fs.readFileSync(path.join(at, 'plain'), 'utf8'), 'old')
  t.true(fs.statSync(stream).isFIFO() && fs.statSync('/dev/null').isCharacterDevice())
  const bad: [string, () => unknown][] = [
    ['ERR_INVALID_ARG_TYPE', () => queue.replaceFile(1 as never, 'x')],
    ['ERR_INVALID_ARG_TYPE', () => queue.replaceFile(at, 1 as never)],
    ['ERR_INVALID_ARG_TYPE', () => queue.replaceFile(at, undefined as never)],
    ['ERR_INVALID_ARG_TYPE', () => queue.replaceFile(at, 'x', null as never)],
    ['ERR_INVALID_ARG_VALUE', () => queue.replaceFile('a\0b', 'x')],
    ['ERR_INVALID_ARG_VALUE', () => queue.replaceFile(at, 'x', { mode: 'rwx' })],
    ['ERR_OUT_OF_RANGE', () => queue.replaceFile(at, 'x', { timeoutMs: -1 })],
  ]
  for (const [code, call] of bad) t.is(thrown(call).code, code)
  assertIdle(t, queue)
})

test('an array that is transferred meanwhile replaces nothing', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const name = path.join(at, 'file')
  for (const memory of [
    new Uint8Array(100).fill(65),
    new Float64Array(3),
    new DataView(new ArrayBuffer(8)),
  ]) {
    fs.writeFileSync(name, 'old')
    const replacing = rejection(queue.replaceFile(name, memory))
    structuredClone(memory.buffer, { transfer: [memory.buffer] })
    const error = await replacing
    t.is(error.code, 'ERR_URING_BUFFER_DETACHED')
    t.is(fs.readFileSync(name, 'utf8'), 'old')
    t.deepEqual(fs.readdirSync(at), ['file'])
  }
  assertIdle(t, queue)
})

needs(test, { root: true })(
  'a full file system keeps the old content, and the space that was used is free again',
  async (t) => {
    const queue = ring(t)
    const at = tmpfs(t, 2 * MIB)
    const name = path.join(at, 'file')
    fs.writeFileSync(name, pattern(MIB))
    for (const content of [pattern(3 * MIB), queue.alloc(3 * MIB)]) {
      const error = await rejection(queue.replaceFile(name, content))
      t.is(error.message, `ENOSPC: no space left on device, write '${name}'`)
      t.true(fs.readFileSync(name).equals(pattern(MIB)))
      t.deepEqual(fs.readdirSync(at), ['file'])
    }
    await queue.replaceFile(name, pattern(MIB - 9000))
    assertIdle(t, queue)
  },
)

needs(test, { root: true })(
  'who may not write to the folder is refused, and who may not have the owner is the owner',
  async (t) => {
    const at = folder(t)
    for (const name of ['closed', 'open']) fs.mkdirSync(path.join(at, name))
    for (const name of ['closed/file', 'open/file'])
      fs.writeFileSync(path.join(at, name), 'old', { mode: 0o644 })
    fs.chmodSync(at, 0o755)
    fs.chmodSync(path.join(at, 'open'), 0o777)
    const told = await childJson<unknown>(
      `import fs from 'node:fs'
     import { Queue } from 'node-uring'
     process.setgroups([])
     process.setgid(65534)
     process.setuid(65534)
     const at = process.argv[1]
     const queue = new Queue()
     const refused = await queue.replaceFile(at + '/closed/file', 'new').catch((error) => error.message)
     await queue.replaceFile(at + '/open/file', 'new')
     await queue.close()
     const { uid, mode } = fs.statSync(at + '/open/file')
     console.log(JSON.stringify([refused, uid, mode & 0o777, fs.readdirSync(at + '/closed'), fs.readdirSync(at + '/open')]))`,
      { args: [at] },
    )
    t.deepEqual(told, [
      `EACCES: permission denied, open '${at}/closed/file'`,
      65534,
      0o644,
      ['file'],
      ['file'],
    ])
    t.is(fs.readFileSync(path.join(at, 'closed', 'file'), 'utf8'), 'old')
  },
)

// ---- ended before its time ------------------------------------------------------------------------------

/** How many operations one replacement submits. */
async function steps(queue: Queue, name: string): Promise<number> {
  const { submitted } = queue.stats()
  await queue.replaceFile(name, pattern(3 * MIB, 1))
  return queue.stats().submitted - submitted
}

for (const how of ['aborted', 'out of time', 'closed'] as const) {
  test(`a replacement that is ${how} at any of its steps leaves the old or the new, and nothing else`, async (t) => {
    t.timeout(120_000)
    // In memory, where no sync takes longer than what close() waits for the kernel.
    const at = how === 'closed' && fs.existsSync('/dev/shm') ? folder(t, '/dev/shm') : folder(t)
    const name = path.join(at, 'file')
    const counting = ring(t, {}, 120_000)
    const all = await steps(counting, name)
    t.true(all > 6)
    const [old, content] = [pattern(3 * MIB, 1), pattern(3 * MIB, 2)]
    const seen = new Set<string>()
    for (let step = 0; step <= all; step++) {
      fs.writeFileSync(name, old)
      const queue = new Queue()
      const controller = new AbortController()
      const limits =
        how === 'aborted'
          ? { signal: controller.signal }
          : how === 'closed'
            ? {}
            : { timeoutMs: 1 + step }
      let over = false
      const replacing = queue.replaceFile(name, content, limits).then(
        () => 'done',
        (error: Caught) => String(error.code),
      )
      void replacing.then(() => {
        over = true
      })
      while (!over && queue.stats().submitted < step) await setImmediate()
      if (how === 'aborted') controller.abort()
      const closed = how === 'closed' ? queue.close({ timeoutMs: 0 }) : undefined
      const code = await replacing
      await closed
      const now = fs.readFileSync(name)
      const which = now.equals(old) ? 'old' : now.equals(content) ? 'new' : 'torn'
      seen.add(`${code} ${which}`)
      t.deepEqual(fs.readdirSync(at), ['file'], `step ${step}: ${code}`)
      t.not(which, 'torn')
      if (code === 'done') t.is(which, 'new')
      if (how !== 'closed') assertIdle(t, queue)
      await queue.close()
    }
    const codes = { aborted: 'ABORT_ERR', closed: 'ABORT_ERR', 'out of time': 'ERR_URING_TIMEOUT' }
    t.true(seen.has(`${codes[how]} old`), [...seen].join())
    if (how !== 'out of time')
      t.true(seen.has('done new') || seen.has(`${codes[how]} new`), [...seen].join())
  })
}

// Alone: it is told of all replacements of this process.
test.serial(
  'a signal ends the step that begins, and after it there is only cleaning up',
  async (t) => {
    const queue = ring(t)
    const at = folder(t)
    const name = path.join(at, 'file')
    const channels = tracingChannel<unknown, OperationMessage>('node-uring:operation')
    let begun: string[] = []
    let aborted: string[] = []
    let onStart = (): void => {}
    let onEnd = (_: OperationMessage): void => {}
    const subscribers = {
      start({ operation }: OperationMessage) {
        begun.push(operation)
        onStart()
      },
      asyncEnd(message: OperationMessage) {
        if (message.error?.name === 'AbortError') aborted.push(message.operation)
        onEnd(message)
      },
    }
    channels.subscribe(subscribers as never)
    t.teardown(() => channels.unsubscribe(subscribers as never))
    for (const content of ['new', ['in ', 'parts']]) {
      const replace = async (step: number): Promise<string> => {
        fs.writeFileSync(name, 'old')
        begun = []
        aborted = []
        const controller = new AbortController()
        onStart = () => {
          if (begun.length === step) controller.abort()
        }
        const { signal } = controller
        return queue.replaceFile(name, content, { signal }).then(
          () => 'done',
          ({ code }: Caught) => String(code),
        )
      }
      t.is(await replace(0), 'done')
      const steps = begun
      const renames = steps.indexOf('rename') + 1
      for (const [index, what] of steps.entries()) {
        const step = index + 1
        // The folder is closed whatever the signal says, and then all is done.
        t.is(await replace(step), step === steps.length ? 'done' : 'ABORT_ERR', what)
        t.deepEqual(aborted, what === 'close' ? [] : [what], `of ${step}`)
        const after = begun.slice(step).filter((operation) => operation !== 'close')
        const isLeft = what !== 'stat' && step <= renames
        t.deepEqual(after, isLeft ? ['unlink'] : [], `after ${step}, ${what}`)
        t.is(fs.readFileSync(name, 'utf8') === 'old', step <= renames, what)
        t.deepEqual(fs.readdirSync(at), ['file'])
      }
    }
    // A signal that comes between two steps ends what would wait for its source.
    const controller = new AbortController()
    onEnd = ({ operation }) => {
      if (operation === 'open') controller.abort()
    }
    async function* never() {
      yield await new Promise<string>(() => {})
    }
    const { signal } = controller
    t.is((await rejection(queue.replaceFile(name, never(), { signal }))).code, 'ABORT_ERR')
    t.deepEqual(fs.readdirSync(at), ['file'])
    // Nor is a descriptor left.
    const open = fs.readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(at)
      } catch {
        return false
      }
    })
    t.deepEqual(open, [])
    assertIdle(t, queue)
  },
)

injectable(
  'a folder that cannot be synced is no failure, and one whose sync fails is',
  async (t) => {
    const at = folder(t)
    // By node:fs, whose system calls strace can refuse; one thread, for it counts by threads.
    const program = `import { Queue } from 'node-uring'
    const queue = new Queue({ backend: 'node:fs' })
    const told = await queue.replaceFile(process.argv[1], 'new').then(() => 'done', (error) => error.message)
    await queue.close()
    console.log(JSON.stringify(told))`
    const name = path.join(at, 'file')
    const env = { UV_THREADPOOL_SIZE: '1', UV_USE_IO_URING: '0' }
    for (const [errno, outcome] of [
      ['EINVAL', 'done'],
      ['EIO', `EIO: i/o error, fsync '${name}'`],
    ] as const) {
      fs.writeFileSync(name, 'old')
      const inject = `inject=fsync:error=${errno}:when=2`
      const under = ['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=fsync', '-e', inject]
      t.is(await childJson(program, { args: [name], under, env }), outcome)
      t.is(fs.readFileSync(name, 'utf8'), 'new')
      t.deepEqual(fs.readdirSync(at), ['file'])
    }
  },
)

test('a queue that is closed gracefully lets a replacement end first', async (t) => {
  t.timeout(60_000)
  const at = folder(t)
  const name = path.join(at, 'file')
  for (let turns = 0; turns < 15; turns++) {
    fs.writeFileSync(name, 'old')
    const queue = new Queue()
    const replacing = queue.replaceFile(name, `new ${turns}`)
    for (let turn = 0; turn < turns; turn++) await setImmediate()
    await queue.close()
    t.is(fs.readFileSync(name, 'utf8'), `new ${turns}`)
    t.is(await replacing, undefined)
    t.deepEqual(fs.readdirSync(at), ['file'])
  }
})

test('many replacements of one file at once leave one of their contents, whole', async (t) => {
  const queue = ring(t, { bounceBytes: 4 * MIB })
  const at = folder(t)
  const name = path.join(at, 'file')
  const contents = Array.from({ length: 40 }, (_, i) => Buffer.alloc(100_000 + i, i + 1))
  let torn = 0
  let over = false
  const reading = (async () => {
    while (!over) {
      await setImmediate()
      if (!fs.existsSync(name)) continue
      const now = fs.readFileSync(name)
      if (
        now.length < 100_000 ||
        !now.every((byte) => byte === now[0]) ||
        now.length !== 99_999 + (now[0] as number)
      )
        torn++
    }
  })()
  await Promise.all(contents.map((content) => queue.replaceFile(name, content)))
  over = true
  await reading
  t.is(torn, 0)
  t.true(contents.some((content) => content.equals(fs.readFileSync(name))))
  t.deepEqual(fs.readdirSync(at), ['file'])
  assertIdle(t, queue)
})

test('content can come in parts, one after the other', async (t) => {
  const queue = ring(t)
  const at = path.join(folder(t), 'file')
  const parts = ['first', Buffer.from('second'), new Uint8Array(0), '', pattern(2 * MIB)]
  const expected = Buffer.concat(parts.map((part) => Buffer.from(part as string)))
  async function* slowly() {
    for (const part of parts) {
      await setImmediate()
      yield part
    }
  }
  // As `for await` has it.
  const promised = parts.map((part) => Promise.resolve(part)) as never
  const readable = Readable.from(parts.slice(0, 2))
  const contents = [parts, promised, new Set(parts), slowly(), readable, []]
  for (const content of contents) {
    await queue.replaceFile(at, content)
    const isShort = content instanceof Readable
    const whole = isShort ? expected.subarray(0, 11) : expected
    t.is(
      fs
        .readFileSync(at)
        .compare(Array.isArray(content) && content.length === 0 ? Buffer.of() : whole),
      0,
    )
  }
  assertIdle(t, queue)
})

test('parts that fail, are none, or do not come leave what was there', async (t) => {
  const queue = ring(t)
  const home = folder(t)
  const at = path.join(home, 'file')
  fs.writeFileSync(at, 'as it was')
  let ended = 0
  async function* parts(last: () => unknown) {
    try {
      yield 'some'
      yield (await last()) as string
    } finally {
      ended++
    }
  }
  const broken = new Error('no more')
  t.is(
    await rejection(
      queue.replaceFile(
        at,
        parts(() => Promise.reject(broken)),
      ),
    ),
    broken as Caught,
  )
  t.is(
    (
      await rejection(
        queue.replaceFile(
          at,
          parts(() => 5),
        ),
      )
    ).code,
    'ERR_INVALID_ARG_TYPE',
  )
  // What never comes keeps no process alive, and neither does a deadline.
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  let asked = 0
  const never = () => {
    asked++
    return new Promise(() => {})
  }
  // Until it is the source that time is up for, and not a step before it.
  for (let timeoutMs = 50; asked === 0; timeoutMs *= 2) {
    const late = await rejection(queue.replaceFile(at, parts(never), { timeoutMs }))
    t.is(late.code, 'ERR_URING_TIMEOUT')
  }
  const controller = new AbortController()
  const aborted = rejection(queue.replaceFile(at, parts(never), { signal: controller.signal }))
  while (asked === 1) await setImmediate()
  controller.abort()
  t.is((await aborted).code, 'ABORT_ERR')
  assertIdle(t, queue)
  for (const end of ['close', 'dispose'] as const) {
    for (const waitMs of [0, 1, 2, 5, 20, undefined]) {
      const other = ring(t)
      const before = asked
      const closed = rejection(other.replaceFile(at, parts(never)))
      if (waitMs !== undefined) await queue.sleep(waitMs)
      else while (asked === before) await setImmediate()
      if (end === 'close') await other.close({ timeoutMs: 0 })
      else await other[Symbol.asyncDispose]()
      t.is((await closed).code, 'ABORT_ERR', `${end} after ${waitMs} ms`)
    }
  }
  t.true(ended >= 2, 'those that could end have')
  t.is(fs.readFileSync(at, 'utf8'), 'as it was')
  t.deepEqual(fs.readdirSync(home), ['file'])
})

// Serial: the working directory is the process's.
test('a relative path leads into the folder that the process is in, whatever that is called now', async (t) => {
  const at = folder(t)
  const program = `import fs from 'node:fs'
    import { Queue } from 'node-uring'
    process.chdir(process.argv[1])
    fs.mkdirSync('app')
    process.chdir('app')
    const queue = new Queue()
    await queue.replaceFile('conf', 'old')
    const told = [process.cwd()]
    fs.renameSync('../app', '../before')
    fs.mkdirSync('../app')
    fs.writeFileSync('../app/conf', 'of another')
    await queue.replaceFile('conf', 'new')
    fs.rmSync('../app', { recursive: true })
    await queue.replaceFile('other', 'as well')
    await queue.close()
    const open = fs.readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return fs.readlinkSync('/proc/self/fd/' + fd) === told[0].replace(/app$/, 'before')
      } catch {
        return false
      }
    })
    console.log(JSON.stringify(open.length))`
  t.is(await childJson(program, { args: [at] }), 0)
  t.deepEqual(fs.readdirSync(at), ['before'])
  t.is(fs.readFileSync(path.join(at, 'before', 'conf'), 'utf8'), 'new')
  t.is(fs.readFileSync(path.join(at, 'before', 'other'), 'utf8'), 'as well')
})

needs(test, { root: true })(
  'a relative path needs no right to the folders above the one that the process is in',
  async (t) => {
    const at = folder(t)
    const own = path.join(at, 'closed', 'own')
    fs.mkdirSync(own, { recursive: true })
    fs.chmodSync(own, 0o777)
    fs.chmodSync(path.dirname(own), 0o700)
    const program = `import { Queue } from 'node-uring'
      process.chdir(process.argv[1])
      process.setgid(65534)
      process.setuid(65534)
      const queue = new Queue()
      await queue.replaceFile('file', 'mine')
      await queue.close()
      console.log(JSON.stringify(process.getuid()))`
    t.is(await childJson(program, { args: [own] }), 65534)
    t.is(fs.readFileSync(path.join(own, 'file'), 'utf8'), 'mine')
  },
)

test.serial('a relative path leads where it led at the call', async (t) => {
  const queue = ring(t)
  const [one, other] = [folder(t), folder(t)]
  const before = process.cwd()
  t.teardown(() => process.chdir(before))
  for (let round = 0; round < 20; round++) {
    process.chdir(one)
    const replaced = queue.replaceFile('file', `${round}`)
    for (let turn = 0; turn < round; turn++) await setImmediate()
    process.chdir(other)
    await replaced
    t.is(fs.readFileSync(path.join(one, 'file'), 'utf8'), `${round}`)
  }
  t.deepEqual([fs.readdirSync(one), fs.readdirSync(other)], [['file'], []])
  assertIdle(t, queue)
})

test('what a source throws is told as it is, and one that fails before it is asked ends no process', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const file = path.join(at, 'file')
  fs.writeFileSync(file, 'old')
  const reset = Object.assign(new Error('reset'), {
    errno: -104,
    code: 'ECONNRESET',
    syscall: 'read',
  })
  const thrown: unknown[] = [reset, null, undefined, 'a string', 5]
  for (const value of thrown) {
    const parts = (async function* () {
      yield 'some'
      throw value
    })()
    const told = await queue.replaceFile(file, parts).then(
      () => 'replaced',
      (error: unknown) => [error],
    )
    t.deepEqual(told, [value])
    t.is(Array.isArray(told) && told[0], value, 'the same object')
  }
  const missing = path.join(at, 'missing')
  const stream = fs.createReadStream(missing)
  const { code, path: where } = await rejection(queue.replaceFile(file, stream))
  t.deepEqual([code, where], ['ENOENT', missing])
  t.true(stream.destroyed)
  // Where there is nothing to replace, the source is let go, too.
  const whole = Readable.from(['a', 'b'])
  t.is((await rejection(queue.replaceFile(path.join(at, 'no', 'file'), whole))).code, 'ENOENT')
  await setImmediate()
  t.true(whole.destroyed)
  t.is((await rejection(queue.replaceFile('', 'x'))).code, 'ENOENT')
  t.is(fs.readFileSync(file, 'utf8'), 'old')
  t.deepEqual(fs.readdirSync(at), ['file'])
  assertIdle(t, queue)
})

test('a source is told that no more is wanted where it has more, and only there', async (t) => {
  const queue = ring(t)
  const file = path.join(folder(t), 'file')
  const source = (parts: number, fails = false) => {
    const told = { returned: 0 }
    const iterator = {
      [Symbol.iterator]: () => iterator,
      next: () => {
        if (parts-- > 0) return { done: false, value: 'part' }
        if (fails) throw new Error('no more')
        return { done: true, value: undefined }
      },
      return: () => {
        told.returned++
        return { done: true, value: undefined }
      },
    }
    return { told, parts: iterator as unknown as Iterable<string> }
  }
  const [whole, broken, unwanted] = [source(2), source(1, true), source(5)]
  await queue.replaceFile(file, whole.parts)
  t.is((await rejection(queue.replaceFile(file, broken.parts))).message, 'no more')
  const missing = path.join(file, 'not', 'there')
  await rejection(queue.replaceFile(missing, unwanted.parts))
  t.deepEqual(
    [whole, broken, unwanted].map(({ told }) => told.returned),
    [0, 0, 1],
  )
  // One that is not begun: its stream is let go, and its error ends no process.
  const signal = AbortSignal.abort()
  const streams = [fs.createReadStream('/missing/file'), Readable.from(['a'])]
  t.is((await rejection(queue.replaceFile(file, streams[0]!, { signal }))).name, 'AbortError')
  await queue.close()
  t.is((await rejection(queue.replaceFile(file, streams[1]!))).code, 'ERR_URING_CLOSED')
  while (!streams.every((stream) => stream.destroyed)) await setImmediate()
  t.is(fs.readFileSync(file, 'utf8'), 'partpart')
})

test('parts of a source are not kept when they are written', async (t) => {
  const at = path.join(folder(t), 'file')
  const program = `
    import { setFlagsFromString } from 'node:v8'
    import { runInNewContext } from 'node:vm'
    import { Queue } from 'node-uring'
    setFlagsFromString('--expose-gc')
    const gc = runInNewContext('gc')
    const queue = new Queue()
    let most = 0
    async function* parts() {
      for (let i = 0; i < 100; i++) {
        if (i % 10 === 9) {
          gc()
          await new Promise((resolve) => setImmediate(resolve))
          gc()
          most = Math.max(most, process.memoryUsage().arrayBuffers)
        }
        yield Buffer.alloc(1 << 20, i)
      }
    }
    await queue.replaceFile(process.argv[1], parts())
    await queue.close()
    console.log(JSON.stringify(most >> 20))`
  const most = await childJson<number>(program, { args: [at], timeoutMs: 50_000 })
  t.true(most < 40, `${most} MiB of 100`)
  t.is(fs.statSync(at).size, 100 * MIB)
})

needs(test, { root: true, commands: ['mount', 'umount'] })(
  'how much of a source was written says the error of the part that found no room',
  async (t) => {
    const queue = ring(t)
    const at = tmpfs(t, MIB)
    const parts = Array.from({ length: 40 }, () => Buffer.alloc(50_000))
    const one = await rejection(queue.replaceFile(path.join(at, 'file'), Buffer.concat(parts)))
    const error = await rejection(queue.replaceFile(path.join(at, 'file'), parts))
    t.deepEqual([error.code, error.bytesWritten], ['ENOSPC', one.bytesWritten])
    t.true((error.bytesWritten as number) > 500_000)
    t.deepEqual(fs.readdirSync(at), [])
    assertIdle(t, queue)
  },
)
