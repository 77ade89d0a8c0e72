"""OpenAI's Python SDK against Offpeak. ../checks.tsv says what each id stands for."""

import asyncio
import hashlib
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from openai import AsyncOpenAI, omit

from harness import *

scratch = Path(os.environ["SCRATCH"])
sample = scratch / "sample.jsonl"
sample.write_bytes(SAMPLE)


def uploaded(file, name, content=SAMPLE, purpose="batch"):
    f = ai.files.create(file=file, purpose=purpose)
    equal((f.filename, f.bytes, f.purpose), (name, len(content), purpose))
    equal(ai.files.content(f.id).read(), content)


# Uploads


@check("upload-path")
def _():
    uploaded(sample, "sample.jsonl")


@check("upload-stream")
def _():
    with sample.open("rb") as f:
        uploaded(f, "sample.jsonl")


@check("upload-bytes")
def _():
    uploaded(("été 1.jsonl", SAMPLE), "été 1.jsonl")


@check("upload-typed")
def _():
    uploaded(("in.jsonl", SAMPLE, "application/jsonl"), "in.jsonl")
    uploaded(("in.jsonl", io.BytesIO(SAMPLE), "text/plain", {"X-Of-Part": "1"}), "in.jsonl")


class Pipe(io.RawIOBase):
    """A stream that can only be read."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


@check("upload-pipe")
def _():
    uploaded(("in.jsonl", Pipe(SAMPLE)), "in.jsonl")


@check("upload-unnamed")
def _():
    uploaded(SAMPLE, "upload", purpose="user_data")
    refused(400, "Must be .jsonl", ai.files.create, file=SAMPLE, purpose="batch")


@check("upload-large")
def _():
    uploaded(("large.bin", content := os.urandom(8 << 20)), "large.bin", content, "user_data")


@check("upload-expiry")
def _():
    def lifetime(purpose, **params):
        f = ai.files.create(file=("in.jsonl", SAMPLE), purpose=purpose, **params)
        return f.expires_at and f.expires_at - f.created_at

    equal(lifetime("batch", expires_after={"anchor": "created_at", "seconds": 3600}), 3600)
    equal(lifetime("user_data", expires_after={"anchor": "created_at", "seconds": 2592000}), 2592000)
    equal(lifetime("batch"), 30 * 86400)
    equal(lifetime("user_data"), None)


@check("upload-format")
def _():
    for file in ("in.json", SAMPLE), ("in.jsonl", b""), ("in.jsonl", b"not JSON\n" + SAMPLE):
        refused(400, "Invalid file format for Batch API. Must be .jsonl", ai.files.create, file=file, purpose="batch")


@check("upload-parameters")
def _():
    def upload(**params):
        return ai.files.create(**{"file": sample, "purpose": "batch"} | params)

    refused(400, "Invalid value: 'nonsense'", upload, purpose="nonsense", code="invalid_value", param="purpose")
    refused(400, "integer below minimum value", upload, expires_after={"anchor": "created_at", "seconds": 3599},
            code="integer_below_min_value", param="expires_after.seconds")
    refused(400, "integer above maximum value", upload, expires_after={"anchor": "created_at", "seconds": 2592001},
            code="integer_above_max_value", param="expires_after.seconds")
    refused(400, "Invalid value: 'now'", upload, expires_after={"anchor": "now", "seconds": 3600},
            code="invalid_value", param="expires_after.anchor")


# Files


@check("file-object")
def _():
    f = ai.files.create(file=sample, purpose="user_data")
    matches(f.id, "file-[0-9A-Za-z]{22}")
    equal((f.object, f.status, f.purpose), ("file", "processed", "user_data"))
    equal(f.model_fields_set, {
        "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"})
    equal(nulls(f), {"expires_at", "status_details"})
    assert abs(f.created_at - time.time()) < 60
    equal(ai.files.retrieve(f.id), f)
    equal(ai.files.list(limit=1).data, [f])


@check("file-content")
def _():
    r = ai.files.content(upload(line("a")))
    equal(r.response.headers["content-type"], "application/octet-stream")
    equal(int(r.response.headers["content-length"]), len(r.read()))
    assert "in.jsonl" in r.response.headers["content-disposition"]


@check("file-delete")
def _():
    id = upload(line("a"))
    equal(ai.files.delete(id).to_dict(), {"id": id, "object": "file", "deleted": True})
    for call in ai.files.retrieve, ai.files.content, ai.files.delete:
        refused(404, f"No such File object: {id}", call, id, param="id")


@check("file-wait")
def _():
    equal(ai.files.wait_for_processing(upload(line("a")), poll_interval=30).status, "processed")


@check("file-expired")
def _():
    id = os.environ["EXPIRED_FILE"]
    for call in ai.files.retrieve, ai.files.content, ai.files.delete:
        refused(404, f"No such File object: {id}", call, id, param="id")
    assert id not in [f.id for f in ai.files.list()]


@check("file-pages")
def _():
    names = {
        order: [f.filename for f in pages.files.list(purpose="batch", order=order, limit=50)]
        for order in ("desc", "asc", omit)
    }
    equal(names["asc"], [f"{n:03}.jsonl" for n in range(120)])
    equal(names["desc"], names["asc"][::-1])
    equal(names[omit], names["desc"])


@check("file-filter")
def _():
    purposes = {p: {f.purpose for f in pages.files.list(purpose=p)} for p in ("batch", "batch_output", "evals")}
    equal(purposes, {"batch": {"batch"}, "batch_output": {"batch_output"}, "evals": set()})
    refused(400, "Invalid value: 'up'", ai.files.list, order="up", code="invalid_value", param="order")
    refused(404, "No such File object: file-nope", ai.files.list, after="file-nope", param="id")


# Batches

BATCH = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at",
    "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata",
}
ENDINGS = {"completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"}


def counts(b):
    return b.request_counts.total, b.request_counts.completed, b.request_counts.failed


@check("batch-create")
def _():
    metadata = {"k": "v", "clé": "été", "k" * 64: "v" * 512}
    b = create(line("a"), metadata=metadata, output_expires_after={"anchor": "created_at", "seconds": 3600})
    matches(b.id, "batch_[0-9a-f]{32}")
    equal((b.object, b.status, b.endpoint, b.completion_window, b.metadata),
          ("batch", "validating", "/v1/chat/completions", "24h", metadata))
    assert abs(b.created_at - time.time()) < 60
    equal((b.expires_at - b.created_at, counts(b)), (86400, (0, 0, 0)))
    equal(BATCH - b.model_fields_set, set())
    unset = ENDINGS | {"model", "errors", "output_file_id", "error_file_id", "in_progress_at", "finalizing_at", "usage"}
    equal(nulls(b), unset)
    equal(nulls(create(line("a"))), unset | {"metadata"})


@check("batch-read-your-writes")
def _():
    for _ in range(5):
        b = create(line("a"))
        equal(ai.batches.retrieve(b.id).id, b.id)
        equal(ai.batches.list(limit=1).data[0].id, b.id)


LINES = [line(f"ticket-{n}", f"question {n}") for n in range(20)] + [line("été/\"1\"", "naïve 🙂")]


@cache
def completed():
    return finish(create(*LINES))


@check("batch-complete")
def _():
    b = completed()
    equal((b.status, b.model, counts(b)), ("completed", CHAT, (21, 21, 0)))
    times = [b.created_at, b.in_progress_at, b.finalizing_at, b.completed_at]
    equal(times, sorted(times))
    equal(BATCH - b.model_fields_set, set())
    equal(nulls(b), ENDINGS - {"completed_at"} | {"errors", "error_file_id", "metadata"})
    equal(ai.batches.retrieve(b.id), b)


@check("batch-results")
def _():
    got = results(completed().output_file_id)
    equal(set(got), {l["custom_id"] for l in LINES})
    for l in LINES:
        r = got[l["custom_id"]]
        equal((r["error"], r["response"]["status_code"], r["response"]["body"]), (None, 200, answer(l)))
        assert r["response"]["request_id"]


@check("batch-usage")
def _():
    usages = [r["response"]["body"]["usage"] for r in results(completed().output_file_id).values()]
    total = {k: sum(u[k] for u in usages) for k in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert total["completion_tokens"] > 0
    equal(completed().usage.to_dict(), {
        "input_tokens": total["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": total["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total["total_tokens"],
    })


@check("batch-failures")
def _():
    b = finish(create(line("good"), line("bad", REFUSED)))
    equal((b.status, counts(b)), ("completed", (2, 1, 1)))
    equal(list(results(b.output_file_id)), ["good"])
    equal(list(results(b.error_file_id)), ["bad"])
    bad = results(b.error_file_id)["bad"]
    equal((bad["error"], bad["response"]["status_code"]), (None, 400))
    equal(set(bad["response"]["body"]["error"]), {"message", "type", "param", "code"})


@check("batch-all-failed")
def _():
    b = finish(create(line("a", REFUSED), line("b", REFUSED)))
    equal((b.status, b.output_file_id, counts(b), b.usage.total_tokens), ("completed", None, (2, 0, 2), 0))
    equal(set(results(b.error_file_id)), {"a", "b"})


@check("batch-output-expiry")
def _():
    for seconds, params in (7200, {"output_expires_after": {"anchor": "created_at", "seconds": 7200}}), (30 * 86400, {}):
        b = finish(create(line("good"), line("bad", REFUSED), **params))
        for id, kind in (b.output_file_id, "output"), (b.error_file_id, "error"):
            f = ai.files.retrieve(id)
            equal((f.purpose, f.filename), ("batch_output", f"{b.id}_{kind}.jsonl"))
            equal((f.expires_at - f.created_at, f.bytes), (seconds, len(ai.files.content(id).read())))


@check("batch-endpoints")
def _():
    for url, body in {
        "/v1/completions": {"prompt": "once"},
        "/v1/embeddings": {"input": ["one", "two"]},
        "/v1/moderations": {"input": "fine"},
        "/v1/responses": {"input": "hello"},
    }.items():
        l = line("a", url=url, **body)
        b = finish(create(l))
        equal((b.status, b.endpoint, counts(b)), ("completed", url, (1, 1, 0)))
        equal(results(b.output_file_id)["a"]["response"]["body"], answer(l))


@check("batch-mixed")
def _():
    b = finish(create(line("a"), line("b", model=OTHER)))
    equal((b.status, b.model, counts(b)), ("completed", None, (2, 2, 0)))
    equal({id: r["response"]["body"]["model"] for id, r in results(b.output_file_id).items()}, {"a": CHAT, "b": OTHER})


@check("batch-invalid")
def _():
    b = finish(create(
        line("a"),
        "{broken",
        line("a"),
        line("b") | {"method": "GET"},
        line("c") | {"url": "/v1/embeddings"},
        {k: v for k, v in line("d").items() if k != "custom_id"},
        line("e", messages=[], stream=True),
        line("f", model="nope"),
        line("g", temperature=1),
        "",
        {"custom_id": "h", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}},
    ))
    equal((b.status, counts(b)), ("failed", (0, 0, 0)))
    equal([(e.line, e.code, e.param) for e in b.errors.data], [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (5, "invalid_url", "url"),
        (6, "missing_required_parameter", "custom_id"),
        (7, "streaming_unsupported", "body.stream"),
        (8, "model_not_found", "body.model"),
        (9, "invalid_request", "body.messages"),
        (11, "invalid_request", "body.model"),
    ])
    equal(b.errors.data[0].message, "This line is not parseable as valid JSON.")
    equal(b.errors.data[6].message, "The provided model 'nope' is not supported by the Batch API.")
    assert b.failed_at >= b.created_at
    equal(nulls(b), ENDINGS - {"failed_at"} | {
        "model", "output_file_id", "error_file_id", "in_progress_at", "finalizing_at", "usage", "metadata"})


@check("batch-input-missing")
def _():
    data = ai.files.create(file=sample, purpose="user_data").id
    for id, message in (
        ("file-nope", "Cannot find file file-nope, or organization "),
        (os.environ["FOREIGN_FILE"], "Cannot find file "),
        (data, f"The file {data} has purpose 'user_data'"),
    ):
        b = finish(create(line("a"), input_file_id=id))
        e, = b.errors.data
        equal((b.status, e.code, e.param, e.line), ("failed", "invalid_request", "file_id", None))
        assert e.message.startswith(message), e.message


@check("batch-expired")
def _():
    b = finish(ai.batches.retrieve(os.environ["EXPIRED_BATCH"]))
    equal((b.status, counts(b)), ("expired", (2, 1, 0)))
    equal(nulls(b) & ENDINGS, ENDINGS - {"expired_at"})
    assert b.expired_at >= b.finalizing_at >= b.in_progress_at
    equal(list(results(b.output_file_id)), ["in-time"])
    late = results(b.error_file_id)["too-late"]
    equal((late["response"], late["error"]), (None, {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired."}))


@check("batch-pages")
def _():
    newest_first = [str(n) for n in reversed(range(120))]
    equal([b.metadata["n"] for b in pages.batches.list(limit=50)], newest_first)
    page, by_hand = pages.batches.list(limit=40), []
    by_hand += page.data
    while page.has_next_page():
        page = page.get_next_page()
        by_hand += page.data
    equal([b.metadata["n"] for b in by_hand], newest_first)
    first = pages.batches.list()
    equal((len(first.data), first.has_more), (20, True))
    equal((first.to_dict()["first_id"], first.to_dict()["last_id"]), (first.data[0].id, first.data[-1].id))


# Cancelling


@check("cancel-validating")
def _():
    b = create(line("a", model="not-known-yet"), to=strict)
    equal(strict.batches.retrieve(b.id).status, "validating")
    assert strict.batches.cancel(b.id).status in ("cancelling", "cancelled")
    b = finish(b, to=strict)
    equal((b.status, b.output_file_id, b.error_file_id, counts(b)), ("cancelled", None, None, (0, 0, 0)))
    assert b.cancelled_at >= b.cancelling_at and b.in_progress_at is None
    equal(strict.batches.cancel(b.id), b)


@cache
def cancelled():
    """The batch when it was running, just cancelled, cancelled again, and in the end."""
    running = wait(create(line("a"), line("b"), line("in-flight", model=SLOW), line("waiting", model=BUSY)),
                   lambda b: b.request_counts.completed == 2)
    return running, ai.batches.cancel(running.id), ai.batches.cancel(running.id), finish(running)


@check("cancel-in-progress")
def _():
    running, cancelling, _, end = cancelled()
    equal((running.status, counts(running), running.usage, running.output_file_id), ("in_progress", (4, 2, 0), None, None))
    equal((cancelling.status, cancelling.output_file_id, cancelling.error_file_id), ("cancelling", None, None))
    equal((end.status, counts(end)), ("cancelled", (4, 3, 0)))
    assert end.cancelled_at >= end.cancelling_at == cancelling.cancelling_at
    equal(set(results(end.output_file_id)), {"a", "b", "in-flight"})
    waiting = results(end.error_file_id)["waiting"]
    equal((waiting["response"], waiting["error"]["code"]), (None, "batch_cancelled"))


@check("cancel-again")
def _():
    _, once, twice, end = cancelled()
    equal((twice.status, twice.cancelling_at), ("cancelling", once.cancelling_at))
    equal(ai.batches.cancel(end.id), end)


def cannot_cancel(batch):
    before = len(requests)
    refused(409, f"Cannot cancel a batch with status '{batch.status}'.", ai.batches.cancel, batch.id)
    equal(len(requests) - before, 1)
    equal(ai.batches.retrieve(batch.id), batch)


@check("cancel-completed")
def _():
    cannot_cancel(completed())


@check("cancel-failed")
def _():
    cannot_cancel(finish(create(line("a", model="nope"))))


@check("cancel-expired")
def _():
    cannot_cancel(finish(ai.batches.retrieve(os.environ["EXPIRED_BATCH"])))


# Models


@check("models-list")
def _():
    models = ai.models.list().data
    assert {m.id for m in models} >= {CHAT, OTHER, SLOW, BUSY}, models
    for m in models:
        assert m.object == "model" and m.created > 0 and m.owned_by, m


@check("models-retrieve")
def _():
    equal([ai.models.retrieve(id).id for id in (CHAT, OTHER)], [CHAT, OTHER])
    refused(404, "The model 'no/such:model' does not exist", ai.models.retrieve, "no/such:model",
            code="model_not_found", param="model")


# Errors


@check("error-key-missing")
def _():
    why, anonymous = "You didn't provide an API key.", {"Authorization": omit}
    for call in ai.models.list, ai.files.list, ai.batches.list:
        refused(401, why, call, extra_headers=anonymous)
    refused(401, why, ai.files.create, file=sample, purpose="batch", extra_headers=anonymous)


@check("error-key-wrong")
def _():
    key = "sk-wrong-0123456789abcdefghij"
    for api_key in key, API_KEY + "x":
        wrong = client(api_key=api_key)
        refused(401, "Incorrect API key provided: ", wrong.models.list, code="invalid_api_key")
        try:
            wrong.batches.list()
        except openai.AuthenticationError as e:
            assert api_key[9:-4] not in str(e), "the key is told"


@check("error-not-found")
def _():
    for id in "batch_nope", "a/../b", "%2e%2e", "x" * 2000, "été 🙂", "nul\0":
        refused(404, "No batch found with id '", ai.batches.retrieve, id)
        refused(404, "No batch found with id '", ai.batches.cancel, id)
        refused(404, "No such File object: ", ai.files.retrieve, id, param="id")
        refused(404, "No such File object: ", ai.files.content, id, param="id")
        refused(404, "No such File object: ", ai.files.delete, id, param="id")


@check("error-parameter-missing")
def _():
    params = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    for name in params:
        refused(400, f"Missing required parameter: '{name}'.", ai.batches.create, **params | {name: omit},
                code="missing_required_parameter", param=name)
    refused(400, "Missing required parameter: 'purpose'.", ai.files.create, file=sample, purpose=omit,
            code="missing_required_parameter", param="purpose")


@check("error-parameter-value")
def _():
    refused(400, "Supported values are: '/v1/responses', '/v1/chat/completions'", create, line("a"), endpoint="/v1/nope",
            code="invalid_value", param="endpoint")
    for window in "25", "1.5h", "tomorrow":
        refused(400, f"Invalid value: '{window}'.", create, line("a"), completion_window=window,
                code="invalid_value", param="completion_window")
    refused(400, "integer below minimum value. Expected a value >= 3600, but got 1 instead.", create, line("a"),
            output_expires_after={"anchor": "created_at", "seconds": 1},
            code="integer_below_min_value", param="output_expires_after.seconds")
    refused(400, "Invalid value: 'now'.", create, line("a"), output_expires_after={"anchor": "now", "seconds": 3600},
            code="invalid_value", param="output_expires_after.anchor")


@check("error-metadata")
def _():
    refused(400, "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with 17",
            create, line("a"), metadata={str(n): "" for n in range(17)}, code="object_above_max_properties", param="metadata")
    refused(400, "Invalid 'metadata.note': string too long. Expected a string with maximum length 512, but got a string with length 513",
            create, line("a"), metadata={"note": "é" * 513}, code="string_above_max_length", param="metadata.note")
    refused(400, "string too long", create, line("a"), metadata={"k" * 65: ""},
            code="string_above_max_length", param="metadata")
    refused(400, "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
            create, line("a"), metadata={"tags": ["a"]}, code="invalid_type", param="metadata.tags")


@check("error-limit")
def _():
    refused(400, "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            ai.batches.list, limit=101, code="integer_above_max_value", param="limit")
    refused(400, "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
            ai.batches.list, limit=-1, code="integer_below_min_value", param="limit")
    empty = ai.batches.list(limit=0)
    equal((empty.data, empty.to_dict()["first_id"], empty.to_dict()["last_id"]), ([], None, None))
    refused(404, "No batch found with id 'batch_nope'.", ai.batches.list, after="batch_nope")


@check("error-route")
def _():
    refused(404, "Invalid URL (GET /v1/nope/models)", client(base_url=BASE_URL + "/nope").models.list)
    refused(404, "Invalid URL (POST /v1/nope)", ai.post, "/nope", cast_to=object)


@check("error-method")
def _():
    refused(405, "Not allowed to DELETE on /v1/models/sim-chat.", ai.models.delete, CHAT)
    refused(405, "Not allowed to PUT on /v1/batches.", ai.put, "/batches", cast_to=object)


@check("error-foreign")
def _():
    file, batch, theirs = os.environ["FOREIGN_FILE"], os.environ["FOREIGN_BATCH"], os.environ["FOREIGN_UPLOAD"]
    for call in ai.files.retrieve, ai.files.content, ai.files.delete:
        refused(404, f"No such File object: {file}", call, file, param="id")
    for call in ai.batches.retrieve, ai.batches.cancel:
        refused(404, f"No batch found with id '{batch}'.", call, batch)
    refused(404, f"No such File object: {file}", ai.files.list, after=file, param="id")
    refused(404, f"No batch found with id '{batch}'.", ai.batches.list, after=batch)
    no_upload = f"No such Upload object: {theirs}"
    refused(404, no_upload, ai.uploads.parts.create, theirs, data=b"x", param="upload_id")
    refused(404, no_upload, ai.uploads.complete, theirs, part_ids=[], param="upload_id")
    refused(404, no_upload, ai.uploads.cancel, theirs, param="upload_id")
    refused(400, os.environ["FOREIGN_PART"], ai.uploads.complete, begin(b"x").id, part_ids=[os.environ["FOREIGN_PART"]], **OPEN)
    assert file not in [f.id for f in ai.files.list()] and batch not in [b.id for b in ai.batches.list()]


@check("profile-openai")
def _():
    b = finish(create(line("a"), line("b", model=OTHER), to=strict), to=strict)
    e, = b.errors.data
    equal((b.status, e.code, e.param, e.line), ("failed", "mismatched_model", "body.model", 2))
    refused(400, "Invalid value: '1h'. Value must be '24h'.", create, line("a"), to=strict,
            completion_window="1h", code="invalid_value", param="completion_window")
    equal(create(line("a"), completion_window="1h").completion_window, "1h")


@check("request-ids")
def _():
    f = ai.files.create(file=sample, purpose="batch")
    ids = [f._request_id, ai.files.retrieve(f.id)._request_id, ai.batches.list()._request_id]
    try:
        ai.batches.retrieve("batch_nope")
    except openai.NotFoundError as e:
        ids.append(e.request_id)
    equal(len({id for id in ids if id}), 4)


@check("client-settings")
def _():
    c = client(base_url=BASE_URL + "/", organization="org-x", project="proj_x", default_headers={"OpenAI-Beta": "x"})
    equal(c.batches.list(limit=1).data[0].id, ai.batches.list(limit=1).data[0].id)


@check("client-async")
def _():
    async def main():
        async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, _strict_response_validation=True) as c:
            f = await c.files.create(file=sample, purpose="batch")
            b = await c.batches.create(input_file_id=f.id, endpoint="/v1/chat/completions", completion_window="24h")
            while b.status != "completed":
                await asyncio.sleep(0.05)
                b = await c.batches.retrieve(b.id)
            output = await c.files.content(b.output_file_id)
            equal(len(output.text.splitlines()), 2)
            async with AsyncOpenAI(base_url=BASE_URL, api_key=os.environ["PAGES_KEY"]) as p:
                equal(len([b async for b in p.batches.list(limit=50)]), 120)
    asyncio.run(main())


# Uploads in parts


def begin(content, **params):
    return ai.uploads.create(**{
        "bytes": len(content), "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"} | params)


def part(u, data) -> str:
    return ai.uploads.parts.create(u.id, data=data).id


@check("parts-order")
def _():
    u = begin(SAMPLE)
    matches(u.id, "upload_.+")
    equal((u.object, u.status, u.bytes, u.filename, u.purpose, u.expires_at - u.created_at, u.file),
          ("upload", "pending", len(SAMPLE), "in.jsonl", "batch", 3600, None))
    p = ai.uploads.parts.create(u.id, data=SAMPLE[100:])
    matches(p.id, "part_.+")
    equal((p.object, p.upload_id), ("upload.part", u.id))
    part(u, b"dropped")
    u = ai.uploads.complete(u.id, part_ids=[part(u, SAMPLE[:100]), p.id])
    equal((u.status, u.file.filename, u.file.bytes), ("completed", "in.jsonl", len(SAMPLE)))
    equal(ai.files.content(u.file.id).read(), SAMPLE)
    equal(ai.files.retrieve(u.file.id), u.file)


@check("parts-parallel")
def _():
    content = os.urandom(4 << 20)
    pieces = [content[i:i + (512 << 10)] for i in range(0, len(content), 512 << 10)]
    u = begin(content, purpose="user_data", filename="x.bin")
    with ThreadPoolExecutor() as pool:
        ids = list(pool.map(lambda piece: part(u, piece), pieces))
    equal(ai.files.content(ai.uploads.complete(u.id, part_ids=ids).file.id).read(), content)


@check("parts-chunked")
def _():
    for source in {"file": sample}, {"file": SAMPLE, "filename": "sample.jsonl", "bytes": len(SAMPLE)}:
        u = ai.uploads.upload_file_chunked(
            **source, purpose="batch", mime_type="application/jsonl", part_size=64, md5=hashlib.md5(SAMPLE).hexdigest())
        equal((u.status, u.file.filename), ("completed", "sample.jsonl"))
        equal(ai.files.content(u.file.id).read(), SAMPLE)


@check("parts-md5")
def _():
    u = begin(SAMPLE)
    ids = [part(u, SAMPLE)]
    refused(400, "", ai.uploads.complete, u.id, part_ids=ids, md5=hashlib.md5(b"other").hexdigest(), **OPEN)
    equal(ai.uploads.complete(u.id, part_ids=ids, md5=hashlib.md5(SAMPLE).hexdigest()).status, "completed")


@check("parts-expiry")
def _():
    u = begin(SAMPLE, expires_after={"anchor": "created_at", "seconds": 7200})
    f = ai.uploads.complete(u.id, part_ids=[part(u, SAMPLE)]).file
    equal((u.expires_at - u.created_at, f.expires_at - f.created_at), (3600, 7200))


@check("parts-cancel")
def _():
    u = begin(SAMPLE)
    id = part(u, SAMPLE)
    equal(ai.uploads.cancel(u.id).status, "cancelled")
    why = f"Upload {u.id} is not pending; its status is 'cancelled'."
    refused(400, why, ai.uploads.parts.create, u.id, data=SAMPLE, **OPEN)
    refused(400, why, ai.uploads.complete, u.id, part_ids=[id], **OPEN)


@check("parts-repeat")
def _():
    u = begin(SAMPLE)
    ids = [part(u, SAMPLE)]
    equal(ai.uploads.complete(u.id, part_ids=ids), ai.uploads.complete(u.id, part_ids=ids))
    refused(400, f"Upload {u.id} is not pending; its status is 'completed'.",
            ai.uploads.parts.create, u.id, data=SAMPLE, **OPEN)


@check("parts-refused")
def _():
    no_upload = {"param": "upload_id"}
    refused(404, "No such Upload object: upload_nope", ai.uploads.parts.create, "upload_nope", data=b"x", **no_upload)
    refused(404, "No such Upload object: upload_nope", ai.uploads.complete, "upload_nope", part_ids=[], **no_upload)
    refused(404, "No such Upload object: upload_nope", ai.uploads.cancel, "upload_nope", **no_upload)
    u = begin(SAMPLE)
    id = part(u, SAMPLE[1:])
    refused(400, f"The total size of the parts ({len(SAMPLE) - 1} bytes) does not match the upload size ({len(SAMPLE)} bytes).",
            ai.uploads.complete, u.id, part_ids=[id], **OPEN)
    refused(400, "part_nope", ai.uploads.complete, u.id, part_ids=["part_nope"], **OPEN)
    refused(400, id, ai.uploads.complete, u.id, part_ids=[id, id], **OPEN)


@check("parts-batch")
def _():
    u = begin(SAMPLE)
    u = ai.uploads.complete(u.id, part_ids=[part(u, SAMPLE[:77]), part(u, SAMPLE[77:])])
    b = finish(create(line("a"), input_file_id=u.file.id))
    equal((b.status, counts(b)), ("completed", (2, 2, 0)))


if __name__ == "__main__":
    run()
