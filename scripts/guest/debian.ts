/**
 * Debian's packages, fetched by apt and unpacked below target/guest: kernels, busybox, libraries of
 * other architectures. Nothing is installed into the system, and root is not needed. The mirror and
 * the keys are the system's own; only the suite and the architecture are asked for by name here.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** Where all of this is kept; it can be removed at any time. */
export const CACHE = fileURLToPath(new URL('../../target/guest', import.meta.url))

export type Architecture = 'amd64' | 'arm64'

/** Debian 11, 12 and 13. */
export type Suite = 'bullseye' | 'bookworm' | 'trixie'

/** Thrown where this machine cannot do it; the message says what is missing. */
export class Missing extends Error {}

interface Wanted {
  readonly suite: Suite
  readonly architecture: Architecture
  /** A package's name, or what the names of its versions have in common: the newest is taken. */
  readonly name: string | RegExp
}

/** The folder that a package is unpacked in; fetched when none of its versions is there yet. */
export function unpacked(wanted: Wanted): string {
  const { suite, architecture, name } = wanted
  const parent = path.join(CACHE, 'packages', `${suite}-${architecture}`)
  mkdirSync(parent, { recursive: true })
  const there = newestOf(readdirSync(parent), name)
  if (there !== undefined) return path.join(parent, there)
  const archives = new Archives(suite, architecture)
  const found = archives.newest(name)
  // Its name matches nothing while it is being made.
  const unpacking = path.join(parent, `new ${process.pid} ${found}`)
  mkdirSync(unpacking)
  try {
    const deb = archives.download(found, unpacking)
    execFileSync('dpkg', ['-x', deb, unpacking])
    rmSync(deb)
    renameSync(unpacking, path.join(parent, found))
  } catch (error) {
    rmSync(unpacking, { recursive: true, force: true })
    // Somebody else may have been faster.
    if (!existsSync(path.join(parent, found))) throw error
  }
  return path.join(parent, found)
}

function newestOf(names: readonly string[], wanted: string | RegExp): string | undefined {
  return names
    .filter((name) => (typeof wanted === 'string' ? name === wanted : wanted.test(name)))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    .pop()
}

/** apt with a configuration of its own: one suite, one architecture, lists below CACHE. */
class Archives {
  readonly #suite: Suite
  readonly #architecture: Architecture
  readonly #folder: string

  constructor(suite: Suite, architecture: Architecture) {
    this.#suite = suite
    this.#architecture = architecture
    this.#folder = path.join(CACHE, 'apt', `${suite}-${architecture}`)
    for (const folder of ['lists/partial', 'archives/partial', 'empty']) {
      mkdirSync(path.join(this.#folder, folder), { recursive: true })
    }
    writeFileSync(path.join(this.#folder, 'status'), '')
    const sources = this.#sources().join('\n')
    writeFileSync(path.join(this.#folder, 'sources.list'), `${sources}\n`)
    writeFileSync(path.join(this.#folder, 'apt.conf'), this.#configuration())
  }

  #configuration(): string {
    const at = (name: string): string => path.join(this.#folder, name)
    return Object.entries({
      'APT::Architecture': this.#architecture,
      'APT::Architectures': this.#architecture,
      // Whoever runs this may keep its files where apt's own user cannot look.
      'APT::Sandbox::User': 'root',
      'Acquire::Languages': 'none',
      'Acquire::Retries': '3',
      // An old suite is not signed anew any more.
      'Acquire::Check-Valid-Until': 'false',
      'Dir::State::Lists': at('lists'),
      'Dir::State::status': at('status'),
      'Dir::Cache': at('.'),
      'Dir::Cache::archives': at('archives'),
      'Dir::Etc::SourceList': at('sources.list'),
      'Dir::Etc::SourceParts': at('empty'),
    })
      .map(([key, value]) => `${key} "${value}";\n`)
      .join('')
  }

  /** The suite and its security archive, on the mirrors that the system's sources name. */
  #sources(): string[] {
    const sites = said('apt-get', ['indextargets', '--format', '$(SITE)', 'Created-By: Packages'])
    const security = sites.find((site) => site.endsWith('/debian-security'))
    const main = sites.find((site) => site.endsWith('/debian'))
    if (main === undefined || security === undefined) {
      throw new Missing("needs Debian's main and security archives among the sources of apt")
    }
    const [suite, line] = [
      this.#suite,
      'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]',
    ]
    return [`${line} ${security} ${suite}-security main`, `${line} ${main} ${suite} main`]
  }

  #apt(program: 'apt-get' | 'apt-cache', args: string[], cwd?: string): string[] {
    return said(program, ['-q', ...args], {
      cwd,
      env: { ...process.env, APT_CONFIG: path.join(this.#folder, 'apt.conf') },
    })
  }

  /** The newest package so named. Its list is fetched once, and again when a name is not found. */
  newest(name: string | RegExp): string {
    const find = () => newestOf(this.#apt('apt-cache', ['pkgnames']), name)
    let found = find()
    if (found === undefined) {
      this.#apt('apt-get', ['update'])
      found = find()
    }
    if (found !== undefined) return found
    throw new Missing(`needs Debian's ${this.#suite} (${this.#architecture}): no ${name} there`)
  }

  /** The path of the downloaded package. */
  download(name: string, into: string): string {
    try {
      this.#apt('apt-get', ['download', name], into)
    } catch {
      // The list is older than the archive.
      this.#apt('apt-get', ['update'])
      this.#apt('apt-get', ['download', name], into)
    }
    const [deb] = readdirSync(into).filter((file) => file.endsWith('.deb'))
    if (deb === undefined) throw new Missing(`apt-get download ${name} gave nothing`)
    return path.join(into, deb)
  }
}

/** The lines that a program prints; throws with what it says on standard error. */
function said(
  program: string,
  args: string[],
  options: { cwd?: string | undefined; env?: NodeJS.ProcessEnv } = {},
): string[] {
  try {
    const text = execFileSync(program, args, {
      ...options,
      encoding: 'utf8',
      maxBuffer: 1 << 28,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 300_000,
    })
    return text.split('\n').filter(Boolean)
  } catch (error) {
    const { code, stderr, message } = error as NodeJS.ErrnoException & { stderr?: string }
    if (code === 'ENOENT') throw new Missing(`needs ${program}: a Debian system, or one of its kin`)
    throw new Missing(`${program} failed: ${stderr || message}`)
  }
}
