/**
 * Reads the kernel's `struct statx` (statx(2), <linux/stat.h>) into an object like those of
 * `fs.stat`. Pure: it gets 256 bytes and keeps none of them.
 */
import fs, { type Stats as NodeStats } from 'node:fs'
import type { DirectAlignment } from './errors.js'

/** The length of `struct statx`. */
export const STATX_BYTES = 256
/** Ask for what `fs.stat` tells: STATX_BASIC_STATS | STATX_BTIME. */
export const STATX_STATS = 0x0fff
/** Ask for the alignment of direct I/O; Linux 6.1. */
export const STATX_DIOALIGN = 0x2000

// Offsets of the fields in `struct statx`; u32 unless said otherwise.
const MASK = 0x00
const BLKSIZE = 0x04
const NLINK = 0x10
const UID = 0x14
const GID = 0x18
const MODE = 0x1c // u16
const INO = 0x20 // u64
const SIZE = 0x28 // u64
const BLOCKS = 0x30 // u64
const ATIME = 0x40 // s64 seconds, u32 nanoseconds; so are the next three
const BTIME = 0x50
const CTIME = 0x60
const MTIME = 0x70
const RDEV = 0x80 // major, minor
const DEV = 0x88 // major, minor
const DIO_MEM_ALIGN = 0x98
const DIO_OFFSET_ALIGN = 0x9c

const { S_IFMT, S_IFREG, S_IFDIR, S_IFBLK, S_IFCHR, S_IFLNK, S_IFIFO, S_IFSOCK } = fs.constants

/** `Temporal.Instant` where the runtime has it (Node 26), and its type where TypeScript has that. */
type Instant = typeof globalThis extends {
  Temporal: { Instant: new (...args: never[]) => infer T }
}
  ? T
  : unknown
type InstantOf = new (nanoseconds: bigint) => Instant

/** What a file is, with numbers that are exact also past 2^53; of `fs.BigIntStats` what is needed here. */
export interface ExactStats {
  isFile(): boolean
  isBlockDevice(): boolean
  readonly dev: number | bigint
  readonly rdev: number | bigint
  readonly ino: bigint
  /** In bytes. */
  readonly size: bigint
}

/** Reads them in a `struct statx`, asked for with {@link STATX_STATS}. */
export function exactStats(statx: Uint8Array): ExactStats {
  const stats = new Stats(statx)
  const view = viewOf(statx)
  return {
    isFile: () => stats.isFile(),
    isBlockDevice: () => stats.isBlockDevice(),
    dev: stats.dev,
    rdev: stats.rdev,
    ino: view.getBigUint64(INO, true),
    size: view.getBigUint64(SIZE, true),
  }
}

/**
 * What a file is, with the fields and methods of `fs.Stats`, of which it is an instance.
 * Numbers past 2^53 are rounded, as `fs.stat` does. Times are in milliseconds since 1970, with a
 * fraction. `birthtimeMs` is 0 where the file system keeps none. `atimeInstant` and the others are exact, and
 * undefined where the runtime has no Temporal.
 */
export class Stats implements NodeStats {
  /** The device that holds the file, as makedev(3) counts it. */
  dev: number
  /** Type and permissions; see inode(7). */
  mode: number
  nlink: number
  uid: number
  gid: number
  /** The device that the file is, if it is one. */
  rdev: number
  /** The preferred size of I/O, in bytes. */
  blksize: number
  ino: number
  /** In bytes. */
  size: number
  /** What the file takes on the disk, in units of 512 bytes. */
  blocks: number
  atimeMs: number
  mtimeMs: number
  ctimeMs: number
  birthtimeMs: number
  /** The nanoseconds past the second of each time. */
  readonly #nanoseconds: Readonly<Record<'atime' | 'mtime' | 'ctime' | 'birthtime', number>>

