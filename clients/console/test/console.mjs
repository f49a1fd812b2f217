// The page in a real browser: node test/console.mjs URL, the token in PROXIE_TOKEN. It prints "kill" when the node that the page talks to is to
// die, and goes on when a line comes back.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { buildSync } from 'esbuild';
import { chromium } from 'playwright-core';

const url = process.argv[2];
const token = process.env.PROXIE_TOKEN;
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const SENTENCE = 'I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros';

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // Tests may run as root, where Chromium has no sandbox.
  args: ['--no-sandbox'],
});
const complaints = [];

async function tab(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (message) => {
    // A node that is gone is reported by the browser itself, and is what the test is about.
    if (message.type() === 'error' && !/WebSocket|ERR_|Failed to load resource/.test(message.text())) {
      complaints.push(message.text());
    }
  });
  await page.goto(url);
  return page;
}

async function signIn(page) {
  await page.getByLabel('Access token').fill(token);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('status').filter({ hasText: /^Connected$/ }).waitFor();
}

const said = (page) => page.locator('#messages p').allTextContents();
const is = (page, selector, text) => page.locator(selector, { hasText: text }).first().waitFor();

async function accessible(page, what) {
  const { violations } = await page.evaluate(`${axe}; axe.run()`);
  assert.deepEqual(violations.map(({ id, nodes }) => `${what}: ${id} ${nodes[0].html}`), []);
}

/** Tries until it holds. */
async function until(page, holds) {
  for (let tries = 0; !(await holds()); tries += 1) {
    assert.ok(tries < 300, `never: ${holds}`);
    await page.waitForTimeout(100);
  }
}

async function fits(page, what) {
  const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= window, `${what}: ${content} px wide in ${window}`);
}

