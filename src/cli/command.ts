/**
 * What every command has in common: its shape, its arguments and how it says that they are wrong.
 */
import { createRequire } from 'node:module'
import { type ParseArgsConfig, parseArgs } from 'node:util'
import { parseBytes } from './units.js'

/** A command of `node-uring`. */
export interface Command {
  readonly name: string
  /** What it does, in a few words. */
  readonly summary: string
  /** What `--help` prints. */
  readonly usage: string
  /** Prints its result, and sets `process.exitCode` if that is no success. */
  run(args: string[]): Promise<void>
}

/** The command cannot be understood: exit code 2. The message is a sentence. */
export class UsageError extends Error {}

/** It cannot be done, and the message says why in a sentence: exit code 1. */
export class Failure extends Error {}

/** `package.json` of this package. */
export const manifest = createRequire(import.meta.url)('../../package.json') as {
  readonly name: string
  readonly version: string
}

type Options = NonNullable<ParseArgsConfig['options']>
type Parsed<T extends Options> = ReturnType<
  typeof parseArgs<{ args: string[]; options: T; allowPositionals: true }>
>

/** parseArgs of node:util, whose refusals become a sentence. `names` are of the positionals. */
export function parse<const T extends Options>(
  args: string[],
  options: T,
  names: readonly string[] = [],
): Parsed<T> {
  const parsed = understood(() => parseArgs({ args, options, allowPositionals: true as const }))
  const { positionals } = parsed
  const missing = names[positionals.length]
  if (missing !== undefined) throw new UsageError(`${missing} is missing.`)
  const extra = positionals[names.length]
  if (extra !== undefined) throw new UsageError(`There is one argument too many: '${extra}'.`)
  return parsed
}

function understood<R>(parsing: () => R): R {
  try {
    return parsing()
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (!code?.startsWith('ERR_PARSE_ARGS_')) throw error
    // Its first sentence; what follows is about positionals that begin with a dash.
    throw new UsageError(`${message.split(/\.\s|\n/)[0]?.replace(/\.$/, '')}.`)
  }
}

/** An option that is an integer from `min` to `max`. */
export function integer(text: string, name: string, min: number, max: number): number {
  const value = Number(text.replaceAll(/[_,]/g, ''))
  if (!/^\d/.test(text) || !Number.isInteger(value) || value < min || value > max) {
    throw new UsageError(`${name} must be an integer from ${min} to ${max}, and is '${text}'.`)
  }
  return value
}

/** An option that is a size in bytes: `4096`, `64K`, `1M`. */
export function size(text: string, name: string, min: number, max: number): number {
  const value = parseBytes(text)
  if (value === undefined || value < min || value > max) {
    const range = `from ${min} to ${max} bytes`
    throw new UsageError(`${name} must be a size (4096, 64K, 1M) ${range}, and is '${text}'.`)
  }
  return value
}

/** An option that is a list, with commas. */
export function list<T>(text: string, each: (item: string) => T): T[] {
  return [...new Set(text.split(',').map((item) => each(item.trim())))]
}
