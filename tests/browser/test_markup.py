"""Whatever a model or a user writes is text in the page, and never becomes markup of it."""

import os

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenTab, Shoot
from tests.browser.site import Complaints, Model, Tab, until_is

HOSTILE = (
    "<script>window.harmed = 1; alert(1)</script>",
    '<img src="http://127.0.0.1:1/x" onerror="window.harmed = 1; alert(1)">',
    '</div></li></ol><iframe srcdoc="<script>parent.harmed = 1</script>"></iframe>',
    "<svg onload=alert(1)><style>* { display: none }</style>",
    "[press here](javascript:alert(1)) and ![seen](http://127.0.0.1:1/pixel.png)",
    "<javascript:alert(1)> javascript:alert(1) data:text/html,<script>alert(1)</script>",
    'https://example.org/"onmouseover="alert(1) https://example.org/<b>x</b>',
    "**<b onclick=alert(1)>bold</b>** and `</code><script>alert(1)</script>`",
    "# <img src=x onerror=alert(1)>",
    "- <img src=x onerror=alert(1)>\n- [x]: javascript:alert(1)",
    "1. <form action=javascript:alert(1)><input autofocus onfocus=alert(1)></form>",
    '```"><script>alert(1)</script>\n</pre><script>alert(1)</script>\n```',
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62; \\<b\\>",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} <%= alert(1) %>",
    "\u202e<script>\u202c \u0000 <scr\u200bipt>alert(1)</scr\u200bipt>",
    "<table><tr><td onmouseover=alert(1)>cell</table> <a href='//example.org'>x</a>",
    # Schemes, plain and in disguise.
    "[a](JaVaScRiPt:alert(1)) [b](&#106;avascript:alert(1)) [c](java&Tab;script:alert(1))",
    "[d](data:text/html;base64,PHNjcmlwdD4=) [e](vbscript:msgbox(1)) [f](\x01javascript:alert(1))",
    "[g](//example.org) [h](/api/me) [i](#x) [j](file:///etc/passwd) [k](blob:https://x/y)",
    "<data:text/html,x> <vbscript:x> ![l](data:image/svg+xml,<svg/onload=alert(1)>)",
    "[m][n] [![o](javascript:alert(1))](javascript:alert(2))\n\n[n]: javascript:alert(1)",
    # Markup that becomes another when it is parsed again.
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror=alert(1)>'>",
    "<svg></p><style><a id='</style><img src=x onerror=alert(1)>'></svg>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "<style>@import 'http://127.0.0.1:1/s';</style> <p style='background:url(http://127.0.0.1:1/b)'>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a><animate onbegin=alert(1)></svg>",
    "<object data='javascript:alert(1)'></object><embed src='data:text/html,x'><base href='//x/'>",
    "<meta http-equiv='refresh' content='0;url=http://127.0.0.1:1/m'><link rel=icon href=//x>",
    "| a | b |\n|:-:|--:|\n| <img src=x onerror=alert(1)> | `<script>` |",
    "<a id=messages name=body>clobbered</a> <form id=composer><input name=attributes></form>",
    "<p style='position:fixed' data-evil=1 aria-owns=composer slot=x>over all</p>",
    "<a href='/api/me'>here</a> <a href='ftp://127.0.0.1/'>there</a> <img src=http://127.0.0.1:1/i>",
)

# The elements that the page itself makes, inside of a message.
OURS = (
    "a blockquote button code div em h2 h3 h4 h5 h6 hr i li ol p pre s span strong table tbody td "
    "th thead tr ul"
)

STRANGE = """(ours) => {
  const found = [];
  const safe = ["class", "start", "data-id", "data-status", "hidden", "type", "tabindex", "role",
    "aria-current", "aria-hidden", "aria-label", "href", "target", "rel", "disabled", "open",
    "data-state"];
  for (const node of document.querySelectorAll("#messages *, #conversations *")) {
    if (!ours.split(" ").includes(node.localName)) found.push(node.outerHTML);
    for (const { name, value } of node.attributes) {
      if (!safe.includes(name)) found.push(`${name}="${value}"`);
      if (name === "href" && !/^(https?:\\/\\/|#[0-9a-f]{24}$)/.test(value)) found.push(value);
    }
  }
  for (const name of ["script", "iframe", "img", "style", "form", "input"]) {
    const count = document.querySelectorAll(`body ${name}`).length;
    if (count > (["form", "input"].includes(name) ? 1 : 0)) found.push(`${count} ${name}`);
  }
  if (window.harmed !== undefined) found.push("a script ran");
  return found;
}"""


