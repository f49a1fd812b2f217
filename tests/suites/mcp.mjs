// The protocol's own conformance suite against the door for agents, and clients that others write: mcp.mjs PROXIE CONFORMANCE,
// from the root, on Node.js 22 or later. Both meet one node, and two behind a proxy that takes them in turn; the proxy
// also adds the token, which the suite knows nothing of, and passes on everything else as it is. The nodes have what the suite
// asks for besides the product's systems (examples/conformance). Every check of every required scenario must pass.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync } from "node:fs";
import { createServer, request } from "node:http";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const PACKAGES = ["conformance@0.2.0-alpha.12", "sdk@1.32.2", "client@2.4.0", "inspector@2.12.0"];
const PYTHON = "mcp==2.3.0";
const TOKEN = "a.b.c";
const INSPECTED = ["--cli", "-e", `PROXIE_TOKEN=${TOKEN}`];
const REVISIONS = ["2026-07-28", "2025-11-25"];
const [proxie, conformance] = process.argv.slice(2, 4).map((path) => resolve(path));
const folder = resolve("target/suites/mcp");

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

/** So many nodes on one database. */
async function start(count) {
  const child = spawn(conformance, ["nodes", count], { stdio: ["pipe", "pipe", "inherit"] });
  const nodes = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const [what, value] = line.split(" ");
    if (what === "node") nodes.push({ address: value });
    if (what === "token") nodes.at(-1).token = value;
    if (what === "ready") break;
  }
  if (nodes.length !== count) throw new Error("the nodes did not start");
  const stop = () => {
    child.stdin.end();
    return new Promise((ended) => child.once("exit", ended));
  };
  return { nodes, stop };
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

/** Prints what has passed, and whether all did. */
function judged(revision, count, outcomes) {
  const sum = (field) => [...outcomes.values()].reduce((sum, outcome) => sum + outcome[field], 0);
  const failed = [...outcomes].filter(([, outcome]) => outcome.failed > 0).map(([name]) => name);
  console.log(
    `MCP ${revision}, ${count} node(s): ${outcomes.size - failed.length} of ${outcomes.size} required scenarios pass; ` +
      `${sum("passed")} checks pass, ${sum("failed")} fail`,
  );
  for (const name of failed) console.log(`  FAILED: ${name}`);
  return outcomes.size > 0 && failed.length === 0;
}

/** Clients that others write list and call everything, over HTTP and through `proxie mcp`, and answer what they are asked. */
async function clients(url, count) {
  const script = join(folder, "client.mjs");
  copyFileSync("tests/suites/mcp-client.mjs", script);
  // The proxy in between puts the node's own token in its place.
  process.env.PROXIE_TOKEN = TOKEN;
  const pipe = [proxie, "mcp", "--at", url.replace("/mcp", "")];
  const python = (where, mode) => ran(join(folder, "python/bin/python"), "tests/suites/mcp-client.py", where, mode);
  const typescript = (where, which) => ran(process.execPath, script, where, which);
  const inspector = (where, ...args) =>
    ran(process.execPath, join(folder, "node_modules/.bin/mcp-inspector"), ...INSPECTED, ...where, "--method", ...args);
  const all = [];
  for (const [how, where] of [
    ["over HTTP", [url]],
    ["over stdio", pipe],
  ]) {
    const one = where.join(" ");
    for (const mode of ["auto", "legacy"]) all.push([`Python 2.3, ${mode}, ${how}`, () => python(one, mode)]);
    for (const which of ["sdk 1.32", "client 2.4", "client 2.4, legacy"]) all.push([`${which}, ${how}`, () => typescript(one, which)]);
    for (const method of ["tools/list", "resources/list", "resources/templates/list", "prompts/list"])
      all.push([`Inspector 2.12, ${how}, ${method}`, () => inspector(where, method)]);
    all.push([`Inspector 2.12, ${how}, tools/call`, () => inspector(where, "tools/call", "--tool-name", "list_devices")]);
  }
  let good = true;
  for (const [name, client] of all) {
    const { code, said } = await client();
    const last = said.trim().split("\n").at(-1);
    const told = code === 0 ? `good ${last.length > 3 && last.length < 200 ? last : ""}` : `FAILED: ${said.slice(-2000)}`;
    console.log(`${count} node(s), ${name}: ${told}`);
    good &&= code === 0;
  }
  return good;
}

install();
let good = true;
for (const count of [1, 2]) {
  const { nodes, stop } = await start(count);
  const proxy = await between(nodes);
  const url = `http://localhost:${proxy.address().port}/mcp`;
  try {
    for (const revision of REVISIONS) good = judged(revision, count, await run(url, revision)) && good;
    good = (await clients(url, count)) && good;
  } finally {
    proxy.close();
    proxy.closeAllConnections();
    await stop();
  }
}
process.exit(good ? 0 : 1);
