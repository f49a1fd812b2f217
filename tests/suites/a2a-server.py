"""An agent of the Python SDK, for our client. It prints its address."""

import asyncio
import socket

import uvicorn
from a2a.helpers import new_data_part, new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import a2a_pb2 as a2a
from starlette.applications import Starlette


class Agent(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        said = context.get_user_input()
        if said.startswith("say "):
            await event_queue.enqueue_event(new_text_message(said.removeprefix("say ")))
            return
        if not context.current_task:
            await event_queue.enqueue_event(new_task_from_user_message(context.message))
        task = TaskUpdater(event_queue, context.task_id, context.context_id)
        match said:
            case "ask me":
                await task.requires_input(new_text_message("which?"))
            case "sleep":
                await asyncio.sleep(30)
            case _:
                await task.add_artifact([new_data_part({"heard": said})], name="result")
                await task.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    card = a2a.AgentCard(
        name="theirs",
        description="An agent of somebody's",
        version="1",
        capabilities=a2a.AgentCapabilities(),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain", "application/json"],
        supported_interfaces=[
            a2a.AgentInterface(url=f"{url}/rpc", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        skills=[a2a.AgentSkill(id="all", name="All", description="Whatever", tags=["x"])],
    )
    handler = DefaultRequestHandlerV2(agent_executor=Agent(), task_store=InMemoryTaskStore(), agent_card=card)
    routes = create_agent_card_routes(agent_card=card) + create_jsonrpc_routes(handler, "/rpc")
    print(url, flush=True)
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning"))
    server.run(sockets=[listening])


main()
