"""What the checks share: clients, inputs, ways to fail, and the printing of results."""

import json
import os
import re
import time
import traceback
import urllib.request

import openai
from openai import OpenAI

BASE_URL, API_KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
CHAT, OTHER, SLOW, BUSY = "sim-chat", "org/sim-chat:free", "sim-slow", "sim-busy"
REFUSED = "refuse-me"  # the model server answers 400 to a body with this text

requests = []  # every request that any client sent


def client(**options) -> OpenAI:
    """A client that takes no answer whose types differ from the SDK's."""
    return OpenAI(**{
        "base_url": BASE_URL, "api_key": API_KEY, "_strict_response_validation": True,
        "http_client": openai.DefaultHttpxClient(event_hooks={"request": [requests.append]}),
    } | options)


ai = client()
pages = client(api_key=os.environ["PAGES_KEY"])  # of a project with 120 files and 120 batches
strict = client(base_url=os.environ["STRICT_URL"], api_key=os.environ["STRICT_KEY"])

# Inputs


def line(custom_id, text="hello", model=CHAT, url="/v1/chat/completions", **body):
    body = body or {"messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model} | body}


def jsonl(*lines) -> bytes:
    return "".join((l if isinstance(l, str) else json.dumps(l)) + "\n" for l in lines).encode()


SAMPLE = jsonl(line("a"), line("b"))


def upload(*lines, to=ai) -> str:
    return to.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch").id


def create(*lines, to=ai, **params):
    url = json.loads(jsonl(*lines).splitlines()[0])["url"]
    return to.batches.create(**{
        "input_file_id": upload(*lines, to=to), "endpoint": url, "completion_window": "24h",
    } | params)


# Waiting


def wait(batch, until, to=ai):
    """The batch as it is once the condition holds."""
    give_up = time.monotonic() + 30
    while not until(batch := to.batches.retrieve(batch.id)):
        assert time.monotonic() < give_up, f"still {batch.status} after 30 s"
        time.sleep(0.05)
    return batch


def finish(batch, to=ai):
    return wait(batch, lambda b: b.status in ("completed", "failed", "expired", "cancelled"), to)


# Results


def results(file_id) -> dict:
    """The lines of a result file by custom_id."""
    lines = [json.loads(l) for l in ai.files.content(file_id).text.splitlines()]
    for l in lines:
        equal(list(l), ["id", "custom_id", "response", "error"])
        matches(l["id"], r"batch_req_[0-9a-f]{32}")
    by_id = {l["custom_id"]: l for l in lines}
    equal(len(by_id), len(lines))
    return by_id


def answer(line) -> dict:
    """What the model server says to a line's body; it says the same each time."""
    url = os.environ["SIM_URL"] + line["url"].removeprefix("/v1")
    with urllib.request.urlopen(url, json.dumps(line["body"]).encode()) as r:
        return json.load(r)


# Judging


class Lacks(Exception):
    """The SDK has no such thing; says why."""


def equal(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


def matches(got, pattern):
    assert re.fullmatch(pattern, got), f"got {got!r}, want {pattern}"


def nulls(thing) -> set:
    """The names of the fields that are explicitly null."""
    return {name for name in thing.model_fields_set if getattr(thing, name) is None}


CLASSES = {
    400: openai.BadRequestError, 401: openai.AuthenticationError, 404: openai.NotFoundError,
    405: openai.APIStatusError, 409: openai.ConflictError,
}


ANY = object()
OPEN = {"code": ANY, "param": ANY}  # where the contract leaves an error's code and param open


def refused(status, message, call, *args, code=None, param=None, **kwargs):
    """The call fails with the SDK's class for the status, and says all of this."""
    try:
        got = call(*args, **kwargs)
    except openai.APIStatusError as e:
        equal(type(e), CLASSES[status])
        equal((e.status_code, e.type), (status, "invalid_request_error"))
        assert code in (ANY, e.code), f"got code {e.code!r}, want {code!r}"
        assert param in (ANY, e.param), f"got param {e.param!r}, want {param!r}"
        equal(set(e.body), {"message", "type", "param", "code"})
        assert message in e.body["message"], f"got message {e.body['message']!r}, want {message!r} in it"
        matches(e.request_id, "req_.+")
    else:
        raise AssertionError(f"got {got!r}, want status {status}")


# Running

checks = {}


def check(id):
    def add(f):
        checks[id] = f
        return f
    return add


def run():
    """Run every check; print its id, how it went, and why."""
    for id, f in checks.items():
        try:
            f()
        except Lacks as e:
            print(f"{id}  -  {e}", flush=True)
        except Exception as e:
            where = [t for t in traceback.extract_tb(e.__traceback__) if t.filename.endswith("checks.py")][-1]
            what = " ".join(f"{type(e).__name__}: {e}".split())
            print(f"{id}  FAILED  line {where.lineno}: {where.line}: {what}", flush=True)
        else:
            print(f"{id}  ok", flush=True)
