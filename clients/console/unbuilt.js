// What is served in the place of the console where it was not built.
const notice = document.createElement('p');
notice.className = 'notice';
notice.textContent =
  'This node was built without its console, which takes Node.js: run ./dev console, build the node again, and reload.';
document.getElementById('signed-out').replaceChildren(notice);
document.getElementById('connection').textContent = 'No console';
