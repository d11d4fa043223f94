// Operations on paths: what they leave is what node:fs sees, and their errors are node:fs's; also
// where the kernel lacks them, which the option `without` plays.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import {
  type BatchOperation,
  type File,
  type OpenOptions,
  op,
  type QueueOptions,
  type Resolve,
} from 'node-uring'
import { assertIdle, type Caught, rejection, ring, thrown, told } from './helpers/ring.js'
import { folder } from './helpers/scratch.js'
import test from './helpers/test.js'

/** Every operation on paths that node:fs has, too. */
const PATHS = ['statx', 'renameat', 'linkat', 'symlinkat', 'unlinkat', 'mkdirat'] as const
const KERNELS: readonly [string, QueueOptions][] = [
  ['by the ring', {}],
  ['on a kernel without them, by node:fs', { without: PATHS }],
  ['where there is no ring', { backend: 'node:fs' }],
]

for (const [how, options] of KERNELS) {
  test(`rename, link, symlink, unlink, mkdir and rmdir do what those of node:fs do, ${how}`, async (t) => {
    const queue = ring(t, options)
    const at = (name: string): string => path.join(place, name)
    const place = folder(t)
    fs.writeFileSync(at('file'), 'content')

    await queue.link(at('file'), at('second'))
    t.is(fs.statSync(at('second')).nlink, 2)
    await queue.rename(at('second'), Buffer.from(at('renamed')))
    t.deepEqual(fs.readdirSync(place).sort(), ['file', 'renamed'])
    await queue.symlink('file', pathToFileURL(at('soft')))
    t.is(fs.readlinkSync(at('soft')), 'file')
    await queue.mkdir(at('folder'), { mode: '700' })
    t.is(fs.statSync(at('folder')).mode & 0o777, 0o700)
    await queue.mkdir(at('other'))
    t.is(fs.statSync(at('other')).mode & 0o777, 0o777 & ~process.umask())
    await queue.rmdir(at('folder'))
    await queue.rmdir(at('other'))
    await queue.unlink(at('soft'))
    await queue.unlink(at('renamed'))
    t.deepEqual(fs.readdirSync(place), ['file'])
    assertIdle(t, queue)
  })

  test(`stat tells of a path what fs.stat tells, and of a link itself what fs.lstat tells, ${how}`, async (t) => {
    const queue = ring(t, options)
    const place = folder(t)
    const [file, link] = [path.join(place, 'file'), path.join(place, 'link')]
    fs.writeFileSync(file, 'content')
    fs.symlinkSync('file', link)
    for (const [given, expected] of [
      [await queue.stat(file), fs.statSync(file)],
      [await queue.stat(link), fs.statSync(file)],
      [await queue.stat(link, { followLinks: false }), fs.lstatSync(link)],
      [await queue.stat(place), fs.statSync(place)],
    ] as const) {
      t.true(given instanceof fs.Stats)
      for (const name of ['dev', 'ino', 'mode', 'nlink', 'uid', 'gid', 'size', 'mtimeMs'] as const)
        t.is(given[name], expected[name], name)
      t.is(given.isSymbolicLink(), expected.isSymbolicLink())
    }
  })

  test(`a path operation that fails rejects with the error of node:fs, ${how}`, async (t) => {
    const queue = ring(t, options)
    const place = folder(t)
    const at = (name: string): string => path.join(place, name)
    fs.writeFileSync(at('file'), '')
    fs.mkdirSync(at('full'))
    fs.writeFileSync(at('full/x'), '')
    const long = at('x'.repeat(5000))
    const cases: [Promise<unknown>, () => unknown][] = [
      [queue.stat(at('missing')), () => fs.statSync(at('missing'))],
      [queue.stat(at('file/x'), { followLinks: false }), () => fs.lstatSync(at('file/x'))],
      [queue.stat(''), () => fs.statSync('')],
      [queue.stat(long), () => fs.statSync(long)],
      [queue.rename(at('missing'), at('to')), () => fs.renameSync(at('missing'), at('to'))],
      [queue.rename(at('file'), ''), () => fs.renameSync(at('file'), '')],
      [queue.rename(at('file'), long), () => fs.renameSync(at('file'), long)],
      [queue.link(at('file'), at('full')), () => fs.linkSync(at('file'), at('full'))],
      [queue.symlink('x', at('file')), () => fs.symlinkSync('x', at('file'))],
      [queue.unlink(at('missing')), () => fs.unlinkSync(at('missing'))],
      [queue.unlink(at('full')), () => fs.unlinkSync(at('full'))],
      [queue.rmdir(at('full')), () => fs.rmdirSync(at('full'))],
      [queue.mkdir(at('file')), () => fs.mkdirSync(at('file'))],
    ]
    for (const [promise, same] of cases) {
      const [ours, theirs] = [await rejection(promise), thrown(same)]
      t.deepEqual(told(ours), told(theirs))
      t.is(Reflect.get(ours, 'dest'), Reflect.get(theirs, 'dest'))
    }
    assertIdle(t, queue)
  })
}

