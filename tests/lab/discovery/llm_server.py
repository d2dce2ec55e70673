"""An endpoint that speaks chat completions and embeddings with fixed answers, and misbehaves.

    python llm_server.py        # prints its port

The base URL chooses the behaviour: http://127.0.0.1:PORT/MODE/RUN/v1. RUN is any word; each has a
count of its own. GET /MODE/RUN/log returns the requests as JSON.

The world behind the answers: a sentence is about its first class. Classes with an even number in
their name are `indoors`, the others `outdoors`; light follows nothing but the sentence's id.
A text about a place has the embedding (3, 4, 0), by another name (4, 3, 0), about light (0, 0, 2),
about a row (5, 0, 0), any other (1, 1, 1). Modes that begin with `embed-` misbehave only there.
"""

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOG: dict[str, list[dict[str, Any]]] = defaultdict(list)
LOCK = threading.Lock()
# Status, and how many of the first requests get it (0: all; -4: all but the first four).
STATUS_MODES = {
    "busy-once": (429, 1),
    "busy": (429, 0),
    "broken-once": (500, 1),
    "broken": (500, 0),
    "down-for-now": (503, 2),
    "refused": (401, 0),
    "nowhere": (404, 0),
    "quota": (429, 0),
    "moved": (302, 0),
    "gives-up": (401, -4),
}
# llama.cpp's server answers 501 if it was not started for embeddings.
EMBED_STATUS = {"embed-nowhere": 404, "embed-unsupported": 501, "embed-refused": 400}
# llama.cpp's server names a model by its path.
MODEL_NAMES = {
    "path": "/home/someone/models/small.gguf",
    "windows-path": "C:\\models\\small.gguf",
    "publisher": "someone/small",
}


def describe(data: dict[str, Any]) -> dict[str, Any]:
    sentences = []
    for combination in data["combinations"]:
        number = combination["id"]
        digits = re.findall(r"\d+", combination["classes"][0])
        place = "indoors" if digits and int(digits[0]) % 2 == 0 else "outdoors"
        light = "dark" if number % 2 else "bright"
        text = f"{' beside '.join(combination['classes'])}: {place}, {light}, row {number % 3}."
        sentences.append({"id": number, "sentence": text})
    return {"sentences": sentences}


def induce(data: dict[str, Any]) -> dict[str, Any]:
    def values(pattern: str) -> list[dict[str, Any]]:
        found: dict[str, list[int]] = defaultdict(list)
        for entry in data["sentences"]:
            match = re.search(pattern, entry["sentence"])
            if match:
                found[match.group()].append(entry["id"])
        return [{"value": value, "sentences": ids} for value, ids in sorted(found.items())]

    place = values(r"indoors|outdoors")
    return {
        "conditions": [
            {"name": "Scene type", "gloss": "The kind of place.", "values": place},
            {"name": "type of scene", "gloss": "The kind of place again.", "values": place},
            {"name": "surroundings", "gloss": "Place by another name.", "values": place},
            {"name": "Lighting", "gloss": "How bright.", "values": values("dark|bright")},
            {"name": "1. **layout**", "gloss": "Which row.", "values": values(r"row \d")},
            {"name": "thing 1 pose", "gloss": "Names a class.", "values": place},
            {"name": "one of far too many words", "gloss": "Long.", "values": place},
        ]
    }


