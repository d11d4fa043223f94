import test from 'ava'
import { bytesAround, isAligned, remainder } from '../src/alignment.js'

/** Positions at every size of number, around what a 32-bit or a double operation gets wrong. */
const POSITIONS = [0, 1, 31, 32, 53].flatMap((bits) =>
  [-4097, -512, -1, 0, 1, 511, 4096].map((by) => 2 ** bits + by),
)
/** The last two are not powers of two: extents of a real-time XFS of three blocks, and of three sectors. */
const BLOCKS = [1, 512, 4096, 65536, 2 ** 30, 2 ** 31, 12288, 1536]

test('the remainder is exact for every position and block', (t) => {
  const positions = POSITIONS.filter((position) => position >= 0 && Number.isSafeInteger(position))
  t.true(positions.length > 25)
  for (const block of BLOCKS) {
    for (const position of positions) {
      const exact = Number(BigInt(position) % BigInt(block))
      t.is(remainder(position, block), exact, `${position} % ${block}`)
      t.is(remainder(BigInt(position), block), exact, `${position}n % ${block}`)
    }
    const last = 2n ** 63n - 1n
    t.is(remainder(last, block), Number(last % BigInt(block)))
  }
})

test('the blocks around a range are all that it touches', (t) => {
  const file = { blockBytes: 512, memoryBytes: 4 }
  t.is(bytesAround(file, 0, 512), 512)
  t.is(bytesAround(file, 511, 1), 512)
  t.is(bytesAround(file, 511, 2), 1024)
  t.is(bytesAround(file, 2 ** 32 + 1, 512), 1024)
  t.is(bytesAround({ blockBytes: 0, memoryBytes: 1 }, 7, 5), 5, 'any other file has none')
})

test('in place goes what begins and ends on blocks, in memory and in the file', (t) => {
  const file = { blockBytes: 512, memoryBytes: 4 }
  t.true(isAligned(file, 8, 1024, 512))
  t.false(isAligned(file, 2, 1024, 512))
  t.false(isAligned(file, 8, 1000, 512))
  t.false(isAligned(file, 8, 1024, 2 ** 32 + 256))
})
