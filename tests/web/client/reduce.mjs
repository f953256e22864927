// Reduces logs, an array of arrays of chunks in JSON from the standard input, and prints what each
// leads to: in one go, and with a snapshot behind each chunk.

import { readFileSync } from "node:fs";

import { PartLog } from "../../../converse_mongo/web/client/parts.js";

const reduce = (chunks) => {
  const log = new PartLog();
  let resumed = new PartLog();
  const numbers = [];
  for (const chunk of chunks) {
    numbers.push(log.add(chunk));
    resumed = PartLog.fromSnapshot(JSON.parse(JSON.stringify(resumed.snapshot())));
    resumed.add(chunk);
  }
  return { numbers, text: log.text(), snapshot: log.snapshot(), resumed: resumed.snapshot() };
};

const logs = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(logs.map(reduce)));
