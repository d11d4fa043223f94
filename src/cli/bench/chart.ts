/**
 * Draws what `node-uring bench` measured as a bar chart: an SVG that needs nothing else. Pure.
 */
import { about, bytes } from '../units.js'

/** What one side of a cell came to. */
export interface Measured {
  readonly name: string
  readonly opsPerSecond: number
  readonly bytesPerSecond: number
}

export interface Group {
  readonly sizeBytes: number
  readonly depth: number
  readonly sides: readonly Measured[]
}

const WIDTH = 760
const LEFT = 118
const RIGHT = 190
const BAR = 16
const GAP = 22
const TOP = 92
/** A colour a side; the first is ours. */
const COLORS = ['#2f6f4f', '#7a8fa6', '#a9b8c9', '#cfc5b5'] as const

/** `heading` is a line over it, `notes` are lines under it. */
export function chart(heading: string, groups: readonly Group[], notes: readonly string[]): string {
  const names = [...new Set(groups.flatMap(({ sides }) => sides.map(({ name }) => name)))]
  const body: string[] = []
  let y = TOP
  for (const group of groups) {
    const most = Math.max(...group.sides.map(({ opsPerSecond }) => opsPerSecond))
    const label = `${bytes(group.sizeBytes)} ×${group.depth}`
    body.push(text(LEFT - 10, y + (group.sides.length * BAR) / 2 + 4, label, 'end'))
    for (const side of group.sides) {
      const width = Math.max(1, ((WIDTH - LEFT - RIGHT) * side.opsPerSecond) / most)
      const color = COLORS[names.indexOf(side.name)] ?? '#888'
      body.push(
        `<rect x="${LEFT}" y="${y}" width="${width.toFixed(1)}" height="${BAR - 3}" fill="${color}"/>`,
        text(
          LEFT + width + 6,
          y + BAR - 6,
          `${about(side.opsPerSecond)}/s · ${bytes(side.bytesPerSecond)}/s`,
        ),
      )
      y += BAR
    }
    y += GAP
  }
  const legend = names.flatMap((name, i) => {
    const x = LEFT + i * 130
    const color = COLORS[i] ?? '#888'
    return [
      `<rect x="${x}" y="56" width="12" height="12" fill="${color}"/>`,
      text(x + 18, 66, name),
    ]
  })
  const footer = notes.map((note, i) => text(16, y + 4 + i * 16, note, 'start', '#666'))
  const height = y + notes.length * 16 + 12
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="12">`,
    `<title>${escaped(heading)}</title>`,
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    `<text x="16" y="32" font-size="17" font-weight="600" fill="#222">${escaped(heading)}</text>`,
    ...legend,
    ...body,
    ...footer,
    '</svg>',
    '',
  ].join('\n')
}

function text(x: number, y: number, words: string, anchor = 'start', color = '#222'): string {
  return `<text x="${x.toFixed(1)}" y="${y}" text-anchor="${anchor}" fill="${color}">${escaped(words)}</text>`
}

function escaped(words: string): string {
  const names: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }
  return words.replace(/[&<>]/g, (character) => names[character] ?? character)
}
