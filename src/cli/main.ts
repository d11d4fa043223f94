#!/usr/bin/env node
/**
 * The command line, `npx node-uring`: finds the command, runs it, and says in a sentence what went
 * wrong. Exit codes: 0, 1 for what failed, 2 for what was not understood, 128 and the number of the
 * signal for what was interrupted.
 */
import { UringError } from '../errors.js'
import { bench } from './bench.js'
import { type Command, Failure, manifest, UsageError } from './command.js'
import { copy } from './copy.js'
import { doctor } from './doctor.js'
import { watchEnd } from './ending.js'
import { nop } from './nop.js'
import { painter } from './terminal.js'

const COMMANDS: readonly Command[] = [doctor, nop, bench, copy]

const USAGE = `\
node-uring: file I/O for Node.js through Linux io_uring

Usage: npx node-uring COMMAND [OPTIONS]

${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(9)} ${summary}`).join('\n')}

  --help, -h     what a command takes: node-uring COMMAND --help
  --version, -v  the version of this package

Colours are for terminals; NO_COLOR=1 turns them off, FORCE_COLOR=1 on.
Exit codes: 0 done, 1 failed, 2 not understood, 130 interrupted.
`

watchEnd()
await main(process.argv.slice(2))

async function main([name, ...args]: string[]): Promise<void> {
  const command = COMMANDS.find((command) => command.name === name)
  try {
    const options = args.includes('--') ? args.slice(0, args.indexOf('--')) : args
    const asked = command && answer(options, command.usage)
    if (command === undefined) process.stdout.write(general(name))
    else if (asked !== undefined) process.stdout.write(asked)
    else await command.run(args)
  } catch (error) {
    const [code, message] = told(error)
    process.exitCode = code
    const paint = painter(process.stderr)
    const where = command === undefined ? 'node-uring' : `node-uring ${command.name}`
    process.stderr.write(`${paint('red', `${where}:`)} ${message}\n`)
    if (code === 2) process.stderr.write(`Try '${where} --help'.\n`)
  }
}

/** What is printed to `--help` and `--version`. */
function answer(options: readonly string[], usage: string): string | undefined {
  if (options.includes('--help') || options.includes('-h')) return usage
  if (options.includes('--version') || options.includes('-v')) return `${manifest.version}\n`
  return undefined
}

/** What there is to say without a command. */
function general(name: string | undefined): string {
  if (name === undefined) throw new UsageError('A command is missing.')
  const asked = answer([name], USAGE)
  if (asked !== undefined) return asked
  const kind = name.startsWith('-') ? 'option' : 'command'
  const names = COMMANDS.map(({ name }) => name).join(', ')
  throw new UsageError(`There is no ${kind} '${name}'. The commands are ${names}.`)
}

/** The exit code of an error, and what to print of it. */
function told(error: unknown): [code: number, message: string] {
  if (error instanceof UsageError) return [2, error.message]
  if (error instanceof Failure) return [1, error.message]
  if (error instanceof UringError && error.reason !== undefined) {
    const { code, message, help } = error.reason
    return [
      1,
      `io_uring cannot be used here (${code}). ${message}\n${help}\nMore: node-uring doctor`,
    ]
  }
  // An error of the system says all in its message; of any other the stack is needed to mend it.
  const { syscall, message, path, stack } = error as NodeJS.ErrnoException
  if (syscall === undefined) return [1, stack ?? String(error)]
  // That of a call on an open file leaves the file out.
  return [1, path === undefined || message.includes(path) ? message : `${message} '${path}'`]
}
