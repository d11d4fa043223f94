// What tests need of scripts/guest: whether a guest can be had here, a drive with ext4 on it, and the
// smoke program (fixtures/smoke.mjs) run under a kernel.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import type { ExecutionContext } from 'ava'
import type { Capabilities } from 'node-uring'
import { Missing } from '../../scripts/guest/debian.js'
import { boot, type GuestEnd, type GuestOptions, prepareGuest } from '../../scripts/guest/guest.js'
import type { KernelName } from '../../scripts/guest/system.js'
import { fixture } from './child.js'
import { folder, type Teardown } from './scratch.js'
import type { Requirements } from './skip.js'

/** What the smoke program says of the place where it ran. */
export interface SmokeReport {
  readonly backend: string
  readonly arch: string
  readonly node: string
  /** Whether direct files work on its file system, or are refused with EINVAL. */
  readonly direct: 'done' | 'refused'
  readonly capabilities: Capabilities
}

/** Programs that a guest with an ext4 drive needs. */
export const GUEST_COMMANDS = ['qemu-system-x86_64', 'mke2fs']

/** For `needs`: whether these kernels are here, or could be fetched just now. */
export function kernels(...names: KernelName[]): NonNullable<Requirements['that']> {
  try {
    for (const name of names) prepareGuest(name)
    return { holds: true, reason: '' }
  } catch (error) {
    if (!(error instanceof Missing)) throw error
    return { holds: false, reason: error.message }
  }
}

/** A new ext4 file system in a file. */
export function ext4Image(t: Teardown, mebibytes = 64): string {
  const image = path.join(folder(t), 'image')
  fs.closeSync(fs.openSync(image, 'w'))
  fs.truncateSync(image, mebibytes << 20)
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-E', 'lazy_itable_init=0', image])
  return image
}

/** Boots, with the test's end as the guest's. */
export function run(t: Teardown, options: GuestOptions): Promise<GuestEnd> {
  const guest = boot(options)
  t.teardown(guest.kill)
  return guest.ended
}

/** How a guest ended, for a message. */
export function story({ code, late, lines, ms }: GuestEnd): string {
  const end = late ? 'was killed at its deadline' : `ended with ${code ?? 'no word'}`
  return `the guest ${end} after ${Math.round(ms)} ms:\n${lines.slice(-40).join('\n')}`
}

/** Runs the smoke program under a kernel, on ext4 on an NVMe drive; asserts that all of it held. */
export async function smoke(
  t: ExecutionContext<unknown>,
  kernel: KernelName,
): Promise<SmokeReport> {
  const end = await run(t, {
    kernel,
    program: fs.readFileSync(fixture('smoke.mjs'), 'utf8'),
    args: ['/mnt'],
    before: 'mount -t ext4 /dev/nvme0n1 /mnt',
    drives: [`file=${ext4Image(t)},format=raw`],
  })
  t.is(end.code, 0, story(end))
  const said = end.lines.find((line) => line.startsWith('smoke: ')) ?? ''
  return JSON.parse(said.slice('smoke: '.length)) as SmokeReport
}
