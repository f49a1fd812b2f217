// y-websocket's own server on a free port; or, with a number, so many updates of a map for each of three clients, as
// lines of base64, each made without having seen the others'.
const path = require('path')
const modules = path.join(__dirname, 'node_modules')
if (process.argv[2]) {
  const Y = require(path.join(modules, 'yjs'))
  for (let client = 0; client < 3; client++) {
    const doc = new Y.Doc()
    doc.clientID = client + 1
    doc.on('update', update => console.log(Buffer.from(update).toString('base64')))
    const positions = doc.getMap('positions')
    for (let n = 0; n < Number(process.argv[2]); n++) {
      positions.set(`tt${String(n % 20).padStart(7, '0')}`, { position_ms: n * 1000, device: client })
    }
  }
} else {
  const { WebSocketServer } = require(path.join(modules, 'ws'))
  const { setupWSConnection } = require(path.join(modules, 'y-websocket/bin/utils.cjs'))
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', perMessageDeflate: false })
  server.on('connection', setupWSConnection)
  server.on('listening', () => console.log(`ready 127.0.0.1:${server.address().port}`))
}
