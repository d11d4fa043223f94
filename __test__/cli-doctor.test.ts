// `node-uring doctor`: what it finds here, where the kernel refuses, and where the binary is missing;
// and its judgement of machines that this is not.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import test from 'ava'
import { type Facts, platformPackage } from '../src/cli/doctor/facts.ts'
import { type Case, diagnose, type Finding } from '../src/cli/doctor/findings.ts'
import { explainUnavailable } from '../src/unavailable.ts'
import { assertEnded, each, runChild, story } from './helpers/child.js'
import { assertPlain, cli } from './helpers/cli.js'
import { folder } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'

const root = fileURLToPath(new URL('..', import.meta.url))

interface Told {
  version: string
  backend: string
  findings: Finding[]
  facts: Facts
  binary: { path: string; bytes: number; version: string } | null
  ring: {
    reason: { code: string; help: string } | null
    capabilities: object
    nop: { samples: number }
  }
}

const NAMES = [
  ...['platform', 'kernel', 'node', 'container', 'sysctl', 'seccomp', 'memlock', 'nofile'],
  ...['package', 'binary', 'ring', 'features', 'operations', 'refused', 'direct', 'nop', 'read'],
]

test('where io_uring works doctor finds nothing that forbids it, and ends with 0', async (t) => {
  const ended = await cli(['doctor'])
  assertEnded(t, ended)
  assertPlain(t, ended.stdout)
  for (const name of NAMES) t.regex(ended.stdout, new RegExp(`^  [✓•!] ${name} `, 'm'), name)
  t.notRegex(ended.stdout, /✗/)
  t.regex(ended.stdout, /\nio_uring works here\./)
})

test('doctor --json has every finding, every fact, the binary and what the ring can do', async (t) => {
  const ended = await cli(['doctor', '--json'])
  assertEnded(t, ended)
  const told = JSON.parse(ended.stdout) as Told
  const { version, backend, findings, facts, binary, ring } = told
  t.deepEqual({ backend, version }, { backend: 'io_uring', version: facts.package.version })
  const names = findings.map(({ name }) => name).filter((name) => name !== 'security')
  t.deepEqual(names, NAMES)
  for (const { found, help } of findings) t.true(found.length > 0 && help !== '')
  t.is(facts.kernel, fs.readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim())
  t.is(facts.node, process.version)
  t.is(fs.statSync(binary!.path).size, binary!.bytes)
  t.is(binary!.version, version)
  t.is(ring.reason, null)
  t.is(ring.nop.samples, 2000)
  t.true('operations' in ring.capabilities && 'features' in ring.capabilities)
})

const traceable = needs(test.serial, {
  commands: ['strace'],
  that: {
    holds: spawnSync('strace', ['-o', '/dev/null', 'true'], { stdio: 'ignore' }).status === 0,
    reason: 'strace may not trace here',
  },
})

for (const [errno, remedy] of [
  ['EPERM', /seccomp/],
  ['ENOSYS', /Linux 5\.10 or later/],
  ['EACCES', /SELinux or AppArmor/],
  ['ENOMEM', /ulimit -l/],
] as const) {
  traceable(
    `where io_uring_setup gives ${errno} doctor ends with 1 and names the remedy`,
    async (t) => {
      t.timeout(100_000)
      const inject = `inject=io_uring_setup:error=${errno}`
      const under = [
        'strace',
        '-f',
        '-qq',
        '-o',
        '/dev/null',
        '-e',
        'trace=io_uring_setup',
        '-e',
        inject,
      ]
      const env = { UV_USE_IO_URING: '0' }
      const ended = await cli(['doctor'], { under, env })
      assertEnded(t, ended, { code: 1 })
      const text = ended.stdout.replaceAll(/\s+/g, ' ')
      t.regex(text, new RegExp(`✗ ring none \\(${errno}\\): .* → .*`))
      t.regex(text, remedy)
      t.regex(text, new RegExp(`does not work here \\(${errno}\\): queues run on node:fs`))

      const json = await cli(['doctor', '--json'], { under, env })
      assertEnded(t, json, { code: 1 })
      const { backend, ring, findings } = JSON.parse(json.stdout) as Told
      t.is(backend, 'node:fs')
      t.is(ring.reason?.code, errno)
      t.is(findings.find(({ name }) => name === 'ring')?.status, 'failure')
    },
  )
}

