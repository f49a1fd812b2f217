// The protocol's own conformance suite against the door for agents: mcp.mjs PROXIE, from the root, on Node.js 22 or later.
// The suite knows no tokens, so a proxy in between adds one, and passes on everything else as it is. Every scenario that
// fails must be declined here, with the reason.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync } from "node:fs";
import { createServer, request } from "node:http";
import { join, resolve } from "node:path";
import { serve } from "./node.mjs";

const PACKAGES = ["conformance@0.2.0-alpha.12", "sdk@1.32.2", "client@2.4.0", "inspector@2.12.0"];
const PYTHON = "mcp==2.3.0";
const proxie = resolve(process.argv[2]);
const folder = resolve("target/suites/mcp");

const FIXTURE = "it calls a tool or prompt, or reads a resource, that test servers have";
const UNUSED = "no operation needs it, so the capability is not declared";
const ASKS = "a tool here asks its person nothing in the middle of a call";
const all = (reason, ...names) => Object.fromEntries(names.map((name) => [name, reason]));
const everywhere = {
  ...all(
    FIXTURE,
    "tools-call-simple-text",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "tools-call-error",
    "tools-call-with-progress",
    "resources-read-text",
    "resources-read-binary",
    "resources-templates-read",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-embedded-resource",
    "prompts-get-with-image",
  ),
  ...all(UNUSED, "completion-complete"),
};
const declined = {
  "2026-07-28": {
    ...everywhere,
    // Four of its 25 checks; the others pass.
    ...all(FIXTURE, "server-stateless"),
    ...all(
      ASKS,
      ...["basic-elicitation", "basic-sampling", "basic-list-roots", "request-state", "multiple-input-requests"].map(
        (name) => `input-required-result-${name}`,
      ),
      ...["multi-round", "non-tool-request", "result-type", "tampered-state", "capability-check"].map(
        (name) => `input-required-result-${name}`,
      ),
    ),
  },
  "2025-11-25": {
    ...everywhere,
    ...all(UNUSED, "logging-set-level", "tools-call-with-logging", "resources-subscribe", "resources-unsubscribe"),
    ...all(ASKS, "tools-call-sampling", "tools-call-elicitation", "elicitation-sep1034-defaults", "elicitation-sep1330-enums"),
  },
};

function must(command, ...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", timeout: 600_000 });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** Runs a program beside the node, which answers in this process. */
function ran(command, ...args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: 120_000 });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (said += text));
  return new Promise((ended) => child.once("exit", (code) => ended({ code, said })));
}

function install() {
  if (existsSync(join(folder, "installed"))) return;
  mkdirSync(folder, { recursive: true });
  const packages = PACKAGES.map((name) => `@modelcontextprotocol/${name}`);
  must("npm", "install", "--prefix", folder, "--no-audit", "--no-fund", ...packages);
  must("python3", "-m", "venv", join(folder, "python"));
  must(join(folder, "python/bin/pip"), "install", "--quiet", PYTHON);
  mkdirSync(join(folder, "installed"));
}

/** Passes requests on with the node's token, to one node after the other. */
function between(nodes) {
  let turn = 0;
  const proxy = createServer((asked, answer) => {
    const { address, token } = nodes[turn++ % nodes.length];
    const { hostname, port } = new URL(address);
    const headers = { ...asked.headers, authorization: `Bearer ${token}` };
    const passed = request({ hostname, port, path: asked.url, method: asked.method, headers }, (answered) => {
      answer.writeHead(answered.statusCode, answered.headers);
      answered.pipe(answer);
    });
    passed.on("error", () => answer.destroy());
    answer.on("close", () => passed.destroy());
    asked.pipe(passed);
  });
  return new Promise((listening) => proxy.listen(0, "127.0.0.1", () => listening(proxy)));
}

/** The outcome of each scenario that a revision requires. */
async function run(url, revision) {
  const entry = join(folder, "node_modules/@modelcontextprotocol/conformance/dist/index.js");
  const { said } = await ran(process.execPath, entry, "server", "--url", url, "--requirements", revision);
  const [scored, unscored] = said.slice(said.indexOf("=== SUMMARY ===")).split("Not scored for");
  if (!unscored) throw new Error(`the suite did not run: ${said.slice(-2000)}`);
  const outcomes = new Map();
  for (const [, name, passed, failed] of scored.matchAll(/^[✓✗] (\S+): (\d+) passed, (\d+) failed$/gm)) {
    if (!unscored.includes(` ${name} (`)) outcomes.set(name, { passed: Number(passed), failed: Number(failed) });
  }
  return outcomes;
}

/** Prints what has passed, and whether all that failed is declined. */
function judged(revision, outcomes) {
  const sum = (field) => [...outcomes.values()].reduce((sum, outcome) => sum + outcome[field], 0);
  const failed = [...outcomes].filter(([, outcome]) => outcome.failed > 0).map(([name]) => name);
  const wrong = failed.filter((name) => !(name in declined[revision]));
  const unknown = Object.keys(declined[revision]).filter((name) => !failed.includes(name));
  console.log(
    `MCP ${revision}: ${outcomes.size - failed.length} of ${outcomes.size} required scenarios pass, ` +
      `${failed.length - wrong.length} are declined; ${sum("passed")} checks pass, ${sum("failed")} fail`,
  );
  for (const [name, why] of Object.entries(declined[revision])) console.log(`  declined: ${name} (${why})`);
  for (const name of wrong) console.log(`  FAILED: ${name}`);
  for (const name of unknown) console.log(`  PASSES, though it is declined: ${name}`);
  return outcomes.size > 0 && wrong.length + unknown.length === 0;
}

/** Clients that others write list and call everything. */
async function clients(url) {
  const script = join(folder, "client.mjs");
  copyFileSync("tests/suites/mcp-client.mjs", script);
  const python = (mode) => ran(join(folder, "python/bin/python"), "tests/suites/mcp-client.py", url, mode);
  const typescript = (which) => ran(process.execPath, script, url, which);
  const inspector = (...args) =>
    ran(process.execPath, join(folder, "node_modules/.bin/mcp-inspector"), "--cli", url, "--method", ...args);
  let good = true;
  for (const [name, client] of [
    ["Python 2.3", () => python("auto")],
    ["Python 2.3, legacy", () => python("legacy")],
    ["sdk 1.32", () => typescript("sdk 1.32")],
    ["client 2.4", () => typescript("client 2.4")],
    ["client 2.4, legacy", () => typescript("client 2.4, legacy")],
    ["Inspector 2.12, tools/list", () => inspector("tools/list")],
    ["Inspector 2.12, tools/call", () => inspector("tools/call", "--tool-name", "list_devices")],
    ["Inspector 2.12, resources/list", () => inspector("resources/list")],
    ["Inspector 2.12, prompts/list", () => inspector("prompts/list")],
  ]) {
    const { code, said } = await client();
    const last = said.trim().split("\n").at(-1);
    console.log(code === 0 ? `${name}: good ${last.length > 3 ? last : ""}` : `FAILED: ${name}: ${said.slice(-2000)}`);
    good &&= code === 0;
  }
  return good;
}

install();
const node = await serve(proxie, "", { PROXIE__GATEWAY__REQUESTS_PER_MINUTE: "100000", PROXIE__LOG__LEVEL: "warn" });
const proxy = await between([node]);
const url = `http://localhost:${proxy.address().port}/mcp`;
let good = true;
try {
  for (const revision of Object.keys(declined)) good = judged(revision, await run(url, revision)) && good;
  good = (await clients(url)) && good;
} finally {
  proxy.close();
  await node.stop();
}
process.exit(good ? 0 : 1);
