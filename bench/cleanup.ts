/**
 * What must be undone however the program ends: by itself, by an exception or by a signal. Undoing
 * is synchronous, last thing first, and goes on past failures. SIGKILL alone leaves things behind.
 */
const undos = new Set<() => void>()

/** Registers; call what is returned to undo it now. */
export function onExit(undo: () => void): () => void {
  undos.add(undo)
  return () => {
    if (undos.delete(undo)) undo()
  }
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

process.on('exit', undoAll)
for (const [signal, number] of [
  ['SIGHUP', 1],
  ['SIGINT', 2],
  ['SIGTERM', 15],
] as const) {
  process.once(signal, () => process.exit(128 + number))
}
