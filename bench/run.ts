/**
 * `npm run bench`: measures node-uring beside C, fio and node:fs, and prints what it found. Says
 * what missed its target as it says what met it; the exit code is 0 unless something broke.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { Queue, UringError } from 'node-uring'
import { answerAsSide, apart, type Part } from './apart.js'
import { GROUPS } from './cells.js'
import type { Bench } from './group.js'
import { compete, type Finding, type Measured } from './harness.js'
import { describeHost } from './host.js'
import { buildFloor, runFloor } from './programs.js'
import { Progress } from './progress.js'
import { cellTable, sideTable } from './report.js'
import { isInstalled, Skip, scratchFolder } from './scratch.js'

const USAGE = `\
npm run bench -- [options]

  --only NAME,...   some groups: ${GROUPS.map(({ name }) => name).join(', ')}
  --quick           fewer and shorter rounds: a look, not a result
  --rounds N        rounds of each side (9)
  --round-ms MS     how long a round of a side takes (250)
  --folder PATH     where the files go (the temporary folder, if that is on a disk)
  --json FILE       writes everything, each round too, to FILE
  --help
`

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    'round-ms': { type: 'string' },
    folder: { type: 'string' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
    // For ourselves: `apart.ts`.
    side: { type: 'string' },
  },
})

if (options.help) process.stdout.write(USAGE)
else if (options.side !== undefined) await answerAsSide(JSON.parse(options.side) as Part, GROUPS)
else await main()

async function main(): Promise<void> {
  const settings = {
    rounds: count('--rounds', options.rounds, options.quick ? 3 : 9),
    roundMs: count('--round-ms', options['round-ms'], options.quick ? 80 : 250),
  }
  const groups = chosenGroups(options.only)
  const ring = ringSettings()

  const progress = new Progress()
  progress.show('building the floor')
  const floor = await buildFloor()
  const { ring: floorRing } = await runFloor(floor, ['nop', '--operations', '1'])
  const folder = scratchFolder(options.folder)
  const host = describeHost(folder)
  progress.clear()
  console.log(`\
kernel ${host.kernel}, ${host.cpu}, ${host.cores} cores, load ${host.load.toFixed(2)}
Node.js ${host.node}, ${host.poolThreads} pool threads, files on ${host.fileSystem}
node-uring: ${ring.setupFlags.join(' ')}${ring.registeredDescriptor ? ', registered ring' : ''}
C (bench/floor): ${floorRing.setupFlags.join(' ')}${floorRing.registeredRing ? ', registered ring' : ''}
${settings.rounds} rounds of ${settings.roundMs} ms a side, in turns; ratios are medians of the rounds'
`)

  const contests: { name: string; measured: Measured[] }[] = []
  const findings: Finding[] = []
  const skipped: string[] = []
  const broken: string[] = []
  let running = ''
  const bench: Bench = {
    settings,
    progress,
    folder,
    floor,
    fio: isInstalled('fio'),
    async contest(contest) {
      progress.show(`${contest.name}: starting its sides`)
      const { sides, end } = await apart(contest, { group: running, folder })
      const result = await compete({ ...contest, sides }, settings, progress).finally(end)
      contests.push({ name: contest.name, measured: result.measured })
      findings.push(...result.findings)
    },
    keep: (finding) => findings.push(finding),
  }
  if (!bench.fio) skipped.push('fio: it is not installed')
  for (const group of groups) {
    running = group.name
    try {
      await group.run(bench)
    } catch (error) {
      if (error instanceof Skip) skipped.push(`${group.name}: ${error.message}`)
      else broken.push(`${group.name}: ${error instanceof Error ? error.stack : String(error)}`)
    }
  }
  progress.clear()

  console.log(`${cellTable(findings)}\n`)
  console.log(`${sideTable(contests)}\n`)
  const met = findings.filter((finding) => finding.met).length
  console.log(`${met} of ${findings.length} targets met, ${findings.length - met} missed`)
  for (const text of skipped) console.log(`not measured: ${text}`)
  for (const text of broken) console.error(`broke: ${text}`)
  if (options.json !== undefined) {
    const floorSettings = floorRing
    const all = { host, settings, ring, floor: floorSettings, findings, contests, skipped, broken }
    mkdirSync(dirname(options.json), { recursive: true })
    writeFileSync(options.json, `${JSON.stringify(all, null, 2)}\n`)
  }
  process.exitCode = broken.length > 0 ? 1 : 0
}

/** What the kernel grants us; says why and ends where that is nothing. */
function ringSettings(): { setupFlags: string[]; registeredDescriptor: boolean; entries: number } {
  try {
    const queue = new Queue()
    const { setupFlags, registeredDescriptor, entries } = queue.capabilities
    void queue.close()
    return { setupFlags, registeredDescriptor, entries }
  } catch (error) {
    if (!(error instanceof UringError)) throw error
    return fail(error.message)
  }
}

function chosenGroups(only: string | undefined): typeof GROUPS {
  if (only === undefined) return GROUPS
  const names = only.split(',')
  const unknown = names.find((name) => !GROUPS.some((group) => group.name === name))
  if (unknown !== undefined) fail(`--only has no ${unknown}\n${USAGE}`)
  return GROUPS.filter((group) => names.includes(group.name))
}

function count(name: string, text: string | undefined, fallback: number): number {
  if (text === undefined) return fallback
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) fail(`${name} ${text} is not a positive integer`)
  return value
}

function fail(message: string): never {
  console.error(message)
  process.exit(1)
}
