/**
 * What the syncs of a file come to, beside and after each other. The kernel tells of a failed write-back once
 * for each time that a file is opened: the first that looks is told, and those that run beside it or come
 * later find nothing wrong (`file_check_and_advance_wb_err` in Linux; fsync(2)), though it was their data.
 * Here a success counts when all that ran beside it have succeeded, and after a failure there is none
 * until the file is opened anew.
 *
 * A sync runs from when the kernel has it, and one that is linked behind another operation from when that is
 * over: nobody waits for what may never begin.
 */
import {
  FLAG_DRAIN,
  OP_FSYNC,
  OP_SPLICE,
  OP_SYNC_FILE_RANGE,
  OP_WRITE,
  OP_WRITEV,
} from './backend.js'
import { ERRNO } from './errno.js'
import { Fifo } from './fifo.js'
import { DSYNC } from './modifiers.js'
import { KIND_MANY, type Operation } from './slots.js'

const { EACCES, EAGAIN, EBADF, ECANCELED, EDQUOT, EINTR, EINVAL, EIO } = ERRNO
const { ENOSPC, ENOSYS, ENOTSUP, ESPIPE } = ERRNO
/** What says of a sync that it was not done, and nothing of the data: a wrong argument, a ring that may not. */
const NOT_DONE: ReadonlySet<number> = new Set(
  [EACCES, EAGAIN, EBADF, ECANCELED, EINTR, EINVAL, ENOSYS, ENOTSUP, ESPIPE].map((errno) => -errno),
)

/**
 * What a write that syncs may say of others' data: as what a failed write-back is kept (`mapping_set_error` in
 * Linux; ext4, XFS and Btrfs keep what they had). A disk that is full now says the same, and cannot be told apart.
 */
export const MAY_BE_REPORTS: ReadonlySet<number> = new Set([-EIO, -ENOSPC, -EDQUOT])

/** One sync. */
export interface Sync {
  readonly op: Operation
  readonly number: number
  /** Whether it is a write that syncs what it wrote, and that alone. */
  readonly isWrite: boolean
  /** The how manieth it is of those that ran; 0 before it does. */
  place: number
  isOver: boolean
  /** While its success waits for those beside it: of those the last, and what it comes to. */
  held: { readonly last: number; readonly result: number } | undefined
}

function isWrite(opcode: number): boolean {
  return opcode === OP_WRITE || opcode === OP_WRITEV || opcode === OP_SPLICE
}

/** Whether an operation tells of failed write-back, and takes the report away from others. */
export function isSync({ opcode, file, flags }: Operation): boolean {
  if (file === undefined) return false
  if (opcode === OP_FSYNC || opcode === OP_SYNC_FILE_RANGE) return true
  return isWrite(opcode) && (file.dsync || (flags & DSYNC) !== 0)
}

/** Notes that an operation was staged, behind the one before it in its chain if there is one. */
export function noteSync(op: Operation, before?: Operation): void {
  if (!isSync(op)) return
  // What drains runs beside nothing. A splice may wait for what never comes, and the others not for it.
  const waits = op.opcode === OP_SPLICE && op.other?.isRegular !== true
  op.file?.syncs.add(op, before === undefined && (op.flags & FLAG_DRAIN) === 0 && !waits)
  if (before !== undefined) before.follower = op.sync
}

/**
 * A write that nobody asked to sync has failed. Where all is mounted to be synced it, too, may have been told of
 * what others lost.
 */
export function noteFailed({ opcode, file }: Operation, result: number): void {
  if (file === undefined || !isWrite(opcode) || !MAY_BE_REPORTS.has(result)) return
  if (file.isMountedSync) file.syncs.fail(result)
}

/** The syncs of one file. */
export class Syncs {
  readonly #isStaged: (slot: number) => boolean
  readonly #goOnWith: (op: Operation, result: number) => void
  #begun = 0
  /** Those that the engine may not have submitted yet, in its order. */
  readonly #staged = new Fifo<Sync>()
  readonly #running = new Fifo<Sync>()
  /** Those whose success is held, in their order. */
  readonly #held = new Fifo<Sync>()
  /** What the first that failed came to, and the last that had begun when one did. */
  #failure = 0
  #failedLast = 0

  /** `goOnWith` is called with what each comes to, when that is known. */
  constructor(
    isStaged: (slot: number) => boolean,
    goOnWith: (op: Operation, result: number) => void,
  ) {
    this.#isStaged = isStaged
    this.#goOnWith = goOnWith
  }

