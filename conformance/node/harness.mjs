// What the checks share: clients, inputs, ways to fail, and the printing of results.

import { deepStrictEqual as equal, match as matches, ok } from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'

export { equal, matches, ok, sleep }
export const { env } = process

// SDK names the generation of the SDK: openai or openai-6 (see package.json).
export const { default: OpenAI, toFile, toStreamingFile } = await import(env.SDK ?? 'openai')

export const CHAT = 'sim-chat', OTHER = 'org/sim-chat:free', SLOW = 'sim-slow', BUSY = 'sim-busy'
export const REFUSED = 'refuse-me' // the model server answers 400 to a body with this text

export const traffic = { requests: 0 } // of all clients

export const client = (options) =>
  new OpenAI({
    baseURL: env.BASE_URL,
    apiKey: env.API_KEY,
    fetch: (...args) => (traffic.requests++, fetch(...args)),
    ...options,
  })

export const ai = client()
export const pages = client({ apiKey: env.PAGES_KEY }) // of a project with 120 files and 120 batches
export const strict = client({ baseURL: env.STRICT_URL, apiKey: env.STRICT_KEY })

// Inputs

export const line = (custom_id, { text = 'hello', model = CHAT, url = '/v1/chat/completions', body } = {}) => ({
  custom_id, method: 'POST', url, body: { model, ...(body ?? { messages: [{ role: 'user', content: text }] }) },
})

export const jsonl = (lines) =>
  lines.map((l) => (typeof l === 'string' ? l : JSON.stringify(l)) + '\n').join('')

export const SAMPLE = Buffer.from(jsonl([line('a'), line('b')]))

export async function upload(lines, to = ai) {
  return (await to.files.create({ file: await toFile(Buffer.from(jsonl(lines)), 'in.jsonl'), purpose: 'batch' })).id
}

export async function create(lines, params, to = ai) {
  return to.batches.create({
    input_file_id: await upload(lines, to), endpoint: lines[0].url, completion_window: '24h', ...params,
  })
}

// Waiting

/** The batch as it is once the condition holds. */
export async function wait({ id }, until, to = ai) {
  for (const giveUp = Date.now() + 30_000; ; await sleep(50)) {
    const batch = await to.batches.retrieve(id)
    if (until(batch)) return batch
    ok(Date.now() < giveUp, `still ${batch.status} after 30 s`)
  }
}

export const finish = (batch, to = ai) =>
  wait(batch, (b) => ['completed', 'failed', 'expired', 'cancelled'].includes(b.status), to)

export const counts = ({ request_counts: c }) => [c.total, c.completed, c.failed]

// Results

/** The lines of a result file by custom_id. */
export async function results(fileID) {
  const text = await (await ai.files.content(fileID)).text()
  const lines = text.split('\n').slice(0, -1).map((l) => JSON.parse(l))
  for (const l of lines) {
    equal(Object.keys(l), ['id', 'custom_id', 'response', 'error'])
    matches(l.id, /^batch_req_[0-9a-f]{32}$/)
  }
  const byID = Object.fromEntries(lines.map((l) => [l.custom_id, l]))
  equal(Object.keys(byID).length, lines.length)
  return byID
}

/** What the model server says to a line's body; it says the same each time. */
export async function answer({ url, body }) {
  const r = await fetch(env.SIM_URL + url.replace('/v1', ''), { method: 'POST', body: JSON.stringify(body) })
  return r.json()
}

// Judging

/** The SDK has no such thing; says why. */
export class Lacks extends Error {}

/** The names of the fields that are explicitly null. Times must be Unix seconds otherwise. */
export function nulls(thing) {
  const fields = Object.entries(thing)
  for (const [name, value] of fields) {
    ok(!name.endsWith('_at') || value === null || Number.isInteger(value), `${name} is ${value}`)
  }
  return fields.filter(([, value]) => value === null).map(([name]) => name).sort()
}

/** What an API promise that must fail fails with. */
export const failure = (promise) => promise.then(
  (value) => { throw new Error(`got ${JSON.stringify(value)}, want an error`) },
  (error) => error,
)

const CLASSES = {
  400: OpenAI.BadRequestError, 401: OpenAI.AuthenticationError, 404: OpenAI.NotFoundError,
  405: OpenAI.APIError, 409: OpenAI.ConflictError,
}

const ANY = Symbol('any')
export const OPEN = { code: ANY, param: ANY } // where the contract leaves an error's code and param open

/** The promise fails with the SDK's class for the status, and says all of this. */
export async function refused(promise, status, message, { code = null, param = null } = {}) {
  const e = await failure(promise)
  if (!(e instanceof OpenAI.APIError)) throw e
  equal(e.constructor, CLASSES[status])
  equal([e.status, e.type], [status, 'invalid_request_error'])
  if (code !== ANY) equal(e.code, code)
  if (param !== ANY) equal(e.param, param)
  equal(Object.keys(e.error).sort(), ['code', 'message', 'param', 'type'])
  ok(e.error.message.includes(message), `got message "${e.error.message}", want "${message}" in it`)
  matches(e.requestID, /^req_/)
}

// Running

/** Run every check; print its id, how it went, and why. */
export async function run(checks) {
  for (const [id, check] of Object.entries(checks)) {
    try {
      await check()
      console.log(`${id}  ok`)
    } catch (e) {
      if (e instanceof Lacks) {
        console.log(`${id}  -  ${e.message}`)
        continue
      }
      const [, where] = e.stack.match(/checks\.mjs:(\d+)/) ?? []
      console.log(`${id}  FAILED  line ${where}: ${`${e.name}: ${e.message}`.replace(/\s+/g, ' ')}`)
    }
  }
}
