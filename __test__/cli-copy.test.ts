// `node-uring copy`: what arrives, what is refused, and that nothing is left of what did not arrive.

import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { assertEnded, each } from './helpers/child.js'
import { assertPlain, cli, insideWhen } from './helpers/cli.js'
import { fifo, folder, tmpfs } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const MIB = 1 << 20

/** Bytes of which no two pieces are the same. */
function numbered(length: number): Buffer {
  const numbers = new Uint32Array(Math.ceil(length / 4)).map((_, i) => i * 2654435761)
  return Buffer.from(numbers.buffer).subarray(0, length)
}

/** JavaScript for {@link insideWhen}: the length of a copy that is being made in a folder. */
function copied(place: string): string {
  const names = `fs.readdirSync('${place}').filter((name) => name.startsWith('.node-uring-'))`
  return `${names}.map((name) => fs.statSync('${place}/' + name).size)[0]`
}

test('files of no byte, one byte, 3 MiB + 1 and 40 MiB are copied byte for byte', async (t) => {
  t.timeout(100_000)
  const place = folder(t)
  await each([0, 1, 3 * MIB + 1, 40 * MIB], async (length) => {
    const [source, target] = [path.join(place, `${length}`), path.join(place, `${length}.copy`)]
    const content = numbered(length)
    fs.writeFileSync(source, content)
    const ended = await cli(['copy', source, target])
    assertEnded(t, ended)
    assertPlain(t, ended.stdout)
    t.true(fs.readFileSync(target).equals(content), `${length} bytes`)
    const digest = createHash('sha256').update(content).digest('hex')
    t.true(ended.stdout.startsWith(`${source} → ${target}: `))
    t.true(ended.stdout.endsWith(`verified\nsha256 ${digest}\n`), ended.stdout)
  })
  t.is(fs.readdirSync(place).length, 8, 'no temporary file is left')
})

test('where there is no ring the copy is made by node:fs', async (t) => {
  const place = folder(t)
  const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
  fs.writeFileSync(source, numbered(3 * MIB + 1))
  const env = { NAPI_RS_NATIVE_LIBRARY_PATH: path.join(place, 'none.node') }
  assertEnded(t, await cli(['copy', source, target], { env }))
  t.true(fs.readFileSync(target).equals(fs.readFileSync(source)))
})

test('a name as long as names can be is no hindrance', async (t) => {
  const place = folder(t)
  const source = path.join(place, 'ä'.repeat(127))
  fs.writeFileSync(source, 'x')
  const target = path.join(place, 'n'.repeat(255))
  assertEnded(t, await cli(['copy', source, target]))
  t.is(fs.readFileSync(target, 'utf8'), 'x')
})

test('the copy has the permissions of its source, whatever the umask, and no setuid', async (t) => {
  const place = folder(t)
  await each([0o640, 0o777, 0o444, 0o4755], async (mode) => {
    const source = path.join(place, mode.toString(8))
    fs.writeFileSync(source, 'x')
    fs.chmodSync(source, mode)
    assertEnded(t, await cli(['copy', source, `${source}.copy`], { before: 'umask 027' }))
    t.is(fs.statSync(`${source}.copy`).mode & 0o7777, mode & 0o777)
  })
})

test('what is there is overwritten with --force only, and as a whole', async (t) => {
  const place = folder(t)
  const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
  fs.writeFileSync(source, 'new')
  fs.writeFileSync(target, 'old and longer')
  const before = fs.statSync(target).ino
  const refused = await cli(['copy', source, target])
  assertEnded(t, refused, { code: 1, stdout: '', stderr: /target exists; --force overwrites it\./ })
  t.is(fs.readFileSync(target, 'utf8'), 'old and longer')
  assertEnded(t, await cli(['copy', '--force', source, target]))
  t.is(fs.readFileSync(target, 'utf8'), 'new')
  t.not(fs.statSync(target).ino, before, 'a file of its own took the name')
  t.deepEqual(fs.readdirSync(place).sort(), ['source', 'target'])
})

test('into a folder a copy gets the name of its source', async (t) => {
  const place = folder(t)
  fs.writeFileSync(path.join(place, 'source'), 'x')
  fs.mkdirSync(path.join(place, 'into'))
  assertEnded(t, await cli(['copy', path.join(place, 'source'), path.join(place, 'into')]))
  t.is(fs.readFileSync(path.join(place, 'into', 'source'), 'utf8'), 'x')
})

