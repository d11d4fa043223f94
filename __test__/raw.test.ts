// The raw functions under everything, called with arbitrary values: nothing that JavaScript can pass
// may crash the process, or keep the engine from doing an honest operation afterwards.

import test from 'ava'
import { assertEnded, childJson, fixture, runChild } from './helpers/child.js'
import { scratch } from './helpers/scratch.js'

interface Counts {
  readonly runs: number
  readonly calls: number
  /** Calls that threw, operations that the engine took, and buffers that it gave. */
  readonly thrown: number
  readonly staged: number
  readonly exposed: number
}

for (const seed of [1, 2]) {
  test(`no arguments to the raw functions crash the process or break the engine (seed ${seed})`, async (t) => {
    t.timeout(90_000)
    const counts = await childJson<Counts>(fixture('raw-calls.mjs'), {
      args: [String(seed), '150', scratch(t, Buffer.alloc(10_000))],
      node: ['--expose-gc'],
      timeoutMs: 60_000,
    })
    t.is(counts.runs, 150)
    // It was not all refused at the first look.
    t.true(
      counts.calls > 5000 && counts.staged > 100 && counts.exposed > 50,
      JSON.stringify(counts),
    )
  })
}

test('an engine that is started with nonsense, twice or never, does not crash', async (t) => {
  t.timeout(30_000)
  const program = `
    import { createRequire } from 'node:module'
    const { Engine } = createRequire(process.cwd() + '/x')('./index.js')
    const good = {
      entries: 8, cqEntries: 16, taskRun: 0, slabBytes: 65536, allocBytes: 1e6, bounceBytes: 1e6,
      resultBytes: 1e6, inlineSmallBytes: 0, inlineAloneBytes: 0, inlineTurnBytes: 0,
      boundedWorkers: 0, unboundedWorkers: 0, register: true,
    }
    const values = [undefined, null, NaN, -1, 0, 1, 2 ** 31, 2 ** 32, 2 ** 53, 1e300, Infinity, '8', {}, true, 8n,
      Symbol('x'), { valueOf() { throw new Error('x') } }]
    let [started, refused, thrown] = [0, 0, 0]
    const attempt = (options, deliver, pairs) => {
      const engine = new Engine()
      try {
        engine.start(options, deliver, pairs) === 0 ? started++ : refused++
      } catch { thrown++ }
      // Whatever came of it, these answer.
      engine.stats(); engine.capabilities(); engine.functions(); engine.setWanted(true)
      engine.takeStat(0); engine.takeOpened(0)
      engine.close(0)
      engine.close(0)
    }
    const pairs = () => new ArrayBuffer(65536)
    for (const name of Object.keys(good))
      for (const value of values) attempt({ ...good, [name]: value }, () => {}, pairs())
    for (const value of [...values, new ArrayBuffer(0), new SharedArrayBuffer(65536), new Uint8Array(65536)]) {
      attempt(good, () => {}, value)
      attempt(good, value, pairs())
      attempt(value, () => {}, pairs())
    }
    // Not made by new, or on something else.
    for (const that of [undefined, {}, Engine.prototype, new Uint8Array(8)])
      for (const name of ['start', 'stats', 'close', 'functions', 'adopt'])
        try { Engine.prototype[name].call(that, 1, 2, 3) } catch { thrown++ }
    // Twice: the second takes the place of the first.
    const engine = new Engine()
    const twice = [engine.start(good, () => {}, pairs()), engine.start(good, () => {}, pairs())]
    engine.close(0)
    console.log(JSON.stringify({ enough: started > 50 && refused > 10 && thrown > 50, twice }))`
  const ended = await runChild(program, { timeoutMs: 25_000 })
  assertEnded(t, ended, { stdout: '{"enough":true,"twice":[0,0]}\n' })
})

for (const [what, pairs, deliver] of [
  ['too small for the completions', 'new ArrayBuffer(64)', '() => {}'],
  [
    'detached by the first completion',
    'pairs',
    '() => { structuredClone(pairs, { transfer: [pairs] }) }',
  ],
  [
    'shrunk',
    '(() => { const b = new ArrayBuffer(65536, { maxByteLength: 65536 }); setImmediate(() => b.resize(8)); return b })()',
    '() => {}',
  ],
] as const) {
  test(`a pairs buffer that is ${what} is never written past its end`, async (t) => {
    t.timeout(30_000)
    const program = `
      import { createRequire } from 'node:module'
      const { Engine } = createRequire(process.cwd() + '/x')('./index.js')
      const good = {
        entries: 1024, cqEntries: 4096, taskRun: 0, slabBytes: 65536, allocBytes: 1e6, bounceBytes: 1e6,
        resultBytes: 1e6, inlineSmallBytes: 0, inlineAloneBytes: 0, inlineTurnBytes: 0,
        boundedWorkers: 0, unboundedWorkers: 0, register: true,
      }
      const pairs = new ArrayBuffer(65536)
      const engine = new Engine()
      engine.start(good, ${deliver}, ${pairs})
      const { stageBare } = engine.functions()
      for (let round = 0; round < 20; round++) {
        for (let slot = 0; slot < 1000; slot++) stageBare(0, slot)
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
      engine.close(0)
      globalThis.gc()
      console.log('alive')`
    const ended = await runChild(program, { node: ['--expose-gc'], timeoutMs: 25_000 })
    assertEnded(t, ended, { stdout: 'alive\n' })
  })
}
