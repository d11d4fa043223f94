// Mixed operations against a model: a file beside an array of the bytes that it must hold. A step is
// a number; what it does, where, how much and with which memory is drawn from it, so that a list of
// numbers is a whole program, which fast-check can shorten.
//
// Steps begin without waiting for those before, unless they touch the same bytes: then the result
// would depend on who is first. Truncates wait for all, since reads near the end depend on it.

import type { File, Queue } from 'node-uring'
import { random } from './random.js'

/** Longest transfer, in bytes. */
const LENGTH_MAX = 20_000
/** Longest file, in bytes. */
export const SIZE_MAX = 1 << 20
/** Bytes on either side of a buffer that nobody may touch, and what they are. */
const GUARD_BYTES = 16
const GUARD = 0xa5

/** Bytes under way: others may read them while none writes. */
interface Busy {
  readonly from: number
  readonly to: number
  readonly writes: boolean
  readonly over: Promise<unknown>
}

/** How steps are run. */
export interface MixOptions {
  /** Writes are of whole blocks of so many bytes, for direct files. Default 1. */
  readonly blockBytes?: number
  /** Most steps under way at once. Default 64. */
  readonly concurrency?: number
}

/** A file, and what it must hold. */
export class Mix {
  readonly #queue: Queue
  readonly #file: File
  readonly #block: number
  readonly #concurrency: number
  readonly #model = Buffer.alloc(SIZE_MAX)
  #size = 0
  readonly #busy = new Set<Busy>()
  readonly #spare: { arena: Buffer[]; plain: Buffer[] } = { arena: [], plain: [] }
  readonly #noise = random(7).bytes(1 << 16)
  #failure: Error | undefined

  constructor(queue: Queue, file: File, { blockBytes = 1, concurrency = 64 }: MixOptions = {}) {
    this.#queue = queue
    this.#file = file
    this.#block = blockBytes
    this.#concurrency = concurrency
  }

