/**
 * Archives as the kernel unpacks them into its first root: cpio of the "newc" kind, as
 * Documentation/driver-api/early-userspace/buffer-format.rst of the kernel describes them.
 * Archives can be put one behind the other.
 */

/** A file, folder, link or device of an archive. Folders are made for whatever needs them. */
export interface Entry {
  /** From the root, without a leading slash. */
  readonly path: string
  /** As in `struct stat`: kind and permissions. */
  readonly mode: number
  /** What a file holds, or where a link points. */
  readonly content?: Uint8Array | string
  /** Major and minor number of a device. */
  readonly device?: readonly [major: number, minor: number]
}

const [S_IFDIR, S_IFREG, S_IFLNK, S_IFCHR] = [0o040000, 0o100000, 0o120000, 0o020000]

export function file(path: string, content: Uint8Array | string, permissions = 0o755): Entry {
  return { path, mode: S_IFREG | permissions, content }
}

export function link(path: string, target: string): Entry {
  return { path, mode: S_IFLNK | 0o777, content: target }
}

export function characterDevice(path: string, major: number, minor: number): Entry {
  return { path, mode: S_IFCHR | 0o600, device: [major, minor] }
}

export function directory(path: string): Entry {
  return { path, mode: S_IFDIR | 0o755 }
}

/** The archive of these entries. Its length is a multiple of 512 bytes. */
export function cpio(entries: readonly Entry[]): Buffer {
  const pieces: Uint8Array[] = []
  let [length, ino] = [0, 0]
  const push = (piece: Uint8Array): void => {
    pieces.push(piece)
    length += piece.length
  }
  const pad = (to: number): void => push(new Uint8Array((to - (length % to)) % to))
  const put = ({ path, mode, content = '', device = [0, 0] }: Entry): void => {
    const [name, body] = [Buffer.from(`${path}\0`), Buffer.from(content)]
    const fields = [++ino, mode, 0, 0, 1, 0, body.length, 0, 0, ...device, name.length, 0]
    push(Buffer.from(`070701${fields.map((n) => n.toString(16).padStart(8, '0')).join('')}`))
    push(name)
    pad(4)
    push(body)
    pad(4)
  }
  for (const entry of withFolders(entries)) put(entry)
  put({ path: 'TRAILER!!!', mode: 0 })
  pad(512)
  return Buffer.concat(pieces)
}

function* withFolders(entries: readonly Entry[]): Generator<Entry> {
  const made = new Set<string>()
  for (const entry of entries) {
    const parts = entry.path.split('/')
    for (let depth = 1; depth < parts.length; depth++) {
      const parent = parts.slice(0, depth).join('/')
      if (!made.has(parent)) yield directory(parent)
      made.add(parent)
    }
    if (made.has(entry.path)) continue
    made.add(entry.path)
    yield entry
  }
}
