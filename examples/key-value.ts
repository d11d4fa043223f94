/**
 * A key-value store in one file that only grows: values at known places, an index of keys in memory,
 * and random reads by key, thousands at once. Shows `writeAt` at places of one's own choosing,
 * `bytesAt` for values of any length, and a file read from its beginning to make the index again.
 *
 *   node --import tsx examples/key-value.ts [FILE]
 *
 * Without FILE it uses one in the temporary folder, and deletes that.
 */
import { constants } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type File, Queue } from 'node-uring'
import { Scan } from './lib/scan.js'

/** Before each record: the lengths of its key and of its value, in bytes. */
const HEADER_BYTES = 8

class KeyValueStore {
  readonly #file: File
  readonly #index = new Map<string, { position: number; length: number }>()
  /** Where the next record goes. */
  #end = 0

  private constructor(file: File) {
    this.#file = file
  }

  static async open(queue: Queue, path: string): Promise<KeyValueStore> {
    // Not 'a': there the kernel chooses the place, and this store wants to know it.
    const store = new KeyValueStore(await queue.open(path, constants.O_RDWR | constants.O_CREAT))
    await store.#scan()
    return store
  }

  get size(): number {
    return this.#index.size
  }

  /** Stores a value. Many may be under way at once: each has its place before it is written. */
  async put(key: string, value: Uint8Array): Promise<void> {
    const name = Buffer.from(key)
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32LE(name.length, 0)
    header.writeUInt32LE(value.length, 4)
    const record = Buffer.concat([header, name, value])
    const position = this.#end
    this.#end += record.length
    await this.#file.writeAt(record, position)
    this.#index.set(key, {
      position: position + HEADER_BYTES + name.length,
      length: value.length,
    })
  }

  /** The value of a key: one read, at the place that the index names. */
  async get(key: string): Promise<Buffer | undefined> {
    const place = this.#index.get(key)
    return place && this.#file.bytesAt(place.position, place.length)
  }

  async close(): Promise<void> {
    await this.#file.datasync()
    await this.#file.close()
  }

  /** Makes the index from the file. Values are passed over; a later record of a key counts. */
  async #scan(): Promise<void> {
    const { size } = await this.#file.stat()
    const scan = new Scan(this.#file)
    while (this.#end + HEADER_BYTES <= size) {
      const header = await scan.at(this.#end, HEADER_BYTES)
      const [keyLength, length] = [header.readUInt32LE(0), header.readUInt32LE(4)]
      const keyStart = this.#end + HEADER_BYTES
      const position = keyStart + keyLength
      // What ends in the middle was being written when the program ended: durable-log.ts does more.
      if (position + length > size) break
      this.#index.set((await scan.at(keyStart, keyLength)).toString(), { position, length })
      this.#end = position + length
    }
  }
}

const RECORDS = 20_000
const READS_AT_ONCE = 1000

async function main(path: string): Promise<void> {
  const queue = new Queue()
  const contentOf = (i: number) => Buffer.alloc(50 + (i % 400), `value ${i} `)
  try {
    const store = await KeyValueStore.open(queue, path)
    const numbers = Array.from({ length: RECORDS }, (_, i) => i)
    // No await in between: they travel to the kernel together.
    await Promise.all(numbers.map((i) => store.put(`key ${i}`, contentOf(i))))
    await store.close()

    const again = await KeyValueStore.open(queue, path)
    let [reads, elapsedMs] = [0, 0]
    while (reads < RECORDS) {
      const chosen = Array.from({ length: READS_AT_ONCE }, () =>
        Math.floor(Math.random() * RECORDS),
      )
      const startedMs = performance.now()
      const values = await Promise.all(chosen.map((i) => again.get(`key ${i}`)))
      elapsedMs += performance.now() - startedMs
      for (const [n, i] of chosen.entries()) {
        if (!values[n]?.equals(contentOf(i))) throw new Error(`key ${i} has the value of another`)
      }
      reads += values.length
    }
    const perSecond = Math.round((reads / elapsedMs) * 1000)
    console.log(
      `${again.size} keys stored and found again; ${reads} values read by key and compared, ` +
        `${perSecond} a second`,
    )
    await again.close()
  } finally {
    await queue.close()
  }
}

const [, , path] = process.argv
if (path !== undefined) {
  await main(path)
} else {
  const folder = await mkdtemp(join(tmpdir(), 'node-uring-key-value-'))
  try {
    await main(join(folder, 'store'))
  } finally {
    await rm(folder, { recursive: true })
  }
}
