/**
 * What the kernel granted a queue, what is not in use, and why: made of what the engine says, for
 * people and for programs. Touches nothing and decides nothing.
 */
import { release } from 'node:os'
import { systemError } from './errors.js'
import type { EngineCapabilities, EngineOptions } from './native.js'
import { SLOTS_MAX } from './slots.js'
import type { Unavailable } from './unavailable.js'

/** Names of {@link Capabilities.operations}: `KERNEL_OPCODES` of `crates/core/src/operation.rs`. */
export const OPERATION_NAMES = [
  'nop',
  'read',
  'write',
  'read_fixed',
  'write_fixed',
  'fsync',
  'ftruncate',
  'openat',
  'close',
  'statx',
  'timeout',
  'link_timeout',
  'renameat',
  'unlinkat',
  'openat2',
  'fallocate',
  'fadvise',
  'sync_file_range',
  'linkat',
  'symlinkat',
  'mkdirat',
  'splice',
  'poll_add',
  'send',
  'recv',
  'readv',
  'writev',
  'msg_ring',
  'async_cancel',
] as const
/** One of them. */
export type OperationName = (typeof OPERATION_NAMES)[number]

/** Why something is not in use. */
export interface NotInUse {
  /** A sentence. */
  reason: string
  /** The errno that refused it, negative as in node:fs, and its name; absent when nobody asked. */
  errno?: number
  code?: string
}

/** What can be in use or not, besides what an option turns on. */
export type Optional =
  | 'NO_SQARRAY'
  | 'SUBMIT_ALL'
  | 'DEFER_TASKRUN'
  | 'COOP_TASKRUN'
  | 'registeredDescriptor'
  | 'registeredFiles'
  | 'registeredMemory'
  | 'workers'
  | 'sqpoll'
  | 'iopoll'
  | 'attach'
  | 'restrict'
  | 'eventLoop'

/** Limits of a queue and of its process, as they are now. */
export interface CapabilityLimits {
  /** Operations staged or in flight at once; more wait. */
  operations: number
  /** Operations of a chain of links. */
  chain: number
  /** The kernel's worker threads of this thread; null before Linux 5.15. */
  workers: { bounded: number; unbounded: number } | null
  /** RLIMIT_MEMLOCK in bytes, of getrlimit(2); null where there is none. */
  memlockBytes: number | null
  /** RLIMIT_NOFILE; null where there is none. */
  openFiles: number | null
}

/** What {@link Queue.capabilities} tells. */
export interface Capabilities {
  /** What the operations run on. */
  backend: 'io_uring' | 'node:fs'
  /** Why they run on node:fs: what io_uring was refused with, and what to do about it. */
  reason?: Unavailable
  /** The kernel's release, as `uname -r`. */
  kernel: string
  /** Entries of the two queues, as the kernel made them. */
  entries: number
  cqEntries: number
  /** Set-up flags in use, as in io_uring_setup(2) without `IORING_SETUP_`. */
  setupFlags: string[]
  /** Whether enter names the ring by its registered descriptor (5.18). */
  registeredDescriptor: boolean
  /** Features by their names in io_uring_setup(2). */
  features: Record<string, boolean>
  /** Operations by their names in io_uring_enter(2). */
  operations: Record<OperationName, boolean>
  /** Places in the registered file table; 0 when files are named by descriptor. */
  registeredFiles: number
  /** Whether direct files use registered memory: untried before the first one; else why not. */
  registeredMemory: 'untried' | 'registered' | { code: string; errno: number }
  /** How completions are found; 'thread' also where the runtime does not export libuv's functions. */
  reap: 'eventfd' | 'thread' | 'poll'
  /** The polling thread, if there is one: what was asked of it. */
  sqpoll: { idleMs: number; cpu: number | null } | null
  /** Whether direct reads and writes are on a ring that polls. Whether a file does, its reads tell. */
  iopoll: boolean
  /** The operations that the ring is restricted to, besides those that the queue itself needs. */
  restrictedTo: string[] | null
  /** What limits it. */
  limits: CapabilityLimits
  /** What is not in use, by name, and why. What is in use is not in it. */
  notInUse: { [name in Optional]?: NotInUse }
}

/** Something that can be in use: the name of its refusal, if the queue does without, since which Linux, who asks for it. */
interface Thing {
  readonly refusal?: string
  readonly linux?: string
  /** Why nobody asked, or undefined when it was asked for. */
  readonly unasked?: (options: EngineOptions, granted: EngineCapabilities) => string | undefined
}

const REAP_EVENTFD = 0
const REAP_THREAD = 1
const REAP_POLL = 2
const DEFER = 0
const COOPERATIVE = 1

const leftOut = (flag: string, name: string) => (options: EngineOptions) =>
  options.leftOut?.includes(flag) ? `options.setup.${name} is false.` : undefined

const unregistered = ({ register }: EngineOptions): string | undefined =>
  register ? undefined : 'options.register is false.'