  /** Runs the steps on an empty file; rejects with the first thing that is not as the model has it. */
  async run(steps: readonly number[]): Promise<void> {
    this.#failure = undefined
    await this.#truncate(0)
    await this.#truncate(SIZE_MAX >> 1)
    for (const [index, step] of steps.entries()) {
      if (this.#failure !== undefined) break
      const starting = this.#begin(step, index)
      if (starting !== undefined) await starting
    }
    await this.#idle()
    if (this.#failure !== undefined) throw this.#failure
    const whole = await this.#file.bytesAt(0, SIZE_MAX + 1)
    this.#expect(whole.equals(this.#model.subarray(0, this.#size)), 'the file at the end')
    if (this.#failure !== undefined) throw this.#failure
  }

  #expect(good: boolean, what: string): void {
    if (!good) this.#failure ??= new Error(`not as the model has it: ${what}`)
  }

  async #idle(): Promise<void> {
    while (this.#busy.size > 0) await Promise.all([...this.#busy].map(({ over }) => over))
  }

  /** Starts a step; a promise when it has to wait first. */
  #begin(step: number, index: number): Promise<void> | undefined {
    const r = random(step)
    const kind = r.below(256)
    if (kind === 0) return this.#truncate(r.below(SIZE_MAX), index)
    const reads = kind < 140
    const writes = kind >= 140 && kind < 240
    if (!reads && !writes) {
      this.#track({ from: 0, to: 0, writes: false }, this.#other(kind, index))
      return this.#room()
    }
    const block = reads ? 1 : this.#block
    let length = block * (1 + r.below(Math.ceil(LENGTH_MAX / block)))
    // Reads may begin and end past the end of the file; writes stay inside, so that it keeps its size.
    const limit = reads ? this.#size + 1000 : this.#size
    if (writes && length > limit) length = Math.floor(limit / block) * block
    if (length === 0) return undefined
    const from = block * Math.floor(r.below(Math.max(1, limit - length + 1)) / block)
    const place = { from, to: from + length, writes }
    const start = (): void => {
      const [arena, offset] = [r.below(2) === 0, r.below(4)]
      const work = reads
        ? kind < 8
          ? this.#bytesAt(place, index)
          : this.#read(place, arena, offset, index)
        : this.#write(place, arena, offset, kind === 239 && r.below(16) === 0, index)
      this.#track(place, work)
    }
    const inTheWay = this.#conflicts(place)
    if (inTheWay.length === 0) {
      start()
      return this.#room()
    }
    return Promise.all(inTheWay).then(() => {
      start()
    })
  }

  #conflicts({
    from,
    to,
    writes,
  }: {
    from: number
    to: number
    writes: boolean
  }): Promise<unknown>[] {
    const found: Promise<unknown>[] = []
    for (const busy of this.#busy) {
      if (busy.from < to && from < busy.to && (writes || busy.writes)) found.push(busy.over)
    }
    return found
  }

  #track(place: { from: number; to: number; writes: boolean }, work: Promise<void>): void {
    const over = work
      .catch((error: Error) => {
        this.#failure ??= error
      })
      .then(() => this.#busy.delete(busy))
    const busy: Busy = { ...place, over }
    this.#busy.add(busy)
  }

  /** Waits when enough is under way. */
  #room(): Promise<void> | undefined {
    if (this.#busy.size < this.#concurrency) return undefined
    return Promise.race([...this.#busy].map(({ over }) => over)).then(() => {})
  }

  #buffer(arena: boolean): Buffer {
    const spare = arena ? this.#spare.arena : this.#spare.plain
    const length = LENGTH_MAX + this.#block + 2 * GUARD_BYTES + 4
    return spare.pop() ?? (arena ? this.#queue.alloc(length) : Buffer.alloc(length))
  }

  async #read(
    { from, to }: { from: number; to: number },
    arena: boolean,
    offset: number,
    index: number,
  ): Promise<void> {
    const whole = this.#buffer(arena)
    const start = GUARD_BYTES + offset
    const target = whole.subarray(start, start + to - from)
    const [before, after] = [whole.subarray(0, start), whole.subarray(start + to - from)]
    before.fill(GUARD)
    after.fill(GUARD, 0, GUARD_BYTES)
    const expected = this.#model.subarray(Math.min(from, this.#size), Math.min(to, this.#size))
    const count = await this.#file.readAt(target, index % 2 === 0 ? from : BigInt(from))
    const what = `read ${index}, ${to - from} bytes at ${from} of ${this.#size}, arena: ${arena}`
    this.#expect(count === expected.length, `${what}: ${count} bytes`)
    this.#expect(expected.equals(target.subarray(0, count)), `${what}: the bytes`)
    const guarded = before.every(isGuard) && after.subarray(0, GUARD_BYTES).every(isGuard)
    this.#expect(guarded, `${what}: bytes around it`)
    ;(arena ? this.#spare.arena : this.#spare.plain).push(whole)
  }

  async #bytesAt({ from, to }: { from: number; to: number }, index: number): Promise<void> {
    const expected = this.#model.subarray(Math.min(from, this.#size), Math.min(to, this.#size))
    const bytes = await this.#file.bytesAt(from, to - from)
    this.#expect(bytes.equals(expected), `bytesAt ${index}, ${to - from} bytes at ${from}`)
  }

  async #write(
    { from, to }: { from: number; to: number },
    arena: boolean,
    offset: number,
    datasync: boolean,
    index: number,
  ): Promise<void> {
    const whole = this.#buffer(arena)
    const source = whole.subarray(offset, offset + to - from)
    const noise = (index * 131) % (this.#noise.length - LENGTH_MAX - this.#block)
    source.set(this.#noise.subarray(noise, noise + source.length))
    if (source.length >= 4) source.writeUInt32LE(index)
    this.#model.set(source, from)
    const count = await this.#file.writeAt(source, from, datasync ? { datasync } : undefined)
    this.#expect(count === source.length, `write ${index}: ${count} of ${source.length} bytes`)
    ;(arena ? this.#spare.arena : this.#spare.plain).push(whole)
  }

  async #other(kind: number, index: number): Promise<void> {
    if (kind < 250) return this.#queue.nop()
    if (kind === 250) {
      const { size } = await this.#file.stat()
      return this.#expect(size === this.#size, `stat ${index}: ${size}`)
    }
    if (kind === 251) return this.#queue.flush()
    if (kind === 252) return this.#queue.sleep(0)
    if (kind === 253) {
      const { pending, stale } = this.#queue.stats()
      return this.#expect(stale === 0 && pending >= 0, `stats ${index}: ${stale} stale`)
    }
    const nothing = await this.#file.readAt(new Uint8Array(0), index)
    this.#expect(nothing === 0, `a read of nothing ${index}: ${nothing}`)
  }

  async #truncate(length: number, index = -1): Promise<void> {
    await this.#idle()
    const size = Math.floor(length / this.#block) * this.#block
    await this.#file.truncate(size)
    this.#model.fill(0, Math.min(size, this.#size))
    this.#size = size
    const seen = (await this.#file.stat()).size
    this.#expect(seen === size, `truncate ${index} to ${size}: ${seen}`)
  }
}

function isGuard(byte: number): boolean {
  return byte === GUARD
}
