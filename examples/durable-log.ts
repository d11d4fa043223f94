/**
 * A log whose records are on stable storage when `append` has resolved, and which survives a crash in
 * the middle of a write. Shows `writeAt` with `datasync`, appends that share one commit, and recovery:
 * the file is read from its beginning, and what is torn at its end is cut off.
 *
 *   node --import tsx examples/durable-log.ts [FILE]
 *
 * Without FILE it uses one in the temporary folder, and deletes that.
 */
import { constants } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { crc32 } from 'node:zlib'
import { type File, Queue } from 'node-uring'
import { Scan } from './lib/scan.js'

/** Before each record: its length in bytes, and the CRC-32 of what it holds. */
const HEADER_BYTES = 8

class DurableLog {
  readonly #file: File
  /** Where the next commit goes: behind it there is nothing. */
  #end = 0
  /** The commit under way, or the last one; and the one behind it, with its records. */
  #last: Promise<void> = Promise.resolve()
  #next: Promise<void> | undefined
  #waiting: Buffer[] = []
  #commits = 0

  private constructor(file: File) {
    this.#file = file
  }

  /** Opens a log and gives `onRecord` each record that is whole, in their order. */
  static async open(
    queue: Queue,
    path: string,
    onRecord: (record: Buffer) => void,
  ): Promise<DurableLog> {
    const log = new DurableLog(await queue.open(path, constants.O_RDWR | constants.O_CREAT))
    await log.#recover(onRecord)
    // A file that is new has a name only when its folder is on stable storage, too.
    const folder = await queue.open(dirname(path))
    await folder.sync()
    await folder.close()
    return log
  }

  get commits(): number {
    return this.#commits
  }

  /**
   * Resolves when the record is on stable storage, and with it all that came before. Records that come
   * while a commit is under way wait for it and share the next: one write and one fdatasync, however
   * many they are. Two commits at once would not do: the later might be whole and the earlier torn.
   */
  append(record: Uint8Array): Promise<void> {
    // Zeros are what a file system shows where nothing was written: they must not be a record.
    if (record.length === 0) throw new RangeError('a record must not be empty')
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32LE(record.length, 0)
    header.writeUInt32LE(crc32(record), 4)
    this.#waiting.push(header, Buffer.from(record))
    this.#next ??= this.#commit(this.#last)
    return this.#next
  }

  async #commit(before: Promise<void>): Promise<void> {
    // A commit that failed leaves the end of the file unknown: so fail all that come after it.
    await before
    // From here on records belong to the next one.
    this.#last = this.#next as Promise<void>
    this.#next = undefined
    const batch = Buffer.concat(this.#waiting)
    this.#waiting = []
    await this.#file.writeAt(batch, this.#end, { datasync: true })
    this.#end += batch.length
    this.#commits++
  }

  /** Waits for what was appended. */
  async close(): Promise<void> {
    await (this.#next ?? this.#last)
    await this.#file.close()
  }

  /** Reads records until one is not whole, and cuts the file there. */
  async #recover(onRecord: (record: Buffer) => void): Promise<void> {
    const { size } = await this.#file.stat()
    const scan = new Scan(this.#file)
    while (this.#end + HEADER_BYTES <= size) {
      const header = await scan.at(this.#end, HEADER_BYTES)
      const [length, checksum] = [header.readUInt32LE(0), header.readUInt32LE(4)]
      const start = this.#end + HEADER_BYTES
      if (start + length > size) break
      const record = await scan.at(start, length)
      // Of a torn write some blocks may have reached the disk and others not.
      if (length === 0 || crc32(record) !== checksum) break
      onRecord(Buffer.from(record))
      this.#end = start + length
    }
    if (this.#end === size) return
    await this.#file.truncate(this.#end)
    await this.#file.sync()
  }
}

const RECORDS = 1000

async function main(path: string): Promise<void> {
  const queue = new Queue()
  const textOf = (i: number) => `record ${i} ${'.'.repeat(i % 100)}`
  try {
    const before: string[] = []
    const log = await DurableLog.open(queue, path, (record) => before.push(record.toString()))
    const appends = Array.from({ length: RECORDS }, (_, i) => log.append(Buffer.from(textOf(i))))
    await Promise.all(appends)
    await log.append(Buffer.from(textOf(RECORDS)))
    console.log(`${RECORDS + 1} records on stable storage, in ${log.commits} commits`)
    await log.close()

    // As after a crash in the middle of a write: the last record lacks its end.
    const torn = await open(path, 'r+')
    await torn.truncate((await torn.stat()).size - 3)
    await torn.close()

    const found: string[] = []
    const recovered = await DurableLog.open(queue, path, (record) => found.push(record.toString()))
    await recovered.append(Buffer.from('after the crash'))
    await recovered.close()
    const again: string[] = []
    await (await DurableLog.open(queue, path, (record) => again.push(record.toString()))).close()

    const wanted = [...before, ...Array.from({ length: RECORDS }, (_, i) => textOf(i))]
    if (found.join('\n') !== wanted.join('\n')) throw new Error('a record was lost')
    if (again.join('\n') !== [...wanted, 'after the crash'].join('\n')) {
      throw new Error('the log does not go on where it was whole')
    }
    console.log(
      `${found.length} records recovered, the torn one cut off, and the log goes on: ` +
        `${again.length} records`,
    )
  } finally {
    await queue.close()
  }
}

const [, , path] = process.argv
if (path !== undefined) {
  await main(path)
} else {
  const folder = await mkdtemp(join(tmpdir(), 'node-uring-durable-log-'))
  try {
    await main(join(folder, 'log'))
  } finally {
    await rm(folder, { recursive: true })
  }
}
