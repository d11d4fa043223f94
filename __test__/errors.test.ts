import childProcess from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import { getSystemErrorMap } from 'node:util'
import test from 'ava'
import {
  AbortError,
  abortError,
  invalidArgType,
  invalidArgValue,
  outOfRange,
  rejected,
  systemError,
  UringError,
  uringError,
  withoutFrames,
} from '../src/errors.ts'
import { explainUnavailable } from '../src/unavailable.ts'

type Shape = Error & Record<string, unknown>

/** What `call` throws. */
function thrown(call: () => unknown): Shape {
  try {
    call()
  } catch (error) {
    return error as Shape
  }
  throw new Error('nothing was thrown')
}

/** What can be told of an error without its stack: the kind, the words, every own property. */
function shape(error: Error): object {
  return {
    kind: error.constructor,
    name: error.name,
    message: error.message,
    text: String(error),
    properties: Object.keys(error).sort(),
    values: { ...error },
  }
}

/** The first line of a stack. */
function header(error: Error): string | undefined {
  return error.stack?.split('\n')[0]
}

/** What an error says of the value. */
function received(error: Error): string | undefined {
  return /Received .*$/.exec(error.message)?.[0]
}

/** A promise settled from a callback that knows nothing of who waits, as a completion does. */
function later(settle: (resolve: (value: never | Promise<never>) => void) => void): Promise<never> {
  return new Promise((resolve) => setImmediate(() => settle(resolve)))
}

test('a system error with a path is the one that node:fs makes', (t) => {
  const path = '/no/such/file'
  const real = thrown(() => fs.openSync(path, 'r'))
  t.deepEqual(shape(systemError(2, 'open', { path })), shape(real))
})

test('a system error with two paths is the one that node:fs makes', (t) => {
  const [path, dest] = ['/no/a', '/no/b']
  const real = thrown(() => fs.renameSync(path, dest))
  t.deepEqual(shape(systemError(-2, 'rename', { path, dest })), shape(real))
})

test('a system error without a path is the one that node:fs makes', (t) => {
  const real = thrown(() => fs.fsyncSync(2 ** 31 - 1))
  t.deepEqual(shape(systemError(9, 'fsync')), shape(real))
  t.is(systemError(9, 'read').message, 'EBADF: bad file descriptor, read')
})

test('a system error lists its properties in the order of node:fs', (t) => {
  const real = thrown(() => fs.renameSync('/no/a', '/no/b'))
  const ours = systemError(2, 'rename', { path: '/no/a', dest: '/no/b' })
  t.deepEqual(Object.keys(ours), Object.keys(real))
})

test('an empty path is printed, and a missing one is not a property', (t) => {
  t.is(systemError(2, 'open', { path: '' }).message, thrown(() => fs.openSync('', 'r')).message)
  t.false(Object.hasOwn(systemError(2, 'read', { path: undefined }), 'path'))
})

test('every errno that Node knows has its code and words, with either sign', (t) => {
  for (const [errno, [code, words]] of getSystemErrorMap()) {
    for (const sign of [errno, -errno]) {
      const error = systemError(sign, 'read')
      t.is(error.errno, errno)
      t.is(error.code, code)
      t.is(error.message, `${code}: ${words}, read`)
    }
  }
})

test('an errno of Linux that Node does not know has its name, and any other its number', (t) => {
  // fs.readSync under a pread(2) that fails with EDQUOT says "Unknown system error -122".
  const error = systemError(122, 'read')
  t.is(error.message, 'EDQUOT: disk quota exceeded, read')
  t.is(error.code, 'EDQUOT')
  t.is(error.errno, -122)
  const unknown = systemError(4000, 'read')
  t.is(unknown.message, 'Unknown system error -4000: Unknown system error -4000, read')
  t.is(unknown.code, 'Unknown system error -4000')
})

test('the names of errnos beyond Node are those of the system headers', (t) => {
  for (const [name, number] of Object.entries(os.constants.errno)) {
    if (name === 'EWOULDBLOCK' || name === 'EOPNOTSUPP') continue // EAGAIN and ENOTSUP
    const { code } = systemError(number, 'read')
    if (!code.startsWith('Unknown')) t.is(code, name)
  }
})

test('a failed write says how much was written, and what came before', (t) => {
  const cause = new Error('first')
  const error = systemError(28, 'write', { bytesWritten: 0, cause })
  t.is(error.bytesWritten, 0)
  t.is(error.cause, cause)
  t.false(Object.keys(error).includes('cause'))
})

