// send and recv on adopted sockets: a socket pair and TCP connections on loopback. The side under test
// is a process of its own, for only there a socket has no other owner.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net, { type AddressInfo } from 'node:net'
import type { Duplex, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { op } from 'node-uring'
import { fixture } from './helpers/child.js'
import { assertIdle, rejection, ring } from './helpers/ring.js'
import { scratch } from './helpers/scratch.js'
import { needs } from './helpers/skip.js'
import test, { type ExecutionContext } from './helpers/test.js'

const PROGRAM = fileURLToPath(fixture('socket.mjs'))
const LONG = 'some text that is long enough for more than one turn. '.repeat(10_000)

/** Kills the child with the test, and gives what it prints. */
function watched(t: ExecutionContext, child: ChildProcess): Promise<string> {
  t.timeout(60_000)
  t.teardown(() => child.kill('SIGKILL'))
  return text(child.stdout as Readable)
}

/** Talks to the fixture, and checks that it answers with what it should. */
async function talk(t: ExecutionContext, socket: Duplex, printed: Promise<string>): Promise<void> {
  let heard = ''
  socket.setEncoding('latin1')
  socket.on('data', (part) => {
    heard += part
  })
  socket.write('first')
  while (heard.length < 10) await once(socket, 'data')
  t.is(heard, 'helloFIRST')
  socket.end(LONG)
  await once(socket, 'end')
  t.is(heard.slice(10), LONG.toUpperCase())
  const length = LONG.length + 5
  t.deepEqual(JSON.parse(await printed), {
    sent: length + 5,
    received: length,
    peeked: 'first',
    last: 0,
  })
}

test('send and recv work over a socket pair', async (t) => {
  const child: ChildProcess = spawn(process.execPath, [PROGRAM], {
    stdio: ['ignore', 'pipe', 'inherit', 'pipe'],
  })
  await talk(t, child.stdio[3] as unknown as Duplex, watched(t, child))
})

/** A TCP connection on loopback, both ends. */
async function connection(t: ExecutionContext): Promise<[net.Socket, net.Socket]> {
  const server = net.createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const client = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  const [[socket]] = await Promise.all([once(server, 'connection'), once(client, 'connect')])
  for (const end of [client, socket as net.Socket]) t.teardown(() => end.destroy())
  return [client, socket as net.Socket]
}

test('send and recv work over a TCP connection that Node made: EAGAIN, and poll', async (t) => {
  const [client, theirs] = await connection(t)
  const child = spawn(process.execPath, [PROGRAM], {
    stdio: ['ignore', 'pipe', 'inherit', theirs],
  })
  const printed = watched(t, child)
  await once(child, 'spawn')
  // The child has it now; as long as we had it, too, it would not end.
  theirs.destroy()
  await talk(t, client, printed)
})

/**
 * Runs Node with a TCP connection of its own, in blocking mode, at descriptor 3: one that Node made is not.
 * Gives this side of it, and what is printed.
 */
async function blocking(
  t: ExecutionContext,
  args: string[],
): Promise<[net.Socket, Promise<string>]> {
  const server = net.createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const program = `exec 3<>/dev/tcp/127.0.0.1/${port}; exec "$@"`
  const child = spawn('bash', ['-c', program, 'bash', process.execPath, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const printed = watched(t, child)
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  t.teardown(() => socket.destroy())
  return [socket, printed]
}

const bashTest = needs(test, { commands: ['bash'] })
bashTest('send and recv work over a TCP connection in blocking mode', async (t) => {
  const [socket, printed] = await blocking(t, [PROGRAM])
  await talk(t, socket, printed)
})

/** Reads and writes a socket at descriptor 3 as it would a file, at positions and in pieces. */
const AS_A_FILE = `
import { Queue } from 'node-uring'
const queue = new Queue()
const socket = await queue.adopt(3)
const [half, whole] = [1 << 20, 2 << 20]
const told = [
  await socket.writeAt(Buffer.alloc(whole, 1), 0),
  await socket.writeAt(queue.alloc(whole).fill(2), 12345),
  await socket.writevAt([Buffer.alloc(half, 3), Buffer.alloc(half, 3)], 7),
  await socket.writevAt([queue.alloc(half).fill(4), queue.alloc(half).fill(4)], 7),
  [...(await socket.writeMany(Float64Array.of(0, 10), 5, Buffer.alloc(10, 5)))],
  (await socket.bytesAt(99, 4)).toString(),
]
await queue.close()
console.log(JSON.stringify(told))`

bashTest('a socket has no positions: it is read and written at any, and in pieces', async (t) => {
  const [socket, printed] = await blocking(t, ['--input-type=module', '--eval', AS_A_FILE])
  socket.write('1234')
  const came: Buffer[] = []
  for await (const part of socket) came.push(part as Buffer)
  const all = Buffer.concat(came)
  const size = 2 << 20
  t.deepEqual(JSON.parse(await printed), [size, size, size, size, [5, 5], '1234'])
  for (let i = 0; i < 4; i++) {
    t.true(
      all.subarray(i * size, (i + 1) * size).every((byte) => byte === i + 1),
      `part ${i}`,
    )
  }
  t.true(all.subarray(4 * size).equals(Buffer.alloc(10, 5)))
})

test('send and recv on what is no socket say ENOTSOCK, in a batch, too', async (t) => {
  const queue = ring(t)
  const at = scratch(t, Buffer.from('content'))
  const file = await queue.open(at, 'r+')
  for (const buffer of [new Uint8Array(4), queue.alloc(4)]) {
    const sent = await rejection(file.send(buffer))
    t.is(sent.message, 'ENOTSOCK: socket operation on non-socket, send')
    t.is(sent.bytesWritten, 0)
    const received = await rejection(file.recv(buffer))
    t.is(received.message, 'ENOTSOCK: socket operation on non-socket, recv')
    for (const result of await queue.submit([op.send(file, buffer), op.recv(file, buffer)]))
      t.is((result as { code?: string }).code, 'ENOTSOCK')
  }
  t.is(await file.send(new Uint8Array(0)), 0)
  t.throws(() => file.recv('x' as unknown as Uint8Array), { code: 'ERR_INVALID_ARG_TYPE' })
  t.is(fs.readFileSync(at, 'utf8'), 'content')
  assertIdle(t, queue)
})

/** What a recv that waits for all of a buffer brings before a write, from memory of either kind. */
const SHORT_OF_ALL = `
import { op, Queue } from 'node-uring'
const queue = new Queue()
const socket = await queue.adopt(3)
const file = await queue.open(process.argv[1], 'w+')
const buffer = process.argv[2] === 'arena' ? queue.alloc(8) : Buffer.alloc(8)
const list = [op.recv(socket, buffer, { waitAll: true }), op.write(file, buffer, 0)]
const results = await queue.submit(list, { link: 'soft' })
await queue.close()
console.log(JSON.stringify(results.map((result) => result.code ?? result)))`

for (const memory of ['arena', 'plain']) {
  bashTest(
    `a recv that waits for all and gets less ends a soft chain, ${memory} memory`,
    async (t) => {
      const file = scratch(t, Buffer.of())
      const args = ['--input-type=module', '--eval', SHORT_OF_ALL, file, memory]
      const [socket, printed] = await blocking(t, args)
      socket.end('abc')
      t.deepEqual(JSON.parse(await printed), [3, 'ECANCELED'])
      t.is(fs.readFileSync(file, 'latin1'), '')
    },
  )

  bashTest(`a write behind a recv in a chain writes what came, ${memory} memory`, async (t) => {
    const file = scratch(t, Buffer.of())
    const args = ['--input-type=module', '--eval', SHORT_OF_ALL, file, memory]
    const [socket, printed] = await blocking(t, args)
    socket.end('abcdefgh')
    t.deepEqual(JSON.parse(await printed), [8, 8])
    t.is(fs.readFileSync(file, 'latin1'), 'abcdefgh')
  })
}