try {
  const desktop = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: 'en-GB' });
  const first = await tab(desktop);
  await accessible(first, 'signing in');
  await first.getByLabel('Access token').fill('not-a-token');
  await first.keyboard.press('Enter');
  await first.getByRole('alert').filter({ hasText: 'not accepted' }).waitFor();

  // With the keyboard alone: the token field has the focus, and after that the message field.
  await first.keyboard.type(token);
  await first.keyboard.press('Enter');
  await first.getByRole('status').filter({ hasText: /^Connected$/ }).waitFor();
  assert.equal(await first.evaluate(() => document.activeElement?.id), 'say');
  await first.keyboard.type(SENTENCE);
  await first.keyboard.press('Enter');
  await is(first, '#messages p[data-role="user"]', SENTENCE);
  await is(first, '#messages p[data-role="agent"]:not([aria-busy])', /./);

  await first.getByRole('button', { name: /^Accept the offer of / }).first().waitFor();
  const card = first.locator('#offers .card').first();
  assert.deepEqual(await card.locator('dt').allTextContents(),
    ['Skill', 'Location', 'Availability', 'Price', 'Rating', 'Response']);
  for (const value of await card.locator('meter').evaluateAll((meters) => meters.map((meter) => meter.value))) {
    assert.ok(value >= 0 && value <= 1);
  }
  await accessible(first, 'offers');
  await fits(first, 'desktop');

  // Text is text.
  const markup = '<img src=x onerror=alert(1)> <b>bold</b>';
  await first.getByLabel('Your message').fill(markup);
  await first.getByRole('button', { name: 'Send' }).click();
  await is(first, '#messages p[data-role="user"]', markup);
  assert.equal(await first.locator('#messages img, #messages b').count(), 0);

  const second = await tab(desktop);
  await signIn(second);
  await is(second, '#messages p[data-role="user"]', markup);
  const cards = (page) => page.locator('#offers .card').count();
  await until(second, async () => (await cards(second)) > 0 && (await cards(second)) === (await cards(first)));

  console.log('kill');
  await answers.next();
  for (const page of [first, second]) await page.locator('#connection:not([data-state="open"])').waitFor();
  // Said while nobody is there to hear it.
  const lost = 'is anybody there?';
  await first.getByLabel('Your message').fill(lost);
  await first.getByRole('button', { name: 'Send' }).click();
  for (const page of [first, second]) {
    await page.getByRole('status').filter({ hasText: /^Connected$/ }).waitFor({ timeout: 60_000 });
    await is(page, '#messages p[data-role="user"]:not([data-state])', lost);
  }
  await first.getByLabel('Your message').fill('hello again');
  await first.getByRole('button', { name: 'Send' }).click();
  for (const page of [first, second]) await is(page, '#messages p[data-role="user"]', 'hello again');
  // Both have heard the same, once each, in the same order.
  await first.waitForFunction(() => !document.querySelector('#messages [aria-busy], #messages [data-state]'));
  await until(second, async () => {
    const [one, other] = [await said(first), await said(second)];
    return one.length >= 8 && JSON.stringify(one) === JSON.stringify(other);
  });
  const mine = await first.locator('#messages p[data-role="user"]').allTextContents();
  assert.deepEqual(mine, [SENTENCE, markup, lost, 'hello again']);

  await first.getByRole('button', { name: /^Accept the offer of / }).first().press('Enter');
  for (const page of [first, second]) {
    await page.locator('#bookings .card[data-status="confirmed"]').waitFor();
    await page.locator('#offers .card[data-status="accepted"]').waitFor();
  }
  assert.match(await first.locator('#bookings-news').textContent(), /^Booking with .+: confirmed$/);

  // On a phone, in the dark, from a token alone.
  const phone = await browser.newContext({ viewport: { width: 390, height: 844 }, colorScheme: 'dark', hasTouch: true });
  const third = await tab(phone);
  await signIn(third);
  await third.locator('#bookings .card[data-status="confirmed"]').waitFor();
  await is(third, '#messages p[data-role="user"]', 'hello again');
  await fits(third, 'phone');
  await accessible(third, 'phone');
  for (const height of await third.locator('button:visible').evaluateAll((all) => all.map((one) => one.offsetHeight))) {
    assert.ok(height >= 40, `a button is ${height} px high`);
  }
  // It survives a reload; it does not survive signing out.
  await third.reload();
  await third.getByRole('status').filter({ hasText: /^Connected$/ }).waitFor();
  await third.getByRole('button', { name: 'Sign out' }).click();
  await third.getByLabel('Access token').waitFor();
  assert.equal(await third.locator('#messages p').count(), 0);
  assert.equal(await third.evaluate(() => sessionStorage.length), 0);

  // A page of another origin is told why it gets nowhere, by whatever way it tries.
  const entry = fileURLToPath(new URL('../../typescript/src/index.ts', import.meta.url));
  const bundle = buildSync({ entryPoints: [entry], bundle: true, format: 'iife', globalName: 'client', write: false });
  const elsewhere = createServer((_, response) => response.end('<!doctype html><title>elsewhere</title>'));
  await new Promise((resolve) => elsewhere.listen(0, '127.0.0.1', resolve));
  const foreign = await (await browser.newContext()).newPage();
  await foreign.goto(`http://127.0.0.1:${elsewhere.address().port}`);
  await foreign.addScriptTag({ content: bundle.outputFiles[0].text });
  const refusals = await foreign.evaluate(async ([url, token]) => {
    const why = (promise) => promise.then(() => 'done', ({ code, reason }) => `${code} ${reason}`);
    const shown = [await why(new client.Proxie({ url, token }).get('/v1/bookings'))];
    for (const transport of ['websocket', 'auto', 'sse']) {
      const proxie = client.connect({ url, token, transport });
      proxie.on('error', () => {});
      shown.push(await why(proxie.send('ping', {})), proxie.state);
    }
    return shown;
  }, [url, token]);
  const refused = 'forbidden origin_not_allowed';
  assert.deepEqual(refusals, [refused, refused, 'closed', refused, 'closed', refused, 'closed']);
  elsewhere.close();

  assert.deepEqual(complaints, []);
  console.log('ok');
} finally {
  await browser.close();
}
process.exit(0);
