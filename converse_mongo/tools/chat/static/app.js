/** The page: conversations on the left, messages on the right, and an input field. */

import { ConverseError, openConversation, openOwner } from "/client/index.js";
import { Attached } from "./attached.js";
import { MessageList } from "./messages.js";
import { element } from "./text.js";
import { FOR_YOU, approvalsOf } from "./waits.js";

const SESSION = "/api/me";
const PAGE_SIZE = 50;
const NEAR_END = 48;
const REST = 3; // the time between two drawings, as a multiple of what they take
const NARROW = matchMedia("(max-width: 760px)");
const ID = /^#([0-9a-f]{24})$/;
const SUGGESTIONS = [
  "How does an answer reach this page?",
  "What happens when I close the tab while you write?",
  "Explain change streams in three sentences.",
];
const OFFLINE_COMMANDS = ["/tools", "/ask", "/long", "/code", "/fail"];
const OF_WORK = new Set(["message.queued", "message.started", "message.suspended"]);
const ENDS = new Set(["message.completed", "message.failed", "message.cancelled"]);

const at = (id) => document.getElementById(id);
const idInAddress = () => ID.exec(location.hash)?.[1] ?? null;
const question = at("question");
const scroller = at("scroller");

let chat = null; // the result of openConversation
let unsubscribe = () => {};
let shownId = idInAddress();
let conversations = [];
const writing = new Map(); // message to conversation, of all answers that are being written
let waiting = new Set(); // the conversations that wait for the reader
let loading = false; // whether the list is being loaded
let again = false; // whether it is already out of date
let owner = null; // the result of openOwner, while the page is visible
let following = true; // whether the reader is at the end
let busy = false; // whether a conversation is being created
let described = false; // whether the service was, since the last stream was opened
let drawing = false; // whether the page is about to be drawn
let rested = 0; // when it may be drawn again
let offline = !navigator.onLine; // whether there is no network, nor a service without one

const list = new MessageList(at("messages"), {
  retry: (message) => act(() => chat.retry(message.id), "Another answer could not be requested."),
  resend: (message) => act(() => chat.resend(message.id), "The message could not be sent."),
  answer: (message, callId, approved) => {
    const answers = [{ call_id: callId, approved }];
    return act(() => chat.answerToolCalls(message.id, answers), "Your answer could not be sent.");
  },
  announce,
  toggled: () => {
    following = atEnd(); // what is read now must not be scrolled away
    drawJump();
  },
  left: () => question.focus(),
});

const attached = new Attached(at("files"), at("attached"), {
  changed: () => drawComposer(),
  complain,
  announce,
  left: () => question.focus(),
});

// The conversation that is shown

function show(id) {
  unsubscribe();
  chat?.close();
  chat = null;
  shownId = id;
  following = true;
  list.clear();
  complain(null);
  if (id !== null) {
    chat = openConversation({ url: "/api", conversationId: id, limit: PAGE_SIZE, fetch: sendRequest });
    unsubscribe = chat.subscribe(drawSoon) ?? (() => {});
  }
  drawConversations();
  draw();
}

function go(id) {
  const hash = id === null ? "" : `#${id}`;
  if (location.hash === hash) return;
  history.pushState(null, "", hash || location.pathname);
  show(id);
}

function fromAddress() {
  const id = idInAddress();
  if (id !== shownId || (id !== null && chat === null)) show(id);
}

function drawSoon() {
  if (drawing) return;
  drawing = true;
  const drawNow = () => {
    drawing = false;
    const began = performance.now();
    draw();
    // Whatever it costs, the page has most of the time for its reader.
    const now = performance.now();
    rested = now + REST * (now - began);
  };
  // Browsers do not draw hidden pages, but the title and announcements must still be updated.
  if (document.hidden) setTimeout(drawNow, 250);
  else if (rested < performance.now()) requestAnimationFrame(drawNow);
  else setTimeout(() => requestAnimationFrame(drawNow), rested - performance.now());
}

function draw() {
  const snapshot = chat?.getSnapshot() ?? null;
  const messages = snapshot?.messages ?? [];
  const refused = snapshot?.status === "error";
  list.draw(messages, { waiting: Boolean(snapshot?.typing) });

  at("empty").hidden = refused || messages.length > 0 || isLoading() || busy;
  at("loading").hidden = !isLoading() || messages.length > 0;
  at("older").hidden = !snapshot?.hasOlder;
  at("trouble").hidden = !refused;
  if (refused) at("trouble-text").textContent = sentence(snapshot.error);
  drawConnection(snapshot);
  drawComposer();
  drawTitle();
  follow();
  drawJump();
}

