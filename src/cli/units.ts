/**
 * Numbers as people read them: durations, bytes, counts, rates; and sizes as people write them.
 * Pure: text out of numbers, and back.
 */

const STEPS = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi'] as const

/** `158 ns`, `1.03 µs`, `12.5 ms`, `3.20 s`: three digits. */
export function duration(ns: number): string {
  if (ns < 999.5) return `${digits(ns)} ns`
  if (ns < 999_500) return `${digits(ns / 1e3)} µs`
  if (ns < 999_500_000) return `${digits(ns / 1e6)} ms`
  return `${digits(ns / 1e9)} s`
}

/** `0 B`, `512 B`, `4 KiB`, `1.50 MiB`: exact below 1 KiB, else three digits. */
export function bytes(length: number): string {
  let [value, step] = [length, 0]
  // Not past 999.5: `1000 KiB` has four digits.
  while (value >= 999.5 && step < STEPS.length - 1) {
    value /= 1024
    step++
  }
  const text = Number.isInteger(value) ? String(value) : digits(value)
  return `${text} ${STEPS[step]}B`
}

/** `1,234,567`. */
export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}

/** `987`, `12.3k`, `1.25M`: a count in three digits, where the digits behind them are noise. */
export function about(value: number): string {
  if (value < 999.5) return digits(value)
  return value < 999_500 ? `${digits(value / 1e3)}k` : `${digits(value / 1e6)}M`
}

/** Reads `4096`, `64K`, `1M`, `1MiB`, `2G`: powers of 1024. undefined for anything else. */
export function parseBytes(text: string): number | undefined {
  const [, number = '', step = ''] = /^(\d{1,15})([KMGT]?)(?:i?B)?$/i.exec(text) ?? []
  if (number === '') return undefined
  const value = Number(number) * 1024 ** ' KMGT'.indexOf(step.toUpperCase() || ' ')
  return Number.isSafeInteger(value) ? value : undefined
}

/** Three digits: `5.12`, `51.2`, `512`. */
function digits(value: number): string {
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)
}
