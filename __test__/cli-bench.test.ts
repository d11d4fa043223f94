// `node-uring bench`: what it makes and removes, what it refuses to write into, and what it tells.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { chart } from '../src/cli/bench/chart.ts'
import { assertEnded } from './helpers/child.js'
import { assertPlain, cli, hasRing, insideWhen, signalWhen } from './helpers/cli.js'
import { fifo, folder, scratch } from './helpers/scratch.js'

const QUICK = ['--rounds', '1', '--ms', '5']
const SMALL = [...QUICK, '--sizes', '4K', '--depths', '1,8', '--length', '1M']

interface Told {
  file: string
  lengthBytes: number
  operation: string
  direct: boolean
  cells: {
    sizeBytes: number
    depth: number
    sides: { name: string; opsPerSecond: number; bytesPerSecond: number }[]
  }[]
}

test('bench of a file that is not there makes it, reads it on four sides, and removes it', async (t) => {
  const file = path.join(folder(t), 'made')
  const ended = await cli(['bench', file, ...SMALL, '--json'])
  assertEnded(t, ended)
  const told = JSON.parse(ended.stdout) as Told
  const { lengthBytes, operation, direct, cells } = told
  t.deepEqual(
    { file: told.file, lengthBytes, operation, direct },
    { file, lengthBytes: 1 << 20, operation: 'read', direct: false },
  )
  const names = ['node-uring', 'fs/promises', 'fs.read']
  t.deepEqual(
    cells.map(({ sizeBytes, depth, sides }) => [
      sizeBytes,
      depth,
      ...sides.map((side) => side.name),
    ]),
    [
      [4096, 1, ...names, 'fs.readSync'],
      [4096, 8, ...names],
    ],
  )
  for (const { opsPerSecond, bytesPerSecond } of cells.flatMap(({ sides }) => sides)) {
    t.true(opsPerSecond > 0)
    t.is(bytesPerSecond, opsPerSecond * 4096)
  }
  t.false(fs.existsSync(file))
})

test('bench of a file that is there reads it and leaves it as it was', async (t) => {
  const content = Buffer.alloc(70_000, 'content')
  const file = scratch(t, content)
  const ended = await cli(['bench', file, ...QUICK, '--sizes', '4K,64K', '--depths', '2'])
  assertEnded(t, ended)
  assertPlain(t, ended.stdout)
  t.regex(ended.stdout, /^reads of .*, 68\.4 KiB, through the page cache\n/)
  t.regex(ended.stdout, /^block +node-uring +fs\/promises +fs\.read +fs\.readSync$/m)
  t.regex(ended.stdout, /^64 KiB ×2 +[\d.]+[kM]?\/s .*×/m)
  t.true(fs.readFileSync(file).equals(content))
})

test('bench --write into a file that is there is refused, and done with --force', async (t) => {
  const content = Buffer.alloc(1 << 16, 'content')
  const file = scratch(t, content)
  const args = ['bench', file, ...QUICK, '--write', '--sizes', '4K', '--depths', '4']
  assertEnded(t, await cli(args), { code: 1, stdout: '', stderr: /exists.*--force/ })
  t.true(fs.readFileSync(file).equals(content))
  const ended = await cli([...args, '--force', '--json'])
  assertEnded(t, ended)
  t.is((JSON.parse(ended.stdout) as Told).operation, 'write')
  const written = fs.readFileSync(file)
  t.is(written.length, content.length)
  t.false(written.equals(content))
})

test('bench --write of a file of its own leaves none, with O_DIRECT too', async (t) => {
  // The temporary folder may be in memory, where O_DIRECT is not to be had.
  const place = folder(t, path.resolve('target'))
  for (const more of [[], ['--direct']]) {
    const ended = await cli([
      'bench',
      path.join(place, 'made'),
      ...SMALL,
      '--write',
      ...more,
      '--json',
    ])
    assertEnded(t, ended)
    t.is((JSON.parse(ended.stdout) as Told).direct, more.length > 0)
    t.deepEqual(fs.readdirSync(place), [])
  }
})