function drawConnection(snapshot) {
  const place = at("connection");
  let text = "";
  if (offline) text = "Offline";
  else if (snapshot?.status === "reconnecting") text = "Reconnecting";
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("shown", text !== "");
}

function drawTitle() {
  const known = conversations.find((each) => each.id === shownId);
  const title = known?.title ?? (shownId === null ? "New chat" : "Conversation");
  at("title").textContent = title;
  document.title = shownId === null ? "Chat" : `${title} - Chat`;
}

/** Whether nobody knows yet what the shown conversation has. */
function isLoading() {
  return shownId !== null && (chat === null || chat.getSnapshot().status === "loading");
}

function streaming() {
  const messages = chat?.getSnapshot().messages ?? [];
  return messages.findLast((each) => each.role === "assistant" && each.status === "streaming");
}

// Where the reader is

function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
}

function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

/** Keeps the end in view while the reader is there; a page without messages begins at its top. */
function follow() {
  if (following && at("empty").hidden) scrollToEnd();
}

function drawJump() {
  at("jump").hidden = following || atEnd() || !at("empty").hidden;
}

let lastTop = 0;
scroller.addEventListener("scroll", () => {
  // Only the reader scrolls up. Growing text does not mean that they left the end.
  if (scroller.scrollTop < lastTop - 1) following = atEnd();
  else following ||= atEnd();
  lastTop = scroller.scrollTop;
  drawJump();
}, { passive: true });

new ResizeObserver(follow).observe(scroller);
scroller.addEventListener("load", follow, { capture: true }); // of images, which take room then

at("jump").addEventListener("click", () => {
  following = true;
  scrollToEnd();
  drawJump();
  question.focus();
});

at("older").addEventListener("click", async () => {
  const button = at("older");
  const before = scroller.scrollHeight - scroller.scrollTop;
  button.disabled = true;
  following = false;
  await act(() => chat.loadOlder(), "Older messages could not be loaded.");
  button.disabled = false;
  draw();
  // Keep the visible text in place; the loaded messages are above it.
  scroller.scrollTop = scroller.scrollHeight - before;
  if (button.hidden) scroller.focus({ preventScroll: true });
  else button.focus({ preventScroll: true });
});

function setOffline(value) {
  offline = value;
  drawSoon();
}

// The reader's input

function drawComposer() {
  const lost = chat?.getSnapshot().status === "error";
  const writes = Boolean(streaming()) && !lost;
  const stop = at("stop");
  const send = at("send");
  if (stop.hidden === writes) {
    const focused = document.activeElement === stop || document.activeElement === send;
    stop.hidden = !writes;
    send.hidden = writes;
    if (focused) question.focus();
  }
  if (at("wait").textContent !== "") explain(reasonToWait());
  send.disabled = busy || lost || (question.value.trim() === "" && attached.isEmpty);
  question.disabled = lost;
  at("attach").disabled = lost;
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

/** Why a message would be refused now, as a sentence; `null` if it would not. */
function reasonToWait() {
  if (streaming()) return "Wait until the answer ends, or stop it. Then send your message.";
  if (isLoading()) return "Wait until the conversation is loaded. Then send your message.";
  const messages = chat?.getSnapshot().messages ?? [];
  if (messages.some((each) => each.status === "pending")) return "Wait until your message is sent.";
  return null;
}

function explain(reason) {
  const place = at("wait");
  if (place.textContent !== (reason ?? "")) place.textContent = reason ?? "";
}

async function submit(text) {
  if (busy || (text.trim() === "" && attached.isEmpty)) return;
  const reason = reasonToWait();
  if (reason !== null) {
    explain(reason);
    return;
  }
  complain(null);
  following = true;
  busy = true;
  draw();
  const before = shownId;
  let files;
  try {
    files = await attached.read();
    if (files === null || shownId !== before) return; // another conversation is shown by now
    if (chat === null) {
      const begun = await request("/api/conversations", { method: "POST", body: "{}" });
      takeNews({ type: "conversation.created", conversation_id: begun.id, title: begun.title });
      go(begun.id);
    }
  } catch (error) {
    complain(sentence(error));
    return;
  } finally {
    busy = false;
    draw();
  }
  attached.clear();
  if (question.value === text) {
    question.value = "";
    fit();
  }
  question.focus();
  // The message is shown at once. If it cannot be sent, it shows that, and can be sent again.
  const sent = act(() => chat.send(text, { files }));
  draw();
  await sent;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});

