"""scratchlm play, whom it lets in and what it refuses. Each rule has a test that fails without it."""

import asyncio
import json

import pytest

from playing import ORIGIN, characters, events, make_run, serving, subwords
from scratchlm.serve import app as application
from scratchlm.serve import guard
from scratchlm.serve.guard import LARGEST_BODY, Door, Guard, is_loopback

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("guard") / "run", "gpt", subwords(), context=64).path


@pytest.fixture(scope="module")
def client(folder):
    with serving(folder) as client:
        yield client


@pytest.fixture(scope="module")
def remote(folder):
    """A server that other machines may ask, with a token."""
    with serving(folder, token="s3cret", host="0.0.0.0") as client:
        yield client


def refusal(answer, status):
    """The message of a refusal, which tells nothing of our inside."""
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert "File " not in answer.text
    return answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "LOCALHOST:8765", "[::1]:8765"])
def test_its_own_names_are_let_in(client, host):
    assert client.get("/api/runs", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8765", "127.0.0.1:80", "127.0.0.1", "localhost", "127.0.0.1.evil.example:8765", "", ":8765",
     "127.0.0.1:8765@evil", "[::1]", "127.0.0.1:08765", "127.0.0.1:\u00b2".encode("latin-1"), "0.0.0.0:8765"],
)  # fmt: skip
def test_another_host_is_refused(client, host):
    """A name that somebody gave to this machine's address (DNS rebinding)."""
    for path in ("/", "/api/runs", "/v1/models"):
        refusal(client.get(path, headers={"host": host}), 400)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:8766", "http://localhost:8765", ""],
)
def test_another_origin_is_refused(client, origin):
    """A page of another site, also where it is on this machine."""
    body = {"run": "a", "text": "a"}
    refusal(client.post("/api/pieces", json=body, headers={"origin": origin}), 403)
    assert client.post("/api/pieces", json=body, headers={"origin": ORIGIN}).status_code == 200


def test_a_form_of_another_site_is_no_request(client):
    """Which a browser sends without asking first, with a type that is not JSON."""
    body = json.dumps({"run": "a", "text": "a"})
    for type_ in ("text/plain", "application/x-www-form-urlencoded"):
        refusal(client.post("/api/pieces", content=body, headers={"content-type": type_}), 422)


def test_with_a_token_nobody_asks_without_it(remote):
    body = {"run": "a", "text": "a"}
    for value in (
        "Bearer wrong",
        "Bearer ",
        "s3cret",
        "Basic s3cret",
        "Bearer s3cret2",
        "bearer\u00e9".encode("latin-1"),
    ):
        answer = remote.post("/api/pieces", json=body, headers={"authorization": value})
        assert "token" in refusal(answer, 401)
        assert "s3cret" not in answer.text
    assert "token" in refusal(remote.get("/api/runs"), 401)
    refusal(remote.get("/api/runs?token=s3cret"), 401)
    assert refusal(remote.get("/v1/models"), 401)
    assert remote.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert remote.post("/api/pieces", json=body, headers={"authorization": "Bearer s3cret"}).status_code == 200


def test_where_all_addresses_are_listened_at_any_name_is_ours_and_the_port_counts(remote):
    headers = {"authorization": "Bearer s3cret"}
    assert remote.get("/api/runs", headers={**headers, "host": "box.lan:8765"}).status_code == 200
    refusal(remote.get("/api/runs", headers={**headers, "host": "box.lan:80"}), 400)
    refusal(remote.get("/api/runs", headers={**headers, "host": "box.lan:8765", "origin": ORIGIN}), 403)


def test_a_door_of_another_address():
    door = Door(host="192.168.0.7", port=80)
    assert door.knows("192.168.0.7")
    assert door.knows("192.168.0.7:80")
    assert not door.knows("192.168.0.8")
    assert Door(host="::1", port=9).knows("[::1]:9")
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "box.lan", "")] == [False] * 5


def test_large_requests_are_refused(client):
    """A length that is said, and one that is not; at the limit it is read."""
    megabyte = json.dumps({"run": "a", "text": "x" * 1_000_000})
    json_type = {"content-type": "application/json"}
    assert "256 KiB" in refusal(client.post("/api/pieces", content=megabyte, headers=json_type), 413)
    pieces = (b"x" * 10_000 for _ in range(100))
    assert "256 KiB" in refusal(client.post("/api/pieces", content=pieces, headers=json_type), 413)
    huge = {**json_type, "content-length": "9" * 30}
    refusal(client.post("/api/pieces", content=b"{}", headers=huge), 413)
    body = json.dumps({"run": "a", "text": "x" * 100})
    padded = body + " " * (LARGEST_BODY - len(body))
    assert client.post("/api/pieces", content=padded, headers=json_type).status_code == 200
    refusal(client.post("/api/pieces", content=padded + " ", headers=json_type), 413)


