/**
 * The errors of operations that the engine refuses before the kernel sees them. Callers have checked their
 * arguments, so most of them say that something went away meanwhile.
 */
import {
  REFUSED_CLOSED,
  REFUSED_CREDENTIALS,
  REFUSED_DESCRIPTORS,
  REFUSED_FAILED,
  REFUSED_PATH,
  REFUSED_UNKNOWN_CHUNK,
  REFUSED_UNKNOWN_FILE,
  syscallOf,
  syscallOfCall,
} from './backend.js'
import { ERRNO } from './errno.js'
import { internalError, systemError, uringError } from './errors.js'
import type { Operations } from './operations.js'
import type { Operation } from './slots.js'

const { EBADF, EMFILE, ENAMETOOLONG, ENOENT } = ERRNO

/** PATH_MAX, less the NUL. path_resolution(7). */
const PATH_BYTES_MAX = 4095

/** What an operation that the engine did not take rejects with. */
export function refusalError(operations: Operations, op: Operation, refusal: number): Error {
  switch (refusal) {
    case REFUSED_CLOSED:
      return uringError('ERR_URING_CLOSED')
    case REFUSED_FAILED:
      return operations.ended?.() ?? internalError('the engine has failed and did not say so')
    case REFUSED_UNKNOWN_FILE:
      return systemError(EBADF, syscallOf(op.opcode), { file: op.file?.path })
    case REFUSED_DESCRIPTORS:
      return systemError(EMFILE, syscallOf(op.opcode))
    case REFUSED_PATH:
      return refusedPath(op)
    case REFUSED_CREDENTIALS:
      return uringError('ERR_URING_CREDENTIALS')
    case REFUSED_UNKNOWN_CHUNK:
      return operations.transfers.bufferGone(op)
    default:
      return internalError(`the engine refused a ${syscallOf(op.opcode)} (${refusal})`)
  }
}

/** A call with one path, or with two that lie behind each other in `bytes`, the first `length` long. */
type OfPaths = Pick<Operation, 'opcode' | 'offset' | 'bytes' | 'length' | 'path' | 'dest'>

/**
 * Why the engine would take no path of this call, if it is one of paths. Found out before, it ends a chain
 * where it stands in it; by the engine, all of it.
 */
export function problemOfPaths(op: OfPaths): Error | undefined {
  const { bytes, length, path, dest } = op
  if (path === undefined || bytes === undefined) return undefined
  const lengths = dest === undefined ? [bytes.length] : [length, bytes.length - length]
  const isGood = lengths.every((each) => each > 0 && each <= PATH_BYTES_MAX)
  return isGood ? undefined : refusedPath(op)
}

/** The engine takes no path that the kernel would not look at. */
function refusedPath(op: OfPaths): Error {
  const { bytes, length, path, dest } = op
  const isEmpty = bytes === undefined || bytes.length === 0
  const oneIsEmpty = isEmpty || (dest !== undefined && (length === 0 || length === bytes.length))
  return systemError(oneIsEmpty ? ENOENT : ENAMETOOLONG, syscallOfCall(op), { path, dest })
}
