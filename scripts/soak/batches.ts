/**
 * Many operations at once: `readMany` and `writeMany`, chains, group commits, some of them aborted in
 * the middle. On a file of its own, of which it knows the version of each block; one step at a time, so
 * that every block is as the last step left it.
 */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as after, setImmediate as soon } from 'node:timers/promises'
import { type File, op, type Queue } from 'node-uring'
import { expectedBytes, fill, GUARD, type Segment, verify, Wrong } from './cells.js'
import { add, type Scene, watchedQueue } from './churn.js'
import { type Counts, noCounts } from './lane.js'
import type { Random } from './random.js'

const BLOCK_BYTES = 4096
const BLOCKS = 2048
const MANY_MAX = 400

/** Batches over one file, through queues of all sizes, until then. */
export async function batches(scene: Scene, until: number): Promise<void> {
  const fileId = scene.nextFile()
  const path = join(scene.folder, `batches-${fileId}`)
  const versions = new Uint32Array(BLOCKS)
  let version = 0
  while (Date.now() < until) {
    const entries = scene.random.pick([4, 8, 64, 1024])
    const queue = watchedQueue(scene, { entries, cqEntries: entries * scene.random.pick([1, 4]) })
    const direct = scene.random.chance(30)
    const file = await queue.open(path, 0o102, { direct })
    const work = new Batches(queue, file, fileId, versions, version, scene.random)
    const part = Math.min(until, Date.now() + 500 + scene.random.below(4000))
    while (Date.now() < part) {
      await work.step()
      if (scene.pace.ms >= 1) await after(scene.pace.ms * 2)
    }
    await work.verifyAll()
    version = work.version
    add(scene.past, work.counts)
    await queue.close()
    scene.queues.delete(queue)
  }
  rmSync(path, { force: true })
}

class Batches {
  readonly counts: Counts = noCounts()
  version: number
  readonly #queue: Queue
  readonly #file: File
  readonly #fileId: number
  readonly #versions: Uint32Array
  readonly #random: Random

  constructor(
    queue: Queue,
    file: File,
    fileId: number,
    versions: Uint32Array,
    version: number,
    random: Random,
  ) {
    this.#queue = queue
    this.#file = file
    this.#fileId = fileId
    this.#versions = versions
    this.version = version
    this.#random = random
  }

  async step(): Promise<void> {
    const r = this.#random.below(100)
    if (r < 40) await this.#readMany()
    else if (r < 70) await this.#writeMany()
    else if (r < 85) await this.#chain()
    else await this.#commit()
    this.counts.steps++
  }

  /** Blocks in any order, each once. */
  #blocks(): number[] {
    const count = this.#random.magnitude(MANY_MAX)
    const chosen = new Set<number>()
    while (chosen.size < count) chosen.add(this.#random.below(BLOCKS))
    return [...chosen]
  }

