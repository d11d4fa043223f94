/**
 * A guest in qemu, without KVM: boots a kernel with a first root in memory, runs a program there
 * under Node as PID 1's only child, passes on each line that it prints, and ends with its exit code.
 * `kill()` is a power cut: what the guest had not written to its drives is gone.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { cpio, type Entry, file } from './cpio.js'
import { Missing } from './debian.js'
import {
  baseArchive,
  type KernelName,
  kernelImage,
  ownRuntime,
  packageEntries,
  type Runtime,
} from './system.js'

/** How a guest is made and what runs in it. */
export interface GuestOptions {
  readonly kernel: KernelName
  /** The text of a module, that imports `node-uring` as anybody does. */
  readonly program: string
  readonly args?: readonly string[]
  /** Shell commands to run before it; there is busybox. One that fails ends the guest. */
  readonly before?: string
  /** Drives, /dev/nvme0n1 and on: each a value of qemu's `-drive`, such as `file=x,format=raw`. */
  readonly drives?: readonly string[]
  /** Words for the kernel's command line, such as `nvme.poll_queues=1`. */
  readonly kernelArguments?: readonly string[]
  /** Called with each line that the guest prints. */
  readonly onLine?: (line: string, guest: Guest) => void
  /** Which Node, and which binding. Default: those of this machine. */
  readonly runtime?: Runtime
  readonly timeoutMs?: number
}

/** How a guest ended. */
export interface GuestEnd {
  /** The program's exit code; undefined when the guest did not come so far. */
  readonly code: number | undefined
  /** All that it printed, the program's lines and the kernel's. */
  readonly lines: readonly string[]
  /** Whether it was killed at its deadline. */
  readonly late: boolean
  readonly ms: number
}

export interface Guest {
  /** Cuts the power: SIGKILL to qemu. */
  kill(): void
  readonly ended: Promise<GuestEnd>
}

const EXIT = 'guest: exit '
const MEMORY_MIB = 1024
/** panic: the machine resets, which ends qemu. */
const KERNEL_ARGUMENTS = 'loglevel=1 panic=-1 rdinit=/init'

/** What differs between machines: qemu's program and machine, and the name of the serial line. */
const MACHINES = {
  amd64: {
    program: 'qemu-system-x86_64',
    package: 'qemu-system-x86',
    machine: ['-machine', 'pc', '-cpu', 'max'],
    console: 'ttyS0',
  },
  arm64: {
    program: 'qemu-system-aarch64',
    package: 'qemu-system-arm',
    // Pointer authentication as the architecture has it is slow to emulate.
    machine: ['-machine', 'virt', '-cpu', 'max,pauth-impdef=on'],
    console: 'ttyAMA0',
  },
} as const

/** Fetches and makes what a guest needs. Throws `Missing`, whose message says what is not there. */
export function prepareGuest(kernel: KernelName, runtime: Runtime = ownRuntime()): void {
  const { program, package: debian } = MACHINES[runtime.architecture]
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' })
  } catch {
    throw new Missing(`needs ${program}: on Debian \`apt-get install ${debian}\``)
  }
  kernelImage(kernel, runtime.architecture)
  baseArchive(runtime)
  packageEntries(runtime)
}

/** Boots a guest. Throws `Missing` where that cannot be. */
export function boot(options: GuestOptions): Guest {
  const { kernel, drives = [], kernelArguments = [], timeoutMs = 120_000 } = options
  const { runtime = ownRuntime() } = options
  prepareGuest(kernel, runtime)
  const folder = mkdtempSync(path.join(os.tmpdir(), 'node-uring-guest-'))
  const initrd = path.join(folder, 'initrd')
  writeFileSync(initrd, readFileSync(baseArchive(runtime)))
  writeFileSync(initrd, cpio([...packageEntries(runtime), ...own(options)]), { flag: 'a' })
  const { program, machine, console } = MACHINES[runtime.architecture]
  const child = spawn(
    program,
    [
      ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio'],
      ...[...machine, '-accel', 'tcg', '-m', String(MEMORY_MIB)],
      ...['-kernel', kernelImage(kernel, runtime.architecture), '-initrd', initrd],
      ...['-append', [`console=${console} ${KERNEL_ARGUMENTS}`, ...kernelArguments].join(' ')],
      ...drives.flatMap((drive, index) => [
        ...['-drive', `${drive},if=none,id=drive${index}`],
        ...['-device', `nvme,drive=drive${index},serial=${index}`],
      ]),
    ],
    // Its own group: ctrl-C reaches us first, and we kill it.
    { stdio: ['ignore', 'pipe', 'pipe'], detached: true },
  )
  return watch(child, options.onLine, timeoutMs, () =>
    rmSync(folder, { recursive: true, force: true }),
  )
}

/** The entries that are this boot's own: its program, and the script that is PID 1. */
function own({ program, args = [], before = ':' }: GuestOptions): Entry[] {
  const quoted = args.map((arg) => `'${arg.replaceAll("'", "'\\''")}'`).join(' ')
  const init = `#!/bin/busybox sh
export PATH=/bin HOME=/tmp
/bin/busybox --install /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
{ ${before}
} && node /program.mjs ${quoted}
echo "${EXIT}$?"
poweroff -f
`
  return [file('init', init), file('program.mjs', program)]
}

function watch(
  child: ChildProcess,
  onLine: GuestOptions['onLine'],
  timeoutMs: number,
  cleanUp: () => void,
): Guest {
  const started = performance.now()
  const lines: string[] = []
  let late = false
  const kill = (): void => void child.kill('SIGKILL')
  process.once('exit', kill)
  const timer = setTimeout(() => {
    late = true
    kill()
  }, timeoutMs)
  const { promise, resolve, reject } = withResolvers<GuestEnd>()
  const guest: Guest = { kill, ended: promise }
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line)
      onLine?.(line, guest)
    })
  }
  child.once('error', reject)
  child.once('close', () => {
    clearTimeout(timer)
    process.off('exit', kill)
    cleanUp()
    const exit = lines.find((line) => line.startsWith(EXIT))
    const code = exit === undefined ? undefined : Number(exit.slice(EXIT.length))
    resolve({ code, lines, late, ms: performance.now() - started })
  })
  return guest
}

/** `Promise.withResolvers` is of Node 22. */
function withResolvers<T>(): {
  promise: Promise<T>
  resolve: (value: T) => void
  reject: (reason: Error) => void
} {
  let [resolve, reject]: [(value: T) => void, (reason: Error) => void] = [() => {}, () => {}]
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}