test('arguments of path operations are checked before anything is begun', async (t) => {
  const queue = ring(t)
  const { submitted } = queue.stats()
  const wrong = 7 as unknown as string
  const type = { code: 'ERR_INVALID_ARG_TYPE' }
  t.throws(() => queue.stat(wrong), type)
  t.throws(() => queue.stat('x', { followLinks: 1 as unknown as boolean }), type)
  t.throws(() => queue.rename('x', wrong), type)
  t.throws(() => queue.link(wrong, 'x'), type)
  t.throws(() => queue.unlink('x\0y'), { code: 'ERR_INVALID_ARG_VALUE' })
  t.throws(() => queue.mkdir('x', { mode: '8' }), { code: 'ERR_INVALID_ARG_VALUE' })
  t.throws(() => queue.open('x', 'r', { directory: {} as File }), type)
  t.throws(() => queue.open('x', 'r', { resolve: ['up' as 'beneath'] }), {
    code: 'ERR_INVALID_ARG_VALUE',
  })
  t.throws(() => ring(t, { without: ['read' as 'readv'] }), { code: 'ERR_INVALID_ARG_VALUE' })
  t.is(queue.stats().submitted, submitted)
})

test('open begins at a directory that is open, wherever that has gone', async (t) => {
  const queue = ring(t)
  const place = folder(t)
  fs.mkdirSync(path.join(place, 'inside'))
  fs.writeFileSync(path.join(place, 'inside/file'), 'content')
  const directory = await queue.open(path.join(place, 'inside'), 'r')
  fs.renameSync(path.join(place, 'inside'), path.join(place, 'moved'))
  const file = await queue.open('file', 'r', { directory })
  t.is((await file.bytesAt(0, 100)).toString(), 'content')
  t.is(file.path, 'file')
  await directory.close()
  const error = await rejection(queue.open('file', 'r', { directory }))
  t.is(error.code, 'EBADF')
  const other = ring(t)
  t.throws(() => other.open('file', 'r', { directory }), { code: 'ERR_INVALID_ARG_VALUE' })
})

test('resolve keeps a path beneath its directory, and off links', async (t) => {
  const queue = ring(t)
  const place = folder(t)
  fs.mkdirSync(path.join(place, 'inside'))
  fs.writeFileSync(path.join(place, 'outside'), 'secret')
  fs.symlinkSync('../outside', path.join(place, 'inside/link'))
  const directory = await queue.open(path.join(place, 'inside'), 'r')
  const open = (name: string, resolve?: 'beneath' | 'no_symlinks' | 'in_root') =>
    queue.open(name, 'r', { directory, ...(resolve ? { resolve: [resolve] } : {}) })
  t.is((await (await open('link')).bytesAt(0, 10)).toString(), 'secret')
  t.is((await rejection(open('link', 'beneath'))).code, 'EXDEV')
  t.is((await rejection(open('../outside', 'beneath'))).code, 'EXDEV')
  t.is((await rejection(open('link', 'no_symlinks'))).code, 'ELOOP')
  t.is((await rejection(open('/link', 'in_root'))).code, 'ENOENT')
  const made = await queue.open('new', 'wx', { directory, resolve: ['beneath'], mode: 0o600 })
  await made.writeAt(Buffer.from('x'), 0)
  t.is(fs.statSync(path.join(place, 'inside/new')).mode & 0o777, 0o600)
  const without = ring(t, { without: ['openat2'] })
  const error = thrown(() => without.open('x', 'r', { resolve: ['beneath'] }))
  t.is(error.code, 'ERR_URING_UNSUPPORTED')
})

