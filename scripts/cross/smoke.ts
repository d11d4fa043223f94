/**
 * Runs the smoke program (__test__/fixtures/smoke.mjs) with each binary that was built for another
 * machine, in a guest with real io_uring, and prints what ran where:
 *
 *     node --import tsx scripts/cross/smoke.ts [NAME]…
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { Missing } from '../guest/debian.js'
import { boot } from '../guest/guest.js'
import { ROOT, type Runtime } from '../guest/system.js'
import { gnuRuntime, muslRuntime } from './runtimes.js'

const RUNTIMES: Record<string, () => Runtime> = {
  'x64, glibc 2.31': () => gnuRuntime('amd64', 'bullseye'),
  'arm64, glibc 2.36': () => gnuRuntime('arm64', 'bookworm'),
  'x64, musl 1.2.5': () => muslRuntime('amd64'),
  'arm64, musl 1.2.5': () => muslRuntime('arm64'),
}

const chosen = process.argv.slice(2)
const names = chosen.length > 0 ? chosen : Object.keys(RUNTIMES)
for (const name of names) {
  const runtime = RUNTIMES[name]
  if (runtime === undefined) throw new Error(`no ${name} among ${Object.keys(RUNTIMES).join('; ')}`)
  try {
    console.log(`${name}: ${await smoke(runtime())}`)
  } catch (error) {
    console.log(`${name}: ${error instanceof Missing ? error.message : String(error)}`)
    process.exitCode = 1
  }
}

/** What ran, in a line; throws with all that the guest said when it did not end well. */
async function smoke(runtime: Runtime): Promise<string> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'node-uring-cross-'))
  try {
    const image = path.join(folder, 'image')
    writeFileSync(image, '')
    execFileSync('truncate', ['-s', '64M', image])
    execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', image])
    const end = await boot({
      kernel: '6.1',
      runtime,
      program: readFileSync(path.join(ROOT, '__test__/fixtures/smoke.mjs'), 'utf8'),
      args: ['/mnt'],
      before: 'mount -t ext4 /dev/nvme0n1 /mnt',
      drives: [`file=${image},format=raw`],
      timeoutMs: 300_000,
    }).ended
    const said = end.lines.find((line) => line.startsWith('smoke: '))
    if (end.code !== 0 || said === undefined) throw new Error(`failed\n${end.lines.join('\n')}`)
    const { backend, arch, node, direct, capabilities } = JSON.parse(said.slice('smoke: '.length))
    const { kernel, setupFlags } = capabilities
    const bytes = readFileSync(runtime.binding).length
    return `${backend} on ${arch}, Node.js ${node}, Linux ${kernel}, direct I/O ${direct}, ${setupFlags.join(' ')}; ${path.basename(runtime.binding)}, ${bytes} bytes`
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
