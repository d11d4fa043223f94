/**
 * Why there is no ring here, in words, and what to do about it: from the errno of io_uring_setup(2)
 * or from what was thrown when the binary was loaded. Pure but for reading our own version.
 */
import { createRequire } from 'node:module'
import { errnoWords } from './errno.js'

/** Why a ring cannot be used here, or is not. */
export interface Unavailable {
  /**
   * The name of `errno`; `MODULE_NOT_FOUND`, `ERR_DLOPEN_FAILED` or `ERR_DLOPEN_DISABLED` when there is no
   * binary, or Node.js does not load it;
   * `CHOSEN` when the option `backend` asked for node:fs.
   */
  code: string
  /** The system's error number, negative as in node:fs; undefined when no system call failed. */
  errno: number | undefined
  /** What happened, in a sentence. */
  message: string
  /** What to do about it. */
  help: string
}

/** Causes of causes that are looked at. */
const CHAIN_MAX = 8

/** What refused a ring or a binary, and what to do: code → [what happened, help]. */
const UNAVAILABLE: Readonly<Record<string, readonly [message: string, help: string]>> = {
  ENOSYS: [
    'The kernel has no io_uring, or a sandbox hides it.',
    'Linux 5.10 or later has it; gVisor and some seccomp profiles answer as if it had not.',
  ],
  EPERM: [
    'The system forbids io_uring to this process.',
    'Either `sysctl kernel.io_uring_disabled` is not 0 (1 allows CAP_SYS_ADMIN and the group ' +
      'kernel.io_uring_group), or a seccomp filter refuses: the default profile of Docker does, ' +
      'so give one that allows io_uring_setup, io_uring_enter and io_uring_register by ' +
      '`docker run --security-opt seccomp=profile.json`.',
  ],
  EACCES: [
    'A security module or seccomp filter refused io_uring to this process.',
    'Allow it in the SELinux or AppArmor policy, or in the seccomp profile of the container.',
  ],
  ENOMEM: [
    'There is not enough memory that may be locked for the ring.',
    'See `ulimit -l`; raise it (LimitMEMLOCK= in systemd, `docker run --ulimit memlock=-1`), ' +
      'open fewer queues, or give `entries` a smaller number.',
  ],
  EMFILE: [
    'This process has too many open files; a ring is one.',
    'See `ulimit -n`; raise it, or close some.',
  ],
  ENFILE: ['The system has too many open files; a ring is one.', 'See `sysctl fs.file-max`.'],
  // clone(2), of the thread of `reap: 'thread'` and of `sqpoll`.
  EAGAIN: [
    'There is no room for another thread, which this ring needs.',
    'See `ulimit -u`, and pids.max of the control group; end some.',
  ],
  EINVAL: [
    'The kernel does not know what was asked of the ring: it is too old, or an option is wrong.',
    'Linux 5.10 or later is needed (`uname -r`); try it without options.',
  ],
  ENOTSUP: [
    'The kernel can lose completions (IORING_FEAT_NODROP is of Linux 5.5).',
    'Run it on Linux 5.10 or later.',
  ],
  ERR_DLOPEN_DISABLED: [
    'Node.js was told to load no binaries, and node-uring has one.',
    'Leave --no-addons out; with --permission, add --allow-addons, and know that --allow-fs-read and ' +
      '--allow-fs-write do not bind what a binary does.',
  ],
  ERR_DLOPEN_FAILED: [
    'The binary of node-uring is here but cannot be loaded.',
    'It may be for another platform or C library: reinstall on this machine, and see the cause.',
  ],
}

/** What is said when a binary is not loaded; not every loader keeps the code. dlopen(3) begins with the path. */
const LOADING = new Map([
  ['ERR_DLOPEN_DISABLED', /loading addons is disabled/],
  ['ERR_DLOPEN_FAILED', /\.node: /],
])

/** The packages that have a binary, by the names that the loader of napi-rs looks for. */
const PACKAGES = ['x64-gnu', 'x64-musl', 'arm64-gnu', 'arm64-musl'].map(
  (target) => `node-uring-linux-${target}`,
)

/**
 * Says why there is no ring: `failure` is the errno of io_uring_setup(2) with either sign, or
 * what was thrown when the binary was loaded. `platform` is as in `process.platform`.
 */
