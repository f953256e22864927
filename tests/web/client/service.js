// A service to test the client with, in the process of the test: the routes of one conversation,
// what is stored in it, and whatever a test wants to go wrong.

import { createServer } from "node:http";

import { PartLog } from "../../../converse_mongo/web/client/parts.js";

export const ID = "6b0584864f3cb2a7c6ce844a";
export const HEAD = { "content-type": "text/event-stream; charset=utf-8" };
export const FIRST = "retry: 8\n\n";

const CONVERSATION = "/conversations/[^/]+";
const MESSAGE = `${CONVERSATION}/messages/[^/]+`;
const ROUTES = Object.entries({
  page: `GET ${CONVERSATION}/messages`,
  events: `GET ${CONVERSATION}/events`,
  send: `POST ${CONVERSATION}/messages`,
  "stop all": `POST ${CONVERSATION}/stop`,
  message: `GET ${MESSAGE}`,
  "message events": `GET ${MESSAGE}/events`,
  stop: `POST ${MESSAGE}/stop`,
  retry: `POST ${MESSAGE}/retry`,
  answers: `POST ${MESSAGE}/answers`,
  "owner events": "GET /events",
}).map(([name, pattern]) => [name, new RegExp(`^${pattern}$`)]);

const running = new Set();

/** Starts a server that has `handle` answer its requests; gives where it is. */
export async function listen(handle) {
  const server = createServer(handle);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  running.add(server);
  return `http://127.0.0.1:${server.address().port}`;
}

/** Stops all servers. */
export async function stopServers() {
  for (const server of running) {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  }
  running.clear();
}

/** A frame of a stream. */
export function frame(data, id = null) {
  const first = id === null ? "" : `id: ${id}\n`;
  return `${first}event: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`;
}

// Answers

export function json(value, status = 200, headers = {}) {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(value));
  };
}

/** Refuses a request as the routes do. */
export function refuse(status, code = "refused", message = `Refused: ${status}.`, headers = {}) {
  return json({ error: { code, message } }, status, headers);
}

const NOT_FOUND = refuse(404, "not_found", "Not found.");

/** Breaks the connection off. */
export function drop(response) {
  response.destroy();
}

/** Waits until a condition holds; it is looked at whenever `subscribe` calls its listener. */
export function until(subscribe, condition) {
  return new Promise((resolve, reject) => {
    let unsubscribe = () => {};
    const look = () => {
      try {
        const found = condition();
        if (!found) return;
        resolve(found);
      } catch (error) {
        reject(error);
      }
      unsubscribe();
    };
    unsubscribe = subscribe(look);
    look();
  });
}

/**
 * Serves one conversation as the routes do, whatever id it is asked for with. What is stored and told is up to the test: `say`,
 * `begin`, `append` and `end` store something and tell it; within `silently` they only store it,
 * and `tell` only tells.
 */
export class Service {
  /** What was asked for: `name` of the route, `path`, `query`, `headers`, `body`. */
  requests = [];
  /** The messages that are stored, by id. */
  stored = new Map();
  /** What was told of the conversation, where its cursors are numbers of. */
  told = [];
  /** What streams: `name` of the route, `response`. */
  streams = new Set();
  /** What a stream of all conversations says first: which answers wait for people. */
  waiting = [];
  /** Whether what is said is answered here. */
  answering = false;

  #logs = new Map();
  #scripted = new Map();
  #listeners = new Set();
  #positions = 0;
  #quiet = false;
  #sent = new Map();

