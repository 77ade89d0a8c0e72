// OpenAI's Node SDK against Offpeak. ../checks.tsv says what each id stands for.

import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, openAsBlob, readFileSync, writeFileSync } from 'node:fs'
import { Readable } from 'node:stream'

import {
  BUSY, CHAT, Lacks, OPEN, OTHER, REFUSED, SAMPLE, SLOW, OpenAI, ai, answer, client, counts, create, env, equal, failure,
  finish, line, matches, nulls, ok, pages, refused, results, run, sleep, strict, toFile, toStreamingFile, traffic,
  upload, wait,
} from './harness.mjs'

const path = `${env.SCRATCH}/sample.jsonl`
writeFileSync(path, SAMPLE)

const content = async (id) => Buffer.from(await (await ai.files.content(id)).arrayBuffer())
const md5 = (data) => createHash('md5').update(data).digest('hex')
const all = async (list) => { const items = []; for await (const item of list) items.push(item); return items }
const once = (f) => { let value; return () => (value ??= f()) }
const after = (seconds, anchor = 'created_at') => ({ anchor, seconds })

async function uploaded(file, name, bytes = SAMPLE, purpose = 'batch') {
  const f = await ai.files.create({ file, purpose })
  equal([f.filename, f.bytes, f.purpose], [name, bytes.length, purpose])
  ok(bytes.equals(await content(f.id)))
}

const BATCH = [
  'id', 'object', 'endpoint', 'model', 'errors', 'input_file_id', 'completion_window', 'status', 'output_file_id',
  'error_file_id', 'created_at', 'in_progress_at', 'expires_at', 'finalizing_at', 'completed_at', 'failed_at',
  'expired_at', 'cancelling_at', 'cancelled_at', 'request_counts', 'usage', 'metadata',
]
const ENDINGS = ['cancelled_at', 'cancelling_at', 'completed_at', 'expired_at', 'failed_at']
const NOT_STARTED = ['error_file_id', 'finalizing_at', 'in_progress_at', 'model', 'output_file_id', 'usage']
const without = (name, names) => names.filter((n) => n !== name)
const sorted = (...names) => names.flat().sort()

const LINES = [...Array(20).keys()].map((n) => line(`ticket-${n}`, { text: `question ${n}` }))
LINES.push(line('été/"1"', { text: 'naïve 🙂' }))
const completed = once(async () => finish(await create(LINES)))

/** The batch when it was running, just cancelled, cancelled again, and in the end. */
const cancelled = once(async () => {
  const lines = [line('a'), line('b'), line('in-flight', { model: SLOW }), line('waiting', { model: BUSY })]
  const running = await wait(await create(lines), (b) => b.request_counts.completed === 2)
  const cancelling = await ai.batches.cancel(running.id)
  return { running, cancelling, again: await ai.batches.cancel(running.id), end: await finish(running) }
})

async function cannotCancel(batch) {
  const before = traffic.requests
  await refused(ai.batches.cancel(batch.id), 409, `Cannot cancel a batch with status '${batch.status}'.`)
  equal(traffic.requests - before, 1)
  equal(await ai.batches.retrieve(batch.id), batch)
}

const begin = (bytes, params) =>
  ai.uploads.create({ bytes: bytes.length, filename: 'in.jsonl', mime_type: 'application/jsonl', purpose: 'batch', ...params })
const sendPart = async (u, data) => ai.uploads.parts.create(u.id, { data: await toFile(data) })
const part = async (u, data) => (await sendPart(u, data)).id
const complete = (u, part_ids, params) => ai.uploads.complete(u.id, { part_ids, ...params })

