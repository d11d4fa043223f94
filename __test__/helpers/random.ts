// Reproducible randomness: the same seed gives the same numbers and the same bytes everywhere.

/** Numbers that look random and are not. */
export interface Random {
  /** An integer from 0 to `below` - 1. */
  below(below: number): number
  /** So many bytes. */
  bytes(length: number): Buffer
}

/** The sequence of a seed (mulberry32). */
export function random(seed: number): Random {
  let state = seed >>> 0
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return (mixed ^ (mixed >>> 14)) >>> 0
  }
  return {
    below: (below) => Math.floor((next() / 2 ** 32) * below),
    bytes(length) {
      // Words at a time, so that a test's time goes into what it tests.
      const words = new Uint32Array(Math.ceil(length / 4))
      for (let i = 0; i < words.length; i++) words[i] = next()
      return Buffer.from(words.buffer, 0, length)
    },
  }
}

/** `length` bytes that depend on the seed. */
export function pattern(length: number, seed: number = length): Buffer {
  return random(seed).bytes(length)
}
