/** What a result depends on besides us: machine, kernel, Node, file system. Only looks. */
import { readFileSync } from 'node:fs'
import { arch, availableParallelism, cpus, loadavg, release } from 'node:os'
import { mountOf } from './scratch.js'

export interface Host {
  date: string
  kernel: string
  cpu: string
  cores: number
  node: string
  /** Threads of node:fs's pool. */
  poolThreads: number
  fileSystem: string
  /** Processes that ran when we began, averaged over a minute: at rest it is below 1. */
  load: number
}

export function describeHost(folder: string): Host {
  const { type, device } = mountOf(folder)
  return {
    date: new Date().toISOString(),
    kernel: release(),
    cpu: `${cpuModel()} (${arch()})`,
    cores: availableParallelism(),
    node: process.version,
    poolThreads: Number(process.env['UV_THREADPOOL_SIZE'] ?? 4),
    fileSystem: `${type} on ${device}`,
    load: loadavg()[0] ?? 0,
  }
}

function cpuModel(): string {
  const [first] = cpus()
  if (first !== undefined && first.model.trim() !== '') return first.model.trim()
  return /^Hardware\s*: (.+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown'
}