  #memory(bytes: number): Buffer {
    const whole = this.#random.chance(50) ? this.#queue.alloc(bytes) : Buffer.allocUnsafeSlow(bytes)
    return whole.fill(GUARD)
  }

  /** Now and then a signal that aborts soon. */
  #signal(): AbortSignal | undefined {
    if (!this.#random.chance(15)) return undefined
    const controller = new AbortController()
    const kind = this.#random.below(3)
    const abort = () => controller.abort()
    if (kind === 0) queueMicrotask(abort)
    else if (kind === 1) void soon().then(abort)
    else void after(this.#random.below(3)).then(abort)
    return controller.signal
  }

  /** Whether it was made; false when it was aborted. */
  async #made(promise: Promise<Int32Array>, what: string): Promise<boolean> {
    try {
      for (const count of await promise) {
        if (count !== BLOCK_BYTES) throw new Wrong(`${what}: ${count} in place of ${BLOCK_BYTES}`)
      }
      return true
    } catch (error) {
      if ((error as { code?: string }).code !== 'ABORT_ERR') throw error
      this.counts.aborted++
      return false
    }
  }

  #segment(block: number, version = this.#versions[block] as number): Segment {
    return { from: block * BLOCK_BYTES, to: (block + 1) * BLOCK_BYTES, version }
  }

  #verify(bytes: Buffer, block: number, what: string): void {
    verify(bytes, this.#fileId, block * BLOCK_BYTES, [this.#segment(block)], what)
    this.counts.bytesRead += bytes.length
  }

  async #readMany(): Promise<void> {
    const written = this.#blocks().filter((block) => this.#versions[block] !== 0)
    if (written.length === 0) return
    const blocks = [...written, ...written.slice(0, 3)]
    const positions = Float64Array.from(blocks, (block) => block * BLOCK_BYTES)
    const target = this.#memory(blocks.length * BLOCK_BYTES)
    const signal = this.#signal()
    const options = signal === undefined ? {} : { signal }
    const what = `readMany of ${blocks.length}`
    if (await this.#made(this.#file.readMany(positions, BLOCK_BYTES, target, options), what)) {
      for (const [i, block] of blocks.entries()) {
        this.#verify(target.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES), block, what)
      }
    }
  }

  async #writeMany(): Promise<void> {
    const blocks = this.#blocks()
    const version = ++this.version
    const positions = Float64Array.from(blocks, (block) => block * BLOCK_BYTES)
    const source = this.#memory(blocks.length * BLOCK_BYTES)
    for (const [i, block] of blocks.entries()) {
      const bytes = source.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)
      fill(bytes, this.#fileId, version, block * BLOCK_BYTES)
    }
    const signal = this.#signal()
    const options = signal === undefined ? {} : { signal }
    const what = `writeMany of ${blocks.length}`
    const made = await this.#made(
      this.#file.writeMany(positions, BLOCK_BYTES, source, options),
      what,
    )
    if (made) {
      for (const block of blocks) this.#versions[block] = version
      this.counts.bytesWritten += source.length
    } else {
      for (const block of blocks) await this.#lookAt(block, version)
    }
  }

  /** After a write that was aborted a block is what it was, or what it was to be: nothing else. */
  async #lookAt(block: number, version: number): Promise<void> {
    const bytes = await this.#file.bytesAt(block * BLOCK_BYTES, BLOCK_BYTES)
    const wanted = expectedBytes(this.#fileId, block * BLOCK_BYTES, BLOCK_BYTES, [
      this.#segment(block, version),
    ])
    if (bytes.equals(wanted)) this.#versions[block] = version
    // Past the end of the file, or a hole.
    else if (bytes.length === 0 && this.#versions[block] === 0) return
    else this.#verify(bytes, block, 'a block whose write was aborted')
  }

  /** A write, its fdatasync, and a read of it, each behind the one before. */
  async #chain(): Promise<void> {
    const block = this.#random.below(BLOCKS)
    const position = block * BLOCK_BYTES
    const version = ++this.version
    const [source, target] = [this.#memory(BLOCK_BYTES), this.#memory(BLOCK_BYTES)]
    fill(source, this.#fileId, version, position)
    const made = await this.#queue.submit(
      [
        op.write(this.#file, source, position),
        op.datasync(this.#file),
        op.read(this.#file, target, position),
      ],
      { link: this.#random.pick(['soft', 'hard'] as const), throwOnError: true },
    )
    if (String(made) !== `${BLOCK_BYTES},0,${BLOCK_BYTES}`) throw new Wrong(`a chain: ${made}`)
    this.#versions[block] = version
    this.counts.bytesWritten += BLOCK_BYTES
    this.#verify(target, block, 'a read behind its write')
  }

  /** Writes of several at once, each of which waits until it is durable. */
  async #commit(): Promise<void> {
    const version = ++this.version
    const blocks = this.#blocks().slice(0, 16)
    await Promise.all(
      blocks.map(async (block) => {
        const source = this.#memory(BLOCK_BYTES)
        fill(source, this.#fileId, version, block * BLOCK_BYTES)
        await this.#file.writeAt(source, block * BLOCK_BYTES)
        await this.#queue.commit(this.#file)
        this.#versions[block] = version
      }),
    )
    this.counts.bytesWritten += blocks.length * BLOCK_BYTES
  }

  /** Every block that was written, at the end of a queue's life. */
  async verifyAll(): Promise<void> {
    for (let block = 0; block < BLOCKS; block += 16) {
      const bytes = await this.#file.bytesAt(block * BLOCK_BYTES, 16 * BLOCK_BYTES)
      const blocks = Array.from({ length: bytes.length / BLOCK_BYTES }, (_, i) => block + i)
      const segments = blocks.map((each) => this.#segment(each))
      verify(bytes, this.#fileId, block * BLOCK_BYTES, segments, 'all of a batched file')
    }
  }
}
