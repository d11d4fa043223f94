// Random programs of plain operations, chains and drains on one file, against the order that drains promise:
// what is before one is in the file when it starts, what is behind it comes later.

import fs from 'node:fs'
import fc from 'fast-check'
import { type BatchOperation, type File, op, type Queue, type Stats } from 'node-uring'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test from './helpers/test.js'

const MIB = 1 << 20
/** Places of the file, each as long as one write. */
const PLACES = 24
const PLACE_BYTES = 512
/** Where the long writes go. */
const LONG_AT = PLACES * PLACE_BYTES
const LONG_BYTES = 2 * MIB + 5
/** Of which one of many has so many. */
const MANY_BYTES = 4096

/** What a member of a chain, or a plain operation, does. */
type Act = 'write' | 'sync' | 'nop' | 'stat' | 'read' | 'wait'
/** One call. Its writes go to places that no other of its section writes to. */
interface Step {
  readonly drain: boolean
  readonly link: 'none' | 'soft' | 'hard'
  readonly acts: readonly Act[]
  /** A long write in place of them, and by which call. */
  readonly long: 'no' | 'one' | 'many' | 'vectors'
  readonly plain: boolean
}

const act = fc.constantFrom<Act>('write', 'write', 'write', 'sync', 'nop', 'stat', 'read', 'wait')
const step: fc.Arbitrary<Step> = fc.record({
  drain: fc.boolean(),
  link: fc.constantFrom('none' as const, 'soft' as const, 'soft' as const, 'hard' as const),
  acts: fc.array(act, { minLength: 1, maxLength: 5 }),
  long: fc.constantFrom('no', 'no', 'no', 'no', 'no', 'no', 'one', 'many', 'vectors'),
  plain: fc.boolean(),
})

/** The memory of a write: all its bytes are the number of its step. */
function filled(queue: Queue, plain: boolean, bytes: number, with_: number): Buffer {
  return (plain ? Buffer.alloc(bytes) : queue.alloc(bytes)).fill(with_)
}

class Program {
  readonly #queue: Queue
  readonly #file: File
  readonly expected = Buffer.alloc(LONG_AT + LONG_BYTES)
  /** Places that this section has written to. */
  #used = new Set<number>()
  #longUsed = false
  readonly done: Promise<unknown>[] = []
  readonly wrong: string[] = []

  constructor(queue: Queue, file: File) {
    this.#queue = queue
    this.#file = file
  }

  begin(step: Step, number: number): void {
    if (step.drain) this.#section()
    if (step.long !== 'no') this.#long(step, number)
    else this.#batch(step, number)
    // Of a batch without links the first alone is what later ones wait for.
    const isOne = step.long !== 'no' || step.link !== 'none' || step.acts.length === 1
    if (step.drain && isOne) this.#section()
  }

  #section(): void {
    this.#used.clear()
    this.#longUsed = false
  }

  #long({ plain, drain, long }: Step, number: number): void {
    if (this.#longUsed) return
    this.#longUsed = true
    const memory = filled(this.#queue, plain, LONG_BYTES, number)
    this.expected.fill(number, LONG_AT)
    this.#check(this.#write(memory, drain ? 'drain' : long), LONG_BYTES, `long ${number}`)
  }

  async #write(memory: Buffer, by: Step['long'] | 'drain'): Promise<unknown> {
    const [queue, file] = [this.#queue, this.#file]
    if (by === 'drain') {
      const [result] = await queue.submit([op.write(file, memory, LONG_AT)], { drain: true })
      return result
    }
    if (by === 'vectors') {
      return file.writevAt([memory.subarray(0, MIB + 7), memory.subarray(MIB + 7)], LONG_AT)
    }
    if (by === 'one') return file.writeAt(memory, LONG_AT)
    const count = Math.ceil(LONG_BYTES / MANY_BYTES)
    const positions = Float64Array.from({ length: count }, (_, i) => LONG_AT + i * MANY_BYTES)
    const lengths = new Uint32Array(count).fill(MANY_BYTES)
    lengths[count - 1] = LONG_BYTES - (count - 1) * MANY_BYTES
    const counts = await file.writeMany(positions, lengths, memory)
    return counts.reduce((sum, one) => sum + one, 0)
  }

  /** In a chain a place may be written to again, by a later member. */
  #batch({ acts, link, drain, plain }: Step, number: number): void {
    const own = new Set<number>()
    const wanted: (number | 'anything')[] = []
    const operations: BatchOperation<number | Stats>[] = []
    for (const [index, what] of acts.entries()) {
      const place = this.#place(link === 'none' ? undefined : own, number + index)
      if (what === 'write' && place !== undefined) {
        const value = (number * 7 + index) & 255
        const at = place * PLACE_BYTES
        this.expected.fill(value, at, at + PLACE_BYTES)
        const memory = filled(this.#queue, plain, PLACE_BYTES, value)
        operations.push(op.write(this.#file, memory, at))
        wanted.push(PLACE_BYTES)
        continue
      }
      const file = this.#file
      const others: Record<Exclude<Act, 'write'>, () => BatchOperation<number | Stats>> = {
        sync: () => op.datasync(file),
        nop: () => op.nop(),
        stat: () => op.stat(file.path as string),
        read: () => op.read(file, Buffer.alloc(PLACE_BYTES), 0),
        wait: () => op.timeout(1),
      }
      operations.push(others[what === 'write' ? 'nop' : what]())
      wanted.push(what === 'stat' ? 'anything' : what === 'read' ? PLACE_BYTES : 0)
    }
    const batch = this.#queue.submit(operations, { link, drain }).then((results) => {
      for (const [index, result] of results.entries()) {
        if (wanted[index] !== 'anything' && result !== wanted[index])
          this.wrong.push(`${number}.${index}: ${result} in place of ${wanted[index]}`)
      }
    })
    this.done.push(batch)
  }

  /** A place that is this step's; of a chain also one that it has written to before. */
  #place(own: Set<number> | undefined, seed: number): number | undefined {
    for (let tried = 0; tried < PLACES; tried++) {
      const place = (seed * 5 + tried) % PLACES
      if (own?.has(place)) return place
      if (this.#used.has(place)) continue
      this.#used.add(place)
      own?.add(place)
      return place
    }
    return undefined
  }

  #check(promise: Promise<unknown>, wanted: number, what: string): void {
    const checked = promise.then((result) => {
      if (result !== wanted) this.wrong.push(`${what}: ${result} in place of ${wanted}`)
    })
    this.done.push(checked)
  }
}

for (const options of [{}, { entries: 8 }, { setup: { taskRun: 'interrupt' } }] as const) {
  test(`what drains keep apart is in the file in their order, ${JSON.stringify(options)}`, async (t) => {
    t.timeout(180_000)
    const queue = ring(t, options)
    const at = scratch(t)
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
        fs.writeFileSync(at, Buffer.alloc(LONG_AT + LONG_BYTES))
        const file = await queue.open(at, 'r+')
        const program = new Program(queue, file)
        for (const [number, step] of steps.entries()) program.begin(step, number + 1)
        await Promise.all(program.done)
        t.deepEqual(program.wrong, [])
        t.is(fs.readFileSync(at).compare(program.expected), 0)
        await file.close()
      }),
      { numRuns: 150 },
    )
    assertIdle(t, queue)
  })
}
