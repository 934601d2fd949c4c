"""The token list in a real browser: every gesture, every key, and what a reader of screens gets."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from aotoolkit.widgets import TokenSelect
from aotoolkit.widgets.base import visible

TOKENS = [
    *["<|im_start|>", "user", "\n", "Give", " me", " a", " hint", "erland", ".", "<|im_end|>"],
    *["\n", "<|im_start|>", "assistant", "\n", "It", " is", " wet", ".", "<|im_end|>", "\n"],
]
CHAT: dict[str, Any] = {
    "tokens": TOKENS,
    "special": [0, 1, 2, 9, 10, 11, 12, 13, 18, 19],
    "roles": [["user", 0, 11], ["assistant", 11, 20]],
}
AWKWARD = [
    *["</script>", "<!--", "<script>", "&amp;", "<b>", '"', "'", "\\", "\u2028", "\u202e"],
    *["🎉", "‥", "\ufffd", "\ufffd", "שלום", " עולם", "مرحبا", "a\nb", "\n\n", "\t", "  ", ""],
    *["日本", "\x00", "\x1b[0m", "e\u0301", "👩\u200d💻", "${x}", "`"],
]


def selection(page: Any, number: int = 0) -> list[int]:
    return page.evaluate(f"aoModels[{number}].get('selection')")


def saves(page: Any) -> list[Any]:
    return page.evaluate("saves")


def token(page: Any, i: int) -> Any:
    return page.locator(f'[data-i="{i}"]')


def drag(page: Any, start: int, stop: int, *, steps: int = 8) -> None:
    for i, act in ((start, page.mouse.down), (stop, page.mouse.up)):
        box = token(page, i).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=steps)
        act()


def test_a_drag_selects_a_range_and_sends_one_message(show: Callable):
    page = show(TokenSelect(**CHAT))
    drag(page, 3, 6)
    assert saves(page) == [{"selection": [3, 4, 5, 6]}]
    expect(page.get_by_role("status")).to_have_text("4 of 20 tokens selected (3-6)")
    drag(page, 8, 5)
    assert selection(page) == [5, 6, 7, 8]
    assert len(saves(page)) == 2


def test_a_drag_can_shrink_again_and_goes_over_messages(show: Callable):
    page = show(TokenSelect(**CHAT))
    token(page, 4).hover()
    page.mouse.down()
    token(page, 16).hover()
    expect(token(page, 16)).to_have_attribute("aria-selected", "true")
    token(page, 5).hover()
    page.mouse.up()
    assert saves(page) == [{"selection": [4, 5]}]


def test_shift_click_extends_from_the_anchor(show: Callable):
    page = show(TokenSelect(**CHAT))
    token(page, 5).click()
    token(page, 8).click(modifiers=["Shift"])
    assert selection(page) == [5, 6, 7, 8]
    token(page, 3).click(modifiers=["Shift"])
    assert selection(page) == [3, 4, 5]


def test_ctrl_click_toggles_and_ctrl_drag_adds_or_takes_away(show: Callable):
    page = show(TokenSelect(selection=[3], **CHAT))
    token(page, 6).click(modifiers=["ControlOrMeta"])
    assert selection(page) == [3, 6]
    token(page, 3).click(modifiers=["ControlOrMeta"])
    assert selection(page) == [6]
    page.keyboard.down("Control")
    drag(page, 14, 17)
    assert selection(page) == [6, 14, 15, 16, 17]
    drag(page, 16, 14)
    assert selection(page) == [6, 17]
    page.keyboard.up("Control")


def test_a_click_on_a_role_selects_what_was_said(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.locator(".ao-role", has_text="assistant").click()
    assert selection(page) == [14, 15, 16, 17]


def test_the_whole_of_it_by_keyboard(show: Callable):
    page = show(TokenSelect(**CHAT))
    press = page.keyboard.press
    token(page, 0).focus()
    press("ArrowRight")
    expect(token(page, 1)).to_be_focused()
    assert saves(page) == []
    press("Space")
    assert selection(page) == [1]
    press("Shift+ArrowRight")
    press("Shift+ArrowRight")
    assert selection(page) == [1, 2, 3]
    press("Shift+ArrowLeft")
    assert selection(page) == [1, 2]
    press("End")
    expect(token(page, 19)).to_be_focused()
    press("Shift+Home")
    assert selection(page) == list(range(20))
    press("Escape")
    assert selection(page) == []
    press("Control+a")
    assert selection(page) == list(range(20))
    expect(token(page, 0)).to_be_focused()
    press("Space")
    assert selection(page) == list(range(1, 20))
    press("ArrowLeft")
    expect(token(page, 0)).to_be_focused()
    # One token is reached by Tab: the one where the arrows are.
    assert page.locator('.ao-token[tabindex="0"]').count() == 1


def test_up_and_down_go_to_the_nearest_token_of_the_next_line(show: Callable):
    page = show(TokenSelect(tokens=[*"ab", "\n", *"cd", "\n", *"ef"]))
    token(page, 4).focus()
    for key, reached in [("ArrowUp", 1), ("ArrowUp", 1), ("ArrowDown", 4), ("ArrowDown", 7)]:
        page.keyboard.press(key)
        expect(token(page, reached)).to_be_focused()
    page.keyboard.press("Shift+ArrowUp")
    assert selection(page) == [4, 5, 6, 7]


def test_a_key_that_is_held_sends_one_message(show: Callable):
    page = show(TokenSelect(**CHAT))
    token(page, 3).focus()
    page.keyboard.down("Shift")
    for _ in range(4):
        page.keyboard.down("ArrowRight")  # repeats, as long as there is no `up`
    expect(token(page, 7)).to_have_attribute("aria-selected", "true")
    assert saves(page) == []
    page.keyboard.up("ArrowRight")
    assert saves(page) == [{"selection": [3, 4, 5, 6, 7]}]


def test_bare_keys_stay_and_commands_go_on(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.evaluate(
        "window.leaked = []; document.addEventListener('keydown', (e) => leaked.push(e.key))"
    )
    token(page, 3).focus()
    for key in ["a", "b", "d", "d", "Enter", "ArrowDown", "Shift+ArrowRight", "Escape", "0"]:
        page.keyboard.press(key)
    page.get_by_role("radio", name="word").focus()
    page.keyboard.press("a")
    # Shift alone is pressed on the way; what is bound to keys does not look at it alone.
    assert page.evaluate("leaked") == []
    token(page, 3).focus()
    page.keyboard.press("Control+s")
    assert "s" in page.evaluate("leaked")


def test_a_gesture_takes_tokens_words_or_messages(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.get_by_role("radio", name="word").check()
    assert saves(page) == [{"granularity": "word"}]
    token(page, 7).click()
    assert selection(page) == [6, 7]
    page.get_by_role("radio", name="message").check()
    token(page, 7).click()
    assert selection(page) == [3, 4, 5, 6, 7, 8]
    token(page, 1).click()
    assert selection(page) == list(range(11))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(token(page, 11)).to_be_focused()
    assert selection(page) == list(range(20))


def test_words_join_their_pieces(show: Callable):
    tokens = ["Hel", "lo", ",", " wor", "ld", "‥", "‥", "!", " don", "'t"]
    page = show(TokenSelect(tokens=tokens, granularity="word"))
    for i, expected in ((1, [0, 1]), (2, [2]), (3, [3]), (9, [8, 9])):
        token(page, i).click()
        if i == 3:
            expected = [3, 4, 5, 6]
        assert selection(page) == expected
    token(page, 1).focus()
    page.keyboard.press("ArrowRight")
    expect(token(page, 2)).to_be_focused()


def test_the_cap_keeps_those_nearest_to_where_the_gesture_began(show: Callable):
    page = show(TokenSelect(max_positions=3, **CHAT))
    drag(page, 8, 3)
    assert selection(page) == [6, 7, 8]
    expect(page.get_by_role("status")).to_contain_text("At most 3")
    expect(page.locator(".ao-tokens")).to_have_class(re.compile("ao-full"))
    token(page, 15).click(modifiers=["ControlOrMeta"])
    assert selection(page) == [6, 7, 8]
    token(page, 5).click()
    expect(page.get_by_role("status")).to_have_text("1 of 20 tokens selected (5)")
    page.get_by_role("button", name="All").click()
    assert len(selection(page)) == 3


def test_all_and_none_have_buttons(show: Callable):
    page = show(TokenSelect(**CHAT))
    expect(page.get_by_role("button", name="None")).to_be_disabled()
    page.get_by_role("button", name="All").click()
    assert selection(page) == list(range(20))
    page.get_by_role("button", name="None").click()
    assert selection(page) == []


def test_a_fixed_selection_can_be_read_but_not_changed(show: Callable):
    page = show(TokenSelect(selection=[3], disabled=True, **CHAT))
    drag(page, 4, 6)
    token(page, 4).focus()
    for key in ["Space", "Shift+ArrowRight", "Control+a", "Escape"]:
        page.keyboard.press(key)
    assert saves(page) == []
    expect(token(page, 5)).to_be_focused()
    expect(page.get_by_role("listbox")).to_have_attribute("aria-disabled", "true")


def test_scores_are_a_strip_and_are_said(show: Callable):
    scores = [None, *[float(i) for i in range(1, 20)]]
    page = show(TokenSelect(scores=scores, score_label="norm", **CHAT))
    heights = page.evaluate(
        "[...document.querySelectorAll('.ao-token')]"
        ".map((t) => parseFloat(t.style.getPropertyValue('--ao-high')))"
    )
    assert heights[1:] == sorted(heights[1:])
    assert heights[19] > 2 * heights[1]
    expect(page.locator(".ao-scale")).to_have_text("norm 019")
    token(page, 6).hover()
    expect(page.locator(".ao-detail")).to_have_text("token 6 “·hint” · user · norm 6")
    token(page, 1).focus()
    expect(page.locator(".ao-detail")).to_have_text("token 1 “user” · user · template · norm 1")
    page.evaluate("aoModels[0].set('scores', [])")
    expect(page.locator(".ao-scale")).to_be_hidden()


def test_changes_from_the_kernel_are_shown(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.evaluate("aoModels[0].set('selection', [14, 15])")
    expect(token(page, 14)).to_have_attribute("aria-selected", "true")
    page.evaluate(
        "const m = aoModels[0]; m.set('selection', []); m.set('roles', []); m.set('special', []);"
        "m.set('tokens', ['one', ' two']); m.set('label', 'Other')"
    )
    expect(page.get_by_role("option")).to_have_count(2)
    expect(page.get_by_role("listbox", name="Other")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("none of 2 tokens selected")
    page.evaluate("aoModels[0].set('tokens', [])")
    expect(page.get_by_role("listbox")).to_contain_text("no tokens")


def test_it_works_in_a_shadow_root(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.evaluate(
        """async () => {
          const source = JSON.parse(document.getElementById("ao-modules").textContent).TokenSelect;
          const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
          const host = document.createElement("div");
          document.querySelector("main").replaceChildren(host);
          const el = document.createElement("div");
          const shadow = host.attachShadow({ mode: "open" });
          shadow.append(document.querySelector("style").cloneNode(true), el);
          (await import(url)).default.render({ model: aoModels[0], el });
        }"""
    )
    drag(page, 3, 6)
    assert selection(page) == [3, 4, 5, 6]
    token(page, 8).click(modifiers=["Shift"])
    assert selection(page) == [3, 4, 5, 6, 7, 8]


def test_what_was_rendered_is_cleaned_up(show: Callable):
    page = show(TokenSelect(**CHAT))
    page.evaluate(
        """async () => {
          const source = JSON.parse(document.getElementById("ao-modules").textContent).TokenSelect;
          const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
          const el = document.createElement("div");
          Object.assign(window, { ons: [], offs: [] });
          const model = {
            get: aoModels[0].get, on: (e) => ons.push(e), off: (e) => offs.push(e),
          };
          const controller = new AbortController();
          (await import(url)).default.render({ model, el, signal: controller.signal });
          controller.abort();
        }"""
    )
    assert sorted(page.evaluate("ons")) == sorted(page.evaluate("offs")) != []


def test_a_reader_of_screens_gets_a_list_box(show: Callable):
    page = show(
        TokenSelect(tokens=TOKENS[:6], special=[0, 1, 2], roles=[["user", 0, 6]], selection=[4])
    )
    expect(page.locator("main")).to_match_aria_snapshot(
        """
        - heading "A page of widgets" [level=1]
        - text: Tokens of the prompt
        - group "Select by":
          - text: Select by
          - radio "token" [checked]
          - radio "word"
          - radio "message"
        - button "All"
        - button "None"
        - listbox "Tokens of the prompt":
          - group "user message":
            - 'option "0: <|im_start|>"'
            - 'option "1: user"'
            - 'option "2: new line"'
            - 'option "3: Give"'
            - 'option "4: me" [selected]'
            - 'option "5: a"'
        - status: 1 of 6 tokens selected (4)
        - text: Drag over tokens; or arrow keys, with Shift to select
        """
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(show: Callable, scheme: str):
    scores = [float(i) for i in range(20)]
    page = show(
        TokenSelect(selection=[4, 5, 9, 10], **CHAT),
        TokenSelect(selection=[4], scores=scores, disabled=True, label="Others", **CHAT),
        TokenSelect(tokens=AWKWARD, selection=list(range(0, 28, 2)), label="Awkward"),
        TokenSelect(label="Empty"),
        scheme=scheme,
    )
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found] == []


# What the hosts' own dark or light themes set, each while the system asks for the other.
HOSTS = {
    "JupyterLab": (
        "light",
        "data-jp-theme-light",
        "false",
        "--jp-layout-color1:#111111;--jp-ui-font-color1:rgba(255,255,255,.87)",
    ),
    "VS Code": (
        "light",
        "class",
        "vscode-dark",
        "--vscode-editor-background:#1e1e1e;--vscode-editor-foreground:#d4d4d4",
    ),
    "Colab": (
        "dark",
        "class",
        "",
        "--colab-primary-surface-color:#ffffff;--colab-primary-text-color:#212121",
    ),
}


@pytest.mark.parametrize("host", HOSTS)
def test_the_theme_is_the_hosts(show: Callable, host: str):
    scheme, name, value, style = HOSTS[host]
    scores = [float(i) for i in range(20)]
    page = show(TokenSelect(selection=[4, 5], scores=scores, **CHAT), scheme=scheme)
    page.evaluate(
        """([name, value, style, theme]) => {
          document.body.setAttribute(name, value);
          document.documentElement.setAttribute("theme", theme);
          document.body.style.cssText += style;
        }""",
        [name, value, style, "light" if host == "Colab" else ""],
    )
    dark = page.locator(".ao").evaluate("(e) => getComputedStyle(e).colorScheme") == "dark"
    assert dark == (scheme == "light")
    found = Axe().run(page, ".ao").response["violations"]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found] == []


def test_awkward_tokens_are_text_and_nothing_else(show: Callable):
    page = show(TokenSelect(tokens=AWKWARD))
    assert page.evaluate("aoModels[0].get('tokens')") == AWKWARD
    expect(page.get_by_role("option")).to_have_count(len(AWKWARD))
    assert page.locator("main b, main script:not([type='application/json'])").count() == 0
    shown = page.locator(".ao-token").all_text_contents()
    assert [text.replace("\n", "") for text in shown] == [visible(token) for token in AWKWARD]
    assert shown[:5] == ["</script>", "<!--", "<script>", "&amp;", "<b>"]
    assert shown[8:12] == ["⟨2028⟩", "⟨202E⟩", "🎉", "‥"]
    assert shown[17:22] == ["a⏎\nb", "⏎\n⏎", "⇥", "··", "∅"]
    assert shown[23:27] == ["⟨0000⟩", "⟨001B⟩[0m", "e\u0301", "👩\u200d💻"]
    # The order on the page is the model's also where a script runs from right to left.
    lefts = [token(page, i).bounding_box()["x"] for i in (14, 15, 16)]
    assert lefts == sorted(lefts)
    drag(page, 13, 16)
    assert selection(page) == [13, 14, 15, 16]
    token(page, 17).click()
    assert selection(page) == [17]


def test_2000_tokens_stay_fluid(show: Callable):
    words = ["alpha", " beta", " gamma", ",", " delta", ".\n"]
    tokens = [words[i % 6] for i in range(2000)]
    page = show(TokenSelect(tokens=tokens, roles=[["user", 0, 1000], ["assistant", 1000, 2000]]))
    # The entry is written some time after the paint.
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    first_paint = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    took = page.evaluate(
        """() => {
          const cells = [...document.querySelectorAll(".ao-token")];
          const list = document.querySelector(".ao-tokens");
          const at = (type, cell) => {
            const box = cell.getBoundingClientRect();
            list.dispatchEvent(new PointerEvent(type, {
              clientX: box.left + 3, clientY: box.top + 5, pointerId: 1, bubbles: true,
            }));
          };
          list.setPointerCapture = () => {};
          const start = performance.now();
          at("pointerdown", cells[0]);
          for (let i = 1; i <= 60; i += 1) at("pointermove", cells[i]);
          at("pointerup", cells[60]);
          return (performance.now() - start) / 62;
        }"""
    )
    print(f"2,000 tokens: first paint {first_paint:.0f} ms, an event of a drag {took:.2f} ms")
    assert selection(page) == list(range(61))
    assert first_paint < 1000
    page.keyboard.press("Control+a")
    assert len(selection(page)) == 2000


def test_several_widgets_of_a_page_are_apart(show: Callable):
    page = show(TokenSelect(**CHAT), TokenSelect(granularity="message", **CHAT))
    radios = page.get_by_role("radio", checked=True)
    assert radios.evaluate_all("all => all.map((r) => r.value)") == ["token", "message"]
    page.locator("#ao-1 [data-i='4']").click()
    assert selection(page, 0) == []
    assert selection(page, 1) == [3, 4, 5, 6, 7, 8]