question.addEventListener("keydown", (event) => {
  // With an input method editor, Enter also confirms the composed character.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit(question.value);
  }
});

question.addEventListener("input", () => {
  fit();
  drawComposer();
});

at("attach").addEventListener("click", () => at("files").click());

at("stop").addEventListener("click", async () => {
  const message = streaming();
  if (!message) return;
  await act(() => chat.stop(message.id), "The answer could not be stopped.");
});

async function act(action, failure = null) {
  const acting = chat;
  try {
    await action();
  } catch (error) {
    if (acting !== chat) return; // another conversation is shown by now
    if (failure !== null) complain(error instanceof ConverseError ? error.message : failure);
    draw();
  }
}

function complain(text) {
  const place = at("composer-error");
  place.hidden = text === null;
  place.textContent = text ?? "";
}

/** Announces a finished answer, or one that starts again or waits, to screen readers, once and completely. */
function announce(text) {
  const part = element("p", { textContent: text });
  at("announcer").replaceChildren(part);
}

// The list of conversations

async function loadConversations() {
  again = loading;
  if (loading) return;
  loading = true;
  try {
    do {
      again = false;
      const listed = await request("/api/conversations");
      if (again) continue;
      ({ conversations } = listed);
      writing.clear();
      for (const { id, writing: answers } of conversations) {
        for (const answer of answers) writing.set(answer, id);
      }
    } while (again);
  } catch {
    // The shown list is older, but still valid.
  } finally {
    loading = false;
  }
  drawConversations();
  drawTitle();
}

/** Follows all conversations, changed in this tab or another, to keep the list up to date. */
function followConversations() {
  if (document.hidden) {
    // A browser opens at most six connections to a host: a hidden tab uses only one.
    owner?.close();
    owner = null;
  } else if (owner === null) {
    const begun = openOwner({
      url: "/api",
      fetch: sendRequest,
      onOpened: () => {
        loadConversations();
        // Behind another stream there may be another service.
        if (!described) beginSession().then(describeModel, () => {});
        described = false;
      },
      onEvent: takeNews,
    });
    owner = begun;
    begun.subscribe(() => takeWaiting(begun));
  }
}

function takeWaiting(begun) {
  const { status, waiting: answers } = begun.getSnapshot();
  if (status === "error" && owner === begun) owner = null;
  if (status !== "open") return;
  const forReader = answers.filter((each) => approvalsOf(each).length > 0);
  waiting = new Set(forReader.map(({ conversation_id: id }) => id));
  drawConversations();
}

/** Applies an event to the list. A list that is being loaded may not include it yet. */
function takeNews({ type, conversation_id: id, message_id: message, title, role, streaming }) {
  if (OF_WORK.has(type)) return;
  const known = conversations.find((each) => each.id === id);
  const others = conversations.filter((each) => each.id !== id);
  if (type === "conversation.deleted") conversations = others;
  else if (type === "conversation.updated" && known) known.title = title;
  else if (type === "conversation.created") conversations = [{ id, title, ...known }, ...others];
  else if (type === "message.created" && known) conversations = [known, ...others];
  else if (!known) loadConversations();
  again = loading;
  if (type === "message.created" && role === "assistant" && streaming) writing.set(message, id);
  else if (ENDS.has(type)) writing.delete(message);
  drawConversations();
  drawTitle();
}

function drawConversations() {
  const busy = new Set(writing.values());
  const place = at("conversations");
  const nodes = new Map([...place.children].map((node) => [node.dataset.id, node]));
  conversations.forEach(({ id, title }, index) => {
    let node = nodes.get(id);
    nodes.delete(id);
    if (!node) {
      node = element("li", {}, element("a", { href: `#${id}` }, element("span")));
      node.dataset.id = id;
    }
    const link = node.firstChild;
    const text = title ?? "New conversation";
    const [name, sign] = link.childNodes;
    if (name.textContent !== text) name.textContent = text;
    const wanted = waiting.has(id) ? "waits-sign" : busy.has(id) ? "busy" : null;
    if (sign && sign.className !== wanted) sign.remove();
    if (wanted !== null && sign?.className !== wanted) link.append(signOf(wanted));
    if (id === shownId) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (place.children[index] !== node) place.insertBefore(node, place.children[index] ?? null);
  });
  for (const node of nodes.values()) node.remove();
  at("no-conversations").hidden = conversations.length > 0;
}

function signOf(className) {
  if (className === "waits-sign") return element("span", { className, textContent: FOR_YOU });
  const text = element("span", { className: "unseen", textContent: ", is being answered" });
  return element("span", { className: "busy" }, text);
}

