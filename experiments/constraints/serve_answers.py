r"""An endpoint on this machine for trying ``grape constraints propose`` without a model, a key or a network.

It speaks OpenAI's chat-completions protocol and answers with the file of ``answers/`` that has the task's words. No
model is behind it: every answer was written by hand, and says so.

    python experiments/constraints/serve_answers.py
    grape constraints propose --suite libero_goal --task_id 1 --model written-by-hand \
        --base_url http://127.0.0.1:8123/v1
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).with_name("answers")
MODEL = "written-by-hand"


def load_answers(folder: Path) -> dict[str, Any]:
    """Task in words -> answer."""
    files = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {content["task"]: content["answer"] for content in files}


def task_of(request: dict[str, Any]) -> str:
    """The task that the prompt's JSON object names."""
    content = request["messages"][1]["content"]
    text = next(part["text"] for part in content if part["type"] == "text")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])["task"]


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, Any]

    def do_POST(self) -> None:
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            task = task_of(request)
        except (ValueError, KeyError, TypeError, IndexError, StopIteration):
            return self.reply(400, {"error": {"message": "this is not a question of grape constraints propose"}})
        if task not in self.answers:
            known = "; ".join(self.answers)
            return self.reply(404, {"error": {"message": f"no answer was written for {task!r}; there are: {known}"}})
        message = {"role": "assistant", "content": json.dumps(self.answers[task], indent=1)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return self.reply(200, {"object": "chat.completion", "model": MODEL, "choices": [choice]})

    def reply(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123, help="0 takes a free one")
    port = parser.parse_args().port
    Handler.answers = load_answers(ANSWERS)
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(
            f"answers written by hand, for {len(Handler.answers)} tasks: http://127.0.0.1:{server.server_port}/v1",
            flush=True,
        )
        server.serve_forever()


if __name__ == "__main__":
    main()
