/** The blocks of direct files (O_DIRECT): whether a transfer is made of whole ones, and which are around it. */
import { uringError } from './errors.js'

/** What a direct file asks of transfers: `statx(2)`, STATX_DIOALIGN. `blockBytes` is 0 of any other file. */
export interface Aligned {
  readonly blockBytes: number
  readonly memoryBytes: number
}

/** Where a position is in its block. */
export function remainder(position: number | bigint, block: number): number {
  if (typeof position === 'bigint') return Number(position % BigInt(block))
  const mask = block - 1
  // A power of two, but for real-time files of XFS (`xfs_report_dioalign`): a division of doubles takes 15 ns.
  return (block & mask) === 0 ? position & mask : position % block
}

/** A direct read has to begin and end on blocks: the length of those around what was asked for. */
export function bytesAround(file: Aligned, position: number | bigint, length: number): number {
  const block = file.blockBytes
  if (block === 0) return length
  return Math.ceil((remainder(position, block) + length) / block) * block
}

/** Whether a direct transfer can go in place; `base` is where its memory begins. */
export function isAligned(
  file: Aligned,
  base: number,
  length: number,
  position: number | bigint,
): boolean {
  return (
    base % file.memoryBytes === 0 &&
    length % file.blockBytes === 0 &&
    remainder(position, file.blockBytes) === 0
  )
}

/** Refuses a direct write that is not of whole blocks. Where an append begins nobody knows: undefined. */
export function checkAlignment(
  file: Aligned,
  length: number,
  position: number | bigint | undefined,
): void {
  const block = file.blockBytes
  if (block === 0 || (length % block === 0 && remainder(position ?? 0, block) === 0)) return
  const alignment = { memoryBytes: file.memoryBytes, offsetBytes: block }
  throw uringError('ERR_URING_ALIGNMENT', { position, lengthBytes: length, alignment })
}
