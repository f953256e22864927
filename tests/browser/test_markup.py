"""Whatever a model or a user writes is text in the page, and never becomes markup of it."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenTab, Shoot
from tests.browser.site import Complaints, Model, Tab

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
)

# The elements that the page itself makes, inside of a message.
OURS = "a button code div h2 h3 h4 h5 h6 i li ol p pre span strong ul"

STRANGE = """(ours) => {
  const found = [];
  const safe = ["class", "start", "data-id", "data-status", "hidden", "type", "tabindex", "role",
    "aria-current", "aria-hidden", "aria-label", "href", "target", "rel", "disabled"];
  for (const node of document.querySelectorAll("#messages *, #conversations *")) {
    if (!ours.split(" ").includes(node.localName)) found.push(node.outerHTML);
    for (const { name, value } of node.attributes) {
      if (!safe.includes(name)) found.push(`${name}="${value}"`);
      if (name === "href" && !/^(https?:\\/\\/|#[0-9a-f]{24}$)/.test(value)) found.push(value);
    }
  }
  for (const name of ["script", "iframe", "img", "style", "form", "input"]) {
    const count = document.querySelectorAll(`body ${name}`).length;
    if (count > (name === "form" ? 1 : 0)) found.push(`${count} ${name}`);
  }
  if (window.harmed !== undefined) found.push("a script ran");
  return found;
}"""


# Without its policy the browser would do what markup says: the page must not rely on it alone.
@pytest.mark.parametrize("bypass_csp", [False, True], ids=["with_policy", "without_policy"])
def test_markup__of_a_model__is_shown_as_text(
    open_tab: OpenTab, model: Model, bypass_csp: bool, shoot: Shoot
) -> None:
    tab = open_tab(bypass_csp=bypass_csp).open()
    answer = "\n\n".join(HOSTILE)
    # In pieces that tear tags and marks apart, as tokens do.
    model.will(*(answer[start : start + 7] for start in range(0, len(answer), 7)), pace=0.001)
    tab.ask("Do your worst")
    expect(tab.answer).to_have_attribute("data-status", "completed")
    assert tab.stored()[-1]["content"] == answer
    assert tab.page.evaluate(STRANGE, OURS) == []
    for seen in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4], HOSTILE[12], HOSTILE[13]):
        expect(tab.text).to_contain_text(seen)
    expect(tab.text.locator("strong")).to_have_text("<b onclick=alert(1)>bold</b>")
    expect(tab.text.locator("code").first).to_have_text("</code><script>alert(1)</script>")
    hrefs = tab.text.get_by_role("link").evaluate_all("(all) => all.map((each) => each.href)")
    addresses = ("http://127.0.0.1:1/x", "http://127.0.0.1:1/pixel.png", "https://example.org/")
    assert set(hrefs) == set(addresses)
    tab.text.hover()
    shoot(tab, "markup-as-text")


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["with_policy", "without_policy"])
def test_markup__of_a_user__is_shown_as_text(
    open_tab: OpenTab, model: Model, bypass_csp: bool
) -> None:
    tab = open_tab(bypass_csp=bypass_csp).open()
    question = "<img src=x onerror=alert(1)> <b>bold</b> & **stars**"
    tab.ask(question)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    expect(tab.messages.first.locator(".text")).to_have_text(question)
    expect(tab.titles).to_have_text([question])
    expect(tab.page.get_by_role("heading", level=1)).to_have_text(question)
    expect(tab.page).to_have_title(f"{question} - Chat")
    assert tab.page.evaluate(STRANGE, OURS) == []
    assert tab.stored()[0]["content"] == question
    tab.page.reload()
    expect(tab.titles).to_have_text([question])
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
})"""

TIMES = f"""async ([length, shorter]) => {{
  const {{ showText }} = await import("/text.js");
  const texts = ({SLOW});
  const time = (text) => {{
    // The best of some, since a busy machine is slow now and then.
    return Math.min(...[1, 2, 3].map(() => {{
      const begun = performance.now();
      showText(document.createElement("div"), text);
      return performance.now() - begun;
    }}));
  }};
  const [short, long] = [texts(shorter), texts(length)];
  return Object.keys(long).map((name) => [name, time(short[name]), time(long[name])]);
}}"""


def test_text__of_any_kind_takes_time_that_grows_with_its_length(tab: Tab) -> None:
    times = tab.page.evaluate(TIMES, [80_000, 10_000])
    # Eight times the length: 8 times the time, or 64 times if it grows with the square.
    slow = {name: (short, long) for name, short, long in times if long > max(25 * short, 100)}
    assert slow == {}


def test_text__has_code_strong_text_and_links(tab: Tab, model: Model) -> None:
    model.will(
        "**bold** and `code`, ``a`b`` and **https://example.org/x**. https://example.org/y).\n\n",
        "**a **b** c ** d** ****e `open https://...\n\n```py\nx = `1`\n```\n## T t\n- a\n  b\n- c",
    )
    tab.ask("Everything")
    expect(tab.answer).to_have_attribute("data-status", "completed")
    expect(tab.text.locator("strong")).to_have_text(["bold", "https://example.org/x", "a **b"])
    expect(tab.text.locator("p code")).to_have_text(["code", "a`b"])
    expect(tab.text.locator("pre code")).to_have_text("x = `1`")
    expect(tab.text.get_by_role("link")).to_have_text(
        ["https://example.org/x", "https://example.org/y"]
    )
    expect(tab.text.get_by_role("heading", level=4)).to_have_text("T t")
    expect(tab.text.locator("li")).to_have_text(["a b", "c"])
