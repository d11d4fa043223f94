// kill -9 of a process that writes durably: fixtures/durable.mjs. What it was told is durable must be
// there, and nothing may be torn. The page cache outlives a process, so that this is about the order of
// steps; what outlives the power is tested in a virtual machine.

import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import type { ExecutionContext } from 'ava'
import { fixture, runChild } from './child.js'
import type { Random } from './random.js'
import { folder } from './scratch.js'

const RECORD_BYTES = 64

const sum = (bytes: Uint8Array): Buffer => createHash('sha1').update(bytes).digest()

/** Runs the program, kills it some time after its first acknowledgement, and gives those it made. */
async function killed(how: string, name: string, delayMs: number): Promise<number[]> {
  let doomed = false
  const ended = await runChild(fixture('durable.mjs'), {
    args: [how, name],
    timeoutMs: 60_000,
    onLine: (_, child) => {
      if (doomed) return
      doomed = true
      setTimeout(() => child.kill('SIGKILL'), delayMs)
    },
  })
  if (ended.signal !== 'SIGKILL' || ended.late) throw new Error(`it ended: ${ended.stderr}`)
  return ended.stdout.split('\n').slice(0, -1).map(Number)
}

/** One round of group commit. */
export async function killDuringCommit(t: ExecutionContext, r: Random): Promise<void> {
  const name = path.join(folder(t), 'file')
  const acknowledged = await killed('commit', name, r.below(80))
  const bytes = fs.readFileSync(name)
  t.is(bytes.length % RECORD_BYTES, 0, 'a torn record')
  const there = new Set<number>()
  for (let at = 0; at < bytes.length; at += RECORD_BYTES) {
    const record = bytes.subarray(at, at + RECORD_BYTES)
    if (!sum(record.subarray(0, 44)).equals(record.subarray(44))) t.fail(`the record at ${at}`)
    there.add(record.readUInt32LE())
  }
  t.is(there.size * RECORD_BYTES, bytes.length, 'a record is there twice')
  t.deepEqual(
    acknowledged.filter((number) => !there.has(number)),
    [],
  )
  t.true(acknowledged.length > 0)
}

/** One round of replaceFile. */
export async function killDuringReplace(t: ExecutionContext, r: Random): Promise<void> {
  const at = folder(t)
  const name = path.join(at, 'file')
  const acknowledged = await killed('replace', name, r.below(80))
  const content = fs.readFileSync(name)
  t.true(sum(content.subarray(20)).equals(content.subarray(0, 20)), 'a torn file')
  const last = Math.max(...acknowledged)
  const number = content.readUInt32LE(20)
  t.true(number === last || number === last + 1, `${number} is there, ${last} was acknowledged`)
  // A process that is killed can leave the temporary file of its last step.
  const others = fs.readdirSync(at).filter((other) => other !== 'file')
  t.true(others.length <= 1 && others.every((other) => /^\..*\.tmp$/.test(other)), others.join())
}
