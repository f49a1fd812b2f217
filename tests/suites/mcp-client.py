"""A client of the Python SDK lists and calls everything: mcp-client.py WHERE MODE. WHERE is an address, or a program."""

import asyncio
import os
import shlex
import sys

import mcp
from mcp import types

TEXT = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros"


async def person(_context, params):
    values = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "array": []}
    fields = params.requested_schema["properties"].items()
    content = {name: field.get("enum", [values[field["type"]]])[0] for name, field in fields}
    return types.ElicitResult(action="accept", content=content)


async def model(_context, _params):
    content = types.TextContent(type="text", text="Paris")
    return types.CreateMessageResult(role="assistant", content=content, model="none", stop_reason="endTurn")


async def folders(_context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///suite")])


async def main(where: str, mode: str) -> None:
    asked = dict(elicitation_callback=person, sampling_callback=model, list_roots_callback=folders)
    if not where.startswith("http"):
        command, *args = shlex.split(where)
        where = mcp.stdio_client(mcp.StdioServerParameters(command=command, args=args, env=dict(os.environ)))
    async with mcp.Client(where, mode=mode, **asked) as client:
        tools = (await client.list_tools()).tools
        for tool in tools:
            # A wrong id is a tool's answer, too: it has to be one that the client can read.
            required = tool.input_schema.get("required", [])
            await client.call_tool(tool.name, {field: "x_1" for field in required})
        resources = (await client.list_resources()).resources
        for resource in resources:
            await client.read_resource(str(resource.uri))
        templates = (await client.list_resource_templates()).resource_templates
        prompts = (await client.list_prompts()).prompts
        for prompt in prompts:
            required = [argument.name for argument in prompt.arguments or [] if argument.required]
            await client.get_prompt(prompt.name, {name: "a haircut" for name in required})
        greeting = await client.call_tool("test_elicitation", {"message": "Who are you?"})
        assert "username" in greeting.content[0].text, greeting
        created = await client.call_tool("create_service_request", {"text": TEXT})
        assert created.structured_content["id"], created
        listed = ", ".join(str(len(each)) for each in [tools, resources, templates, prompts])
        print(f"{client.protocol_version}: {listed} tools, resources, templates, prompts; all called")


asyncio.run(main(*sys.argv[1:]))
