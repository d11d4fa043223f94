// Reads which symbol versions a shared object of 64 bits needs (SHT_GNU_verneed), so that nobody has
// to have readelf. Reads nothing else of the file. elf(5); "Symbol Versioning" of the Linux Standard
// Base says how the section is laid out.

const SHT_GNU_VERNEED = 0x6ffffffe
const SECTION_BYTES = 64

/**
 * @param {Buffer} elf a little-endian ELF file of 64 bits with its section headers
 * @returns {{ library: string, version: string }[]} as `{ library: 'libc.so.6', version: 'GLIBC_2.17' }`
 */
export function neededVersions(elf) {
  if (elf.toString('latin1', 0, 6) !== '\x7fELF\x02\x01') throw new Error('not a 64-bit ELF file')
  const table = Number(elf.readBigUInt64LE(0x28))
  const count = elf.readUInt16LE(0x3c)
  if (table === 0 || count === 0) throw new Error('no section headers')
  const section = (index) => {
    const header = elf.subarray(table + index * SECTION_BYTES, table + (index + 1) * SECTION_BYTES)
    const offset = Number(header.readBigUInt64LE(0x18))
    return {
      type: header.readUInt32LE(4),
      link: header.readUInt32LE(0x28),
      entries: header.readUInt32LE(0x2c),
      bytes: elf.subarray(offset, offset + Number(header.readBigUInt64LE(0x20))),
    }
  }
  const sections = Array.from({ length: count }, (_, index) => section(index))
  return sections
    .filter(({ type }) => type === SHT_GNU_VERNEED)
    .flatMap(({ bytes, link, entries }) => [...needs(bytes, entries, sections[link].bytes)])
}

function* needs(bytes, entries, strings) {
  const text = (at) => strings.toString('latin1', at, strings.indexOf(0, at))
  let need = 0
  for (let entry = 0; entry < entries; entry++) {
    const library = text(bytes.readUInt32LE(need + 4))
    let auxiliary = need + bytes.readUInt32LE(need + 8)
    for (let left = bytes.readUInt16LE(need + 2); left > 0; left--) {
      yield { library, version: text(bytes.readUInt32LE(auxiliary + 8)) }
      auxiliary += bytes.readUInt32LE(auxiliary + 12)
    }
    need += bytes.readUInt32LE(need + 12)
  }
}

/** The newest glibc among them, as numbers: `[2, 17]`; [0, 0] when none is named. */
export function newestGlibc(versions) {
  return versions
    .map(({ version }) => /^GLIBC_(\d+)\.(\d+)/.exec(version))
    .filter(Boolean)
    .map(([, major, minor]) => [Number(major), Number(minor)])
    .reduce((newest, one) => (compare(one, newest) > 0 ? one : newest), [0, 0])
}

/** @returns {number} above 0 when `a` is newer than `b` */
export const compare = (a, b) => a[0] - b[0] || a[1] - b[1]