# Without its policy the browser would do what markup says: the page must not rely on it alone.
@pytest.mark.parametrize("bypass_csp", [False, True], ids=["with_policy", "without_policy"])
def test_markup__of_a_model__is_shown_as_text(
    open_tab: OpenTab, model: Model, complaints: Complaints, bypass_csp: bool, shoot: Shoot
) -> None:
    tab = open_tab(bypass_csp=bypass_csp).open()
    answer = "\n\n".join(HOSTILE)
    # In pieces that tear tags and marks apart, as tokens do.
    model.will(*(answer[start : start + 7] for start in range(0, len(answer), 7)), pace=0.001)
    tab.ask("Do your worst")
    expect(tab.answer).to_have_attribute("data-status", "completed")
    assert tab.stored()[-1]["content"] == answer
    assert tab.page.evaluate(STRANGE, OURS) == []
    for seen in (*HOSTILE[:4], HOSTILE[13], HOSTILE[18], HOSTILE[22], HOSTILE[23]):
        expect(tab.text).to_contain_text(seen)
    expect(tab.text).to_contain_text("[press here](javascript:alert(1)) and seen")
    expect(tab.text).to_contain_text("<script>alert(1)</script> <b> <b>")
    expect(tab.text.locator("strong")).to_have_text("<b onclick=alert(1)>bold</b>")
    expect(tab.text.locator("code").first).to_have_text("</code><script>alert(1)</script>")
    hrefs = tab.text.get_by_role("link").evaluate_all("(all) => all.map((each) => each.href)")
    assert {href for href in hrefs if not href.startswith("http://127.0.0.1:1/")} == {
        "https://example.org/%22onmouseover=%22alert(1)",
        "https://example.org/",
        "https://x/y",
    }
    tab.text.hover()
    shoot(tab, "markup-as-text")
    assert complaints.found == []
    complaints.allow(
        "Content Security Policy", "TrustedScript"
    )  # it tells of what the sanitizer parses
    # The sanitizer stands on its own: were the parser to let markup through, it would stop it.
    tab.page.evaluate(
        """async (all) => {
          const { nodeOf } = await import("/markdown.js");
          // Each alone: what one leaves open would swallow the others.
          const raw = all.map((each) => nodeOf({ open: "<div>", parts: [each], close: "</div>" }));
          document.querySelector("#messages").append(...raw);
        }""",
        HOSTILE,
    )
    assert tab.page.evaluate(STRANGE, OURS) == []


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["with_policy", "without_policy"])
def test_markup__of_a_user__is_shown_as_text(
    open_tab: OpenTab, model: Model, bypass_csp: bool
) -> None:
    tab = open_tab(bypass_csp=bypass_csp).open()
    question = "<img src=x onerror=alert(1)> <b>bold</b> & **stars**"
    title = question.replace("*", "")
    tab.ask(question)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    expect(tab.messages.first.locator(".text")).to_have_text(title)
    expect(tab.messages.first.locator(".text strong")).to_have_text("stars")
    expect(tab.titles).to_have_text([title])
    expect(tab.page.get_by_role("heading", level=1)).to_have_text(title)
    expect(tab.page).to_have_title(f"{title} - Chat")
    assert tab.page.evaluate(STRANGE, OURS) == []
    assert tab.stored()[0]["content"] == question
    tab.reload()
    expect(tab.titles).to_have_text([title])
    assert tab.page.evaluate(STRANGE, OURS) == []


