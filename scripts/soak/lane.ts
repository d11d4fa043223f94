/**
 * A lane: one file, its model, and strands that work on it at once. Operations in flight never
 * overlap unless they all read; truncates and reopenings have the file for themselves, or cancel
 * what the others have in flight. Whatever is not as the model has it throws `Wrong`.
 */
import { readFileSync, rmSync } from 'node:fs'
import { setTimeout as after, setImmediate as soon } from 'node:timers/promises'
import type { File, Queue } from 'node-uring'
import { Buffers } from './buffers.js'
import {
  CELL_BYTES,
  expectedBytes,
  type Failure,
  fill,
  firstDifference,
  GUARD,
  Model,
  type Segment,
  verify,
  Wrong,
} from './cells.js'
import { type Lock, Locks } from './locks.js'
import type { Random } from './random.js'

const MIB = 1 << 20
const LENGTH_MAX = 3 * MIB
const KEPT_MAX = 24
/** What an operation rejects with whose buffer went. */
const GONE = ['ERR_URING_BUFFER_DETACHED']

export interface LaneOptions {
  fileId: number
  path: string
  mode: 'plain' | 'direct' | 'append'
  /** Longest file, in bytes. */
  sizeMax: number
  /** How many operations at once. */
  strands: number
  random: Random
  /** Writes and truncates are of whole cells: for files that are looked at after a kill. */
  wholeCells?: boolean
  /** Waited after each step, in milliseconds. */
  pace: { ms: number }
}

/** What was done, for the record. */
export interface Counts {
  steps: number
  bytesRead: number
  bytesWritten: number
  aborted: number
  detached: number
  held: number
}

export function noCounts(): Counts {
  return { steps: 0, bytesRead: 0, bytesWritten: 0, aborted: 0, detached: 0, held: 0 }
}

type Outcome = { count: number; error?: never } | { error: Failure; count?: never }

export class Lane {
  readonly counts = noCounts()
  readonly locks = new Locks()
  #options: LaneOptions
  #random: Random
  #model = new Model()
  #version = 0
  #queue!: Queue
  #file!: File
  #until = 0
  #active = 0
  #gate: Promise<void> | undefined
  #onActive: (() => void) | undefined
  /** The kernel held a write when the queue ended: nobody knows what the file holds. */
  #lost = false
  #buffers: Buffers
  #kept: { bytes: Buffer; from: number; fileId: number; segments: Segment[] }[] = []

  constructor(options: LaneOptions) {
    this.#options = options
    const { random, wholeCells } = options
    this.#random = random
    // Not moved in workers: what was moved stays mapped when they end before the collector has come.
    this.#buffers = new Buffers({ random, lengthMax: LENGTH_MAX, moves: wholeCells !== true })
  }

  get path(): string {
    return this.#options.path
  }

