/**
 * Loads the binding: the one place where the compiled module is reached. It is loaded when the first
 * queue is made and not at import, so that its absence can be caught and explained.
 */
import { createRequire } from 'node:module'
import type * as Binding from '../index.js'

export type {
  Engine,
  EngineCapabilities,
  EngineOptions,
  EngineStamps,
  EngineStats,
  Opened,
  Pipe,
} from '../index.js'

let binding: typeof Binding | undefined

/**
 * The compiled module. Throws what its generated loader throws, whose chain of causes says why:
 * `MODULE_NOT_FOUND` where there is none for this platform, `ERR_DLOPEN_FAILED` where it does not fit.
 */
export function loadBinding(): typeof Binding {
  // By name and not by path: in a bundle, a path would lead to somebody else's file.
  binding ??= createRequire(import.meta.url)('node-uring/binding') as typeof Binding
  return binding
}
