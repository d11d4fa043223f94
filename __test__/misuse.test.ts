// Arguments that cannot be: each throws with the code of Node, before anything is staged.

import { constants } from 'node:buffer'
import fs from 'node:fs'
import { type File, op, Queue } from 'node-uring'
import { Resizable } from './helpers/guards.js'
import { pattern } from './helpers/random.js'
import { assertIdle, ring, thrown } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

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
    ...[-1, 1.5, NaN, Infinity, 2 ** 53, constants.MAX_LENGTH + 1].map(
      (bad): Misuse => [RANGE, (queue) => queue.alloc(bad)],
    ),
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

/** A call of a constructor of `op` that is wrong, and the argument that its error names. */
type WrongOp = readonly [code: string, named: string, make: (file: File) => unknown]
const BYTES = Buffer.alloc(5)
const OPS: readonly WrongOp[] = [
  ...[-1, 1.5, NaN, -0, 2n ** 63n].flatMap((bad): WrongOp[] => [
    [RANGE, 'position', (file) => op.read(file, BYTES, bad)],
    [RANGE, 'position', (file) => op.write(file, BYTES, bad)],
    [RANGE, 'position', (file) => op.readv(file, [BYTES], bad)],
    [RANGE, 'position', (file) => op.writev(file, [BYTES], bad)],
    [RANGE, 'length', (file) => op.truncate(file, bad)],
    [RANGE, 'offset', (file) => op.allocate(file, bad, 1)],
    [RANGE, 'offset', (file) => op.advise(file, 'normal', bad)],
    [RANGE, 'offset', (file) => op.syncRange(file, bad)],
    [RANGE, 'options.from', (file) => op.splice(file, file, 1, { from: bad })],
    [RANGE, 'options.to', (file) => op.splice(file, file, 1, { to: bad })],
  ]),
  ...[-1, 1.5, NaN, 2 ** 53].flatMap((bad): WrongOp[] => [
    [RANGE, 'length', (file) => op.allocate(file, 0, bad)],
    [RANGE, 'length', (file) => op.advise(file, 'normal', 0, bad)],
    [RANGE, 'length', (file) => op.syncRange(file, 0, bad)],
    [RANGE, 'length', (file) => op.splice(file, file, bad)],
    [RANGE, 'events', (file) => op.poll(file, bad)],
    [RANGE, 'ms', () => op.timeout(bad)],
    [RANGE, 'ms', () => op.linkTimeout(bad)],
    [RANGE, 'ms', () => op.linkTimeout(bad < 2 ? -1 : bad, { absolute: true })],
    [RANGE, 'options.count', () => op.timeout(1, { count: bad })],
  ]),
  // One past the most of each.
  [RANGE, 'length', (file) => op.allocate(file, 0, 0)],
  [RANGE, 'length', (file) => op.advise(file, 'normal', 0, 2 ** 32)],
  [RANGE, 'length', (file) => op.syncRange(file, 0, 2 ** 32)],
  [RANGE, 'length', (file) => op.splice(file, file, 2 ** 31)],
  [RANGE, 'events', (file) => op.poll(file, 2 ** 16)],
  [RANGE, 'ms', () => op.timeout(2 ** 31)],
  [RANGE, 'ms', () => op.linkTimeout(2 ** 31)],
  [RANGE, 'options.count', () => op.timeout(1, { count: 2 ** 32 })],
  ...NOT_VIEWS.flatMap((bad): WrongOp[] => [
    [TYPE, 'buffer', (file) => op.read(file, bad as never, 0)],
    [TYPE, 'buffer', (file) => op.write(file, bad as never, 0)],
    [TYPE, 'buffer', (file) => op.send(file, bad as never)],
    [TYPE, 'buffer', (file) => op.recv(file, bad as never)],
    [TYPE, 'buffers[1]', (file) => op.readv(file, [BYTES, bad as never], 0)],
    [TYPE, 'buffers[1]', (file) => op.writev(file, [BYTES, bad as never], 0)],
  ]),
  ...OPTION_BAGS.flatMap((bad): WrongOp[] => [
    [TYPE, 'options', (file) => op.read(file, BYTES, 0, bad as never)],
    [TYPE, 'options', (file) => op.write(file, BYTES, 0, bad as never)],
    [TYPE, 'options', (file) => op.recv(file, BYTES, bad as never)],
    [TYPE, 'options', (file) => op.allocate(file, 0, 1, bad as never)],
    [TYPE, 'options', (file) => op.syncRange(file, 0, 1, bad as never)],
    [TYPE, 'options', (file) => op.splice(file, file, 1, bad as never)],
    [TYPE, 'options', () => op.timeout(1, bad as never)],
    [TYPE, 'options', () => op.linkTimeout(1, bad as never)],
    [TYPE, 'options', () => op.open('x', 'r', bad as never)],
    [TYPE, 'options', () => op.stat('x', bad as never)],
    [TYPE, 'options', () => op.mkdir('x', bad as never)],
  ]),
  ...['yes', 1, null].flatMap((bad): WrongOp[] => [
    [TYPE, 'options.absolute', () => op.timeout(1, { absolute: bad } as never)],
    [TYPE, 'options.absolute', () => op.linkTimeout(1, { absolute: bad } as never)],
    [TYPE, 'options.direct', () => op.open('x', 'r', { direct: bad } as never)],
    [TYPE, 'options.followLinks', () => op.stat('x', { followLinks: bad } as never)],
  ]),
  ...['yes', 1].flatMap((bad): WrongOp[] => [
    [TYPE, 'options.nowait', (file) => op.read(file, BYTES, 0, { nowait: bad } as never)],
    [TYPE, 'options.dsync', (file) => op.write(file, BYTES, 0, { dsync: bad } as never)],
    [TYPE, 'options.peek', (file) => op.recv(file, BYTES, { peek: bad } as never)],
    [TYPE, 'options.waitAll', (file) => op.recv(file, BYTES, { waitAll: bad } as never)],
    [TYPE, 'options.keepSize', (file) => op.allocate(file, 0, 1, { keepSize: bad } as never)],
    [TYPE, 'options.write', (file) => op.syncRange(file, 0, 1, { write: bad } as never)],
  ]),
  ...['beneath', {}, 5].map(
    (bad): WrongOp => [TYPE, 'options.resolve', () => op.open('x', 'r', { resolve: bad } as never)],
  ),
  [TYPE, 'from', () => op.rename(5 as never, 'x')],
  [TYPE, 'to', () => op.rename('x', 5 as never)],
  [TYPE, 'existing', () => op.link(5 as never, 'x')],
  [TYPE, 'path', () => op.link('x', 5 as never)],
  [TYPE, 'target', () => op.symlink(5 as never, 'x')],
  [TYPE, 'path', () => op.symlink('x', 5 as never)],
]

