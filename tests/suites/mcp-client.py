"""A client of the Python SDK lists and calls everything: mcp-client.py URL MODE."""

import asyncio
import sys

import mcp

TEXT = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros"


async def main(url: str, mode: str) -> None:
    async with mcp.Client(url, mode=mode) as client:
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
            await client.get_prompt(prompt.name, {"wish": "a haircut"})
        created = await client.call_tool("create_service_request", {"text": TEXT})
        assert created.structured_content["id"], created
        listed = ", ".join(str(len(each)) for each in [tools, resources, templates, prompts])
        print(f"Python 2.3, {mode}, {client.protocol_version}: {listed} tools, resources, templates, prompts; all called")


asyncio.run(main(*sys.argv[1:]))
