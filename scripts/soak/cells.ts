/**
 * What the files of the soak hold. Each 16 bytes say which file, position and version they are of,
 * with a check over those, so that wrong bytes can be named. And the model of a file: which version
 * each byte must have. Knows nothing of queues.
 */

export const CELL_BYTES = 16
/** What buffers hold before a read, and around it. No cell begins with it. */
export const GUARD = 0xa5

/** Something is not as it must be. */
export class Wrong extends Error {}

/** What an operation rejects with. */
export interface Failure extends Error {
  code?: string
  bytesWritten?: number
}

function checkOf(file: number, cell: number, version: number): number {
  let mixed = Math.imul(file ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(cell + 1, 0xc2b2ae35)
  mixed = Math.imul(mixed ^ (mixed >>> 15), version | 1) ^ version
  return (mixed ^ (mixed >>> 13)) >>> 0
}

let words = new Uint32Array(1 << 18)

/** Writes the bytes that `version` of `file` has from position `from` on into all of `target`. */
export function fill(target: Uint8Array, file: number, version: number, from: number): void {
  if (version === 0) {
    target.fill(0)
    return
  }
  const first = Math.floor(from / CELL_BYTES)
  const cells = Math.ceil((from + target.length) / CELL_BYTES) - first
  if (words.length < cells * 4) words = new Uint32Array(cells * 4)
  for (let i = 0, cell = first; i < cells * 4; i += 4, cell++) {
    words[i] = file
    words[i + 1] = cell
    words[i + 2] = version
    words[i + 3] = checkOf(file, cell, version)
  }
  const start = from - first * CELL_BYTES
  target.set(new Uint8Array(words.buffer, start, target.length))
}

/** Says what the 16 bytes at `at` are. */
function nameCell(bytes: Buffer, at: number): string {
  if (at < 0 || at + CELL_BYTES > bytes.length) {
    return `${bytes.toString('hex', Math.max(0, at), Math.max(0, at + CELL_BYTES))} of a cell`
  }
  const [file, cell, version, check] = [0, 4, 8, 12].map((o) => bytes.readUInt32LE(at + o))
  if (check === checkOf(file as number, cell as number, version as number)) {
    return `file ${file}, position ${(cell as number) * CELL_BYTES}, version ${version}`
  }
  return bytes.toString('hex', at, at + CELL_BYTES)
}

/** Bytes of one version. 0 are zeros: a hole. */
export interface Segment {
  from: number
  to: number
  version: number
}

/** Throws {@link Wrong}, naming the first wrong byte, unless `bytes` from `from` on are as said. */
export function verify(
  bytes: Buffer,
  file: number,
  from: number,
  segments: readonly Segment[],
  what: string,
): void {
  const expected = expectedBytes(file, from, bytes.length, segments)
  if (bytes.equals(expected)) return
  const at = firstDifference(bytes, expected)
  let last = bytes.length - 1
  while (bytes[last] === expected[last]) last--
  const position = from + at
  const inCell = position % CELL_BYTES
  throw new Wrong(
    `${what}: bytes ${position} to ${from + last} of file ${file} are wrong; at the first there is ` +
      `[${nameCell(bytes, at - inCell)}] in place of [${nameCell(expected, at - inCell)}]; the next ` +
      `cell is [${nameCell(bytes, at - inCell + CELL_BYTES)}]`,
  )
}

let expectation = Buffer.alloc(1 << 20)

/** What the file must hold. Valid until the next call. */
export function expectedBytes(
  file: number,
  from: number,
  length: number,
  segments: readonly Segment[],
): Buffer {
  if (expectation.length < length) expectation = Buffer.alloc(length)
  const expected = expectation.subarray(0, length)
  for (const part of segments) {
    fill(expected.subarray(part.from - from, part.to - from), file, part.version, part.from)
  }
  return expected
}

export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  let at = 0
  while (at < a.length && a[at] === b[at]) at++
  return at
}

/**
 * Of a file whose writer was killed: every cell is zeros, or of this file and at its place. The
 * writes were of whole cells.
 */
export function verifyAfterKill(bytes: Buffer, file: number, what: string): void {
  const zeros = Buffer.alloc(CELL_BYTES)
  const length = bytes.length - (bytes.length % CELL_BYTES)
  for (let at = 0; at < length; at += CELL_BYTES) {
    const [id, cell, version, check] = [
      bytes.readUInt32LE(at),
      bytes.readUInt32LE(at + 4),
      bytes.readUInt32LE(at + 8),
      bytes.readUInt32LE(at + 12),
    ]
    if (id === file && cell === at / CELL_BYTES && check === checkOf(id, cell, version)) continue
    if (bytes.compare(zeros, 0, CELL_BYTES, at, at + CELL_BYTES) === 0) continue
    throw new Wrong(`${what}: at ${at} of file ${file} there is [${nameCell(bytes, at)}]`)
  }
}

/** What a file must hold. */
export class Model {
  size = 0
  #segments: Segment[] = []

  /** The parts of [from, to) that are inside the file. */
  parts(from: number, to: number): Segment[] {
    const parts: Segment[] = []
    for (const part of this.#segments) {
      if (part.from >= to || part.to <= from) continue
      const { version } = part
      parts.push({ from: Math.max(part.from, from), to: Math.min(part.to, to), version })
    }
    return parts
  }

  write(from: number, to: number, version: number): void {
    if (to <= from) return
    if (from > this.size) this.truncate(from)
    const before = this.parts(0, from)
    const after = this.parts(to, Number.POSITIVE_INFINITY)
    this.#segments = [...before, { from, to, version }, ...after]
    this.size = Math.max(this.size, to)
  }

  truncate(size: number): void {
    if (size < this.size) this.#segments = this.parts(0, size)
    else if (size > this.size) this.#segments.push({ from: this.size, to: size, version: 0 })
    this.size = size
  }
}
