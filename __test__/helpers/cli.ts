// Runs the command line as a user does, in a Node of its own, and looks at what it printed.

import type { ChildProcess } from 'node:child_process'
import fs from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { type ChildOptions, type Ended, runChild } from './child.js'

export const CLI = new URL('../../dist/cli/main.js', import.meta.url)

/** Runs `node-uring` with these arguments; neither colours nor a terminal come from the test. */
export function cli(args: readonly string[], options: ChildOptions = {}): Promise<Ended> {
  const env = { NO_COLOR: undefined, FORCE_COLOR: undefined, ...options.env }
  return runChild(CLI, { ...options, args, env })
}

/** Runs it on a terminal, by script(1). */
export function onTerminal(args: readonly string[]): Promise<Ended> {
  const under = ['sh', '-c', 'script -qec "$*" /dev/null', 'sh']
  return cli(args, { under, env: { TERM: 'xterm' } })
}

/** Runs it on a terminal, and types ctrl-C when `seen` is on the screen. `log` is a file to make. */
export function interruptOnTerminal(
  args: readonly string[],
  seen: string,
  log: string,
): Promise<Ended> {
  const wait = `until grep -q '${seen}' '${log}' 2>/dev/null; do sleep 0.1; done`
  const typing = `{ ${wait}; printf '\\003'; sleep 1; }`
  const under = ['sh', '-c', `${typing} | script -qfec "$*" '${log}'`, 'sh']
  return cli(args, { under, env: { TERM: 'xterm' } })
}

/** Runs a module in the program's own thread, before it: for `cli`. */
export function inside(program: string): ChildOptions {
  return { node: ['--import', `data:text/javascript,${encodeURIComponent(program)}`] }
}

/**
 * Does `act` in the program's own thread as soon as `ready`, both JavaScript: the program cannot be done
 * before, as it could when this process, held up, did it from outside.
 */
export function insideWhen(ready: string, act: string): ChildOptions {
  return inside(`
    import fs from 'node:fs'
    const timer = setInterval(() => {
      if (!(${ready})) return
      clearInterval(timer)
      ${act}
    }, 1).unref()`)
}

/** Sends a signal as soon as `ready`, or after a minute: for {@link ChildOptions.onStart}. */
export function signalWhen(
  ready: (pid: number) => boolean,
  signal: NodeJS.Signals = 'SIGINT',
): (child: ChildProcess) => void {
  return (child) => {
    const pid = child.pid ?? 0
    const wait = async (): Promise<void> => {
      const until = performance.now() + 60_000
      while (!ready(pid) && performance.now() < until) await setTimeout(2)
      child.kill(signal)
    }
    void wait()
  }
}

/** Whether the process has made its ring. By then it looks out for signals, too. */
export function hasRing(pid: number): boolean {
  const links = `/proc/${pid}/fd`
  try {
    return fs.readdirSync(links).some((fd) => {
      return fs.readlinkSync(`${links}/${fd}`).includes('io_uring')
    })
  } catch {
    return false
  }
}

/** Asserts that there is nothing in what was printed that only a terminal understands. */
export function assertPlain(t: ExecutionContext<unknown>, text: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  t.notRegex(text, /[\x00-\x09\x0b-\x1f\x7f]/)
}