at("conversations").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(link.hash.slice(1));
  closeSidebar();
  question.focus();
});

for (const id of ["new-chat", "trouble-new"]) {
  at(id).addEventListener("click", () => {
    go(null);
    closeSidebar();
    question.focus();
  });
}

// The list on narrow screens

function openSidebar() {
  document.body.classList.add("listing");
  at("open-sidebar").setAttribute("aria-expanded", "true");
  at("backdrop").hidden = false;
  fitSidebar();
  at("close-sidebar").focus();
}

function closeSidebar() {
  document.body.classList.remove("listing");
  at("open-sidebar").setAttribute("aria-expanded", "false");
  at("backdrop").hidden = true;
  fitSidebar();
}

/** Makes hidden parts unreachable for the keyboard. */
function fitSidebar() {
  const open = document.body.classList.contains("listing");
  at("sidebar").inert = NARROW.matches && !open;
  at("page").inert = NARROW.matches && open;
}

at("open-sidebar").addEventListener("click", openSidebar);
at("close-sidebar").addEventListener("click", () => {
  closeSidebar();
  at("open-sidebar").focus();
});
at("backdrop").addEventListener("click", closeSidebar);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("listing")) {
    closeSidebar();
    at("open-sidebar").focus();
  }
});
NARROW.addEventListener("change", () => {
  closeSidebar();
  // It is not closed by its user: it must not slide over the page.
  for (const each of at("sidebar").getAnimations()) each.finish();
});

// This page's own requests

let user = null;
let beginning = null; // the request that begins a session

/** Sends a request; if the session is gone, begins one and sends it again. */
async function sendRequest(path, init) {
  const response = await fetch(path, init);
  if (offline) setOffline(false); // it is on this machine
  if (response.status !== 401 || path === SESSION) return response;
  await response.body?.cancel();
  const { signal } = init ?? {};
  await beginSession();
  signal?.throwIfAborted();
  return await fetch(path, init);
}

/** Requests who the user is. Only this response sets the cookie that says so. */
function beginSession() {
  beginning ??= meet().finally(() => {
    beginning = null;
  });
  return beginning;
}

async function meet() {
  const me = await request(SESSION);
  const changed = user !== null && user !== me.id;
  user = me.id;
  if (changed) {
    // The cookie was deleted: what is shown belongs to a user who is gone.
    conversations = [];
    waiting = new Set();
    owner?.close();
    owner = null;
    followConversations();
    drawConversations();
  }
  return me;
}

async function request(path, options = {}) {
  const headers = { "content-type": "application/json" };
  let response;
  try {
    response = await sendRequest(path, { headers, ...options });
  } catch {
    throw new ConverseError("The service cannot be reached. Try again.", 0, "unreachable");
  }
  if (response.ok) return await response.json();
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? "The request failed. Try again.";
  throw new ConverseError(message, response.status, told?.error?.code ?? "unknown");
}

function sentence(error) {
  if (error instanceof ConverseError && error.status === 404) {
    return "The conversation does not exist, or it is not yours.";
  }
  if (error instanceof ConverseError) return error.message;
  return "The conversation could not be loaded. Reload the page to try again.";
}

// Start

function suggest(texts) {
  at("suggestions").replaceChildren(...texts.map((text) => {
    const button = element("button", { type: "button", textContent: text });
    button.addEventListener("click", () => submit(text));
    return element("li", {}, button);
  }));
}

// The fragment of the address is a conversation id, so do not follow the link.
at("skip").addEventListener("click", (event) => {
  event.preventDefault();
  question.focus();
});

addEventListener("popstate", fromAddress);
addEventListener("hashchange", fromAddress);
addEventListener("online", () => setOffline(false));
addEventListener("offline", () => setOffline(true));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    draw();
  }
  followConversations();
});

/** Says who answers, and what can be asked. */
function describeModel({ model, canned, files }) {
  attached.limits = files;
  const text = `Answers: ${model}`;
  if (at("model").textContent === text) return;
  at("model").textContent = text;
  at("commands").hidden = !canned;
  suggest(canned ? [...SUGGESTIONS.slice(0, 2), ...OFFLINE_COMMANDS] : SUGGESTIONS);
}

async function begin() {
  fitSidebar();
  suggest(SUGGESTIONS);
  draw();
  try {
    // This must come first: all other requests need the session.
    describeModel(await beginSession());
    described = true;
  } catch (error) {
    complain(sentence(error));
  }
  followConversations();
  await loadConversations();
  fromAddress();
  question.focus();
}

begin();
