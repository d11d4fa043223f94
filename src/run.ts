/**
 * One operation by itself, for the method of its name: what a batch does for many. Where the kernel
 * lacks it and node:fs has the same call, that takes its place.
 */
import { syscallOfCall } from './backend.js'
import type { BatchOperation, Result } from './batch-operation.js'
import { closedError, rejected } from './errors.js'
import { checkLimits, type LimitOptions, type Limits, overBefore } from './limits.js'
import { FALLBACKS } from './op-paths.js'
import type { Operations } from './operations.js'

/** Checks the limits among a method's options, and runs; throws what cannot be before it begins. */
export function run<T extends Result>(
  operations: Operations,
  made: BatchOperation<T>,
  options: LimitOptions | undefined,
): Promise<T> {
  const limits = checkLimits(options)
  const { opcode, file, other } = made
  const fallback = operations.kernel.lacks(opcode) ? FALLBACKS.get(opcode) : undefined
  if (fallback === undefined) {
    operations.kernel.require(opcode)
    made.check?.(operations)
  }
  for (const each of [file, other]) {
    if (each?.closed) return rejected(closedError(each, syscallOfCall(made)))
  }
  if (operations.ended !== undefined) return rejected(operations.ended())
  const over = overBefore(limits, opcode, undefined, syscallOfCall(made))
  if (over !== undefined) return rejected(over)
  if (fallback === undefined) return byRing(operations, made, limits)
  // It cannot be cancelled: it settles with its true result.
  return operations.outside(file, opcode, async () => {
    return ((await fallback(made as BatchOperation<never>)) ?? 0) as T
  })
}

async function byRing<T extends Result>(
  operations: Operations,
  made: BatchOperation<T>,
  limits: Limits | undefined,
): Promise<T> {
  const { opcode, file, other, offset, length, position, bytes, flags, path, dest, finish } = made
  const options = { bytes, flags, other, limits, path, dest }
  const value = await operations.call(opcode, file, offset, length, position, options)
  if (typeof value === 'number' && value < 0) {
    const named = { path, dest, file: file?.path }
    return rejected(operations.failure(value, syscallOfCall(made), named))
  }
  if (finish === undefined) return value as T
  return finish(operations, value, limits)
}
