// The protocol suites of Engine.IO v4 and Socket.IO v5, which are other people's, against a node: socketio.mjs PROXIE,
// from the root. They are cloned to target/suites, or found there. What they send and expect is changed where a token is
// needed, or an echo: a node repeats nothing, but it answers. Every change must find its place, and every test that fails
// must be declined here, as docs/protocol.md does.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { serve } from "./node.mjs";

const proxie = resolve(process.argv[2]);
const folder = resolve("target/suites");

/** Answers without a token, and says what it was sent: a namespace that does not exist. */
const echo = (name) => [`40/${name},`, `44/${name},{"message":"Invalid namespace"}`];
/** Messages come one at a time, as in a browser. Else the suites miss the second of two that come together. */
const ONE_AT_A_TIME = [
  /await import\("\.\/node-imports\.js"\);/,
  `$&
  const Ws = globalThis.WebSocket;
  globalThis.WebSocket = class extends Ws {
    constructor(url) {
      super(url, { allowSynchronousEvents: false });
    }
  };`,
];
const NAMESPACES = "there is one namespace, /";
const BINARY = "binary data is refused: all that is said here is JSON";

const suites = (token) => [
  {
    name: "engine.io-protocol",
    commit: "f21de7b",
    changes: [
      ONE_AT_A_TIME,
      [/\/engine\.io\//g, "/socket.io/"],
      [/send\("4hello"\)/g, `send("${echo("hello")[0]}")`],
      [/body: "4hello"/g, `body: "${echo("hello")[0]}"`],
      [/eql\("4hello"\)/g, `eql('${echo("hello")[1]}')`],
      [/body: "4test1\\x1e4test2\\x1e4test3"/, `body: "${[1, 2, 3].map((n) => echo(`test${n}`)[0]).join("\\x1e")}"`],
      [/eql\("4test1\\x1e4test2\\x1e4test3"\)/, `eql('${[1, 2, 3].map((n) => echo(`test${n}`)[1]).join("\\x1e")}')`],
    ],
    declined: {
      "sends and receives a payload containing plain text and binary packets": BINARY,
      "sends and receives a binary packet": BINARY,
    },
  },
  {
    name: "socket.io-protocol",
    commit: "4f633dd",
    changes: [
      ONE_AT_A_TIME,
      [/socket\.send\("40"\)/g, `socket.send('40{"token":"${token}"}')`],
      [/40\{"token":"123"\}/, `40{"token":"${token}"}`],
      [/data\)\.to\.eql\('42\["auth",\{(?:"token":"123")?\}\]'\)/g, `data).to.startsWith('42["auth",{"connection_id":')`],
      // Whoever joins listens to the topic that events come back on.
      [
        /(await waitFor\(socket, "message"\);) \/\/ "auth" packet/,
        `$1 socket.send('420["topic:subscribe",{"topic":"app:echo"}]'); $1`,
      ],
      [
        /send\('42\["message",1,"2",\{"3":\[true\]\}\]'\)/,
        `send('42["topic:publish",{"topic":"app:echo","event":"app:message-back","data":[1,"2",{"3":[true]}]}]')`,
      ],
      [
        /eql\('42\["message-back",1,"2",\{"3":\[true\]\}\]'\)/,
        `eql('42["app:message-back",[1,"2",{"3":[true]}],{"topic":"app:echo","from":"clara"}]')`,
      ],
      [/send\('42456\["message-with-ack",1,"2",\{"3":\[false\]\}\]'\)/, `send('42456["ping",{"3":[false]}]')`],
      [/eql\('43456\[1,"2",\{"3":\[false\]\}\]'\)/, `startsWith('43456[{"ok":true,"data":{"now":')`],
    ],
    declined: {
      "should allow connection to a custom namespace": NAMESPACES,
      "should allow connection to a custom namespace with a payload": NAMESPACES,
      "should connect then disconnect from a custom namespace": NAMESPACES,
      "should send a packet with binary attachments": BINARY,
      "should send a packet with binary attachments and an ack": BINARY,
    },
  },
];

function must(command, args, cwd) {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** The folder of a suite with its packages. */
function installed({ name, commit }) {
  const suite = join(folder, name);
  if (!existsSync(suite)) {
    mkdirSync(folder, { recursive: true });
    must("git", ["clone", "--quiet", `https://github.com/socketio/${name}.git`, suite]);
    must("git", ["checkout", "--quiet", commit], suite);
  }
  const tests = join(suite, "test-suite");
  if (!existsSync(join(tests, "node_modules", ".adapted"))) {
    must("npm", ["ci", "--no-audit", "--no-fund"], tests);
    must("npm", ["install", "--no-save", "--no-audit", "--no-fund", "ws@8.18.3"], tests);
    writeFileSync(join(tests, "node_modules", ".adapted"), "");
  }
  return tests;
}

function run(suite, address) {
  const tests = installed(suite);
  let text = readFileSync(join(tests, "test-suite.js"), "utf8");
  for (const [from, to] of [["http://localhost:3000", address], ...suite.changes]) {
    const changed = text.replace(from, to);
    if (changed === text) throw new Error(`${suite.name} is not what it was: ${from} is not in it`);
    text = changed;
  }
  writeFileSync(join(tests, "adapted.js"), text);
  // They know of no machine that is busy.
  const mocha = ["mocha", "--exit", "--retries", "2", "--reporter", "json", "adapted.js"];
  const { stdout, stderr } = spawnSync("npx", mocha, { cwd: tests, encoding: "utf8" });
  const start = stdout.indexOf("{\n");
  if (start < 0) throw new Error(`${suite.name} did not run: ${stdout}${stderr}`);
  const { tests: all, failures } = JSON.parse(stdout.slice(start));
  const failed = new Map(failures.map(({ title, fullTitle, err }) => [title, `${fullTitle}: ${err.message}`]));
  const wrong = [...failed].filter(([title]) => !(title in suite.declined)).map(([, why]) => why);
  const unknown = Object.keys(suite.declined).filter((title) => !failed.has(title));
  console.log(`${suite.name}: ${all.length - failures.length} of ${all.length} pass, ${failures.length - wrong.length} are declined`);
  for (const [title, why] of Object.entries(suite.declined)) console.log(`  declined: ${title} (${why})`);
  for (const why of wrong) console.log(`  FAILED: ${why}`);
  for (const title of unknown) console.log(`  PASSES, though it is declined: ${title}`);
  return wrong.length + unknown.length === 0;
}

const grant = '[[topics.grants]]\ntopic = "app:echo"\npublish = ["consumer"]\nsubscribe = ["consumer"]\n';
const node = await serve(proxie, grant, {
  PROXIE__WEBSOCKET__PING_MS: "300",
  PROXIE__WEBSOCKET__PONG_TIMEOUT_MS: "200",
  PROXIE__WEBSOCKET__CONNECT_TIMEOUT_MS: "1000",
  PROXIE__WEBSOCKET__MAX_FRAME_BYTES: "1000000",
});
let good = true;
try {
  for (const suite of suites(node.token)) good = run(suite, node.address) && good;
} finally {
  await node.stop();
}
process.exit(good ? 0 : 1);
