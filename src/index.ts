/// <reference types="node" preserve="true" />
/**
 * node-uring: file I/O for Node.js through Linux io_uring.
 */
export type { BatchResult, SubmitOptions } from './batch.js'
export type { BatchOperation } from './batch-operation.js'
export type { Capabilities, CapabilityLimits, NotInUse, OperationName } from './capabilities.js'
export type { CopyOptions } from './copy.js'
export {
  AbortError,
  type DirectAlignment,
  type SystemError,
  UringError,
  type UringErrorCode,
} from './errors.js'
export { File, type ManyOptions } from './file.js'
export type { CloseOptions } from './file-state.js'
export type { Durations } from './histogram.js'
export type { HideableName } from './kernel.js'
export type { LimitOptions } from './limits.js'
export type { AllocBuffer } from './memory.js'
export type { MessageListener, MessageStats } from './messages.js'
export type {
  ReadOptions,
  RecvOptions,
  UnsyncedWriteOptions,
  WriteOptions,
} from './modifiers.js'
export type { Latency, OperationMessage } from './observer.js'
export { op, type ReadFlags, type TimeoutOptions, type WriteFlags } from './op.js'
export {
  type Advice,
  type AllocateSettings,
  POLL,
  type SpliceSettings,
  type SyncRangeSettings,
} from './op-files.js'
export type { MakeSettings, OpenSettings, PathLike, Resolve, StatSettings } from './op-paths.js'
export type { BackendChoice, QueueOptions } from './options.js'
export type { MakeOptions, StatOptions } from './paths.js'
export {
  type OpenOptions,
  Queue,
  type QueueStats,
} from './queue.js'
export type { Content, ReplaceOptions } from './replace.js'
export type { RoundTripOptions, RoundTripStages, RoundTripSummary } from './round-trip.js'
export type { Reap, SetupFlags, SetupOptions, TaskRun } from './setup.js'
export { Stats } from './stats.js'
export type { Unavailable } from './unavailable.js'
export type { ManyLengths, Positions } from './volume.js'
