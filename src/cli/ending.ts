/**
 * How the command line ends: what must be undone however that happens (temporary files, the progress
 * line), and what a signal does. Undoing is synchronous, last thing first, and goes on past failures.
 * SIGKILL alone leaves things behind.
 */

const undos = new Set<() => void>()
let graceful: (() => void) | undefined

/** Registers; call what is returned to undo it now. */
export function onExit(undo: () => void): () => void {
  undos.add(undo)
  return () => {
    if (undos.delete(undo)) undo()
  }
}

/**
 * Lets the first signal end the work instead of the process, which sums up what it has; its exit code
 * is set. The second signal ends the process. Call what is returned when there is nothing to sum up.
 */
export function onInterrupt(stop: () => void): () => void {
  graceful = stop
  return () => {
    if (graceful === stop) graceful = undefined
  }
}

/** Installs what is said here. The exit code of a signal is 128 and its number, as in a shell. */
export function watchEnd(): void {
  process.on('exit', undoAll)
  for (const [signal, number] of [
    ['SIGHUP', 1],
    ['SIGINT', 2],
    ['SIGTERM', 15],
  ] as const) {
    process.on(signal, () => {
      // The terminal has written `^C` where the cursor was.
      if (signal === 'SIGINT' && process.stderr.isTTY) process.stderr.write('\r\x1b[K')
      const stop = graceful
      graceful = undefined
      if (stop === undefined) process.exit(128 + number)
      process.exitCode = 128 + number
      stop()
    })
  }
  // Whoever reads our output may have had enough (`| head`): SIGPIPE, which Node ignores.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(128 + 13)
    process.stderr.write(`node-uring: the output cannot be written: ${error.message}\n`)
    process.exit(1)
  })
}

function undoAll(): void {
  for (const undo of [...undos].reverse()) {
    undos.delete(undo)
    try {
      undo()
    } catch (error) {
      process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
    }
  }
}