test('constructors of operations: what is wrong throws at once, and is named', async (t) => {
  const file = await ring(t).open(scratch(t, pattern(100)), 'r+')
  for (const [code, named, make] of OPS) {
    const error = thrown(() => make(file), String(make))
    t.is(error.code, code, `${make}: ${error.message}`)
    t.true(error.message.includes(`"${named}"`), `${make}: ${error.message}`)
  }
})

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

/** Views of which nothing is left, and how that came. */
const GONE: Readonly<Record<string, () => Uint8Array>> = {
  'has gone elsewhere': () => {
    const view = new Uint8Array(100)
    structuredClone(view.buffer, { transfer: [view.buffer] })
    return view
  },
  'was shrunk to before where it began': () => {
    const memory = new Resizable(100, { maxByteLength: 100 })
    const view = new Uint8Array(memory, 50, 50)
    memory.resize(10)
    return view
  },
  'has gone from under a DataView': () => {
    const view = new DataView(new ArrayBuffer(100))
    structuredClone(view.buffer, { transfer: [view.buffer] })
    return view as never
  },
}

for (const [what, gone] of Object.entries(GONE)) {
  test(`memory that ${what} passes for no empty buffer`, async (t) => {
    const queue = ring(t)
    const at = scratch(t, Buffer.from('as it was'))
    const file = await queue.open(at, 'r+')
    const log = await queue.open(at, 'a')
    const calls: Record<string, () => unknown> = {
      readAt: () => file.readAt(gone(), 0),
      writeAt: () => file.writeAt(gone(), 0),
      'writeAt, datasync': () => file.writeAt(gone(), 0, { datasync: true }),
      append: () => log.append(gone()),
      'append, datasync': () => log.append(gone(), { datasync: true }),
      readvAt: () => file.readvAt([Buffer.alloc(1), gone()], 0),
      writevAt: () => file.writevAt([gone()], 0),
      readMany: () => file.readMany(new Float64Array(0), 0, gone()),
      writeMany: () => file.writeMany(new Float64Array(0), 0, gone()),
      'op.read': () => op.read(file, gone(), 0),
      'op.write': () => op.write(file, gone(), 0),
      'op.readv': () => op.readv(file, [gone()], 0),
      'op.writev': () => op.writev(file, [gone()], 0),
      replaceFile: () => queue.replaceFile(at, gone()),
    }
    for (const [name, call] of Object.entries(calls)) {
      t.is(thrown(call).code, 'ERR_URING_BUFFER_DETACHED', name)
    }
    t.is(fs.readFileSync(at, 'utf8'), 'as it was')
    assertIdle(t, queue)
  })
}

