// Random chains over one piece of memory, copied and in place, against the same calls one after the other.

import fs from 'node:fs'
import fc from 'fast-check'
import { type BatchOperation, type File, op, type Queue } from 'node-uring'
import { pattern } from './helpers/random.js'
import { assertIdle, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import test, { BACKEND } from './helpers/test.js'

const FILE_BYTES = 1 << 15
const MEMORY_BYTES = 1 << 14

/** One member of a chain: what moves between which memory and which file. */
interface Member {
  readonly does: 'read' | 'write' | 'readv' | 'writev'
  readonly memory: 'arena' | 'plain'
  readonly from: 'source' | 'buffered' | 'direct'
  readonly at: number
  readonly length: number
  readonly position: number
}

// Within one block or of whole ones, so that a direct file is read in place, too.
const place = (most: number) =>
  fc.oneof(
    fc.nat(most),
    fc.nat(most >> 12).map((block) => block << 12),
  )
const members: fc.Arbitrary<Member[]> = fc.array(
  fc.record({
    does: fc.constantFrom('read', 'write', 'readv', 'writev'),
    memory: fc.constantFrom('arena', 'plain'),
    from: fc.constantFrom('source', 'buffered', 'direct'),
    at: place(MEMORY_BYTES - 4096),
    length: fc.oneof(fc.integer({ min: 1, max: 4096 }), fc.constant(4096)),
    position: place(FILE_BYTES - 4096),
  }) as fc.Arbitrary<Member>,
  { minLength: 2, maxLength: 8 },
)

interface World {
  readonly files: Readonly<Record<Member['from'], File>>
  readonly memory: Readonly<Record<Member['memory'], Buffer>>
}

/**
 * Vectors are of arena memory only. A direct file, of which the source is one that is only read, takes whole
 * blocks: from wherever in memory.
 */
function made({ files, memory }: World, member: Member): [BatchOperation, Member] {
  const vectored = member.does.endsWith('v')
  const writes = member.does.startsWith('write')
  const from = vectored || (writes && member.from === 'source') ? 'buffered' : member.from
  const blocks = writes && from === 'direct'
  const kept: Member = {
    ...member,
    does: vectored && BACKEND === 'node:fs' ? (writes ? 'write' : 'read') : member.does,
    memory: vectored ? 'arena' : member.memory,
    from,
    length: blocks ? 4096 : member.length,
    position: blocks ? member.position & ~4095 : member.position,
  }
  const { does, at, length, position } = kept
  const file = files[kept.from]
  const view = memory[kept.memory].subarray(at, at + length)
  const half = [view.subarray(0, length >> 1), view.subarray(length >> 1)]
  if (does === 'read') return [op.read(file, view, position), kept]
  if (does === 'write') return [op.write(file, view, position), kept]
  const make = does === 'readv' ? op.readv : op.writev
  return [make(file, half, position), kept]
}

type Paths = Readonly<Record<Member['from'], string>>

async function world(queue: Queue, paths: Paths): Promise<World> {
  const files = {
    source: await queue.open(paths.source, 'r', { direct: true }),
    buffered: await queue.open(paths.buffered, 'r+'),
    direct: await queue.open(paths.direct, 'r+', { direct: true }),
  }
  return {
    files,
    memory: { arena: queue.alloc(MEMORY_BYTES), plain: Buffer.alloc(MEMORY_BYTES) },
  }
}

for (const taskRun of ['interrupt', 'defer'] as const) {
  test(`a chain leaves in memory and files what the same calls do one after the other, ${taskRun}`, async (t) => {
    t.timeout(120_000)
    const queue = ring(t, { setup: { taskRun } })
    const content = {
      source: pattern(FILE_BYTES, 1),
      buffered: pattern(FILE_BYTES, 2),
      direct: pattern(FILE_BYTES, 3),
    }
    const paths: Paths = {
      source: scratch(t, content.source),
      buffered: scratch(t, content.buffered),
      direct: scratch(t, content.direct),
    }
    const here = await world(queue, paths)
    const link = fc.constantFrom('soft' as const, 'hard' as const)
    await fc.assert(
      fc.asyncProperty(members, link, async (list, kind) => {
        here.memory.arena.fill('a')
        here.memory.plain.fill('p')
        const model = {
          arena: Buffer.alloc(MEMORY_BYTES, 'a'),
          plain: Buffer.alloc(MEMORY_BYTES, 'p'),
          source: content.source,
          buffered: Buffer.from(fs.readFileSync(paths.buffered)),
          direct: Buffer.from(await here.files.direct.bytesAt(0, FILE_BYTES)),
        }
        const operations: BatchOperation[] = []
        const lengths: number[] = []
        for (const member of list) {
          const [operation, { does, memory, from, at, length, position }] = made(here, member)
          operations.push(operation)
          lengths.push(length)
          const [inMemory, inFile] = [model[memory], model[from]]
          if (does.startsWith('read')) inFile.copy(inMemory, at, position, position + length)
          else inMemory.copy(inFile, position, at, at + length)
        }
        const results = queue.submit(operations, { link: kind })
        queue.flush()
        // The thread computes, and the kernel would go on by itself.
        for (const since = performance.now(); performance.now() - since < 0.3; );
        t.deepEqual(await results, lengths)
        t.is(here.memory.arena.compare(model.arena), 0, 'memory in place')
        t.is(here.memory.plain.compare(model.plain), 0, 'memory that is copied')
        t.is(fs.readFileSync(paths.buffered).compare(model.buffered), 0, 'the file')
        const direct = await here.files.direct.bytesAt(0, FILE_BYTES)
        t.is(direct.compare(model.direct), 0, 'the direct file')
      }),
      { numRuns: 1500 },
    )
    assertIdle(t, queue)
  })
}