test('a system error has no frames of the place that made it, and later errors have theirs', (t) => {
  const limit = Error.stackTraceLimit
  t.is(systemError(5, 'read').stack, 'Error: EIO: i/o error, read')
  t.is(Error.stackTraceLimit, limit)
  t.regex(new Error('next').stack ?? '', /\n {4}at /)
})

test('errors can be made where the intrinsics are frozen', (t) => {
  const source = new URL('../src/errors.ts', import.meta.url).href
  const script = `
    const { systemError, uringError, invalidArgType } = await import(${JSON.stringify(source)})
    Object.freeze(Error)
    console.log(systemError(5, 'read').code, uringError('ERR_URING_CLOSED').code,
      invalidArgType('x', 'of type number', 'y').code)`
  const args = ['--import=tsx', '--input-type=module', '--eval', script]
  const out = childProcess.execFileSync(process.execPath, args, { encoding: 'utf8' })
  t.is(out.trim(), 'EIO ERR_URING_CLOSED ERR_INVALID_ARG_TYPE')
})

test('a promise resolved with rejected() tells the functions that await it', async (t) => {
  async function readPage(): Promise<never> {
    return await later((resolve) => resolve(rejected(systemError(5, 'read'))))
  }
  async function findKey(): Promise<never> {
    return await readPage()
  }
  const error = await t.throwsAsync(findKey(), { message: 'EIO: i/o error, read' })
  t.is(header(error), 'Error: EIO: i/o error, read')
  t.regex(error.stack ?? '', /at async readPage .*\n +at async findKey /)
  t.notRegex(error.stack ?? '', /errors\.ts/)
})

test('an error of ours keeps its code in the stack when it is rejected', async (t) => {
  async function readPage(): Promise<never> {
    return await later((resolve) => resolve(rejected(uringError('ERR_URING_CLOSED'))))
  }
  const error = await t.throwsAsync(readPage(), { instanceOf: UringError })
  t.is(header(error), 'UringError [ERR_URING_CLOSED]: The queue is closed')
  t.regex(error.stack ?? '', /at async readPage /)
  t.is(error.name, 'UringError')
})

test('a rejected error that nobody awaits is reported once as unhandled', (t) => {
  const source = new URL('../src/errors.ts', import.meta.url).href
  const script = `
    const { rejected, systemError } = await import(${JSON.stringify(source)})
    process.on('unhandledRejection', (error) => console.log(error.code))
    new Promise((resolve) => setImmediate(() => resolve(rejected(systemError(5, 'read')))))`
  const args = ['--import=tsx', '--input-type=module', '--eval', script]
  const out = childProcess.execFileSync(process.execPath, args, { encoding: 'utf8' })
  t.is(out, 'EIO\n')
})

test('the wrong type is refused in the words of Node, whatever was received', (t) => {
  const file = fs.openSync('/dev/null', 'r')
  t.teardown(() => fs.closeSync(file))
  class Page {}
  function named() {}
  const values = ['x', "it's", '0'.repeat(24), true, Symbol('s'), {}, [], named]
  for (const value of [...values, () => 1, Page, new Page(), new Date(), Object.create(null)]) {
    const real = thrown(() => fs.readSync(file, Buffer.alloc(1), 0, 1, value as number))
    const ours = invalidArgType('position', 'of type bigint or integer', value)
    t.deepEqual(shape(ours), shape(real))
    t.is(header(ours), header(real))
  }
})

test('undefined, null, numbers and bigints are described in the words of Node', (t) => {
  for (const value of [undefined, null, 1, -0, Number.NaN, 12n]) {
    const real = thrown(() => Buffer.byteLength(value as never))
    const expected = 'of type string or an instance of Buffer or ArrayBuffer'
    t.is(invalidArgType('string', expected, value).message, real.message)
  }
})

