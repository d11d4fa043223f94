/**
 * `node-uring doctor`: what io_uring can do here, and what to do where it cannot. Looks, tries,
 * judges, prints; changes nothing.
 */
import { type Command, manifest, parse } from './command.js'
import { loadedBinary, readFacts } from './doctor/facts.js'
import { type Case, diagnose, type Finding, type Status } from './doctor/findings.js'
import { tryRing } from './doctor/ring.js'
import { type Paint, painter, type Style, widthOf, wrap } from './terminal.js'

const USAGE = `\
node-uring doctor: what io_uring can do here, and what to do where it cannot

Usage: npx node-uring doctor [--json]

  --json  everything, as one JSON object

It looks at the kernel, at what may forbid io_uring (sysctl, seccomp, a security
module), at limits, and at the package and its binary; then it makes a queue,
sends nops round and reads a file. It changes nothing. Exit code 1 when queues
can run on node:fs only.
`

const MARKS: Readonly<Record<Status, readonly [mark: string, style: Style]>> = {
  ok: ['✓', 'green'],
  note: ['•', 'cyan'],
  warning: ['!', 'yellow'],
  failure: ['✗', 'red'],
}

export const doctor: Command = {
  name: 'doctor',
  summary: 'what io_uring can do here, and what to do where it cannot',
  usage: USAGE,
  async run(args) {
    const { values } = parse(args, { json: { type: 'boolean', default: false } })
    const ring = await tryRing()
    const it: Case = { facts: readFacts(), ring, binary: loadedBinary() }
    const groups = diagnose(it)
    const findings = groups.flatMap((group) => group.findings)
    const isUsable = ring.reason === null && !findings.some(isFatal)
    if (!isUsable) process.exitCode = 1
    const text = values.json ? json(it, findings, isUsable) : report(groups, isUsable, it)
    process.stdout.write(`${text}\n`)
  },
}

/** A ring that is made and does not carry operations is of no use. */
function isFatal({ name, status }: Finding): boolean {
  return status === 'failure' && (name === 'nop' || name === 'read')
}

function json({ facts, ring, binary }: Case, findings: Finding[], isUsable: boolean): string {
  const { version } = manifest
  const backend = isUsable ? 'io_uring' : 'node:fs'
  return JSON.stringify({ version, backend, findings, facts, binary, ring }, null, 2)
}

function report(groups: ReturnType<typeof diagnose>, isUsable: boolean, it: Case): string {
  const paint = painter(process.stdout)
  const width = Math.min(widthOf(process.stdout), 100)
  const lines = [paint('bold', `node-uring ${manifest.version}`)]
  for (const { title, findings } of groups) {
    if (findings.length === 0) continue
    lines.push('', paint('bold', title))
    for (const finding of findings) lines.push(...describe(finding, width, paint))
  }
  const todo = groups.flatMap((group) => group.findings).filter(isToDo).length
  const verdict = isUsable
    ? paint('green', 'io_uring works here.')
    : `${paint('red', `io_uring does not work here${why(it)}:`)} queues run on node:fs, slower.`
  const rest =
    todo === 0 ? '' : ` ${todo} finding${todo === 1 ? '' : 's'} to look at, marked → above.`
  return [...lines, '', verdict + rest].join('\n')
}

/** Commands stand out; without colours by their backticks. */
function commands(line: string, paint: Paint): string {
  const isColored = paint('bold', '') !== ''
  return isColored ? line.replaceAll(/`([^`]*)`/g, (_, command) => paint('bold', command)) : line
}

function why({ ring: { reason } }: Case): string {
  return reason === null ? '' : ` (${reason.code})`
}

function isToDo({ status, help }: Finding): boolean {
  return help !== null && status !== 'note'
}

/** The finding, and under it what to do. */
function describe({ name, status, found, help }: Finding, width: number, paint: Paint): string[] {
  const [mark, style] = MARKS[status]
  const indent = ' '.repeat(16)
  const [first = '', ...more] = wrap(found, width - indent.length)
  const lines = [
    `  ${paint(style, mark)} ${name.padEnd(12)}${first}`,
    ...more.map((line) => indent + line),
  ]
  if (help === null) return lines
  const arrow = status === 'note' ? '  ' : '→ '
  for (const [i, line] of wrap(help, width - indent.length - 2).entries()) {
    lines.push(indent + (i === 0 ? paint(style, arrow) : '  ') + commands(line, paint))
  }
  return lines
}
