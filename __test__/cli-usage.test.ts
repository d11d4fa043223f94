// The command line as a whole: help, versions, what is not understood, colours and pipes.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { assertEnded, each, runChild } from './helpers/child.js'
import { assertPlain, CLI, cli } from './helpers/cli.js'

const COMMANDS = ['doctor', 'nop', 'bench', 'copy']
const { version, bin } = JSON.parse(
  fs.readFileSync(new URL('../package.json', import.meta.url), 'utf8'),
) as { version: string; bin: Record<string, string> }

test('the package has one program, which is there and can be executed', (t) => {
  t.deepEqual(bin, { 'node-uring': 'dist/cli/main.js' })
  t.is(fileURLToPath(CLI), fileURLToPath(new URL(`../${bin['node-uring']}`, import.meta.url)))
  const { status, stdout } = spawnSync(fileURLToPath(CLI), ['--version'], { encoding: 'utf8' })
  t.deepEqual({ status, stdout }, { status: 0, stdout: `${version}\n` })
})

test('--help tells every command, and each command has a help and a version of its own', async (t) => {
  t.timeout(100_000)
  const ended = await cli(['--help'])
  assertEnded(t, ended)
  for (const name of COMMANDS) t.regex(ended.stdout, new RegExp(`^  ${name} `, 'm'))
  assertEnded(t, await cli(['--version']), { stdout: `${version}\n` })
  await each(COMMANDS, async (name) => {
    const help = await cli([name, '--help'])
    assertEnded(t, help)
    t.regex(help.stdout, new RegExp(`^node-uring ${name}: .+\\n\\nUsage: npx node-uring ${name}`))
    assertPlain(t, help.stdout)
    assertEnded(t, await cli([name, '--version']), { stdout: `${version}\n` })
  })
})

test('no help is wider than a terminal', async (t) => {
  t.timeout(100_000)
  await each(['', ...COMMANDS], async (name) => {
    const { stdout } = await cli([...(name === '' ? [] : [name]), '--help'])
    const widest = Math.max(...stdout.split('\n').map((line) => line.length))
    t.true(widest <= 80, `${name}: ${widest}`)
  })
})

test('what is not understood ends with exit code 2 and a sentence that says what', async (t) => {
  t.timeout(100_000)
  const cases: [args: string[], sentence: string][] = [
    [[], 'A command is missing.'],
    [['fly'], "There is no command 'fly'. The commands are doctor, nop, bench, copy."],
    [['--fly'], "There is no option '--fly'. The commands are doctor, nop, bench, copy."],
    [['doctor', '--fly'], "Unknown option '--fly'."],
    [['doctor', 'me'], "There is one argument too many: 'me'."],
    [['nop', '--count'], "Option '-n, --count <value>' argument missing."],
    [['nop', '--count', '0'], "--count must be an integer from 1 to 1000000000000, and is '0'."],
    [['nop', '-c', '1.5'], "--concurrency must be an integer from 1 to 65536, and is '1.5'."],
    [['bench'], 'FILE is missing.'],
    [['bench', 'x', '--sizes', '4Q'], '--sizes must be a size (4096, 64K, 1M) from 1 to'],
    [['bench', 'x', '--depths', '1,,2'], "--depths must be an integer from 1 to 4096, and is ''."],
    [['bench', 'x', '--sizes', '64M', '--depths', '64'], '64 blocks of 64 MiB at once are more'],
    [['bench', 'x', '--direct', '--sizes', '5000'], '--direct wants --sizes that are multiples'],
    [['copy', 'one'], 'TARGET is missing.'],
    [['copy', 'one', 'two', 'three'], "There is one argument too many: 'three'."],
  ]
  await each(cases, async ([args, sentence]) => {
    const ended = await cli(args)
    assertEnded(t, ended, { code: 2, stdout: '', stderr: /^node-uring/ }, args.join(' '))
    t.true(ended.stderr.includes(`: ${sentence}`), ended.stderr)
    t.regex(ended.stderr, /\nTry 'node-uring( \w+)? --help'\.\n$/)
    assertPlain(t, ended.stderr)
  })
})

test('what comes after -- is an argument and no option', async (t) => {
  const stderr = /ENOENT: no such file or directory, open '--help'/
  assertEnded(t, await cli(['copy', '--', '--help', 'x']), { code: 1, stdout: '', stderr })
})

test('output that is piped has colours only with FORCE_COLOR, which goes before NO_COLOR', async (t) => {
  t.timeout(100_000)
  const cases = [
    [{}, false],
    [{ NO_COLOR: '1' }, false],
    [{ FORCE_COLOR: '1' }, true],
    [{ FORCE_COLOR: '0' }, false],
    [{ FORCE_COLOR: '1', NO_COLOR: '1' }, true],
  ] as const
  await each(cases, async ([env, colored]) => {
    const { code, stdout } = await cli(['doctor'], { env })
    t.is(code, 0)
    t.is(stdout.includes('\x1b['), colored, JSON.stringify(env))
    if (!colored) assertPlain(t, stdout)
  })
})

test('a reader that has gone ends the program without a word', async (t) => {
  // It is written to until true(1) has gone, and only then is the program begun.
  const gone = `trap '' PIPE; while printf x; do :; done 2>/dev/null; trap - PIPE`
  const under = ['sh', '-c', `{ ${gone}; "$@"; echo "ended with $?" >&2; } | true`, 'sh']
  const ended = await runChild(CLI, { args: ['doctor', '--json'], under })
  assertEnded(t, ended, { stdout: '', stderr: /^ended with 141\n$/ })
})

test('output that cannot be written is told of in a sentence', async (t) => {
  for (const command of ['doctor', '--version']) {
    const under = ['sh', '-c', 'exec "$@" > /dev/full', 'sh']
    const ended = await cli([command], { under })
    t.is(ended.code, 1)
    t.regex(ended.stderr, /^node-uring: the output cannot be written: ENOSPC: .*\n$/)
  }
})
