/**
 * What `open` takes, turned into what openat(2) takes: flags, mode and path, with the strings,
 * numbers and refusals of node:fs. Pure; nothing here opens anything.
 */
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { types } from 'node:util'
import { invalidArgType, invalidArgValue } from './errors.js'
import { checkInteger } from './validate.js'

export const { O_RDONLY, O_RDWR, O_WRONLY } = fs.constants
const { O_APPEND, O_CREAT, O_EXCL, O_SYNC, O_TRUNC } = fs.constants
/** Its value differs by architecture. Where there is none, `direct` files are buffered ones. */
const O_DIRECT = fs.constants.O_DIRECT ?? 0
const O_DSYNC = fs.constants.O_DSYNC ?? 0
/** Not in node:fs.constants: Node sets it by itself. The same on every architecture of Node. */
const O_CLOEXEC = process.platform === 'linux' ? 0o2000000 : 0

/** The flag strings of node:fs and their synonyms, and the flags of open(2). */
const FLAGS = new Map<string, number>([
  ['r', O_RDONLY],
  ['rs', O_RDONLY | O_SYNC],
  ['sr', O_RDONLY | O_SYNC],
  ['r+', O_RDWR],
  ['rs+', O_RDWR | O_SYNC],
  ['sr+', O_RDWR | O_SYNC],
  ['w', O_TRUNC | O_CREAT | O_WRONLY],
  ['wx', O_TRUNC | O_CREAT | O_WRONLY | O_EXCL],
  ['xw', O_TRUNC | O_CREAT | O_WRONLY | O_EXCL],
  ['w+', O_TRUNC | O_CREAT | O_RDWR],
  ['wx+', O_TRUNC | O_CREAT | O_RDWR | O_EXCL],
  ['xw+', O_TRUNC | O_CREAT | O_RDWR | O_EXCL],
  ['a', O_APPEND | O_CREAT | O_WRONLY],
  ['ax', O_APPEND | O_CREAT | O_WRONLY | O_EXCL],
  ['xa', O_APPEND | O_CREAT | O_WRONLY | O_EXCL],
  ['as', O_APPEND | O_CREAT | O_WRONLY | O_SYNC],
  ['sa', O_APPEND | O_CREAT | O_WRONLY | O_SYNC],
  ['a+', O_APPEND | O_CREAT | O_RDWR],
  ['ax+', O_APPEND | O_CREAT | O_RDWR | O_EXCL],
  ['xa+', O_APPEND | O_CREAT | O_RDWR | O_EXCL],
  ['as+', O_APPEND | O_CREAT | O_RDWR | O_SYNC],
  ['sa+', O_APPEND | O_CREAT | O_RDWR | O_SYNC],
])

/** A path for the kernel and for people. */
export interface ParsedPath {
  /** The bytes of the path, a copy of their own, without a closing NUL. */
  bytes: Uint8Array
  /** The path as node:fs prints it in errors. */
  text: string
}

/**
 * Turns the flags of node:fs into those of open(2), always with O_CLOEXEC.
 *
 * `flags` is a string of node:fs or a number of O_ constants; none means 'r'. `direct` adds
 * O_DIRECT. Throws ERR_INVALID_ARG_VALUE for an unknown string or another type, ERR_OUT_OF_RANGE
 * for a number that is no 32-bit integer.
 */
export function parseFlags(flags: unknown, direct = false): number {
  return parsed(flags ?? O_RDONLY) | O_CLOEXEC | (direct ? O_DIRECT : 0)
}

function parsed(flags: unknown): number {
  if (typeof flags === 'number') {
    checkInteger(flags, 'flags', -(2 ** 31), 2 ** 31 - 1)
    return flags
  }
  const known = typeof flags === 'string' ? FLAGS.get(flags) : undefined
  if (known === undefined) throw invalidArgValue('flags', flags)
  return known
}

/** True if the kernel puts every write at the end: positions are ignored then. */
export function isAppend(flags: number): boolean {
  return (flags & O_APPEND) !== 0
}

/** True if what was opened with these flags has each write on stable storage; O_SYNC includes it. */
export function isDsync(flags: number): boolean {
  return (flags & O_DSYNC) !== 0
}

/** True if what was opened with these flags may be read; of the kernel's two lowest bits 3 is none. */
export function mayRead(flags: number): boolean {
  return (flags & 3) === O_RDONLY || (flags & 3) === O_RDWR
}

/** True if what was opened with these flags may be written. */
export function mayWrite(flags: number): boolean {
  return (flags & 3) === O_WRONLY || (flags & 3) === O_RDWR
}

/** True if the flags ask for direct I/O, by `direct: true` or by number. */
export function isDirect(flags: number): boolean {
  return (flags & O_DIRECT) !== 0
}

/**
 * The permissions of a file that is made: a number, or a string of octal digits; none means 0o666.
 * The kernel takes the process's umask from it.
 *
 * Throws ERR_INVALID_ARG_VALUE for a string that is not octal, ERR_INVALID_ARG_TYPE for another
 * type, ERR_OUT_OF_RANGE for a number that is no unsigned 32-bit integer.
 */
export function parseMode(mode: unknown, name = 'mode'): number {
  let value = mode ?? 0o666
  if (typeof value === 'string') {
    if (!/^[0-7]+$/.test(value)) {
      throw invalidArgValue(name, value, 'must be a 32-bit unsigned integer or an octal string')
    }
    value = Number.parseInt(value, 8)
  }
  checkInteger(value, name, 0, 2 ** 32 - 1)
  return value
}

/**
 * A path for openat(2), from a string, a Buffer or Uint8Array, or a `file:` URL.
 *
 * Bytes are copied, so that the caller may change its buffer while the call waits. Strings become
 * UTF-8. Throws ERR_INVALID_ARG_TYPE for another type, ERR_INVALID_ARG_VALUE for a NUL byte, and
 * what `fileURLToPath` throws for a URL that names no file.
 */
export function parsePath(path: unknown, name = 'path'): ParsedPath {
  const source = isUrl(path) ? fileURLToPath(path) : path
  if (typeof source !== 'string' && !types.isUint8Array(source)) {
    throw invalidArgType(name, 'of type string or an instance of Buffer or URL', source)
  }
  // Looked at after the copy: shared memory may change in between.
  const bytes = Buffer.from(source)
  if (bytes.includes(0)) {
    const reason = 'must be a string, Uint8Array, or URL without null bytes'
    throw invalidArgValue(name, source, reason)
  }
  return { bytes, text: bytes.toString() }
}

/** As node:fs: a URL is known by its properties, so that one of another realm is one too. */
function isUrl(value: unknown): value is URL {
  if (typeof value !== 'object' || value === null) return false
  const url = value as { href?: unknown; protocol?: unknown; auth?: unknown; path?: unknown }
  return Boolean(url.href && url.protocol && url.auth === undefined && url.path === undefined)
}
