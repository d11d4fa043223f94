// A Docker daemon of a test's own, from Debian's packages, with nothing installed: no network, no
// storage driver that needs a kernel's help. Needs root. Its default seccomp profile is the real one.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { Missing, unpacked } from '../../scripts/guest/debian.js'
import { ownRuntime, ROOT } from '../../scripts/guest/system.js'
import { folder, type Teardown } from './scratch.js'
import type { Requirements } from './skip.js'

/** Where each program is; bookworm's runc works with the control groups of old and new. */
function programs(): string {
  const of = (suite: 'bookworm' | 'trixie', name: string, at: string): string =>
    path.join(unpacked({ suite, architecture: 'amd64', name }), at)
  return [
    of('trixie', 'docker.io', 'usr/sbin'),
    of('trixie', 'docker.io', 'usr/bin'),
    of('trixie', 'docker-cli', 'usr/bin'),
    of('trixie', 'containerd', 'usr/bin'),
    of('bookworm', 'runc', 'usr/sbin'),
  ].join(':')
}

/** For `needs`: whether the packages are here, or could be fetched just now. */
export function docker(): NonNullable<Requirements['that']> {
  try {
    programs()
    return { holds: true, reason: '' }
  } catch (error) {
    if (!(error instanceof Missing)) throw error
    return { holds: false, reason: error.message }
  }
}

export class Docker {
  readonly #folder: string
  readonly #env: NodeJS.ProcessEnv

  private constructor(at: string) {
    this.#folder = at
    this.#env = {
      PATH: `${programs()}:/usr/sbin:/usr/bin:/sbin:/bin`,
      DOCKER_HOST: `unix://${at}/socket`,
    }
  }

  /** A daemon that runs until the test ends. */
  static async start(t: Teardown): Promise<Docker> {
    const daemon = new Docker(folder(t))
    const at = (name: string): string => path.join(daemon.#folder, name)
    const nothing = ['--bridge=none', '--iptables=false', '--ip6tables=false']
    const child = spawn(
      'dockerd',
      [
        ...[...nothing, '--userland-proxy=false', '--storage-driver=vfs'],
        ...[`--data-root=${at('data')}`, `--exec-root=${at('exec')}`, `--pidfile=${at('pid')}`],
        `--host=unix://${at('socket')}`,
      ],
      { env: daemon.#env, stdio: ['ignore', 'ignore', fs.openSync(at('log'), 'w')] },
    )
    t.teardown(() => stopped(child))
    for (const deadline = Date.now() + 60_000; ; await after(200)) {
      try {
        daemon.run('version')
        return daemon
      } catch (error) {
        if (Date.now() < deadline && child.exitCode === null) continue
        throw new Error(`no daemon: ${fs.readFileSync(at('log'), 'utf8')}`, { cause: error })
      }
    }
  }

  /** Runs the command line; gives what it prints. */
  run(...args: string[]): string {
    const options = { env: this.#env, encoding: 'utf8', stdio: 'pipe', timeout: 120_000 } as const
    return execFileSync('docker', args, options)
  }

  /** An image with this Node, its libraries, and this package in /app. Gives its name. */
  image(): string {
    const root = path.join(this.#folder, 'root')
    const put = (place: string, source: string): void => {
      const at = path.join(root, place)
      fs.mkdirSync(path.dirname(at), { recursive: true })
      fs.cpSync(source, at, { recursive: true, dereference: true })
    }
    const { node, libraries, binding } = ownRuntime()
    put('bin/node', node)
    for (const [place, source] of libraries) put(place, source)
    for (const name of ['package.json', 'index.js', 'dist', path.basename(binding)]) {
      put(path.join('app/node_modules/node-uring', name), path.join(ROOT, name))
    }
    fs.mkdirSync(path.join(root, 'tmp'))
    const archive = path.join(this.#folder, 'root.tar')
    execFileSync('tar', ['-C', root, '-cf', archive, '.'])
    this.run('import', archive, 'node-uring')
    return 'node-uring'
  }
}

/** Ends the daemon, which ends its containerd, and waits for it: its folder is to be removed. */
async function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return
  const exit = once(child, 'exit')
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
  await exit
  clearTimeout(timer)
}
