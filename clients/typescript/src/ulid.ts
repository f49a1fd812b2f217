const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/**
 * ULIDs that only grow, also within a millisecond and when the clock goes back: a generator's ids sort in the order
 * in which they were made.
 */
export function ulids(now: () => number = Date.now): () => string {
  let last = -1;
  // The 80 random bits, five at a time.
  const digits = new Uint8Array(16);
  return () => {
    const time = Math.max(now(), last);
    if (time > last || !increment(digits)) {
      // When all 80 bits are used up, which does not happen, the next millisecond is borrowed.
      last = time > last ? time : last + 1;
      randomise(digits);
    }
    let text = '';
    let rest = last;
    for (let i = 0; i < 10; i += 1) {
      text = ALPHABET.charAt(rest % 32) + text;
      rest = Math.floor(rest / 32);
    }
    for (const digit of digits) text += ALPHABET.charAt(digit);
    return text;
  };
}

function randomise(digits: Uint8Array<ArrayBuffer>): void {
  // Node 18 has no global `crypto`. Ids have to be unique, not secret, so any randomness will do there.
  const { crypto } = globalThis as { crypto?: Crypto };
  if (crypto) crypto.getRandomValues(digits);
  for (let i = 0; i < digits.length; i += 1) digits[i] = crypto ? digits[i]! & 31 : Math.floor(Math.random() * 32);
}

/** False: it went over the end. */
function increment(digits: Uint8Array): boolean {
  for (let i = digits.length - 1; i >= 0; i -= 1) {
    if (digits[i]! < 31) {
      digits[i]! += 1;
      return true;
    }
    digits[i] = 0;
  }
  return false;
}