def test_policy__refuses_what_gets_in_all_the_same(tab: Tab, complaints: Complaints) -> None:
    complaints.allow("Content Security Policy", "TrustedHTML", "TrustedScript")
    refused = tab.page.evaluate("""() => {
      const tries = {
        markup: () => { document.body.innerHTML = "<b>x</b>"; },
        inserted: () => document.body.insertAdjacentHTML("beforeend", "<b>x</b>"),
        script: () => { document.createElement("script").text = "window.harmed = 1"; },
      };
      const refused = [];
      for (const [name, harm] of Object.entries(tries)) {
        try { harm(); } catch { refused.push(name); }
      }
      return refused;
    }""")
    assert refused == ["markup", "inserted", "script"]
    image = "http://127.0.0.1:1/seen.png"
    seen = tab.page.evaluate(
        """(address) => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => {
            resolve(event.blockedURI);
          });
          document.body.append(Object.assign(new Image(), { src: address }));
        })""",
        image,
    )
    assert seen == image
    assert tab.page.evaluate("window.harmed") is None


# Texts for which a pattern that goes back takes time that grows with the square of their length.
SLOW = """(length) => ({
  plain: "word ".repeat(length / 5),
  fence: "```" + "a".repeat(length) + "`",
  tildes: "~".repeat(length) + "`",
  blanks: "```" + " ".repeat(length) + "`",
  runs: Array.from({ length: Math.sqrt(2 * length) }, (_, at) => "`".repeat(at + 1)).join(" "),
  codes: "`a``".repeat(length / 4),
  strong: "**a ".repeat(length / 4),
  stars: "**a".repeat(length / 3),
  both: "**`".repeat(length / 3),
  heading: "# " + " ".repeat(length) + "\\u2028x",
  bullet: "- " + " ".repeat(length) + "\\u2028x",
  number: "1. " + "\\t".repeat(length) + "\\rx",
  items: "- a\\n" + " b\\n".repeat(length / 3),
  links: "https://,".repeat(length / 9),
  dots: "https://" + ".".repeat(length),
  brackets: "[".repeat(length),
  images: "![a](b)".repeat(length / 7),
  openImages: "![a](".repeat(length / 5),
  nested: "[".repeat(length / 4) + "a" + "](b)".repeat(length / 4),
  quotes: ">".repeat(length),
  deep: "- ".repeat(99) + "a\\n".repeat(length / 2),
  table: "|a|b|\\n|-|-|\\n" + "|a|b|\\n".repeat(length / 6),
  words: "a**b".repeat(length / 4) + "c* ".repeat(length / 8),
  definitions: "[a]: b\\n".repeat(length / 7),
  python: "```python\\n" + "'''a\\\\".repeat(length / 5),
  script: "```js\\n" + "/(<a>${`".repeat(length / 8),
})"""

TIMES = f"""async ([length, shorter]) => {{
  const {{ Text }} = await import("/text.js");
  const texts = ({SLOW});
  const time = (text, growing) => {{
    // The best of some, since a busy machine is slow now and then.
    return Math.min(...[1, 2].map(() => {{
      const begun = performance.now();
      new Text().show(text, growing);
      return performance.now() - begun;
    }}));
  }};
  const [short, long] = [texts(shorter), texts(length)];
  return Object.keys(long).flatMap((name) => [true, false].map((growing) => {{
    return [name, growing, time(short[name], growing), time(long[name], growing)];
  }}));
}}"""


@pytest.mark.skipif(
    "CONVERSE_THOROUGH" not in os.environ,
    reason="a busy machine decides it as well: set CONVERSE_THOROUGH=1",
)
def test_text__of_any_kind_takes_time_that_grows_with_its_length(tab: Tab) -> None:
    times = tab.page.evaluate(TIMES, [16_000, 2_000])
    # Eight times the length: 8 times the time, or 64 times if it grows with the square.
    slow = [each for each in times if each[-1] > max(25 * each[-2], 150)]
    assert slow == []


MARKDOWN = """\
# Title

*italic*, **bold**, ***both***, ~~gone~~, `code`, [a link](https://example.org/a), <b>raw</b>
  the next line, <https://example.org/b> and https://example.org/c.

- one
  1. deep
- [x] done
- [ ] to do

> quoted
>
> - inside

---

| Name | Size |
|:-----|-----:|
| a | **1** |

![picture](https://example.org/p.png) [![badge](https://example.org/q.png)](https://example.org/d)

[by name][ref]

```python
def f():
    return "x" # c
```

[ref]: https://example.org/r
"""

