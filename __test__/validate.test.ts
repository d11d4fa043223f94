import test from 'ava'
import fc from 'fast-check'
import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkLength,
  checkOptions,
  checkPosition,
  checkSignal,
  checkView,
} from '../src/validate.ts'

/** The code and the words of what `check` throws, or undefined. */
function refusal(check: () => void): { code: string; message: string } | undefined {
  try {
    check()
    return undefined
  } catch (error) {
    const { code, message } = error as Error & { code: string }
    return { code, message }
  }
}

test('every position from 0 to 2^53-1, and to 2^63-1 as a bigint, is taken', (t) => {
  const positions = [0, 1, 4096, 2 ** 31, 2 ** 32, 2 ** 53 - 1, 0n, 1n, 2n ** 53n, 2n ** 63n - 1n]
  for (const position of positions)
    t.is(
      refusal(() => checkPosition(position)),
      undefined,
    )
})

test('a number that is no position is out of range, with the range in words', (t) => {
  const integer = 'The value of "position" is out of range. It must be an integer. Received '
  for (const position of [Number.NaN, 0.5, -0.5, Number.POSITIVE_INFINITY, Number.MIN_VALUE]) {
    const expected = { code: 'ERR_OUT_OF_RANGE', message: `${integer}${position}` }
    t.deepEqual(
      refusal(() => checkPosition(position)),
      expected,
    )
  }
  const range = 'It must be >= 0 && <= 9007199254740991. Received '
  const cases: [number, string][] = [
    [-1, '-1'],
    [-0, '-0'],
    [2 ** 53, '9_007_199_254_740_992'],
  ]
  for (const [position, text] of cases) {
    const message = `The value of "position" is out of range. ${range}${text}`
    t.deepEqual(
      refusal(() => checkPosition(position)),
      { code: 'ERR_OUT_OF_RANGE', message },
    )
  }
})

test('a bigint that the kernel cannot hold is out of range', (t) => {
  for (const position of [-1n, 2n ** 63n, 2n ** 64n, -(2n ** 63n)]) {
    const refused = refusal(() => checkPosition(position))
    t.is(refused?.code, 'ERR_OUT_OF_RANGE')
    t.regex(refused?.message ?? '', /must be >= 0 && <= 9223372036854775807\. Received -?[\d_]+n$/)
  }
})

test('a position of another type is refused by type', (t) => {
  for (const position of [
    '0',
    '',
    null,
    undefined,
    true,
    [],
    [0],
    {},
    new Number(0),
    Symbol('0'),
  ]) {
    const refused = refusal(() => checkPosition(position))
    t.is(refused?.code, 'ERR_INVALID_ARG_TYPE')
    t.regex(refused?.message ?? '', /^The "position" argument must be of type bigint or integer/)
  }
})

test('whatever number is given, only whole ones from 0 to 2^53-1 are positions', (t) => {
  const property = fc.property(fc.double(), (position) => {
    const taken = refusal(() => checkPosition(position)) === undefined
    const whole = position >= 0 && position <= 2 ** 53 - 1 && position % 1 === 0
    return taken === (whole && 1 / position !== Number.NEGATIVE_INFINITY)
  })
  t.notThrows(() => fc.assert(property, { numRuns: 2000 }))
})

test('whatever value is given, a position is a number or a bigint', (t) => {
  const property = fc.property(fc.anything(), (position) => {
    const refused = refusal(() => checkPosition(position))
    if (typeof position === 'number' || typeof position === 'bigint') {
      return refused === undefined || refused.code === 'ERR_OUT_OF_RANGE'
    }
    return refused?.code === 'ERR_INVALID_ARG_TYPE'
  })
  t.notThrows(() => fc.assert(property, { numRuns: 2000 }))
})

test('an integer is taken from its least to its greatest value, both included', (t) => {
  for (const value of [1, 2, 8]) {
    t.is(
      refusal(() => checkInteger(value, 'options.entries', 1, 8)),
      undefined,
    )
  }
  for (const value of [0, 9, -1]) {
    t.deepEqual(
      refusal(() => checkInteger(value, 'options.entries', 1, 8)),
      {
        code: 'ERR_OUT_OF_RANGE',
        message: `The value of "options.entries" is out of range. It must be >= 1 && <= 8. Received ${value}`,
      },
    )
  }
})

