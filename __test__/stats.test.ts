import fs, { type BigIntStats } from 'node:fs'
import test from 'ava'
import type { DirectAlignment } from '../src/errors.ts'
import { directAlignment, exactStats, STATX_BYTES, STATX_DIOALIGN, Stats } from '../src/stats.ts'

interface Captured {
  /** What statx(2) gave on Linux 6.18, x86_64, ext4, with mask 0x2fff; zeros follow. */
  statx: string
  /** What fs.lstatSync said of the same file at the same time. */
  stats: Record<string, number>
  dates: Record<string, string>
  is: string
  direct: DirectAlignment | undefined
}

/** One file of each kind; `file` is sparse, 5 GiB + 1 long, and last read before 1970. */
const CAPTURED: Record<string, Captured> = {
  file: {
    statx:
      'ff3f000000100000000000000000000001000000e803000070110100a081000051c0990000000000' +
      '010000400100000010000000000000007438300000000000feffffffffffffff8017b42c00000000' +
      '15ec046b0000000056cb89370000000016ec046b0000000058c72d010000000000f1536500000000' +
      '15cd5b07000000000000000000000000fe000000000000001b00000000000000000200000002',
    stats: {
      dev: 65024,
      mode: 33184,
      nlink: 1,
      uid: 1000,
      gid: 70000,
      rdev: 0,
      blksize: 4096,
      ino: 10076241,
      size: 5368709121,
      blocks: 16,
      atimeMs: -1250,
      mtimeMs: 1700000000123.4568,
      ctimeMs: 1795484694019.7773,
      birthtimeMs: 1795484693931.7773,
    },
    dates: {
      atime: '1969-12-31T23:59:58.750Z',
      mtime: '2023-11-14T22:13:20.123Z',
      ctime: '2026-11-24T01:44:54.020Z',
      birthtime: '2026-11-24T01:44:53.932Z',
    },
    is: 'isFile',
    direct: { memoryBytes: 512, offsetBytes: 512 },
  },
}

const METHODS = ['isFile', 'isDirectory', 'isBlockDevice', 'isCharacterDevice', 'isSymbolicLink']
METHODS.push('isFIFO', 'isSocket')

/** The struct of a file, packed from what node:fs knows of it to the nanosecond. */
function pack(stats: BigIntStats): Uint8Array {
  const bytes = new Uint8Array(STATX_BYTES)
  const view = new DataView(bytes.buffer)
  const [u16, u32, u64] = [view.setUint16, view.setUint32, view.setBigUint64]
  const put = (set: (at: number, value: never, little: boolean) => void, at: number, n: unknown) =>
    set.call(view, at, n as never, true)
  put(u32, 0x04, Number(stats.blksize))
  put(u32, 0x10, Number(stats.nlink))
  put(u32, 0x14, Number(stats.uid))
  put(u32, 0x18, Number(stats.gid))
  put(u16, 0x1c, Number(stats.mode))
  put(u64, 0x20, stats.ino)
  put(u64, 0x28, stats.size)
  put(u64, 0x30, stats.blocks)
  const times = [stats.atimeNs, stats.birthtimeNs, stats.ctimeNs, stats.mtimeNs]
  for (const [index, ns] of times.entries()) {
    const fraction = ((ns % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n
    view.setBigInt64(0x40 + index * 16, (ns - fraction) / 1_000_000_000n, true)
    put(u32, 0x48 + index * 16, Number(fraction))
  }
  for (const [at, device] of [
    [0x80, stats.rdev],
    [0x88, stats.dev],
  ] as const) {
    put(u32, at, Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n)))
    put(u32, at + 4, Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n)))
  }
  return bytes
}

function unhex(statx: string): Uint8Array {
  return Buffer.from(statx.padEnd(STATX_BYTES * 2, '0'), 'hex')
}

/** A struct in which one field is set. */
function withField(at: number, value: bigint): Uint8Array {
  const bytes = new Uint8Array(STATX_BYTES)
  new DataView(bytes.buffer).setBigUint64(at, value, true)
  return bytes
}

for (const [kind, { statx, stats, dates, is, direct }] of Object.entries(CAPTURED)) {
  test(`what the kernel said of a ${kind} reads as fs.lstat read it`, (t) => {
    const ours = new Stats(unhex(statx))
    t.deepEqual({ ...ours }, stats as never)
    t.deepEqual(Object.keys(ours), Object.keys(stats))
    for (const [name, iso] of Object.entries(dates)) {
      t.is((ours[name as keyof Stats] as Date).toISOString(), iso)
    }
    const truths = METHODS.filter((name) => (ours[name as keyof Stats] as () => boolean)())
    t.deepEqual(truths, [is])
    t.deepEqual(directAlignment(unhex(statx)), direct)
  })
}

