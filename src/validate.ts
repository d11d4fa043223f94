/**
 * Checks of arguments, made before anything is staged: each returns nothing or throws Node's own
 * `ERR_` errors. They are pure. The good case of each is small enough for V8 to inline; the bad
 * case is a function of its own, so that no error text weighs on the hot path.
 */
import { invalidArgType, invalidArgValue, outOfRange } from './errors.js'

/** The largest position that the kernel has: `loff_t` is signed. */
const POSITION_MAX = 2n ** 63n - 1n

/**
 * A position in a file, in bytes: an integer from 0 to 2^53-1, or a bigint from 0 to 2^63-1.
 *
 * Throws ERR_INVALID_ARG_TYPE for another type and ERR_OUT_OF_RANGE for another value. That
 * includes NaN, which the kernel would get as 0; -1, which it takes for the current position; and
 * -0, which is a sign of arithmetic gone below zero. One of many is named by its `index`.
 */
export function checkPosition(
  position: unknown,
  name = 'position',
  index?: number,
): asserts position is number | bigint {
  if (typeof position === 'number') {
    if (!Number.isSafeInteger(position) || position < 0 || Object.is(position, -0)) {
      refusePosition(position, nameOfOne(name, index))
    }
  } else if (typeof position !== 'bigint' || position < 0n || position > POSITION_MAX) {
    refusePosition(position, nameOfOne(name, index))
  }
}

/** What an error calls an argument, or one of its elements. */
export function nameOfOne(name: string, index: number | undefined): string {
  return index === undefined ? name : `${name}[${index}]`
}

function refusePosition(position: unknown, name: string): never {
  if (typeof position === 'bigint') throw outOfRange(name, `>= 0 && <= ${POSITION_MAX}`, position)
  if (typeof position !== 'number') {
    throw invalidArgType(name, 'of type bigint or integer', position)
  }
  if (!Number.isInteger(position)) throw outOfRange(name, 'an integer', position)
  throw outOfRange(name, `>= 0 && <= ${Number.MAX_SAFE_INTEGER}`, position)
}

/**
 * An integer of type number from `min` to `max`, both included.
 * Throws ERR_INVALID_ARG_TYPE or ERR_OUT_OF_RANGE. Options are named `options.entries`.
 */
export function checkInteger(
  value: unknown,
  name: string,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    refuseInteger(value, name, min, max)
  }
}

function refuseInteger(value: unknown, name: string, min: number, max: number): never {
  if (typeof value !== 'number') throw invalidArgType(name, 'of type number', value)
  if (!Number.isInteger(value)) throw outOfRange(name, 'an integer', value)
  throw outOfRange(name, `>= ${min} && <= ${max}`, value)
}

/** A length in bytes from 0 to `maxBytes`. Throws as {@link checkInteger}. */
export function checkLength(
  length: unknown,
  maxBytes: number = Number.MAX_SAFE_INTEGER,
  name = 'length',
): asserts length is number {
  checkInteger(length, name, 0, maxBytes)
}

/** Any view of memory: Buffer, typed array or DataView. Throws ERR_INVALID_ARG_TYPE. */
export function checkView(view: unknown, name = 'buffer'): asserts view is ArrayBufferView {
  if (!ArrayBuffer.isView(view)) refuseView(view, name)
}

function refuseView(view: unknown, name: string): never {
  throw invalidArgType(name, 'an instance of Buffer, TypedArray, or DataView', view)
}

/** true or false. Throws ERR_INVALID_ARG_TYPE. */
export function checkBoolean(value: unknown, name: string): asserts value is boolean {
  if (typeof value !== 'boolean') throw invalidArgType(name, 'of type boolean', value)
}

/** A function. Throws ERR_INVALID_ARG_TYPE. */
export function checkFunction(
  value: unknown,
  name: string,
): asserts value is (...args: never[]) => unknown {
  if (typeof value !== 'function') throw invalidArgType(name, 'of type function', value)
}

/**
 * An AbortSignal, or what can stand for one: `aborted`, `addEventListener` and
 * `removeEventListener`, so that nothing can be missing after an operation was staged.
 * Throws ERR_INVALID_ARG_TYPE.
 */
export function checkSignal(
  signal: unknown,
  name = 'options.signal',
): asserts signal is AbortSignal {
  if (
    typeof signal !== 'object' ||
    signal === null ||
    !('aborted' in signal) ||
    typeof (signal as AbortSignal).addEventListener !== 'function' ||
    typeof (signal as AbortSignal).removeEventListener !== 'function'
  ) {
    throw invalidArgType(name, 'an instance of AbortSignal', signal)
  }
}

/** Options that are all of these names: one that is misspelt would be lost. Throws ERR_INVALID_ARG_VALUE. */
export function checkNames(options: object, names: readonly string[], name = 'options'): void {
  for (const given of Object.keys(options)) {
    if (!names.includes(given)) {
      const reason = `is not known; there are ${names.join(', ')}`
      throw invalidArgValue(`${name}.${given}`, (options as Record<string, unknown>)[given], reason)
    }
  }
}

/** An object for options: no array, no function, not null. Throws ERR_INVALID_ARG_TYPE. */
export function checkOptions(options: unknown, name = 'options'): asserts options is object {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidArgType(name, 'of type object', options)
  }
}
