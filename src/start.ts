/**
 * Chooses what a queue runs on, once, when it is made: io_uring, or node:fs where that is missing or
 * forbidden. Nothing that happens to an operation later changes it.
 */
import { constants } from 'node:os'
import { type Backend, type Deliver, type RawFunctions, UringBackend } from './backend.js'
import { uringError } from './errors.js'
import { NodeBackend } from './fallback/backend.js'
import { type Engine, type EngineOptions, loadBinding } from './native.js'
import type { BackendChoice } from './options.js'
import { chosen, explainUnavailable, type Unavailable } from './unavailable.js'

const { EOPNOTSUPP } = constants.errno
/** Completions that are delivered at once, at most. */
const BATCH_MAX = 4096
/** What no queue can do without. Linux 5.6 has all of it; older kernels cannot say what they have. */
const NEEDED = ['nop', 'read', 'write', 'fsync', 'openat', 'close', 'statx', 'timeout']
/**
 * The process or the system has no descriptor left just now. That passes, and says nothing about
 * io_uring: a queue that fell back because of it would be slow for as long as it lives.
 */
const PASSING = new Set(['EMFILE', 'ENFILE'])

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
  if (choice === 'io_uring' || PASSING.has(started.reason.code)) {
    throw uringError('ERR_URING_UNAVAILABLE', started)
  }
  return { backend: new NodeBackend(options, deliver, pairs, started.reason), pairs }
}

function startUring(
  options: EngineOptions,
  deliver: Deliver,
  pairs: Int32Array<ArrayBuffer>,
): UringBackend | Refused {
  if (process.platform !== 'linux') return { reason: explainUnavailable(undefined) }
  // Bun exports libuv's functions, and aborts the process when one is called.
  if (process.versions['bun'] !== undefined) return { reason: explainUnavailable(-EOPNOTSUPP) }
  let engine: Engine
  try {
    engine = new (loadBinding().Engine)()
  } catch (cause) {
    return { reason: explainUnavailable(cause), cause }
  }
  const errno = engine.start(options, deliver, pairs.buffer)
  if (errno < 0) return { reason: explainUnavailable(errno) }
  const raw = engine.functions() as RawFunctions | null
  if (raw === null) return { reason: explainUnavailable(-12) }
  const operations = engine.capabilities()?.operations
  const missing = NEEDED.filter((name) => operations?.[name] !== true)
  if (missing.length === 0) return new UringBackend(engine, raw)
  engine.close(0)
  return { reason: explainUnavailable(-22) }
}
