/**
 * The operations on paths that every queue has. Each is the constructor of the same name in `op`, run by
 * itself; before the kernel that brought it, the call of node:fs.
 */
import type { LimitOptions } from './limits.js'
import { type MakeSettings, type PathLike, paths, type StatSettings } from './op-paths.js'
import type { Operations } from './operations.js'
import { run } from './run.js'
import type { Stats } from './stats.js'

/** Options of {@link Queue.stat}. */
export interface StatOptions extends LimitOptions, StatSettings {}
/** Options of {@link Queue.mkdir}. */
export interface MakeOptions extends LimitOptions, MakeSettings {}

/** What a queue does with paths. They reject with the errno of the call, and name the path. */
export class Paths {
  readonly #operations: Operations

  /** @internal */
  constructor(operations: Operations) {
    this.#operations = operations
  }

  /**
   * Attributes of what is at the path, in the shape of `fs.Stats`; with `followLinks: false` of a
   * symbolic link itself, as lstat(2). statx(2), Linux 5.6.
   */
  stat(path: PathLike, options?: StatOptions): Promise<Stats> {
    return run(this.#operations, paths.stat(path, options), options)
  }

  /** Gives a file another name, in place of what has it. rename(2); before Linux 5.11 by node:fs. */
  rename(from: PathLike, to: PathLike, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, paths.rename(from, to), options))
  }

  /** Gives a file a second name. link(2); before Linux 5.15 by node:fs. */
  link(existing: PathLike, path: PathLike, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, paths.link(existing, path), options))
  }

  /**
   * Makes a symbolic link at `path` that leads to `target`, which need not be there. symlink(2); before
   * Linux 5.15 by node:fs.
   */
  symlink(target: PathLike, path: PathLike, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, paths.symlink(target, path), options))
  }

  /** Takes a name away, and the file with its last one. unlink(2); before Linux 5.11 by node:fs. */
  unlink(path: PathLike, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, paths.unlink(path), options))
  }

  /** Takes an empty directory away. rmdir(2); before Linux 5.11 by node:fs. */
  rmdir(path: PathLike, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, paths.rmdir(path), options))
  }

  /** Makes a directory; its parent must be there. mkdir(2); before Linux 5.15 by node:fs. */
  mkdir(path: PathLike, options?: MakeOptions): Promise<void> {
    return done(run(this.#operations, paths.mkdir(path, options), options))
  }
}

/** The same without a value. */
export async function done(promise: Promise<unknown>): Promise<void> {
  await promise
}
