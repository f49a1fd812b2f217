// Clients of Socket.IO that are to come back whatever happens: stays.mjs '{"NAME": "URL", …}', the token in PROXIE_TOKEN.
// A name that begins with `js3` is for the client of Socket.IO v3. Each says its name when a ping has been answered.
import { io as io4 } from "socket.io-client";
import { io as io3 } from "socket.io-client-3";

for (const [name, url] of Object.entries(JSON.parse(process.argv[2]))) {
  const io = name.startsWith("js3") ? io3 : io4;
  // Each has connections of its own.
  const socket = io(url, { auth: { token: process.env.PROXIE_TOKEN }, forceNew: true });
  let asked = 0;
  setInterval(() => {
    if (!socket.connected || Date.now() - asked < 5_000) return;
    asked = Date.now();
    socket.emit("ping", {}, ({ ok }) => {
      asked = 0;
      if (ok) console.log(name);
    });
  }, 1_000);
  for (const event of ["connect", "disconnect", "connect_error"]) {
    socket.on(event, (why) => console.error(name, event, String(why?.message ?? why)));
  }
}
process.stdin.on("end", () => process.exit(0)).resume();
