/**
 * Judges: what each fact means for io_uring here, and what to do about it. Pure. A fact that could
 * forbid io_uring is a failure only where there is no ring; where there is one, it did not.
 * docs/troubleshooting.md has a chapter for each finding, by its name.
 */
import { bytes, count, duration } from '../units.js'
import type { Binary, Facts, Limit } from './facts.js'
import type { Outcome, Ring } from './ring.js'

export type Status = 'ok' | 'note' | 'warning' | 'failure'

export interface Finding {
  readonly name: string
  readonly status: Status
  /** What was found, in a line. */
  readonly found: string
  /** What to do about it; null where there is nothing to do. */
  readonly help: string | null
}

/** Everything that was looked at. */
export interface Case {
  readonly facts: Facts
  readonly ring: Ring
  readonly binary: Binary | null
}

/** What the library uses, and does otherwise where the kernel lacks it. */
const ALTERNATIVES: Readonly<Record<string, string>> = {
  ftruncate: 'truncate goes by node:fs (the operation is of Linux 6.9)',
}

export const GROUPS: readonly (readonly [title: string, judges: readonly Judge[]])[] = [
  ['System', [platform, kernel, node, container]],
  ['Permission', [sysctl, seccomp, security]],
  ['Limits', [memlock, nofile]],
  ['Package', [packaged, binary]],
  ['Ring', [ring, features, operations, refused, registered, nop, read]],
]

type Judge = (it: Case) => Finding | undefined

/** All findings, in the order of their groups. */
export function diagnose(it: Case): { title: string; findings: Finding[] }[] {
  return GROUPS.map(([title, judges]) => ({
    title,
    findings: judges.map((judge) => judge(it)).filter((finding) => finding !== undefined),
  }))
}

// ---- system -----------------------------------------------------------------------------------

function platform({ facts }: Case): Finding {
  const { platform, arch, libc } = facts
  const found = [platform, arch, libc && [libc.name, libc.version].filter(Boolean).join(' ')]
  const line = found.filter(Boolean).join(', ')
  if (platform === 'linux') return { name: 'platform', status: 'ok', found: line, help: null }
  const help = 'io_uring is a part of Linux: run it there, in a virtual machine or a container.'
  return { name: 'platform', status: 'failure', found: line, help }
}

function kernel({ facts }: Case): Finding | undefined {
  if (facts.platform !== 'linux') return undefined
  const found = `Linux ${facts.kernel}`
  const [major = 0, minor = 0] = facts.kernel.split('.').map((part) => Number.parseInt(part, 10))
  const version = major * 1000 + minor
  if (version >= 6001) return { name: 'kernel', status: 'ok', found, help: null }
  if (version >= 5010) {
    const help = 'It works. Linux 6.1 or later is faster: it has deferred task running.'
    return { name: 'kernel', status: 'note', found, help }
  }
  const help = 'Linux 5.10 or later is needed, 6.1 or later is better: upgrade the kernel.'
  return { name: 'kernel', status: 'failure', found, help }
}

