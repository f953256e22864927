// Follows a conversation, or all of the user, and prints what it is told, a line of JSON each.
//
//   node follow.mjs URL [CONVERSATION_ID]

import { watchConversation, watchOwner } from "../../../converse_mongo/web/client/index.js";

const [url, conversationId] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));
const options = {
  url,
  headers: { authorization: "ada" },
  onEvent: print,
  onState: (state, error) => print({ state, error: error?.message ?? null }),
};
const watch = conversationId
  ? watchConversation({ ...options, conversationId })
  : watchOwner({ ...options, onOpened: () => print({ type: "opened" }) });
print({ closed: (await watch.closed)?.message ?? null });
