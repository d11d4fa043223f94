/**
 * What the kernel has of the operations, and which kernel brought each. Asks the engine once, when it
 * has to know; `without` hides operations, as if the kernel lacked them.
 */
import { OP_RENAMEAT } from './backend.js'
import type { OperationName } from './capabilities.js'
import { uringError } from './errors.js'
import type { EngineCapabilities } from './native.js'

/** By opcode of ours: the name in `capabilities.operations`, and the kernel that brought it. */
const OPERATIONS: readonly (readonly [name: string, since: string])[] = [
  ['nop', '5.1'],
  ['read', '5.6'],
  ['write', '5.6'],
  ['fsync', '5.1'],
  ['ftruncate', '6.9'],
  ['openat', '5.6'],
  ['close', '5.6'],
  ['statx', '5.6'],
  ['timeout', '5.4'],
  ['link_timeout', '5.5'],
  ['renameat', '5.11'],
  ['unlinkat', '5.11'],
  ['fallocate', '5.6'],
  ['fadvise', '5.6'],
  ['sync_file_range', '5.2'],
  ['linkat', '5.15'],
  ['symlinkat', '5.15'],
  ['mkdirat', '5.15'],
  ['splice', '5.7'],
  ['poll_add', '5.1'],
  ['send', '5.6'],
  ['recv', '5.6'],
  ['readv', '5.1'],
  ['writev', '5.1'],
  ['msg_ring', '5.18'],
]

/** Operations that can be hidden: all but those that no queue can be without. */
export type HideableName = Exclude<
  OperationName,
  | 'nop'
  | 'read'
  | 'write'
  | 'read_fixed'
  | 'write_fixed'
  | 'fsync'
  | 'openat'
  | 'close'
  | 'timeout'
  | 'link_timeout'
  | 'async_cancel'
>

/** The names of {@link HideableName}. */
export const HIDEABLE: readonly string[] = [
  'ftruncate',
  'openat2',
  'statx',
  ...OPERATIONS.slice(OP_RENAMEAT).map(([name]) => name),
]

/** The operations of one queue's kernel. */
export class Kernel {
  readonly #ask: () => EngineCapabilities | null
  readonly #hidden: ReadonlySet<string>
  #has: EngineCapabilities | undefined

  constructor(ask: () => EngineCapabilities | null, without: readonly string[]) {
    this.#ask = ask
    this.#hidden = new Set(without)
  }

  /** What the kernel granted, hidden operations aside; null when the queue is closed. */
  capabilities(): EngineCapabilities | null {
    const granted = this.#ask()
    if (granted === null || this.#hidden.size === 0) return granted
    const operations = { ...granted.operations }
    for (const name of this.#hidden) operations[name] = false
    return { ...granted, operations }
  }

  get #known(): EngineCapabilities | undefined {
    this.#has ??= this.capabilities() ?? undefined
    return this.#has
  }

  /** Entries of the submission queue, as the kernel made it; 0 when nobody asked before it was closed. */
  get entries(): number {
    return this.#known?.entries ?? 0
  }

  /** Whether it has an operation, by its name in `capabilities.operations`. */
  supports(name: string): boolean {
    return this.#known?.operations[name] ?? false
  }

  /**
   * Whether it lacks an operation, by its opcode. A closed queue lacks nothing: it says so itself. Nor
   * does a kernel that would not be probed: what it has not got it refuses with EINVAL.
   */
  lacks(opcode: number): boolean {
    const name = OPERATIONS[opcode]?.[0]
    const known = this.#known
    if (name === undefined || known === undefined || known.operations[name] === true) return false
    return this.#hidden.has(name) || Object.values(known.operations).includes(true)
  }

  /** Throws `ERR_URING_UNSUPPORTED` for an operation that it lacks. */
  require(opcode: number): void {
    if (this.lacks(opcode)) throw unsupported(opcode)
  }
}

/** What is said of an operation that the kernel lacks. */
export function unsupported(opcode: number): Error {
  const [name = 'operation', since = ''] = OPERATIONS[opcode] ?? []
  const feature = `The operation ${name}`
  return uringError('ERR_URING_UNSUPPORTED', { feature, needs: `io_uring of Linux ${since}` })
}
