/**
 * A server of static files whose every read goes through the ring: GET and HEAD, one range of bytes
 * (`Range: bytes=0-99`), `If-Modified-Since`. Shows reads that keep up with a slow client, files that
 * are closed whatever the client does, and an end on ctrl-C that finishes what is under way.
 *
 *   node --import tsx examples/static-server.ts FOLDER [--port 8080]
 *
 * Without FOLDER it serves its own folder on a free port, asks itself for a few things, compares what
 * comes, and ends.
 */
import { once } from 'node:events'
import { constants, readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { basename, dirname, extname, join, normalize } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type File, Queue } from 'node-uring'

/** Each client has two of these at most: the one that it takes, and the next. */
const PIECE_BYTES = 256 << 10

const TYPES: Readonly<Record<string, string>> = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.ts': 'text/plain; charset=utf-8',
  '.txt': 'text/plain; charset=utf-8',
}

/** Answers one request. What goes wrong before the first byte becomes a status. */
async function serve(
  queue: Queue,
  folder: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD')
    return end(response, 405)
  }
  const path = pathOf(folder, request.url ?? '/')
  if (path === undefined) return end(response, 400)
  let file: File
  try {
    // O_NONBLOCK: to open a FIFO would wait for its other end.
    file = await queue.open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    return end(response, STATUSES[code] ?? 500)
  }
  try {
    await send(file, path, request, response)
  } finally {
    await file.close()
  }
}

const STATUSES: Readonly<Record<string, number>> = {
  EACCES: 403,
  ELOOP: 404,
  ENAMETOOLONG: 404,
  ENOENT: 404,
  ENOTDIR: 404,
}

/** The file that a URL names: never one outside of the folder, unless a link in it leads there. */
function pathOf(folder: string, url: string): string | undefined {
  try {
    const path = decodeURIComponent(new URL(url, 'http://host').pathname)
    if (path.includes('\0')) return undefined
    // From the root on there is nothing above that `..` could reach.
    const inside = normalize(path.endsWith('/') ? `${path}index.html` : path)
    return join(folder, inside)
  } catch {
    return undefined
  }
}

async function send(
  file: File,
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const stats = await file.stat()
  if (!stats.isFile()) return end(response, 404)
  response.setHeader('Accept-Ranges', 'bytes')
  response.setHeader('Last-Modified', stats.mtime.toUTCString())
  response.setHeader('Content-Type', TYPES[extname(path)] ?? 'application/octet-stream')
  const since = Date.parse(request.headers['if-modified-since'] ?? '')
  if (since >= Math.floor(stats.mtimeMs / 1000) * 1000) return end(response, 304)

  const range = rangeOf(request.headers.range, stats.size)
  if (range === 'unsatisfiable') {
    response.setHeader('Content-Range', `bytes */${stats.size}`)
    return end(response, 416)
  }
  const { start, length } = range ?? { start: 0, length: stats.size }
  if (range !== undefined) {
    response.setHeader('Content-Range', `bytes ${start}-${start + length - 1}/${stats.size}`)
  }
  response.setHeader('Content-Length', length)
  response.statusCode = range === undefined ? 200 : 206
  if (request.method === 'HEAD') return void response.end()
  // Takes the next piece when the client has taken the last; ends the generator when it leaves.
  await pipeline(pieces(file, start, length), response)
}

/** One range of bytes; undefined for none, and for what is not understood, which is then ignored. */
function rangeOf(
  header: string | undefined,
  size: number,
): { start: number; length: number } | 'unsatisfiable' | undefined {
  const [, first = '', last = ''] = /^bytes=(\d*)-(\d*)$/.exec(header ?? '') ?? []
  if (first === '' && last === '') return undefined
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? size : Math.min(size, Number(last) + 1)
  return start < end ? { start, length: end - start } : 'unsatisfiable'
}

/** The bytes in pieces, each read while the one before is sent. */
async function* pieces(file: File, start: number, length: number): AsyncGenerator<Buffer> {
  const read = (at: number) => file.bytesAt(start + at, Math.min(PIECE_BYTES, length - at))
  let next = length > 0 ? read(0) : undefined
  for (let at = 0; next !== undefined; ) {
    const bytes = await next
    if (bytes.length === 0) throw new Error('the file has become shorter')
    at += bytes.length
    next = at < length ? read(at) : undefined
    // It may fail while nobody waits for it yet, or when the client has left.
    next?.catch(() => {})
    yield bytes
  }
}

function end(response: ServerResponse, status: number): void {
  response.statusCode = status
  response.end()
}

/** Starts; resolves with where it listens, and with what ends it. */
async function start(folder: string, port: number) {
  const queue = new Queue()
  const server = createServer((request, response) => {
    serve(queue, folder, request, response).catch((error: NodeJS.ErrnoException) => {
      // Clients leave as they like.
      if (error.code !== 'ERR_STREAM_PREMATURE_CLOSE') console.error(error)
      response.destroy()
    })
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const stop = async (): Promise<void> => {
    server.close()
    server.closeIdleConnections()
    await once(server, 'close')
    await queue.close()
  }
  return { address, queue, stop }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { port: { type: 'string', default: '8080' } },
})
const [folder] = positionals
if (folder === undefined) {
  await demonstrate()
} else {
  const { address, stop } = await start(folder, Number(values.port))
  console.log(`${folder} is served at ${address}; ctrl-C ends`)
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop)
}

/** Asks for this very file in several ways. */
async function demonstrate(): Promise<void> {
  const me = fileURLToPath(import.meta.url)
  const { address, queue, stop } = await start(dirname(me), 0)
  const wanted = readFileSync(me)
  const name = basename(me)
  let answers = 0
  const ask = async (
    path: string,
    headers: Record<string, string>,
    status: number,
    body?: Uint8Array,
    method = 'GET',
  ): Promise<Response> => {
    const response = await fetch(`${address}/${path}`, { method, headers })
    const bytes = Buffer.from(await response.arrayBuffer())
    if (response.status !== status || (body !== undefined && !bytes.equals(body))) {
      throw new Error(`${method} ${path} ${JSON.stringify(headers)} gave ${response.status}`)
    }
    answers++
    return response
  }
  try {
    const { headers } = await ask(name, {}, 200, wanted)
    await ask(name, { range: 'bytes=100-199' }, 206, wanted.subarray(100, 200))
    await ask(name, { range: 'bytes=100-' }, 206, wanted.subarray(100))
    await ask(name, { range: 'bytes=-50' }, 206, wanted.subarray(-50))
    await ask(name, { range: `bytes=${wanted.length}-` }, 416)
    await ask(name, {}, 200, Buffer.alloc(0), 'HEAD')
    await ask(name, {}, 405, undefined, 'POST')
    await ask(name, { 'if-modified-since': headers.get('last-modified') ?? '' }, 304)
    await ask('nobody', {}, 404)
    await ask('..%2fpackage.json', {}, 404)
    await ask('%00', {}, 400)
    await Promise.all(Array.from({ length: 100 }, () => ask(name, {}, 200, wanted)))
  } finally {
    await stop()
  }
  const { files, inFlight } = queue.stats()
  console.log(
    `${answers} answers as they should be; ${files} files open, ${inFlight} reads under way`,
  )
}
