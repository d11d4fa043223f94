/**
 * The files of the fallback: descriptors by handles that are never used twice. A descriptor is closed
 * when its file is out of the table and no request of node:fs has it: its number may be another file's
 * right after.
 */
import { fstatSync, readFileSync } from 'node:fs'
import { ERRNO } from '../errno.js'
import { isAppend, mayRead, mayWrite, O_RDONLY, O_RDWR, O_WRONLY } from '../flags.js'
import type { Opened } from '../native.js'
import { errnoOf } from './statx.js'
import { closeQuietly, StreamLine } from './streams.js'
import type { Timers } from './timers.js'

/** The reads or the writes of a file. */
export interface Direction {
  /** Whether they have no position: found out by the first ones, by ESPIPE. */
  stream: boolean | undefined
  /** How many of the first ones are out, and those that came back with ESPIPE, by their number. */
  probes: number
  readonly early: { number: number; go: () => void }[]
  /** Of a stream: where they wait for each other. */
  line: StreamLine | undefined
}

/** An open file. */
export interface OpenFile {
  readonly fd: number
  /** What it was opened with. */
  readonly flags: number
  /** Writes have no position: the system puts them at the end. */
  readonly append: boolean
  /** Of its reads and its writes: a seq_file has positions for reads alone. */
  readonly reads: Direction
  readonly writes: Direction
  /** Operations staged or under way on it. */
  holds: number
  /** Out of the table: the last operation closes it. */
  gone: boolean
}

/** The file table of one queue. */
export class FileTable {
  readonly #byHandle = new Map<number, OpenFile>()
  readonly #descriptors = new Set<number>()
  #next = 1

  get size(): number {
    return this.#byHandle.size
  }

  get(handle: number): OpenFile | undefined {
    return this.#byHandle.get(handle)
  }

  /** Takes a descriptor that was opened with `flags` into the table. */
  add(fd: number, flags: number): Opened {
    const handle = this.#next++
    this.#byHandle.set(handle, {
      fd,
      flags,
      append: isAppend(flags),
      reads: { stream: undefined, probes: 0, early: [], line: undefined },
      writes: { stream: undefined, probes: 0, early: [], line: undefined },
      holds: 0,
      gone: false,
    })
    this.#descriptors.add(fd)
    return { file: handle, fd }
  }

  /** See {@link Backend.adopt}. */
  adopt(fd: number): number {
    return this.#descriptors.has(fd) ? -ERRNO.EEXIST : this.add(fd, descriptorFlags(fd)).file
  }

  /** Takes a file out of the table; whoever asked closes the descriptor. */
  remove(handle: number): void {
    const file = this.#byHandle.get(handle)
    if (file === undefined) return
    this.#byHandle.delete(handle)
    this.#descriptors.delete(file.fd)
    file.gone = true
    file.reads.line?.end()
    file.writes.line?.end()
  }

  /** Ends the waiting of all streams: nothing more is tried. */
  endStreams(): void {
    for (const { reads, writes } of this.#byHandle.values()) {
      reads.line?.end()
      writes.line?.end()
    }
  }

  /** Closes every file, those that a request of node:fs has when that is over. */
  end(): void {
    for (const [handle, file] of [...this.#byHandle]) {
      this.remove(handle)
      if (file.holds === 0) closeQuietly(file.fd)
    }
  }
}

/** Where reads, or writes, of a stream wait for each other. */
export function lineOf(file: OpenFile, reads: boolean, timers: Timers): StreamLine {
  const of = reads ? file.reads : file.writes
  const [mode, open] = reads ? [O_RDONLY, mayRead(file.flags)] : [O_WRONLY, mayWrite(file.flags)]
  of.line ??= new StreamLine(file.fd, mode, open, timers)
  return of.line
}

/**
 * The flags that a descriptor was opened with, or a negated errno. Node has no fcntl(2), so Linux
 * tells by proc_pid_fdinfo(5). Elsewhere a descriptor that is open is taken for O_RDWR.
 */
export function descriptorFlags(fd: number): number {
  try {
    fstatSync(fd)
  } catch (error) {
    return errnoOf(error)
  }
  if (process.platform !== 'linux') return O_RDWR
  try {
    const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))
    return flags === null ? O_RDWR : Number.parseInt(flags[1] as string, 8)
  } catch {
    return O_RDWR
  }
}