test('an integer that is a fraction, NaN or no number is refused', (t) => {
  const check = (value: unknown) => refusal(() => checkInteger(value, 'options.entries', 0, 8))
  for (const value of [0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    t.is(check(value)?.code, 'ERR_OUT_OF_RANGE')
  }
  for (const value of ['1', 1n, null, undefined, {}]) {
    t.is(check(value)?.code, 'ERR_INVALID_ARG_TYPE')
    t.regex(check(value)?.message ?? '', /^The "options\.entries" property must be of type number/)
  }
})

test('a length goes from 0 to its maximum', (t) => {
  t.is(
    refusal(() => checkLength(0, 10)),
    undefined,
  )
  t.is(
    refusal(() => checkLength(10, 10)),
    undefined,
  )
  t.is(
    refusal(() => checkLength(2 ** 53 - 1)),
    undefined,
  )
  for (const length of [-1, 11, 1.5]) {
    const refused = refusal(() => checkLength(length, 10))
    t.is(refused?.code, 'ERR_OUT_OF_RANGE')
    t.regex(refused?.message ?? '', /^The value of "length" is out of range/)
  }
})

test('every kind of view is taken, also an empty and a shared one', (t) => {
  const shared = new Uint8Array(new SharedArrayBuffer(8))
  const views = [Buffer.alloc(1), new Float64Array(2), new DataView(new ArrayBuffer(4)), shared]
  for (const view of [...views, new BigInt64Array(0)]) {
    t.is(
      refusal(() => checkView(view)),
      undefined,
    )
  }
})

test('memory that is no view is refused, as node:fs refuses it', (t) => {
  for (const memory of [new ArrayBuffer(8), new SharedArrayBuffer(8), [1], 'x', null, {}]) {
    const refused = refusal(() => checkView(memory))
    t.is(refused?.code, 'ERR_INVALID_ARG_TYPE')
    const words = 'The "buffer" argument must be an instance of Buffer, TypedArray, or DataView.'
    t.true(refused?.message.startsWith(words))
  }
})

test('a boolean is true or false and nothing like it', (t) => {
  for (const value of [true, false]) {
    t.is(
      refusal(() => checkBoolean(value, 'options.direct')),
      undefined,
    )
  }
  for (const value of [0, 1, '', null, undefined, new Boolean(true)]) {
    t.is(refusal(() => checkBoolean(value, 'options.direct'))?.code, 'ERR_INVALID_ARG_TYPE')
  }
})

test('a function is taken, and an object with call is not', (t) => {
  for (const value of [() => 1, async () => 1, class {}]) {
    t.is(
      refusal(() => checkFunction(value, 'options.onProgress')),
      undefined,
    )
  }
  for (const value of [{ call() {} }, null, 'f']) {
    t.is(refusal(() => checkFunction(value, 'options.onProgress'))?.code, 'ERR_INVALID_ARG_TYPE')
  }
})

test('a signal is taken, aborted or not, and so is what does the same', (t) => {
  const like = { aborted: false, addEventListener() {}, removeEventListener() {} }
  for (const signal of [new AbortController().signal, AbortSignal.abort(), like]) {
    t.is(
      refusal(() => checkSignal(signal)),
      undefined,
    )
  }
})

test('a controller, null and a signal that cannot be listened to are refused', (t) => {
  const deaf = { aborted: false, addEventListener() {} }
  for (const signal of [new AbortController(), null, undefined, 5, {}, { aborted: true }, deaf]) {
    const refused = refusal(() => checkSignal(signal))
    t.is(refused?.code, 'ERR_INVALID_ARG_TYPE')
    const words = 'The "options.signal" property must be an instance of AbortSignal.'
    t.true(refused?.message.startsWith(words))
  }
})

test('options are an object; arrays, functions and null are none', (t) => {
  for (const options of [{}, Object.create(null), new (class Options {})()]) {
    t.is(
      refusal(() => checkOptions(options)),
      undefined,
    )
  }
  for (const options of [null, undefined, [], () => 1, 5, 'x']) {
    t.is(refusal(() => checkOptions(options))?.code, 'ERR_INVALID_ARG_TYPE')
  }
})