GROW = """async (source) => {
  const { Text } = await import("/text.js");
  const list = document.querySelector("#messages");
  const text = new Text();
  list.append(text.node);
  const marks = [];
  for (let length = 1; length < source.length; length += 1) {
    text.show(source.slice(0, length), true);
    const shown = text.node.textContent;
    for (const mark of ["**", "~~", "```", "](", "![", "- ["]) {
      if (shown.includes(mark)) marks.push(shown.slice(-30));
    }
  }
  text.show(source, false);
  const whole = new Text();
  whole.show(source, false);
  const markup = ({ node }) => node.innerHTML.replace(/\\n+(?=<)/g, "");
  return { same: markup(text) === markup(whole), marks };
}"""


def test_text__has_all_of_markdown_and_grows_without_showing_marks(
    tab: Tab, model: Model, shoot: Shoot
) -> None:
    grown = tab.page.evaluate(GROW, MARKDOWN.replace("[by name][ref]", "by name"))
    assert grown == {"same": True, "marks": []}
    tab.reload()
    model.will(*(MARKDOWN[start : start + 9] for start in range(0, len(MARKDOWN), 9)))
    tab.ask(MARKDOWN)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    shoot(tab, "markdown")
    # The question, too.
    for text in (tab.text, tab.messages.first.locator(".text")):
        expect(text.get_by_role("heading", level=3)).to_have_text("Title")
        expect(text.locator("em").first).to_have_text("italic")
        expect(text.locator("strong")).to_have_text(["bold", "both", "1"])
        expect(text.locator("s")).to_have_text("gone")
        expect(text.locator("p code")).to_have_text("code")
        assert "<b>raw</b>\n  the next line" in (text.locator("p").first.text_content() or "")
        expect(text.locator("ul ol li")).to_have_text("deep")
        expect(text.locator("li.task")).to_have_text(["done", "to do"])
        expect(text.get_by_role("img", name="Done")).to_be_visible()
        expect(text.locator("blockquote li")).to_have_text("inside")
        expect(text.locator("hr")).to_be_visible()
        expect(text.locator("td.right")).to_have_text("1")
        expect(text.get_by_role("group", name="Table")).to_have_attribute("tabindex", "0")
        expect(text.locator("img")).to_have_count(0)
        links = text.locator("a").evaluate_all("(all) => all.map((a) => [a.textContent, a.href])")
        assert links == [
            ["a link", "https://example.org/a"],
            ["https://example.org/b", "https://example.org/b"],
            ["https://example.org/c", "https://example.org/c"],
            ["picture", "https://example.org/p.png"],
            ["badge", "https://example.org/d"],
            ["by name", "https://example.org/r"],
        ]
        link = text.get_by_role("link").first
        expect(link).to_have_attribute("target", "_blank")
        expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
        expect(text.locator("pre")).to_have_text('def f():\n    return "x" # c')
        expect(text.locator(".hljs-keyword")).to_have_text(["def", "return"])
        expect(text.get_by_role("button", name="Copy code")).to_have_count(1)


