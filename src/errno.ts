/**
 * Names and words of the system's error numbers: libuv's, as node:fs has them, and those of Linux
 * that libuv does not know. Pure; it makes no error.
 */
import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'

/** errno (negative) → [code, words], the table that node:fs itself uses. */
const OF_LIBUV = getSystemErrorMap()

/**
 * The rest of what io_uring and file systems answer with, by <asm-generic/errno.h>, with the words
 * of strerror(3). node:fs would say `Unknown system error -62`.
 */
const OF_LINUX = new Map<number, [code: string, words: string]>(
  process.platform === 'linux'
    ? [
        [-8, ['ENOEXEC', 'exec format error']],
        [-10, ['ECHILD', 'no child processes']],
        [-15, ['ENOTBLK', 'block device required']],
        [-35, ['EDEADLK', 'resource deadlock avoided']],
        [-37, ['ENOLCK', 'no locks available']],
        [-51, ['EL2HLT', 'level 2 halted']],
        [-53, ['EBADR', 'invalid request descriptor']],
        [-62, ['ETIME', 'timer expired']],
        [-63, ['ENOSR', 'out of streams resources']],
        [-74, ['EBADMSG', 'bad message']],
        [-77, ['EBADFD', 'file descriptor in bad state']],
        [-85, ['ERESTART', 'interrupted system call should be restarted']],
        [-87, ['EUSERS', 'too many users']],
        [-115, ['EINPROGRESS', 'operation now in progress']],
        [-116, ['ESTALE', 'stale file handle']],
        [-117, ['EUCLEAN', 'structure needs cleaning']],
        [-122, ['EDQUOT', 'disk quota exceeded']],
        [-123, ['ENOMEDIUM', 'no medium found']],
        [-124, ['EMEDIUMTYPE', 'wrong medium type']],
        [-126, ['ENOKEY', 'required key not available']],
        [-130, ['EOWNERDEAD', 'owner died']],
        [-133, ['EHWPOISON', 'memory page has hardware error']],
      ]
    : [],
)

/** The name of an error number (negative) and its words: `['EBADF', 'bad file descriptor']`. */
export function errnoWords(errno: number): readonly [code: string, words: string] {
  const unknown = `Unknown system error ${errno}`
  return OF_LIBUV.get(errno) ?? OF_LINUX.get(errno) ?? [unknown, unknown]
}

/** The error numbers that this package knows by name. */
const NAMES = [
  'EACCES',
  'EAGAIN',
  'EALREADY',
  'EBADF',
  'ECANCELED',
  'EDQUOT',
  'EEXIST',
  'EFBIG',
  'EINTR',
  'EINVAL',
  'EIO',
  'EISDIR',
  'ELOOP',
  'EMFILE',
  'ENAMETOOLONG',
  'ENOENT',
  'ENOMEM',
  'ENOSPC',
  'ENOSYS',
  'ENOTSUP',
  'EPERM',
  'ESPIPE',
  'ETIME',
] as const

/**
 * Error numbers by name, positive, as node:fs negates them: libuv's, which on Windows are not those
 * of `os.constants`. ETIME is not libuv's.
 */
export const ERRNO: Readonly<Record<(typeof NAMES)[number], number>> = (() => {
  const byName = new Map<string, number>()
  for (const [errno, [name]] of OF_LIBUV) byName.set(name, -errno)
  const found = NAMES.map((name) => [name, byName.get(name) ?? constants.errno[name]])
  return Object.fromEntries(found)
})()
