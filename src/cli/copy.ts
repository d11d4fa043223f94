/**
 * `node-uring copy`: copies a file through the ring with many pieces in flight, reads both files back
 * and compares their digests. What it writes has another name until all of it is right.
 */
import { createHash, randomBytes } from 'node:crypto'
import { fchmodSync, linkSync, lstatSync, renameSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { File } from '../file.js'
import { Queue } from '../queue.js'
import type { Stats } from '../stats.js'
import { type Command, Failure, parse } from './command.js'
import { onExit } from './ending.js'
import { gauge, Progress, painter } from './terminal.js'
import { bytes, duration } from './units.js'

const PIECE_BYTES = 1 << 20
const PIECES_AT_ONCE = 16
/** Of the mode, what is kept: to pass setuid on is not for a copy. */
const PERMISSIONS = 0o777

const USAGE = `\
node-uring copy: copies a file through io_uring, and verifies the copy

Usage: npx node-uring copy [--force] SOURCE TARGET

  --force, -f  overwrite TARGET

${PIECES_AT_ONCE} MiB are in flight at once. Then both files are read again and their SHA-256
compared; what is in the page cache comes from there. TARGET has the permissions
of SOURCE, is on stable storage, and appears whole or not at all: it is written
under another name beside it. In a folder it gets the name of SOURCE. ctrl-C
leaves nothing behind. Where there is no io_uring it copies by node:fs.
`

export const copy: Command = {
  name: 'copy',
  summary: 'copy a file through io_uring, and verify the copy',
  usage: USAGE,
  async run(args) {
    const options = { force: { type: 'boolean', short: 'f', default: false } } as const
    const { values, positionals } = parse(args, options, ['SOURCE', 'TARGET'])
    const [source = '', target = ''] = positionals
    const queue = new Queue()
    try {
      const to = destination(source, target, values.force)
      const { length, digest, elapsedMs } = await copyFile(queue, source, to, values.force)
      const paint = painter(process.stdout)
      const rate = elapsedMs > 0 && length > 0 ? `, ${bytes((length / elapsedMs) * 1000)}/s` : ''
      const took = duration(elapsedMs * 1e6)
      process.stdout.write(
        `${source} → ${to}: ${bytes(length)} copied in ${took}${rate}, ${paint('green', 'verified')}\n` +
          `${paint('dim', `sha256 ${digest}`)}\n`,
      )
    } finally {
      await queue.close()
    }
  },
}

/** Where the copy goes; throws where there is something that is not to be overwritten. */
function destination(source: string, target: string, force: boolean): string {
  if (target === '') throw new Failure('TARGET has no name.')
  const from = stat(source)
  // Not opened to find out: a FIFO would wait for its other end.
  if (from !== undefined && !from.isFile()) throw new Failure(`${source} is no regular file.`)
  const into = stat(target)
  const to = into?.isDirectory() ? join(target, basename(resolve(source))) : target
  // A dangling link is something, too.
  const there = stat(to) ?? lstat(to)
  // Told now, and not when all of it is copied and gets its name.
  if (there === undefined && to.endsWith('/')) throw new Failure(`There is no folder ${to}.`)
  if (there === undefined) return to
  if (from !== undefined && from.dev === there.dev && from.ino === there.ino) {
    throw new Failure(`${source} and ${to} are the same file.`)
  }
  if (there.isDirectory()) throw new Failure(`${to} is a folder.`)
  if (!there.isFile()) throw new Failure(`${to} is no regular file.`)
  if (!force) throw new Failure(`${to} exists; --force overwrites it.`)
  return to
}

interface Copied {
  length: number
  digest: string
  /** Until it was on stable storage. */
  elapsedMs: number
}

async function copyFile(
  queue: Queue,
  source: string,
  target: string,
  force: boolean,
): Promise<Copied> {
  const progress = new Progress()
  const from = await queue.open(source)
  const stats = await from.stat()
  if (!stats.isFile()) throw new Failure(`${source} is no regular file.`)
  const { size } = stats
  // Not made of the target's name, which may be as long as a name can be.
  const temporary = join(dirname(target), `.node-uring-${randomBytes(6).toString('hex')}.tmp`)
  // Nobody else may read it before it has the mode that it is to have.
  const opened = queue.open(temporary, 'wx+', { mode: 0o600 })
  const to = await opened.catch((error) => throwOfTarget(error, temporary, target))
  const remove = onExit(() => rmSync(temporary, { force: true }))
  try {
    const started = performance.now()
    await transfer(queue, from, to, size, (done) => meter(progress, 'copying', done, size, started))
    fchmodSync(to.fd, stats.mode & PERMISSIONS)
    await to.sync()
    const elapsedMs = performance.now() - started

    const verifying = performance.now()
    const onProgress = (done: number) => meter(progress, 'verifying', done, size * 2, verifying)
    const digest = await verify(queue, [from, to], stats, onProgress)
    await to.close()
    appear(temporary, target, force)
    await syncFolder(queue, dirname(target))
    return { length: size, digest, elapsedMs }
  } catch (error) {
    return throwOfTarget(error, temporary, target)
  } finally {
    progress.clear()
    remove()
  }
}

/** Tells of TARGET what is about the name that it has meanwhile, of which nobody has heard. */
function throwOfTarget(error: unknown, temporary: string, target: string): never {
  const { code, path, syscall, message } = error as NodeJS.ErrnoException
  if (code === undefined || path !== temporary) throw error
  const what = message.slice(0, message.lastIndexOf(`, ${syscall}`))
  throw new Failure(`${target} cannot be written: ${what}.`)
}

/** Copies `size` bytes: each lane has one buffer, and reads and writes piece by piece. */
async function transfer(
  queue: Queue,
  from: File,
  to: File,
  size: number,
  onProgress: (done: number) => void,
): Promise<void> {
  let [next, done] = [0, 0]
  const lane = async (): Promise<void> => {
    const buffer = queue.alloc(Math.min(PIECE_BYTES, size))
    while (next < size) {
      const position = next
      next += PIECE_BYTES
      const piece = buffer.subarray(0, Math.min(PIECE_BYTES, size - position))
      if ((await from.readAt(piece, position)) !== piece.length) throw changed(from)
      await to.writeAt(piece, position)
      done += piece.length
      onProgress(done)
    }
    queue.free(buffer)
  }
  const lanes = Math.min(PIECES_AT_ONCE, Math.ceil(size / PIECE_BYTES))
  await Promise.all(Array.from({ length: lanes }, lane))
  if ((await from.readAt(Buffer.alloc(1), size)) !== 0) {
    const why = 'it grows, or is made when it is read, as those in /proc'
    throw new Failure(`${from.path} is longer than its size says: ${why}.`)
  }
}

/** The digest of both; throws when they differ, or the source is not what it was. */
async function verify(
  queue: Queue,
  [from, to]: [File, File],
  stats: Stats,
  onProgress: (done: number) => void,
): Promise<string> {
  let done = 0
  const onPiece = (length: number) => {
    done += length
    onProgress(done)
  }
  const [wanted, found] = await Promise.all([
    digestOf(queue, from, stats.size, onPiece),
    digestOf(queue, to, stats.size, onPiece),
  ])
  const now = await from.stat()
  if (now.size !== stats.size || now.mtimeMs !== stats.mtimeMs) throw changed(from)
  if (wanted !== found) throw new Failure(`The copy differs: ${found}, and not ${wanted}.`)
  return wanted
}

/** SHA-256 of the first `size` bytes, read ahead by half of what may be in flight. */
async function digestOf(
  queue: Queue,
  file: File,
  size: number,
  onPiece: (length: number) => void,
): Promise<string> {
  const hash = createHash('sha256')
  const ahead: { piece: Buffer; count: Promise<number> }[] = []
  let next = 0
  const begin = (buffer: Buffer): void => {
    if (next >= size) {
      queue.free(buffer)
      return
    }
    const piece = buffer.subarray(0, Math.min(PIECE_BYTES, size - next))
    const count = file.readAt(piece, next)
    // Awaited in its turn; one before it may fail first.
    count.catch(() => {})
    ahead.push({ piece, count })
    next += piece.length
  }
  const pieces = Math.min(PIECES_AT_ONCE / 2, Math.ceil(size / PIECE_BYTES))
  for (let i = 0; i < pieces; i++) begin(queue.alloc(PIECE_BYTES))
  for (let first = ahead.shift(); first !== undefined; first = ahead.shift()) {
    if ((await first.count) !== first.piece.length) throw changed(file)
    hash.update(first.piece)
    onPiece(first.piece.length)
    begin(Buffer.from(first.piece.buffer))
  }
  return hash.digest('hex')
}

/** Gives the finished file its name. Without `force` it takes nobody's, whenever that one came. */
function appear(temporary: string, target: string, force: boolean): void {
  try {
    if (force) renameSync(temporary, target)
    else linkSync(temporary, target)
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (force) throw error
    if (code === 'EEXIST') throw new Failure(`${target} exists by now; --force overwrites it.`)
    // A file system without links.
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(code)) throw error
    if (lstat(target) !== undefined) throw new Failure(`${target} exists by now.`)
    renameSync(temporary, target)
  }
}

/** Brings the name to stable storage. */
async function syncFolder(queue: Queue, path: string): Promise<void> {
  const folder = await queue.open(path)
  await folder.sync()
  await folder.close()
}

function meter(
  progress: Progress,
  verb: string,
  done: number,
  total: number,
  startedMs: number,
): void {
  progress.show((width) => {
    const part = total === 0 ? 1 : done / total
    const perMs = done / Math.max(1, performance.now() - startedMs)
    const rest = duration(((total - done) / perMs) * 1e6)
    const left = `${verb.padEnd(9)}  `
    const right = `  ${String(Math.floor(part * 100)).padStart(3)}%  ${bytes(perMs * 1000)}/s  ${rest} left`
    return left + gauge(part, Math.max(8, Math.min(40, width - left.length - right.length))) + right
  })
}

function changed(file: File): Failure {
  return new Failure(`${file.path} changed while it was copied.`)
}

function stat(path: string) {
  return statSync(path, { throwIfNoEntry: false })
}

function lstat(path: string) {
  return lstatSync(path, { throwIfNoEntry: false })
}
