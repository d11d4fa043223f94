// Runs one command for the scripts beside this file: captures all it prints, ends it with its
// whole process group when its time is up or when we are interrupted, and shows what is running
// and for how long. It never throws for a command that fails; callers read `ok`.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

const running = new Set()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    for (const child of running) killGroup(child)
    process.exit(1)
  })
}

function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // ESRCH: the group is already gone, which is what we wanted.
  }
}

/**
 * Runs `command` from the project's top folder until it has ended and its output is closed.
 *
 * @param {string[]} command program and arguments
 * @param {{ onLine?: (line: string, stream: 'stdout' | 'stderr') => void, timeoutMs?: number,
 *   env?: Record<string, string> }} [options] `env` is added to our own
 * @returns {Promise<{ ok: boolean, lines: string[] }>} `lines` in the order they arrived
 */
export function run([program, ...args], { onLine, timeoutMs = 1_800_000, env } = {}) {
  return new Promise((resolve) => {
    const lines = []
    // A group of its own: a test's own children must not survive it.
    const child = spawn(program, args, {
      detached: true,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let timedOut = false
    const timer = setTimeout(() => {
      timedOut = true
      killGroup(child)
      // Somebody outside the group may still hold the pipes; we wait no longer for them.
      setTimeout(() => {
        child.stdout.destroy()
        child.stderr.destroy()
      }, 1000).unref()
    }, timeoutMs)

    for (const stream of ['stdout', 'stderr']) {
      createInterface({ input: child[stream] }).on('line', (line) => {
        lines.push(line)
        onLine?.(line, stream)
      })
    }
    function settle(code, signal) {
      clearTimeout(timer)
      running.delete(child)
      if (timedOut) lines.push(`${program}: ended after ${seconds(timeoutMs)}`)
      else if (signal) lines.push(`${program}: ended by ${signal}`)
      resolve({ ok: code === 0 && !timedOut, lines })
    }
    child.once('error', (error) => {
      lines.push(`${program}: ${error.message}`)
      settle(1, null)
    })
    child.once('spawn', () => {
      running.add(child)
      child.once('close', settle)
    })
  })
}

/**
 * Shows `title` at once and what became of it afterwards; on a terminal with a clock in between.
 *
 * @param {string} title
 * @param {() => string} [status] how far it is, asked once a second on a terminal
 * @returns {(outcome: string) => number} ends it; returns the milliseconds that it took
 */
export function progress(title, status = () => '') {
  const start = performance.now()
  const elapsed = () => seconds(performance.now() - start)
  let timer
  if (process.stdout.isTTY) {
    const draw = () =>
      process.stdout.write(`\r\x1b[K${[title, status(), elapsed()].filter(Boolean).join('  ')}`)
    draw()
    timer = setInterval(draw, 1000)
  } else {
    console.log(title)
  }
  return (outcome) => {
    clearInterval(timer)
    const line = `  ${outcome}  ${elapsed()}`
    console.log(process.stdout.isTTY ? `\r\x1b[K${title}\n${line}` : line)
    return performance.now() - start
  }
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(1)} s`
}