test('what cannot be copied is refused in a sentence, and nothing is made', async (t) => {
  t.timeout(100_000)
  const place = folder(t)
  const at = (name: string) => path.join(place, name)
  fs.writeFileSync(at('source'), 'x')
  fs.mkdirSync(at('folder'))
  fs.mkdirSync(at('full'))
  fs.mkdirSync(path.join(at('full'), 'source'))
  fs.linkSync(at('source'), at('link'))
  fs.symlinkSync(at('nowhere'), at('dangling'))
  const before = fs.readdirSync(place, { recursive: true }).sort()
  const cases: [args: string[], said: RegExp][] = [
    [[at('none'), at('new')], /ENOENT: no such file or directory, open '.*none'/],
    [[at('folder'), at('new')], /folder is no regular file\./],
    [
      [at('source'), at('none/new')],
      /none\/new cannot be written: ENOENT: no such file or directory\.\n/,
    ],
    [[at('source'), at('none/')], /There is no folder .*none\/\./],
    [[at('source'), ''], /TARGET has no name\./],
    [[at('source'), at('source')], /are the same file\./],
    [['--force', at('source'), at('link')], /are the same file\./],
    [[at('source'), at('dangling')], /dangling is no regular file\./],
    [['--force', at('source'), at('full')], /full\/source is a folder\./],
    [['--force', at('source'), '/dev/null'], /null is no regular file\./],
    [['/proc/version', at('new')], /is longer than its size says/],
  ]
  await each(cases, async ([args, said]) => {
    assertEnded(
      t,
      await cli(['copy', ...args]),
      { code: 1, stdout: '', stderr: said },
      args.join(' '),
    )
  })
  t.deepEqual(fs.readdirSync(place, { recursive: true }).sort(), before)
})

test('a FIFO is refused, and does not hang', async (t) => {
  const source = fifo(t)
  const ended = await cli(['copy', source, path.join(path.dirname(source), 'new')])
  assertEnded(t, ended, { code: 1, stdout: '', stderr: /is no regular file\./ })
})

for (const force of [false, true]) {
  const how = force ? 'over an old file, which stays' : 'leaves nothing'
  test(`ctrl-C in the middle of a copy ends with 130 and ${how}`, async (t) => {
    const place = folder(t)
    const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
    // Holes take no time to make, and 4 GiB of them some time to copy.
    fs.writeFileSync(source, '')
    fs.truncateSync(source, 4096 * MIB)
    if (force) fs.writeFileSync(target, 'old')
    const args = ['copy', ...(force ? ['--force'] : []), source, target]
    const signalling = insideWhen(`${copied(place)} > 0`, `process.kill(process.pid, 'SIGINT')`)
    const ended = await cli(args, { ...signalling, timeoutMs: 90_000 })
    assertEnded(t, ended, { code: 130, stdout: '' })
    t.deepEqual(fs.readdirSync(place), force ? ['source', 'target'] : ['source'])
    if (force) t.is(fs.readFileSync(target, 'utf8'), 'old')
  })
}

test('a source that changes while it is copied gives no copy', async (t) => {
  const place = folder(t)
  const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
  fs.writeFileSync(source, '')
  fs.truncateSync(source, 512 * MIB)
  const changing = insideWhen(`${copied(place)} > 0`, `fs.appendFileSync('${source}', 'more')`)
  const ended = await cli(['copy', source, target], { ...changing, timeoutMs: 90_000 })
  assertEnded(t, ended, { code: 1, stdout: '', stderr: /changed while|is longer than/ })
  t.deepEqual(fs.readdirSync(place), ['source'])
})

test('a target that appears while its copy is made is not overwritten', async (t) => {
  const place = folder(t)
  const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
  fs.writeFileSync(source, '')
  fs.truncateSync(source, 384 * MIB)
  const appearing = `fs.writeFileSync('${target}', 'of somebody else')`
  const beside = insideWhen(`${copied(place)} > 0`, appearing)
  const ended = await cli(['copy', source, target], { ...beside, timeoutMs: 90_000 })
  assertEnded(t, ended, { code: 1, stdout: '', stderr: /target exists by now; --force/ })
  t.is(fs.readFileSync(target, 'utf8'), 'of somebody else')
  t.deepEqual(fs.readdirSync(place).sort(), ['source', 'target'])
})

test('a copy that is not what was read is found out, and thrown away', async (t) => {
  const place = folder(t)
  const [source, target] = [path.join(place, 'source'), path.join(place, 'target')]
  const length = 256 * MIB
  fs.writeFileSync(source, '')
  fs.truncateSync(source, length)
  // The last piece is written. It is read back last of all.
  const spoiling = insideWhen(
    `${copied(place)} === ${length}`,
    `const name = fs.readdirSync('${place}').find((name) => name.startsWith('.node-uring-'))
    const fd = fs.openSync('${place}/' + name, 'r+')
    fs.writeSync(fd, 'X', ${length - 1})
    fs.closeSync(fd)`,
  )
  const ended = await cli(['copy', source, target], { ...spoiling, timeoutMs: 90_000 })
  assertEnded(t, ended, { code: 1, stdout: '', stderr: /The copy differs: / })
  t.deepEqual(fs.readdirSync(place), ['source'])
})

needs(test, { root: true })('a disk that is full ends the copy with its errno', async (t) => {
  const small = tmpfs(t, 2 * MIB)
  const source = path.join(folder(t), 'source')
  fs.writeFileSync(source, numbered(8 * MIB))
  const ended = await cli(['copy', source, path.join(small, 'target')])
  assertEnded(t, ended, {
    code: 1,
    stdout: '',
    stderr: /target cannot be written: ENOSPC: no space left on device\.\n/,
  })
  t.deepEqual(fs.readdirSync(small), [])
})
