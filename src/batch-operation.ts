/**
 * The description of an operation, made by `op`'s constructors and run by a batch or by a method: which
 * call, with which arguments, on what; and what is made of what it comes to. It begins nothing.
 */
import { type InspectOptions, inspect } from 'node:util'
import { syscallOfCall } from './backend.js'
import type { File } from './file.js'
import type { FileState } from './file-state.js'
import type { Limits } from './limits.js'
import type { Operations } from './operations.js'
import type { Stats } from './stats.js'

/** What an operation can come to, when it does not fail. */
export type Result = number | File | Stats

/** What an operation of this type comes to. */
export type ResultOf<Operation> = Operation extends BatchOperation<infer T> ? T : never

/** What an operation is made of; the names are those of the record that carries it. */
export interface Parts<T extends Result> {
  file?: FileState | undefined
  /** Of a splice: the file that it reads from. */
  other?: FileState
  view?: ArrayBufferView
  /** Memory that the engine is told of in `bytes`; kept so that it stays. */
  buffers?: readonly ArrayBufferView[]
  length?: number
  position?: number | bigint
  offset?: number
  /** Modifiers beside the opcode. */
  flags?: number
  bytes?: Uint8Array
  path?: string
  dest?: string
  /** What can be checked when it is known which queue it is for; throws. */
  check?: (operations: Operations) => void
  /** Makes what is told of what the call gave. */
  finish?: (operations: Operations, value: unknown, limits?: Limits) => Promise<T>
}

/**
 * An operation for {@link Queue.submit}, made by {@link op}. It may be submitted more than once. What
 * it comes to when it does not fail is a `T`.
 */
export class BatchOperation<T extends Result = number> {
  // Not `instanceof`: a Proxy of one, or an object with its prototype, would pass and be asked again.
  readonly #made = true
  /** @internal */
  static isMade(value: unknown): value is BatchOperation<Result> {
    return typeof value === 'object' && value !== null && #made in value
  }

  /** What it comes to: for the compiler alone, it is never there. */
  declare readonly comesTo?: T
  /** @internal */
  readonly opcode: number
  /** @internal */
  readonly file: FileState | undefined
  /** @internal */
  readonly other: FileState | undefined
  /** They are not collected, and so closed, as long as the operation may be submitted. @internal */
  readonly kept: readonly unknown[]
  /** @internal */
  readonly view: ArrayBufferView | undefined
  /** @internal */
  readonly buffers: readonly ArrayBufferView[] | undefined
  /** @internal */
  readonly length: number
  /** @internal */
  readonly position: number | bigint
  /** @internal */
  readonly offset: number
  /** @internal */
  readonly flags: number
  /** @internal */
  readonly bytes: Uint8Array | undefined
  /** @internal */
  readonly path: string | undefined
  /** @internal */
  readonly dest: string | undefined
  /** @internal */
  readonly check: Parts<T>['check']
  /** @internal */
  readonly finish: Parts<T>['finish'];

  /** What errors and `console.log` show of it. @internal */
  [inspect.custom](_depth: number, options: InspectOptions): string {
    const { path = this.file?.path, dest } = this
    const shown = { call: syscallOfCall(this), ...(path && { path }), ...(dest && { dest }) }
    return `BatchOperation ${inspect(shown, options)}`
  }

  /** @internal */
  constructor(opcode: number, parts: Parts<T> = {}) {
    this.opcode = opcode
    this.file = parts.file
    this.other = parts.other
    this.kept = [parts.file?.owner?.deref(), parts.other?.owner?.deref()]
    this.view = parts.view
    this.buffers = parts.buffers
    this.length = parts.length ?? 0
    this.position = parts.position ?? 0
    this.offset = parts.offset ?? 0
    this.flags = parts.flags ?? 0
    this.bytes = parts.bytes
    this.path = parts.path
    this.dest = parts.dest
    this.check = parts.check
    this.finish = parts.finish
  }
}