export function explainUnavailable(
  failure: unknown,
  platform: string = process.platform,
): Unavailable {
  if (platform !== 'linux') {
    const message = `io_uring is a part of Linux, and this is ${platform}.`
    return { code: 'ENOSYS', errno: undefined, message, help: 'Run it on Linux.' }
  }
  let code: string | undefined
  let errno: number | undefined
  if (typeof failure === 'number') {
    errno = -Math.abs(failure)
    code = errnoWords(errno)[0]
  } else {
    code = codeOfLoading(failure)
    if (code === undefined) return noBinary(failure)
  }
  const unknown = ['The kernel refused to set up a ring.', 'See io_uring_setup(2).'] as const
  const [message, help] = UNAVAILABLE[code] ?? unknown
  return { code, errno, message, help }
}

/** The reason of a queue that was asked to run on node:fs. */
export function chosen(): Unavailable {
  return {
    code: 'CHOSEN',
    errno: undefined,
    message: "The option `backend: 'node:fs'` asks for it.",
    help: 'Leave the option out: then io_uring is used where it can be.',
  }
}

/** npm leaves optional packages out by a flag, by a lock file of another platform, and by mistake. */
function noBinary(failure: unknown): Unavailable {
  const [code, errno] = ['MODULE_NOT_FOUND', undefined]
  const wanted = missingPackages(failure).find((name) => PACKAGES.includes(name))
  if (wanted === undefined && process.env['NAPI_RS_NATIVE_LIBRARY_PATH']) {
    const message = 'NAPI_RS_NATIVE_LIBRARY_PATH names no binary of node-uring.'
    return { code, errno, message, help: 'Correct it, or leave it out.' }
  }
  if (wanted === undefined && isElsewhere(failure)) {
    const message = 'The package node-uring is not found from here: this is a bundle of it, alone.'
    const help =
      'Install it where the bundle runs, or there is no binary; and leave it out of bundles in CommonJS ' +
      '(`esbuild --external:node-uring`), which cannot find it.'
    return { code, errno, message, help }
  }
  if (wanted === undefined) {
    const message = `No binary of node-uring was found for ${process.platform} on ${process.arch}.`
    const help = 'There are some for Linux on x64 and arm64; others can be built from a clone.'
    return { code, errno, message, help }
  }
  const message = `The package ${wanted}, which has the binary for this platform, is not installed.`
  const help =
    'npm skips optional packages with --omit=optional, with a package-lock.json of another ' +
    `platform, and now and then by mistake. Install it by \`npm install ${wanted}${atVersion()}\`.`
  return { code, errno, message, help }
}

/**
 * Whether the package was not found by its own name, as it is in itself: what runs is a copy in a bundle. Where
 * that is in CommonJS it does not know where it is, and createRequire() gets undefined.
 */
function isElsewhere(failure: unknown): boolean {
  const { code, message } = Object(failure) as { code?: unknown; message?: string }
  if (code === 'MODULE_NOT_FOUND') return message?.includes(`'node-uring/binding'`) === true
  return code === 'ERR_INVALID_ARG_VALUE'
}

/** The packages that the loader did not find, by the errors that it chains. */
function missingPackages(failure: unknown, depth = 0): string[] {
  if (!(failure instanceof Error) || depth > CHAIN_MAX) return []
  const name = /Cannot find (?:module|package) '(node-uring-[a-z0-9-]+)'/.exec(failure.message)?.[1]
  const others = [failure.cause].flat().flatMap((cause) => missingPackages(cause, depth + 1))
  return name === undefined ? others : [name, ...others]
}

/** `@1.2.3`, our own version, which the package with the binary has too. */
function atVersion(): string {
  try {
    // By name and not by path: in a bundle, a path would lead to somebody else's file.
    const require = createRequire(import.meta.url)
    const { version } = require('node-uring/package.json') as { version: string }
    return `@${version}`
  } catch {
    // A bundle may be all that there is.
    return ''
  }
}

/**
 * Why a binary that was found is not loaded; undefined if none was: the loader of napi-rs tries several and
 * chains what they threw.
 */
function codeOfLoading(failure: unknown, depth = 0): string | undefined {
  if (!(failure instanceof Error) || depth > CHAIN_MAX) return undefined
  const { code } = failure as { code?: unknown }
  for (const [known, words] of LOADING) {
    if (code === known || words.test(failure.message)) return known
  }
  for (const cause of [failure.cause].flat()) {
    const found = codeOfLoading(cause, depth + 1)
    if (found !== undefined) return found
  }
  return undefined
}
