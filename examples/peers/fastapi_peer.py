"""Fan-out and echo as small as FastAPI makes them: {"sub":topic}, {"pub":topic,"data":…}, anything else comes back."""

import json
import socket
from collections import defaultdict

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
topics = defaultdict(set)


@app.websocket("/")
async def serve(websocket: WebSocket):
    await websocket.accept()
    mine = set()
    try:
        while True:
            text = await websocket.receive_text()
            frame = json.loads(text)
            if topic := frame.get("sub"):
                topics[topic].add(websocket)
                mine.add(topic)
            elif topic := frame.get("pub"):
                out = json.dumps({"event": "app:x", "topic": topic, "data": frame["data"]}, separators=(",", ":"))
                for other in list(topics[topic]):
                    await other.send_text(out)
            else:
                await websocket.send_text(text)
    except (WebSocketDisconnect, RuntimeError):
        for topic in mine:
            topics[topic].discard(websocket)


listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(f"ready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
config = uvicorn.Config(app, log_level="error", ws_per_message_deflate=False, loop="uvloop")
uvicorn.Server(config).run(sockets=[listener])