test('resolve keeps a path on its mount, off magic links, in its root and in memory', async (t) => {
  const queue = ring(t)
  const place = folder(t)
  const file = path.join(place, 'file')
  fs.writeFileSync(file, 'content')
  fs.symlinkSync('/file', path.join(place, 'link'))
  const [root, directory] = [await queue.open('/'), await queue.open(place)]
  const { fd } = await queue.open(file)
  const outcome = (name: string, flags: string, options: OpenOptions) =>
    queue.open(name, flags, options).then(
      async (opened) => (await opened.bytesAt(0, 7)).length,
      (error: Caught) => error.code,
    )
  const cases: [string, OpenOptions, Resolve[], unknown, unknown][] = [
    ['proc/version', { directory: root }, ['no_xdev'], 7, 'EXDEV'],
    [`/proc/self/fd/${fd}`, {}, ['no_magiclinks'], 7, 'ELOOP'],
    ['link', { directory }, ['in_root'], 'ENOENT', 7],
    // Each of several counts.
    ['link', { directory }, ['in_root', 'no_symlinks'], 'ENOENT', 'ELOOP'],
    ['link', { directory }, ['no_symlinks', 'in_root'], 'ENOENT', 'ELOOP'],
  ]
  for (const [name, options, resolve, without, kept] of cases) {
    t.is(await outcome(name, 'r', options), without, name)
    t.is(await outcome(name, 'r', { ...options, resolve }), kept, `${name}, ${resolve}`)
  }
  t.is(await outcome(file, 'r', { resolve: ['cached'] }), 7)
  // What makes a file may wait for the disk.
  t.is(await outcome(file, 'w', { resolve: ['cached'] }), 'EAGAIN')
  t.is(fs.readFileSync(file, 'utf8'), 'content')
  assertIdle(t, queue)
})

// Alone: the umask is the process's.
test.serial('a directory that is made has all permissions that the umask leaves', async (t) => {
  const umask = process.umask(0)
  t.teardown(() => process.umask(umask))
  for (const [how, options] of KERNELS) {
    const queue = ring(t, options)
    const at = path.join(folder(t), 'made')
    await queue.mkdir(at)
    t.is(fs.statSync(at).mode & 0o777, 0o777, how)
  }
})

test('either of two paths that is empty is no file', async (t) => {
  const queue = ring(t)
  const at = path.join(folder(t), 'x')
  for (const [from, to] of [
    ['', at],
    [at, ''],
    ['', ''],
  ] as const) {
    for (const method of ['rename', 'link'] as const) {
      const error = await rejection(queue[method](from, to))
      t.deepEqual(told(error), told(thrown(() => fs[`${method}Sync`](from, to))))
    }
  }
  assertIdle(t, queue)
})

test('where node:fs opens files, where a path begins and what it may not do are refused', async (t) => {
  const queue = ring(t, { backend: 'node:fs' })
  const place = folder(t)
  fs.writeFileSync(path.join(place, 'file'), '')
  const directory = await queue.open(place)
  const code = 'ERR_URING_UNSUPPORTED'
  t.is(thrown(() => queue.open('file', 'r', { directory })).code, code)
  t.is(thrown(() => queue.open(path.join(place, 'file'), 'r', { resolve: ['cached'] })).code, code)
  assertIdle(t, queue)
})

