/**
 * The sides that are processes: the floor of this project (bench/floor) and fio, each a child
 * process a round. They report their own times; starting them is not measured.
 */
import { type ChildProcess, type ExecFileException, execFile, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { onExit } from './cleanup.js'
import type { Cost, Side } from './harness.js'

const PROJECT = fileURLToPath(new URL('..', import.meta.url))

/** What the floor says of a run; the rest of its report is in the JSON that it prints. */
export interface FloorReport {
  ring: { entries: number; setupFlags: string[]; registeredRing: boolean }
  perOperation: { wallNs: { median: number }; cpuNs: { median: number } }
}

/** Builds the floor and returns the path of its executable. `NODE_URING_FLOOR` names one instead. */
export async function buildFloor(): Promise<string> {
  const given = process.env['NODE_URING_FLOOR']
  if (given !== undefined) return given
  const args = ['build', '--release', '--package', 'node-uring-floor', '--message-format=json']
  const output = await run('cargo', args, PROJECT)
  for (const line of output.split('\n')) {
    const message = line.startsWith('{') ? (JSON.parse(line) as CargoMessage) : {}
    if (message.target?.name === 'node-uring-floor' && message.executable) {
      return message.executable
    }
  }
  throw new Error('cargo built no node-uring-floor')
}

interface CargoMessage {
  target?: { name: string }
  executable?: string | null
}

/** Runs the floor once. */
export async function runFloor(program: string, args: string[]): Promise<FloorReport> {
  return JSON.parse(await run(program, args)) as FloorReport
}

/** The floor as a side; `args` are its command and options. */
export function floorSide(name: string, program: string, ...args: string[]): Side {
  return {
    name,
    async run(operations) {
      const counts = ['--operations', `${operations}`, '--warmup', `${Math.ceil(operations / 10)}`]
      const { perOperation } = await runFloor(program, [...args, ...counts])
      return { wallNs: perOperation.wallNs.median, cpuNs: perOperation.cpuNs.median }
    },
  }
}

/** What fio is to do. Waiting for the whole batch, or for one as with O_DIRECT. */
export interface FioJob {
  file: string
  depth: number
  direct: boolean
  /** Default: io_uring. */
  engine?: 'io_uring' | 'psync'
}

/** fio's engine at the floor's settings, with everything off that takes time. */
export function fioArguments({ file, depth, direct, engine = 'io_uring' }: FioJob): string[] {
  return [
    ...['--name=bench', `--filename=${file}`, `--ioengine=${engine}`, '--rw=randread', '--bs=4k'],
    ...[`--direct=${direct ? 1 : 0}`, '--invalidate=0', '--norandommap', '--randrepeat=0'],
    ...[`--iodepth=${depth}`, `--iodepth_batch_submit=${depth}`],
    ...[`--iodepth_batch_complete_min=${direct ? 1 : depth}`],
    `--iodepth_batch_complete_max=${depth}`,
    ...(engine === 'io_uring' ? ['--registerfiles=1', ...(direct ? ['--fixedbufs=1'] : [])] : []),
    ...['--gtod_reduce=1', '--disk_util=0', '--thread', '--output-format=json'],
  ]
}

export function fioSide(name: string, job: FioJob): Side {
  return {
    name,
    async run(operations): Promise<Cost> {
      const output = await run('fio', [...fioArguments(job), `--io_size=${operations * 4096}`])
      const report = JSON.parse(output.slice(output.indexOf('{'))) as FioReport
      const [first] = report.jobs
      if (first === undefined || first.error !== 0) throw new Error(`fio failed: ${output}`)
      const { total_ios: count, runtime: elapsedMs } = first.read
      const wallNs = (elapsedMs * 1e6) / count
      return { wallNs, cpuNs: (wallNs * (first.usr_cpu + first.sys_cpu)) / 100 }
    },
  }
}

interface FioReport {
  jobs: {
    error: number
    usr_cpu: number
    sys_cpu: number
    read: { total_ios: number; runtime: number }
  }[]
}

/** Runs a program for what it prints; throws what it says when it fails. */
export function run(program: string, args: string[], cwd?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const done = (error: ExecFileException | null, stdout: string, stderr: string) => {
      forget()
      if (error === null) resolve(stdout)
      else reject(new Error(`${program} failed: ${stderr.trim() || error.message}`))
    }
    const options = { cwd, maxBuffer: 64 << 20 }
    const forget = endWithUs(execFile(program, args, options, done))
  })
}

/** Kills the child if we end first; call what is returned when it has ended. */
export function endWithUs(child: ChildProcess): () => void {
  let ended = false
  const undo = onExit(() => {
    if (!ended) child.kill('SIGKILL')
  })
  return () => {
    ended = true
    undo()
  }
}

/**
 * A side that is a process of its own, running `program`, which answers with {@link answerRounds}.
 * `end` ends it; otherwise it ends with us.
 */
export async function processSide<Answer extends Cost = Cost>(
  name: string,
  program: string,
  args: string[],
): Promise<Omit<Side, 'run'> & { run(operations: number): Promise<Answer>; end(): void }> {
  const child = fork(program, args)
  const forget = endWithUs(child)
  const answer = <T>() =>
    new Promise<T>((resolve, reject) => {
      child.once('message', (message) => {
        child.off('exit', gone)
        resolve(message as T)
      })
      const gone = (code: number | null) => {
        forget()
        reject(new Error(`the side "${name}" ended with ${code}`))
      }
      child.once('exit', gone)
    })
  await answer<'ready'>()
  return {
    name,
    pid: child.pid,
    run(operations) {
      child.send(operations)
      return answer<Answer>()
    },
    end() {
      forget()
      child.disconnect()
    },
  }
}

/** In such a process: does the rounds that are asked for, until nobody asks any more. */
export function answerRounds(round: (operations: number) => Promise<Cost>): void {
  process.on('message', async (operations: number) => process.send?.(await round(operations)))
  process.on('disconnect', () => process.exit(0))
  process.send?.('ready')
}