const THINGS: Readonly<Record<Optional, Thing>> = {
  NO_SQARRAY: {
    refusal: 'NO_SQARRAY',
    linux: '6.6',
    unasked: leftOut('NO_SQARRAY', 'noSqArray'),
  },
  SUBMIT_ALL: {
    refusal: 'SUBMIT_ALL',
    linux: '5.18',
    unasked: leftOut('SUBMIT_ALL', 'submitAll'),
  },
  DEFER_TASKRUN: {
    refusal: 'DEFER_TASKRUN',
    linux: '6.1',
    unasked: ({ taskRun }) =>
      taskRun === DEFER ? undefined : 'options.setup.taskRun asks for another.',
  },
  COOP_TASKRUN: {
    refusal: 'COOP_TASKRUN',
    linux: '5.19',
    unasked({ taskRun }, { setupFlags }) {
      if (setupFlags.includes('DEFER_TASKRUN')) return 'DEFER_TASKRUN is in use, which is better.'
      return taskRun <= COOPERATIVE ? undefined : 'options.setup.taskRun asks for another.'
    },
  },
  registeredDescriptor: {
    refusal: 'REGISTER_RING_FDS',
    linux: '5.18',
    unasked: leftOut('REGISTER_RING_FDS', 'registeredDescriptor'),
  },
  registeredFiles: { refusal: 'REGISTER_FILES2', linux: '5.19', unasked: unregistered },
  registeredMemory: { refusal: 'REGISTER_BUFFERS2', linux: '5.19', unasked: unregistered },
  workers: {
    refusal: 'REGISTER_IOWQ_MAX_WORKERS',
    linux: '5.15',
    unasked: ({ boundedWorkers, unboundedWorkers }) =>
      boundedWorkers + unboundedWorkers > 0 ? undefined : 'options.workers sets no cap.',
  },
  sqpoll: {
    linux: '5.11',
    unasked: ({ sqpollIdleMs }) =>
      sqpollIdleMs === undefined ? 'options.sqpoll is not given.' : undefined,
  },
  eventLoop: {
    unasked({ reap = REAP_EVENTFD }, { ownThread }) {
      if (reap === REAP_THREAD) return "options.reap asks for 'thread'."
      return ownThread ? "This runtime does not export libuv's functions." : undefined
    },
  },
  iopoll: {
    linux: '5.1',
    unasked: ({ iopoll }) => (iopoll ? undefined : 'options.iopoll is not given.'),
  },
  attach: {
    linux: '5.6',
    unasked: ({ attach }) => (attach === undefined ? 'options.attach is not given.' : undefined),
  },
  restrict: {
    linux: '5.10',
    unasked: ({ restrict }) =>
      restrict === undefined ? 'options.restrict is not given.' : undefined,
  },
}

/** What an errno says about something that was asked for. */
const BECAUSE: Readonly<Record<string, (linux: string | undefined) => string>> = {
  EINVAL: (linux) => `The kernel does not know it: it came with Linux ${linux}.`,
  EMFILE: () => 'RLIMIT_NOFILE (ulimit -n) has no room for it.',
  ENOMEM: () => 'RLIMIT_MEMLOCK (ulimit -l) has no room for it.',
}

/** Makes what {@link Capabilities} has of what the engine tells; `reason` is why there is no ring. */
export function capabilitiesOf(
  granted: EngineCapabilities,
  options: EngineOptions,
  backend: Capabilities['backend'],
  reason: Unavailable | undefined,
): Capabilities {
  const { boundedWorkers: bounded, unboundedWorkers: unbounded } = granted
  return {
    backend,
    ...(reason && { reason }),
    kernel: release(),
    entries: granted.entries,
    cqEntries: granted.cqEntries,
    setupFlags: granted.setupFlags,
    registeredDescriptor: granted.registeredDescriptor,
    features: granted.features,
    operations: Object.fromEntries(
      OPERATION_NAMES.map((name) => [name, granted.operations[name] ?? false]),
    ) as Record<OperationName, boolean>,
    registeredFiles: granted.registeredFiles,
    registeredMemory: registeredMemory(granted.registeredMemory),
    reap: options.reap === REAP_POLL ? 'poll' : granted.ownThread ? 'thread' : 'eventfd',
    sqpoll:
      options.sqpollIdleMs === undefined || reason !== undefined
        ? null
        : { idleMs: options.sqpollIdleMs, cpu: options.sqpollCpu ?? null },
    iopoll: reason === undefined && (options.iopoll ?? false),
    restrictedTo: options.restrict ?? null,
    limits: {
      operations: SLOTS_MAX,
      chain: granted.chainMax,
      workers:
        typeof bounded === 'number' && typeof unbounded === 'number'
          ? { bounded, unbounded }
          : null,
      memlockBytes: granted.memlockBytes ?? null,
      openFiles: granted.openFiles ?? null,
    },
    notInUse: reason === undefined ? notInUse(granted, options) : nothingInUse(reason),
  }
}

function registeredMemory(errno: number | null | undefined): Capabilities['registeredMemory'] {
  if (errno === undefined || errno === null) return 'untried'
  if (errno === 0) return 'registered'
  return { code: codeOf(errno), errno: -errno }
}

function codeOf(errno: number): string {
  return systemError(errno, 'io_uring_register').code
}

function nothingInUse({ code, errno, message }: Unavailable): Capabilities['notInUse'] {
  const why: NotInUse = { reason: `There is no ring. ${message}`, code }
  if (errno !== undefined) why.errno = errno
  return Object.fromEntries(Object.keys(THINGS).map((name) => [name, { ...why }]))
}

function notInUse(granted: EngineCapabilities, options: EngineOptions): Capabilities['notInUse'] {
  const refused: Record<string, number> = { ...granted.refused }
  if (granted.registeredMemory) refused['REGISTER_BUFFERS2'] = granted.registeredMemory
  const found: Capabilities['notInUse'] = {}
  for (const [name, { refusal, linux, unasked }] of Object.entries(THINGS)) {
    const errno = refusal === undefined ? undefined : refused[refusal]
    const reason = unasked?.(options, granted)
    if (errno !== undefined) {
      const code = codeOf(errno)
      const because = BECAUSE[code] ?? (() => `The kernel refused it (${code}).`)
      found[name as Optional] = { reason: because(linux), code, errno: -errno }
    } else if (reason !== undefined) {
      found[name as Optional] = { reason }
    }
  }
  return found
}