test('without a binary doctor ends with 1 and names the package and the command that installs it', async (t) => {
  t.timeout(100_000)
  // A copy of the package as it is where npm left the binary out.
  const copy = path.join(folder(t), 'node-uring')
  fs.cpSync(path.join(root, 'dist'), path.join(copy, 'dist'), { recursive: true })
  for (const file of ['package.json', 'index.js']) {
    fs.copyFileSync(path.join(root, file), path.join(copy, file))
  }
  const main = pathToFileURL(path.join(copy, 'dist/cli/main.js'))
  const env = { FORCE_COLOR: undefined }
  const ended = await runChild(main, { args: ['doctor'], env })
  assertEnded(t, ended, { code: 1 })
  const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))
  const text = ended.stdout.replaceAll(/\s+/g, ' ')
  const name = platformPackage(process.platform, process.arch) ?? ''
  t.regex(text, new RegExp(`✗ binary none: the package ${name} is missing`))
  t.true(text.includes(`npm install ${name}@${version}`), story(ended))
  t.regex(text, /does not work here \(MODULE_NOT_FOUND\)/)

  await each(['nop', 'bench x'], async (command) => {
    const other = await runChild(main, { args: command.split(' '), env })
    const stderr = /io_uring cannot be used here \(MODULE_NOT_FOUND\)(.|\n)*node-uring doctor/
    assertEnded(t, other, { code: 1, stdout: '', stderr }, command)
  })
})

test('a binary of something else is named by doctor, with the variable that names it', async (t) => {
  const binary = path.join(folder(t), 'other.node')
  fs.writeFileSync(binary, 'not a shared object')
  const ended = await cli(['doctor'], { env: { NAPI_RS_NATIVE_LIBRARY_PATH: binary } })
  assertEnded(t, ended, { code: 1 })
  const text = ended.stdout.replaceAll(/\s+/g, ' ')
  t.true(text.includes(`binary found, but it cannot be loaded: ${binary}`), text)
  t.true(text.includes('Unset NAPI_RS_NATIVE_LIBRARY_PATH.'), text)
})

// ---- machines that this is not --------------------------------------------------------------------

const HERE: Facts = {
  platform: 'linux',
  arch: 'x64',
  kernel: '6.12.1',
  libc: { name: 'glibc', version: '2.36' },
  node: 'v22.12.0',
  containers: [],
  ioUringDisabled: 0,
  ioUringGroup: -1,
  inIoUringGroup: false,
  seccomp: 0,
  securityLabel: null,
  capabilities: { sysAdmin: false, ipcLock: false },
  memlock: { soft: 8 << 20, hard: 8 << 20 },
  nofile: { soft: 1024, hard: 4096 },
  openFiles: 20,
  package: { version: '1.2.3', path: '/app/node_modules/node-uring' },
  platformPackage: 'node-uring-linux-x64-gnu',
  override: null,
}

function judged(facts: Partial<Facts>, failure?: number): Map<string, Finding> {
  const reason = failure === undefined ? null : explainUnavailable(failure, 'linux')
  const it: Case = {
    facts: { ...HERE, ...facts },
    ring: { reason, capabilities: null, nop: null, read: null, direct: null },
    binary: { path: '/x.node', bytes: 1, version: '1.2.3' },
  }
  const findings = diagnose(it).flatMap((group) => group.findings)
  return new Map(findings.map((finding) => [finding.name, finding]))
}

const EPERM = 1