  /** Works on the file through this queue until then. `hard` closes the queue in the middle. */
  async run(queue: Queue, until: number, hard = false): Promise<void> {
    this.#queue = queue
    this.#until = until
    this.#file = await this.#open()
    const strands = Array.from({ length: this.#options.strands }, () => this.#strand())
    if (hard) {
      await after(Math.max(0, until - Date.now()))
      this.#buffers.cancelling = true
      await this.#closing(queue.close({ timeoutMs: 0 }))
    }
    await Promise.all(strands)
    this.#buffers.cancelling = false
    this.#buffers.clear()
    for (const kept of this.#kept.splice(0)) this.#verifyKept(kept)
    if (hard) {
      if (this.#lost) this.#startOver()
      return
    }
    await this.#verifyWhole()
    await this.#file.close()
  }

  #open(): Promise<File> {
    const { mode, path } = this.#options
    // Not 'w+': the file keeps what it holds. O_RDWR | O_CREAT.
    return this.#queue.open(path, mode === 'append' ? 'a+' : 0o102, { direct: mode === 'direct' })
  }

  #startOver(): void {
    rmSync(this.#options.path, { force: true })
    this.#options = { ...this.#options, path: `${this.#options.path}.` }
    this.#model = new Model()
    this.#lost = false
  }

  async #strand(): Promise<void> {
    while (Date.now() < this.#until) {
      if (this.#gate !== undefined) {
        await this.#gate
        continue
      }
      this.#active++
      try {
        await this.#step()
      } finally {
        this.#active--
        this.#onActive?.()
      }
      this.counts.steps++
      const { ms } = this.#options.pace
      if (ms >= 1) await after(ms + this.#random.below(ms))
      else await soon()
    }
  }

  #step(): Promise<void> {
    const r = this.#random.below(1000)
    if (r < 240) return this.#read(false)
    if (r < 460) return this.#read(true)
    if (r < 540) return this.#bytesAt()
    if (r < 690) return this.#write(false)
    if (r < 840) return this.#write(true)
    if (r < 880) return this.#readTransferred()
    if (r < 905) return this.#writeTransferred()
    if (r < 920) return this.#small(r)
    if (r < 935) return this.#stat()
    if (r < 945) return this.#sync(r)
    if (r < 965) return this.#alone(() => this.#truncate())
    if (r < 975) return this.#alone(() => this.#reopen())
    if (r < 983) return this.#closeUnderOthers()
    return this.#read(r % 2 === 0)
  }

  // ---- who may do what ------------------------------------------------------------------------

  /** The block that writes are of. */
  get #unit(): number {
    const cell = this.#options.wholeCells ? CELL_BYTES : 1
    return this.#file.alignment?.offsetBytes ?? cell
  }

  /** A range to read and its lock; reads past the end hold the end. */
  #lockRead(what: string): { from: number; length: number; lock: Lock } | undefined {
    for (let attempt = 0; attempt < 6; attempt++) {
      const length = this.#random.magnitude(LENGTH_MAX)
      const from = this.#random.below(this.#model.size + 1000)
      const to = from + length > this.#model.size ? Infinity : from + length
      const lock = this.locks.take(from, to, false, what)
      if (lock !== undefined) return { from, length, lock }
    }
    return undefined
  }