test('files of this machine read as fs.lstat reads them', (t) => {
  for (const path of [
    '/',
    '/dev/null',
    '/proc/self',
    '/proc/self/exe',
    '/etc/passwd',
    '/dev/ptmx',
  ]) {
    const real = fs.lstatSync(path)
    const ours = new Stats(pack(fs.lstatSync(path, { bigint: true })))
    // /proc makes its times when it is asked.
    const skipped = path.startsWith('/proc') ? /time/ : /atime/
    for (const name of Object.keys(ours) as (keyof Stats)[]) {
      if (!skipped.test(name)) t.is(ours[name], real[name as keyof fs.Stats], `${name} of ${path}`)
    }
    for (const name of METHODS as (keyof Stats)[]) {
      t.is((ours[name] as () => boolean)(), (real[name as keyof fs.Stats] as () => boolean)())
    }
  }
})

test('a socket is a socket', (t) => {
  t.true(new Stats(withField(0x1c, BigInt(fs.constants.S_IFSOCK | 0o755))).isSocket())
})

test('a device has the number that makedev(3) gives it, however large its parts', (t) => {
  // By glibc, through Python's os.makedev.
  const numbers = [
    [254n, 0n, 65024n],
    [4095n, 255n, 1048575n],
    [5000n, 70000n, 17592472537200n],
    [2147483647n, 2147483647n, 9223363240761753599n],
  ] as const
  for (const [major, minor, expected] of numbers) {
    const stats = new Stats(withField(0x80, (minor << 32n) | major))
    t.is(stats.rdev, Number(expected))
    t.is(stats.dev, 0)
  }
})

test('a number past 2^53 is rounded to the nearest, as fs.stat does', (t) => {
  for (const ino of [2n ** 64n - 1n, 2n ** 53n + 1n, 2n ** 53n + 3n, 0x8000_0000_0000_0401n]) {
    t.is(new Stats(withField(0x20, ino)).ino, Number(ino))
  }
})

test('what tells files apart is exact past 2^53', (t) => {
  for (const ino of [2n ** 53n + 1n, 2n ** 63n + 41n, 2n ** 64n - 1n]) {
    const { size } = exactStats(withField(0x28, ino))
    t.deepEqual([exactStats(withField(0x20, ino)).ino, size], [ino, ino])
  }
})

test('a date is a new one each time, so that changing it changes nothing', (t) => {
  const stats = new Stats(new Uint8Array(STATX_BYTES))
  stats.mtime.setFullYear(1999)
  t.is(stats.mtime.getTime(), 0)
})

test.serial(
  'instants are exact to the nanosecond, and undefined where there is no Temporal',
  (t) => {
    const times = {
      atime: 1_795_484_693_999_999_999n,
      mtime: -1n,
      ctime: -(2n ** 62n),
      birthtime: 0n,
    }
    const asked = Object.fromEntries(Object.entries(times).map(([name, ns]) => [`${name}Ns`, ns]))
    const ours = new Stats(pack({ ...fs.statSync('/', { bigint: true }), ...asked } as BigIntStats))
    const whole = globalThis as { Temporal?: unknown }
    const before = Object.getOwnPropertyDescriptor(globalThis, 'Temporal')
    t.teardown(() => {
      delete whole.Temporal
      if (before !== undefined) Object.defineProperty(globalThis, 'Temporal', before)
    })
    delete whole.Temporal
    t.is(ours.atimeInstant, undefined)
    class Instant {
      readonly nanoseconds: bigint
      constructor(nanoseconds: bigint) {
        this.nanoseconds = nanoseconds
      }
    }
    whole.Temporal = { Instant }
    for (const [name, ns] of Object.entries(times)) {
      const instant = ours[`${name}Instant` as keyof Stats]
      t.true(instant instanceof Instant)
      t.is((instant as Instant).nanoseconds, ns, name)
    }
  },
)

test('stats are an instance of fs.Stats, and nothing warns of it', async (t) => {
  const warnings: Error[] = []
  const listen = (warning: Error) => warnings.push(warning)
  process.on('warning', listen)
  t.teardown(() => process.off('warning', listen))
  t.true(new Stats(new Uint8Array(STATX_BYTES)) instanceof fs.Stats)
  await new Promise((resolve) => setImmediate(resolve))
  t.deepEqual(warnings, [])
})

test('the struct may lie anywhere in its memory, and is not kept', (t) => {
  const [{ statx, stats }] = Object.values(CAPTURED) as [Captured]
  const memory = new Uint8Array(1000).fill(0xff)
  memory.set(unhex(statx), 37)
  const ours = new Stats(memory.subarray(37, 37 + STATX_BYTES))
  memory.fill(0)
  t.deepEqual({ ...ours }, stats as never)
})

test('memory shorter than the struct is refused', (t) => {
  t.throws(() => new Stats(new Uint8Array(STATX_BYTES - 1)), { instanceOf: RangeError })
})

test('a file that takes no direct I/O is told from one of which nothing is known', (t) => {
  t.deepEqual(directAlignment(withField(0, BigInt(STATX_DIOALIGN))), {
    memoryBytes: 0,
    offsetBytes: 0,
  })
  t.is(directAlignment(withField(0, 0x0fffn)), undefined)
})