test('io_uring_disabled = 2 is a failure for everybody, 1 for those without the right', (t) => {
  const two = judged({ ioUringDisabled: 2, capabilities: { sysAdmin: true, ipcLock: true } }, EPERM)
  t.is(two.get('sysctl')?.status, 'failure')
  t.regex(two.get('sysctl')?.help ?? '', /sysctl -w kernel\.io_uring_disabled=0/)
  const one = judged({ ioUringDisabled: 1 }, EPERM)
  t.is(one.get('sysctl')?.status, 'failure')
  t.regex(one.get('sysctl')?.help ?? '', /kernel\.io_uring_group=GID/)
  t.regex(one.get('sysctl')?.found ?? '', /: for CAP_SYS_ADMIN alone, not this process$/)
  for (const may of [
    { inIoUringGroup: true },
    { capabilities: { sysAdmin: true, ipcLock: false } },
  ]) {
    t.is(judged({ ioUringDisabled: 1, ...may }, EPERM).get('sysctl')?.status, 'note')
  }
  t.is(judged({ ioUringDisabled: null }).get('sysctl')?.status, 'ok')
})

test('a seccomp filter is blamed only where io_uring is refused', (t) => {
  t.is(judged({ seccomp: 2 }).get('seccomp')?.status, 'ok')
  t.is(judged({ seccomp: 2 }, EPERM).get('seccomp')?.status, 'failure')
  t.is(judged({ seccomp: 2 }, 12).get('seccomp')?.status, 'note')
  t.is(judged({ seccomp: 0 }, EPERM).get('seccomp')?.status, 'ok')
})

test('in a container that refuses, the help names what runs the container', (t) => {
  const help = (hint: string) => judged({ containers: [hint] }, EPERM).get('container')?.help ?? ''
  t.regex(help('Docker (/.dockerenv)'), /docker run --security-opt seccomp=profile\.json/)
  t.regex(help('Podman (/run/.containerenv)'), /podman run --security-opt/)
  t.regex(help('Kubernetes (KUBERNETES_SERVICE_HOST)'), /securityContext\.seccompProfile/)
  t.is(judged({ containers: ['Docker (/.dockerenv)'] }).get('container')?.help, null)
})

test('old kernels, other platforms and small limits are told with what to do', (t) => {
  t.is(judged({ kernel: '5.4.0-26-generic' }).get('kernel')?.status, 'failure')
  t.is(judged({ kernel: '5.10.0' }).get('kernel')?.status, 'note')
  t.is(judged({ kernel: '6.1.0-9-amd64' }).get('kernel')?.status, 'ok')
  t.is(judged({ platform: 'darwin', libc: null }).get('platform')?.status, 'failure')
  t.false(judged({ platform: 'darwin' }).has('sysctl'))
  t.is(judged({ node: 'v20.18.0' }).get('node')?.status, 'warning')
  const nofile = judged({ nofile: { soft: 256, hard: 4096 } }).get('nofile')
  t.is(nofile?.status, 'warning')
  t.regex(nofile?.help ?? '', /ulimit -n.*Up to 4096/)
  const memlock = judged({ memlock: { soft: 0, hard: 0 } }, 12).get('memlock')
  t.is(memlock?.status, 'failure')
  t.regex(memlock?.help ?? '', /LimitMEMLOCK/)
  const root = { capabilities: { sysAdmin: true, ipcLock: true }, memlock: { soft: 0, hard: 0 } }
  t.is(judged(root).get('memlock')?.status, 'ok')
})

test('the package of a platform is named by its architecture and C library', (t) => {
  t.is(platformPackage('linux', 'x64', 'glibc'), 'node-uring-linux-x64-gnu')
  t.is(platformPackage('linux', 'arm64', 'musl'), 'node-uring-linux-arm64-musl')
  t.is(platformPackage('linux', 'riscv64', 'glibc'), null)
  t.is(platformPackage('darwin', 'arm64'), null)
})