def answer_text(mode: str, data: dict[str, Any], count: int) -> str:
    good = describe(data) if "combinations" in data else induce(data)
    if "conditions" in good:
        if mode == "no-conditions":
            good = {"conditions": []}
        if mode == "forty-times":
            good = {"conditions": good["conditions"][:1] * 40}
    text = json.dumps(good, ensure_ascii=False)
    if mode in ("half-json", "half-json-once") and (count == 1 or mode == "half-json"):
        return text[: len(text) // 2]
    if mode == "wrong-json":
        return json.dumps({"answer": [1, 2, 3]})
    if mode == "no-json":
        return "I would rather talk about something else."
    if mode == "empty":
        return ""
    if mode == "chatty":
        return f"Sure! Here {{you}} go:\n```json\n{text}\n```\nAnything else?"
    if mode == "few-sentences" and "sentences" in good:
        return json.dumps({"sentences": good["sentences"][:2]})
    return text


def embeddings(mode: str, texts: list[str]) -> Any:
    places = {"another name": [4, 3, 0], "place": [3, 4, 0], "bright": [0, 0, 2], "row": [5, 0, 0]}
    vectors = [next((places[word] for word in places if word in t), [1, 1, 1]) for t in texts]
    data: list[Any] = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    last = {
        "embed-ragged": [1, 2],
        "embed-empty": [],
        "embed-nan": [1, 2, float("nan")],
        "embed-zero": [0, 0, 0],
        "embed-words": ["1", "2", "3"],
        "embed-base64": "AACAPw==",
    }
    if mode in last:
        data[-1]["embedding"] = last[mode]
    if mode == "embed-few":
        data.pop()
    if mode == "embed-twice":
        data[-1]["index"] = 0
    if mode == "embed-unnumbered":
        del data[0]["index"]
    if mode == "embed-lists":
        data = vectors
    if mode == "embed-shuffled":
        data.reverse()
    if mode == "embed-no-list":
        return {"data": {"0": vectors[0]}}
    if mode == "embed-wrong-json":
        return {"answer": vectors}
    usage = {} if mode == "embed-uncounted" else {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    return {"model": "embedder-1", "data": data, **usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        with LOCK:
            self.reply(200, LOG[self.path.removesuffix("/log")])

    def do_POST(self) -> None:
        _, mode, run, *_rest = self.path.split("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            log = LOG[f"/{mode}/{run}"]
            log.append({"body": body, "headers": dict(self.headers), "time": time.monotonic()})
            log[-1]["route"] = self.path.partition("/v1")[2]
            count = len(log)
        if self.misbehaves(mode, count, body):
            return
        if self.path.endswith("/embeddings"):
            if mode in EMBED_STATUS:
                self.reply(EMBED_STATUS[mode], {"error": {"message": "cannot embed"}})
            else:
                self.reply(200, embeddings(mode, body["input"]))
            return
        text = answer_text(mode, json.loads(body["messages"][-1]["content"]), count)
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        if mode == "cut":
            choice["finish_reason"] = "length"
        content = {
            "model": MODEL_NAMES.get(mode, "local-1"),
            "choices": [choice],
            "usage": {"total_tokens": 100},
        }
        if mode == "uncounted":
            del content["usage"]
        if mode in ("gzip", "chunked", "chunked-half"):
            self.reply_otherwise(mode, json.dumps(content).encode())
            return
        self.reply(200, content)

    def reply_otherwise(self, mode: str, body: bytes) -> None:
        self.send_response(200)
        if mode == "gzip":
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(body), 50):
            part = body[start : start + 50]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if mode == "chunked-half":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def misbehaves(self, mode: str, count: int, body: dict[str, Any]) -> bool:
        if mode in STATUS_MODES:
            status, times = STATUS_MODES[mode]
            if times == 0 or count <= times or count > -times > 0:
                key = self.headers.get("Authorization", "")
                message = {"error": {"message": f"status {status}, you sent {key}"}}
                if mode == "quota":
                    message["error"]["code"] = "insufficient_quota"
                self.reply(status, message, wait="0.2" if mode == "busy-once" else "")
                return True
        return self.refuses_format(mode, body) or self.breaks_off(mode)

    def refuses_format(self, mode: str, body: dict[str, Any]) -> bool:
        form = body.get("response_format", {}).get("type")
        if mode == "no-schema" and form == "json_schema":
            self.reply(400, {"error": "response_format is not supported"})
            return True
        if mode == "no-format" and form:
            self.reply(500, {"error": "cannot do that"})
            return True
        if mode == "no-seed" and ("seed" in body or "max_tokens" in body):
            name = "seed" if "seed" in body else "max_tokens, use max_completion_tokens"
            self.reply(400, {"error": f"unsupported parameter: {name}"})
            return True
        return False

    def breaks_off(self, mode: str) -> bool:
        if mode == "slow":
            time.sleep(1.0)
        elif mode in ("trickle", "half-body"):
            self.send_response(200)
            self.send_header("Content-Length", "4000")
            self.end_headers()
            for _ in range(20 if mode == "trickle" else 1):
                self.wfile.write(b"{   ")
                time.sleep(0.05)
            self.close_connection = True
            return True
        elif mode == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b" " * 65536)
            self.close_connection = True
            return True
        elif mode == "terminal":
            self.send_response(400)
            self.end_headers()
            self.wfile.write("\x1b[2J\x07\u009b gone".encode())
            self.close_connection = True
            return True
        elif mode == "not-chat":
            self.reply(200, {"choices": []})
            return True
        return False

    def reply(self, status: int, content: Any, wait: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if wait:
            self.send_header("Retry-After", wait)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        """A client that hung up is what some modes are for."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)  # noqa: T201 - the parent reads it
    server.serve_forever()
