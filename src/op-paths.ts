/**
 * Constructors of operations on paths: a part of `op`. A path that is not absolute begins at the
 * working directory, unless a directory is given.
 */
import fs from 'node:fs'
import {
  OP_LINKAT,
  OP_MKDIRAT,
  OP_OPENAT,
  OP_RENAMEAT,
  OP_STATX,
  OP_SYMLINKAT,
  OP_UNLINKAT,
} from './backend.js'
import { BatchOperation } from './batch-operation.js'
import { ERRNO } from './errno.js'
import { invalidArgType, invalidArgValue, systemError, uringError } from './errors.js'
import type { File } from './file.js'
import { stateOf } from './file-state.js'
import { parseFlags, parseMode, parsePath } from './flags.js'
import type { Opened } from './native.js'
import type { Operations } from './operations.js'
import { STATX_STATS, Stats } from './stats.js'
import { checkBoolean, checkOptions } from './validate.js'

const { EMFILE } = ERRNO
/** Flags of `*at` calls, which Node has no names for. The same on every architecture. */
const AT_SYMLINK_NOFOLLOW = 0x100
const AT_REMOVEDIR = 0x200

/** A path, as node:fs takes it. */
export type PathLike = string | Buffer | Uint8Array | URL

/** What a path may lead through. openat2(2), `RESOLVE_` in lower case. */
const RESOLVE = new Map<string, number>([
  ['no_xdev', 0x01],
  ['no_magiclinks', 0x02],
  ['no_symlinks', 0x04],
  ['beneath', 0x08],
  ['in_root', 0x10],
  ['cached', 0x20],
])

/** Names of what a path may be kept from. */
export type Resolve = 'no_xdev' | 'no_magiclinks' | 'no_symlinks' | 'beneath' | 'in_root' | 'cached'

/** What {@link op.open} and {@link Queue.open} take beside a path and flags. */
export interface OpenSettings {
  /** Permissions of a file that is made: a number or octal digits. Default 0o666. */
  mode?: number | string | undefined
  /** Bypass the page cache: O_DIRECT, open(2). Default false. */
  direct?: boolean | undefined
  /** Where a path that is not absolute begins: a directory that is open. Default: the working one. */
  directory?: File | undefined
  /**
   * What the path may not do: leave the directory ('beneath'), cross mounts ('no_xdev'), go through
   * links ('no_symlinks', 'no_magiclinks'), wait for the disk ('cached', Linux 5.12: `EAGAIN`); or have
   * the directory for its root ('in_root'). Rejects with `EXDEV` or `ELOOP` when it would. openat2(2).
   */
  resolve?: readonly Resolve[] | undefined
}

function parseResolve(resolve: readonly Resolve[] | undefined): number {
  if (resolve === undefined) return 0
  if (!Array.isArray(resolve)) {
    throw invalidArgType('options.resolve', 'an instance of Array', resolve)
  }
  let flags = 0
  for (const name of resolve) {
    const flag = RESOLVE.get(name)
    if (flag === undefined) {
      const words = `must be names of ${[...RESOLVE.keys()].join(', ')}`
      throw invalidArgValue('options.resolve', name, words)
    }
    flags |= flag
  }
  return flags
}

/** Refuses what must not be left out: what is for openat2(2) where the kernel has none, and on node:fs. */
function checkAt(option: string, operations: Operations): void {
  const { backend, kernel } = operations
  if (backend.name === 'io_uring' && (option === 'directory' || kernel.supports('openat2'))) return
  const feature = `The option ${option}`
  throw uringError('ERR_URING_UNSUPPORTED', { feature, needs: 'io_uring of Linux 5.6' })
}

function twoPaths(opcode: number, from: PathLike, to: PathLike, names: [string, string]) {
  const [old, dest] = [parsePath(from, names[0]), parsePath(to, names[1])]
  return new BatchOperation(opcode, {
    bytes: Buffer.concat([old.bytes, dest.bytes]),
    length: old.bytes.length,
    path: old.text,
    dest: dest.text,
  })
}

