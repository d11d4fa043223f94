/**
 * What a queue is asked for by name (a polling thread, an attachment, restrictions, set-up flags): the
 * options, their checks, which of them contradict each other, and what it means when the kernel
 * refuses. Nothing is made here.
 */
import { OPERATION_NAMES, type OperationName } from './capabilities.js'
import { invalidArgType, invalidArgValue, systemError, uringError } from './errors.js'
import type { EngineOptions } from './native.js'
import { checkBoolean, checkInteger, checkNames, checkOptions } from './validate.js'

/** How completion work reaches the thread. Only the best that the kernel has is worth having. */
export type TaskRun = 'defer' | 'cooperative' | 'interrupt'

/** How completions are found; docs/queue-options.md says what each costs. */
export type Reap = 'eventfd' | 'thread' | 'poll'

/** Flags of io_uring_setup(2). What the kernel does not know is left out by itself. */
export interface SetupFlags {
  /** 'defer' needs Linux 6.1, 'cooperative' 5.19. Default 'defer'; with `sqpoll` 'interrupt'. */
  taskRun?: TaskRun | undefined
  /** IORING_SETUP_NO_SQARRAY (6.6). Default true. */
  noSqArray?: boolean | undefined
  /** IORING_SETUP_SUBMIT_ALL (5.18). Default true. */
  submitAll?: boolean | undefined
  /** IORING_REGISTER_RING_FDS (5.18). Default true. */
  registeredDescriptor?: boolean | undefined
}

/** Options of a queue that ask for something by name. docs/queue-options.md has them all. */
export interface SetupOptions {
  /** What to ask of io_uring_setup(2); what the kernel does not know is left out by itself. */
  setup?: SetupFlags | undefined
  /**
   * A kernel thread that submits, so that no system call does: IORING_SETUP_SQPOLL (5.11 here; before
   * 5.13 it needs CAP_SYS_NICE). It spins while there is work, and until it has been idle for a while.
   */
  sqpoll?:
    | {
        /** Milliseconds without work after which it sleeps. Default 1000. */
        idleMs?: number | undefined
        /** The CPU that it stays on. Default: any. */
        cpu?: number | undefined
      }
    | undefined
  /**
   * The `handle` of another queue of this process, to share its polling thread: IORING_SETUP_ATTACH_WQ
   * (5.6). Without `sqpoll` it changes nothing that can be seen.
   */
  attach?: number | undefined
  /**
   * How completions are found. 'eventfd': the event loop sleeps, and the ring's eventfd wakes it.
   * 'thread': a thread of the queue waits and wakes it; so it is also where a runtime does not export
   * libuv's functions. 'poll': the event loop does not sleep while operations are in flight, and
   * looks each time it comes round: lowest latency, a CPU in full use. Default 'eventfd'; with `sqpoll`,
   * 'poll' for 200 µs after something went to the kernel or came from it, and then 'eventfd'.
   */
  reap?: Reap | undefined
  /**
   * Poll the device for the completions of single reads and writes of direct files, on a ring beside
   * (IORING_SETUP_IOPOLL): needs a file system and a device that poll (an NVMe disk with
   * `nvme.poll_queues` set), and a CPU in full use while they are in flight. Where the file does not
   * poll they reject with `ERR_URING_UNSUPPORTED`, which says what lacks it. Default false.
   */
  iopoll?: boolean | undefined
  /**
   * Microseconds that operations wait for more to be submitted with, 0 to 1,000,000. They go earlier
   * when the submission queue is full, when one is cancelled, and by `flush`. Default 0: what is staged
   * in a turn of the event loop is submitted at its end.
   */
  flushDelayUs?: number | undefined
  /** Lock the ring to some operations for good, by IORING_REGISTER_RESTRICTIONS (5.10). */
  restrict?:
    | {
        /**
         * Names of `capabilities.operations`. All others complete with EACCES, but for those that the
         * queue itself needs: nop, close, async_cancel, timeout and link_timeout.
         */
        operations: readonly OperationName[]
      }
    | undefined
}