  /** A range to write and its lock; writes past the end hold the end. */
  #lockWrite(what: string): { from: number; length: number; lock: Lock } | undefined {
    const { sizeMax, mode } = this.#options
    const { size } = this.#model
    const unit = this.#unit
    for (let attempt = 0; attempt < 6; attempt++) {
      const length = Math.ceil(this.#random.magnitude(LENGTH_MAX) / unit) * unit
      let from = Math.floor(this.#random.below(size + 65536) / unit) * unit
      if (mode === 'append') from = size
      if (from + length > sizeMax) {
        if (mode === 'append') return undefined
        continue
      }
      const past = from + length > size
      const lock = this.locks.take(
        past ? Math.min(from, size) : from,
        past ? Infinity : from + length,
        true,
        what,
      )
      if (lock !== undefined) return { from, length, lock }
    }
    return undefined
  }

  /** Runs `work` when nothing else is under way, and lets nothing begin meanwhile. */
  async #alone(work: () => Promise<void>, cancels?: () => Promise<void>): Promise<void> {
    let open = () => {}
    this.#gate = new Promise((resolve) => {
      open = resolve
    })
    try {
      await cancels?.()
      while (this.#active > 1) {
        await new Promise<void>((resolve) => {
          this.#onActive = resolve
        })
      }
      this.#onActive = undefined
      await work()
    } finally {
      this.#gate = undefined
      open()
    }
  }

  /** Waits for an operation; what may not fail now throws. */
  async #outcome(promise: Promise<number>, what: string, allowed: string[] = []): Promise<Outcome> {
    try {
      return { count: await promise }
    } catch (thrown) {
      const error = thrown as Failure
      const code = error.code ?? ''
      const cancelled = ['ABORT_ERR', 'EBADF', 'ERR_URING_CLOSED'].includes(code)
      if (cancelled && this.#buffers.cancelling) {
        this.counts.aborted++
        if (code === 'ERR_URING_CLOSED' && what.startsWith('write')) this.#lost = true
        return { error }
      }
      if (allowed.includes(code)) return { error }
      throw new Wrong(`${what} of ${this.#options.path}: ${error.stack}`, { cause: error })
    }
  }

  async #closing(closed: Promise<void>): Promise<void> {
    try {
      await closed
    } catch (error) {
      const { code } = error as Failure
      // A slow disk: the kernel may hold a write for longer than a close waits.
      if (code !== 'ERR_URING_BUSY') throw error
      this.counts.held++
    }
  }

  // ---- steps ------------------------------------------------------------------------------------

  #position(from: number): number | bigint {
    return this.#random.chance(20) ? BigInt(from) : from
  }

  async #read(wantsArena: boolean): Promise<void> {
    const place = this.#lockRead('read')
    if (place === undefined) return
    const { from, length, lock } = place
    const buffer = this.#buffers.take(this.#queue, this.#file, wantsArena, length)
    const { whole, start, arena } = buffer
    const what = `read of ${length} at ${from}${arena ? ', arena' : ''}`
    whole.fill(GUARD)
    const segments = this.#model.parts(from, from + length)
    const expected = Math.max(0, Math.min(this.#model.size - from, length))
    const promise = this.#file.readAt(this.#buffers.view(buffer, length), this.#position(from))
    const freed = this.#buffers.freeInFlight(this.#queue, this.#file, buffer, what)
    const { count, error } = await this.#outcome(promise, what, freed ? GONE : [])
    this.locks.delete(lock)
    if (error !== undefined && GONE.includes(error.code ?? '')) this.counts.detached++
    if (freed && count !== undefined && expected > 0)
      throw new Wrong(`${what}: freed, yet it resolved`)
    if (freed) return
    if (count !== undefined) {
      this.#expectCount(count, expected, what)
      verify(whole.subarray(start, start + count), this.#options.fileId, from, segments, what)
      this.counts.bytesRead += count
      // A direct read in place may write zeros behind the end of the file.
      const after = this.#file.alignment === undefined ? start + count : start + length
      this.#buffers.verifyGuard(whole.subarray(0, start), what)
      this.#buffers.verifyGuard(whole.subarray(after), what)
    }
    this.#buffers.done(this.#queue, buffer)
  }

  #expectCount(count: number, expected: number, what: string): void {
    if (count !== expected) throw new Wrong(`${what}: ${count} bytes in place of ${expected}`)
  }

  async #bytesAt(): Promise<void> {
    const place = this.#lockRead('bytesAt')
    if (place === undefined) return
    const { from, length, lock } = place
    const segments = this.#model.parts(from, from + length)
    const expected = Math.max(0, Math.min(this.#model.size - from, length))
    let bytes: Buffer | undefined
    const promise = this.#file.bytesAt(this.#position(from), length).then((result) => {
      bytes = result
      return result.length
    })
    const what = `bytesAt of ${length} at ${from}`
    await this.#outcome(promise, what)
    this.locks.delete(lock)
    if (bytes === undefined) return
    this.#expectCount(bytes.length, expected, what)
    const { fileId } = this.#options
    verify(bytes, fileId, from, segments, what)
    this.counts.bytesRead += bytes.length
    if (this.#random.chance(50)) this.#kept.push({ bytes, from, fileId, segments })
    if (this.#kept.length > KEPT_MAX) {
      const index = this.#random.below(this.#kept.length)
      for (const kept of this.#kept.splice(index, 1)) this.#verifyKept(kept)
    }
  }

  /** A result that was kept is what it was, whatever happened since. */
  #verifyKept(kept: { bytes: Buffer; from: number; fileId: number; segments: Segment[] }): void {
    verify(kept.bytes, kept.fileId, kept.from, kept.segments, 'a kept result')
  }

  async #write(wantsArena: boolean): Promise<void> {
    const place = this.#lockWrite('write')
    if (place === undefined) return this.#full()
    const { from, length, lock } = place
    const buffer = this.#buffers.take(this.#queue, this.#file, wantsArena, length)
    const { whole, start, arena } = buffer
    const version = ++this.#version
    fill(whole.subarray(start, start + length), this.#options.fileId, version, from)
    const datasync = this.#random.chance(4)
    const promise = this.#startWrite(this.#buffers.view(buffer, length), from, datasync)
    const what = `write of ${length} at ${from}${arena ? ', arena' : ''}${datasync ? ', datasync' : ''}`
    const freed = this.#buffers.freeInFlight(this.#queue, this.#file, buffer, what)
    const outcome = await this.#outcome(promise, what, freed ? GONE : [])
    this.#written(outcome, from, length, version, what)
    this.locks.delete(lock)
    if (!freed) this.#buffers.done(this.#queue, buffer)
  }

  #startWrite(view: NodeJS.ArrayBufferView, from: number, datasync: boolean): Promise<number> {
    const options = datasync ? { datasync } : undefined
    if (this.#options.mode === 'append') return this.#file.append(view, options)
    return this.#file.writeAt(view, this.#position(from), options)
  }

  /** The model follows: all of it, or the prefix that the error names. */
  #written(outcome: Outcome, from: number, length: number, version: number, what: string): void {
    const { count, error } = outcome
    if (count !== undefined && count !== length) throw new Wrong(`${what}: ${count} written`)
    const written = count ?? error?.bytesWritten ?? 0
    if (written < 0 || written > length) throw new Wrong(`${what}: bytesWritten ${written}`)
    this.#model.write(from, from + written, version)
    this.counts.bytesWritten += written
  }

  /** Appending has filled the file: begin again. */
  #full(): Promise<void> {
    const { mode, sizeMax } = this.#options
    if (mode !== 'append' || this.#model.size < sizeMax * 0.75) return Promise.resolve()
    return this.#alone(() => this.#truncate())
  }

  /** When the buffer goes: at once, within this turn, or in a later one. */
  async #moment(): Promise<'now' | 'later'> {
    const kind = this.#random.below(4)
    if (kind === 0) return 'now'
    if (kind === 1) return await Promise.resolve('now' as const)
    if (kind === 2) await soon()
    else await after(this.#random.below(3))
    return 'later'
  }

  async #readTransferred(): Promise<void> {
    const place = this.#lockRead('read, transferred')
    if (place === undefined) return
    const { from, length, lock } = place
    const target = Buffer.allocUnsafeSlow(length).fill(GUARD)
    const segments = this.#model.parts(from, from + length)
    const expected = Math.max(0, Math.min(this.#model.size - from, length))
    const what = `read of ${length} at ${from}, buffer transferred`
    const promise = this.#outcome(this.#file.readAt(target, from), what, [
      'ERR_URING_BUFFER_DETACHED',
    ])
    const moment = await this.#moment()
    const moved = structuredClone(target, { transfer: [target.buffer as ArrayBuffer] })
    const clone = Buffer.from(moved.buffer, moved.byteOffset, moved.byteLength)
    const outcome = await promise
    this.locks.delete(lock)
    const { fileId } = this.#options
    if (outcome.count !== undefined) {
      this.#expectCount(outcome.count, expected, what)
      if (moment === 'now' && expected > 0) throw new Wrong(`${what}: it resolved`)
      verify(clone.subarray(0, outcome.count), fileId, from, segments, what)
    } else {
      if (outcome.error.code === 'ERR_URING_BUFFER_DETACHED') this.counts.detached++
      // What it brought before the buffer went is right, and nothing was written since.
      const right = firstDifference(
        clone.subarray(0, expected),
        expectedBytes(fileId, from, expected, segments),
      )
      if (moment === 'now' && right > 8) throw new Wrong(`${what}: ${right} bytes were written`)
      this.#buffers.verifyGuard(clone.subarray(right), what)
    }
  }

  async #writeTransferred(): Promise<void> {
    const place = this.#lockWrite('write, transferred')
    if (place === undefined) return this.#full()
    const { from, length, lock } = place
    const source = Buffer.allocUnsafeSlow(length)
    const version = ++this.#version
    fill(source, this.#options.fileId, version, from)
    const what = `write of ${length} at ${from}, buffer transferred`
    const started = this.#startWrite(source, from, this.#random.chance(4))
    const promise = this.#outcome(started, what, GONE)
    await this.#moment()
    const moved = structuredClone(source, { transfer: [source.buffer as ArrayBuffer] })
    moved.fill(GUARD)
    const outcome = await promise
    if (outcome.error?.code === 'ERR_URING_BUFFER_DETACHED') this.counts.detached++
    this.#written(outcome, from, length, version, what)
    this.locks.delete(lock)
  }

  async #small(r: number): Promise<void> {
    const lock = this.locks.take(-1, -1, false, 'nop or sleep') as Lock
    if (r % 3 === 0) this.#queue.flush()
    const work = r % 3 === 1 ? this.#queue.sleep(this.#random.below(5)) : this.#queue.nop()
    await this.#outcome(
      work.then(() => 0),
      'nop or sleep',
    )
    this.locks.delete(lock)
  }

  async #stat(): Promise<void> {
    const { size } = this.#model
    const lock = this.locks.take(size, Infinity, false, 'stat')
    if (lock === undefined) return
    const promise = this.#file.stat().then((stats) => stats.size)
    const { count } = await this.#outcome(promise, 'stat')
    if (count !== undefined && count !== size) throw new Wrong(`stat: ${count} in place of ${size}`)
    this.locks.delete(lock)
  }

  async #sync(r: number): Promise<void> {
    const lock = this.locks.take(-1, -1, false, 'sync') as Lock
    const work = r % 2 === 0 ? this.#file.sync() : this.#file.datasync()
    await this.#outcome(
      work.then(() => 0),
      'sync',
    )
    this.locks.delete(lock)
  }

  async #truncate(): Promise<void> {
    const { sizeMax, mode } = this.#options
    const unit = this.#unit
    const most = mode === 'append' ? this.#model.size / 2 : sizeMax
    const size = Math.floor(this.#random.below(most + 1) / unit) * unit
    const lock = this.locks.take(0, Infinity, true, `truncate to ${size}`)
    if (lock === undefined) throw new Wrong('a truncate is not alone')
    const { error } = await this.#outcome(
      this.#file.truncate(size).then(() => 0),
      'truncate',
    )
    // A cancelled truncate has happened or not; the size says which.
    if (error === undefined) this.#model.truncate(size)
    else this.#lost = true
    this.locks.delete(lock)
  }

  async #reopen(): Promise<void> {
    if (this.#buffers.cancelling) return
    await this.#outcome(
      this.#file.close().then(() => 0),
      'close',
    )
    await this.#openAgain()
  }

  async #openAgain(): Promise<void> {
    const opened = this.#open().then((file) => {
      this.#file = file
      return 0
    })
    await this.#outcome(opened, 'open')
  }

  /** Cancels what the other strands have in flight, by closing the file. */
  async #closeUnderOthers(): Promise<void> {
    if (this.#buffers.cancelling) return
    await this.#alone(
      async () => {
        if (Date.now() < this.#until) this.#buffers.cancelling = false
        await this.#openAgain()
      },
      () => {
        this.#buffers.cancelling = true
        return this.#closing(this.#file.close({ timeoutMs: 0 }))
      },
    )
  }

  /** All of the file, as the queue reads it and as node:fs does. */
  async #verifyWhole(): Promise<void> {
    const { fileId, path } = this.#options
    const { size } = this.#model
    const segments = this.#model.parts(0, size)
    const whole = size === 0 ? Buffer.alloc(0) : await this.#file.bytesAt(0, size + 1)
    if (whole.length !== size) throw new Wrong(`${path}: ${whole.length} bytes in place of ${size}`)
    verify(whole, fileId, 0, segments, 'the whole file')
    const other = readFileSync(path)
    if (other.length !== size) throw new Wrong(`${path} by node:fs: ${other.length}, not ${size}`)
    verify(other, fileId, 0, segments, 'the whole file, by node:fs')
  }
}
