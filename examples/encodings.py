"""What other encodings of frames would save and cost (docs/adr/0012-one-encoding.md):
python3 -m pip install --target target/peers/python msgpack && PYTHONPATH=target/peers/python python3 examples/encodings.py"""

import json
import time
import zlib

import msgpack

PAYLOAD = "a sentence that is about as long as what people and programs say to each other, all in all 100 B"
FRAMES = {
    "application topic": {"event": "app:x", "topic": "app:t0", "from": "bench", "data": {"t": "0000000001234567", "text": PAYLOAD}},
    "one streamed word": {"event": "chat:stream", "topic": "session:ses_01KAJ5Y3C1V7W9C1R0N1F5M2QX", "data": {
        "session_id": "ses_01KAJ5Y3C1V7W9C1R0N1F5M2QX", "message_id": "msg_01KAJ5Y6K4S9B2V9K4H3T1D8ZE", "index": 7, "token": "tomorrow "}},
    "an offer": {"event": "offer:new", "topic": "user:clara", "offset": 12, "data": {"request_id": "req_01KAJ5Y6K52M2T7H6ZKXJ0Q4PN", "offer": {
        "id": "off_01KAJ5Y6M8XW1R5D3G7B9C2VFA", "request_id": "req_01KAJ5Y6K52M2T7H6ZKXJ0Q4PN", "provider_id": "prv_demo_berlin_07",
        "provider_name": "Salon Mirela", "service": "haircut", "starts_at": "2026-11-23T16:00:00Z", "ends_at": "2026-11-23T16:45:00Z",
        "price": {"amount_minor": 4500, "currency": "EUR"}, "score": 0.873, "parts": {"skill": 0.3, "location": 0.231, "availability": 0.2,
        "price": 0.052, "rating": 0.078, "response": 0.012}, "status": "open", "expires_at": "2026-11-22T12:00:00Z", "message": PAYLOAD}}},
}


def micros(work):
    best = 1e9
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2_000):
            work()
        best = min(best, (time.perf_counter() - began) / 2_000 * 1e6)
    return best


def deflated(text, compressor):
    return compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)


print("bytes; zlib's time (level 1) a message")
for name, frame in FRAMES.items():
    text = json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()
    alone = len(deflated(text, zlib.compressobj(1, zlib.DEFLATED, -15))) - 4
    shared = zlib.compressobj(1, zlib.DEFLATED, -15)
    for n in range(50):
        again = text.replace(b"1", str(n % 10).encode())
        kept = len(deflated(again, shared)) - 4
    keeping = zlib.compressobj(1, zlib.DEFLATED, -15)
    print(
        f"  {name:<18} JSON {len(text):>4}   MessagePack {len(msgpack.packb(frame)):>4}   deflate {alone:>4}, "
        f"with a context of the connection {kept:>3}, {micros(lambda: deflated(text, keeping)):>5.1f} us"
    )