/** The part of the engine's options that this file makes. */
export type EngineSetup = Pick<
  EngineOptions,
  | 'taskRun'
  | 'leftOut'
  | 'reap'
  | 'hideLibuv'
  | 'flushDelayUs'
  | 'iopoll'
  | 'sqpollIdleMs'
  | 'sqpollCpu'
  | 'attach'
  | 'restrict'
>

const REAPS: readonly Reap[] = ['eventfd', 'thread', 'poll']
/** What `reap` is with `sqpoll` where nobody says: 'poll' for a short time, then 'eventfd'. */
const REAP_POLL_BRIEFLY = REAPS.length
const TASK_RUNS: readonly TaskRun[] = ['defer', 'cooperative', 'interrupt']
/** Flags that can be left out, and the kernel's names for them. */
const FLAGS = [
  ['noSqArray', 'NO_SQARRAY'],
  ['submitAll', 'SUBMIT_ALL'],
  ['registeredDescriptor', 'REGISTER_RING_FDS'],
] as const
const IDLE_MS = 1000
/** A second: longer than anybody gathers. */
const FLUSH_DELAY_US_MAX = 1_000_000
const INT32_MAX = 2 ** 31 - 1

/** The options here, and those that they may contradict. */
type Given = SetupOptions & { readonly backend?: string | undefined }

/** Options that cannot be had together: the first's name, whether they are, and why not. */
const CONTRADICTIONS: readonly [string, (given: Given) => unknown, string][] = [
  [
    'setup.taskRun',
    ({ setup, sqpoll }) => sqpoll && setup?.taskRun !== undefined && setup.taskRun !== 'interrupt',
    "must be 'interrupt' with options.sqpoll: completion work is run by the polling thread",
  ],
  [
    'sqpoll.cpu',
    ({ sqpoll, attach }) => sqpoll?.cpu !== undefined && attach !== undefined,
    'cannot be combined with options.attach: the thread that is shared has its CPU already',
  ],
  [
    'restrict',
    ({ restrict, backend }) => restrict !== undefined && backend === 'node:fs',
    "cannot be combined with options.backend 'node:fs': the kernel restricts rings alone",
  ],
]

/** Checks what a caller gave and fills the rest in. Throws Node's `ERR_` errors. */
export function engineSetup(given: Given): EngineSetup {
  const { setup = {}, sqpoll, attach, restrict, iopoll = false, flushDelayUs = 0 } = given
  checkBoolean(iopoll, 'options.iopoll')
  checkInteger(flushDelayUs, 'options.flushDelayUs', 0, FLUSH_DELAY_US_MAX)
  checkOptions(setup, 'options.setup')
  checkNames(setup, ['taskRun', ...FLAGS.map(([name]) => name)], 'options.setup')
  const leftOut = FLAGS.filter(([name]) => {
    const wanted = setup[name] ?? true
    checkBoolean(wanted, `options.setup.${name}`)
    return !wanted
  })
  const taskRun = setup.taskRun ?? (sqpoll === undefined ? 'defer' : 'interrupt')
  const made: EngineSetup = {
    taskRun: indexIn(TASK_RUNS, taskRun, 'options.setup.taskRun'),
    reap:
      given.reap === undefined && sqpoll !== undefined
        ? REAP_POLL_BRIEFLY
        : indexIn(REAPS, given.reap ?? 'eventfd', 'options.reap'),
    flushDelayUs,
    iopoll,
    // For tests alone: as in a runtime that does not export libuv's functions.
    // Bun exports libuv's functions, and aborts the process when one is called.
    hideLibuv:
      process.versions['bun'] !== undefined || process.env['NODE_URING_TEST_HIDE_LIBUV'] === '1',
    leftOut: leftOut.map(([, kernelName]) => kernelName),
  }
  if (sqpoll !== undefined) {
    checkOptions(sqpoll, 'options.sqpoll')
    checkNames(sqpoll, ['idleMs', 'cpu'], 'options.sqpoll')
    const { idleMs = IDLE_MS, cpu } = sqpoll
    checkInteger(idleMs, 'options.sqpoll.idleMs', 1, INT32_MAX)
    made.sqpollIdleMs = idleMs
    if (cpu !== undefined) {
      checkInteger(cpu, 'options.sqpoll.cpu', 0, INT32_MAX)
      made.sqpollCpu = cpu
    }
  }
  if (attach !== undefined) {
    checkInteger(attach, 'options.attach', 0, INT32_MAX)
    made.attach = attach
  }
  if (restrict !== undefined) made.restrict = operationNames(restrict)
  for (const [name, contradicts, words] of CONTRADICTIONS) {
    if (!contradicts(given)) continue
    const value = name.split('.').reduce<unknown>((at, key) => Reflect.get(Object(at), key), given)
    throw invalidArgValue(`options.${name}`, value, words)
  }
  return made
}