def test_a_request_whose_body_does_not_come_is_ended(monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.01)
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/api/pieces", "headers": [(b"host", b"localhost:1")]}
    asyncio.run(Guard(None, Door(host="localhost", port=1))(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("path", ["pieces", "attention", "field"])
def test_long_texts_are_refused(client, path):
    assert "20000 characters" in refusal(client.post(f"/api/{path}", json={"run": "a", "text": "x" * 100_000}), 422)
    assert client.post(f"/api/{path}", json={"run": "a", "text": "x " * 10_000}).status_code == 200


def test_long_prompts_are_refused(client):
    refusal(client.post("/api/generate", json={"run": "a", "prompt": "x" * 100_000}), 422)
    refusal(client.post("/v1/completions", json={"model": "a", "prompt": "x" * 100_000}), 422)
    refusal(client.post("/api/generate", json={"run": "a", "prompt": "a", "continuation": [1] * 4001}), 422)
    said = events(client.post("/api/generate", json={"run": "a", "prompt": "x " * 10_000, "tokens": 2}))
    assert said[-1]["type"] == "end"
    assert said[0]["read"] == 32  # the newest half of what the model can read


@pytest.mark.parametrize(
    "field",
    [
        '"temperature": NaN', '"temperature": Infinity', '"temperature": -1', '"temperature": 1e999',
        '"temperature": "1"', '"temperature": null', '"seed": -1', '"seed": 9223372036854775808', '"seed": 1.5',
        '"seed": ' + "9" * 5000, '"tokens": 0', '"tokens": 1001', '"tokens": true', '"top_k": 0', '"top_p": 0',
        '"top_p": 1.1', '"min_p": NaN', '"alternatives": 51', '"alternatives": 0', '"continuation": [-1]',
        '"continuation": "abc"', '"unknown": 1', '"changes": [{"token": 1, "sense": 0, "scale": NaN}]',
        '"changes": [{"token": 1, "sense": 0, "scale": 11}]', '"changes": [{"token": 1, "sense": 0}]',
        '"prompt": "\\ud800"', '"prompt": 5', '"\\ud800": 1', '"run": ["a"]',
    ],
)  # fmt: skip
def test_values_out_of_bounds_are_refused(client, field):
    body = '{"run": "a", "prompt": "a", ' + field + "}"
    answer = client.post("/api/generate", content=body, headers={"content-type": "application/json"})
    message = refusal(answer, 400 if "9999" in field else 422)
    if "9999" not in field and not field.startswith('"\\ud800"'):
        assert field.split('"')[1] in message
    assert not client.desk.writing.places


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe", '{"run": "a"}', '"a"', "\x00"])
def test_what_is_no_request(client, body):
    answer = client.post("/api/pieces", content=body, headers={"content-type": "application/json"})
    message = refusal(answer, 400 if len(body) > 1000 else 422)
    assert "body" in message or "run" in message or "text" in message


def test_an_unknown_field_is_named(client):
    message = refusal(client.post("/api/pieces", json={"run": "a", "text": "a", "txet": "b"}), 422)
    assert message == "txet: is an unknown field"


def test_specials_and_control_characters_stay_text(client):
    text = "a<|endoftext|>\x00\x1b[31m\x7f\u202e<script>alert(1)</script>\ufffe\U0001f600"
    found = client.post("/api/pieces", json={"run": "a", "text": text}).json()
    ids = [piece["id"] for piece in found["pieces"]]
    tokenizer = subwords()
    assert ids == tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert bytes(byte for piece in found["pieces"] for byte in piece["bytes"]).decode() == text
    assert all(label.isprintable() for label in (piece["label"] for piece in found["pieces"]))
    said = events(client.post("/api/generate", json={"run": "a", "prompt": text, "tokens": 3}))
    assert [piece["id"] for piece in said[0]["prompt"]] == ids
    answer = client.post("/v1/completions", json={"model": "a", "prompt": text, "max_tokens": 0, "echo": True})
    assert answer.json()["choices"][0]["text"] == text


def test_every_answer_says_what_a_page_may_do(client, remote, monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html>", encoding="utf-8")
    monkeypatch.setattr(application, "PAGE", tmp_path)
    answers = [
        client.get("/"),
        client.get("/nothing"),
        client.get("/api/nothing"),
        client.get("/docs"),
        client.get("/openapi.json"),
        client.get("/api/runs"),
        client.get("/api/runs", headers={"host": "evil.example"}),
        client.get("/api/runs", headers={"origin": "null"}),
        client.post("/api/runs"),
        client.post("/api/pieces", content="{"),
        client.post("/api/pieces", content=b"x" * 300_000),
        client.post("/api/generate", json={"run": "a", "prompt": "a", "tokens": 1}),
        client.post("/v1/completions", json={"model": "a", "prompt": "a", "stream": True}),
        client.options("/api/runs", headers={"access-control-request-method": "POST"}),
        remote.get("/api/runs"),
    ]
    assert [answer.status_code for answer in answers] == [
        200, 404, 404, 404, 404, 200, 400, 403, 405, 422, 413, 200, 200, 405, 401,
    ]  # fmt: skip
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers


def test_the_page_is_open_and_nothing_beside_it(remote, monkeypatch, tmp_path):
    page = tmp_path / "page"
    (page / "inner").mkdir(parents=True)
    for name in ("index.html", "page.css", "page.js", "notes.txt", "inner/other.js", "../secret.html"):
        (page / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(application, "PAGE", page)
    for name, type_ in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        answer = remote.get(f"/{name}")
        assert (answer.status_code, answer.text) == (200, name or "index.html")
        assert answer.headers["content-type"].startswith(type_)
    for name in ("notes.txt", "inner/other.js", "../secret.html", "%2e%2e/secret.html", "..%2fsecret.html", "inner",
                 "%00", "app.py"):  # fmt: skip
        refusal(remote.get(f"/{name}"), 404)


def test_a_character_that_a_vocabulary_lacks_is_named(tmp_path):
    with serving(make_run(tmp_path / "run", "gpt", characters()).path) as client:
        for path in ("pieces", "attention"):
            assert "'\u20ac'" in refusal(client.post(f"/api/{path}", json={"run": "a", "text": "\u20ac"}), 422)
