// Follows a conversation and prints what it is told, a line of JSON for each event and state.
//
//   node follow.mjs URL CONVERSATION_ID

import { watchConversation } from "../../../converse_mongo/web/client/index.js";

const [url, conversationId] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));
const watch = watchConversation({
  url,
  conversationId,
  headers: { authorization: "ada" },
  onEvent: print,
  onState: (state, error) => print({ state, error: error?.message ?? null }),
});
print({ closed: (await watch.closed)?.message ?? null });