function indexIn<T>(all: readonly T[], value: T, name: string): number {
  const index = all.indexOf(value)
  if (index < 0) throw invalidArgValue(name, value, `must be one of ${all.join(', ')}`)
  return index
}

function operationNames(restrict: NonNullable<SetupOptions['restrict']>): string[] {
  checkOptions(restrict, 'options.restrict')
  checkNames(restrict, ['operations'], 'options.restrict')
  const { operations } = restrict
  if (!Array.isArray(operations)) {
    throw invalidArgType('options.restrict.operations', 'an instance of Array', operations)
  }
  const unknown = operations.find((name) => !(OPERATION_NAMES as readonly unknown[]).includes(name))
  if (unknown !== undefined || operations.includes(undefined)) {
    const words = `must be names of capabilities.operations: ${OPERATION_NAMES.join(', ')}`
    throw invalidArgValue('options.restrict.operations', unknown, words)
  }
  return [...operations]
}

/** What an option needs that the kernel refuses with some errno; '*' is any other. */
const NEEDS: readonly [keyof SetupOptions, (options: EngineOptions) => boolean, Words][] = [
  [
    'attach',
    ({ attach }) => attach !== undefined,
    {
      ENXIO: 'the handle of a queue that is open in this process',
      EINVAL: 'the handle of a queue with a polling thread (sqpoll) of its own or a shared one',
    },
  ],
  [
    'sqpoll',
    ({ sqpollIdleMs }) => sqpollIdleMs !== undefined,
    {
      EINVAL: 'a CPU that is online and allowed to this process, in options.sqpoll.cpu',
      EPERM: 'Linux 5.13, or CAP_SYS_NICE',
      ENOTSUP: 'Linux 5.11',
    },
  ],
  ['iopoll', ({ iopoll = false }) => iopoll, { EINVAL: 'a kernel that takes IORING_SETUP_IOPOLL' }],
  [
    'restrict',
    ({ restrict }) => restrict !== undefined,
    { EINVAL: 'Linux 5.10', EACCES: 'Linux 5.10' },
  ],
]
type Words = Readonly<Record<string, string>>

/** Whether something was asked for without which a ring may be had. */
export function asksByName(options: EngineOptions): boolean {
  return NEEDS.some(([, asked]) => asked(options))
}

/** The same options without what was asked for by name. */
export function plain(options: EngineOptions): EngineOptions {
  const { sqpollIdleMs: _1, sqpollCpu: _2, attach: _3, restrict: _4, iopoll: _5, ...rest } = options
  return rest
}

/** The error where a ring could be had, but not with what was asked for by name. */
export function setupRefused(errno: number, options: EngineOptions): Error {
  const cause = systemError(errno, 'io_uring_setup')
  const asked = NEEDS.filter(([, asks]) => asks(options))
  const known = asked.find(([, , words]) => cause.code in words)
  const names = (known === undefined ? asked : [known]).map(([name]) => `options.${name}`)
  return uringError('ERR_URING_UNSUPPORTED', {
    feature: names.join(' with '),
    needs: known?.[2][cause.code] ?? `what ${cause.code} of io_uring_setup(2) says`,
    cause,
  })
}
