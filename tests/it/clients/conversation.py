"""The protocol over Python's `websockets`: conversation.py ws://HOST/v1/ws, the token in PROXIE_TOKEN"""

import asyncio
import itertools
import json
import os
import sys

import websockets

ids = itertools.count(1)


class Client:
    def __init__(self, socket):
        self.socket, self.events = socket, []

    async def ask(self, event, data):
        key = f"py{next(ids)}-{id(self.socket)}"
        await self.socket.send(json.dumps({"id": key, "event": event, "data": data}))
        while True:
            frame = json.loads(await asyncio.wait_for(self.socket.recv(), 30))
            if frame.get("id") == key:
                assert frame["ok"], frame
                return frame["data"]
            self.events.append(frame)

    async def event(self, name):
        while True:
            for at, frame in enumerate(self.events):
                if frame["event"] == name:
                    return self.events.pop(at)
            self.events.append(json.loads(await asyncio.wait_for(self.socket.recv(), 30)))


async def main(url, token):
    async with websockets.connect(url, subprotocols=["proxie.v1"], compression=None) as socket:
        assert socket.subprotocol == "proxie.v1"
        client = Client(socket)
        await client.ask("auth", {"token": token})
        opened = await client.ask("session:open", {"time_zone": "Europe/Berlin"})
        text = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros"
        await client.ask("chat:message", {"session_id": opened["session_id"], "content": text})
        offer = (await client.event("offer:new"))["data"]["offer"]
        accepted = await client.ask("offer:accept", {"offer_id": offer["id"]})
        booking = (await client.event("booking:confirmed"))["data"]["booking"]
        assert booking["id"] == accepted["booking_id"]
        await (await socket.ping(b"still there"))
    # Another connection goes on where this one began, and misses nothing.
    async with websockets.connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        client = Client(socket)
        topic = f"session:{opened['session_id']}"
        ready = await client.ask("auth", {"positions": {topic: opened["position"]}})
        assert ready["topics"][topic]["recovered"] is True, ready
        said = await client.event("chat:message")
        assert (said["offset"], said["data"]["content"]) == (1, text)
    try:
        async with websockets.connect(url) as socket:
            await Client(socket).ask("auth", {"token": "not-a-token"})
    except AssertionError:
        await socket.wait_closed()
        assert socket.close_code == 3501, socket.close_code
    print("ok")


asyncio.run(main(sys.argv[1], os.environ["PROXIE_TOKEN"]))
