// Fan-out and echo as small as npm `ws` makes them: {"sub":topic}, {"pub":topic,"data":…}, anything else comes back.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const topics = new Map();
const server = createServer();
const wss = new WebSocketServer({ server, perMessageDeflate: false });
wss.on('connection', (socket) => {
  const mine = new Set();
  socket.on('message', (bytes) => {
    const text = bytes.toString();
    const frame = JSON.parse(text);
    if (frame.sub) {
      if (!topics.has(frame.sub)) topics.set(frame.sub, new Set());
      topics.get(frame.sub).add(socket);
      mine.add(frame.sub);
    } else if (frame.pub) {
      const out = JSON.stringify({ event: 'app:x', topic: frame.pub, data: frame.data });
      for (const other of topics.get(frame.pub) ?? []) other.send(out);
    } else {
      socket.send(text);
    }
  });
  socket.on('close', () => mine.forEach((topic) => topics.get(topic)?.delete(socket)));
});
server.listen(0, '127.0.0.1', () => console.log(`ready 127.0.0.1:${server.address().port}`));
