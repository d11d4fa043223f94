// Each example runs as its header prints it, ends in time, and does what it says.

import fs from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { assertEnded, type ChildOptions, type Ended, runChild } from './helpers/child.js'
import { folder } from './helpers/scratch.js'
import test from './helpers/test.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const examples = path.join(root, 'examples')

/** What each says when it is run without arguments. */
const SAYS: Readonly<Record<string, RegExp>> = {
  'copy.ts': /^\S+ -> \S+copy: \d+ bytes copied, synced and compared, \d+ ms for the copy/,
  'durable-log.ts':
    /^1001 records on stable storage, by \d{1,2} fdatasyncs\n1000 records recovered, the torn one cut off, and the log goes on: 1001 records\n$/,
  'key-value.ts': /^20000 keys stored and found again; 20000 values read by key and compared/,
  'quickstart.ts': /^4096 4096 \{\n {2}samples: 10000,/,
  'start.ts': /256 MiB written, synced and read back through io_uring: every byte as it was/,
  'static-server.ts': /^111 answers as they should be; 0 files open, 0 reads under way\n$/,
  'worker-pool.js': /: \d+ pieces, \d+ bytes, hashed by \d+ threads in \d+ ms \([0-9a-f]{16}\)\n$/,
}

/** Runs an example; `cwd` is where its own folder may not be. */
function example(name: string, options: ChildOptions = {}, cwd = root): Promise<Ended> {
  const tsx = name.endsWith('.ts') ? ['--import', import.meta.resolve('tsx')] : []
  return runChild(new URL(`../examples/${name}`, import.meta.url), {
    node: tsx,
    timeoutMs: 90_000,
    ...options,
    before: `cd '${cwd}'`,
  })
}

test('every example is run here', (t) => {
  const names = fs.readdirSync(examples).filter((name) => name !== 'lib')
  t.deepEqual(names.sort(), Object.keys(SAYS).sort())
})

for (const [name, says] of Object.entries(SAYS)) {
  test.serial(`examples/${name} runs as its header prints it, and ends by itself`, async (t) => {
    t.timeout(100_000)
    const text = fs.readFileSync(path.join(examples, name), 'utf8')
    const command = name === 'start.ts' ? 'npm start' : `node ${tsxOf(name)}examples/${name}`
    t.true(
      text.startsWith('/**\n') && text.includes(`\n *   ${command}`),
      `${name} prints ${command}`,
    )
    const place = folder(t)
    const ended = await example(name, {}, place)
    assertEnded(t, ended)
    t.regex(ended.stdout, says)
    const left = name === 'quickstart.ts' ? ['data.bin'] : []
    t.deepEqual(fs.readdirSync(place), left)
  })
}

function tsxOf(name: string): string {
  return name.endsWith('.ts') ? '--import tsx ' : ''
}

test("the README's example is examples/quickstart.ts", (t) => {
  const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8')
  const [, code = ''] = /```ts\n(import \{ Queue \}.*?)```/s.exec(readme) ?? []
  const text = fs.readFileSync(path.join(examples, 'quickstart.ts'), 'utf8')
  const [, program = ''] = /\*\/\n(.*)/s.exec(text) ?? []
  // Comments are aligned in the README.
  t.is(code.replaceAll(/ +\/\//g, ' //'), program)
})

test.serial('the durable log and the key-value store go on in a file that is there', async (t) => {
  t.timeout(240_000)
  const place = folder(t)
  for (const name of ['durable-log.ts', 'key-value.ts']) {
    const args = [path.join(place, name)]
    assertEnded(t, await example(name, { args }))
    const again = await example(name, { args })
    assertEnded(t, again)
    t.regex(again.stdout, name === 'durable-log.ts' ? /goes on: 2002 records/ : /^20000 keys/)
  }
})

test.serial(
  'the static server outlives clients that leave in the middle, and ends cleanly on SIGTERM',
  async (t) => {
    t.timeout(100_000)
    const place = folder(t)
    fs.writeFileSync(path.join(place, 'large'), Buffer.alloc(32 << 20, 'x'))
    fs.writeFileSync(path.join(place, 'small.txt'), 'small')
    const asked: string[] = []
    const ended = await example('static-server.ts', {
      args: [place, '--port', '0'],
      timeoutMs: 90_000,
      onLine: async (line, child) => {
        const address = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0] ?? ''
        for (let i = 0; i < 5; i++) await leave(`${address}/large`)
        const { status, headers, body } = await fetch(`${address}/small.txt`).then(
          async (answer) => ({
            status: answer.status,
            headers: answer.headers,
            body: await answer.text(),
          }),
        )
        asked.push(`${status} ${headers.get('content-type')} ${body}`)
        asked.push(String((await fetch(`${address}/`)).status))
        child.kill('SIGTERM')
      },
    })
    assertEnded(t, ended)
    t.deepEqual(asked, ['200 text/plain; charset=utf-8 small', '404'])
  },
)

/** Asks for a file, takes its first bytes and leaves. */
async function leave(url: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const request = http.get(url, (response) => {
      response.once('data', () => {
        request.destroy()
        resolve()
      })
    })
    request.on('error', reject)
  })
  await setTimeout(20)
}