function node({ facts }: Case): Finding {
  const [major = 0, minor = 0] = facts.node.slice(1).split('.').map(Number)
  const isSupported = (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22
  const found = `Node.js ${facts.node}`
  if (isSupported) return { name: 'node', status: 'ok', found, help: null }
  const help = 'Install Node.js 20.19 or later, or 22.12 or later.'
  return { name: 'node', status: 'warning', found, help }
}

function container({ facts, ring }: Case): Finding | undefined {
  if (facts.platform !== 'linux') return undefined
  const found = facts.containers.join(', ')
  if (found === '') return { name: 'container', status: 'ok', found: 'no sign of one', help: null }
  const help = isForbidden(ring) ? containerHelp(facts) : null
  return { name: 'container', status: help === null ? 'note' : 'warning', found, help }
}

function containerHelp({ containers }: Facts): string {
  const hints = containers.join(' ')
  if (/Kubernetes|kubepods/.test(hints)) {
    return (
      'The default seccomp profiles of container runtimes refuse io_uring. Give the pod one that ' +
      'allows io_uring_setup, io_uring_enter and io_uring_register: securityContext.seccompProfile, ' +
      'type Localhost.'
    )
  }
  const program = /Podman|libpod/.test(hints) ? 'podman' : 'docker'
  return (
    'The default seccomp profiles of container runtimes refuse io_uring. Allow io_uring_setup, ' +
    'io_uring_enter and io_uring_register in a copy of the profile and give it to the container: ' +
    `\`${program} run --security-opt seccomp=profile.json\`. To find out whether that is it, once: ` +
    `\`${program} run --security-opt seccomp=unconfined\`.`
  )
}

// ---- permission -------------------------------------------------------------------------------

function sysctl({ facts, ring }: Case): Finding | undefined {
  if (facts.platform !== 'linux') return undefined
  const { ioUringDisabled: value, ioUringGroup: group, inIoUringGroup } = facts
  const allow =
    'As root: `sysctl -w kernel.io_uring_disabled=0`; to keep it, `kernel.io_uring_disabled = 0` in ' +
    'a file in /etc/sysctl.d.'
  if (value === null) {
    const found = 'no kernel.io_uring_disabled (it is of Linux 6.6): not forbidden by it'
    return { name: 'sysctl', status: 'ok', found, help: null }
  }
  const found = `kernel.io_uring_disabled = ${value}`
  if (value === 0) return { name: 'sysctl', status: 'ok', found, help: null }
  if (value === 2) {
    return { name: 'sysctl', status: 'failure', found: `${found}: for nobody`, help: allow }
  }
  // -1, as it is unless somebody sets it: no group.
  const alone = group !== null && group < 0
  const others = alone ? 'alone' : `and the group ${group ?? 'kernel.io_uring_group'}`
  const who = `${found}: for CAP_SYS_ADMIN ${others}`
  if (ring.reason === null || facts.capabilities?.sysAdmin || inIoUringGroup) {
    return { name: 'sysctl', status: 'note', found: `${who}, as this process`, help: null }
  }
  const join = 'Or add this user to a group and name it: `sysctl -w kernel.io_uring_group=GID`.'
  return {
    name: 'sysctl',
    status: 'failure',
    found: `${who}, not this process`,
    help: `${allow} ${join}`,
  }
}

/** Whether somebody may have said no, and not the kernel for want of something. */
function isForbidden({ reason }: Ring): boolean {
  return reason !== null && ['EPERM', 'ENOSYS', 'EACCES'].includes(reason.code)
}

function seccomp({ facts, ring }: Case): Finding | undefined {
  if (facts.platform !== 'linux') return undefined
  const name = 'seccomp'
  if (!facts.seccomp) return { name, status: 'ok', found: 'no filter', help: null }
  if (ring.reason === null) {
    return { name, status: 'ok', found: 'a filter that lets io_uring through', help: null }
  }
  if (!isForbidden(ring)) return { name, status: 'note', found: 'a filter', help: null }
  const found = `a filter, which may be what answers ${ring.reason.code}`
  const help =
    'Allow io_uring_setup, io_uring_enter and io_uring_register in it: in a container its seccomp ' +
    'profile, in a systemd unit its SystemCallFilter=.'
  return { name, status: 'failure', found, help }
}

function security({ facts, ring }: Case): Finding | undefined {
  if (facts.securityLabel === null) return undefined
  const found = `confined as ${facts.securityLabel}`
  const name = 'security'
  if (ring.reason?.code !== 'EACCES') return { name, status: 'note', found, help: null }
  const help =
    'A security module may have refused. Look for it in the audit log (`ausearch -m avc`, or ' +
    '`journalctl -k | grep -i denied`), and allow io_uring in the policy.'
  return { name, status: 'failure', found, help }
}

// ---- limits -----------------------------------------------------------------------------------

function memlock({ facts, ring }: Case): Finding | undefined {
  if (facts.memlock === null) return undefined
  const name = 'memlock'
  const { soft } = facts.memlock
  const limit = `${shown(facts.memlock, bytes)} may be locked`
  if (facts.capabilities?.ipcLock && ring.reason?.code !== 'ENOMEM') {
    return { name, status: 'ok', found: `${limit}; CAP_IPC_LOCK: no limit for this`, help: null }
  }
  const help =
    'Raise it: `ulimit -l unlimited` in the shell (limits.conf for logins), `LimitMEMLOCK=infinity` ' +
    'in the systemd unit, `docker run --ulimit memlock=-1`.'
  if (ring.reason?.code === 'ENOMEM') {
    return { name, status: 'failure', found: `${limit}: too little for a ring`, help }
  }
  const registered = ring.capabilities?.registeredMemory
  if (typeof registered === 'object' && registered.code === 'ENOMEM') {
    const found = `${limit}: too little to register memory for direct files`
    return { name, status: 'warning', found, help }
  }
  const isSmall = typeof soft === 'number' && soft < 8 << 20
  if (!isSmall) return { name, status: 'ok', found: limit, help: null }
  const found = `${limit}: enough now; more queues or registered memory may want more`
  return { name, status: 'note', found, help }
}

function nofile({ facts, ring }: Case): Finding | undefined {
  if (facts.nofile === null) return undefined
  const name = 'nofile'
  const { soft, hard } = facts.nofile
  const found = `${shown(facts.nofile, count)} descriptors, ${facts.openFiles ?? 'some'} open`
  const help =
    'Each open file takes one and each queue two. Raise it: `ulimit -n`, `LimitNOFILE=` in systemd, ' +
    '`docker run --ulimit nofile=65536`.'
  if (ring.reason?.code === 'EMFILE') return { name, status: 'failure', found, help }
  const isSmall = typeof soft === 'number' && soft < 1024
  if (!isSmall) return { name, status: 'ok', found, help: null }
  const raise = hard === soft ? help : `${help} Up to ${hard} without root.`
  return { name, status: 'warning', found, help: raise }
}

function shown({ soft, hard }: Limit, format: (value: number) => string): string {
  const [low, high] = [soft, hard].map((limit) =>
    typeof limit === 'number' ? format(limit) : 'any number of',
  )
  return low === high ? `${low}` : `${low} (at most ${high})`
}

// ---- package ----------------------------------------------------------------------------------

function packaged({ facts }: Case): Finding {
  const { version, path } = facts.package
  return { name: 'package', status: 'ok', found: `${version} in ${path}`, help: null }
}

function binary({ facts, ring, binary }: Case): Finding {
  const name = 'binary'
  const { override, platformPackage, package: our } = facts
  if (binary !== null) {
    const named = override === null ? '' : ', named by NAPI_RS_NATIVE_LIBRARY_PATH'
    const found = `${binary.path}, ${bytes(binary.bytes)}${named}`
    if (binary.version === null || binary.version === our.version) {
      return { name, status: override === null ? 'ok' : 'note', found, help: null }
    }
    const help = `It is of version ${binary.version} and the package of ${our.version}: ${installs(facts)}.`
    return { name, status: 'warning', found, help }
  }
  if (ring.reason?.code === 'ERR_DLOPEN_DISABLED') {
    return { name, status: 'failure', found: 'not loaded', help: ring.reason.help }
  }
  if (ring.reason?.code === 'ERR_DLOPEN_FAILED') {
    const found = `found, but it cannot be loaded${override === null ? '' : `: ${override}`}`
    const help =
      'It is for another platform or C library, or damaged: remove node_modules and install again ' +
      `on this machine, or ${installs(facts)}.`
    return { name, status: 'failure', found, help: override === null ? help : unset(help) }
  }
  if (override !== null) {
    const found = `none at ${override}, which NAPI_RS_NATIVE_LIBRARY_PATH names`
    return { name, status: 'failure', found, help: unset(`Or ${installs(facts)}.`) }
  }
  const found = `none: the package ${platformPackage ?? 'for this platform'} is missing`
  const skipped =
    'npm leaves it out with --no-optional, --omit=optional, or a package-lock.json of another ' +
    'platform. '
  const help =
    platformPackage === null ? `${installs(facts)}.` : `${skipped}Run ${installs(facts)}.`
  return { name, status: 'failure', found, help }
}

function unset(rest: string): string {
  return `Unset NAPI_RS_NATIVE_LIBRARY_PATH. ${rest}`
}

/** What installs the binary for this platform. */
function installs({ platformPackage, platform, arch, package: { version } }: Facts): string {
  return platformPackage === null
    ? `no binary is made for ${platform} on ${arch}, only for Linux on x64 and arm64`
    : `\`npm install ${platformPackage}@${version}\``
}

// ---- ring -------------------------------------------------------------------------------------

function ring({ ring }: Case): Finding {
  const name = 'ring'
  if (ring.reason !== null) {
    const { code, message, help } = ring.reason
    const found = `none (${code}): ${message}`
    const isBinary = code === 'MODULE_NOT_FOUND' || code.startsWith('ERR_DLOPEN')
    return { name, status: 'failure', found, help: isBinary ? 'See binary, above.' : help }
  }
  const { entries = 0, cqEntries = 0, setupFlags = [], reap = '' } = ring.capabilities ?? {}
  const found = `${count(entries)} entries, ${count(cqEntries)} for completions, ${reap}; ${setupFlags.join(' ')}`
  return { name, status: 'ok', found, help: null }
}

function features({ ring: { capabilities } }: Case): Finding | undefined {
  return known('features', capabilities?.features)
}

function operations({ ring: { capabilities } }: Case): Finding | undefined {
  return known('operations', capabilities?.operations)
}

function known(name: string, all?: Record<string, boolean>): Finding | undefined {
  if (all === undefined) return undefined
  const names = Object.keys(all).sort()
  const absent = names.filter((key) => !all[key])
  if (absent.length === 0) {
    const found = `all ${names.length} that the library knows`
    return { name, status: 'ok', found, help: null }
  }
  const found = `${names.length - absent.length} of the ${names.length} that the library knows`
  const instead = absent.map((key) => ALTERNATIVES[key]).filter((text) => text !== undefined)
  const rest = instead.length > 0 ? `: ${instead.join('; ')}` : ''
  const help = `A later kernel has more. What is missing is done in another way${rest}.`
  return { name, status: 'note', found: `${found}; missing: ${absent.join(', ')}`, help }
}

/** What was asked of the kernel and refused, and is done without. */
function refused({ ring: { capabilities } }: Case): Finding | undefined {
  if (capabilities === null) return undefined
  const name = 'refused'
  const all = Object.entries(capabilities.notInUse)
  const found = all.filter(([, { code }]) => code !== undefined)
  if (found.length === 0) return { name, status: 'ok', found: 'nothing', help: null }
  const names = found.map(([key, { code }]) => `${key} (${code})`).join(', ')
  const help = found.map(([key, { reason }]) => `${key}: ${reason}`).join(' ')
  return { name, status: 'note', found: `${names}; it works without, slower`, help }
}

function registered({ ring: { capabilities, direct } }: Case): Finding | undefined {
  if (capabilities === null || direct === null) return undefined
  const name = 'direct'
  const files = `${count(capabilities.registeredFiles)} files`
  if (isFailure(direct)) {
    const found = `no direct I/O where Node is installed (${direct.failure})`
    const help = 'direct: true needs a file system with O_DIRECT, such as ext4, XFS or Btrfs.'
    return { name, status: 'note', found, help }
  }
  const blocks = `blocks of ${bytes(direct.offsetBytes)}`
  const { registeredMemory: memory } = capabilities
  if (typeof memory === 'object') {
    const found = `${blocks}; memory is not registered (${memory.code})`
    const help = 'Direct files work without it and take more CPU. See memlock.'
    return { name, status: 'warning', found, help }
  }
  return { name, status: 'ok', found: `${blocks}; ${files} and memory registered`, help: null }
}

function nop({ ring: { nop } }: Case): Finding | undefined {
  if (nop === null) return undefined
  if (isFailure(nop)) return broken('nop', nop.failure)
  const { samples, ns } = nop
  const found = `${count(samples)} round trips, median ${duration(ns.p50)}, 99% ${duration(ns.p99)}`
  return { name: 'nop', status: 'ok', found, help: null }
}

function read({ ring: { read } }: Case): Finding | undefined {
  if (read === null) return undefined
  if (isFailure(read)) return broken('read', read.failure)
  const found = `${bytes(read.bytes)} of ${read.path}, as node:fs reads them`
  return { name: 'read', status: 'ok', found, help: null }
}

function broken(name: string, failure: string): Finding {
  const help = 'The ring was made and does not work. Report it, with the output of doctor --json.'
  return { name, status: 'failure', found: failure, help }
}

function isFailure<T>(outcome: Outcome<T>): outcome is { readonly failure: string } {
  return typeof outcome === 'object' && outcome !== null && 'failure' in outcome
}
