/**
 * A drive with a volatile cache, as disks have: what was written but not flushed is there to be read
 * and is lost, sector by sector at random, when the power goes. It lives in memory; qemu reaches it
 * by the NBD protocol over a Unix socket (doc/proto.md of the nbd project), as little of it as qemu
 * uses. Whoever answers a flush too early would be caught here; a file of the host keeps it all.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import os from 'node:os'
import path from 'node:path'

export const SECTOR_BYTES = 512

const MAGIC = Buffer.from('NBDMAGICIHAVEOPT')
const OPTION_BYTES = 16
const [OPTION_ABORT, OPTION_GO] = [2, 7]
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n
const [REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED] = [1, 3, 2 ** 31 + 1]
const REQUEST_BYTES = 28
const REPLY_MAGIC = 0x67446698
const [READ, WRITE, DISCONNECT, FLUSH] = [0, 1, 2, 3]
const FUA = 1
const EINVAL = 22
/** HAS_FLAGS, SEND_FLUSH, SEND_FUA. */
const EXPORT_FLAGS = 1 | 4 | 8

export class VolatileDrive {
  /** What has reached stable storage. */
  readonly #stable: Buffer
  /** Sectors written since, by number. */
  readonly #cached = new Map<number, Buffer>()
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #folder = mkdtempSync(path.join(os.tmpdir(), 'node-uring-drive-'))
  /** How often it was flushed, a write through the cache included. */
  flushes = 0

  private constructor(image: string) {
    this.#stable = readFileSync(image)
    this.#server = createServer((socket) => void this.#serve(socket))
  }

  /** Serves the content of a file, which is not written to. */
  static async of(image: string): Promise<VolatileDrive> {
    const drive = new VolatileDrive(image)
    await new Promise<void>((resolve) => drive.#server.listen(drive.#path, resolve))
    return drive
  }

  get #path(): string {
    return path.join(this.#folder, 'socket')
  }

  /** The value of qemu's `-drive`. */
  get drive(): string {
    return `file=nbd+unix:///?socket=${this.#path},format=raw`
  }

  /**
   * The power goes, qemu having been killed: each cached sector is lost or not, as `lost` says. Writes
   * what is on stable storage then to `image`, and ends. Returns how many sectors were in the cache.
   */
  cutPower(image: string, lost: () => boolean): number {
    const cached = this.#cached.size
    for (const [sector, data] of this.#cached) if (!lost()) this.#store(sector, data)
    this.#cached.clear()
    writeFileSync(image, this.#stable)
    this.close()
    return cached
  }

  close(): void {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #store(sector: number, data: Buffer): void {
    data.copy(this.#stable, sector * SECTOR_BYTES)
  }

  #read(offset: number, length: number): Buffer {
    const data = Buffer.from(this.#stable.subarray(offset, offset + length))
    for (let at = 0; at < length; at += SECTOR_BYTES) {
      this.#cached.get((offset + at) / SECTOR_BYTES)?.copy(data, at)
    }
    return data
  }

  #write(offset: number, data: Buffer, through: boolean): void {
    for (let at = 0; at < data.length; at += SECTOR_BYTES) {
      const sector = (offset + at) / SECTOR_BYTES
      const content = data.subarray(at, at + SECTOR_BYTES)
      if (through) this.#store(sector, content)
      if (through) this.#cached.delete(sector)
      else this.#cached.set(sector, Buffer.from(content))
    }
    if (through) this.flushes++
  }

  #flush(): void {
    for (const [sector, data] of this.#cached) this.#store(sector, data)
    this.#cached.clear()
    this.flushes++
  }

  async #serve(socket: Socket): Promise<void> {
    this.#sockets.add(socket)
    const client = new Reader(socket)
    try {
      // Fixed newstyle, and no zeroes after a reply that we do not give.
      socket.write(Buffer.concat([MAGIC, Buffer.from([0, 3])]))
      await client.take(4)
      if (await this.#negotiate(client, socket)) while (await this.#answer(client, socket));
    } catch (error) {
      if (!(error instanceof Gone)) throw error
    }
    socket.destroy()
    this.#sockets.delete(socket)
  }

  /** Options, each but GO refused, until GO; false when the client gives up. */
  async #negotiate(client: Reader, socket: Socket): Promise<boolean> {
    for (;;) {
      const head = await client.take(OPTION_BYTES)
      const option = head.readUInt32BE(8)
      await client.take(head.readUInt32BE(12))
      const reply = (type: number, data: Uint8Array = Buffer.alloc(0)): void => {
        const answer = Buffer.alloc(20)
        answer.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0)
        answer.writeUInt32BE(option, 8)
        answer.writeUInt32BE(type, 12)
        answer.writeUInt32BE(data.length, 16)
        socket.write(Buffer.concat([answer, data]))
      }
      if (option === OPTION_GO) {
        const info = Buffer.alloc(12)
        info.writeBigUInt64BE(BigInt(this.#stable.length), 2)
        info.writeUInt16BE(EXPORT_FLAGS, 10)
        reply(REPLY_INFO, info)
        reply(REPLY_ACK)
        return true
      }
      reply(option === OPTION_ABORT ? REPLY_ACK : REPLY_UNSUPPORTED)
      if (option === OPTION_ABORT) return false
    }
  }

  /** One request; false when it was the last. */
  async #answer(client: Reader, socket: Socket): Promise<boolean> {
    const request = await client.take(REQUEST_BYTES)
    const [flags, type] = [request.readUInt16BE(4), request.readUInt16BE(6)]
    const offset = Number(request.readBigUInt64BE(16))
    const length = request.readUInt32BE(24)
    const reply = (errno: number, data: Uint8Array = Buffer.alloc(0)): void => {
      const answer = Buffer.alloc(16)
      answer.writeUInt32BE(REPLY_MAGIC, 0)
      answer.writeUInt32BE(errno, 4)
      request.copy(answer, 8, 8, 16)
      socket.write(Buffer.concat([answer, data]))
    }
    switch (type) {
      case READ:
        reply(0, this.#read(offset, length))
        return true
      case WRITE:
        this.#write(offset, await client.take(length), (flags & FUA) !== 0)
        reply(0)
        return true
      case FLUSH:
        this.#flush()
        reply(0)
        return true
      case DISCONNECT:
        return false
      default:
        reply(EINVAL)
        return true
    }
  }
}

/** The other side has gone. */
class Gone extends Error {}

/** Takes so many bytes from a socket, in order. */
class Reader {
  readonly #chunks: AsyncIterator<Buffer>
  #rest: Buffer = Buffer.alloc(0)

  constructor(socket: Socket) {
    socket.on('error', () => {})
    this.#chunks = socket[Symbol.asyncIterator]()
  }

  async take(length: number): Promise<Buffer> {
    const pieces = [this.#rest]
    let have = this.#rest.length
    while (have < length) {
      const { value, done } = await this.#chunks
        .next()
        .catch(() => ({ value: undefined, done: true }))
      if (done === true || value === undefined) throw new Gone()
      pieces.push(value)
      have += value.length
    }
    const all = pieces.length === 1 ? this.#rest : Buffer.concat(pieces)
    this.#rest = all.subarray(length)
    return all.subarray(0, length)
  }
}
