/**
 * What this machine, this process and this package are: read from /proc, /sys and Node, judged
 * nowhere. What cannot be read is null.
 */
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { release } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { manifest } from '../command.js'

/** A limit of this process: getrlimit(2). */
export interface Limit {
  readonly soft: number | 'unlimited'
  readonly hard: number | 'unlimited'
}

/** The compiled module in use. */
export interface Binary {
  readonly path: string
  readonly bytes: number
  /** The version of the package that it lies in. */
  readonly version: string | null
}

export interface Facts {
  readonly platform: string
  readonly arch: string
  /** As `uname -r`. */
  readonly kernel: string
  /** The C library of this Node, on Linux. */
  readonly libc: { readonly name: 'glibc' | 'musl'; readonly version: string | null } | null
  readonly node: string
  /** What speaks for a container, one entry a hint. */
  readonly containers: readonly string[]
  /** `sysctl kernel.io_uring_disabled` and `kernel.io_uring_group`; Linux 6.6. */
  readonly ioUringDisabled: number | null
  readonly ioUringGroup: number | null
  readonly inIoUringGroup: boolean
  /** 0 no, 1 strict, 2 filters; proc_pid_status(5). */
  readonly seccomp: number | null
  /** The label of AppArmor or SELinux, if one confines this process. */
  readonly securityLabel: string | null
  /** Capabilities that matter here; capabilities(7). */
  readonly capabilities: { readonly sysAdmin: boolean; readonly ipcLock: boolean } | null
  readonly memlock: Limit | null
  readonly nofile: Limit | null
  /** Descriptors that are open now. */
  readonly openFiles: number | null
  readonly package: { readonly version: string; readonly path: string }
  /** The package that has the binary for this platform; null where none is made. */
  readonly platformPackage: string | null
  /** NAPI_RS_NATIVE_LIBRARY_PATH, which names another binary. */
  readonly override: string | null
}

/** Bits of CapEff; <linux/capability.h>. */
const CAP_IPC_LOCK = 14n
const CAP_SYS_ADMIN = 21n

const root = join(dirname(fileURLToPath(import.meta.url)), '../../..')

export function readFacts(): Facts {
  const { platform, arch } = process
  const status = fields(text('/proc/self/status'))
  const limits = text('/proc/self/limits')
  const capabilities = status.has('CapEff') ? BigInt(`0x${status.get('CapEff')}`) : null
  const group = integer(text('/proc/sys/kernel/io_uring_group'))
  const libc = libcOf(platform)
  return {
    platform,
    arch,
    kernel: release(),
    libc,
    node: process.version,
    containers: containers(),
    ioUringDisabled: integer(text('/proc/sys/kernel/io_uring_disabled')),
    ioUringGroup: group,
    inIoUringGroup: group !== null && groups().includes(group),
    seccomp: integer(status.get('Seccomp')),
    securityLabel: label(text('/proc/self/attr/current')),
    capabilities:
      capabilities === null
        ? null
        : {
            sysAdmin: hasBit(capabilities, CAP_SYS_ADMIN),
            ipcLock: hasBit(capabilities, CAP_IPC_LOCK),
          },
    memlock: limit(limits, 'Max locked memory'),
    nofile: limit(limits, 'Max open files'),
    openFiles: openFiles(),
    package: { version: manifest.version, path: realpathSync(root) },
    platformPackage: platformPackage(platform, arch, libc?.name),
    override: process.env['NAPI_RS_NATIVE_LIBRARY_PATH'] || null,
  }
}

/** The package with the binary for a platform: those that `package.json` names as targets. */
export function platformPackage(platform: string, arch: string, libc?: string): string | null {
  if (platform !== 'linux' || (arch !== 'x64' && arch !== 'arm64')) return null
  return `${manifest.name}-linux-${arch}-${libc === 'musl' ? 'musl' : 'gnu'}`
}

/** Which compiled module was loaded, after the first queue was made or tried; null if none was. */
export function loadedBinary(): Binary | null {
  const path = Object.keys(createRequire(import.meta.url).cache).find((name) =>
    name.endsWith('.node'),
  )
  if (path === undefined) return null
  let version: string | null = null
  try {
    version = JSON.parse(readFileSync(join(dirname(path), 'package.json'), 'utf8')).version ?? null
  } catch {
    // An override may lie anywhere.
  }
  return { path, bytes: statSync(path).size, version }
}

/** What speaks for a container. A container that hides well is none, and that is no harm. */
function containers(): string[] {
  const found: string[] = []
  if (existsSync('/.dockerenv')) found.push('Docker (/.dockerenv)')
  if (existsSync('/run/.containerenv')) found.push('Podman (/run/.containerenv)')
  if (process.env['KUBERNETES_SERVICE_HOST']) found.push('Kubernetes (KUBERNETES_SERVICE_HOST)')
  const named = process.env['container'] ?? ''
  if (named !== '') found.push(`${named} (container=${named})`)
  const [cgroup] =
    /docker|kubepods|containerd|libpod|lxc/.exec(text('/proc/self/cgroup') ?? '') ?? []
  if (cgroup !== undefined) found.push(`${cgroup} (/proc/self/cgroup)`)
  if (/microsoft/i.test(text('/proc/version') ?? '')) found.push('WSL (/proc/version)')
  return found
}

function libcOf(platform: string): Facts['libc'] {
  if (platform !== 'linux') return null
  // Host names and addresses are not wanted, and would be looked up.
  Object.assign(process.report, { excludeNetwork: true })
  const { header } = process.report.getReport() as {
    header: { glibcVersionRuntime?: string }
  }
  const version = header.glibcVersionRuntime
  return version === undefined ? { name: 'musl', version: null } : { name: 'glibc', version }
}

function groups(): number[] {
  return [process.getegid?.() ?? -1, ...(process.getgroups?.() ?? [])]
}

function openFiles(): number | null {
  try {
    // One of them is this look.
    return readdirSync('/proc/self/fd').length - 1
  } catch {
    return null
  }
}

/** `unconfined` and an empty label are no confinement. */
function label(value: string | null): string | null {
  const name = value?.replace(/\0|\s+$/g, '') ?? ''
  return name === '' || name === 'unconfined' ? null : name
}

/** `Max locked memory   8388608   8388608   bytes`; proc_pid_limits(5). */
function limit(limits: string | null, name: string): Limit | null {
  const [, soft, hard] = new RegExp(`^${name} +(\\S+) +(\\S+)`, 'm').exec(limits ?? '') ?? []
  if (soft === undefined || hard === undefined) return null
  const value = (digits: string) => (digits === 'unlimited' ? digits : Number(digits))
  return { soft: value(soft), hard: value(hard) }
}

/** Lines of `Name:\tvalue`. */
function fields(status: string | null): Map<string, string> {
  const lines = (status ?? '').split('\n').map((line) => line.split(':\t'))
  return new Map(lines.map(([name = '', value = '']) => [name, value.trim()]))
}

function hasBit(bits: bigint, bit: bigint): boolean {
  return ((bits >> bit) & 1n) === 1n
}

function integer(value: string | null | undefined): number | null {
  return value && /^-?\d+\s*$/.test(value) ? Number(value) : null
}

function text(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}
