"""A client of the Python SDK calls everything that an agent offers: a2a-client.py AGENT BINDING DAYS, with PROXIE_TOKEN.

Its appointments are on the day so many days from now.
"""

import asyncio
import importlib.metadata
import itertools
import os
import sys
import uuid
from datetime import datetime, timedelta, timezone

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers import get_data_parts
from a2a.types import a2a_pb2 as a2a
from a2a.utils import errors
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

HOOK = "http://127.0.0.1:9/hook"


def message(data: dict, task: a2a.Task | None = None) -> a2a.SendMessageRequest:
    part = a2a.Part(data=ParseDict(data, Value()), media_type="application/json")
    sent = a2a.Message(message_id=str(uuid.uuid4()), role=a2a.ROLE_USER, parts=[part])
    if task:
        sent.task_id, sent.context_id = task.id, task.context_id
    return a2a.SendMessageRequest(message=sent)


hours = itertools.count(2, 4)


def wish(days: int) -> dict:
    at = (datetime.now(timezone.utc) + timedelta(days=days, hours=next(hours))).isoformat()
    budget = {"amount_minor": 6000, "currency": "EUR"}
    return {"ask": {"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at, "budget": budget}}


async def main(url: str, binding: str, days: str) -> None:
    headers = {"authorization": f"Bearer {os.environ['PROXIE_TOKEN']}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        assert [one.protocol_binding for one in card.supported_interfaces] == ["JSONRPC", "HTTP+JSON"], card
        assert card.skills and card.security_schemes["bearer"].http_auth_security_scheme.scheme == "Bearer"
        clients = [
            ClientFactory(
                ClientConfig(
                    httpx_client=http,
                    streaming=streaming,
                    supported_protocol_bindings=[binding],
                    use_client_preference=True,
                )
            ).create(card)
            for streaming in (True, False)
        ]
        for client in clients:
            await negotiate(client, int(days))
        await everything_else(clients[0], int(days))
    print(f"a2a-sdk {importlib.metadata.version('a2a-sdk')}, {binding}, {card.name}: all called")


async def last(client, request: a2a.SendMessageRequest) -> a2a.Task:
    task_id = None
    async for event in client.send_message(request):
        if event.HasField("task"):
            task_id = event.task.id
        elif event.HasField("status_update"):
            assert event.status_update.task_id == task_id
        else:
            assert event.artifact_update.task_id == task_id
    return await client.get_task(a2a.GetTaskRequest(id=task_id))


async def negotiate(client, days: int) -> None:
    task = await last(client, message(wish(days)))
    assert task.status.state == a2a.TASK_STATE_INPUT_REQUIRED, task
    offers = [data["offer"] for one in task.artifacts for data in get_data_parts(one.parts)]
    assert offers[0]["status"] == "open", offers
    done = await last(client, message({"accept": {"offer_id": offers[0]["id"]}}, task))
    assert done.status.state == a2a.TASK_STATE_COMPLETED, done
    assert any(one.name == "booking" for one in done.artifacts), done


async def everything_else(client, days: int) -> None:
    task = await last(client, message(wish(days)))
    listed = await client.list_tasks(a2a.ListTasksRequest(page_size=2, include_artifacts=True))
    assert listed.tasks[0].id == task.id and listed.next_page_token, listed
    config = a2a.TaskPushNotificationConfig(task_id=task.id, id="hook", url=HOOK, token="t")
    made = await client.create_task_push_notification_config(config)
    assert made.url == HOOK, made
    of_hook = a2a.GetTaskPushNotificationConfigRequest(task_id=task.id, id="hook")
    assert (await client.get_task_push_notification_config(of_hook)).token == "t"
    all_of_it = a2a.ListTaskPushNotificationConfigsRequest(task_id=task.id)
    assert len((await client.list_task_push_notification_configs(all_of_it)).configs) == 1
    gone = a2a.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="hook")
    await client.delete_task_push_notification_config(gone)
    assert not (await client.list_task_push_notification_configs(all_of_it)).configs

    stream = client.subscribe(a2a.SubscribeToTaskRequest(id=task.id))
    first = await anext(stream)
    assert first.task.id == task.id, first
    canceled = await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
    assert canceled.status.state == a2a.TASK_STATE_CANCELED, canceled
    states = [event.status_update.status.state async for event in stream if event.HasField("status_update")]
    assert states[-1] == a2a.TASK_STATE_CANCELED, states

    for call, error in [
        (client.get_task(a2a.GetTaskRequest(id="task_unknown")), errors.TaskNotFoundError),
        (client.cancel_task(a2a.CancelTaskRequest(id=task.id)), errors.TaskNotCancelableError),
    ]:
        try:
            await call
        except error:
            continue
        raise AssertionError(f"no {error}")


asyncio.run(main(*sys.argv[1:]))
