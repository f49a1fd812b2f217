// A client of the TypeScript SDK lists and calls everything: mcp-client.mjs URL CLIENT, next to its packages.
const [, , url, which] = process.argv;
const modules = {
  "sdk 1.32": ["@modelcontextprotocol/sdk/client/index.js", "@modelcontextprotocol/sdk/client/streamableHttp.js"],
  "client 2.4": ["@modelcontextprotocol/client", "@modelcontextprotocol/client"],
  "client 2.4, legacy": ["@modelcontextprotocol/client", "@modelcontextprotocol/client"],
};
const [{ Client }, { StreamableHTTPClientTransport }] = await Promise.all(modules[which].map((name) => import(name)));
const mode = which.endsWith("legacy") ? "legacy" : "auto";
const client = new Client({ name: "suite", version: "1" }, { versionNegotiation: { mode } });
const transport = new StreamableHTTPClientTransport(new URL(url));
await client.connect(transport);
const { tools } = await client.listTools();
for (const { name, inputSchema } of tools) {
  // A wrong id is a tool's answer, too: it has to be one that the client can read.
  const args = Object.fromEntries((inputSchema.required ?? []).map((field) => [field, "x_1"]));
  await client.callTool({ name, arguments: args });
}
const { resources } = await client.listResources();
for (const { uri } of resources) await client.readResource({ uri });
const { resourceTemplates } = await client.listResourceTemplates();
const { prompts } = await client.listPrompts();
for (const { name } of prompts) await client.getPrompt({ name, arguments: { wish: "a haircut" } });
const text = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
const created = await client.callTool({ name: "create_service_request", arguments: { text } });
if (!created.structuredContent?.id) throw new Error(JSON.stringify(created));
const listed = [tools, resources, resourceTemplates, prompts].map((list) => list.length).join(", ");
console.log(`${which}, ${transport.protocolVersion}: ${listed} tools, resources, templates, prompts; all called`);
await client.close();
