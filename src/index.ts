/**
 * node-uring: file I/O for Node.js through Linux io_uring.
 */
export {
  AbortError,
  type DirectAlignment,
  type SystemError,
  UringError,
  type UringErrorCode,
} from './errors.js'
export { type CloseOptions, File, type WriteOptions } from './file.js'
export type { RoundTripSummary } from './histogram.js'
export type { AllocBuffer } from './memory.js'
export type { BackendChoice, QueueOptions, TaskRun } from './options.js'
export {
  type Capabilities,
  type OpenOptions,
  Queue,
  type QueueStats,
  type RoundTripOptions,
} from './queue.js'
export { Stats } from './stats.js'
export type { Unavailable } from './unavailable.js'
