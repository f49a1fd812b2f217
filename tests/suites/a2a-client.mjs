// A client of the TypeScript SDK calls everything that an agent offers: a2a-client.mjs AGENT BINDING DAYS, with PROXIE_TOKEN.
// It lies beside the package when it runs.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import {
  CancelTaskRequest,
  DeleteTaskPushNotificationConfigRequest,
  GetTaskPushNotificationConfigRequest,
  GetTaskRequest,
  ListTaskPushNotificationConfigsRequest,
  ListTasksRequest,
  SendMessageRequest,
  SubscribeToTaskRequest,
  Task,
  TaskPushNotificationConfig,
  TaskState,
} from "@a2a-js/sdk";
import { ClientFactory, DefaultAgentCardResolver, JsonRpcTransportFactory, RestTransportFactory } from "@a2a-js/sdk/client";
import { TaskNotCancelableError, TaskNotFoundError } from "@a2a-js/sdk/errors";

const [url, binding, days] = process.argv.slice(2);
const HOOK = "http://127.0.0.1:9/hook";
const authorised = (address, init = {}) => {
  const headers = new Headers(init.headers);
  headers.set("authorization", `Bearer ${process.env.PROXIE_TOKEN}`);
  return fetch(address, { ...init, headers });
};
const Transport = binding === "JSONRPC" ? JsonRpcTransportFactory : RestTransportFactory;
const factory = new ClientFactory({
  transports: [new Transport({ fetchImpl: authorised })],
  preferredTransports: [binding],
  cardResolver: new DefaultAgentCardResolver({ fetchImpl: authorised }),
});
const client = await factory.createFromUrl(`${url}/agent-card.json`, "");

let hours = 0;
const wish = () => ({
  ask: {
    service: "haircut",
    place: "Alexanderplatz, Berlin",
    starts_at: new Date(Date.now() + days * 86_400_000 + (hours += 4) * 3_600_000).toISOString(),
    budget: { amount_minor: 6000, currency: "EUR" },
  },
});
const message = (data, task) =>
  SendMessageRequest.fromJSON({
    message: {
      messageId: randomUUID(),
      role: "ROLE_USER",
      parts: [{ data, mediaType: "application/json" }],
      ...(task && { taskId: task.id, contextId: task.contextId }),
    },
  });
const get = (id) => client.getTask(GetTaskRequest.fromJSON({ id }));
const is = (task, state) => assert.equal(task.status.state, TaskState[state], JSON.stringify(Task.toJSON(task)));

async function streamed(request) {
  let id;
  for await (const { payload } of client.sendMessageStream(request)) {
    if (payload.$case === "task") id = payload.value.id;
    else assert.equal(payload.value.taskId, id);
  }
  return get(id);
}

async function negotiate(send) {
  const task = await send(message(wish()));
  is(task, "TASK_STATE_INPUT_REQUIRED");
  const { offer } = Task.toJSON(task).artifacts[0].parts[0].data;
  const done = await send(message({ accept: { offer_id: offer.id } }, task));
  is(done, "TASK_STATE_COMPLETED");
  assert(done.artifacts.some(({ name }) => name === "booking"));
}

await negotiate(streamed);
await negotiate((request) => client.sendMessage(request));

const task = await streamed(message(wish()));
const listed = await client.listTasks(ListTasksRequest.fromJSON({ pageSize: 2, includeArtifacts: true }));
assert.equal(listed.tasks[0].id, task.id);
assert(listed.nextPageToken);
const ofTask = { taskId: task.id, id: "hook" };
const made = await client.createTaskPushNotificationConfig(TaskPushNotificationConfig.fromJSON({ ...ofTask, url: HOOK }));
assert.equal(made.url, HOOK);
const seen = await client.getTaskPushNotificationConfig(GetTaskPushNotificationConfigRequest.fromJSON(ofTask));
assert.equal(seen.url, HOOK);
const all = () => client.listTaskPushNotificationConfig(ListTaskPushNotificationConfigsRequest.fromJSON({ taskId: task.id }));
assert.equal((await all()).configs.length, 1);
await client.deleteTaskPushNotificationConfig(DeleteTaskPushNotificationConfigRequest.fromJSON(ofTask));
assert.equal((await all()).configs.length, 0);

const stream = client.resubscribeTask(SubscribeToTaskRequest.fromJSON({ id: task.id }));
const first = await stream.next();
assert.equal(first.value.payload.value.id, task.id);
is(await client.cancelTask(CancelTaskRequest.fromJSON({ id: task.id })), "TASK_STATE_CANCELED");
let last;
for await (const { payload } of stream) last = payload;
assert.equal(last.value.status.state, TaskState.TASK_STATE_CANCELED);

await assert.rejects(get("task_unknown"), TaskNotFoundError);
await assert.rejects(client.cancelTask(CancelTaskRequest.fromJSON({ id: task.id })), TaskNotCancelableError);
const { version } = JSON.parse(readFileSync("node_modules/@a2a-js/sdk/package.json", "utf8"));
console.log(`@a2a-js/sdk ${version}, ${binding}: all called`);
