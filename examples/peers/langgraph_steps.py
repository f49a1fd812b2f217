"""Durable steps of LangGraph with its PostgreSQL checkpointer: a chain of nodes, one run and many.

usage: langgraph_steps.py DATABASE_URL STEPS RUNS [MODEL_URL]; prints seconds of one run, and of RUNS at once. The nodes do
nothing; with a model every second one asks it.
"""

import http.client
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict
from urllib.parse import urlsplit

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

url, steps, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = urlsplit(sys.argv[4]) if len(sys.argv) > 4 else None
connections = threading.local()


class State(TypedDict):
    n: int


def act(state):
    return {"n": state["n"] + 1}


def think(state):
    if not hasattr(connections, "model"):
        connections.model = http.client.HTTPConnection(model.hostname, model.port)
    messages = [{"role": "user", "content": "count"}] + [{"role": "tool", "content": "x"}] * (state["n"] // 2)
    body = json.dumps({"model": "fake", "stream": True, "messages": messages})
    connections.model.request("POST", model.path + "chat/completions", body, {"content-type": "application/json"})
    answer = connections.model.getresponse().read().decode()
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: {")]
    assert [json.loads(line) for line in lines]
    return act(state)


def build(saver):
    graph = StateGraph(State)
    for n in range(steps):
        graph.add_node(f"n{n}", think if model and n % 2 == 0 else act)
    graph.add_edge(START, "n0")
    for n in range(1, steps):
        graph.add_edge(f"n{n - 1}", f"n{n}")
    graph.add_edge(f"n{steps - 1}", END)
    return graph.compile(checkpointer=saver)


options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
with ConnectionPool(url, min_size=1, max_size=20, kwargs=options) as pool:
    saver = PostgresSaver(pool)
    saver.setup()
    app = build(saver)

    def one(name):
        config = {"configurable": {"thread_id": name}, "recursion_limit": steps + 5}
        assert app.invoke({"n": 0}, config, durability="sync")["n"] == steps

    one(f"warm-{time.time_ns()}")
    at = time.perf_counter()
    one(f"one-{time.time_ns()}")
    alone = time.perf_counter() - at
    at = time.perf_counter()
    with ThreadPoolExecutor(runs) as threads:
        list(threads.map(one, [f"r{n}-{time.time_ns()}" for n in range(runs)]))
    print(alone, time.perf_counter() - at, flush=True)
