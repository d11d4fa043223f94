/**
 * Messages between the queues of a process, also of different threads: what a queue has for sending and
 * for hearing them. `messages.ts` keeps those that came.
 */
import { OP_MSG_RING } from './backend.js'
import type { LimitOptions } from './limits.js'
import type { MessageListener } from './messages.js'
import { op } from './op.js'
import type { Operations } from './operations.js'
import { done, Paths } from './paths.js'
import { run } from './run.js'
import { checkFunction } from './validate.js'

/** What a queue does with messages. */
export class Posts extends Paths {
  readonly #operations: Operations

  /** @internal */
  constructor(operations: Operations) {
    super(operations)
    this.#operations = operations
  }

  /**
   * Posts `value`, an integer from -2^31 to 2^31-1, to the queue whose {@link Queue.handle} is given: of
   * this process, also of another thread, or this one itself. Resolves when the kernel has put it into
   * that queue's completion queue, or will when that queue's thread next looks (DEFER_TASKRUN). Rejects
   * with EBADF or EBADFD where the number is no queue's. IORING_OP_MSG_RING, Linux 5.18.
   */
  post(handle: number, value: number, options?: LimitOptions): Promise<void> {
    return done(run(this.#operations, op.post(handle, value), options))
  }

  /**
   * Called with each message that is posted to this queue; null for nobody. While there is a listener
   * the queue keeps the process alive, unless {@link Queue.unref} was called; while there is none, the
   * first 65,536 messages are kept for one. What it throws is uncaught, and the next message is told all
   * the same. Throws `ERR_URING_UNSUPPORTED` where nobody can post, which is before Linux 5.18.
   */
  get onmessage(): MessageListener | null {
    return this.#operations.messages.listener
  }

  set onmessage(listener: MessageListener | null | undefined) {
    const { backend, kernel, messages } = this.#operations
    if (listener !== null && listener !== undefined) {
      checkFunction(listener, 'onmessage')
      kernel.require(OP_MSG_RING)
    }
    messages.listener = listener ?? null
    backend.setListening(messages.listener !== null)
  }
}