await run({
  // Uploads

  'upload-path': async () => {
    await uploaded(createReadStream(path), 'sample.jsonl')
    await uploaded(new File([await openAsBlob(path)], 'opened.jsonl'), 'opened.jsonl')
  },

  'upload-stream': async () => {
    await uploaded(await toFile(createReadStream(path), 'in.jsonl'), 'in.jsonl')
    await uploaded(await toFile(Readable.from([SAMPLE.subarray(0, 9), SAMPLE.subarray(9)]), 'in.jsonl'), 'in.jsonl')
  },

  'upload-bytes': async () => {
    await uploaded(await toFile(SAMPLE, 'été 1.jsonl'), 'été 1.jsonl')
    await uploaded(new File([SAMPLE], 'in.jsonl'), 'in.jsonl')
  },

  'upload-typed': async () => {
    await uploaded(await toFile(SAMPLE, 'in.jsonl', { type: 'application/jsonl' }), 'in.jsonl')
    await uploaded(new File([SAMPLE], 'in.jsonl', { type: 'text/plain' }), 'in.jsonl')
  },

  'upload-pipe': () => uploaded(toStreamingFile(createReadStream(path), 'in.jsonl'), 'in.jsonl'),

  'upload-unnamed': async () => {
    await uploaded(await toFile(SAMPLE), 'unknown_file', SAMPLE, 'user_data')
    await refused(ai.files.create({ file: await toFile(SAMPLE), purpose: 'batch' }), 400, 'Must be .jsonl')
  },

  'upload-large': async () => {
    const bytes = randomBytes(8 << 20)
    await uploaded(await toFile(bytes, 'large.bin'), 'large.bin', bytes, 'user_data')
  },

  'upload-expiry': async () => {
    const lifetime = async (purpose, expires_after) => {
      const f = await ai.files.create({ file: createReadStream(path), purpose, expires_after })
      return f.expires_at && f.expires_at - f.created_at
    }
    equal(await lifetime('batch', after(3600)), 3600)
    equal(await lifetime('user_data', after(2592000)), 2592000)
    equal(await lifetime('batch'), 30 * 86400)
    equal(await lifetime('user_data'), null)
  },

  'upload-format': async () => {
    for (const [bytes, name] of [[SAMPLE, 'in.json'], ['', 'in.jsonl'], [`not JSON\n${SAMPLE}`, 'in.jsonl']]) {
      await refused(ai.files.create({ file: await toFile(Buffer.from(bytes), name), purpose: 'batch' }), 400,
        'Invalid file format for Batch API. Must be .jsonl')
    }
  },

  'upload-parameters': async () => {
    const upload = (params) => ai.files.create({ file: createReadStream(path), purpose: 'batch', ...params })
    await refused(upload({ purpose: 'nonsense' }), 400, "Invalid value: 'nonsense'", { code: 'invalid_value', param: 'purpose' })
    await refused(upload({ expires_after: after(3599) }), 400, 'integer below minimum value',
      { code: 'integer_below_min_value', param: 'expires_after.seconds' })
    await refused(upload({ expires_after: after(2592001) }), 400, 'integer above maximum value',
      { code: 'integer_above_max_value', param: 'expires_after.seconds' })
    await refused(upload({ expires_after: after(3600, 'now') }), 400, "Invalid value: 'now'",
      { code: 'invalid_value', param: 'expires_after.anchor' })
  },

  // Files

  'file-object': async () => {
    const f = await ai.files.create({ file: createReadStream(path), purpose: 'user_data' })
    matches(f.id, /^file-[0-9A-Za-z]{22}$/)
    equal([f.object, f.status, f.purpose], ['file', 'processed', 'user_data'])
    equal(Object.keys(f).sort(),
      ['bytes', 'created_at', 'expires_at', 'filename', 'id', 'object', 'purpose', 'status', 'status_details'])
    equal(nulls(f), ['expires_at', 'status_details'])
    ok(Math.abs(f.created_at - Date.now() / 1000) < 60)
    equal(await ai.files.retrieve(f.id), f)
    equal((await ai.files.list({ limit: 1 })).data, [f])
  },

  'file-content': async () => {
    const r = await ai.files.content(await upload([line('a')]))
    equal(r.headers.get('content-type'), 'application/octet-stream')
    ok(r.headers.get('content-disposition').includes('in.jsonl'))
    equal(Number(r.headers.get('content-length')), (await r.arrayBuffer()).byteLength)
  },

  'file-delete': async () => {
    const id = await upload([line('a')])
    equal({ ...await ai.files.delete(id) }, { id, object: 'file', deleted: true })
    for (const call of ['retrieve', 'content', 'delete']) {
      await refused(ai.files[call](id), 404, `No such File object: ${id}`, { param: 'id' })
    }
  },

  'file-wait': async () => {
    equal((await ai.files.waitForProcessing(await upload([line('a')]), { pollInterval: 30_000 })).status, 'processed')
  },

  'file-expired': async () => {
    const id = env.EXPIRED_FILE
    for (const call of ['retrieve', 'content', 'delete']) {
      await refused(ai.files[call](id), 404, `No such File object: ${id}`, { param: 'id' })
    }
    ok(!(await all(ai.files.list())).some((f) => f.id === id))
  },

  'file-pages': async () => {
    const names = async (order) => (await all(pages.files.list({ purpose: 'batch', order, limit: 50 }))).map((f) => f.filename)
    const oldestFirst = [...Array(120).keys()].map((n) => `${n}`.padStart(3, '0') + '.jsonl')
    equal(await names('asc'), oldestFirst)
    equal(await names('desc'), oldestFirst.toReversed())
    equal(await names(), oldestFirst.toReversed())
  },

  'file-filter': async () => {
    for (const [purpose, want] of [['batch', ['batch']], ['batch_output', ['batch_output']], ['evals', []]]) {
      equal([...new Set((await all(pages.files.list({ purpose }))).map((f) => f.purpose))], want)
    }
    await refused(ai.files.list({ order: 'up' }), 400, "Invalid value: 'up'", { code: 'invalid_value', param: 'order' })
    await refused(ai.files.list({ after: 'file-nope' }), 404, 'No such File object: file-nope', { param: 'id' })
  },

  // Batches

  'batch-create': async () => {
    const metadata = { k: 'v', 'clé': 'été', ['k'.repeat(64)]: 'v'.repeat(512) }
    const b = await create([line('a')], { metadata, output_expires_after: after(3600) })
    matches(b.id, /^batch_[0-9a-f]{32}$/)
    equal([b.object, b.status, b.endpoint, b.completion_window, b.metadata],
      ['batch', 'validating', '/v1/chat/completions', '24h', metadata])
    ok(Math.abs(b.created_at - Date.now() / 1000) < 60)
    equal([b.expires_at - b.created_at, counts(b)], [86400, [0, 0, 0]])
    equal(BATCH.filter((name) => !(name in b)), [])
    equal(nulls(b), sorted(ENDINGS, NOT_STARTED, 'errors'))
    equal(nulls(await create([line('a')])), sorted(ENDINGS, NOT_STARTED, 'errors', 'metadata'))
  },

  'batch-read-your-writes': async () => {
    for (let n = 0; n < 5; n++) {
      const { id } = await create([line('a')])
      equal((await ai.batches.retrieve(id)).id, id)
      equal((await ai.batches.list({ limit: 1 })).data[0].id, id)
    }
  },

  'batch-complete': async () => {
    const b = await completed()
    equal([b.status, b.model, counts(b)], ['completed', CHAT, [21, 21, 0]])
    const times = [b.created_at, b.in_progress_at, b.finalizing_at, b.completed_at]
    equal(times, times.toSorted((a, b) => a - b))
    equal(BATCH.filter((name) => !(name in b)), [])
    equal(nulls(b), sorted(without('completed_at', ENDINGS), 'errors', 'error_file_id', 'metadata'))
    equal(await ai.batches.retrieve(b.id), b)
  },

  'batch-results': async () => {
    const got = await results((await completed()).output_file_id)
    equal(Object.keys(got).sort(), LINES.map((l) => l.custom_id).sort())
    for (const l of LINES) {
      const { response, error } = got[l.custom_id]
      equal([error, response.status_code, response.body], [null, 200, await answer(l)])
      ok(response.request_id)
    }
  },

  'batch-usage': async () => {
    const { output_file_id, usage } = await completed()
    const usages = Object.values(await results(output_file_id)).map((r) => r.response.body.usage)
    const sum = (name) => usages.reduce((total, u) => total + u[name], 0)
    ok(sum('completion_tokens') > 0)
    equal(usage, {
      input_tokens: sum('prompt_tokens'), input_tokens_details: { cached_tokens: 0 },
      output_tokens: sum('completion_tokens'), output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: sum('total_tokens'),
    })
  },

  'batch-failures': async () => {
    const b = await finish(await create([line('good'), line('bad', { text: REFUSED })]))
    equal([b.status, counts(b)], ['completed', [2, 1, 1]])
    equal(Object.keys(await results(b.output_file_id)), ['good'])
    const { bad, ...others } = await results(b.error_file_id)
    equal([others, bad.error, bad.response.status_code], [{}, null, 400])
    equal(Object.keys(bad.response.body.error).sort(), ['code', 'message', 'param', 'type'])
  },

  'batch-all-failed': async () => {
    const b = await finish(await create([line('a', { text: REFUSED }), line('b', { text: REFUSED })]))
    equal([b.status, b.output_file_id, counts(b), b.usage.total_tokens], ['completed', null, [2, 0, 2], 0])
    equal(Object.keys(await results(b.error_file_id)).sort(), ['a', 'b'])
  },

  'batch-output-expiry': async () => {
    for (const [seconds, params] of [[7200, { output_expires_after: after(7200) }], [30 * 86400, {}]]) {
      const b = await finish(await create([line('good'), line('bad', { text: REFUSED })], params))
      for (const [id, kind] of [[b.output_file_id, 'output'], [b.error_file_id, 'error']]) {
        const f = await ai.files.retrieve(id)
        equal([f.purpose, f.filename], ['batch_output', `${b.id}_${kind}.jsonl`])
        equal([f.expires_at - f.created_at, f.bytes], [seconds, (await content(id)).length])
      }
    }
  },

  'batch-endpoints': async () => {
    for (const [url, body] of Object.entries({
      '/v1/completions': { prompt: 'once' },
      '/v1/embeddings': { input: ['one', 'two'] },
      '/v1/moderations': { input: 'fine' },
      '/v1/responses': { input: 'hello' },
    })) {
      const l = line('a', { url, body })
      const b = await finish(await create([l]))
      equal([b.status, b.endpoint, counts(b)], ['completed', url, [1, 1, 0]])
      equal((await results(b.output_file_id)).a.response.body, await answer(l))
    }
  },

  'batch-mixed': async () => {
    const b = await finish(await create([line('a'), line('b', { model: OTHER })]))
    equal([b.status, b.model, counts(b)], ['completed', null, [2, 2, 0]])
    const r = await results(b.output_file_id)
    equal([r.a.response.body.model, r.b.response.body.model], [CHAT, OTHER])
  },

  'batch-invalid': async () => {
    const b = await finish(await create([
      line('a'),
      '{broken',
      line('a'),
      { ...line('b'), method: 'GET' },
      { ...line('c'), url: '/v1/embeddings' },
      { ...line('d'), custom_id: undefined },
      line('e', { body: { messages: [], stream: true } }),
      line('f', { model: 'nope' }),
      line('g', { body: { temperature: 1 } }),
      '',
      line('h', { body: { model: undefined, messages: [] } }),
    ]))
    equal([b.status, counts(b)], ['failed', [0, 0, 0]])
    equal(b.errors.object, 'list')
    equal(b.errors.data.map((e) => [e.line, e.code, e.param]), [
      [2, 'invalid_json_line', null],
      [3, 'duplicate_custom_id', 'custom_id'],
      [4, 'invalid_method', 'method'],
      [5, 'invalid_url', 'url'],
      [6, 'missing_required_parameter', 'custom_id'],
      [7, 'streaming_unsupported', 'body.stream'],
      [8, 'model_not_found', 'body.model'],
      [9, 'invalid_request', 'body.messages'],
      [11, 'invalid_request', 'body.model'],
    ])
    equal(b.errors.data[0].message, 'This line is not parseable as valid JSON.')
    equal(b.errors.data[6].message, "The provided model 'nope' is not supported by the Batch API.")
    ok(b.failed_at >= b.created_at)
    equal(nulls(b), sorted(without('failed_at', ENDINGS), NOT_STARTED, 'metadata'))
  },

  'batch-input-missing': async () => {
    const data = (await ai.files.create({ file: createReadStream(path), purpose: 'user_data' })).id
    for (const [input_file_id, message] of [
      ['file-nope', 'Cannot find file file-nope, or organization '],
      [env.FOREIGN_FILE, 'Cannot find file '],
      [data, `The file ${data} has purpose 'user_data'`],
    ]) {
      const { status, errors } = await finish(await create([line('a')], { input_file_id }))
      const [e, ...more] = errors.data
      equal([status, e.code, e.param, e.line, more], ['failed', 'invalid_request', 'file_id', null, []])
      ok(e.message.startsWith(message), e.message)
    }
  },

  'batch-expired': async () => {
    const b = await finish({ id: env.EXPIRED_BATCH })
    equal([b.status, counts(b)], ['expired', [2, 1, 0]])
    equal(ENDINGS.filter((name) => b[name] !== null), ['expired_at'])
    ok(b.in_progress_at <= b.finalizing_at && b.finalizing_at <= b.expired_at)
    equal(Object.keys(await results(b.output_file_id)), ['in-time'])
    const late = (await results(b.error_file_id))['too-late']
    equal([late.response, late.error], [null, {
      code: 'batch_expired', message: 'This request could not be executed before the completion window expired.',
    }])
  },

  'batch-pages': async () => {
    const newestFirst = [...Array(120).keys()].reverse().map(String)
    equal((await all(pages.batches.list({ limit: 50 }))).map((b) => b.metadata.n), newestFirst)
    let page = await pages.batches.list({ limit: 40 })
    const byHand = [...page.data]
    while (page.hasNextPage()) {
      page = await page.getNextPage()
      byHand.push(...page.data)
    }
    equal(byHand.map((b) => b.metadata.n), newestFirst)
    const first = await pages.batches.list()
    equal([first.data.length, first.has_more], [20, true])
    equal([first.body.first_id, first.body.last_id], [first.data[0].id, first.data[19].id])
  },

  // Cancelling

  'cancel-validating': async () => {
    const { id } = await create([line('a', { model: 'not-known-yet' })], {}, strict)
    equal((await strict.batches.retrieve(id)).status, 'validating')
    ok(['cancelling', 'cancelled'].includes((await strict.batches.cancel(id)).status))
    const b = await finish({ id }, strict)
    equal([b.status, b.output_file_id, b.error_file_id, counts(b)], ['cancelled', null, null, [0, 0, 0]])
    ok(b.cancelled_at >= b.cancelling_at && b.in_progress_at === null)
    equal(await strict.batches.cancel(id), b)
  },

  'cancel-in-progress': async () => {
    const { running, cancelling, end } = await cancelled()
    equal([running.status, counts(running), running.usage, running.output_file_id], ['in_progress', [4, 2, 0], null, null])
    equal([cancelling.status, cancelling.output_file_id, cancelling.error_file_id], ['cancelling', null, null])
    equal([end.status, counts(end), end.cancelling_at], ['cancelled', [4, 3, 0], cancelling.cancelling_at])
    ok(end.cancelled_at >= end.cancelling_at)
    equal(Object.keys(await results(end.output_file_id)).sort(), ['a', 'b', 'in-flight'])
    const { waiting, ...others } = await results(end.error_file_id)
    equal([others, waiting.response, waiting.error.code], [{}, null, 'batch_cancelled'])
  },

  'cancel-again': async () => {
    const { cancelling, again, end } = await cancelled()
    equal([again.status, again.cancelling_at], ['cancelling', cancelling.cancelling_at])
    equal(await ai.batches.cancel(end.id), end)
  },

  'cancel-completed': async () => cannotCancel(await completed()),
  'cancel-failed': async () => cannotCancel(await finish(await create([line('a', { model: 'nope' })]))),
  'cancel-expired': async () => cannotCancel(await finish({ id: env.EXPIRED_BATCH })),

  // Models

  'models-list': async () => {
    const models = await all(ai.models.list())
    for (const id of [CHAT, OTHER, SLOW, BUSY]) ok(models.some((m) => m.id === id), id)
    for (const m of models) ok(m.object === 'model' && m.created > 0 && m.owned_by, JSON.stringify(m))
  },

  'models-retrieve': async () => {
    for (const id of [CHAT, OTHER]) equal((await ai.models.retrieve(id)).id, id)
    await refused(ai.models.retrieve('no/such:model'), 404, "The model 'no/such:model' does not exist",
      { code: 'model_not_found', param: 'model' })
  },

  // Errors

  'error-key-missing': async () => {
    const anonymous = client({ defaultHeaders: { Authorization: null } })
    for (const what of ['models', 'files', 'batches']) {
      await refused(anonymous[what].list(), 401, "You didn't provide an API key.")
    }
    await refused(anonymous.files.create({ file: createReadStream(path), purpose: 'batch' }), 401, "You didn't provide an API key.")
  },

  'error-key-wrong': async () => {
    for (const apiKey of ['sk-wrong-0123456789abcdefghij', env.API_KEY + 'x']) {
      const wrong = client({ apiKey })
      await refused(wrong.models.list(), 401, 'Incorrect API key provided: ', { code: 'invalid_api_key' })
      ok(!(await failure(wrong.batches.list())).message.includes(apiKey.slice(9, -4)), 'the key is told')
    }
  },

  'error-not-found': async () => {
    for (const id of ['batch_nope', 'a/../b', '%2e%2e', 'x'.repeat(2000), 'été 🙂', 'nul\0']) {
      await refused(ai.batches.retrieve(id), 404, "No batch found with id '")
      await refused(ai.batches.cancel(id), 404, "No batch found with id '")
      for (const call of ['retrieve', 'content', 'delete']) {
        await refused(ai.files[call](id), 404, 'No such File object: ', { param: 'id' })
      }
    }
  },

  'error-parameter-missing': async () => {
    const code = 'missing_required_parameter'
    const params = { input_file_id: 'file-x', endpoint: '/v1/embeddings', completion_window: '24h' }
    for (const param in params) {
      await refused(ai.batches.create({ ...params, [param]: undefined }), 400, `Missing required parameter: '${param}'.`, { code, param })
    }
    await refused(ai.files.create({ file: createReadStream(path) }), 400, "Missing required parameter: 'purpose'.", { code, param: 'purpose' })
  },

  'error-parameter-value': async () => {
    const createWith = (params) => create([line('a')], params)
    await refused(createWith({ endpoint: '/v1/nope' }), 400, "Supported values are: '/v1/responses', '/v1/chat/completions'",
      { code: 'invalid_value', param: 'endpoint' })
    for (const completion_window of ['25', '1.5h', 'tomorrow']) {
      await refused(createWith({ completion_window }), 400, `Invalid value: '${completion_window}'.`,
        { code: 'invalid_value', param: 'completion_window' })
    }
    await refused(createWith({ output_expires_after: after(1) }), 400,
      'integer below minimum value. Expected a value >= 3600, but got 1 instead.',
      { code: 'integer_below_min_value', param: 'output_expires_after.seconds' })
    await refused(createWith({ output_expires_after: after(3600, 'now') }), 400, "Invalid value: 'now'.",
      { code: 'invalid_value', param: 'output_expires_after.anchor' })
  },

  'error-metadata': async () => {
    const createWith = (metadata) => create([line('a')], { metadata })
    await refused(createWith(Object.fromEntries([...Array(17).keys()].map((n) => [n, '']))), 400,
      "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with 17",
      { code: 'object_above_max_properties', param: 'metadata' })
    await refused(createWith({ note: 'é'.repeat(513) }), 400,
      "Invalid 'metadata.note': string too long. Expected a string with maximum length 512, but got a string with length 513",
      { code: 'string_above_max_length', param: 'metadata.note' })
    await refused(createWith({ ['k'.repeat(65)]: '' }), 400, 'string too long',
      { code: 'string_above_max_length', param: 'metadata' })
    await refused(createWith({ tags: ['a'] }), 400,
      "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
      { code: 'invalid_type', param: 'metadata.tags' })
  },

  'error-limit': async () => {
    await refused(ai.batches.list({ limit: 101 }), 400,
      "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
      { code: 'integer_above_max_value', param: 'limit' })
    await refused(ai.batches.list({ limit: -1 }), 400,
      "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
      { code: 'integer_below_min_value', param: 'limit' })
    const { data, body } = await ai.batches.list({ limit: 0 })
    equal([data, body.first_id, body.last_id, body.has_more], [[], null, null, false])
    await refused(ai.batches.list({ after: 'batch_nope' }), 404, "No batch found with id 'batch_nope'.")
  },

  'error-route': async () => {
    await refused(client({ baseURL: env.BASE_URL + '/nope' }).models.list(), 404, 'Invalid URL (GET /v1/nope/models)')
    await refused(ai.post('/nope'), 404, 'Invalid URL (POST /v1/nope)')
  },

  'error-method': async () => {
    await refused(ai.models.delete(CHAT), 405, 'Not allowed to DELETE on /v1/models/sim-chat.')
    await refused(ai.put('/batches'), 405, 'Not allowed to PUT on /v1/batches.')
  },

  'error-foreign': async () => {
    const { FOREIGN_FILE: file, FOREIGN_BATCH: batch, FOREIGN_UPLOAD: theirs } = env
    const noFile = `No such File object: ${file}`, noBatch = `No batch found with id '${batch}'.`
    for (const call of ['retrieve', 'content', 'delete']) await refused(ai.files[call](file), 404, noFile, { param: 'id' })
    for (const call of ['retrieve', 'cancel']) await refused(ai.batches[call](batch), 404, noBatch)
    await refused(ai.files.list({ after: file }), 404, noFile, { param: 'id' })
    await refused(ai.batches.list({ after: batch }), 404, noBatch)
    const noUpload = [404, `No such Upload object: ${theirs}`, { param: 'upload_id' }]
    await refused(sendPart({ id: theirs }, Buffer.from('x')), ...noUpload)
    await refused(complete({ id: theirs }, []), ...noUpload)
    await refused(ai.uploads.cancel(theirs), ...noUpload)
    await refused(complete(await begin('x'), [env.FOREIGN_PART]), 400, env.FOREIGN_PART, OPEN)
    const seen = [...await all(ai.files.list()), ...await all(ai.batches.list())].map((o) => o.id)
    ok(!seen.includes(file) && !seen.includes(batch))
  },

  'profile-openai': async () => {
    const { status, errors } = await finish(await create([line('a'), line('b', { model: OTHER })], {}, strict), strict)
    equal([status, errors.data.map((e) => [e.code, e.param, e.line])], ['failed', [['mismatched_model', 'body.model', 2]]])
    const hour = { completion_window: '1h' }
    await refused(create([line('a')], hour, strict), 400, "Invalid value: '1h'. Value must be '24h'.",
      { code: 'invalid_value', param: 'completion_window' })
    equal((await create([line('a')], hour)).completion_window, '1h')
  },

  'request-ids': async () => {
    const f = await ai.files.create({ file: createReadStream(path), purpose: 'batch' })
    const ids = [
      f._request_id, (await ai.files.retrieve(f.id))._request_id, (await ai.batches.list().withResponse()).request_id,
      (await failure(ai.batches.retrieve('batch_nope'))).requestID,
    ]
    equal(new Set(ids.filter((id) => id)).size, 4)
  },

  'client-settings': async () => {
    const c = client({
      baseURL: env.BASE_URL + '/', organization: 'org-x', project: 'proj_x', defaultHeaders: { 'OpenAI-Beta': 'x' },
    })
    equal((await c.batches.list({ limit: 1 })).data[0].id, (await ai.batches.list({ limit: 1 })).data[0].id)
  },

  'client-async': () => { throw new Lacks('this client has no other form: all checks are asynchronous') },

  // Uploads in parts

  'parts-order': async () => {
    const u = await begin(SAMPLE)
    matches(u.id, /^upload_./)
    equal([u.object, u.status, u.bytes, u.filename, u.purpose, u.expires_at - u.created_at, u.file],
      ['upload', 'pending', SAMPLE.length, 'in.jsonl', 'batch', 3600, null])
    const second = await sendPart(u, SAMPLE.subarray(100))
    matches(second.id, /^part_./)
    equal([second.object, second.upload_id], ['upload.part', u.id])
    await part(u, Buffer.from('dropped'))
    const { status, file } = await complete(u, [await part(u, SAMPLE.subarray(0, 100)), second.id])
    equal([status, file.filename, file.bytes], ['completed', 'in.jsonl', SAMPLE.length])
    ok(SAMPLE.equals(await content(file.id)))
    equal(await ai.files.retrieve(file.id), file)
  },

  'parts-parallel': async () => {
    const bytes = randomBytes(4 << 20), size = 512 << 10
    const u = await begin(bytes, { purpose: 'user_data', filename: 'x.bin' })
    const pieces = [...Array(8).keys()].map((n) => bytes.subarray(n * size, (n + 1) * size))
    const { file } = await complete(u, await Promise.all(pieces.map((piece) => part(u, piece))))
    ok(bytes.equals(await content(file.id)))
  },

  'parts-chunked': () => { throw new Lacks('the SDK has no helper for it') },

  'parts-md5': async () => {
    const u = await begin(SAMPLE)
    const ids = [await part(u, SAMPLE)]
    await refused(complete(u, ids, { md5: md5('other') }), 400, '', OPEN)
    equal((await complete(u, ids, { md5: md5(SAMPLE) })).status, 'completed')
  },

  'parts-expiry': async () => {
    const u = await begin(SAMPLE, { expires_after: after(7200) })
    const { file } = await complete(u, [await part(u, SAMPLE)])
    equal([u.expires_at - u.created_at, file.expires_at - file.created_at], [3600, 7200])
  },

  'parts-cancel': async () => {
    const u = await begin(SAMPLE)
    const id = await part(u, SAMPLE)
    equal((await ai.uploads.cancel(u.id)).status, 'cancelled')
    const why = `Upload ${u.id} is not pending; its status is 'cancelled'.`
    await refused(sendPart(u, SAMPLE), 400, why, OPEN)
    await refused(complete(u, [id]), 400, why, OPEN)
  },

  'parts-repeat': async () => {
    const u = await begin(SAMPLE)
    const ids = [await part(u, SAMPLE)]
    equal(await complete(u, ids), await complete(u, ids))
    await refused(sendPart(u, SAMPLE), 400, `Upload ${u.id} is not pending; its status is 'completed'.`, OPEN)
  },

  'parts-refused': async () => {
    const nope = { id: 'upload_nope' }, noUpload = [404, 'No such Upload object: upload_nope', { param: 'upload_id' }]
    await refused(sendPart(nope, SAMPLE), ...noUpload)
    await refused(complete(nope, []), ...noUpload)
    await refused(ai.uploads.cancel(nope.id), ...noUpload)
    const u = await begin(SAMPLE)
    const id = await part(u, SAMPLE.subarray(1))
    await refused(complete(u, [id]), 400,
      `The total size of the parts (${SAMPLE.length - 1} bytes) does not match the upload size (${SAMPLE.length} bytes).`, OPEN)
    await refused(complete(u, ['part_nope']), 400, 'part_nope', OPEN)
    await refused(complete(u, [id, id]), 400, id, OPEN)
  },

  'parts-batch': async () => {
    const u = await begin(SAMPLE)
    const { file } = await complete(u, [await part(u, SAMPLE.subarray(0, 77)), await part(u, SAMPLE.subarray(77))])
    const b = await finish(await create([line('a')], { input_file_id: file.id }))
    equal([b.status, counts(b)], ['completed', [2, 2, 0]])
  },
})