test('an operation that the kernel lacks says so, and which kernel has it', async (t) => {
  const without = ['fallocate', 'mkdirat', 'poll_add', 'send', 'recv'] as const
  const queue = ring(t, { without })
  const { operations } = queue.capabilities
  for (const name of without) t.false(operations[name])
  t.true(operations.read)
  const file = await queue.open(path.join(folder(t), 'file'), 'w')
  const lacking = [
    [() => file.allocate(0, 1), 'Linux 5.6'],
    [() => file.poll(1), 'Linux 5.1'],
    [() => file.send(Buffer.alloc(1)), 'Linux 5.6'],
    [() => file.recv(Buffer.alloc(1)), 'Linux 5.6'],
    // What node:fs would do one by one a batch cannot do in its place.
    [() => queue.submit([op.mkdir('x')]), 'Linux 5.15'],
    [() => queue.submit([op.nop(), op.allocate(file, 0, 1)]), 'Linux 5.6'],
  ] as const
  for (const [call, needs] of lacking) {
    const error = thrown(call)
    t.is(error.code, 'ERR_URING_UNSUPPORTED')
    t.true(error.message.includes(needs), error.message)
  }
  assertIdle(t, queue)
})

test('each operation that a kernel may lack says which kernel brought it', async (t) => {
  const buffer = Buffer.alloc(1)
  const since: readonly [name: string, kernel: string, make: (file: File) => BatchOperation][] = [
    ['fallocate', '5.6', (file) => op.allocate(file, 0, 1)],
    ['fadvise', '5.6', (file) => op.advise(file, 'normal')],
    ['sync_file_range', '5.2', (file) => op.syncRange(file)],
    ['splice', '5.7', (file) => op.splice(file, file, 1)],
    ['poll_add', '5.1', (file) => op.poll(file, 1)],
    ['send', '5.6', (file) => op.send(file, buffer)],
    ['recv', '5.6', (file) => op.recv(file, buffer)],
    ['msg_ring', '5.18', () => op.post(0, 0)],
    ['ftruncate', '6.9', (file) => op.truncate(file)],
    ['renameat', '5.11', () => op.rename('x', 'y')],
    ['unlinkat', '5.11', () => op.unlink('x')],
    ['unlinkat', '5.11', () => op.rmdir('x')],
    ['linkat', '5.15', () => op.link('x', 'y')],
    ['symlinkat', '5.15', () => op.symlink('x', 'y')],
    ['mkdirat', '5.15', () => op.mkdir('x')],
    ['statx', '5.6', () => op.stat('x') as unknown as BatchOperation],
  ]
  const queue = ring(t, { without: since.map(([name]) => name) as never })
  const file = await queue.open(path.join(folder(t), 'file'), 'w')
  for (const [name, kernel, make] of since) {
    const { code, message } = thrown(() => queue.submit([make(file)]))
    t.is(code, 'ERR_URING_UNSUPPORTED')
    const [words, needs] = [`The operation ${name} `, `io_uring of Linux ${kernel}`]
    t.true(message.includes(words) && message.includes(needs), message)
  }
  assertIdle(t, queue)
})

test('a path may have 4095 bytes and no more, alone, in a batch and in a chain', async (t) => {
  const queue = ring(t)
  const at = folder(t)
  const long = (bytes: number): string => `${at}${'/'.repeat(bytes - at.length)}`
  const { ino } = fs.statSync(at)
  for (const link of [undefined, 'soft'] as const) {
    const stat = async (path: string): Promise<unknown> => {
      const [, stats] = await queue.submit([op.nop(), op.stat(path)], { link })
      return stats instanceof Error ? (stats as Caught).code : (stats as fs.Stats).ino
    }
    t.is(await stat(long(4095)), ino, link)
    t.is(await stat(long(4096)), 'ENAMETOOLONG', link)
  }
  t.is((await queue.stat(long(4095))).ino, ino)
  t.is((await rejection(queue.stat(long(4096)))).code, 'ENAMETOOLONG')
  assertIdle(t, queue)
})

