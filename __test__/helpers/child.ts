// Runs a program in a Node of its own: for what changes the whole process (its user, its limits),
// needs flags, ends it, or might take the test's process down. Every child has a deadline.

import { type ChildProcess, spawn } from 'node:child_process'
import { setTimeout as after } from 'node:timers'
import { fileURLToPath } from 'node:url'
import type { ExecutionContext } from 'ava'

/** How a program ended. */
export interface Ended {
  /** The exit code; null when a signal ended it. */
  readonly code: number | null
  /** SIGKILL at the deadline. */
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
  /** Whether it had to be killed at its deadline. */
  readonly late: boolean
  /** How long it ran, in milliseconds. */
  readonly ms: number
}

/** How a program is run. */
export interface ChildOptions {
  /** Node's own arguments. */
  readonly node?: readonly string[]
  /** The program's arguments: `process.argv` from 1 on, from 2 on for a fixture. */
  readonly args?: readonly string[]
  /** A shell command to run first, in the shell that becomes Node: `ulimit -f 8`. */
  readonly before?: string
  /** A command that runs Node: `['strace', '-f']`. */
  readonly under?: readonly string[]
  /** More environment variables; undefined removes one. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** The program is CommonJS: it has `require`. Not for fixtures, whose names say what they are. */
  readonly commonjs?: boolean
  /** Called when it has been started, so that a test can signal it. */
  readonly onStart?: (child: ChildProcess) => void
  /** Called with each line that it prints, so that a test can answer. */
  readonly onLine?: (line: string, child: ChildProcess) => void
  readonly timeoutMs?: number
}

/** The URL of a program in `__test__/fixtures`. */
export function fixture(name: string): URL {
  return new URL(`../fixtures/${name}`, import.meta.url)
}

/**
 * Runs `program`: a fixture, or the text of a module that imports `node-uring` as anybody does.
 * At the deadline it and all that it started are killed.
 */
export function runChild(program: string | URL, options: ChildOptions = {}): Promise<Ended> {
  const { node = [], args = [], before = ':', under = [], env = {}, commonjs = false } = options
  const what =
    program instanceof URL
      ? [fileURLToPath(program)]
      : [`--input-type=${commonjs ? 'commonjs' : 'module'}`, '--eval', program, '--']
  const command = [...under, process.execPath, ...node, ...what, ...args]
  const started = performance.now()
  // From the project's root, where `node-uring` names this package; as a group of its own, so that
  // the deadline reaches everybody in it.
  const child = spawn('sh', ['-c', `${before}; exec "$@"`, 'sh', ...command], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    detached: true,
  })
  const [stdout, stderr]: [string[], string[]] = [[], []]
  child.stdout.setEncoding('utf8').on('data', (text: string) => stdout.push(text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => stderr.push(text))
  if (options.onLine !== undefined) lines(child, options.onLine)
  options.onStart?.(child)
  let late = false
  const timer = after(() => {
    late = true
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
  }, options.timeoutMs ?? 90_000)
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      const ms = performance.now() - started
      resolve({ code, signal, stdout: stdout.join(''), stderr: stderr.join(''), late, ms })
    })
  })
}

function lines(child: ChildProcess, onLine: (line: string, child: ChildProcess) => void): void {
  let rest = ''
  child.stdout?.on('data', (text: string) => {
    const [...whole] = (rest + text).split('\n')
    rest = whole.pop() ?? ''
    for (const line of whole) onLine(line, child)
  })
}

/** Runs a program that prints JSON, and gives that; rejects when it ended in another way. */
export async function childJson<T>(program: string | URL, options?: ChildOptions): Promise<T> {
  const ended = await runChild(program, options)
  if (ended.code !== 0 || ended.stdout === '') throw new Error(`The program ${story(ended)}`)
  return JSON.parse(ended.stdout) as T
}

/** What `fixtures/kept-results.mjs` tells: results that it kept, those given away and those copied. */
export interface KeptResults {
  readonly results: number
  readonly givenBytes: number
  readonly copiedBytes: number
}

/** How a program is expected to end. */
export interface Expected {
  /** Default 0. */
  readonly code?: number | null
  readonly signal?: NodeJS.Signals | null
  /** All that it prints. */
  readonly stdout?: string
  /** What is to be found on its standard error. Default: nothing is printed there. */
  readonly stderr?: RegExp
}

/** Asserts that a program ended as expected, before its deadline; on failure tells all it said. */
export function assertEnded(
  t: ExecutionContext<unknown>,
  ended: Ended,
  { code = 0, signal = null, stdout, stderr = /^$/ }: Expected = {},
  what = 'it',
): void {
  const holds =
    !ended.late &&
    ended.code === code &&
    ended.signal === signal &&
    (stdout === undefined || ended.stdout === stdout) &&
    stderr.test(ended.stderr)
  t.true(holds, `${what} ${story(ended)}`)
}

/** How a program ended, for a message. */
export function story({ code, signal, stdout, stderr, late, ms }: Ended): string {
  const end = late ? 'was killed at its deadline' : `ended with ${code ?? signal}`
  return `${end} after ${Math.round(ms)} ms; it said ${JSON.stringify(stdout)}, ${stderr || 'no error'}`
}

/**
 * Runs `work` on each item, `atOnce` at a time. A test that starts hundreds of programs at once
 * would measure its own load.
 */
export async function each<T>(
  items: readonly T[],
  work: (item: T) => Promise<void>,
  atOnce = 3,
): Promise<void> {
  const rest = items.values()
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (const item of rest) await work(item)
    }),
  )
}
