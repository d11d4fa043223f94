// biome-ignore-all lint/suspicious/noControlCharactersInRegex: they are what is looked for
// What the command line draws: widths, bars, tables, numbers; and all of it on a terminal of its own.

import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { Distribution, draw } from '../src/cli/distribution.ts'
import {
  bar,
  gauge,
  hasColor,
  Progress,
  painter,
  table,
  widthIn,
  wrap,
} from '../src/cli/terminal.ts'
import { about, bytes, count, duration, parseBytes } from '../src/cli/units.ts'
import { interruptOnTerminal, onTerminal } from './helpers/cli.js'
import { folder } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const terminal = (columns = 80) => {
  const written: string[] = []
  return { written, isTTY: true, columns, write: (text: string) => written.push(text) }
}

test('numbers have three digits and the unit in which they are short', (t) => {
  t.deepEqual([0.4, 158, 999, 1030, 12_500_000, 3.2e9].map(duration), [
    ...['0.40 ns', '158 ns', '999 ns', '1.03 µs', '12.5 ms', '3.20 s'],
  ])
  t.deepEqual([0, 1, 512, 1000, 1024, 1 << 20, 1.5 * 2 ** 30, 3 * 2 ** 20 + 1].map(bytes), [
    ...['0 B', '1 B', '512 B', '0.98 KiB', '1 KiB', '1 MiB', '1.50 GiB', '3.00 MiB'],
  ])
  t.is(count(1_234_567.8), '1,234,568')
  t.deepEqual([5, 999, 1000, 12_345, 999_600].map(about), [
    '5.00',
    '999',
    '1.00k',
    '12.3k',
    '1.00M',
  ])
})

test('sizes are read as they are written, and nothing else is', (t) => {
  const good = { 0: 0, 4096: 4096, '64K': 65_536, '1m': 1 << 20, '1MiB': 1 << 20, '2GB': 2 ** 31 }
  for (const [text, value] of Object.entries(good)) t.is(parseBytes(text), value, text)
  for (const text of ['', '-1', '1.5K', 'K', '4 K', '4KK', '1e3', '999999999T']) {
    t.is(parseBytes(text), undefined, text)
  }
})

test('a bar is as wide as its part, and what is not 0 is seen', (t) => {
  t.is(bar(1, 10), '█'.repeat(10))
  t.is(bar(0.5, 10), '█'.repeat(5))
  t.is(bar(0.05, 10), '▌')
  t.is(bar(1e-9, 10), '▏')
  t.is(bar(0, 10), '')
  fc.assert(
    fc.property(fc.double({ min: -1, max: 2, noNaN: true }), fc.nat(100), (part, width) => {
      return (
        widthIn(gauge(part, width)) === width && widthIn(bar(part, width)) <= Math.max(1, width)
      )
    }),
  )
  t.pass()
})

