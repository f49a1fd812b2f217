// Other people's clients of A2A, and the protocol's compatibility kit, against the door for agents of others: a2a.mjs PROXIE,
// from the root. The kit is a checkout of github.com/a2aproject/a2a-tck at its branch 1.0-dev, in A2A_TCK; without one it is
// left out. It knows no tokens, so a proxy in between adds one.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { join, resolve } from "node:path";
import { serve } from "./node.mjs";

const SDK = "@a2a-js/sdk@1.3.0";
const PYTHON = ["a2a-sdk==1.3.0"];
const KIT = ["pytest==9.0.2", "pytest-asyncio==1.3.0", "pytest-html==4.2.0", "httpx==0.28.1", "grpcio", "protobuf", "googleapis-common-protos", "jsonschema", "gherkin-official", "Jinja2"];
const proxie = resolve(process.argv[2]);
const folder = resolve("target/suites/a2a");

/** What the kit's tests are declined for. They want the fixture that its scenarios describe, by prefixes of message ids. */
const declined = existsSync("tests/suites/a2a-declined.json") ? JSON.parse(readFileSync("tests/suites/a2a-declined.json", "utf8")) : {};

function must(command, ...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", timeout: 600_000 });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** Runs a program beside the node and the proxy, which answer in this process. */
function ran(command, args, options) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: 600_000, ...options });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (said += text));
  return new Promise((ended) => child.once("exit", (code) => ended({ code, said })));
}

function install() {
  if (existsSync(join(folder, "installed"))) return;
  mkdirSync(folder, { recursive: true });
  must("npm", "install", "--prefix", folder, "--no-audit", "--no-fund", SDK);
  must("python3", "-m", "venv", join(folder, "python"));
  must(join(folder, "python/bin/pip"), "install", "--quiet", ...PYTHON, ...(process.env.A2A_TCK ? KIT : []));
  mkdirSync(join(folder, "installed"));
}

/** Passes requests on with the node's token. */
async function between({ address, token }) {
  const proxy = createServer((asked, answer) => {
    const headers = { ...asked.headers, authorization: `Bearer ${token}` };
    const to = request(new URL(asked.url, address), { method: asked.method, headers }, (said) => {
      answer.writeHead(said.statusCode, said.headers);
      said.pipe(answer);
    });
    to.on("error", () => answer.destroy());
    answer.on("close", () => to.destroy());
    asked.pipe(to);
  });
  await new Promise((ready) => proxy.listen(0, "127.0.0.1", ready));
  return proxy;
}

/** A hairdresser who always has time. Its id. */
async function enrolled(node) {
  const weekdays = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
  const answer = await fetch(`${node.address}/v1/providers`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${node.mint("pat", "--role", "provider")}` },
    body: JSON.stringify({
      name: "Salon Alex",
      services: [{ service: "haircut", price: { amount_minor: 4500, currency: "EUR" }, per: "service", duration_minutes: 45 }],
      base: { city: "Berlin", country: "DE", latitude: 52.5219, longitude: 13.4132, time_zone: "Europe/Berlin" },
      radius_km: 20,
      weekly: Object.fromEntries(weekdays.map((day) => [day, [{ from_minute: 0, to_minute: 1440 }]])),
      minimum_notice_minutes: 0,
    }),
  });
  return (await answer.json()).id;
}

async function clients(node) {
  const provider = await enrolled(node);
  const script = join(folder, "client.mjs");
  copyFileSync("tests/suites/a2a-client.mjs", script);
  const env = { ...process.env, PROXIE_TOKEN: node.token };
  let days = 20;
  let good = true;
  for (const agent of ["/a2a", `/a2a/providers/${provider}`]) {
    for (const binding of ["JSONRPC", "HTTP+JSON"]) {
      const args = [node.address + agent, binding, String((days += 4))];
      for (const { code, said } of [
        await ran(process.execPath, [script, ...args], { cwd: folder, env }),
        await ran(join(folder, "python/bin/python"), ["tests/suites/a2a-client.py", ...args.with(2, String(days + 2))], { env }),
      ]) {
        const last = said.trim().split("\n").at(-1);
        console.log(code === 0 ? `${agent}: ${last}` : `FAILED: ${agent} ${binding}: ${said.slice(-2_000)}`);
        good &&= code === 0;
      }
    }
  }
  return good;
}

/** The kit's own report, by requirement and binding. */
async function kit(url) {
  const home = process.env.A2A_TCK;
  const report = join(folder, "report.xml");
  const { said } = await ran(
    join(folder, "python/bin/python"),
    ["-m", "pytest", "tests/compatibility/", `--sut-host=${url}`, "--transport=jsonrpc,http_json", "-q", "--tb=line", `--junitxml=${report}`],
    { cwd: home },
  );
  if (!existsSync(report)) throw new Error(said.slice(-2_000));
  const cases = [...readFileSync(report, "utf8").matchAll(/<testcase classname="([^"]*)" name="([^"]*)"[^>]*?(\/>|>([\s\S]*?)<\/testcase>)/g)];
  const outcome = (text = "") => (/<failure|<error/.test(text) ? "failed" : /<skipped/.test(text) ? "skipped" : "passed");
  const all = cases.map(([, of, name, , text]) => ({ name: `${of.split(".").at(-1)}::${name}`, outcome: outcome(text) }));
  const count = (what) => all.filter((one) => one.outcome === what).length;
  const failed = all.filter((one) => one.outcome === "failed").map((one) => one.name);
  const wrong = failed.filter((name) => !(name in declined));
  const unknown = Object.keys(declined).filter((name) => !failed.includes(name));
  console.log(`a2a-tck 1.0-dev: ${count("passed")} of ${count("passed") + failed.length} pass, ${failed.length - wrong.length} are declined, ${count("skipped")} are skipped`);
  for (const name of failed.filter((name) => name in declined)) console.log(`  declined: ${name} (${declined[name]})`);
  for (const name of wrong) console.log(`  FAILED: ${name}`);
  for (const name of unknown) console.log(`  PASSES, though it is declined: ${name}`);
  return wrong.length + unknown.length === 0;
}

install();
const node = await serve(proxie, "[a2a]\npush_to_loopback = true\n", {
  PROXIE__GATEWAY__REQUESTS_PER_MINUTE: "100000",
  PROXIE__LOG__LEVEL: "warn",
});
const proxy = await between(node);
let good = true;
try {
  good = (await clients(node)) && good;
  if (process.env.A2A_TCK) good = (await kit(`http://127.0.0.1:${proxy.address().port}`)) && good;
} finally {
  proxy.close();
  await node.stop();
}
process.exit(good ? 0 : 1);
