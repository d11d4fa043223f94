/**
 * node-uring: file I/O for Node.js through Linux io_uring.
 */
export type { BatchResult, SubmitOptions } from './batch.js'
export type { Capabilities, CapabilityLimits, NotInUse, OperationName } from './capabilities.js'
export {
  AbortError,
  type DirectAlignment,
  type SystemError,
  UringError,
  type UringErrorCode,
} from './errors.js'
export { File, type ManyOptions, type WriteOptions } from './file.js'
export type { CloseOptions } from './file-state.js'
export type { RoundTripSummary } from './histogram.js'
export type { LimitOptions } from './limits.js'
export type { AllocBuffer } from './memory.js'
export { type BatchOperation, op, type TimeoutOptions } from './op.js'
export type { BackendChoice, QueueOptions } from './options.js'
export {
  type OpenOptions,
  Queue,
  type QueueStats,
  type RoundTripOptions,
} from './queue.js'
export type { ReplaceOptions } from './replace.js'
export type { Reap, SetupFlags, SetupOptions, TaskRun } from './setup.js'
export { Stats } from './stats.js'
export type { Unavailable } from './unavailable.js'
export type { ManyLengths, Positions } from './volume.js'
