// Fan-out and echo as small as Socket.IO makes them: rooms, the events topic:subscribe and topic:publish, anything else
// is acknowledged.
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const server = createServer();
const io = new Server(server, { perMessageDeflate: false, transports: ['websocket'] });
io.on('connection', (socket) => {
  socket.on('topic:subscribe', ({ topic }, ack) => {
    socket.join(topic);
    ack({});
  });
  socket.on('topic:publish', ({ topic, event, data }) => io.to(topic).emit(event, data));
  socket.on('chat:typing', (data, ack) => ack(data));
});
server.listen(0, '127.0.0.1', () => console.log(`ready 127.0.0.1:${server.address().port}`));