  /** One was staged; it `runs` as soon as it is submitted, or when {@link begins} says so. */
  add(op: Operation, runs: boolean): void {
    op.sync = {
      op,
      number: op.number,
      isWrite: isWrite(op.opcode),
      place: 0,
      isOver: false,
      held: undefined,
    }
    if (runs) this.#staged.push(op.sync)
  }

  /** The operation before it is over. */
  begins(sync: Sync): void {
    if (sync.place === 0 && !sync.isOver) this.#run(sync)
  }

  #run(sync: Sync): void {
    sync.place = ++this.#begun
    this.#running.push(sync)
  }

  /** One is complete with `result`. Of many writes the `outcome` is what the worst of them came to. */
  arrived(sync: Sync, result: number, outcome = result): void {
    const { op, isWrite } = sync
    this.#takeSubmitted()
    // What drains ran by itself, and after all that ended before.
    if (sync.place === 0) this.#run(sync)
    sync.isOver = true
    if (outcome >= 0) this.#succeeded(sync, result)
    else {
      // Others of a write are of the write itself.
      const isFailure = isWrite ? MAY_BE_REPORTS.has(outcome) : !NOT_DONE.has(outcome)
      if (isFailure) this.#fail(sync, outcome)
      this.#goOnWith(op, result)
    }
    this.#release()
  }

  #succeeded(sync: Sync, result: number): void {
    const { op, isWrite, place } = sync
    const isLost = this.#failure !== 0 && (!isWrite || place <= this.#failedLast)
    if (isLost) this.#undo(sync, result, this.#failure)
    else if (this.#oldest() === undefined) this.#goOnWith(op, result)
    else if ((op.behind ?? op).cancelled) this.#undo(sync, result, -ECANCELED)
    else {
      sync.held = { last: this.#begun, result }
      this.#held.push(sync)
    }
  }

  /** Ends one that is held with ECANCELED. */
  cancel(sync: Sync): void {
    this.#letGo(sync, -ECANCELED)
  }

  /** Something that is none of these was told of a failure: whatever is held may have run beside it. */
  fail(result: number): void {
    this.#takeSubmitted()
    this.#fail({ place: 0 }, result)
  }

  /** What is staged in the order of the calls is submitted in it. */
  #takeSubmitted(): void {
    for (let sync = this.#staged.first; sync !== undefined; sync = this.#staged.first) {
      if (!sync.isOver && this.#isStaged(sync.op.slot)) return
      this.#staged.shift()
      if (!sync.isOver) this.#run(sync)
    }
  }

  /** The oldest that runs. */
  #oldest(): Sync | undefined {
    while (this.#running.first?.isOver) this.#running.shift()
    return this.#running.first
  }

  /** One has failed: so have those held that it ran beside. */
  #fail({ place }: Pick<Sync, 'place'>, result: number): void {
    if (this.#failure === 0) this.#failure = result
    this.#failedLast = this.#begun
    const lost: Sync[] = []
    for (let sync = this.#held.last; sync !== undefined; sync = this.#held.last) {
      if (sync.held !== undefined && sync.held.last < place) break
      this.#held.pop()
      lost.push(sync)
    }
    for (const sync of lost.reverse()) this.#letGo(sync, this.#failure)
  }

  /** Goes on with those beside which none runs any more. */
  #release(): void {
    for (let sync = this.#held.first; sync !== undefined; sync = this.#held.first) {
      const oldest = this.#oldest()?.place ?? Infinity
      if (sync.held !== undefined && sync.held.last >= oldest) return
      this.#held.shift()
      this.#letGo(sync, sync.held?.result ?? 0)
    }
  }

  /** Goes on with one that is held, unless it was cancelled or its record is another operation's by now. */
  #letGo(sync: Sync, result: number): void {
    const { op, number, held } = sync
    sync.held = undefined
    if (held === undefined || op.number !== number) return
    if (result < 0) this.#undo(sync, held.result, result)
    else this.#goOnWith(op, result)
  }

  /** Goes on with one that had succeeded as if it had failed. What it has written it has, and says so. */
  #undo({ op, isWrite }: Sync, succeeded: number, result: number): void {
    if (isWrite && op.kind !== KIND_MANY) op.done += succeeded
    this.#goOnWith(op, result)
  }
}
