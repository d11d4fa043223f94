/**
 * The options of a queue: their defaults, their checks, and what the engine makes of them.
 */

import { invalidArgType, invalidArgValue } from './errors.js'
import { HIDEABLE, type HideableName } from './kernel.js'
import type { EngineOptions } from './native.js'
import { Observer } from './observer.js'
import { engineSetup, type SetupOptions } from './setup.js'
import { checkBoolean, checkInteger, checkNames, checkOptions } from './validate.js'

/** What a queue runs on: a ring, node:fs, or 'auto' for a ring where there can be one. */
export type BackendChoice = 'auto' | 'io_uring' | 'node:fs'

/** Options of a {@link Queue}. Each has a default. docs/queue-options.md says more. */
export interface QueueOptions extends SetupOptions {
  /**
   * 'io_uring' throws `ERR_URING_UNAVAILABLE` where there can be no ring, 'auto' takes node:fs then:
   * the same calls, results and errors, slower. It is decided here and never changes. Default 'auto'.
   */
  backend?: BackendChoice | undefined
  /** Entries of the submission queue, 1 to 32768; rounded up to a power of two. Default 1024. */
  entries?: number | undefined
  /**
   * Entries of the completion queue, from `entries` to 65536. Completions past it are kept by the
   * kernel and come a little later. Default 4 × `entries`.
   */
  cqEntries?: number | undefined
  /** Memory that operations use in place. */
  arena?:
    | {
        /** Bytes mapped at once: a power of two from 64 KiB to 4 MiB. Default 2 MiB. */
        slabBytes?: number | undefined
        /** Most bytes for {@link Queue.alloc}. Default 1 GiB. */
        maxBytes?: number | undefined
      }
    | undefined
  /**
   * Most bytes for copies of plain buffers on their way; operations wait when they are used up.
   * At least 2 MiB. Default 64 MiB.
   */
  bounceBytes?: number | undefined
  /** Most bytes of `bytesAt` results that are given away uncopied. Default 1 GiB. */
  resultBytes?: number | undefined
  /** Caps on the kernel's worker threads; 0 leaves the kernel's own. */
  workers?:
    | {
        /** For work on files and block devices. Default 0. */
        bounded?: number | undefined
        /** For everything else. Default 0. */
        unbounded?: number | undefined
      }
    | undefined
  /**
   * When reads of cached data are copied by this thread, and when by kernel workers. The defaults
   * were measured; see ARCHITECTURE.md.
   */
  inline?:
    | {
        /** Reads shorter than this are always copied by this thread. */
        smallBytes?: number | undefined
        /** A read that is alone is, up to this length. */
        aloneBytes?: number | undefined
        /** Otherwise, until this many bytes were submitted in a turn of the event loop. */
        turnBytes?: number | undefined
      }
    | undefined
  /**
   * Keep histograms of how long operations take, by their names, in `queue.stats().latency`: two looks
   * at the clock for each. Default false.
   */
  latency?: boolean | undefined
  /** Register files, and memory for direct files, with the ring. Default true. */
  register?: boolean | undefined
  /**
   * Operations to do without, by their names in `capabilities.operations`, as on a kernel that lacks
   * them: to see how a program fares there. Default none.
   */
  without?: readonly HideableName[] | undefined
}

/** All of them: the compiler sees to that none is missing. */
const NAMES = Object.keys({
  backend: 0,
  entries: 0,
  cqEntries: 0,
  arena: 0,
  bounceBytes: 0,
  resultBytes: 0,
  workers: 0,
  inline: 0,
  latency: 0,
  register: 0,
  without: 0,
  setup: 0,
  sqpoll: 0,
  attach: 0,
  reap: 0,
  iopoll: 0,
  flushDelayUs: 0,
  restrict: 0,
} satisfies Record<keyof QueueOptions, 0>)
const BACKENDS: readonly BackendChoice[] = ['auto', 'io_uring', 'node:fs']
const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB
const UINT32_MAX = 2 ** 32 - 1
/** Chunks are numbered in 53 bits, which ends an arena at 64 GiB. */
const ARENA_BYTES_MAX = 64 * GIB

