/**
 * node-uring: file I/O for Node.js through Linux io_uring.
 */
export type { Capabilities, CapabilityLimits, NotInUse, OperationName } from './capabilities.js'
export {
  AbortError,
  type DirectAlignment,
  type SystemError,
  type Unavailable,
  UringError,
  type UringErrorCode,
} from './errors.js'
export { type CloseOptions, File, type WriteOptions } from './file.js'
export type { RoundTripSummary } from './histogram.js'
export type { AllocBuffer } from './memory.js'
export type { QueueOptions } from './options.js'
export {
  type OpenOptions,
  Queue,
  type QueueStats,
  type RoundTripOptions,
} from './queue.js'
export type { Reap, SetupFlags, SetupOptions, TaskRun } from './setup.js'
export { Stats } from './stats.js'