test('a value out of range is refused in the words of Node', (t) => {
  for (const value of [2 ** 31, 2 ** 32, 2 ** 32 + 1, -(2 ** 40)]) {
    const real = thrown(() => fs.openSync('/x', value))
    const ours = outOfRange('flags', '>= -2147483648 && <= 2147483647', value)
    t.deepEqual(shape(ours), shape(real))
    t.is(header(ours), header(real))
  }
  for (const value of [1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    const real = thrown(() => fs.openSync('/x', value))
    t.deepEqual(shape(outOfRange('flags', 'an integer', value)), shape(real))
  }
})

test('a large bigint out of range is printed as Node prints it', (t) => {
  for (const value of [2n ** 64n, 2n ** 70n, -(2n ** 40n), -(2n ** 32n), -1n]) {
    const real = thrown(() => Buffer.alloc(8).writeBigUInt64LE(value))
    t.is(received(outOfRange('value', '>= 0n', value)), received(real))
  }
})

test('a long string of the wrong type is cut after 25 characters', (t) => {
  const error = invalidArgType('position', 'of type number', '0123456789'.repeat(3))
  t.is(received(error), "Received type string ('0123456789012345678901234...')")
})

test('an invalid value is refused in the words of Node, and cut where Node cuts it', (t) => {
  for (const value of ['q', 'x'.repeat(300), {}, 1n]) {
    const real = thrown(() => fs.openSync('/x', value as never))
    const ours = invalidArgValue('flags', value)
    t.deepEqual(shape(ours), shape(real))
    t.is(header(ours), header(real))
  }
})

test('a name with a dot is called a property', (t) => {
  const real = thrown(() => fs.rmSync('/no/x', { force: 5 as never }))
  t.is(invalidArgType('options.force', 'of type boolean', 5).message, real.message)
  t.true(invalidArgValue('options.x', 5).message.startsWith("The property 'options.x' is invalid"))
})

test('an error about an argument has the frames of the call', (t) => {
  function caller() {
    return invalidArgType('x', 'of type number', 'y')
  }
  t.regex(caller().stack ?? '', /at caller /)
})

test('an abort has the name, the code and the words of Node, and the reason as cause', async (t) => {
  const reason = new Error('why')
  const signal = AbortSignal.abort(reason)
  const real = await t.throwsAsync(fs.promises.readFile('/dev/null', { signal }))
  const ours = abortError(signal)
  t.deepEqual({ ...shape(ours), kind: null }, { ...shape(real), kind: null })
  t.is(ours.cause, reason)
  t.is(ours.stack, 'AbortError: The operation was aborted')
  t.true(ours instanceof AbortError)
  t.is(abortError(signal, 4096).bytesWritten, 4096)
})

test('an error of ours has its code in the stack and in a property, and frames', (t) => {
  const error = uringError('ERR_URING_CLOSED')
  t.true(error instanceof UringError)
  t.is(error.code, 'ERR_URING_CLOSED')
  t.is(error.name, 'UringError')
  t.is(header(error), 'UringError [ERR_URING_CLOSED]: The queue is closed')
  t.regex(error.stack ?? '', /errors\.test\.ts/)
  t.deepEqual(Object.keys(error), ['code'])
})

test('an error of ours made without frames is its header alone', (t) => {
  const error = withoutFrames(() => uringError('ERR_URING_FREED'))
  t.is(error.stack, 'UringError [ERR_URING_FREED]: The buffer was freed or transferred before')
  t.is(error.stack, String(error))
})

test('capture is on again after an error that could not be made', (t) => {
  const limit = Error.stackTraceLimit
  t.throws(() => withoutFrames(() => JSON.parse('{')))
  t.is(Error.stackTraceLimit, limit)
})

test('a cause is where Node puts it, and what is undefined is left out', (t) => {
  const cause = systemError(5, 'io_uring_enter')
  const error = uringError('ERR_URING_FAILED', { cause, bytesWritten: undefined })
  t.is(error.cause, cause)
  t.is(error.message, 'The queue has failed: EIO: i/o error, io_uring_enter')
  t.deepEqual(Object.keys(error), ['code'])
})

test('an unaligned write names the block to write, at any position', (t) => {
  const alignment = { memoryBytes: 4, offsetBytes: 512 }
  const low = uringError('ERR_URING_ALIGNMENT', { position: 1000, lengthBytes: 100, alignment })
  t.true(low.message.includes('multiples of 512 bytes, this one goes from 1000 to 1100.'))
  t.true(
    low.message.includes('Write the blocks around it (1024 bytes at 512) with what they hold;'),
  )
  t.deepEqual(low.alignment, alignment)
  const position = 2n ** 62n + 1n
  const high = uringError('ERR_URING_ALIGNMENT', { position, lengthBytes: 511, alignment })
  t.true(high.message.includes(`(512 bytes at ${2n ** 62n})`))
  const append = uringError('ERR_URING_ALIGNMENT', {
    position: undefined,
    lengthBytes: 5,
    alignment,
  })
  t.regex(
    append.message,
    /multiple of 512 bytes long, this one has 5\. Append it padded to 512 bytes/,
  )
  t.false('position' in append && append.position !== undefined)
})

test('a busy close names what the kernel holds', (t) => {
  const error = uringError('ERR_URING_BUSY', { held: ['2 reads', '1 write'] })
  t.is(error.message, 'Closed, but the kernel still holds 2 reads, 1 write')
  t.deepEqual(error.held, ['2 reads', '1 write'])
})

test('an unavailable ring says the errno, what happened and what to do', (t) => {
  const reason = explainUnavailable(1)
  const { message } = uringError('ERR_URING_UNAVAILABLE', { reason })
  for (const part of ['EPERM', reason.message, reason.help]) t.true(message.includes(part))
})

test('a forbidden ring names the sysctl and the seccomp filter', (t) => {
  const { code, errno, help } = explainUnavailable(-1, 'linux')
  t.is(code, 'EPERM')
  t.is(errno, -1)
  t.regex(help, /sysctl kernel\.io_uring_disabled/)
  t.regex(help, /seccomp/)
})

test('each refusal of io_uring_setup has its own explanation, and an unknown one its name', (t) => {
  const expected = {
    ENOSYS: 38,
    EPERM: 1,
    EACCES: 13,
    ENOMEM: 12,
    EMFILE: 24,
    ENFILE: 23,
    EINVAL: 22,
  }
  const messages = new Set<string>()
  for (const [code, errno] of Object.entries(expected)) {
    const reason = explainUnavailable(errno, 'linux')
    t.is(reason.code, code)
    t.is(reason.errno, -errno)
    messages.add(reason.message)
  }
  t.is(messages.size, Object.keys(expected).length)
  t.regex(explainUnavailable(12, 'linux').help, /ulimit -l/)
  t.is(explainUnavailable(5, 'linux').code, 'EIO')
  t.is(explainUnavailable(4000, 'linux').code, 'Unknown system error -4000')
})

test('a missing binary and one that does not load are told apart, however deep the cause', (t) => {
  const missing = Object.assign(new Error('no'), { code: 'MODULE_NOT_FOUND' })
  const broken = Object.assign(new Error('GLIBC_2.34 not found'), { code: 'ERR_DLOPEN_FAILED' })
  t.is(explainUnavailable(missing, 'linux').code, 'MODULE_NOT_FOUND')
  t.is(explainUnavailable(undefined, 'linux').code, 'MODULE_NOT_FOUND')
  t.is(explainUnavailable(new Error('x', { cause: missing }), 'linux').code, 'MODULE_NOT_FOUND')
  for (const cause of [broken, [missing, broken], new Error('y', { cause: broken })]) {
    t.is(explainUnavailable(new Error('x', { cause }), 'linux').code, 'ERR_DLOPEN_FAILED')
  }
  t.is(explainUnavailable(missing, 'linux').errno, undefined)
})

test('a bundle that does not find the package is told so, and not that there is no binary for it', (t) => {
  const alone = Object.assign(new Error("Cannot find module 'node-uring/binding'"), {
    code: 'MODULE_NOT_FOUND',
  })
  const commonjs = Object.assign(new TypeError(`The argument 'filename' must be a file URL`), {
    code: 'ERR_INVALID_ARG_VALUE',
  })
  for (const failure of [alone, commonjs]) {
    const { code, message, help } = explainUnavailable(failure, 'linux')
    t.is(code, 'MODULE_NOT_FOUND')
    t.regex(message, /bundle/)
    t.regex(help, /--external:node-uring/)
  }
})

test('a cause that is its own cause does not hang the explanation', (t) => {
  const error = new Error('round')
  error.cause = error
  t.is(explainUnavailable(error, 'linux').code, 'MODULE_NOT_FOUND')
  error.cause = [error]
  t.is(explainUnavailable(error, 'linux').code, 'MODULE_NOT_FOUND')
})

test('another operating system is told so, whatever failed', (t) => {
  const { message, code } = explainUnavailable(new Error('no binary'), 'darwin')
  t.regex(message, /darwin/)
  t.is(code, 'ENOSYS')
})
