// A node with settings of its own, for the suites.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export async function serve(proxie, config, settings) {
  const home = mkdtempSync(join(tmpdir(), "proxie-suites-"));
  writeFileSync(join(home, "config.toml"), config);
  const env = {
    ...process.env,
    PROXIE__GATEWAY__LISTEN: "127.0.0.1:0",
    PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF: "true",
    ...settings,
  };
  const node = spawn(proxie, ["serve"], { cwd: home, env, stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: node.stdout })) {
    const [, address] = line.match(/^proxie ready on (http:\S+)/) ?? [];
    if (!address) continue;
    const mint = (...who) => {
      const { stdout } = spawnSync(proxie, ["token", "--user", ...who], { cwd: home, env, encoding: "utf8" });
      return stdout.trim().split("\n").at(-1);
    };
    const stop = () => {
      node.kill("SIGTERM");
      return new Promise((ended) => node.once("exit", () => ended(rmSync(home, { recursive: true }))));
    };
    return { address, token: mint("clara"), mint, stop };
  }
  throw new Error("the node did not start");
}
