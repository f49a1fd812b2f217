"""What stays.mjs does, with python-socketio."""

import asyncio
import json
import os
import sys

import socketio


async def stays(name, url):
    client = socketio.AsyncClient()

    def says(event):
        def say(*why):
            print(name, event, *why, file=sys.stderr, flush=True)

        client.on(event, say)

    for event in ["connect", "disconnect", "connect_error"]:
        says(event)
    await client.connect(url, auth={"token": os.environ["PROXIE_TOKEN"]}, retry=True)
    while True:
        await asyncio.sleep(1)
        try:
            if client.connected and (await client.call("ping", {}, timeout=5))["ok"]:
                print(name, flush=True)
        except (socketio.exceptions.SocketIOError, asyncio.TimeoutError):
            pass


async def main(clients):
    clients = [asyncio.create_task(stays(name, url)) for name, url in clients.items()]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([ended, *clients], return_when=asyncio.FIRST_COMPLETED)
    for client in clients:
        if client.done():
            client.result()
    os._exit(0)


asyncio.run(main(json.loads(sys.argv[1])))
