/**
 * Hybrid logical times as the server counts them: 64 bits, seconds since 1970 in the upper 32 and their fraction below,
 * of which the last four bits count. On the wire and here they are decimal text, as numbers are not that exact.
 */
export type Time = string;

export interface Stamp {
  time: Time;
  device: string;
}

const COUNTER = 0xfn;

export function toTime(ms: number): Time {
  const whole = BigInt(Math.max(0, Math.floor(ms)));
  return String(((whole / 1000n) << 32n) + (((whole % 1000n) << 32n) + 999n) / 1000n);
}

export function toDate(time: Time): Date {
  const bits = BigInt(time);
  return new Date(Number(bits >> 32n) * 1000 + Math.floor((Number(bits & 0xffffffffn) * 1000) / 2 ** 32));
}

/** Below 0: `a` is earlier. */
export function compareTimes(a: Time, b: Time): number {
  // Both without leading zeros.
  return a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);
}

export const later = (a: Time, b: Time): Time => (compareTimes(a, b) < 0 ? b : a);

export function compareStamps(a: Stamp, b: Stamp): number {
  return compareTimes(a.time, b.time) || (a.device < b.device ? -1 : a.device > b.device ? 1 : 0);
}

/** The next time of a clock that has given `last`. */
export function tick(last: Time, now: Time): Time {
  const [before, wall] = [BigInt(last), BigInt(now) & ~COUNTER];
  return String(wall > (before & ~COUNTER) ? wall : before + 1n);
}