  /** `statx` is the kernel's struct, {@link STATX_BYTES} long, asked with {@link STATX_STATS}. */
  constructor(statx: Uint8Array) {
    const view = viewOf(statx)
    this.dev = device(view, DEV)
    this.mode = view.getUint16(MODE, true)
    this.nlink = view.getUint32(NLINK, true)
    this.uid = view.getUint32(UID, true)
    this.gid = view.getUint32(GID, true)
    this.rdev = device(view, RDEV)
    this.blksize = view.getUint32(BLKSIZE, true)
    this.ino = uint64(view, INO)
    this.size = uint64(view, SIZE)
    this.blocks = uint64(view, BLOCKS)
    this.atimeMs = milliseconds(view, ATIME)
    this.mtimeMs = milliseconds(view, MTIME)
    this.ctimeMs = milliseconds(view, CTIME)
    this.birthtimeMs = milliseconds(view, BTIME)
    this.#nanoseconds = {
      atime: nanoseconds(view, ATIME),
      mtime: nanoseconds(view, MTIME),
      ctime: nanoseconds(view, CTIME),
      birthtime: nanoseconds(view, BTIME),
    }
  }

  get atime(): Date {
    return date(this.atimeMs)
  }
  get mtime(): Date {
    return date(this.mtimeMs)
  }
  get ctime(): Date {
    return date(this.ctimeMs)
  }
  get birthtime(): Date {
    return date(this.birthtimeMs)
  }

  get atimeInstant(): Instant {
    return instant(this.atimeMs, this.#nanoseconds.atime)
  }
  get mtimeInstant(): Instant {
    return instant(this.mtimeMs, this.#nanoseconds.mtime)
  }
  get ctimeInstant(): Instant {
    return instant(this.ctimeMs, this.#nanoseconds.ctime)
  }
  get birthtimeInstant(): Instant {
    return instant(this.birthtimeMs, this.#nanoseconds.birthtime)
  }

  isFile(): boolean {
    return (this.mode & S_IFMT) === S_IFREG
  }
  isDirectory(): boolean {
    return (this.mode & S_IFMT) === S_IFDIR
  }
  isBlockDevice(): boolean {
    return (this.mode & S_IFMT) === S_IFBLK
  }
  isCharacterDevice(): boolean {
    return (this.mode & S_IFMT) === S_IFCHR
  }
  isSymbolicLink(): boolean {
    return (this.mode & S_IFMT) === S_IFLNK
  }
  isFIFO(): boolean {
    return (this.mode & S_IFMT) === S_IFIFO
  }
  isSocket(): boolean {
    return (this.mode & S_IFMT) === S_IFSOCK
  }
}

// `instanceof fs.Stats` looks at the prototype alone. Its constructor is deprecated (DEP0180) and
// never runs here. A named import would not link on a Node that has removed it.
const nodeStats = (fs as { Stats?: { prototype: object } }).Stats
if (nodeStats !== undefined) Object.setPrototypeOf(Stats.prototype, nodeStats.prototype)

/**
 * What direct I/O asks of the file, or undefined if the kernel did not say: it is older than
 * Linux 6.1, the file system does not tell, or {@link STATX_DIOALIGN} was not asked for.
 * `offsetBytes` 0 says that the file takes no direct I/O.
 */
export function directAlignment(statx: Uint8Array): DirectAlignment | undefined {
  const view = viewOf(statx)
  if ((view.getUint32(MASK, true) & STATX_DIOALIGN) === 0) return undefined
  return {
    memoryBytes: view.getUint32(DIO_MEM_ALIGN, true),
    offsetBytes: view.getUint32(DIO_OFFSET_ALIGN, true),
  }
}

function viewOf(statx: Uint8Array): DataView {
  return new DataView(statx.buffer, statx.byteOffset, STATX_BYTES)
}

/** Both halves are exact and the sum is rounded once, so this is the nearest number. */
function uint64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true)
}

/** As Node counts it, fraction and all. Before 1970 the seconds are negative, the rest is not. */
function milliseconds(view: DataView, at: number): number {
  const seconds = view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true)
  return seconds * 1000 + nanoseconds(view, at) / 1e6
}

/** Of the time alone what is past its second. */
function nanoseconds(view: DataView, at: number): number {
  return view.getUint32(at + 8, true)
}

/** makedev(3): 12 bits of the major over 20 of the minor in the low half, the rest above. */
function device(view: DataView, at: number): number {
  const major = view.getUint32(at, true)
  const minor = view.getUint32(at + 4, true)
  const low = (major & 0xfff) * 2 ** 8 + (minor & 0xff)
  return low + (minor >>> 8) * 2 ** 20 + (major >>> 12) * 2 ** 44
}

/** The time to the nanosecond, of which `ms` has lost some. */
function instant(ms: number, nanoseconds: number): Instant {
  const { Temporal } = globalThis as { Temporal?: { Instant: InstantOf } }
  if (Temporal === undefined) return undefined as Instant
  const seconds = Math.round((ms - nanoseconds / 1e6) / 1000)
  return new Temporal.Instant(BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds))
}

/** As Node: to the nearest millisecond. */
function date(ms: number): Date {
  return new Date(Math.round(ms))
}