test('what bench cannot use it says in a sentence', async (t) => {
  const short = scratch(t, Buffer.alloc(100))
  const stderr = /has 100 B, which is no block of 4 KiB/
  assertEnded(t, await cli(['bench', short, '--sizes', '4K']), { code: 1, stdout: '', stderr })
  const none = path.join(folder(t), 'no', 'folder')
  const missing = await cli(['bench', none, ...SMALL])
  assertEnded(t, missing, { code: 1, stdout: '', stderr: /ENOENT.*open '.*no\/folder'/ })
  const direct = await cli(['bench', '/proc/version', ...QUICK, '--direct'])
  assertEnded(t, direct, { code: 1, stdout: '', stderr: /takes no direct I\/O/ })
  const device = await cli(['bench', '/dev/null', ...QUICK])
  assertEnded(t, device, { code: 1, stdout: '', stderr: /neither a file nor a block device/ })
})

test('bench looks at its files before it measures: a FIFO, and a chart in its place or in none', async (t) => {
  const stream = fifo(t)
  const file = path.join(path.dirname(stream), 'file')
  fs.writeFileSync(file, 'some content')
  const cases: [string[], number, RegExp][] = [
    [[stream], 1, /fifo is neither a file nor a block device\./],
    [[file, '--sizes', '4', '--svg', file], 2, /is the FILE itself\./],
    [[file, '--sizes', '4', '--svg', `${file}.d/x.svg`], 1, /ENOENT: no such file or directory/],
  ]
  for (const [args, code, said] of cases) {
    const ended = await cli(['bench', ...args])
    t.is(ended.code, code)
    t.regex(ended.stderr, said)
    t.is(ended.stdout, '')
  }
  t.is(fs.readFileSync(file, 'utf8'), 'some content')
})

test('ctrl-C in the middle of bench removes its file and ends with 130', async (t) => {
  const file = path.join(folder(t), 'made')
  // Each side of a round would take a minute.
  const args = ['bench', file, '--sizes', '4K', '--depths', '8', '--length', '1M', '--ms', '60000']
  let made = 0
  const measuring = (pid: number): boolean => {
    const size = fs.statSync(file, { throwIfNoEntry: false })?.size
    if (made === 0 && hasRing(pid) && size === 1 << 20) made = performance.now()
    return made > 0 && performance.now() - made > 500
  }
  const onStart = signalWhen(measuring)
  const ended = await cli([...args, '--json'], { onStart, timeoutMs: 90_000 })
  assertEnded(t, ended, { code: 130, stdout: '' })
  t.false(fs.existsSync(file))
})

test('ctrl-C while bench makes its file removes that', async (t) => {
  const file = path.join(folder(t), 'made')
  const making = `fs.statSync('${file}', { throwIfNoEntry: false })?.size > 0`
  const signalling = insideWhen(making, `process.kill(process.pid, 'SIGINT')`)
  const ended = await cli(['bench', file, '--length', '8G'], { ...signalling, timeoutMs: 90_000 })
  assertEnded(t, ended, { code: 130, stdout: '' })
  t.false(fs.existsSync(file))
})

test('bench --svg writes a chart that needs nothing else', async (t) => {
  const place = folder(t)
  const svg = path.join(place, 'out.svg')
  const ended = await cli(['bench', path.join(place, 'made'), ...SMALL, '--svg', svg])
  assertEnded(t, ended)
  t.regex(ended.stdout, /The chart is in .*out\.svg\./)
  const text = fs.readFileSync(svg, 'utf8')
  t.regex(text, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"/)
  t.regex(text, /<\/svg>\n$/)
  t.notRegex(text, /href|url\(|<script|<image/)
  // A bar for each side of each cell, the legend's four, and the ground.
  t.is(text.match(/<rect /g)?.length, 4 + 3 + 4 + 1)
})

test('the longest bar of a group is its fastest, and words are escaped', (t) => {
  const side = (name: string, opsPerSecond: number) => ({ name, opsPerSecond, bytesPerSecond: 1 })
  const group = { sizeBytes: 4096, depth: 1, sides: [side('ours', 50), side('theirs', 100)] }
  const svg = chart('reads of <a> & b', [group], [])
  const widths = [...svg.matchAll(/width="([\d.]+)" height="13"/g)].map(([, width]) =>
    Number(width),
  )
  t.is(widths.length, 2)
  t.is(widths[0]! * 2, widths[1]!)
  t.true(svg.includes('reads of &lt;a&gt; &amp; b'))
})
