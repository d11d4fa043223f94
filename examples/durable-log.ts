/**
 * A log whose records are on stable storage when `append` has resolved, and which survives a crash in
 * the middle of a write. Shows writes in flight together, `queue.commit`, by which they share one
 * fdatasync, and recovery: the file is read from its beginning, and what is torn at its end is cut off.
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
  readonly #queue: Queue
  readonly #file: File
  /** Where the next record goes. */
  #end = 0
  /** Settles when all that was appended so far is written. */
  #written: Promise<void> = Promise.resolve()

  private constructor(queue: Queue, file: File) {
    this.#queue = queue
    this.#file = file
  }

  /** Opens a log and gives `onRecord` each record that is whole, in their order. */
  static async open(
    queue: Queue,
    path: string,
    onRecord: (record: Buffer) => void,
  ): Promise<DurableLog> {
    const file = await queue.open(path, constants.O_RDWR | constants.O_CREAT)
    const log = new DurableLog(queue, file)
    await log.#recover(onRecord)
    // A file that is new has a name only when its folder is on stable storage, too.
    const folder = await queue.open(dirname(path))
    await folder.sync()
    await folder.close()
    return log
  }

  /**
   * Resolves when the record is on stable storage, and with it all that came before. Records that are
   * appended meanwhile are written meanwhile, and share the next fdatasync, however many they are. When
   * one could not be written the log takes no more: behind it nothing would be found again. Nor when one
   * could not be synced: what was written before may be lost, and a commit says so ever after.
   */
  async append(record: Uint8Array): Promise<void> {
    // Zeros are what a file system shows where nothing was written: they must not be a record.
    if (record.length === 0) throw new RangeError('a record must not be empty')
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32LE(record.length, 0)
    header.writeUInt32LE(crc32(record), 4)
    const bytes = Buffer.concat([header, record])
    const position = this.#end
    this.#end += bytes.length
    this.#written = both(this.#written, this.#file.writeAt(bytes, position))
    await this.#written
    await this.#queue.commit(this.#file)
  }

  /** Waits for what was appended. */
  async close(): Promise<void> {
    await this.#written
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

async function both(one: Promise<unknown>, other: Promise<unknown>): Promise<void> {
  await Promise.all([one, other])
}

const RECORDS = 1000

async function main(path: string): Promise<void> {
  const queue = new Queue()
  const textOf = (i: number) => `record ${i} ${'.'.repeat(i % 100)}`
  try {
    const before: string[] = []
    const log = await DurableLog.open(queue, path, (record) => before.push(record.toString()))
    const { submitted } = queue.stats()
    const appends = Array.from({ length: RECORDS }, (_, i) => log.append(Buffer.from(textOf(i))))
    await Promise.all(appends)
    await log.append(Buffer.from(textOf(RECORDS)))
    const syncs = queue.stats().submitted - submitted - (RECORDS + 1)
    console.log(`${RECORDS + 1} records on stable storage, by ${syncs} fdatasyncs`)
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