/** The part of `op` that is on paths. */
export const paths = {
  /**
   * Opens a file; a File. `flags` are those of node:fs, 'r' by default. openat(2), openat2(2) with
   * `resolve`; Linux 5.6.
   */
  open(path: PathLike, flags?: string | number, options: OpenSettings = {}): BatchOperation<File> {
    checkOptions(options)
    const { direct = false, directory } = options
    checkBoolean(direct, 'options.direct')
    const mode = parseMode(options.mode, 'options.mode')
    const resolve = parseResolve(options.resolve)
    const { bytes, text } = parsePath(path)
    const wanted = parseFlags(flags, direct)
    return new BatchOperation<File>(OP_OPENAT, {
      file: directory === undefined ? undefined : stateOf(directory, 'options.directory'),
      offset: wanted >>> 0,
      length: mode,
      position: resolve,
      bytes,
      path: text,
      check(operations) {
        if (directory !== undefined) checkAt('directory', operations)
        if (resolve !== 0) checkAt('resolve', operations)
      },
      finish: async (operations, opened, limits) => {
        if (opened === null) throw systemError(EMFILE, 'open', { path: text })
        return operations.enter(opened as Opened, text, wanted, limits)
      },
    })
  },

  /** Attributes of what is at the path; Stats, in the shape of `fs.Stats`. statx(2), Linux 5.6. */
  stat(path: PathLike, options: StatSettings = {}): BatchOperation<Stats> {
    checkOptions(options)
    const { followLinks = true } = options
    checkBoolean(followLinks, 'options.followLinks')
    const { bytes, text } = parsePath(path)
    return new BatchOperation<Stats>(OP_STATX, {
      offset: followLinks ? 0 : AT_SYMLINK_NOFOLLOW,
      length: STATX_STATS,
      bytes,
      path: text,
      finish: async (_, statx) => new Stats(statx as Uint8Array),
    })
  },

  /** Gives a file another name, in place of what has it; 0. rename(2), Linux 5.11. */
  rename(from: PathLike, to: PathLike): BatchOperation {
    return twoPaths(OP_RENAMEAT, from, to, ['from', 'to'])
  },

  /** Gives a file a second name; 0. A symbolic link is not followed. link(2), Linux 5.15. */
  link(existing: PathLike, path: PathLike): BatchOperation {
    return twoPaths(OP_LINKAT, existing, path, ['existing', 'path'])
  },

  /** Makes a symbolic link at `path` that leads to `target`, whatever is there; 0. symlink(2), Linux 5.15. */
  symlink(target: PathLike, path: PathLike): BatchOperation {
    return twoPaths(OP_SYMLINKAT, target, path, ['target', 'path'])
  },

  /** Takes a name away; 0. unlink(2), Linux 5.11. */
  unlink(path: PathLike): BatchOperation {
    const { bytes, text } = parsePath(path)
    return new BatchOperation(OP_UNLINKAT, { bytes, path: text })
  },

  /** Takes an empty directory away; 0. rmdir(2), Linux 5.11. */
  rmdir(path: PathLike): BatchOperation {
    const { bytes, text } = parsePath(path)
    return new BatchOperation(OP_UNLINKAT, { bytes, path: text, offset: AT_REMOVEDIR })
  },

  /** Makes a directory, its parent must be there; 0. `mode` is 0o777 by default. mkdir(2), Linux 5.15. */
  mkdir(path: PathLike, options: MakeSettings = {}): BatchOperation {
    checkOptions(options)
    const mode = parseMode(options.mode ?? 0o777, 'options.mode')
    const { bytes, text } = parsePath(path)
    return new BatchOperation(OP_MKDIRAT, { bytes, path: text, length: mode })
  },
} as const

/** What {@link op.stat} takes beside a path. */
export interface StatSettings {
  /** Tell of what a symbolic link leads to, not of itself. Default true. */
  followLinks?: boolean | undefined
}

/** What {@link op.mkdir} takes beside a path. */
export interface MakeSettings {
  /** Permissions: a number or octal digits. Default 0o777. */
  mode?: number | string | undefined
}

type Fallback = (made: BatchOperation<never>) => Promise<unknown>

/** The calls of node:fs that take the place of operations that the kernel lacks, by opcode. */
export const FALLBACKS: ReadonlyMap<number, Fallback> = new Map<number, Fallback>([
  [OP_RENAMEAT, (made) => fs.promises.rename(...two(made))],
  [OP_LINKAT, (made) => fs.promises.link(...two(made))],
  [OP_SYMLINKAT, (made) => fs.promises.symlink(...two(made))],
  [
    OP_UNLINKAT,
    (made) => (made.offset === 0 ? fs.promises.unlink(one(made)) : fs.promises.rmdir(one(made))),
  ],
  [OP_MKDIRAT, (made) => fs.promises.mkdir(one(made), made.length)],
  [
    OP_STATX,
    (made) => (made.offset === 0 ? fs.promises.stat(one(made)) : fs.promises.lstat(one(made))),
  ],
])

function one({ bytes }: BatchOperation<never>): Buffer {
  return bytes as Buffer
}

function two({ bytes, length }: BatchOperation<never>): [Buffer, Buffer] {
  const both = bytes as Buffer
  return [both.subarray(0, length), both.subarray(length)]
}
