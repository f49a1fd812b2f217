"""A device that speaks /sync/ws with Python's `websockets`, and keeps what it shares in CRDTs of its own.

tablet.py ws://HOST/sync/ws, the token in PROXIE_TOKEN. It reads a command a line, as JSON, and answers each with a line:
connect, close, add, remove, play, count, state.
"""

import asyncio
import json
import os
import sys
import time

import websockets

USER = "clara"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid():
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(CROCKFORD[(number >> (5 * at)) & 31] for at in reversed(range(26)))


class Replica:
    def __init__(self):
        self.added, self.removed, self.positions, self.counts = {}, set(), {}, {}

    def apply(self, device, operation):
        payload, kind = operation["payload"], operation["operation_type"]
        content = payload.get("content_id")
        if kind == "WatchlistAdd":
            self.added[(content, payload["tag"])] = True
        elif kind == "WatchlistRemove":
            tags = payload.get("tags", payload.get("tag"))
            self.removed |= {(content, tag) for tag in ([tags] if isinstance(tags, str) else tags)}
        elif kind == "PlaybackUpdate":
            written = (int(operation["timestamp"]), device, payload["position_ms"])
            self.positions[content] = max(written, self.positions.get(content, written))
        elif kind == "CounterUpdate":
            share = self.counts.setdefault(content, {})
            share[device] = max(payload["count"], share.get(device, 0))

    def tags(self, content):
        return [tag for (of, tag) in self.added if of == content and (of, tag) not in self.removed]

    def shown(self):
        return {
            "watchlist": sorted({content for (content, tag) in self.added if (content, tag) not in self.removed}),
            "positions": {content: written[2] for content, written in self.positions.items()},
            "counts": {content: sum(shares.values()) for content, shares in self.counts.items()},
        }


class Tablet:
    def __init__(self, url, token):
        self.url, self.token = url, token
        self.id = "dev_" + ulid()
        self.sequence, self.time = 0, 0
        # What has not come back through the log: (operation, how far the log was seen when it was written).
        self.queue = []
        self.acknowledged = 0
        self.confirmed, self.position = Replica(), None
        self.socket, self.task, self.listening = None, None, False

    # ---- What it writes and shows, connected or not

    def write(self, kind, payload):
        self.sequence += 1
        self.time = max(self.time + 1, int(time.time() * 2**32))
        operation = {
            "sequence": self.sequence, "timestamp": str(self.time), "operation_type": kind, "payload": payload,
        }
        self.queue.append((operation, self.position))
        return self.send()

    def replica(self):
        shown = Replica()
        shown.added, shown.removed = dict(self.confirmed.added), set(self.confirmed.removed)
        shown.positions = dict(self.confirmed.positions)
        shown.counts = {content: dict(shares) for content, shares in self.confirmed.counts.items()}
        for operation, _ in self.queue:
            shown.apply(self.id, operation)
        return shown

    # ---- The conversation

    async def send(self):
        """One batch at a time: the rest goes when this is acknowledged."""
        batch = [operation for operation, _ in self.queue if operation["sequence"] > self.acknowledged][:200]
        if self.listening and batch and not self.waiting:
            self.waiting = True
            update = {"type": "StateUpdate", "operations": batch, "position": self.queue[0][1]}
            try:
                await self.socket.send(json.dumps(update))
            except websockets.ConnectionClosed:
                pass

    async def talk(self):
        while True:
            try:
                headers = {"Authorization": f"Bearer {self.token}"}
                async with websockets.connect(self.url, additional_headers=headers, subprotocols=["proxie.v1"]) as socket:
                    self.socket, self.listening, self.waiting = socket, False, False
                    register = {"device_id": self.id, "name": "Tablet", "device_type": "android"}
                    await socket.send(json.dumps({"id": ulid(), "event": "device:register", "data": register}))
                    async for message in socket:
                        await self.heard(json.loads(message))
            except (OSError, websockets.WebSocketException):
                pass
            self.listening = False
            await asyncio.sleep(0.1)

    async def heard(self, message):
        kind = message.get("type")
        if kind is None and "ok" in message:
            assert message["ok"], message
            subscribe = {"type": "Subscribe", "user_id": USER, "device_id": self.id, "position": self.position}
            await self.socket.send(json.dumps(subscribe))
        elif kind == "Error":
            # The node goes away, or is not there yet: once more.
            assert message["retryable"], message
            await self.socket.close()
        elif kind == "StateDelta":
            if message.get("reset"):
                self.confirmed = Replica()
            for operation in message["operations"]:
                self.confirmed.apply(operation["device_id"], operation)
                self.time = max(self.time, int(operation["timestamp"]))
                if operation["device_id"] == self.id and "offset" in message:
                    self.forget(operation["sequence"])
            if "offset" in message:
                self.position = {"epoch": self.position["epoch"], "offset": message["offset"]}
            elif message["reset"]:
                self.position = message["position"]
        elif kind == "Subscribed":
            self.acknowledged, self.listening = message["sequence"], True
            if not message["recovered"]:
                # What was read has all that was acknowledged.
                self.forget(message["sequence"])
            await self.send()
        elif kind == "Acknowledge":
            assert not message["refused"] and not message["restamped"], message
            self.acknowledged, self.waiting = message["sequence"], False
            await self.send()

    def forget(self, sequence):
        self.queue = [queued for queued in self.queue if queued[0]["sequence"] > sequence]

    # ---- What it is told

    async def do(self, command):
        do, content = command["do"], command.get("content")
        if do == "connect":
            self.task = asyncio.create_task(self.talk())
        elif do == "close":
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.listening = False
        elif do == "add":
            await self.write("WatchlistAdd", {"content_id": content, "tag": ulid()})
        elif do == "remove":
            await self.write("WatchlistRemove", {"content_id": content, "tags": self.replica().tags(content)})
        elif do == "play":
            await self.write("PlaybackUpdate", {"content_id": content, "position_ms": command["at"]})
        elif do == "count":
            own = self.replica().counts.get(content, {}).get(self.id, 0)
            await self.write("CounterUpdate", {"content_id": content, "count": own + command["by"]})
        if self.task and self.task.done() and not self.task.cancelled():
            self.task.result()
        return {"pending": len(self.queue), "id": self.id, **self.replica().shown()}


async def main(url, token):
    tablet = Tablet(url, token)
    while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await tablet.do(json.loads(line))), flush=True)


asyncio.run(main(sys.argv[1], os.environ["PROXIE_TOKEN"]))
