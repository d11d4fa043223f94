/**
 * From what node:fs answers to what the engine answers: negated error numbers, and the kernel's
 * `struct statx`, which `stats.ts` reads. Pure.
 */
import type { BigIntStats } from 'node:fs'
import { ERRNO } from '../errno.js'
import { STATX_BYTES, STATX_STATS } from '../stats.js'

/**
 * The negated number of an error of node:fs. One without is of Node's permission model, or about an argument
 * that it refuses.
 */
export function errnoOf(error: unknown): number {
  const { errno, code } = error as NodeJS.ErrnoException
  if (typeof errno === 'number' && errno < 0) return errno
  return code === 'ERR_ACCESS_DENIED' ? -ERRNO.EACCES : -ERRNO.EINVAL
}

/**
 * `struct statx` (statx(2)) of a file, by the offsets of <linux/stat.h>. Without the alignment of
 * direct I/O, which node:fs does not ask for.
 */
export function packStatx(stats: BigIntStats): Uint8Array {
  const bytes = new Uint8Array(STATX_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint32(0x00, STATX_STATS, true)
  view.setUint32(0x04, Number(stats.blksize), true)
  view.setUint32(0x10, Number(stats.nlink), true)
  view.setUint32(0x14, Number(stats.uid), true)
  view.setUint32(0x18, Number(stats.gid), true)
  view.setUint16(0x1c, Number(stats.mode), true)
  view.setBigUint64(0x20, stats.ino, true)
  view.setBigUint64(0x28, stats.size, true)
  view.setBigUint64(0x30, stats.blocks, true)
  setTime(view, 0x40, stats.atimeNs)
  setTime(view, 0x50, stats.birthtimeNs)
  setTime(view, 0x60, stats.ctimeNs)
  setTime(view, 0x70, stats.mtimeNs)
  setDevice(view, 0x80, stats.rdev)
  setDevice(view, 0x88, stats.dev)
  return bytes
}

const NS_PER_SECOND = 1_000_000_000n

/** Before 1970 the seconds are negative, the nanoseconds are not. */
function setTime(view: DataView, at: number, ns: bigint): void {
  const rest = ((ns % NS_PER_SECOND) + NS_PER_SECOND) % NS_PER_SECOND
  view.setBigInt64(at, (ns - rest) / NS_PER_SECOND, true)
  view.setUint32(at + 8, Number(rest), true)
}

/** makedev(3) backwards: a device's number is two, of 32 bits each. */
function setDevice(view: DataView, at: number, device: bigint): void {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xffff_f000n)
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffff_ff00n)
  view.setUint32(at, Number(major), true)
  view.setUint32(at + 4, Number(minor), true)
}
