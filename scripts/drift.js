// Whether the committed index.js and index.d.ts are what the committed Rust sources generate.
// Generates them anew beside the working tree and asks git; it changes neither.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './run.js'
import { BINDING_OUTPUT, BINDING_SOURCES, GENERATED, generateBinding } from './setup.js'

/**
 * A step of scripts/test.js. Outside CI the generated files may differ from the last commit when
 * the sources do too: that is a change in progress. In CI they may not.
 *
 * @param {{ ci: boolean }} mode
 * @returns {Promise<{ ok: boolean, lines: string[] }>}
 */
export async function drift({ ci }) {
  const generated = await generateBinding()
  if (!generated.ok) return generated

  const stale = GENERATED.filter((name) => !same(join(BINDING_OUTPUT, name), name))
  if (stale.length > 0) {
    return {
      ok: false,
      lines: [`${stale.join(' and ')} not as generated: never edit them, \`npm run build\` does.`],
    }
  }

  const changed = await run(['git', 'status', '--porcelain', '--', ...GENERATED])
  const sources = await run(['git', 'status', '--porcelain', '--', ...BINDING_SOURCES])
  if (!changed.ok) {
    return { ok: !ci, lines: ['Not compared with the last commit:', ...changed.lines] }
  }
  if (changed.lines.length > 0 && (ci || sources.lines.length === 0)) {
    const diff = await run(['git', '--no-pager', 'diff', '--', ...GENERATED])
    return {
      ok: false,
      lines: [
        'The committed files are not what the sources generate: commit them as they are now.',
        ...changed.lines,
        ...diff.lines,
      ],
    }
  }
  return { ok: true, lines: [] }
}

function same(a, b) {
  return existsSync(a) && existsSync(b) && readFileSync(a).equals(readFileSync(b))
}