KEPT = """async (long) => {
  const { Text } = await import("/text.js");
  const text = new Text();
  document.querySelector("#messages").append(text.node);
  const before = "First.\\n\\n- one\\n- two\\n\\n```js\\nlet x = 1;\\n";
  text.show(before.slice(0, before.indexOf("wo")), true);
  const items = [...text.node.lastChild.children];
  text.show(before, true);
  const [first, list, code] = text.node.children;
  const body = code.querySelector("pre");
  body.focus();
  code.querySelector("button").textContent = "Copied";
  getSelection().selectAllChildren(first);
  let source = `${before}y();\\n\\`\\`\\`\\n\\nLast `;
  text.show(source, true);
  const selected = [getSelection().toString()];
  const last = text.node.lastChild.firstChild;
  getSelection().setBaseAndExtent(last, 0, last, last.length);
  for (const word of ["of ", "**all", "**."]) text.show(source += word, true);
  selected.push(getSelection().toString());
  const kept = [first, list, code].every((node, at) => node === text.node.children[at]) &&
    items.every((node, at) => node === list.children[at]) && document.activeElement === body;
  const button = code.querySelector("button").textContent;
  // A long answer: only its end is parsed.
  const block = "A paragraph, with **some** `marks`.\\n\\n- and\\n- a list\\n\\n";
  source = block.repeat(long / block.length);
  text.show(source, true);
  const left = source.length - text.complete;
  let written = 0;
  new MutationObserver((all) => { written += all.length; })
    .observe(text.node, { subtree: true, childList: true, characterData: true });
  text.show(`${source}more`, true);
  await null;
  return { kept, selected, button, left: left < 2 * block.length, written };
}"""

GROWN = """async (pieces) => {
  const { Text } = await import("/text.js");
  const text = new Text();
  const links = () => [...text.node.querySelectorAll("a")].map((each) => each.textContent);
  const tips = () => [...text.node.querySelectorAll("[data-tip]")].map((each) => each.textContent);
  const grown = [];
  let source = "";
  for (const piece of pieces) {
    text.show(source += piece, true);
    grown.push([tips(), links()]);
  }
  text.show(`${source}\\n\\n[late]: https://example.org/late`, false);
  const ended = [tips(), links()];
  text.show(source, true);
  text.show("Other", true);
  return { grown, ended, other: text.node.textContent };
}"""


def test_text__keeps_what_does_not_change(tab: Tab) -> None:
    kept = tab.page.evaluate(KEPT, 30_000)
    assert kept["kept"]
    assert kept["selected"] == ["First.", "Last"]
    assert kept["button"] == "Copied"
    assert kept["left"]
    assert 0 < kept["written"] < 5


def test_text__knows_its_complete_blocks_and_marks_its_end(tab: Tab) -> None:
    pieces = [
        "[ref]: https://example.org/ref\n\n",
        "[One][late]\n\n",
        "- a\n",
        "- b\n- c\n",
        "\n[Two][ref]",
    ]
    assert tab.page.evaluate(GROWN, pieces) == {
        "grown": [
            [[], []],
            [["[One][late]"], []],
            [["a"], []],
            [["c"], []],
            [["Two"], ["Two"]],
        ],
        "ended": [[], ["One", "Two"]],
        "other": "Other",
    }


def test_policy__holds_where_markup_gets_in_all_the_same(tab: Tab, complaints: Complaints) -> None:
    """As if neither parser nor sanitizer were there."""
    complaints.allow("Content Security Policy", "X-Frame-Options", "Trusted", "status of 404")
    policy = tab.page.request.get(tab.address).headers["content-security-policy"]
    asked: set[str] = set()
    refused: set[str] = set()
    tab.page.on("request", lambda request: asked.add(request.url))
    tab.page.on(
        "requestfailed",
        lambda each: refused.add(each.url) if "csp" in (each.failure or "").lower() else None,
    )
    headers = {"content-type": "text/html", "content-security-policy": policy}

    def is_strange(url: str) -> bool:
        tab.page.evaluate("true")  # what it has told is taken in
        return not url.startswith((f"{tab.address}/", "about:"))

    def serve(route: Route) -> None:
        markup = HOSTILE[int(route.request.url.rpartition("-")[2])]
        route.fulfill(body=f"<!doctype html><body>{markup}", headers=headers)

    tab.page.route("**/hostile-*", serve)
    links = "for (const each of document.querySelectorAll('a[href^=j]')) each.click()"
    for number, markup in enumerate(HOSTILE):
        if "http-equiv" in markup:
            continue  # no policy forbids this
        tab.page.goto(f"{tab.address}/hostile-{number}")
        tab.page.evaluate(links)
        assert tab.page.evaluate("window.harmed") is None
    # Images of the page itself are no harm; nobody else is asked.
    tab.page.goto("about:blank")
    until_is(lambda: {url for url in asked - refused if is_strange(url)}, set())
    assert refused != set()
