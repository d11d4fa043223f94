/** Which bytes of a file are under way: many may read what nobody writes, one writes what nobody else has. */

export interface Lock {
  from: number
  to: number
  writes: boolean
  sinceMs: number
  what: string
}

export class Locks extends Set<Lock> {
  /** Takes `from` up to `to`; undefined when others have some of it. */
  take(from: number, to: number, writes: boolean, what: string): Lock | undefined {
    for (const lock of this) {
      if ((writes || lock.writes) && from < lock.to && lock.from < to) return undefined
    }
    const lock = { from, to, writes, sinceMs: Date.now(), what: `${what}, ${to - from} at ${from}` }
    this.add(lock)
    return lock
  }

  /** What is under way the longest. */
  oldest(): Lock | undefined {
    let oldest: Lock | undefined
    for (const lock of this) if (lock.sinceMs < (oldest?.sinceMs ?? Infinity)) oldest = lock
    return oldest
  }
}
