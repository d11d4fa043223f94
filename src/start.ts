/**
 * Chooses what a queue runs on, once, when it is made: io_uring, or node:fs where that is missing or
 * forbidden. Nothing that happens to an operation later changes it.
 */
import { type Backend, type Deliver, type RawFunctions, UringBackend } from './backend.js'
import { uringError } from './errors.js'
import { NodeBackend } from './fallback/backend.js'
import { type Engine, type EngineCapabilities, type EngineOptions, loadBinding } from './native.js'
import type { BackendChoice } from './options.js'
import { asksByName, plain, setupRefused } from './setup.js'
import { chosen, explainUnavailable, type Unavailable } from './unavailable.js'

/** Completions that are delivered at once, at most. */
const BATCH_MAX = 4096
/** What no queue can do without. Linux 5.6 has all of it. */
const NEEDED = ['nop', 'read', 'write', 'fsync', 'openat', 'close', 'statx', 'timeout']
/**
 * The process or the system has no descriptor left just now, or no room for a thread. That passes, and
 * says nothing about io_uring: a queue that fell back because of it would be slow for as long as it lives.
 */
const PASSING = new Set(['EMFILE', 'ENFILE', 'EAGAIN'])

/** A backend, and where completions lie if there are several. */
export interface Started {
  readonly backend: Backend
  readonly pairs: Int32Array
}

/** Why there is no ring, and what was thrown if something was. */
interface Refused {
  readonly reason: Unavailable
  readonly cause?: unknown
}

/**
 * Starts what `choice` says; `deliver` gets the completions. With 'auto' the fallback has the reason
 * for which there is no ring.
 *
 * Throws ERR_URING_UNAVAILABLE, with `reason`, where there is no ring and the choice is 'io_uring';
 * with 'auto' when the ring was refused for lack of descriptors.
 */
export function startBackend(
  choice: BackendChoice,
  options: EngineOptions,
  deliver: Deliver,
): Started {
  const pairs = new Int32Array(BATCH_MAX * 2)
  if (choice === 'node:fs') {
    return { backend: new NodeBackend(options, deliver, pairs, chosen()), pairs }
  }
  const started = startUring(options, deliver, pairs)
  if (started instanceof UringBackend) return { backend: started, pairs }
  checkFallback(choice, options, started)
  return { backend: new NodeBackend(options, deliver, pairs, started.reason), pairs }
}

/**
 * Throws where node:fs may not stand in for the ring: it was not chosen, the reason will pass, or the
 * caller asked for a restriction, which only a ring has.
 */
function checkFallback(choice: BackendChoice, options: EngineOptions, refused: Refused): void {
  if (choice === 'auto' && !PASSING.has(refused.reason.code) && options.restrict === undefined)
    return
  throw uringError('ERR_URING_UNAVAILABLE', refused)
}

/** What a queue would be granted, what it would run on, and why. */
export interface Probed {
  readonly granted: EngineCapabilities
  readonly name: Backend['name']
  readonly reason: Unavailable | undefined
}

/** What {@link startBackend} would start, without keeping it. Throws as it does. */
export function probeBackend(choice: BackendChoice, options: EngineOptions): Probed {
  let reason = chosen()
  if (choice !== 'node:fs') {
    const probed = probeUring(options)
    if (!('reason' in probed)) return { granted: probed, name: 'io_uring', reason: undefined }
    checkFallback(choice, options, probed)
    reason = probed.reason
  }
  const backend = new NodeBackend(options, () => {}, new Int32Array(0), reason)
  const granted = backend.capabilities() as EngineCapabilities
  backend.close()
  return { granted, name: backend.name, reason }
}

function probeUring(options: EngineOptions): EngineCapabilities | Refused {
  if (process.platform !== 'linux') return { reason: explainUnavailable(undefined) }
  let engine: typeof Engine
  try {
    engine = loadBinding().Engine
  } catch (cause) {
    return { reason: explainUnavailable(cause), cause }
  }
  const granted = engine.probe(options)
  if (typeof granted === 'number') return refused(granted, options)
  return missing(granted) ? { reason: explainUnavailable(-22) } : granted
}

/** Why there is no ring: none is to be had, or, which throws, none with what was asked for by name. */
function refused(errno: number, options: EngineOptions): Refused {
  const reason = explainUnavailable(errno)
  // What passes says nothing about options either; a plain ring may have been one descriptor less.
  const mayBeNamed = asksByName(options) && !PASSING.has(reason.code)
  if (mayBeNamed && typeof loadBinding().Engine.probe(plain(options)) !== 'number') {
    throw setupRefused(errno, options)
  }
  return { reason }
}

/** By the probe, or where that is refused by a feature that came with them. */
function missing(granted: EngineCapabilities | null): boolean {
  const { operations = {}, features = {} } = granted ?? {}
  const hasProbed = Object.values(operations).includes(true)
  return hasProbed ? !NEEDED.every((name) => operations[name]) : features['rw_cur_pos'] !== true
}

function startUring(
  options: EngineOptions,
  deliver: Deliver,
  pairs: Int32Array<ArrayBuffer>,
): UringBackend | Refused {
  if (process.platform !== 'linux') return { reason: explainUnavailable(undefined) }
  let engine: Engine
  try {
    engine = new (loadBinding().Engine)()
  } catch (cause) {
    return { reason: explainUnavailable(cause), cause }
  }
  const errno = engine.start(options, deliver, pairs.buffer)
  if (errno < 0) return refused(errno, options)
  const raw = engine.functions() as RawFunctions | null
  if (raw === null) return { reason: explainUnavailable(-12) }
  if (!missing(engine.capabilities())) return new UringBackend(engine, raw)
  engine.close(0)
  return { reason: explainUnavailable(-22) }
}
