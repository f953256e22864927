/**
 * Follows a conversation while the component is mounted.
 *
 * Each use has its own connection: use it once for a conversation and pass on its result.
 *
 * @param {string | null | undefined} conversationId Without one it waits, with the status
 *     "loading".
 * @param {Options} options A change of `url` opens the conversation again. The others may be new in
 *     each render; `headers` and `fetch` of the last one are used.
 * @returns {Snapshot & Actions}
 */
export function useConversation(conversationId: string | null | undefined, options: Options): Snapshot & Actions;
/**
 * Follows one message to its end while the component is mounted.
 *
 * @param {string | null | undefined} conversationId
 * @param {string | null | undefined} messageId Without one it waits, with the status "loading".
 * @param {Omit<Options, "limit" | "patience">} options
 * @returns {MessageSnapshot}
 */
export function useStreamingMessage(conversationId: string | null | undefined, messageId: string | null | undefined, options: Omit<Options, "limit" | "patience">): MessageSnapshot;
/**
 * Follows all conversations of the user while the component is mounted: which answers wait for people,
 * and, with `onOpened` and `onEvent`, the news for a list.
 *
 * @param {import("./owner.js").OwnerOptions} options A change of `url` opens it again. The others may be
 *     new in each render; the functions of the last one are used.
 * @returns {OwnerSnapshot}
 */
export function useOwner(options: import("./owner.js").OwnerOptions): OwnerSnapshot;
export type Store<T> = {
    getSnapshot: () => T;
    subscribe: (listener: () => void) => () => void;
    close: () => void;
};
export type Shared<S extends Store<T>, T> = {
    /**
     * Returns the store; `null` while it has no subscriber.
     */
    get: () => S | null;
    getSnapshot: () => T;
    getServerSnapshot: () => T;
    subscribe: (listener: () => void) => () => void;
};
export type Conversation = import("./conversation.js").Conversation;
export type Snapshot = import("./conversation.js").Snapshot;
export type MessageSnapshot = import("./message.js").MessageSnapshot;
export type OwnerSnapshot = import("./owner.js").OwnerSnapshot;
export type Options = Omit<import("./conversation.js").ConversationOptions, "conversationId">;
/**
 * The functions stay the same while the id does, and throw before the first effect.
 */
export type Actions = Pick<Conversation, "send" | "resend" | "stop" | "retry" | "answerToolCalls" | "loadOlder">;
