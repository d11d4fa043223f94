/**
 * A Rust compiler that has the standard library of other targets: Debian's, for a machine whose own
 * comes from elsewhere without them. Unpacked below target/guest, not installed. With rustup,
 * `rustup target add` does the same, and nobody needs this.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { type Architecture, CACHE, unpacked } from '../guest/debian.js'

/** The compiler's own packages; libstd-rust-web-dev is what it links programs with. */
const PACKAGES: readonly (readonly [Architecture, string | RegExp])[] = [
  ['amd64', 'rustc-web'],
  ['amd64', /^libstd-rust-web-[\d.]+$/],
  ['amd64', 'libllvm22'],
  ['amd64', 'rust-web-src'],
  ['amd64', 'libstd-rust-web-dev'],
  ['arm64', 'libstd-rust-web-dev'],
]

/** A command that runs the compiler. Fetches it when it is not there yet. */
export function debianRustc(): string {
  const at = path.join(CACHE, 'rust')
  const command = path.join(at, 'rustc')
  if (existsSync(command)) return command
  const making = `${at}.new-${process.pid}`
  mkdirSync(making, { recursive: true })
  for (const [architecture, name] of PACKAGES) {
    const from = unpacked({ suite: 'bookworm', architecture, name })
    // Hard links: it is 1 GB.
    execFileSync('cp', ['-al', `${from}/.`, making])
  }
  const libraries = 'usr/lib/x86_64-linux-gnu'
  const script = `#!/bin/sh
export LD_LIBRARY_PATH=${at}/${libraries}
exec ${at}/usr/bin/rustc --sysroot=${at}/usr "$@"
`
  writeFileSync(path.join(making, 'rustc'), script, { mode: 0o755 })
  rmSync(at, { recursive: true, force: true })
  renameSync(making, at)
  return command
}
