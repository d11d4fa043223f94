// The pages for users name what there is: every code of ours, every finding of doctor, every method,
// every option of the command line; and their links lead somewhere.

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { File, op, Queue } from 'node-uring'
import { cli } from './helpers/cli.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (name: string) => fs.readFileSync(path.join(root, name), 'utf8')

test('docs/errors.md has every ERR_URING_ code that is thrown, and no other', (t) => {
  const source = read('src/errors.ts')
  const codes = new Set([...source.matchAll(/^ {2}(ERR_URING_\w+):/gm)].map(([, code]) => code))
  const told = new Set(
    [...read('docs/errors.md').matchAll(/^\| `(ERR_URING_\w+)`/gm)].map(([, c]) => c),
  )
  t.true(codes.size > 10)
  t.deepEqual([...told].sort(), [...codes].sort())
})

test('docs/troubleshooting.md has a chapter for every finding of doctor', (t) => {
  const source = read('src/cli/doctor/findings.ts')
  const names = [
    ...source.matchAll(/name(?:: |= | = )'(\w+)'/g),
    ...source.matchAll(/known\('(\w+)'/g),
  ]
  const chapters = [...read('docs/troubleshooting.md').matchAll(/^### (.*)$/gm)]
  const told = new Set(chapters.flatMap(([, titles = '']) => titles.split(', ')))
  t.true(names.length > 10)
  t.deepEqual([...new Set(names.map(([, name]) => name))].sort(), [...told].sort())
})

test('docs/op.md has every constructor', (t) => {
  const text = read('docs/op.md')
  t.true(Object.keys(op).length > 5)
  for (const name of Object.keys(op)) t.true(text.includes(`\`op.${name}(`), name)
})

test('docs/queue.md and docs/file.md have every public member', (t) => {
  const pages = { 'docs/queue.md': Queue, 'docs/file.md': File }
  for (const [page, of] of Object.entries(pages)) {
    const text = read(page)
    const members = Object.getOwnPropertyNames(of.prototype)
    for (const name of [...members, ...Object.keys(Object.getOwnPropertyDescriptors(of))]) {
      if (['constructor', 'length', 'name', 'prototype'].includes(name)) continue
      t.regex(text, new RegExp(`(queue|file)\\.${name}\\b`, 'i'), `${page}: ${name}`)
    }
  }
})

test('docs/cli.md has every option of every command', async (t) => {
  const text = read('docs/cli.md')
  for (const name of ['doctor', 'nop', 'bench', 'copy']) {
    const { stdout } = await cli([name, '--help'])
    const [, chapter = ''] =
      new RegExp(`^## ${name}.*?\\n(.*?)(?=^## |$(?![\\s\\S]))`, 'ms').exec(text) ?? []
    for (const [option] of stdout.matchAll(/--[a-z]+/g))
      t.true(chapter.includes(option), `${name} ${option}`)
  }
})

test('no page has a heading twice', (t) => {
  for (const name of fs.readdirSync(path.join(root, 'docs'))) {
    const headings = [...read(`docs/${name}`).matchAll(/^#+ .*$/gm)].map(([heading]) => heading)
    t.deepEqual([...new Set(headings)], headings, name)
  }
})

test('every link between the pages leads to a file and to a chapter in it', (t) => {
  const pages = ['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
  for (const name of fs.readdirSync(path.join(root, 'docs'))) pages.push(`docs/${name}`)
  for (const page of pages) {
    for (const [, target = ''] of read(page).matchAll(/\]\(([^)]+)\)/g)) {
      if (/^https?:/.test(target)) continue
      const [file = '', chapter] = target.split('#')
      const to = file === '' ? page : path.join(path.dirname(page), file)
      t.true(fs.existsSync(path.join(root, to)), `${page} → ${target}`)
      if (chapter === undefined || !to.endsWith('.md')) continue
      const titles = [...read(to).matchAll(/^#+ (.*)$/gm)].map(([, title = '']) => anchor(title))
      t.true(titles.includes(chapter), `${page} → ${target}`)
    }
  }
})

/** The anchor of a title, as the usual renderers make it. */
function anchor(title: string): string {
  return title
    .toLowerCase()
    .replaceAll(/[^\w\- ]/g, '')
    .replaceAll(' ', '-')
}
