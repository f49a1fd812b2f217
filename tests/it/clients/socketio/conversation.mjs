// Socket.IO's own client against a node: conversation.mjs URL, tokens in PROXIE_TOKEN and PROXIE_TOKEN_OTHER. It says
// "drain" when the node behind URL is to be drained, and waits for a line.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url] = process.argv.slice(2);
const token = process.env.PROXIE_TOKEN;
const SENTENCE = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

/** A client that keeps what it hears, and where it stands. */
function client(auth, options = {}) {
  const heard = [];
  const positions = {};
  const socket = io(url, {
    auth: (use) => use({ ...auth, positions }),
    reconnectionDelay: 50,
    reconnectionDelayMax: 500,
    timeout: 10_000,
    ...options,
  });
  let epoch;
  socket.on("auth", ({ topics }) => {
    for (const [topic, { position, recovered, error }] of Object.entries(topics)) {
      assert.equal(error, undefined);
      epoch = position.epoch;
      heard.push({ name: "subscribed", topic, recovered });
      positions[topic] ??= position;
    }
  });
  socket.onAny((name, data, place) => {
    heard.push({ name, data, place });
    if (place?.offset !== undefined) positions[place.topic] = { epoch, offset: place.offset };
  });
  const until = async (name, matches = () => true) => {
    for (const end = Date.now() + 60_000; Date.now() < end; ) {
      const found = heard.find((event) => event.name === name && matches(event));
      if (found) return found;
      await new Promise((wake) => setTimeout(wake, 20));
    }
    assert.fail(`${name} did not come: ${JSON.stringify(heard)}`);
  };
  const ask = async (event, data) => {
    const answer = await socket.timeout(30_000).emitWithAck(event, data);
    assert.equal(answer.ok, true, JSON.stringify(answer));
    return answer.data;
  };
  const refused = async (event, data) => {
    const answer = await socket.timeout(30_000).emitWithAck(event, data);
    assert.equal(answer.ok, false, JSON.stringify(answer));
    return answer.error;
  };
  return { socket, heard, positions, until, ask, refused };
}

const connected = (socket) => once(socket, "connect");

/** From a sentence to a booking, over this transport. */
async function books(transports) {
  const clara = client({ token }, { transports });
  await connected(clara.socket);
  const { data: welcome } = await clara.until("auth");
  assert.equal(welcome.user_id, "clara");
  const { session_id } = await clara.ask("session:open", { time_zone: "Europe/Berlin" });
  const id = `once-${transports.join("")}`;
  const first = await clara.ask("chat:message", { id, session_id, content: SENTENCE });
  // The same id again has no second effect.
  assert.deepEqual(await clara.ask("chat:message", { id, session_id, content: SENTENCE }), first);
  assert.equal(
    (await clara.refused("chat:message", { id, session_id, content: "other" })).code,
    "id_reused",
  );
  const answered = await clara.until("chat:response");
  assert.equal(answered.data.session_id, session_id);
  assert.equal(answered.place.topic, `session:${session_id}`);
  assert.ok(clara.heard.some(({ name }) => name === "chat:stream"));
  const { data } = await clara.until("offer:new", ({ data }) => data.offer.state !== "withdrawn");
  const { booking_id } = await clara.ask("offer:accept", { offer_id: data.offer.id });
  const confirmed = await clara.until("booking:confirmed");
  assert.equal(confirmed.data.booking.id, booking_id);
  assert.equal(clara.heard.filter(({ name }) => name === "chat:message").length, 1);
  return { clara, session_id };
}

async function refusals(clara) {
  assert.equal((await clara.refused("no:such", {})).code, "bad_request");
  assert.equal((await clara.refused("chat:message", { session_id: 7 })).code, "bad_request");
  assert.equal((await clara.refused("chat:message", "text")).code, "bad_request");
  assert.equal((await clara.refused("topic:subscribe", { topic: "user:bob" })).code, "forbidden");
  assert.equal(
    (await clara.refused("topic:subscribe", { topic: "session:ses_none" })).code,
    "not_found",
  );
  // Who does not wait for an answer hears of a refusal all the same.
  clara.socket.emit("no:such", {});
  assert.equal((await clara.until("error")).data.code, "bad_request");

  for (const [auth, query] of [
    [{}, { token }],
    [{ token: "not-a-token" }, {}],
  ]) {
    const stranger = client(auth, { query, transports: ["websocket"] });
    const [error] = await once(stranger.socket, "connect_error");
    assert.equal(error.data.code, "unauthenticated", JSON.stringify(error));
    assert.equal(stranger.socket.active, false, "it does not come back as it is");
  }
  const elsewhere = io(`${url}/admin`, { auth: { token }, forceNew: true });
  const [error] = await once(elsewhere, "connect_error");
  assert.equal(error.message, "Invalid namespace");
  elsewhere.disconnect();
}

const lines = createInterface({ input: process.stdin });
async function please(what) {
  console.log(what);
  await once(lines, "line");
}

// As browsers do it: long polling first, then WebSocket.
const { clara, session_id } = await books(["polling", "websocket"]);
assert.equal(clara.socket.io.engine.transport.name, "websocket");
await refusals(clara);
const polling = await books(["polling"]);
assert.equal(polling.clara.socket.io.engine.transport.name, "polling");
polling.clara.socket.disconnect();

// Whoever was away is told what was said meanwhile, once and in order.
const topic = `session:${session_id}`;
clara.socket.disconnect();
const tablet = client({ token }, { transports: ["websocket"], forceNew: true });
await connected(tablet.socket);
await tablet.ask("session:open", { session_id });
// More than one answer of a long poll holds, with which the client comes back.
const long = Array.from({ length: 60 }, (_, n) => `${n} ${"x".repeat(1_900)}`);
for (const content of [...long, "one", "two"]) await tablet.ask("chat:message", { session_id, content });
const before = clara.positions[topic].offset;
clara.heard.length = 0;
clara.socket.connect();
await connected(clara.socket);
await clara.until("chat:message", ({ data }) => data.content === "two");
assert.equal((await clara.until("subscribed", (event) => event.topic === topic)).recovered, true);
const offsets = () =>
  clara.heard.filter(({ place }) => place?.topic === topic && place.offset).map(({ place }) => place.offset);
assert.deepEqual(offsets(), offsets().map((_, n) => before + 1 + n));

// A node that goes says so, and its clients come back by themselves, to another one.
const away = once(clara.socket, "disconnect");
const back = connected(clara.socket);
await please("drain");
assert.equal((await away)[0], "transport close");
assert.equal((await clara.until("close")).data.code, 3000);
await back;
await tablet.until("close");
if (!tablet.socket.connected) await connected(tablet.socket);
await tablet.ask("chat:message", { session_id, content: "three" });
await clara.until("chat:message", ({ data }) => data.content === "three");
assert.deepEqual(offsets(), offsets().map((_, n) => before + 1 + n));

// A token that is revoked ends it for good.
const gone = once(clara.socket, "disconnect");
await please("revoke");
assert.equal((await gone)[0], "io server disconnect");
assert.equal((await clara.until("close", ({ data }) => data.code !== 3000)).data.code, 3501);
assert.equal(clara.socket.active, false);
tablet.socket.disconnect();
console.log("ok");
process.exit(0);