test('operations on paths in a batch and in a chain resolve with what each makes', async (t) => {
  const queue = ring(t)
  const place = folder(t)
  const at = (name: string): string => path.join(place, name)
  const chain = await queue.submit(
    [
      op.mkdir(at('a')),
      op.mkdir(at('a/b')),
      op.symlink('b', at('a/l')),
      op.rename(at('a'), at('c')),
    ],
    { link: 'soft' },
  )
  t.deepEqual(chain, [0, 0, 0, 0])
  t.is(fs.readlinkSync(at('c/l')), 'b')
  // The kernel itself would go on behind these.
  for (const failing of [
    op.mkdir(at('c')),
    op.stat(at('missing')),
    op.symlink('x', at('c')),
    op.link(at('missing'), at('x')),
    op.unlink(at('missing')),
  ]) {
    const [failed, ended] = await queue.submit([failing, op.mkdir(at('never'))], { link: 'soft' })
    t.true(failed instanceof Error)
    t.is((ended as { code?: string }).code, 'ECANCELED')
  }
  const [stat, made] = await queue.submit([op.stat(at('c')), op.mkdir(at('d'))], { link: 'soft' })
  t.deepEqual([(stat as fs.Stats).isDirectory(), made], [true, 0])
  t.deepEqual(fs.readdirSync(place).sort(), ['c', 'd'])
  const [file, missing, stats] = await queue.submit([
    op.open(at('c/file'), 'w+'),
    op.open(at('missing')),
    op.stat(at('c/l'), { followLinks: false }),
  ])
  t.is((missing as { code?: string }).code, 'ENOENT')
  t.is((missing as { path?: string }).path, at('missing'))
  t.true((stats as fs.Stats).isSymbolicLink())
  t.is(await (file as File).writeAt(Buffer.from('works'), 0), 5)
  t.deepEqual(await queue.submit([op.close(file as File), op.unlink(at('c/file'))]), [0, 0])
  t.is((await rejection((file as File).stat())).code, 'EBADF')
  const chained = thrown(() => queue.submit([op.close(file as File)], { link: 'soft' }))
  t.is(chained.code, 'ERR_INVALID_ARG_VALUE')
  t.is(queue.stats().files, 0)
  assertIdle(t, queue)
})

test('a path operation that has no time names its own system call, and does nothing', async (t) => {
  for (const [, options] of KERNELS) {
    const queue = ring(t, options)
    const place = folder(t)
    const at = path.join(place, 'x')
    const limits = { timeoutMs: 0 }
    const calls = {
      open: () => queue.open(at, 'w', limits),
      stat: () => queue.stat(at, limits),
      lstat: () => queue.stat(at, { followLinks: false, ...limits }),
      rename: () => queue.rename(place, at, limits),
      link: () => queue.link(place, at, limits),
      symlink: () => queue.symlink(place, at, limits),
      unlink: () => queue.unlink(at, limits),
      rmdir: () => queue.rmdir(place, limits),
      mkdir: () => queue.mkdir(at, limits),
    }
    for (const [syscall, call] of Object.entries(calls)) {
      const error = await rejection(call())
      t.is(error.code, 'ERR_URING_TIMEOUT')
      t.is(error.message, `The ${syscall} was not done within 0 ms`)
    }
    t.deepEqual(fs.readdirSync(place), [])
    assertIdle(t, queue)
  }
})

test('a path operation that is aborted before its call does nothing', async (t) => {
  for (const [, options] of KERNELS) {
    const queue = ring(t, options)
    const place = folder(t)
    const limits = { signal: AbortSignal.abort() }
    t.is((await rejection(queue.mkdir(path.join(place, 'x'), limits))).name, 'AbortError')
    t.deepEqual(fs.readdirSync(place), [])
    await queue.close()
    t.is((await rejection(queue.mkdir(path.join(place, 'x')))).code, 'ERR_URING_CLOSED')
  }
})