test('the memory of many reads or writes is named by what it is', async (t) => {
  const file = await ring(t).open(scratch(t, Buffer.of()), 'r+')
  for (const bad of NOT_VIEWS) {
    const reads = thrown(() => file.readMany(Float64Array.of(0), 1, bad as never))
    const writes = thrown(() => file.writeMany(Float64Array.of(0), 1, bad as never))
    t.deepEqual([reads.code, writes.code], [TYPE, TYPE])
    t.regex(reads.message, /"target"/)
    t.regex(writes.message, /"source"/)
  }
})

test('whoever asks for an fdatasync where there is none is told', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.of()), 'r+')
  const some = Buffer.alloc(8)
  const datasync = true as never
  for (const call of [
    () => file.writevAt([some], 0, { datasync }),
    () => file.writeMany(Float64Array.of(0), 8, some, { datasync } as never),
    () => op.write(file, some, 0, { datasync }),
  ]) {
    const { code, message } = thrown(call)
    t.is(code, 'ERR_INVALID_ARG_VALUE')
    t.regex(message, /use dsync, or datasync\(\)/)
  }
  t.is(await file.writevAt([some], 0, { datasync: undefined as never }), 8)
  assertIdle(t, queue)
})

test('numbers past what the kernel counts to, and constructors that nobody calls, are refused', async (t) => {
  const queue = ring(t)
  t.is(thrown(() => queue.nops(2 ** 32)).code, RANGE)
  t.is(thrown(() => op.timeout(1e13, { absolute: true })).code, RANGE)
  const Constructor = (await queue.open(scratch(t, Buffer.of()))).constructor as new () => unknown
  t.is(thrown(() => new Constructor()).code, 'ERR_ILLEGAL_CONSTRUCTOR')
  assertIdle(t, queue)
})

test('an error names the argument that is none of what it can be', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.of()), 'r+')
  const none = 5 as never
  const content = /must be of type string or an instance of Buffer, TypedArray, or DataView/
  for (const [call, words] of [
    [() => file.copyTo(none), /^The "to" argument must be an instance of File/],
    [() => op.splice(none, file, 1), /^The "from" argument must be an instance of File/],
    [() => op.splice(file, none, 1), /^The "to" argument must be an instance of File/],
    [() => op.send(none, Buffer.of()), /^The "socket" argument must be an instance of File/],
    [() => op.recv(none, Buffer.of()), /^The "socket" argument must be an instance of File/],
    [() => op.open('x', 'r', { directory: none }), /^The "options.directory" property must be /],
    [() => queue.replaceFile('x', none), content],
    [() => queue.replaceFile('x', {} as never), /, or an iterable of these\. Received /],
  ] as const) {
    const { code, message } = thrown(call)
    t.is(code, TYPE)
    t.regex(message, words)
  }
  await t.throwsAsync(queue.replaceFile(scratch(t, Buffer.of()), [none]), { message: content })
  assertIdle(t, queue)
})

test('fallocate(2) does one thing at a time, and who asks for two is told', async (t) => {
  const queue = ring(t)
  const file = await queue.open(scratch(t, Buffer.of()), 'r+')
  for (const [options, named] of [
    [{ punchHole: true, zeroRange: true }, 'zeroRange'],
    [{ zeroRange: true, insertRange: true }, 'insertRange'],
    [{ keepSize: true, collapseRange: true }, 'keepSize'],
  ] as const) {
    const { code, message } = thrown(() => file.allocate(0, 4096, options))
    t.is(code, VALUE)
    t.true(message.startsWith(`The property 'options.${named}' cannot be given with options.`))
  }
  t.notThrows(() => op.allocate(file, 0, 1, { keepSize: true, punchHole: true }))
  t.notThrows(() =>
    op.allocate(file, 0, 1, { keepSize: true, zeroRange: true, insertRange: false }),
  )
  assertIdle(t, queue)
})
