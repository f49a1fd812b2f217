// A client of the TypeScript SDK lists and calls everything: mcp-client.mjs WHERE CLIENT, next to its packages. WHERE is an
// address, or a program with its arguments.
const [, , where, which] = process.argv;
const isSdk = which.startsWith("sdk");
const sdk = "@modelcontextprotocol/sdk/";
const next = "@modelcontextprotocol/client";
const [{ Client }, { StreamableHTTPClientTransport }, { StdioClientTransport }] = await Promise.all(
  (isSdk ? [`${sdk}client/index.js`, `${sdk}client/streamableHttp.js`, `${sdk}client/stdio.js`] : [next, next, `${next}/stdio`]).map(
    (name) => import(name),
  ),
);
const mode = which.endsWith("legacy") ? "legacy" : "auto";
const capabilities = { elicitation: {}, sampling: {}, roots: {} };
const client = new Client({ name: "suite", version: "1" }, { capabilities, versionNegotiation: { mode } });
const values = { string: "x", integer: 1, number: 1, boolean: true, array: [] };
const filled = ({ params }) =>
  Object.fromEntries(Object.entries(params.requestedSchema.properties).map(([name, field]) => [name, field.enum?.[0] ?? values[field.type]]));
const handlers = {
  "elicitation/create": async (asked) => ({ action: "accept", content: filled(asked) }),
  "sampling/createMessage": async () => ({ role: "assistant", content: { type: "text", text: "Paris" }, model: "none", stopReason: "endTurn" }),
  "roots/list": async () => ({ roots: [{ uri: "file:///suite" }] }),
};
const types = isSdk ? await import(`${sdk}types.js`) : undefined;
const schemas = { "elicitation/create": "ElicitRequestSchema", "sampling/createMessage": "CreateMessageRequestSchema", "roots/list": "ListRootsRequestSchema" };
for (const [method, handler] of Object.entries(handlers)) client.setRequestHandler(types ? types[schemas[method]] : method, handler);
const [command, ...args] = where.split(" ");
const transport = where.startsWith("http")
  ? new StreamableHTTPClientTransport(new URL(where))
  : new StdioClientTransport({ command, args, env: process.env });
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
for (const { name, arguments: asked } of prompts) {
  const required = (asked ?? []).filter((one) => one.required).map((one) => [one.name, "a haircut"]);
  await client.getPrompt({ name, arguments: Object.fromEntries(required) });
}
const greeting = await client.callTool({ name: "test_elicitation", arguments: { message: "Who are you?" } });
if (!greeting.content[0].text.includes("username")) throw new Error(JSON.stringify(greeting));
const text = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
const created = await client.callTool({ name: "create_service_request", arguments: { text } });
if (!created.structuredContent?.id) throw new Error(JSON.stringify(created));
const listed = [tools, resources, resourceTemplates, prompts].map((list) => list.length).join(", ");
console.log(`${listed} tools, resources, templates, prompts; all called`);
await client.close();
