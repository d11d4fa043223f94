/**
 * What belongs to the thread that made it. A structured clone of a Queue or a File is `{}`: postMessage and
 * `workerData` throw DataCloneError in place of that, from Node 22.10.
 */
import * as threads from 'node:worker_threads'

const { markAsUncloneable } = threads as { markAsUncloneable?: (object: object) => void }

/** Keeps an object from being posted to another thread. */
export function keepToThisThread(object: object): void {
  markAsUncloneable?.(object)
}
