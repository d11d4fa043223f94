import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import test from 'ava'
import fc from 'fast-check'
import {
  isAppend,
  isDirect,
  isDsync,
  mayRead,
  mayWrite,
  parseFlags,
  parseMode,
  parsePath,
} from '../src/flags.ts'

const { O_APPEND, O_DIRECT, O_DIRECTORY, O_RDONLY, O_RDWR, O_WRONLY } = fs.constants
const O_CLOEXEC = 0o2000000

const STRINGS = ['r', 'rs', 'sr', 'r+', 'rs+', 'sr+', 'w', 'wx', 'xw', 'w+', 'wx+', 'xw+']
STRINGS.push('a', 'ax', 'xa', 'as', 'sa', 'a+', 'ax+', 'xa+', 'as+', 'sa+')

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'node-uring-flags-'))
test.after.always(() => fs.rmSync(directory, { recursive: true }))

interface Failure extends Error {
  code: string
  path?: string
}

/** What `call` throws, or undefined. */
function failure(call: () => unknown): Failure | undefined {
  try {
    call()
    return undefined
  } catch (error) {
    return error as Failure
  }
}

/** The code and the words of an error of node:fs and of ours. */
function words(error: Failure | undefined): object {
  return { code: error?.code, message: error?.message, kind: error?.constructor }
}

