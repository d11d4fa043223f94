/**
 * On which CPU sides run. The interrupts of a disk go to one of them, and a thread that runs elsewhere takes
 * up to a sixth more CPU time for each read: beside a side that happens to be there nothing is compared.
 */
import { execFileSync } from 'node:child_process'

/** Whether sides can be moved: there is taskset(1), and it may. Where not, the scheduler decides. */
export function canMove(): boolean {
  try {
    moveTo(ownCpus().join(), [process.pid])
    return true
  } catch {
    return false
  }
}

/** The CPUs that the main thread may run on, as `taskset` takes them. */
export function ownCpus(): string[] {
  const output = taskset('-c', '-p', `${process.pid}`)
  const list = output.slice(output.lastIndexOf(':') + 1).trim()
  return list.split(',').flatMap((range) => {
    const [first, last] = range.split('-').map(Number) as [number, number?]
    const count = (last ?? first) - first + 1
    return Array.from({ length: count }, (_, i) => `${first + i}`)
  })
}

/** Moves the main threads of processes, and with ours all that it starts from now on. */
export function moveTo(cpus: string, processes: readonly number[]): void {
  for (const id of processes) taskset('-c', '-p', cpus, `${id}`)
}

function taskset(...args: string[]): string {
  return execFileSync('taskset', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}