test('a table is aligned though some of its cells are coloured', (t) => {
  const paint = painter(terminal())
  const rows = [
    ['name', 'rate'],
    [paint('red', 'a'), '1'],
    ['long name', paint('green', '1,000')],
  ]
  t.is(
    table(rows, new Set([1])).replaceAll(/\x1b\[\d+m/g, ''),
    'name        rate\na              1\nlong name  1,000',
  )
})

test('text is wrapped between words, none of which is lost', (t) => {
  const words = fc.array(fc.stringMatching(/^[a-z]{1,12}$/), { minLength: 1 })
  fc.assert(
    fc.property(words, fc.integer({ min: 12, max: 40 }), (words, width) => {
      const lines = wrap(words.join(' '), width)
      return lines.join(' ') === words.join(' ') && lines.every((line) => line.length <= width)
    }),
  )
  t.deepEqual(wrap('a word-that-is-too-long b', 5), ['a', 'word-that-is-too-long', 'b'])
  t.deepEqual(wrap('run `a b c d`, once or (`e f`).', 9), [
    'run',
    '`a b c d`,',
    'once or',
    '(`e f`).',
  ])
})

test('colours are for terminals that can, unless the environment says otherwise', (t) => {
  const pipe = { write: () => {} }
  t.true(hasColor(terminal(), {}))
  t.false(hasColor(terminal(), { TERM: 'dumb' }))
  t.false(hasColor(terminal(), { NO_COLOR: '1' }))
  t.true(hasColor(terminal(), { NO_COLOR: '' }))
  t.true(hasColor(terminal(), { NO_COLOR: '1', FORCE_COLOR: '1' }))
  t.false(hasColor(pipe, {}))
  t.true(hasColor(pipe, { FORCE_COLOR: '1' }))
  t.false(hasColor(terminal(), { FORCE_COLOR: '0' }))
})

test('the progress line is never wider than the terminal, and is taken away', (t) => {
  const stream = terminal(20)
  const progress = new Progress(stream)
  progress.show((width) => `${'x'.repeat(width)} and more`)
  progress.show(() => 'too soon')
  progress.clear()
  progress.clear()
  t.deepEqual(stream.written, [`\r\x1b[K${'x'.repeat(19)}`, '\r\x1b[K'])
})

test('without a terminal there is no progress line', (t) => {
  const stream = { ...terminal(), isTTY: false }
  const progress = new Progress(stream)
  progress.show(() => 'seen by nobody')
  progress.clear()
  t.deepEqual(stream.written, [])
})

test('a distribution loses no sample, and its rows follow on each other', (t) => {
  const samples = fc.array(fc.double({ min: 1, max: 1e11, noNaN: true }), { minLength: 1 })
  fc.assert(
    fc.property(samples, (samples) => {
      const distribution = new Distribution()
      for (const sample of samples) distribution.add(sample)
      const rows = distribution.rows()
      const total = rows.reduce((sum, row) => sum + row.count, 0)
      const joined = rows.every((row, i) => i === 0 || row.fromNs === rows[i - 1]?.toNs)
      const within = (rows[0]?.fromNs ?? 0) <= Math.min(...samples) * (1 + 1e-9)
      const lines = draw(rows, 80, (_, text) => text).split('\n')
      const narrow = lines.every((line) => widthIn(line) <= 80)
      return total === samples.length && joined && within && rows.length <= 17 && narrow
    }),
  )
  t.deepEqual(new Distribution().rows(), [])
})

// ---- on a terminal --------------------------------------------------------------------------------

const scripted = needs(test, { commands: ['script'] })
/** What is on the screen in the end: what was rewritten is gone. */
const screen = (text: string) =>
  text.split('\n').map((line) => line.replaceAll('\r\n', '\n').split('\x1b[K').at(-1)?.trim() ?? '')

scripted('on a terminal doctor is coloured, and nothing else is in its output', async (t) => {
  const { code, stdout } = await onTerminal(['doctor'])
  t.is(code, 0)
  t.regex(stdout, /\x1b\[32m✓\x1b\[39m ring/)
  t.notRegex(stdout.replaceAll(/\x1b\[\d+m|\r\n/g, ''), /[\x00-\x1f]/)
})

scripted('on a terminal nop shows how it goes, and takes that away', async (t) => {
  const { code, stdout } = await onTerminal(['nop', '-c', '64', '--count', '400000'])
  t.is(code, 0)
  t.regex(stdout, /\r\x1b\[K[\d.]+[kM]? of 400k nops {3}[\d.]+[kM]\/s {3}p50 /)
  const lines = screen(stdout)
  t.false(lines.some((line) => line.includes('of 400k')))
  t.true(lines.some((line) => line.includes('400,000 nops, 64 at once')))
  t.notRegex(stdout, /\x1b\[\?25l/, 'the cursor is not hidden')
})

scripted(
  'ctrl-C typed on a terminal ends nop with its summary, on a line of its own',
  async (t) => {
    const log = path.join(folder(t), 'log')
    const { code, stdout } = await interruptOnTerminal(['nop'], 'p50', log)
    t.is(code, 130)
    const lines = screen(stdout).map((line) => line.replaceAll(/\x1b\[\d+m/g, ''))
    t.true(
      lines.some((line) => /^[\d,]+ nops, one at a time \(interrupted\)$/.test(line)),
      stdout,
    )
    t.false(lines.some((line) => /p50 \d/.test(line)))
  },
)

scripted('ctrl-C typed on a terminal leaves nothing of bench, and an empty line', async (t) => {
  const place = folder(t)
  const args = ['bench', path.join(place, 'made'), '--length', '1M', '--ms', '60000']
  const { code, stdout } = await interruptOnTerminal(args, '×1', path.join(place, 'log'))
  t.is(code, 130)
  t.is(screen(stdout).join(''), '', stdout)
  t.deepEqual(fs.readdirSync(place), ['log'])
})

scripted('on a terminal bench shows a bar, and takes that away', async (t) => {
  const file = path.join(folder(t), 'made')
  const quick = ['--rounds', '1', '--ms', '500', '--sizes', '4K', '--depths', '1', '--length', '1M']
  const { code, stdout } = await onTerminal(['bench', file, ...quick])
  t.is(code, 0)
  t.regex(stdout, /\r\x1b\[K[█░]+ +\d+% {2}4 KiB ×1 {2}/)
  t.false(screen(stdout).some((line) => line.includes('░')))
})
