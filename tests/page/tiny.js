// A test framework with only what pure modules need.

/** @type {{name: string, run: () => void}[]} */
const cases = [];

/**
 * @param {string} name
 * @param {() => void} run
 */
export function test(name, run) {
  cases.push({ name, run });
}

/**
 * @param {unknown} is
 * @param {unknown} wanted
 */
export function equal(is, wanted) {
  const [one, other] = [is, wanted].map((value) => JSON.stringify(value, (_, inner) => (inner === undefined ? "(undefined)" : inner)));
  if (one !== other) throw new Error(`is ${one}, not ${other}`);
}

/** The result of each case: empty, or the error. */
export function outcomes() {
  return cases.map(({ name, run }) => {
    try {
      run();
      return [name, ""];
    } catch (error) {
      return [name, String(error)];
    }
  });
}