/** Checks which backend a caller asks for. Throws Node's `ERR_` errors. */
export function backendChoice(given: QueueOptions = {}): BackendChoice {
  checkOptions(given)
  const { backend = 'auto' } = given
  if (!BACKENDS.includes(backend)) {
    const reason = `must be one of ${BACKENDS.join(', ')}`
    throw invalidArgValue('options.backend', backend, reason)
  }
  return backend
}

/** Checks what a caller gave and fills the rest in. Throws Node's `ERR_` errors. */
export function engineOptions(given: QueueOptions = {}): EngineOptions {
  checkOptions(given)
  const { arena = {}, workers = {}, inline = {} } = given
  checkOptions(arena, 'options.arena')
  checkOptions(workers, 'options.workers')
  checkOptions(inline, 'options.inline')
  checkNames(given, NAMES)
  checkNames(arena, ['slabBytes', 'maxBytes'], 'options.arena')
  checkNames(workers, ['bounded', 'unbounded'], 'options.workers')
  checkNames(inline, ['smallBytes', 'aloneBytes', 'turnBytes'], 'options.inline')

  const entries = integer(given.entries, 'entries', 1024, 1, 32768)
  const slabBytes = integer(arena.slabBytes, 'arena.slabBytes', 2 * MIB, 64 * KIB, 4 * MIB)
  if ((slabBytes & (slabBytes - 1)) !== 0) {
    throw invalidArgValue('options.arena.slabBytes', slabBytes, 'must be a power of two')
  }
  const register = given.register ?? true
  checkBoolean(register, 'options.register')
  return {
    // A chain of two has to fit.
    entries: Math.max(entries, 2),
    cqEntries: Math.max(
      2,
      integer(given.cqEntries, 'cqEntries', Math.min(entries * 4, 65536), entries, 65536),
    ),
    slabBytes,
    allocBytes: integer(arena.maxBytes, 'arena.maxBytes', GIB, slabBytes, ARENA_BYTES_MAX),
    bounceBytes: integer(given.bounceBytes, 'bounceBytes', 64 * MIB, 2 * MIB, ARENA_BYTES_MAX),
    resultBytes: integer(given.resultBytes, 'resultBytes', GIB, 0, ARENA_BYTES_MAX),
    inlineSmallBytes: integer(inline.smallBytes, 'inline.smallBytes', 64 * KIB, 0, UINT32_MAX),
    inlineAloneBytes: integer(inline.aloneBytes, 'inline.aloneBytes', MIB, 0, UINT32_MAX),
    inlineTurnBytes: integer(inline.turnBytes, 'inline.turnBytes', 128 * KIB, 0, UINT32_MAX),
    boundedWorkers: integer(workers.bounded, 'workers.bounded', 0, 0, 65535),
    unboundedWorkers: integer(workers.unbounded, 'workers.unbounded', 0, 0, 65535),
    register,
    ...engineSetup(given),
  }
}

/** Who watches the operations, besides those who trace them. */
export function observerOf({ latency = false }: QueueOptions = {}): Observer {
  checkBoolean(latency, 'options.latency')
  return new Observer(latency)
}

/** Checks the names of operations to do without. */
export function hiddenOperations({ without = [] }: QueueOptions = {}): readonly string[] {
  if (!Array.isArray(without)) {
    throw invalidArgType('options.without', 'an instance of Array', without)
  }
  const unknown = without.find((name) => !HIDEABLE.includes(name as string))
  if (unknown === undefined) return [...without]
  throw invalidArgValue('options.without', unknown, `must be names of ${HIDEABLE.join(', ')}`)
}

function integer(
  value: number | undefined,
  name: string,
  fallback: number,
  min: number,
  max: number,
): number {
  if (value === undefined) return fallback
  checkInteger(value, `options.${name}`, min, max)
  return value
}