  static async start() {
    const service = new Service();
    service.origin = await listen((request, response) => service.#handle(request, response));
    service.url = `${service.origin}/api`;
    return service;
  }

  /** Has the next requests of a route answered so, one by one: `answer(response, request)`. */
  next(name, ...answers) {
    this.#scripted.set(name, [...(this.#scripted.get(name) ?? []), ...answers]);
  }

  /**
   * Has the next request of a route wait, once it has `arrived`, until `release` is called with an
   * answer, by default the usual one; `gone` is done when its client gave up, or has the answer.
   */
  hold(name) {
    const held = {};
    held.gone = new Promise((leave) => {
      held.arrived = new Promise((arrive) => {
        this.next(name, (response, request) => {
          held.release = (answer = this.#usual[name]) => answer(response, request);
          response.on("close", leave);
          arrive(request);
        });
      });
    });
    return held;
  }

  /** The requests of a route so far. */
  of(name) {
    return this.requests.filter((request) => request.name === name);
  }

  /** Waits until a route was asked for so many times. */
  async requested(name, count = 1) {
    await this.until(() => this.of(name).length >= count);
    return this.of(name)[count - 1];
  }

  /** Waits until a condition holds, which depends on requests and streams. */
  async until(condition) {
    return await until((listener) => {
      this.#listeners.add(listener);
      return () => this.#listeners.delete(listener);
    }, condition);
  }

  // What happens in the conversation

  silently(action) {
    this.#quiet = true;
    try {
      return action();
    } finally {
      this.#quiet = false;
    }
  }

  /** Stores a message that is whole. */
  say(content, fields = {}) {
    const message = this.#store({ role: "user", status: "completed", content, ...fields });
    this.tell(created(message));
    return message;
  }

  /** Stores a message that streams. */
  begin(fields = {}) {
    const message = this.#store({ role: "assistant", completed_at: null, ...fields });
    this.tell(created(message));
    return message;
  }

  /** Stores texts, and chunks of parts. */
  append(message, ...pieces) {
    const log = this.#logs.get(message.id) ?? new PartLog();
    this.#logs.set(message.id, log);
    const events = pieces.map((piece) => {
      const fields = typeof piece === "string" ? { content: piece } : { content: "", ...piece };
      const event = chunk(message, message.chunk_count, fields);
      log.add(event.chunk);
      log.hasParts ||= typeof piece !== "string";
      message.content = log.text();
      message.chunk_count += 1;
      return event;
    });
    this.tell(...events);
    return events;
  }

  /** A message as it is sent. */
  wire(message) {
    const log = this.#logs.get(message.id);
    const { status, chunk_count } = message;
    const streams = status === "streaming";
    const last = chunk_count > 0 ? `opaque.${chunk_count - 1}` : null;
    return structuredClone({
      ...message,
      ...(log?.hasParts ? { parts: log.records() } : {}),
      ...(streams && (log?.open ?? null) !== null ? { open_part: log.open } : {}),
      cursor: streams ? last : "opaque.end", // which says nothing to clients
    });
  }

  /** Stores what a queued message waits for, and tells those who stream now: it has no place. */
  wait(message, state, attempt = 1, pending = undefined) {
    message.work = { state, attempt, ...(pending ? { pending } : {}) };
    if (!this.#quiet) this.tellWork(message);
  }

  tellWork(message) {
    const { state, ...work } = message.work;
    const names = { queued: "message.queued", running: "message.started", waiting: "message.suspended" };
    const text = frame({ type: names[state], ...named(message), ...work });
    for (const { response } of this.streams) response.write(text);
  }

  end(message, status = "completed", fields = {}) {
    delete message.work;
    Object.assign(message, { status, completed_at: time(99), ...fields });
    const event = ended(message);
    this.tell(event);
    return event;
  }

  update(message, metadata) {
    message.metadata = metadata;
    this.tell({ type: "message.updated", ...named(message), revision: 1 });
  }

  /** Tells those who stream, all at once, and those who come back. */
  tell(...events) {
    if (this.#quiet || events.length === 0) return;
    const texts = events.map((event) => {
      this.told.push(event);
      return frame(event, `${ID}.${this.told.length}`);
    });
    for (const { name, response, messageId } of this.streams) {
      if (name === "events") response.write(texts.join(""));
      if (name !== "message events") continue;
      const own = events.filter((event) => isOf(event, messageId));
      if (own.length > 0) response.write(own.map((event) => frame(event, idOf(event))).join(""));
    }
  }

  /** Tells those who watch all conversations. */
  tellOwner(...events) {
    for (const { name, response } of this.streams) {
      if (name === "owner events") response.write(events.map((event) => frame(event)).join(""));
    }
  }

  /** Ends the streams that are open, or breaks them off. */
  endStreams() {
    for (const { response } of this.streams) response.end();
  }

  breakStreams() {
    for (const { response } of this.streams) response.destroy();
  }

  // Requests

  async #handle(request, response) {
    const url = new URL(request.url, this.origin);
    const path = url.pathname.replace(/^\/api/, "");
    const name = ROUTES.find(([, pattern]) => pattern.test(`${request.method} ${path}`))?.[0];
    let text = "";
    request.setEncoding("utf8");
    for await (const piece of request) text += piece;
    const asked = {
      name,
      path,
      query: Object.fromEntries(url.searchParams),
      headers: request.headers,
      body: text === "" ? undefined : JSON.parse(text),
    };
    this.requests.push(asked);
    response.on("close", () => this.#notify());
    const answer = this.#scripted.get(name)?.shift() ?? this.#usual[name] ?? refuse(404);
    answer(response, asked);
    this.#notify();
  }

  #usual = {
    page: (response, { query }) => {
      const limit = Number(query.limit ?? 50);
      const before = Number(query.before ?? Infinity);
      const older = [...this.stored.values()].filter(({ position }) => position < before);
      const messages = older.slice(-limit);
      const page = { messages: messages.map((each) => this.wire(each)), before: older.length > limit ? messages[0].position : null };
      json(query.before ? page : { ...page, cursor: `${ID}.${this.told.length}` })(response);
    },

    events: (response, { query }) => {
      const after = Number(query.after?.split(".")[1] ?? 0);
      const missed = this.told.slice(after);
      const texts = missed.map((event, index) => frame(event, `${ID}.${after + index + 1}`));
      this.#stream(response, { name: "events" }, texts);
    },

    send: (response, { body: { content, request_id } }) => {
      const sent = this.#sent.get(request_id) ?? { message: this.say(content), answer: null };
      if (this.answering) sent.answer ??= this.begin();
      this.#sent.set(request_id, sent);
      const { message, answer } = sent;
      json({ message: this.wire(message), answer: answer && this.wire(answer) }, 201)(response);
    },

    message: (response, { path }) => {
      const message = this.stored.get(idIn(path));
      (message === undefined ? NOT_FOUND : json(this.wire(message)))(response);
    },

    "message events": (response, { path, query }) => {
      const messageId = idIn(path);
      const after = query.after?.split(".")[1] ?? "-1";
      if (!this.stored.has(messageId)) NOT_FOUND(response);
      else if (after === "end") response.writeHead(204).end();
      else {
        const own = this.told.filter((event) => isOf(event, messageId));
        const missed = own.filter((event) => !(event.chunk?.sequence <= Number(after)));
        const texts = missed.map((event) => frame(event, idOf(event)));
        this.#stream(response, { name: "message events", messageId }, texts);
      }
    },

    retry: (response, { path }) => {
      const answer = this.answering ? this.begin({ replaces: idIn(path) }) : null;
      json({ answer: answer && this.wire(answer) }, 201)(response);
    },

    answers: (response, { path }) => {
      const { work = null } = this.stored.get(idIn(path));
      json({ work })(response);
    },

    stop: (response, { path }) => json({ id: idIn(path), status: "streaming" })(response),

    "stop all": json({ stopped: [] }),

    "owner events": (response) => {
      const opened = { type: "stream.opened", waiting: this.waiting };
      this.#stream(response, { name: "owner events" }, [frame(opened)]);
    },
  };

  #stream(response, stream, texts) {
    const kept = { ...stream, response };
    response.writeHead(200, HEAD);
    response.write(FIRST + texts.join(""));
    this.streams.add(kept);
    response.on("close", () => {
      this.streams.delete(kept);
      this.#notify();
    });
  }

  #store(fields) {
    const position = this.#positions;
    this.#positions += 1;
    const message = {
      id: `b${position}`,
      conversation_id: ID,
      position,
      role: "assistant",
      status: "streaming",
      content: "",
      chunk_count: 0,
      metadata: {},
      replaces: null,
      error: null,
      stop_reason: null,
      created_at: time(position),
      completed_at: time(position),
      ...fields,
    };
    this.stored.set(message.id, message);
    return message;
  }

  #notify() {
    for (const listener of [...this.#listeners]) listener();
  }
}

// Events

/** A time that many seconds after some day. */
function time(seconds) {
  return new Date(Date.UTC(2025, 0, 1, 0, 0, seconds)).toISOString();
}

/** The id of a message in the path of a request. */
function idIn(path) {
  return path.split("/")[4];
}

function named(message) {
  return { conversation_id: ID, message_id: message.id };
}

export function created(message) {
  const { position, role, metadata, replaces, created_at } = message;
  const streaming = message.status === "streaming";
  return {
    type: "message.created",
    ...named(message),
    ...{ position, role, streaming, content: streaming ? "" : message.content },
    ...{ metadata, replaces, created_at },
  };
}

export function chunk(message, sequence, fields) {
  const created_at = time(sequence);
  return { type: "chunk.received", ...named(message), chunk: { sequence, ...fields, created_at } };
}

export function ended(message) {
  const { status, chunk_count, metadata, completed_at, error, stop_reason } = message;
  return {
    type: `message.${status}`,
    ...named(message),
    ...{ chunk_count, metadata, completed_at },
    ...(status === "failed" ? { error } : {}),
    ...(status === "cancelled" ? { reason: stop_reason } : {}),
  };
}

/** Whether an event is one of the stream of a message. */
function isOf({ type, message_id }, messageId) {
  return message_id === messageId && type !== "message.created" && type !== "message.updated";
}

/** A message of text alone as clients show it. */
export function shownAs({ cursor, ...message }) {
  const { content, parts = content === "" ? [] : [{ part: 0, kind: "text", fields: {}, text: content }] } = message;
  return { ...message, parts };
}

/** The id of an event on the stream of its message. */
function idOf(event) {
  return `${event.message_id}.${event.chunk?.sequence ?? "end"}`;
}
