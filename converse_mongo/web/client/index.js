// @ts-check
/** Follows conversations of converse_mongo live, across lost connections, reloads and deploys. */

export { openConversation } from "./conversation.js";
export { readFile } from "./files.js";
export { openOwner } from "./owner.js";
export { PartLog, partsOf, toolCallState } from "./parts.js";
export { ConverseError } from "./requests.js";
export { watchConversation, watchMessage, watchOwner } from "./watch.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").ConversationOptions} ConversationOptions */
/** @typedef {import("./conversation.js").CallAnswer} CallAnswer */
/** @typedef {import("./conversation.js").Snapshot} Snapshot */
/** @typedef {import("./entries.js").Message} Message */
/** @typedef {import("./entries.js").StoredMessage} StoredMessage */
/** @typedef {import("./entries.js").Work} Work */
/** @typedef {import("./files.js").SentFile} SentFile */
/** @typedef {import("./owner.js").FollowedOwner} FollowedOwner */
/** @typedef {import("./owner.js").OwnerOptions} OwnerOptions */
/** @typedef {import("./owner.js").OwnerSnapshot} OwnerSnapshot */
/** @typedef {import("./parts.js").PartRecord} PartRecord */
/** @typedef {import("./parts.js").PartSnapshot} PartSnapshot */
/** @typedef {import("./parts.js").ToolCallState} ToolCallState */
/** @typedef {import("./watch.js").Chunk} Chunk */
/** @typedef {import("./watch.js").Event} Event */
/** @typedef {import("./watch.js").MessageSuspended} MessageSuspended */
/** @typedef {import("./watch.js").OwnerEvent} OwnerEvent */
/** @typedef {import("./watch.js").OwnerWatch} OwnerWatch */
/** @typedef {import("./watch.js").OwnerWatchOptions} OwnerWatchOptions */
/** @typedef {import("./watch.js").PendingCall} PendingCall */
/** @typedef {import("./watch.js").State} State */
/** @typedef {import("./watch.js").StreamOpened} StreamOpened */
/** @typedef {import("./watch.js").Watch} Watch */
/** @typedef {import("./watch.js").WatchOptions} WatchOptions */