/** What an open does to a file of 4 bytes or to none: its error, the flags it left, the size. */
function effect(flags: string | number, exists: boolean): object {
  const file = path.join(directory, 'file')
  fs.rmSync(file, { force: true })
  if (exists) fs.writeFileSync(file, 'data')
  let kernelFlags: string | undefined
  const error = failure(() => {
    const fd = fs.openSync(file, flags)
    kernelFlags = /flags:\s*(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
    fs.closeSync(fd)
  })
  const sizeBytes = fs.existsSync(file) ? fs.statSync(file).size : undefined
  return { code: error?.code, kernelFlags, sizeBytes }
}

test('every flag string does what it does in node:fs, to a file that is there or not', (t) => {
  for (const flags of STRINGS) {
    for (const exists of [true, false]) {
      t.deepEqual(effect(parseFlags(flags), exists), effect(flags, exists), `${flags} ${exists}`)
    }
  }
})

test('whatever string is given, it is refused exactly when node:fs refuses it', (t) => {
  const strings = fc.oneof(
    fc.constantFrom(...STRINGS),
    fc.string({ unit: fc.constantFrom('r', 'w', 'a', 's', 'x', '+', 'R', ' '), maxLength: 4 }),
    fc.string(),
    fc.constantFrom('__proto__', 'constructor', 'toString'),
  )
  const property = fc.property(strings, (flags) => {
    const real = failure(() => fs.openSync('/no/such/file', flags))
    const ours = failure(() => parseFlags(flags))
    return ours === undefined ? real?.code === 'ENOENT' : ours.message === real?.message
  })
  t.notThrows(() => fc.assert(property, { numRuns: 2000 }))
})

test('without flags a file is opened for reading, as in node:fs', (t) => {
  t.is(parseFlags(undefined), O_RDONLY | O_CLOEXEC)
  t.is(parseFlags(null), O_RDONLY | O_CLOEXEC)
})

test('a number of flags keeps every bit and gets O_CLOEXEC', (t) => {
  t.is(parseFlags(O_RDWR | O_DIRECTORY), O_RDWR | O_DIRECTORY | O_CLOEXEC)
  t.is(parseFlags(O_RDWR | O_CLOEXEC), O_RDWR | O_CLOEXEC)
})

test('O_CLOEXEC is the bit by which the kernel closes a descriptor on exec', (t) => {
  const fd = fs.openSync('/dev/null', parseFlags('r'))
  t.teardown(() => fs.closeSync(fd))
  const info = fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')
  t.is(Number.parseInt(/flags:\s*(\d+)/.exec(info)?.[1] ?? '', 8) & O_CLOEXEC, O_CLOEXEC)
})

test('flags that are no 32-bit integer or of another type are refused, as node:fs does', (t) => {
  for (const flags of [
    1.5,
    Number.NaN,
    2 ** 31,
    -(2 ** 31) - 1,
    {},
    1n,
    true,
    Symbol('r'),
    ['r'],
  ]) {
    const real = failure(() => fs.openSync('/no/such/file', flags as number))
    t.deepEqual(words(failure(() => parseFlags(flags))), words(real))
  }
})

test('direct adds O_DIRECT, and is seen in a number too', (t) => {
  t.is(parseFlags('r+', true), O_RDWR | O_CLOEXEC | O_DIRECT)
  t.true(isDirect(parseFlags('r', true)))
  t.true(isDirect(parseFlags(O_WRONLY | O_DIRECT)))
  t.false(isDirect(parseFlags('r+')))
})

test('what may be read, what may be written, and what is synced is told by the flags', (t) => {
  const { O_DSYNC, O_SYNC } = fs.constants
  const told = (flags: number): boolean[] => [mayRead(flags), mayWrite(flags), isDsync(flags)]
  t.deepEqual(told(O_RDONLY), [true, false, false])
  t.deepEqual(told(O_WRONLY | O_APPEND), [false, true, false])
  t.deepEqual(told(O_RDWR | O_DSYNC), [true, true, true])
  t.deepEqual(told(O_RDWR | O_SYNC), [true, true, true], 'each is more than the other')
  // Linux opens such a file for ioctl(2) alone.
  t.deepEqual(told(O_WRONLY | O_RDWR), [false, false, false])
})

test('exactly the flag strings with an a append', (t) => {
  for (const flags of STRINGS) t.is(isAppend(parseFlags(flags)), flags.includes('a'), flags)
  t.true(isAppend(parseFlags(O_WRONLY | O_APPEND)))
})

test('a mode makes the permissions that it makes in node:fs', (t) => {
  const umask = process.umask(0o022)
  t.teardown(() => process.umask(umask))
  for (const mode of [undefined, null, 0, 0o600, 0o777, '600', '0755', '7', '0']) {
    const permissions = (taken: string | number | null | undefined) => {
      const file = path.join(directory, 'mode')
      fs.closeSync(fs.openSync(file, 'wx', taken))
      const { mode: made } = fs.statSync(file)
      fs.rmSync(file)
      return made
    }
    t.is(permissions(parseMode(mode)), permissions(mode), String(mode))
  }
  t.is(parseMode(undefined), 0o666)
})

test('a mode that node:fs refuses is refused in the same words', (t) => {
  for (const mode of ['x', '888', '', '0o777', ' 7', 1.5, -1, 2 ** 32, {}, 1n, true, []]) {
    const real = failure(() => fs.openSync('/no/such/file', 'r', mode as number))
    t.deepEqual(words(failure(() => parseMode(mode))), words(real))
  }
})

test('strings, buffers and URLs name the same file as in node:fs, and are printed so', (t) => {
  const names = ['/no/such', 'relative', '/no/é😀', '/no/ x', '', 'file:///no', '/no/\ud800']
  const bytes = [Buffer.from('/no/such'), Buffer.from([47, 255, 254]), new Uint8Array([47, 33])]
  const urls = [pathToFileURL('/no/ %x'), new URL('file:///no/%C3%A9')]
  for (const name of [...names, ...bytes, ...urls]) {
    const real = failure(() => fs.openSync(name as string, 'r'))
    t.is(real?.code, 'ENOENT')
    const { text } = parsePath(name)
    t.is(real?.path, text)
  }
})

test('the bytes of a path open the file that they name', (t) => {
  for (const name of ['plain', 'é😀', 'with space']) {
    const file = path.join(directory, name)
    fs.writeFileSync(file, name)
    for (const given of [file, Buffer.from(file), pathToFileURL(file)]) {
      t.is(fs.readFileSync(Buffer.from(parsePath(given).bytes), 'utf8'), name)
    }
    fs.rmSync(file)
  }
})

test('bytes that are no UTF-8 reach the kernel unchanged', (t) => {
  t.deepEqual([...parsePath(Buffer.from([47, 255, 254, 128])).bytes], [47, 255, 254, 128])
})

test('a path is a copy: changing the buffer afterwards changes nothing', (t) => {
  const buffer = Buffer.from('/no/such')
  const { bytes } = parsePath(buffer)
  buffer.fill('x')
  t.is(Buffer.from(bytes).toString(), '/no/such')
})

test('a view of bytes is honoured with its offset and its length', (t) => {
  const { bytes, text } = parsePath(Buffer.from('xx/no/suchxx').subarray(2, 10))
  t.is(Buffer.from(bytes).toString(), '/no/such')
  t.is(text, '/no/such')
})

test('a NUL byte in a path is refused in the words of node:fs', (t) => {
  const urls = [new URL('file:///a%00b')]
  const bytes = [Buffer.from('a\0b'), new Uint8Array([47, 0])]
  for (const name of ['a\0b', '\0', ...bytes, ...urls]) {
    const real = failure(() => fs.openSync(name as string, 'r'))
    t.is(real?.code, 'ERR_INVALID_ARG_VALUE')
    t.deepEqual(words(failure(() => parsePath(name))), words(real))
  }
})

test('what is no path is refused in the words of node:fs', (t) => {
  const urls = [new URL('http://x/y'), new URL('file://host/x'), { href: 'file:///x' }]
  for (const name of [5, null, undefined, {}, [], new DataView(new ArrayBuffer(1)), ...urls]) {
    const real = failure(() => fs.openSync(name as string, 'r'))
    t.true(real?.code.startsWith('ERR_'))
    t.deepEqual(words(failure(() => parsePath(name))), words(real))
  }
})
