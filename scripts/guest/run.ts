/**
 * Runs one program in a guest and prints what it prints:
 *
 *     node --import tsx scripts/guest/run.ts --kernel 6.1 program.mjs [arguments]
 *
 * The exit code is the program's, or 1 when the guest did not come so far, with the reason.
 */
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { Missing } from './debian.js'
import { boot } from './guest.js'
import { KERNEL_NAMES, type KernelName } from './system.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    kernel: { type: 'string', default: '6.1' },
    drive: { type: 'string', multiple: true, default: [] },
    before: { type: 'string', default: ':' },
  },
})
const [program, ...args] = positionals
const kernel = values.kernel as KernelName
if (program === undefined || !KERNEL_NAMES.includes(kernel)) {
  console.error(
    `run.ts --kernel ${KERNEL_NAMES.join('|')} [--drive VALUE]… [--before SHELL] FILE …`,
  )
  process.exit(1)
}
try {
  const end = await boot({
    kernel,
    program: readFileSync(program, 'utf8'),
    args,
    drives: values.drive,
    before: values.before,
    onLine: (line) => console.log(line),
  }).ended
  console.error(`${(end.ms / 1000).toFixed(1)} s${end.late ? ', killed at its deadline' : ''}`)
  process.exitCode = end.code ?? 1
} catch (error) {
  if (!(error instanceof Missing)) throw error
  console.error(error.message)
  process.exitCode = 1
}
