"""The example backend of docker-compose.yml: it stands for a service that a team already has.

It knows nothing of tollgate, of limits or of whoever stands in front of it. Python's standard
library is all that it needs.

  /fo/strike-distribution?symbol=…   the made-up open interest of an option chain, in JSON
  /slow?seconds=2                    answers after so many seconds, 10 at most
  /flaky                             fails every third time
  /healthz                           {"status": "ok"}
  /ws/echo                           a WebSocket that sends back what it receives
"""

import base64
import hashlib
import itertools
import json
import signal
import struct
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = 8000
SLOW_MAX_SECONDS = 10.0
FRAME_MAX_BYTES = 1 << 20
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE, PING, PONG = 0x8, 0x9, 0xA
SPOT = {"NIFTY50": 25_700, "BANKNIFTY": 57_800}

flaky_calls = itertools.count(1)


def strike_distribution(query):
    """The same question has the same answer, so that it can be compared."""
    symbol = query.get("symbol", ["NIFTY50"])[0]
    spot = SPOT.get(symbol, 1_000)
    step = max(spot // 500 // 50 * 50, 10)
    centre = round(spot / step) * step
    seed = int.from_bytes(hashlib.sha256(symbol.encode()).digest()[:4], "big")
    strikes = []
    for offset in range(-10, 11):
        distance = abs(offset)
        strikes.append(
            {
                "strike": centre + offset * step,
                "call_oi": (seed + 7919 * (offset + 11)) % 5_000 * (11 - distance),
                "put_oi": (seed + 6101 * (11 - offset)) % 5_000 * (11 - distance),
            }
        )
    return {
        "symbol": symbol,
        "timeframe": query.get("timeframe", ["5"])[0],
        "expiry": query.get("expiry", [None])[0],
        "spot": spot,
        "strikes": strikes,
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "example-backend"
    sys_version = ""
    # Who sends nothing for so long is no caller any more.
    timeout = 75

    def do_GET(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if url.path == "/fo/strike-distribution":
            self.answer(200, strike_distribution(query))
        elif url.path == "/healthz":
            self.answer(200, {"status": "ok"})
        elif url.path == "/slow":
            self.slow(query)
        elif url.path == "/flaky":
            failed = next(flaky_calls) % 3 == 0
            self.answer(500 if failed else 200, {"failed": failed})
        elif url.path.startswith("/ws/"):
            self.websocket()
        else:
            self.answer(404, {"error": "Not found"})

    do_HEAD = do_GET

    def slow(self, query):
        try:
            seconds = float(query.get("seconds", ["2"])[0])
        except ValueError:
            self.answer(400, {"error": "seconds: expected a number"})
            return
        # Written so that "nan" is no pause either.
        seconds = seconds if 0 <= seconds <= SLOW_MAX_SECONDS else SLOW_MAX_SECONDS
        time.sleep(seconds)
        self.answer(200, {"slept_seconds": seconds})

    def answer(self, status, content):
        body = (json.dumps(content) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def websocket(self):
        key = self.headers.get("Sec-WebSocket-Key")
        if self.headers.get("Upgrade", "").lower() != "websocket" or not key:
            self.answer(426, {"error": "Upgrade required"})
            return
        digest = hashlib.sha1((key + WEBSOCKET_GUID).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.close_connection = True
        while self.echo():
            pass

    def echo(self):
        """One frame in, one out; whether more may come."""
        head = self.rfile.read(2)
        if len(head) < 2:
            return False
        opcode, length = head[0] & 0x0F, head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.rfile.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.rfile.read(8))
        # A client's frames are masked (RFC 6455, section 5.1).
        if length > FRAME_MAX_BYTES or not head[1] & 0x80:
            return False
        mask = self.rfile.read(4)
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
        if opcode == PONG:
            return True
        first = (head[0] & 0xF0) | (PONG if opcode == PING else opcode)
        if length < 126:
            size = bytes([length])
        elif length < 1 << 16:
            size = b"\x7e" + struct.pack("!H", length)
        else:
            size = b"\x7f" + struct.pack("!Q", length)
        self.wfile.write(bytes([first]) + size + payload)
        return opcode != CLOSE

    def log_message(self, *arguments):
        """Nothing: whoever stands in front has a log of requests."""


class Server(ThreadingHTTPServer):
    # A burst is no reason to refuse connections.
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A caller that leaves is no news here."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def main():
    if sys.argv[1:] == ["--check"]:
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=2).read()
        return
    server = Server(("0.0.0.0", PORT), Handler)
    # As the first process of a container it would not be ended by a signal that it does not handle.
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start()
    )
    print(f"listening on {PORT}")
    server.serve_forever()


if __name__ == "__main__":
    main()
